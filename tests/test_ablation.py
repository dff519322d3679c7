"""Feature ablation: attributions and maps of regions of any shape, beside Captum's."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from against_captum import assert_close, krypton_like, outcome_size
from captum.attr import FeatureAblation
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from layers import Draw
from networks import baselines, image_shapes, networks, noise
from small_networks import small_network
from torch import Tensor, nn

from captum_krypton import ArgumentError, KryptonFallbackWarning, KryptonFeatureAblation

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


@st.composite
def masks(draw: Draw, shape: tuple[int, ...], batch: int) -> Tensor:
    """Numbers of features: scattered cells, bands, one feature or as many as cells."""
    rows = draw(st.sampled_from([1, 1, 1, batch]))
    sizes = [draw(st.sampled_from([1, shape[0]])), *shape[1:]]
    for axis in range(1, len(sizes)):
        if draw(st.integers(0, 9)) == 0:
            sizes[axis] = 1
    cells = rows * int(np.prod(sizes))
    kind = draw(st.sampled_from(["scattered", "bands", "blocks", "one", "every cell"]))
    event(f"mask: {kind}")
    noise = np.random.default_rng(draw(st.integers(0, 2**16)))
    if kind == "scattered":
        mask = torch.from_numpy(noise.integers(0, draw(st.integers(2, 6)), (rows, *sizes)))
    elif kind == "bands":
        mask = torch.arange(cells).reshape(rows, *sizes) // draw(st.integers(1, 12))
    elif kind == "blocks":
        side = draw(st.integers(2, 4))
        mask = torch.zeros(rows, *sizes, dtype=torch.int64)
        for axis, size in enumerate(sizes[1:], 2):
            line = [1] * mask.dim()
            line[axis] = size
            mask = mask * 100 + (torch.arange(size) // side).reshape(line)
    elif kind == "one":
        mask = torch.full((rows, *sizes), 7)
    else:
        mask = torch.arange(cells).reshape(rows, *sizes)
    return mask * draw(st.sampled_from([1, 3])) - draw(st.sampled_from([0, 2]))


@pytest.mark.parametrize("rank", [1, 2, 3])
@settings(max_examples=40)
@given(data=st.data())
def test_attributions_in_float64(rank: int, data: st.DataObject) -> None:
    draw = data.draw
    batch, shape = draw(st.integers(1, 2)), draw(image_shapes(rank))
    model = draw(networks(shape, classes=3, most=4))
    x = noise(draw, (batch, *shape))
    arguments: dict[str, Any] = {
        "feature_mask": draw(masks(shape, batch)),
        "baselines": draw(baselines(batch, shape)),
        "target": draw(st.sampled_from([0, [2] * batch, torch.arange(batch), None])),
    }
    own = arguments["feature_mask"].shape[0] > 1
    assume(not own or arguments["target"] is not None)  # Captum fails there
    with krypton_like(draw, KryptonFeatureAblation, model) as ablation:
        ours = ablation.attribute(x, **arguments)
    theirs = FeatureAblation(model).attribute(x, perturbations_per_eval=4, **arguments)
    assert_close(ours, theirs, outcome_size(model, x))


@settings(max_examples=30)
@given(data=st.data())
def test_maps_are_the_outcomes_with_each_feature_replaced(data: st.DataObject) -> None:
    draw = data.draw
    batch, shape = draw(st.integers(1, 2)), draw(image_shapes(2))
    model = draw(networks(shape, classes=3, most=4))
    x, mask = noise(draw, (batch, *shape)), draw(masks(shape, 1))
    with krypton_like(draw, KryptonFeatureAblation, model) as ablation:
        heat = ablation.heatmap(x, 0.5, 1, feature_mask=mask)
    numbers = torch.unique(mask)
    with torch.no_grad():
        expected = torch.stack(
            [model(torch.where(mask == number, 0.5, x))[:, 1] for number in numbers], 1
        )
    assert heat.scores.shape == expected.shape
    assert (heat.scores - expected).abs().max() <= 1e-9 * outcome_size(model, x)
    event(f"path {heat.report.path}, {heat.report.groups} groups")
    assert heat.report.path in ("incremental", "full"), heat.report.reasons


def question(side: int = 24) -> tuple[nn.Module, Tensor, Tensor]:
    """A network, two images and superpixels of them."""
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    place = torch.arange(side) // 5
    mask = place[:, None] * 10 + place
    mask[3:9, 2:14] = 777
    return small_network(), x, mask


def test_float32_by_the_kernels() -> None:
    model, x, mask = question(40)
    ours = KryptonFeatureAblation(model).attribute(x, target=1, feature_mask=mask)
    double = copy.deepcopy(model).double()
    truth = FeatureAblation(double).attribute(x.double(), target=1, feature_mask=mask)
    assert ours.dtype == torch.float32
    limit = 1e-4 * truth.abs().max() + 1e-6 * outcome_size(model, x)
    assert (ours - truth).abs().max() <= limit


def test_every_cell_is_a_feature_where_no_mask_is_given() -> None:
    model, x, _ = question(6)
    ours = KryptonFeatureAblation(model).attribute(x, target=1)
    theirs = FeatureAblation(model).attribute(x, target=1)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_features_of_very_different_size_are_run_in_groups_of_their_own() -> None:
    model, x, _ = question(96)
    mask = torch.zeros(96, 96, dtype=torch.int64)
    for number in range(1, 30):
        mask[3 * number : 3 * number + 2, 40:42] = number
    ablation = KryptonFeatureAblation(model)
    heat = ablation.heatmap(x, target=1, feature_mask=mask)
    assert heat.report.path == "incremental"
    assert heat.report.groups > 1
    theirs = FeatureAblation(model).attribute(x, target=1, feature_mask=mask)
    torch.testing.assert_close(heat.attribution(), theirs, rtol=1e-3, atol=1e-6)


def test_a_feature_over_several_inputs_is_captums(recwarn: pytest.WarningsRecorder) -> None:
    def both(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((1, 2, 3))[:, None]

    x = torch.randn(2, 3, 5, 5)
    inputs, arguments = (x, x + 1), {"target": 0}
    mask = torch.arange(5)[:, None].expand(5, 5)
    with pytest.warns(KryptonFallbackWarning, match="several inputs"):
        ours = KryptonFeatureAblation(both).attribute(
            inputs, feature_mask=(mask, mask), **arguments
        )
    theirs = FeatureAblation(both).attribute(inputs, feature_mask=(mask, mask), **arguments)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ArgumentError, match="feature_mask must be the same"):
        KryptonFeatureAblation(both).heatmap(inputs, feature_mask=(mask, mask), **arguments)


def test_several_inputs_with_features_of_their_own() -> None:
    def both(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((1, 2, 3))[:, None]

    x = torch.randn(2, 3, 5, 5)
    mask = torch.arange(5)[:, None].expand(5, 5)
    arguments = {"target": 0, "feature_mask": (mask, mask + 5), "baselines": (0, x)}
    ours = KryptonFeatureAblation(both).attribute((x, x + 1), **arguments)
    theirs = FeatureAblation(both).attribute((x, x + 1), **arguments)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "mask, match",
    [
        (torch.zeros(7, 7, dtype=torch.int64), r"feature_mask\[0\] has shape \(7, 7\)"),
        (torch.zeros(1, 1, 1, 24, 24), "feature_mask"),
        ((torch.zeros(24, 24),) * 2, "feature_mask has 2 entries"),
    ],
)
def test_masks_that_do_not_fit_are_named(mask: Any, match: str) -> None:
    model, x, _ = question()
    with pytest.raises(ArgumentError, match=match):
        KryptonFeatureAblation(model).attribute(x, target=1, feature_mask=mask)


def test_a_mask_that_is_no_tensor_is_named() -> None:
    model, x, _ = question()
    with pytest.raises(TypeError, match=r"feature_mask\[0\] must be a tensor"):
        KryptonFeatureAblation(model).attribute(x, target=1, feature_mask=np.zeros((24, 24)))


def test_one_number_for_the_whole_batch_is_captums() -> None:
    model, x, mask = question()
    with pytest.warns(KryptonFallbackWarning, match="batch"):
        ours = KryptonFeatureAblation(lambda x: model(x).sum()).attribute(x, feature_mask=mask)
    theirs = FeatureAblation(lambda x: model(x).sum()).attribute(x, feature_mask=mask)
    torch.testing.assert_close(ours, theirs)


def test_each_image_may_have_features_of_its_own() -> None:
    model, x, mask = question()
    both = torch.stack([mask, mask.T + 3])[:, None]
    ours = KryptonFeatureAblation(model).attribute(x, target=[1, 2], feature_mask=both)
    theirs = FeatureAblation(model).attribute(x, target=[1, 2], feature_mask=both)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_another_mask_makes_no_new_check() -> None:
    model, x, mask = question(40)
    ablation = KryptonFeatureAblation(model)
    first = ablation.heatmap(x, target=1, feature_mask=mask).report
    second = ablation.heatmap(x, target=1, feature_mask=mask.T + 1).report
    assert first.checked_windows > 0
    assert second.checked_windows == 0


def test_inputs_of_different_rows_are_captums() -> None:
    def total(a: Tensor, b: Tensor) -> Tensor:
        return (a.sum() + b.sum())[None]

    inputs = torch.rand(2, 3), torch.rand(5, 2)
    with pytest.warns(KryptonFallbackWarning, match="different numbers of rows"):
        ours = KryptonFeatureAblation(total).attribute(inputs)
    for a, b in zip(ours, FeatureAblation(total).attribute(inputs), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ArgumentError, match="as many rows"):
        KryptonFeatureAblation(total).heatmap(inputs)


def test_the_progress_bar_is_captums(capsys: pytest.CaptureFixture[str]) -> None:
    model, x, mask = question()
    ablation = KryptonFeatureAblation(model)
    for _ in range(3):
        ablation.attribute(x, target=1, feature_mask=mask, show_progress=True)
        assert "Feature Ablation attribution: 100%" in capsys.readouterr().err
