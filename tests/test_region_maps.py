"""Maps of boxes and masks instead of a grid, and what covers them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from against_captum import krypton, outcome_size
from hypothesis import event, given, settings
from hypothesis import strategies as st
from networks import image_shapes, networks, noise
from small_networks import small_network
from torch import Tensor, nn

from captum_krypton import (
    ArgumentError,
    Budget,
    KryptonFallbackWarning,
    KryptonOcclusion,
    fills,
)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
WINDOWS: dict[str, Any] = {"sliding_window_shapes": (3, 4, 4), "strides": (3, 4, 4), "target": 1}


def outcomes(model: nn.Module, x: Tensor, masks: list[Tensor], fill: Any = 0.0) -> Tensor:
    """By the definition: (N, regions, outputs)."""
    fill = torch.as_tensor(fill, dtype=x.dtype)
    with torch.no_grad():
        return torch.stack([model(torch.where(mask, fill, x)) for mask in masks], 1)


@settings(max_examples=40)
@given(data=st.data())
def test_boxes_are_covered_one_by_one(data: st.DataObject) -> None:
    draw = data.draw
    rank = draw(st.integers(1, 3))
    batch, shape = draw(st.integers(1, 2)), draw(image_shapes(rank))
    model, x = draw(networks(shape, classes=3, most=4)), noise(draw, (batch, *shape))
    boxes, masks = [], []
    for _ in range(draw(st.integers(1, 6))):
        box = []
        for size in shape[draw(st.integers(0, 1)) :]:
            start = draw(st.integers(0, size - 1))
            box.append(slice(start, draw(st.integers(start + 1, size))))
        mask = torch.zeros(shape, dtype=torch.bool)
        mask[tuple(box) if len(box) == len(shape) else (slice(None), *box)] = True
        boxes.append(tuple(box))
        masks.append(mask)
    with krypton(draw, model) as occlusion:
        heat = occlusion.heatmap(x, windows=boxes, baselines=0.5, target=1)
    expected = outcomes(model, x, masks, 0.5)[:, :, 1]
    assert heat.scores.shape == expected.shape
    assert (heat.scores - expected).abs().max() <= 1e-9 * outcome_size(model, x)
    event(f"path {heat.report.path}, {heat.report.groups} groups")
    drops = (heat.reference[:, None] - heat.scores).reshape(batch, -1, *[1] * len(shape))
    covered = torch.stack(masks)
    mean = (drops * covered).sum(1) / covered.sum(0)
    torch.testing.assert_close(
        heat.attribution(torch.float64), mean, equal_nan=True, rtol=0, atol=1e-12
    )


@settings(max_examples=30)
@given(data=st.data())
def test_masks_that_overlap(data: st.DataObject) -> None:
    draw = data.draw
    shape = draw(image_shapes(2))
    model, x = draw(networks(shape, classes=3, most=4)), noise(draw, (1, *shape))
    count, channels = draw(st.integers(1, 5)), draw(st.sampled_from([1, shape[0]]))
    drawn = np.random.default_rng(draw(st.integers(0, 2**16)))
    share = draw(st.sampled_from([0.02, 0.2, 0.7]))
    masks = torch.from_numpy(drawn.random((count, channels, *shape[1:])) < share)
    with krypton(draw, model) as occlusion:
        heat = occlusion.heatmap(x, windows=masks, target=None)
    expected = outcomes(model, x, list(masks)).movedim(1, -1)
    assert heat.scores.shape == expected.shape
    assert (heat.scores - expected).abs().max() <= 1e-9 * outcome_size(model, x)


def image(side: int = 24) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("windows", "match"),
    [
        ([], "at least one box"),
        ([np.s_[0:30, 0:4]], r"windows\[0\] has slice"),
        ([np.s_[0:4, 0:4], np.s_[4:4, 0:4]], r"windows\[1\] has slice"),
        ([np.s_[0:4]], r"windows\[0\] must be a tuple of 2 or 3 slices"),
        ([(1, 2)], r"windows\[0\] must be a tuple"),
        (torch.zeros(2, 5, 5, dtype=torch.bool), "windows has shape"),
        (torch.zeros(2, 24, 24), "must be masks of type torch.bool"),
    ],
)
def test_windows_that_do_not_fit_are_named(windows: Any, match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        KryptonOcclusion(small_network()).heatmap(image(), windows=windows, target=1)


def test_windows_exclude_a_grid_and_approximations() -> None:
    boxes = [np.s_[0:4, 0:4]] * 40
    with pytest.raises(ArgumentError, match="windows excludes"):
        KryptonOcclusion(small_network()).heatmap(image(), (3, 4, 4), windows=boxes, target=1)
    for settings_ in ({"quality": 0.9}, {"budget": Budget(seconds=1)}):
        with pytest.raises(ArgumentError, match="windows must lie on a grid"):
            KryptonOcclusion(small_network(), **settings_).heatmap(image(), windows=boxes, target=1)


def test_a_map_of_regions_has_no_place_on_a_grid() -> None:
    heat = KryptonOcclusion(small_network()).heatmap(image(), windows=[np.s_[0:4, 0:4]], target=1)
    with pytest.raises(ValueError, match="for windows on a grid"):
        heat.extent()
    with pytest.raises(ValueError, match="for windows on a grid"):
        heat.grid_affine()


def test_a_function_is_a_fill() -> None:
    x = image()
    occlusion = KryptonOcclusion(small_network())
    by_function = occlusion.attribute(x, baselines=lambda x: x.flip(-1), **WINDOWS)
    by_tensor = occlusion.attribute(x, baselines=x.flip(-1), **WINDOWS)
    assert torch.equal(by_function, by_tensor)


def test_blur_is_less_of_the_image_and_keeps_its_mean() -> None:
    pytest.importorskip("skimage")
    x = image(48)
    blurred = fills.blur(sigma=3)(x)
    assert isinstance(blurred, Tensor)
    assert blurred.shape == x.shape
    assert blurred.dtype == x.dtype
    assert (blurred.std((2, 3)) < 0.3 * x.std((2, 3))).all()
    flat = torch.full((1, 2, 9, 9, 9), 3.0)
    torch.testing.assert_close(fills.blur(2.0)(flat), flat)  # also of a volume, and at its border


def test_mean_is_of_each_image_and_channel() -> None:
    x = image()
    found = fills.mean()(x)
    assert torch.equal(found, x.mean((2, 3), keepdim=True).expand_as(x))


def test_noise_is_the_same_whatever_the_batch() -> None:
    x, fill = image(), fills.noise(samples=3, seed=5)
    each = [fill.make(x, sample) for sample in range(3)]
    alone = [fill.make(x[1:], sample) for sample in range(3)]
    for both, one in zip(each, alone, strict=True):
        torch.testing.assert_close(both[1:], one)
    assert not torch.equal(each[0], each[1])
    torch.testing.assert_close(each[0].std((2, 3)), x.std((2, 3)), rtol=0.2, atol=0)


@settings(max_examples=30)
@given(data=st.data())
def test_each_window_is_covered_by_its_own_mean(data: st.DataObject) -> None:
    draw = data.draw
    rank, batch = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    shape = draw(image_shapes(rank))
    model, x = draw(networks(shape, classes=3, most=4)), noise(draw, (batch, *shape))
    drawn = np.random.default_rng(draw(st.integers(0, 2**16)))
    channels = draw(st.sampled_from([1, shape[0]]))
    masks = torch.from_numpy(drawn.random((4, channels, *shape[1:])) < 0.3)
    with krypton(draw, model) as occlusion:
        heat = occlusion.heatmap(x, windows=masks, baselines=fills.mean_patch(), target=1)
    dims = tuple(range(2, x.dim()))
    for number, mask in enumerate(masks):
        inside = mask.expand(x.shape)
        own = (x * inside).sum(dims, keepdim=True) / inside.sum(dims, keepdim=True).clamp(min=1)
        (expected,) = outcomes(model, x, [mask], own).movedim(1, 0)
        off = (heat.scores[:, number] - expected[:, 1]).abs().max()
        assert off <= 1e-9 * outcome_size(model, x)


def test_own_means_of_a_grid_and_of_captums_path() -> None:
    model, x = small_network(), image()
    mean = fills.mean_patch()
    ours = KryptonOcclusion(model).heatmap(x, baselines=mean, **WINDOWS)
    pooled = torch.nn.functional.avg_pool2d(x, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    theirs = KryptonOcclusion(model).heatmap(x, baselines=pooled, **WINDOWS)
    torch.testing.assert_close(ours.scores, theirs.scores)

    def mixes(x: Tensor) -> Tensor:
        out: Tensor = model(x)
        return out - out.mean(0, keepdim=True)

    with pytest.warns(KryptonFallbackWarning):
        mixed = KryptonOcclusion(mixes).attribute(x, baselines=mean, **WINDOWS)
    with pytest.warns(KryptonFallbackWarning):
        expected = KryptonOcclusion(mixes).attribute(x, baselines=pooled, **WINDOWS)
    torch.testing.assert_close(mixed, expected, rtol=1e-3, atol=1e-6)


def test_several_samples_are_averaged() -> None:
    x, others = image(), torch.rand(4, 3, 24, 24)
    occlusion = KryptonOcclusion(small_network())
    heat = occlusion.heatmap(x, baselines=fills.average(others), **WINDOWS)
    maps = [occlusion.heatmap(x, baselines=other[None], **WINDOWS) for other in others]
    each = torch.stack([m.scores for m in maps])
    torch.testing.assert_close(heat.scores, each.mean(0))
    assert heat.spread is not None
    torch.testing.assert_close(heat.spread, each.std(0, correction=0), rtol=1e-3, atol=1e-8)
    assert heat.report.windows_evaluated == 4 * maps[0].report.windows_evaluated
    attribution = occlusion.attribute(x, baselines=fills.average(others), **WINDOWS)
    torch.testing.assert_close(attribution, heat.attribution(), rtol=1e-3, atol=1e-8)
    assert occlusion.heatmap(x, **WINDOWS).spread is None


def test_several_samples_are_refused_where_one_is_meant() -> None:
    occlusion = KryptonOcclusion(small_network())
    with pytest.raises(ArgumentError, match="one sample here, not 8"):
        occlusion.explain(image(), baselines=fills.noise(), **WINDOWS)


def test_fills_that_cannot_be_are_named() -> None:
    with pytest.raises(ArgumentError, match="sigma must be positive"):
        fills.blur(0)
    with pytest.raises(ArgumentError, match="samples must be at least 1"):
        fills.noise(0)
    with pytest.raises(ArgumentError, match="images must be"):
        fills.average(torch.zeros(0, 3, 4, 4))
    with pytest.raises(ArgumentError, match="images to average over have shape"):
        KryptonOcclusion(small_network()).attribute(
            image(), baselines=fills.average(torch.zeros(2, 3, 4, 4)), **WINDOWS
        )
