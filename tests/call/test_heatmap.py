"""Maps as pictures, and what they say about themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion, OcclusionMap, Report
from captum_krypton._call.windows import WindowGrid


def bright_spot(row: int, column: int) -> tuple[nn.Module, Tensor]:
    """A network that looks at one pixel alone, and an image."""

    class Spot(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :, row, column].sum(1, keepdim=True)

    return Spot(), torch.ones(1, 3, 40, 60)


def made(row: int, column: int, window: int, stride: int) -> OcclusionMap:
    model, image = bright_spot(row, column)
    shape, strides = (3, window, window), (3, stride, stride)
    return KryptonOcclusion(model).heatmap(image, shape, strides, target=0)


@pytest.mark.parametrize(("window", "stride"), [(8, 4), (10, 2), (6, 6), (9, 5)])
def test_numbers_stand_in_the_middle_of_their_windows(window: int, stride: int) -> None:
    heat = made(20, 30, window, stride)
    left, right, bottom, top = heat.extent()
    rows, columns = heat.scores.shape[1:]
    for number in range(columns):
        middle = left + (number + 0.5) * (right - left) / columns
        assert middle == pytest.approx(number * stride + window / 2)
    for number in range(rows):
        middle = top + (number + 0.5) * (bottom - top) / rows
        assert middle == pytest.approx(number * stride + window / 2)
    twice = heat.extent((80, 120))
    assert twice == pytest.approx([2 * edge for edge in heat.extent()])


def test_a_map_lies_over_what_it_shows() -> None:
    """The drop's middle on the picture is the pixel that the network looks at."""
    heat = made(33, 7, 8, 2)
    figure = heat.plot(torch.rand(40, 60))
    overlay = figure.axes[2].images[-1]
    left, right, bottom, top = overlay.get_extent()
    drop = (heat.reference[0] - heat.scores[0]).numpy()
    rows, columns = drop.nonzero()
    across = left + (columns.mean() + 0.5) * (right - left) / drop.shape[1]
    down = top + (rows.mean() + 0.5) * (bottom - top) / drop.shape[0]
    assert abs(across - 7.5) <= 1 and abs(down - 33.5) <= 1
    assert figure.axes[2].get_xlim() == (0, 60)
    assert figure.axes[2].get_ylim() == (40, 0)


def test_a_map_along_one_axis_has_no_extent() -> None:
    signal = KryptonOcclusion(nn.Sequential(nn.Flatten(), nn.Linear(60, 2)))
    heat = signal.heatmap(torch.rand(1, 3, 20), (3, 5), (3, 5), target=0)
    with pytest.raises(ValueError, match="two window axes"):
        heat.extent()


@st.composite
def grids(draw: st.DrawFn) -> WindowGrid:
    """Windows over a signal, an image or a volume of a few channels."""
    sizes, windows, strides = [2], [2], [2]
    for _ in range(draw(st.integers(1, 3))):
        sizes.append(draw(st.integers(1, 30)))
        windows.append(draw(st.integers(1, sizes[-1])))
        strides.append(draw(st.integers(1, windows[-1])))
    return WindowGrid(tuple(sizes), tuple(windows), tuple(strides))


@given(grids())
def test_the_affine_of_the_grid_leads_to_the_middles_of_the_windows(grid: WindowGrid) -> None:
    heat = OcclusionMap(torch.zeros(1, *grid.counts[1:]), torch.zeros(1), grid, 0, Report("full"))
    matrix = heat.grid_affine()
    assert matrix.shape == (len(grid.shape), len(grid.shape))
    assert not matrix[-1, :-1].any() and matrix[-1, -1] == 1
    places = np.indices(grid.counts[1:]).reshape(len(grid.shape) - 1, -1)
    found = (matrix @ np.vstack([places, np.ones_like(places[:1])]))[:-1]
    for axis, (along, place) in enumerate(zip(found, places, strict=True)):
        cells = np.arange(grid.shape[axis + 1])
        reach = grid.along(axis + 1)
        covered = (cells[:, None] >= reach.start) & (cells[:, None] < reach.stop)
        middles = (covered * cells[:, None]).sum(0) / covered.sum(0)
        cut = grid.window[axis + 1] - covered.sum(0)
        assert not cut[:-1].any() and cut[-1] < grid.stride[axis + 1]
        np.testing.assert_allclose(along, (middles + cut / 2)[place])


@pytest.mark.parametrize(("window", "stride"), [(8, 4), (10, 2), (6, 6), (9, 5)])
def test_the_affine_of_the_grid_is_the_extent_of_a_picture(window: int, stride: int) -> None:
    heat = made(20, 30, window, stride)
    left, right, bottom, top = heat.extent()
    rows, columns = heat.scores.shape[1:]
    corners = heat.grid_affine() @ [[-0.5, rows - 0.5], [-0.5, columns - 0.5], [1, 1]]
    # A picture's first pixel reaches from 0 to 1, a cell's middle is its number.
    assert (corners[:-1] + 0.5).tolist() == [[top, bottom], [left, right]]


@pytest.mark.parametrize("target", [1, None], ids=["one output", "every output"])
@torch.no_grad()
def test_the_drop_of_every_window(target: int | None) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).eval()
    image = torch.rand(2, 3, 4, 4)
    heat = KryptonOcclusion(network).heatmap(image, (3, 2, 2), strides=(3, 2, 2), target=target)
    assert heat.drop.shape == heat.scores.shape
    outputs = range(3) if target is None else (target,)
    for example in range(2):
        for output in outputs:
            covered = image[example : example + 1].clone()
            covered[..., 2:, :2] = 0  # the window in the second row, the first column
            fall = network(image)[example, output] - network(covered)[0, output]
            place = (example, output, 1, 0) if target is None else (example, 1, 0)
            assert float(heat.drop[place]) == pytest.approx(float(fall), abs=1e-5)


@pytest.mark.filterwarnings("ignore::captum_krypton.KryptonFallbackWarning")
@pytest.mark.parametrize(
    "kind", [torch.uint8, torch.bool, torch.int64, torch.bfloat16, torch.float16, torch.float64]
)
@torch.no_grad()
def test_the_drop_of_every_type_of_outcome(kind: torch.dtype) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).eval()

    def outcome(x: Tensor) -> Tensor:
        return (20 * network(x)).abs().to(kind)

    image = torch.rand(1, 3, 4, 4)
    heat = KryptonOcclusion(outcome).heatmap(image, (3, 2, 2), strides=(3, 2, 2), target=0)
    exact = heat.reference.double()[:, None, None] - heat.scores.double()
    assert heat.drop.dtype == (torch.float64 if kind == torch.float64 else torch.float32)
    torch.testing.assert_close(heat.drop.double(), exact, rtol=1e-6, atol=0)
    assert "largest drop" in repr(heat)
