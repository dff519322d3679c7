"""Pictures of maps: colours, geometry, and what they say."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.testing.compare import compare_images

from captum_krypton import ImageReport, KryptonOcclusion, OcclusionMap, Report
from captum_krypton._call import WindowGrid
from captum_krypton._call.region_list import RegionList

PICTURES = Path(__file__).with_name("pictures")
PEAK = (4, 7)  # of 13 x 13 windows


def bump(counts: tuple[int, ...], peak: tuple[int, ...], width: float = 6.0) -> np.ndarray:
    places = np.indices(counts).astype(float)
    return np.exp(-sum((place - p) ** 2 for place, p in zip(places, peak, strict=True)) / width)


def image_map(reference: float = 0.87, height: float = 0.5) -> OcclusionMap:
    grid = WindowGrid((3, 112, 112), (3, 16, 16), (3, 8, 8))
    drop = height * bump((13, 13), PEAK) - 0.2 * height * bump((13, 13), (10, 3))
    scores = torch.tensor(reference - drop)[None]
    return OcclusionMap(scores, torch.tensor([reference]).double(), grid, 1, Report("full"))


def volume_map() -> OcclusionMap:
    grid = WindowGrid((1, 40, 32, 24), (1, 8, 8, 8), (1, 4, 4, 4))
    scores = torch.tensor(2 - bump(grid.counts[1:], (2, 4, 3)))[None]
    return OcclusionMap(scores, torch.tensor([2.0]).double(), grid, 1, Report("full"))


def signal_map() -> OcclusionMap:
    grid = WindowGrid((2, 100), (2, 10), (2, 5))
    scores = torch.tensor(1 - bump(grid.counts[1:], (6,)))[None]
    return OcclusionMap(scores, torch.tensor([1.0]).double(), grid, 1, Report("full"))


def photograph() -> np.ndarray:
    rows, columns = np.mgrid[0:112, 0:112] / 112
    return np.stack([rows, columns, 1 - rows], 2)


def drawn(figure: Figure, panel: int = -1) -> Any:
    """The map's image in a panel; the last axes are the bar's."""
    figure.draw_without_rendering()
    panels = figure.axes[:-1]
    return panels[panel].images[-1]


def colour(figure: Figure, place: tuple[int, int]) -> tuple[float, ...]:
    image = drawn(figure)
    return image.cmap(image.norm(image.get_array()[place]))


def test_zero_is_white_and_both_directions_have_one_scale() -> None:
    figure = image_map().plot()
    low, high = drawn(figure).get_clim()
    assert low == -high == pytest.approx(-0.5, abs=1e-3)
    assert min(colour(figure, (0, 12))) > 0.95
    red, _, blue, _ = colour(figure, PEAK)
    assert red > 2 * blue
    red, _, blue, _ = colour(figure, (10, 3))
    assert blue > red


def test_an_outcome_that_never_changes_is_white() -> None:
    figure = image_map(height=0.0).plot()
    assert drawn(figure).get_clim() == (-1, 1)
    assert min(colour(figure, PEAK)) > 0.95


@pytest.mark.parametrize(
    ("options", "ends"),
    [
        ({}, "neither"),
        ({"limits": (-0.2, 0.2)}, "max"),
        ({"limits": (-0.05, 0.2)}, "both"),
        ({"limits": (-0.05, 0.6)}, "min"),
        ({"scale": "paper"}, "min"),
    ],
)
def test_the_bar_says_what_lies_beyond_it(options: dict[str, Any], ends: str) -> None:
    figure = image_map().plot(photograph(), **options)
    assert figure.axes[-1]._colorbar.extend == ends


def test_the_bar_and_the_title_name_the_class() -> None:
    figure = image_map().plot(label="tabby cat", unit="probability")
    assert figure.axes[-1].get_ylabel() == "drop of tabby cat (probability)"
    assert figure.axes[0].get_title() == "tabby cat: 0.87 probability"
    paper = image_map().plot(label="tabby cat", scale="paper")
    assert paper.axes[-1].get_ylabel() == "tabby cat with the window covered"


def test_the_papers_scale() -> None:
    figure = image_map().plot(scale="paper")
    assert drawn(figure).get_clim() == pytest.approx((0.75 * 0.87, 1.0))
    assert drawn(figure).cmap.name == "jet_r"
    np.testing.assert_allclose(drawn(figure).get_array(), image_map().scores[0])


def test_every_panel_has_one_geometry() -> None:
    figure = image_map().plot(photograph())
    figure.draw_without_rendering()
    panels = figure.axes[:3]
    assert {panel.get_xlim() for panel in panels} == {(0, 112)}
    assert {panel.get_ylim() for panel in panels} == {(112, 0)}
    sizes = np.array([panel.get_window_extent().size for panel in panels])
    np.testing.assert_allclose(sizes, sizes[:1].repeat(3, 0), rtol=1e-6)
    # Each number at the middle of its window, by the window's own cells.
    for panel in (1, 2):
        left, right, bottom, top = drawn(figure, panel).get_extent()
        across = left + (PEAK[1] + 0.5) * (right - left) / 13
        down = top + (PEAK[0] + 0.5) * (bottom - top) / 13
        assert (across, down) == (PEAK[1] * 8 + 8, PEAK[0] * 8 + 8)


def test_opacity_follows_the_effect() -> None:
    figure = image_map().plot(photograph(), alpha=0.6)
    opacity = drawn(figure).get_alpha()
    change = (image_map().reference[0] - image_map().scores[0]).abs().numpy()
    np.testing.assert_allclose(opacity, 0.6 * change / change.max())
    assert drawn(figure, 1).get_alpha() is None


def test_axes_of_ones_own() -> None:
    own = Figure()
    panel = own.subplots()
    figure = image_map().plot(photograph(), ax=panel, cmap="PuOr", contours=3)
    assert figure is own and len(panel.images) == 2
    assert panel.images[-1].cmap.name == "PuOr"
    assert len(panel.collections) >= 1
    with pytest.raises(ValueError, match="ax is for maps along one or two axes"):
        volume_map().plot(ax=panel)


def test_a_volume_is_cut_through_its_largest_change() -> None:
    cells = np.arange(40 * 32 * 24, dtype=float).reshape(1, 40, 32, 24)
    figure = volume_map().plot(cells)
    assert [panel.get_title() for panel in figure.axes[:3]] == ["z = 12", "y = 20", "x = 16"]
    shown = [np.asarray(panel.images[0].get_array()) for panel in figure.axes[:3]]
    whole = cells[0] / cells.max()
    for found, expected in zip(shown, (whole[12], whole[:, 20], whole[:, :, 16]), strict=True):
        np.testing.assert_allclose(found, expected)
    change = bump((9, 7, 5), (2, 4, 3))
    maps = [np.asarray(panel.images[1].get_array()) for panel in figure.axes[:3]]
    for found, expected in zip(maps, (change[2], change[:, 4], change[:, :, 3]), strict=True):
        np.testing.assert_allclose(found, expected)
    assert {panel.images[1].get_clim() for panel in figure.axes[:3]} == {(-1, 1)}


def test_a_signal_lies_over_its_map() -> None:
    trace = np.sin(np.arange(200) / 9).reshape(2, 100)
    figure = signal_map().plot(trace)
    upper, under = figure.axes[:2]
    assert len(upper.lines) == 2 and upper.get_xlim() == under.get_xlim() == (0, 100)
    left, right, _, _ = under.images[0].get_extent()
    assert left + 6.5 * (right - left) / 19 == 6 * 5 + 5
    np.testing.assert_allclose(
        np.asarray(under.images[0].get_array())[0], bump((19,), (6,)), atol=1e-9
    )


def test_regions_are_drawn_as_their_attribution() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.int64)
    mask[0, 2:5, 3:7] = 1
    regions = RegionList.of_mask((3, 8, 8), mask)
    scores, reference = torch.tensor([[0.5, 0.2]]).double(), torch.tensor([0.6]).double()
    heat = OcclusionMap(scores, reference, regions, 0, Report("full"))
    expected = np.full((8, 8), 0.1)
    expected[2:5, 3:7] = 0.4
    np.testing.assert_allclose(np.asarray(drawn(heat.plot()).get_array()), expected, rtol=1e-6)


def test_cells_without_a_region_are_left_out() -> None:
    boxes = RegionList.of_boxes((3, 8, 8), [np.s_[0:4, 0:8]])
    scores, reference = torch.tensor([[0.5]]).double(), torch.tensor([0.6]).double()
    figure = OcclusionMap(scores, reference, boxes, 0, Report("full")).plot(photograph())
    assert drawn(figure).get_array().mask[4:].all()
    assert not drawn(figure).get_array().mask[:4].any()
    assert not drawn(figure).get_alpha()[4:].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "log"}, "scale must be one of"),
        ({"limits": (1.0, 0.0)}, "limits must be"),
        ({"alpha": 2.0}, "alpha must be in 0..1"),
        ({"image": np.zeros((5, 6, 7))}, "image must be"),
        ({"image": np.zeros(5)}, "image must be"),
    ],
)
def test_what_cannot_be_drawn(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_map().plot(**options)


def test_windows_of_each_channel() -> None:
    grid = WindowGrid((3, 8, 8), (1, 4, 4), (1, 4, 4))
    scores = torch.arange(12.0).reshape(1, 3, 2, 2)
    heat = OcclusionMap(scores, torch.zeros(1), grid, 0, Report("full"))
    with pytest.raises(ValueError, match="channel must say which of 3 channels' windows"):
        heat.plot()
    shown = np.asarray(drawn(heat.plot(channel=1)).get_array())
    np.testing.assert_array_equal(shown, [[-4, -5], [-6, -7]])
    assert "<img" not in heat._repr_html_() and "3 x 2 x 2" in heat._repr_html_()


def test_several_outputs() -> None:
    heat = KryptonOcclusion(lambda x: x.mean((2, 3))).heatmap(
        torch.rand(1, 3, 8, 8), (3, 4, 4), (3, 4, 4), target=None
    )
    with pytest.raises(ValueError, match=r"which of the outputs \(3,\)"):
        heat.plot()
    assert heat.plot(output=2).axes
    assert "<img" in heat._repr_html_()


# --- notebooks


def test_a_notebook_shows_a_figure_and_a_map() -> None:
    figure = image_map().plot()
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert type(figure) is Figure  # Weights & Biases takes no subclass
    again = pickle.loads(pickle.dumps(figure))
    assert again._repr_png_() == figure._repr_png_()
    html = image_map()._repr_html_()
    assert "data:image/png;base64," in html and "largest drop" in html
    assert html.index("largest drop") < html.index("<img")  # facts first, also below each other


def test_a_notebook_shows_of_a_report_what_there_is_to_say() -> None:
    report = Report("full", ("a < b",), windows=3, seconds=1.23456, images=(ImageReport(),) * 2)
    names_and_values = re.findall(r"<th.*?>(.*?)</th><td.*?>(.*?)</td>", report._repr_html_())
    assert names_and_values == [
        ("path", "full"),
        ("reasons", "(&#x27;a &lt; b&#x27;,)"),
        ("windows", "3"),
        ("seconds", "1.23"),
    ]


def test_short_representations() -> None:
    text = repr(image_map())
    assert "windows: 1 x 13 x 13" in text and "largest drop: 0.5" in text and "\n" not in text
    assert repr(Report("full", windows=3, seconds=1.23456)) == (
        "Report(path='full', windows=3, seconds=1.23)"
    )


# --- whole pictures; `KRYPTON_WRITE_PICTURES=1` writes them anew


@pytest.mark.parametrize("name", ["image", "paper", "volume", "signal"])
def test_pictures(name: str, tmp_path: Path) -> None:
    rows = np.arange(112) / 112
    options: dict[str, dict[str, Any]] = {
        "image": {"image": photograph(), "contours": 3, "limits": (-0.4, 0.4)},
        "paper": {"image": photograph(), "scale": "paper"},
        "volume": {"image": np.indices((40, 32, 24)).sum(0)},
        "signal": {"image": np.sin(rows[:100] * 20)},
    }
    makes = {"volume": volume_map, "signal": signal_map}
    with matplotlib.rc_context({"text.color": "none", "axes.labelcolor": "none"}):
        with matplotlib.rc_context({"xtick.labelcolor": "none", "ytick.labelcolor": "none"}):
            figure = makes.get(name, image_map)().plot(**options[name])
            figure.savefig(tmp_path / f"{name}.png", dpi=50)
    expected = PICTURES / f"{name}.png"
    if os.environ.get("KRYPTON_WRITE_PICTURES"):
        expected.parent.mkdir(exist_ok=True)
        expected.write_bytes((tmp_path / f"{name}.png").read_bytes())
    assert compare_images(str(expected), str(tmp_path / f"{name}.png"), tol=8) is None
