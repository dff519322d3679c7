"""One rule for every operator kind that can work on a part of its input.

An operator without a rule is a global operator: right, only slower.
"""

from __future__ import annotations

from collections.abc import Callable

from .._capture import Node
from . import (
    convolution,
    join,
    pick,
    pointwise,
    reduce,
    resample,
    shape,
    splice,
    transposed,
    window,
)
from .rule import Kind, Rule, View

__all__ = ["rule_for"]

Builder = Callable[[Node, View], Rule | None]

_BUILDERS: dict[str, tuple[Builder, ...]] = {
    "aten.convolution": (convolution.convolution, transposed.transposed_convolution),
    "captum_krypton.convolution_block": (
        convolution.convolution,
        transposed.transposed_convolution,
    ),
    "captum_krypton.join_block": (join.block,),
    "aten.max_pool2d_with_indices": (window.max_pooling,),
    "aten.max_pool3d_with_indices": (window.max_pooling,),
    "aten.max_pool2d": (window.max_pooling,),
    "aten.max_pool3d": (window.max_pooling,),
    "aten.adaptive_max_pool2d": (window.max_pooling,),
    "aten.adaptive_max_pool3d": (window.max_pooling,),
    "aten.avg_pool2d": (window.average_pooling,),
    "aten.avg_pool3d": (window.average_pooling,),
    "aten._adaptive_avg_pool2d": (window.average_pooling,),
    "aten._adaptive_avg_pool3d": (window.average_pooling,),
    "aten.pixel_unshuffle": (window.unshuffle,),
    "aten.pixel_shuffle": (resample.shuffle,),
    "aten.constant_pad_nd": (resample.constant_padding,),
    "aten.linear": (pointwise.linear,),
    "aten.native_layer_norm": (pointwise.layer_norm,),
    "aten.cat": (join.concatenate, splice.concatenate_along),
    "aten.stack": (join.concatenate,),
    "aten.permute": (shape.permute,),
    "aten.transpose": (shape.permute,),
    "aten.expand": (shape.expand,),
    "aten.slice_scatter": (shape.scatter, splice.scatter_along),
    "aten.select_scatter": (shape.scatter,),
    "aten.native_channel_shuffle": (shape.regroup,),
    "aten.channel_shuffle": (shape.regroup,),
    "aten.select": (shape.pick, pick.of_axis),
    "aten.index": (pick.by_constants,),
    "aten._unsafe_index": (pick.by_constants,),
    "aten.slice": (shape.pick, resample.index_map),
    "aten.index_select": (shape.pick, resample.index_map),
    "aten.flip": (pointwise.across_dims, resample.index_map),
    "aten.roll": (pointwise.across_dims, resample.index_map),
}


def _register(names: str, *builders: Builder) -> None:
    for name in names.split():
        _BUILDERS[f"aten.{name}"] = builders


_register("view _unsafe_view reshape _reshape_alias squeeze unsqueeze", shape.reshape)
# Operators of which an argument may grow with the batch: it is a size.
_TAKES_SIZES = {
    f"aten.{name}" for name in ("view", "_unsafe_view", "reshape", "_reshape_alias", "expand")
}
_register("split split_with_sizes chunk unbind", shape.pick)
_register("native_batch_norm cudnn_batch_norm miopen_batch_norm", pointwise.batch_norm)
_register("_native_batch_norm_legit_no_training _batch_norm_no_update", pointwise.batch_norm)
_register("reflection_pad1d reflection_pad2d reflection_pad3d", resample.index_map)
_register("replication_pad1d replication_pad2d replication_pad3d", resample.index_map)
_register("upsample_nearest1d upsample_nearest2d upsample_nearest3d", resample.index_map)
_register("_upsample_nearest_exact1d _upsample_nearest_exact2d", resample.index_map)
_register("_upsample_nearest_exact3d", resample.index_map)
_register("upsample_linear1d upsample_bilinear2d upsample_trilinear3d", resample.interpolation)
_register("upsample_bicubic2d _upsample_bilinear2d_aa", resample.interpolation)
_register("_upsample_bicubic2d_aa", resample.interpolation)


def rule_for(node: Node, view: View) -> Rule | None:
    """The rule by which `node` passes a local change on, or None: it is a global operator.

    Called only for operators with a local operand. Operands that are changed everywhere are for
    point operators alone.
    """
    if any(0 in view.shape(v) for v in (*node.operands(), *node.results)):
        return None
    if node.name not in _TAKES_SIZES and node.grows:
        return None  # such as a convolution with a group for each row of the batch
    if any(view.kinds[v] is Kind.FULL for v in node.operands()):
        return pointwise.pointwise(node, view)
    builders = _BUILDERS.get(node.name, ())
    if not builders and node.name in pointwise.ACROSS_DIMS:
        builders = (pointwise.across_dims, reduce.reduction)
    for builder in (*builders, pointwise.pointwise):
        rule = builder(node, view)
        if rule is not None:
            return rule
    return None
