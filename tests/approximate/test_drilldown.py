"""Adaptive drill-down (Section 4.3), on maps that are known and on a network."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_networks import small_network
from torch import Tensor

from captum_krypton import DrillDown, KryptonOcclusion
from captum_krypton._approximate.coarse import CoarseGrid, Floats
from captum_krypton._approximate.drilldown import drill_down, interesting
from captum_krypton._run.group import Selection

COUNTS = st.one_of(
    st.tuples(st.just(1), st.integers(1, 40)),
    st.tuples(st.integers(1, 3), st.integers(1, 24), st.integers(1, 24)),
    st.tuples(st.just(1), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
)


def window_axes(counts: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(range(1, len(counts)))


@given(counts=COUNTS, step=st.integers(1, 12))
def test_every_window_has_a_cell_of_the_coarse_grid(counts: tuple[int, ...], step: int) -> None:
    coarse = CoarseGrid(counts, window_axes(counts), step)
    own = np.flatnonzero(coarse.windows)
    assert set(coarse.cells) == set(own)
    assert (coarse.cells[own] == own).all()
    for dim, count in enumerate(counts):
        place = np.unravel_index(np.arange(math.prod(counts)), counts)[dim]
        gap = np.abs(np.unravel_index(coarse.cells, counts)[dim] - place)
        nodes = np.unique(np.unravel_index(own, counts)[dim])
        assert (gap == np.abs(nodes[:, None] - place).min(0)).all()
        assert {0, count - 1} <= set(nodes)
        if dim == 0:
            assert len(nodes) == count


@given(counts=COUNTS, step=st.integers(1, 12), outputs=st.integers(0, 2), seed=st.integers(0, 99))
def test_a_spline_goes_through_its_nodes_and_keeps_a_line(
    counts: tuple[int, ...], step: int, outputs: int, seed: int
) -> None:
    coarse = CoarseGrid(counts, window_axes(counts), step)
    generator = torch.Generator().manual_seed(seed)
    shape = (2, math.prod(counts), *[3] * outputs)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    filled, repeated = coarse.spline(values), coarse.repeated(values)
    own = torch.from_numpy(coarse.windows)
    torch.testing.assert_close(filled[:, own], values[:, own])
    assert torch.equal(repeated[:, own], values[:, own])
    grid = np.stack(np.unravel_index(np.arange(math.prod(counts)), counts), 1)
    line = torch.from_numpy(grid @ np.arange(1, 1 + len(counts)).astype(float))
    masked = torch.where(own, line, torch.nan)[None]
    for dim in window_axes(counts):
        if counts[dim] == 1:
            continue
        torch.testing.assert_close(coarse.spline(masked)[0], line, rtol=1e-9, atol=1e-9)
        break


class Known:
    """Windows of maps that are known, and how often each was asked for."""

    def __init__(self, maps: Tensor) -> None:
        self.maps, self.asked = maps, np.zeros(maps.shape[:2], int)

    def __call__(self, selected: Selection) -> Tensor:
        self.asked += selected
        mask = torch.from_numpy(selected).reshape(*selected.shape, *[1] * (self.maps.dim() - 2))
        return torch.where(mask, self.maps, torch.nan)


def drop(scores: Tensor) -> Floats:
    return -scores.reshape(*scores.shape[:2], -1)[..., 0].numpy()


@given(
    counts=COUNTS,
    fraction=st.floats(0.01, 0.95),
    speedup=st.floats(1.05, 30),
    images=st.integers(1, 3),
    outputs=st.integers(0, 1),
    seed=st.integers(0, 99),
)
def test_any_settings_run_or_say_what_is_possible(
    counts: tuple[int, ...], fraction: float, speedup: float, images: int, outputs: int, seed: int
) -> None:
    if fraction * speedup >= 1:
        with pytest.raises(ValueError, match="speedup must be below .* \\(Eq. 38\\)"):
            DrillDown(fraction, speedup)
        return
    settings = DrillDown(fraction, speedup)
    axes = [axis for axis in window_axes(counts) if counts[axis] > 1]
    most = min((counts[axis] for axis in axes), default=1) ** len(axes)
    if axes and speedup > most / (1 + fraction * most) * (1 + 1e-9):  # Eq. 37 and 39
        with pytest.raises(ValueError, match="speedup must be at most .* \\(Eq. 39\\)"):
            settings.coarse(counts, window_axes(counts))
        return
    coarse = settings.coarse(counts, window_axes(counts))
    generator = torch.Generator().manual_seed(seed)
    shape = (images, math.prod(counts), *[4] * outputs)
    known = Known(torch.randn(shape, generator=generator, dtype=torch.float64))
    scores, evaluated = drill_down(settings, coarse, images, known, drop)
    assert (known.asked == evaluated).all()  # nothing twice
    assert torch.isfinite(scores).all()
    mask = torch.from_numpy(evaluated)
    assert torch.equal(scores[mask], known.maps[mask])
    for image in range(images):
        top = interesting(coarse, drop(known.maps)[image], fraction)
        assert evaluated[image][top].all()
        assert (evaluated[image] == (top | coarse.windows)).all()
        cells = np.unique(coarse.cells[top])
        assert len(cells) == 1 or top.sum() <= fraction * math.prod(counts)
        other = np.setdiff1d(np.flatnonzero(coarse.windows), cells)
        drops = drop(known.maps)[image]
        assert drops[cells].min() >= drops[other].max(initial=-math.inf)


def test_stage_one_is_the_papers() -> None:
    """Eq. 38 with the paper's defaults: S1 is 3.46 times S2; on the map's grid, 4 times."""
    assert DrillDown() == DrillDown(0.25, 3)
    assert DrillDown().coarse((1, 53, 53), (1, 2)).step == 4
    assert DrillDown(0.1, 5).coarse((1, 53, 53), (1, 2)).step == 4  # sqrt(5 / 0.5)
    assert DrillDown(0.1, 5).coarse((1, 200), (1,)).step == 10
    speedup = 16 / (1 + 0.25 * 16)  # Eq. 37
    assert DrillDown(0.25, speedup).coarse((1, 53, 53), (1, 2)).step == 4


def test_regions_need_not_touch() -> None:
    coarse = CoarseGrid((1, 20, 20), (1, 2), 4)
    depth = np.zeros((20, 20))
    depth[2:5, 2:5] = depth[14:18, 14:18] = 1.0
    chosen = interesting(coarse, depth.reshape(-1), 0.1).reshape(20, 20)
    assert chosen[4, 4] and chosen[16, 16] and not chosen[10, 10]


def test_a_smooth_map_is_filled_by_spline_and_a_rough_one_by_repeating() -> None:
    place = np.stack(np.meshgrid(np.arange(33), np.arange(33), indexing="ij"))
    smooth = np.sin(place[0] / 7) + np.cos(place[1] / 6)
    steps = np.where((place[0] // 8 + place[1] // 8) % 2, 1.0, -1.0)
    maps = torch.from_numpy(np.stack([smooth, steps])).reshape(2, -1)
    coarse = DrillDown(0.2, 3).coarse((1, 33, 33), (1, 2))
    scores, evaluated = drill_down(DrillDown(0.2, 3), coarse, 2, Known(maps), drop)
    rest = torch.from_numpy(~evaluated)
    spline, repeated = coarse.spline(maps), coarse.repeated(maps)
    assert torch.equal(scores[0][rest[0]], spline[0][rest[0]])
    assert torch.equal(scores[1][rest[1]], repeated[1][rest[1]])


@pytest.mark.parametrize("outcome", [math.nan, math.inf, -math.inf])
def test_outcomes_that_are_not_finite_are_looked_at_and_spread_no_further(outcome: float) -> None:
    maps = torch.zeros(1, 20 * 20, dtype=torch.float64)
    maps[0, 8 * 20 + 8] = outcome
    coarse = CoarseGrid((1, 20, 20), (1, 2), 4)
    scores, evaluated = drill_down(DrillDown(0.1, 3), coarse, 1, Known(maps), drop)
    assert evaluated[0].reshape(20, 20)[7:10, 7:10].all()
    assert (~scores.isfinite()).sum() == 1


@pytest.mark.parametrize("threshold", [1.0, 0.5])
def test_a_map_with_drill_down(threshold: float) -> None:
    network, images = small_network().double(), torch.rand(2, 3, 40, 36).double()
    question = {"sliding_window_shapes": (3, 6, 6), "strides": (3, 2, 2)}
    whole = KryptonOcclusion(network, projective_field_threshold=threshold)
    full = whole.heatmap(images, **question)
    krypton = KryptonOcclusion(
        network, drill_down=DrillDown(0.2, 3), projective_field_threshold=threshold
    )
    heat = krypton.heatmap(images, **question)
    report = heat.report
    assert report.windows == full.report.windows == 18 * 16
    assert report.windows_evaluated < 2 * report.windows / 2.5
    saved = full.report.theoretical_speedup * 2 * report.windows / report.windows_evaluated
    assert report.theoretical_speedup == pytest.approx(saved)
    same = torch.isclose(heat.scores, full.scores, rtol=0, atol=1e-12)
    assert int(same.sum()) >= report.windows_evaluated
    coarse = DrillDown(0.2, 3).coarse((1, 18, 16), (1, 2))
    assert same.reshape(2, -1)[:, torch.from_numpy(coarse.windows)].all()
    drops = full.reference[:, None] - full.scores.reshape(2, -1)
    for image in range(2):
        on_grid = torch.where(torch.from_numpy(coarse.windows), drops[image], -math.inf)
        cell = torch.from_numpy(coarse.cells == int(on_grid.argmax()))
        assert same[image].reshape(-1)[cell].all()
    assert krypton.attribute(images, **question).shape == images.shape
    several = krypton.heatmap(images, target=None, **question)
    assert several.scores.shape == (2, 5, 18, 16)


def test_settings_out_of_range() -> None:
    for arguments, name in [
        ((0.0, 3), "fraction"),
        ((1.0, 0.5), "fraction"),
        ((0.25, 1.0), "speedup"),
        ((0.25, 4.0), "speedup"),
        ((math.nan, 3), "fraction"),
    ]:
        with pytest.raises(ValueError, match=name):
            DrillDown(*arguments)
    with pytest.raises(TypeError, match="drill_down"):
        KryptonOcclusion(small_network(), drill_down=3)  # type: ignore[arg-type]
    krypton = KryptonOcclusion(small_network(), drill_down=DrillDown(0.05, 15))
    with pytest.raises(ValueError, match=r"at most 8\.889 .* 4 x 5 windows"):
        krypton.attribute(
            torch.rand(1, 3, 12, 15), sliding_window_shapes=(3, 4, 4), strides=(3, 3, 3)
        )
