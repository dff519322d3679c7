"""The rules for concatenations, and for a scale and a shift of every channel."""

from __future__ import annotations

import math

from torch import Tensor

from .._capture import Node, ValueId
from .._kernels import PATCH_TYPES, cat_in_arena, join_patches
from .rule import (
    Algorithm,
    Boxes,
    Dims,
    Frame,
    Group,
    Kind,
    Means,
    PatchRule,
    Rule,
    Step,
    View,
    batch_rows,
)

__all__ = ["block", "concatenate"]


class _Joining(PatchRule):
    """Channels of several values side by side; the compiled kernel reads them where they lie."""

    scale: ValueId | None = None
    shift: ValueId | None = None
    low, high = -math.inf, math.inf

    def __init__(self, node: Node, view: View, dims: Dims, sources: list[ValueId]) -> None:
        super().__init__(node, view, dims)
        self.sources = sources
        types = {view.graph.dtypes[value] for value in sources}
        one_type = len(types) == 1 and types.issubset(PATCH_TYPES)
        self._for_kernels = (
            one_type
            and dims in ((2,), (2, 3), (2, 3, 4))
            and all(
                view.kinds[value] is Kind.LOCAL and len(view.shape(value)) == len(dims) + 2
                for value in sources
            )
        )

    def inherits(self) -> ValueId | None:
        """None where the kernel may run: it reads bases too."""
        return None if self._for_kernels else super().inherits()

    def algorithm(self, boxes: Boxes, means: Means) -> tuple[Algorithm, float | None]:
        if not (means.cpu_kernels and self._for_kernels):
            return super().algorithm(boxes, means)
        cells = math.prod(box.mean_cells for box in boxes if box is not None)
        channels = self.view.shape(self.outputs[0])[1]
        return Algorithm.JOINING, cells * channels * means.rates.element

    def step(self, group: Group) -> Step:
        boxes = group.boxes(self.outputs[0])
        if group.algorithm(self.outputs[0]) is not Algorithm.JOINING:
            return super().step(group)
        size = [box.size for box in boxes if box is not None]
        sources = [group.patches(value) for value in self.sources]
        scale, shift = (
            None if value is None else group.constant(value) for value in (self.scale, self.shift)
        )
        read_offset, extent = group.offsets(boxes), group.extents(boxes)
        low, high = self.low, self.high

        def step(frame: Frame) -> Tensor:
            return join_patches(
                [source(frame) for source in sources],
                frame.of(read_offset),
                scale,
                shift,
                size,
                low=low,
                high=high,
                output_extent=None if extent is None else frame.of(extent),
            )

        return step


def concatenate(node: Node, view: View) -> Rule | None:
    """Cat and stack along a dimension that carries no window axis."""
    sources: list[ValueId] = node.operands()
    dims = {view.dims[v] for v in sources if view.kinds[v] is Kind.LOCAL}
    if len(dims) != 1 or not all(batch_rows(view, v) for v in sources if not _constant(view, v)):
        return None
    own = dims.pop()
    if None in own:
        return None
    out_rank = len(view.graph.shapes[node.results[0]])
    along = (node.args[1] if len(node.args) > 1 else 0) % out_rank
    stacked = node.name == "aten.stack"
    if along == 0 or (not stacked and along in own):
        return None
    if any(_constant(view, v) for v in sources):
        return None  # a constant has no row a window to join
    out = tuple(d + (stacked and d >= along) for d in own if d is not None)
    known = _with_dims(view, sources, own)
    if stacked:
        return PatchRule(node, known, out)
    joined = Node(cat_in_arena, node.args, node.kwargs, node.outputs)
    return _Joining(joined, known, out, sources) if along == 1 else PatchRule(joined, known, out)


def block(node: Node, view: View) -> Rule | None:
    """`join_block`: a concatenation, a batch norm or both, and the clamp that follows."""
    named = node.bound()
    sources = [value.id for value in named["tensors"]]
    if any(view.kinds[value] is not Kind.LOCAL for value in sources):
        return None
    dims = {view.dims[value] for value in sources}
    if len(dims) != 1 or not all(batch_rows(view, value) for value in sources):
        return None
    own = dims.pop()
    if 1 in own or (None in own and len(sources) > 1):
        return None
    rule = _Joining(node, view, own, sources)
    rule.scale, rule.shift = (None if named[n] is None else named[n].id for n in ("scale", "shift"))
    rule.low, rule.high = named["low"], named["high"]
    return rule


def _constant(view: View, value: ValueId) -> bool:
    return view.kinds[value] is Kind.CONSTANT


def _with_dims(view: View, values: list[ValueId], dims: Dims) -> View:
    """The view in which operands that no window changes have the axes of their neighbours."""
    known = dict(view.dims)
    for value in values:
        if view.kinds[value] is not Kind.LOCAL:
            known[value] = dims
    return View(view.graph, view.kinds, known)
