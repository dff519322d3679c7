"""Maps that are looked at while they grow."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from small_networks import small_network
from torch import Tensor, nn

from captum_krypton import (
    Budget,
    DrillDown,
    KryptonFallbackWarning,
    KryptonOcclusion,
    OcclusionMap,
    ssim,
)

QUESTION: dict[str, Any] = {"sliding_window_shapes": (3, 8, 8), "strides": (3, 2, 2)}


@pytest.fixture
def model() -> nn.Module:
    return small_network().double()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0)).double()


def exact(model: nn.Module, image: Tensor) -> OcclusionMap:
    return KryptonOcclusion(model).heatmap(image, **QUESTION)


def test_maps_grow_to_the_exact_one(model: nn.Module, image: Tensor) -> None:
    whole = exact(model, image)
    maps = list(KryptonOcclusion(model).growing(image, **QUESTION))
    evaluated = [heat.report.windows_evaluated for heat in maps]
    assert len(maps) > 3
    assert evaluated[0] < 0.25 * whole.report.windows
    assert evaluated == sorted(set(evaluated))
    assert evaluated[-1] == whole.report.windows
    assert maps[-1].report.estimated_ssim == 1
    torch.testing.assert_close(maps[-1].scores, whole.scores)
    torch.testing.assert_close(maps[-1].attribution(), whole.attribution())
    true = [ssim(whole.scores[0].numpy(), heat.scores[0].numpy()) for heat in maps]
    assert true[0] < true[len(true) // 2] < true[-1]
    for heat in maps:
        assert heat.report.theoretical_speedup > 1
        assert heat.scores.shape == whole.scores.shape
        assert torch.equal(heat.reference, whole.reference)


def test_what_was_run_is_exact(model: nn.Module, image: Tensor) -> None:
    whole = exact(model, image)
    for heat in KryptonOcclusion(model).growing(image, **QUESTION):
        same = torch.isclose(heat.scores, whole.scores, rtol=0, atol=1e-12)
        assert int(same.sum()) >= heat.report.windows_exact == heat.report.windows_evaluated


@pytest.mark.parametrize("settings", [{"quality": 0.9}, {"budget": Budget(windows=150)}])
def test_they_end_where_a_map_would(
    model: nn.Module, image: Tensor, settings: dict[str, Any]
) -> None:
    heat = KryptonOcclusion(model, **settings).heatmap(image, **QUESTION)
    *_, last = KryptonOcclusion(model, **settings).growing(image, **QUESTION)
    assert last.report.windows_evaluated == heat.report.windows_evaluated
    assert last.report.estimated_ssim == heat.report.estimated_ssim
    torch.testing.assert_close(last.scores, heat.scores)


def test_a_threshold_is_corrected(model: nn.Module, image: Tensor) -> None:
    occlusion = KryptonOcclusion(model, projective_field_threshold=0.4)
    maps = list(occlusion.growing(image, **QUESTION))
    total = maps[0].report.windows
    assert [heat.report.windows_evaluated for heat in maps] == [total] * len(maps)
    assert maps[0].report.windows_exact < maps[1].report.windows_exact
    assert maps[-1].report.windows_exact == total
    torch.testing.assert_close(maps[-1].scores, exact(model, image).scores)


def test_others_run_in_between(model: nn.Module, image: Tensor) -> None:
    """Two maps grow side by side, and a third is made at once, by one explainer."""
    occlusion = KryptonOcclusion(model)
    other = image.flip(3)
    beside = occlusion.growing(other, **QUESTION)
    second = exact(model, other)
    first = []
    for heat in occlusion.growing(image, **QUESTION):
        first.append(heat)
        second = next(beside, second)
        between = occlusion.heatmap(image + 1, **QUESTION)
    torch.testing.assert_close(between.scores, exact(model, image + 1).scores)
    torch.testing.assert_close(first[-1].scores, exact(model, image).scores)
    *_, second = (second, *beside)
    torch.testing.assert_close(second.scores, exact(model, other).scores)


def test_the_callers_state_is_its_own_in_between(model: nn.Module, image: Tensor) -> None:
    torch.manual_seed(3)
    drawn = torch.cat([torch.rand(1) for _ in range(50)])
    torch.manual_seed(3)
    found = []
    for _ in KryptonOcclusion(model).growing(image, **QUESTION):
        assert torch.is_grad_enabled()
        found.append(torch.rand(1))
    assert torch.equal(torch.cat(found), drawn[: len(found)])


@pytest.mark.parametrize(
    ("images", "settings", "message"),
    [
        (torch.zeros(2, 3, 48, 48), {}, "one input with one example, not 1 with 2"),
        ((torch.zeros(1, 3, 48, 48),) * 2, {}, "one input with one example, not 2 with 1"),
        (torch.zeros(1, 3, 48, 48), {"drill_down": DrillDown()}, "no drill_down"),
    ],
)
def test_what_cannot_grow_is_refused_at_once(
    model: nn.Module, images: Any, settings: dict[str, Any], message: str
) -> None:
    asked = {name: (value,) * len(images) for name, value in QUESTION.items()}
    asked = QUESTION if isinstance(images, Tensor) else asked
    with pytest.raises(AssertionError, match=message):
        KryptonOcclusion(model, **settings).growing(images, **asked)


def test_what_cannot_be_captured_comes_as_one_map(image: Tensor) -> None:
    class Draws(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum((1, 2, 3))[:, None] * torch.ones(2) + 0 * torch.rand(1)

    with pytest.warns(KryptonFallbackWarning):
        (heat,) = KryptonOcclusion(Draws()).growing(image, **QUESTION, target=0)
    assert heat.report.path == "captum"
    assert heat.report.windows_evaluated == heat.report.windows


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_may_be_written_over_meanwhile(
    dtype: torch.dtype, layout: torch.memory_format
) -> None:
    model = small_network().to(dtype)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, 48, 48, generator=generator).to(dtype, memory_format=layout)
    baseline = torch.randn(1, 3, 48, 48, generator=generator).to(dtype, memory_format=layout)
    asked = {**QUESTION, "baselines": baseline}
    whole = KryptonOcclusion(model).heatmap(image, **asked)
    growing = KryptonOcclusion(model).growing(image, **asked)
    next(growing)
    image.normal_()
    baseline.normal_()
    *_, last = growing
    torch.testing.assert_close(last.scores, whole.scores, rtol=1e-4, atol=1e-5)


def test_a_model_that_changes_meanwhile_is_noticed(model: nn.Module, image: Tensor) -> None:
    growing = KryptonOcclusion(model).growing(image, **QUESTION)
    next(growing)
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    with pytest.raises(RuntimeError, match="has changed since this map began to grow"):
        next(growing)
    growing = KryptonOcclusion(model).growing(image, **QUESTION)
    next(growing)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="has changed"):
        next(growing)


def test_the_callers_time_is_not_the_maps(model: nn.Module, image: Tensor) -> None:
    began, slept, reports = time.perf_counter(), 0.0, []
    for heat in KryptonOcclusion(model).growing(image, **QUESTION):
        reports.append(heat.report)
        if slept < 1:
            time.sleep(0.5)
            slept += 0.5
    assert reports[-1].seconds <= time.perf_counter() - began - slept
