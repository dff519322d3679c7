"""What a type checker sees of the public API; checked by mypy, run by nothing."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from typing_extensions import assert_type

from captum_krypton import (
    Explanation,
    KryptonFeatureAblation,
    KryptonOcclusion,
    OcclusionMap,
    Report,
    fills,
)
from captum_krypton.data import OcclusionMapper


def one_input(explainer: KryptonOcclusion, x: Tensor) -> None:
    assert_type(explainer.attribute(x), Tensor)
    assert_type(explainer.attribute(x, (3, 8, 8), (3, 4, 4), 0, 1, None, 16, True), Tensor)
    heat = explainer.heatmap(x, sliding_window_shapes=(3, 8, 8), strides=4, target=[1, 2])
    assert_type(heat, OcclusionMap)
    assert_type(heat.scores, Tensor)
    assert_type(heat.report, Report)
    assert_type(heat.attribution(), Tensor)
    assert_type(explainer.explain(x), Explanation)


def two_inputs(explainer: KryptonOcclusion, x: Tensor, y: Tensor) -> None:
    shapes = ((3, 8, 8), (1, 4))
    assert_type(explainer.attribute((x, y), shapes), tuple[Tensor, ...])
    assert_type(explainer.heatmap((x, y), shapes, (4, (1, 2))), tuple[OcclusionMap, ...])


def regions(ablation: KryptonFeatureAblation, explainer: KryptonOcclusion, x: Tensor) -> None:
    assert_type(ablation.attribute(x, fills.blur(3.0), feature_mask=x), Tensor)
    assert_type(ablation.attribute((x, x), feature_mask=(x, x)), tuple[Tensor, ...])
    assert_type(ablation.heatmap(x), OcclusionMap)
    assert_type(explainer.heatmap(x, windows=[(slice(0, 4), slice(2, 5))]), OcclusionMap)


def batches(model: nn.Module) -> None:
    mapper = OcclusionMapper(lambda: model, target="label", quality=0.9)
    assert_type(mapper({"image": [1]}), dict[str, Any])
    assert_type(mapper.spark_schema, str)
