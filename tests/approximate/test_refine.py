"""Maps that grow until they are good enough, on maps that are known and on a network."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from small_networks import small_network

from captum_krypton import Budget, DrillDown, KryptonOcclusion, ssim
from captum_krypton._approximate.coarse import Floats
from captum_krypton._approximate.refine import Growth, grow
from captum_krypton._operators.regions import Mask

# Memory that nothing was written to may hold any number. This one raises where it is touched.
NOT_RUN = np.array([0x7FF0000000000001], np.uint64).view(np.float64)
QUESTION: dict[str, Any] = {"sliding_window_shapes": (3, 8, 8), "strides": (3, 2, 2)}


class Known:
    """A map that is known, and how often each window was asked for."""

    def __init__(self, plain: Floats) -> None:
        self.values = plain.reshape(math.prod(plain.shape[:2]), -1)
        self.asked = np.zeros(len(self.values), int)

    def __call__(self, mask: Mask) -> Floats:
        self.asked += mask
        return np.where(mask[:, None], self.values, NOT_RUN)


def fields(seed: int) -> Floats:
    """Overlapping windows over something rough, with a region of its own scale."""
    generator = np.random.default_rng(seed)
    rough = generator.normal(size=(40, 34)) * (1 + 4 * (generator.random((40, 34)) > 0.97))
    rough[10:22, 8:20] *= generator.choice([0.1, 1, 5])
    smooth = gaussian_filter(rough, generator.uniform(1, 2.5))
    return smooth / smooth.std()


def grown(plain: Floats, **settings: Any) -> tuple[list[Growth], Known]:
    known = Known(plain)
    return list(grow(plain.shape, (0.25, 0.25), known, **settings)), known


@pytest.mark.parametrize("seed", range(4))
def test_growing(seed: int) -> None:
    plain = fields(seed)
    stages, known = grown(plain)
    assert (known.asked == 1).all()  # all, and none twice
    before = np.zeros(plain.size, bool)
    for stage in stages:
        assert stage.known[before].all()
        assert np.isfinite(stage.values).all()
        assert np.array_equal(stage.values[stage.known], known.values[stage.known])
        assert 0 <= stage.quality <= 1
        before = stage.known
    assert stages[-1].quality == 1
    assert np.array_equal(stages[-1].values, known.values)
    truth = [ssim(plain, stage.values.reshape(plain.shape)) for stage in stages]
    assert truth[0] < truth[len(truth) // 2] < truth[-1] == 1


def test_touching_what_was_not_run_is_noticed() -> None:
    with pytest.raises(RuntimeWarning, match="invalid value"):
        NOT_RUN - 1.0


def test_targets_are_met() -> None:
    """By the true similarity, at the moment when the estimate first says so."""
    met = []
    for seed in range(12):
        plain = fields(seed)
        stages, _ = grown(plain)
        for target in (0.8, 0.9, 0.95):
            stage = next(stage for stage in stages if stage.quality >= target)
            met.append(ssim(plain, stage.values.reshape(plain.shape)) >= target)
            assert ssim(plain, stage.values.reshape(plain.shape)) >= target - 0.05
    assert np.mean(met) >= 0.9


def test_certain_regions_are_left_alone() -> None:
    """A window more is run where the map is rough, and none where it is flat."""
    plain = gaussian_filter(np.random.default_rng(0).normal(size=(40, 34)), 1)
    plain[:, :17] *= 0.001
    stages, _ = grown(plain)
    middle = next(stage for stage in stages if stage.quality >= 0.9).known.reshape(plain.shape)
    assert middle[:, 18:].mean() > 2 * middle[:, :12].mean()


def test_a_limit_of_windows() -> None:
    plain = fields(0)
    for limit in (100, 300, 777, 5000):
        stages, known = grown(plain, limit=limit)
        assert known.asked.sum() == min(limit, plain.size)
        assert stages[-1].known.sum() == known.asked.sum()
    stages, known = grown(plain[:6, :7])
    assert len(stages) == 1 and stages[0].quality == 1


@pytest.mark.parametrize("place", [(0, 0), (17, 18), (21, 5)])
@pytest.mark.parametrize("outcome", [math.nan, math.inf, -math.inf])
def test_one_outcome_that_is_not_finite_has_all_windows_run(
    place: tuple[int, int], outcome: float
) -> None:
    plain = fields(0)
    plain[place] = outcome
    stages, known = grown(plain)
    assert (known.asked == 1).all()
    assert np.array_equal(stages[-1].values, known.values, equal_nan=True)


def test_a_map_of_one_value() -> None:
    stages, _ = grown(np.full((30, 30), 0.25))
    assert stages[0].quality == 1
    assert (stages[0].values == 0.25).all()


def test_a_map_that_is_flat_where_it_was_looked_at() -> None:
    """Bumps between the windows of the first grid: the judges see some of them.

    The estimate is too high here, as errors are few and large, but it is not blind.
    """
    generator = np.random.default_rng(0)
    plain = np.zeros((80, 80))
    for row, column in generator.integers(0, 20, (60, 2)) * 4 + 1:
        plain[row : row + 3, column : column + 3] = generator.uniform(0.5, 1)
    stages, _ = grown(plain)
    stage = next(stage for stage in stages if stage.quality >= 0.9)
    assert len(stages) > 1
    assert ssim(plain, stage.values.reshape(plain.shape)) > 0.75


def test_the_worst_of_several_maps_counts() -> None:
    rough = np.random.default_rng(0).normal(size=(40, 34))
    maps = np.stack([gaussian_filter(rough, 6), gaussian_filter(rough, 1)], -1)
    known = Known(maps)
    stages = list(grow((40, 34), (0.25, 0.25), known, shown=(0, 1)))
    stage = next(stage for stage in stages if stage.quality >= 0.9)
    for output in range(2):
        made = stage.values[:, output].reshape(40, 34)
        assert ssim(maps[..., output], made) >= 0.87
    easy = list(grow((40, 34), (0.25, 0.25), Known(maps), shown=(0,)))
    assert next(s for s in easy if s.quality >= 0.9).known.sum() < stage.known.sum()


@pytest.mark.parametrize("counts", [(3000,), (130, 140), (3, 400), (12, 15, 14)])
def test_few_windows_of_a_large_map(counts: tuple[int, ...]) -> None:
    place = np.indices(counts) / 10
    plain = np.sin(place).sum(0).reshape(-1, 1)
    spacing = (0.5,) * len(counts)

    def run(mask: Mask) -> Floats:
        return np.where(mask[:, None], plain, np.nan)

    stages = list(grow(counts, spacing, run, limit=100))
    assert [stage.known.sum() for stage in stages][-1] == 100
    assert all(np.isfinite(stage.values).all() for stage in stages)
    assert all(0 <= stage.quality <= 1 for stage in stages)


def test_a_map_of_a_quality() -> None:
    network, images = small_network(), torch.rand(2, 3, 64, 60)
    exact = KryptonOcclusion(network).heatmap(images, **QUESTION)
    krypton = KryptonOcclusion(network, quality=0.9)
    heat = krypton.heatmap(images, **QUESTION)
    report = heat.report
    assert exact.report.estimated_ssim == 1
    assert report.estimated_ssim is not None and report.estimated_ssim >= 0.9
    assert report.windows_evaluated < exact.report.windows_evaluated
    assert report.theoretical_speedup > exact.report.theoretical_speedup
    for image in range(2):
        assert ssim(exact.scores[image], heat.scores[image]) > 0.87
    same = torch.isclose(heat.scores, exact.scores, rtol=0, atol=1e-6)
    assert int(same.sum()) >= report.windows_evaluated
    assert krypton.attribute(images, **QUESTION).shape == images.shape
    several = krypton.heatmap(images, target=None, **QUESTION)
    assert several.scores.shape == (2, 5, 29, 27)
    assert not several.scores.isnan().any()
    channels = krypton.heatmap(images, sliding_window_shapes=(2, 8, 8), strides=(1, 2, 2))
    assert channels.scores.shape == (2, 2, 29, 27)
    assert not channels.scores.isnan().any()


def test_a_prior_that_is_nearly_right_leaves_little_to_do() -> None:
    plain = fields(0)
    rough = np.random.default_rng(1).normal(size=plain.shape)
    prior = plain + 0.5 + 0.3 * gaussian_filter(rough, 5) / gaussian_filter(rough, 5).std()
    known = Known(plain)
    stages = list(grow(plain.shape, (0.25, 0.25), known, prior=prior.reshape(-1, 1)))
    assert (known.asked == 1).all()
    for stage in stages:
        assert np.array_equal(stage.values[stage.known], known.values[stage.known])
    good = next(stage for stage in stages if stage.quality >= 0.95)
    assert ssim(plain, good.values.reshape(plain.shape)) >= 0.95
    alone = next(stage for stage in grown(plain)[0] if stage.quality >= 0.95)
    assert good.known.sum() < alone.known.sum() / 1.5


@pytest.mark.parametrize("settings", [{"quality": 0.97}, {"budget": Budget(windows=150)}])
def test_a_thresholded_map_that_is_corrected(settings: dict[str, Any]) -> None:
    network, images = small_network(), torch.rand(2, 3, 64, 60)
    exact = KryptonOcclusion(network).heatmap(images, **QUESTION)
    rough = KryptonOcclusion(network, projective_field_threshold=0.15)
    cropped = rough.heatmap(images, **QUESTION)
    krypton = KryptonOcclusion(network, projective_field_threshold=0.15, **settings)
    heat = krypton.heatmap(images, **QUESTION)
    report = heat.report
    assert report.threshold == 0.15
    assert report.windows_evaluated == 2 * report.windows
    assert 0 < report.windows_exact < report.windows_evaluated
    assert (cropped.report.windows_exact, exact.report.windows_exact) == (0, 2 * report.windows)
    assert report.theoretical_speedup < cropped.report.theoretical_speedup
    for image in range(2):
        better = ssim(exact.scores[image], heat.scores[image])
        assert better > ssim(exact.scores[image], cropped.scores[image])
    same = torch.isclose(heat.scores, exact.scores, rtol=0, atol=1e-6)
    assert int(same.sum()) >= report.windows_exact


def test_a_map_of_a_budget() -> None:
    network, image = small_network(), torch.rand(1, 3, 64, 60)
    krypton = KryptonOcclusion(network, budget=Budget(windows=200))
    report = krypton.heatmap(image, **QUESTION).report
    assert report.windows_evaluated == 200
    assert report.estimated_ssim is not None and 0 < report.estimated_ssim < 1
    hasty = KryptonOcclusion(network, budget=Budget(seconds=1e-9))
    assert hasty.heatmap(image, **QUESTION).report.windows_evaluated < 200
    patient = KryptonOcclusion(network, budget=Budget(seconds=1e9))
    report = patient.heatmap(image, **QUESTION).report
    assert report.windows_evaluated == report.windows and report.estimated_ssim == 1
    both = KryptonOcclusion(network, budget=Budget(windows=700), quality=0.5)
    assert both.heatmap(image, **QUESTION).report.windows_evaluated < 700


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"quality": 0}, "quality must be above 0"),
        ({"quality": 1.1}, "quality must be above 0"),
        ({"quality": 0.9, "drill_down": DrillDown()}, "exclude"),
    ],
)
def test_what_excludes_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KryptonOcclusion(small_network(), **settings)


def test_budgets_out_of_range() -> None:
    for arguments, message in [
        ({}, "windows or seconds"),
        ({"windows": 99}, "budget.windows must be an integer of at least 100, not 99"),
        ({"windows": 2e2}, "budget.windows must be an integer of at least 100, not 200.0"),
        ({"seconds": 0.0}, "budget.seconds must be above 0"),
        ({"seconds": math.nan}, "budget.seconds must be above 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            Budget(**arguments)
    krypton = KryptonOcclusion(small_network(), budget=Budget(windows=199))
    with pytest.raises(ValueError, match="at least 200 for windows at 2 x 29 x 27 positions"):
        krypton.attribute(
            torch.rand(1, 3, 64, 60), sliding_window_shapes=(2, 8, 8), strides=(1, 2, 2)
        )
    with pytest.raises(TypeError, match="budget must be a Budget"):
        KryptonOcclusion(small_network(), budget=100)  # type: ignore[arg-type]
