"""Rules for operators that put volumes side by side or into each other along a window axis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .._capture import Node, ValueId
from .regions import Box, Floats, Interval, Reach, hull, shift, union
from .rule import Boxes, Dims, Frame, Group, Kind, Rule, Step, View, along, batch_rows

__all__ = ["concatenate_along", "scatter_along"]


@dataclass(frozen=True)
class _Part:
    """An operand that is seen through [start, stop) of the output, shifted by `start`."""

    value: ValueId
    start: int
    stop: int
    shift: int


class _SpliceRule(Rule):
    """The output's cells are those of the last part that covers them along one axis."""

    fresh = False

    def __init__(self, node: Node, view: View, axis: int, dims: Dims, parts: list[_Part]) -> None:
        self.node, self.view, self.axis, self.dims, self.parts = node, view, axis, dims, parts

    def reach(self, axis: int, operands: dict[ValueId, Reach]) -> Reach:
        found = []
        for part in self.parts:
            if part.value not in operands:
                continue
            reach = operands[part.value]
            if axis == self.axis:
                reach = shift(reach, part.shift, self.size(axis))
            found.append(reach)
        return union(found)

    def demand(self, axis: int, wanted: Interval | None) -> dict[ValueId, Interval]:
        if wanted is None:
            return {}
        found: dict[ValueId, Interval] = {}
        for part in self.parts:
            read = wanted
            if axis == self.axis:
                start = max(wanted[0], part.start)
                read = start - part.shift, max(min(wanted[1], part.stop), start) - part.shift
            found[part.value] = hull(read, found.get(part.value, read))
        return found

    def centre(self, axis: int, operands: dict[ValueId, Floats]) -> Floats:
        """As in the first part that changes."""
        part = next(part for part in self.parts if part.value in operands)
        return operands[part.value] + (part.shift if axis == self.axis else 0)

    def step(self, group: Group) -> Step:
        boxes = group.boxes(self.outputs[0])
        box = boxes[self.axis]
        dim = self.dims[self.axis]
        assert box is not None and dim is not None
        cells = box.offset[:, None] + np.arange(box.size)
        dtype = self.view.graph.dtypes[self.outputs[0]]  # parts may be of others
        pieces: list[tuple[Callable[[Frame], Tensor], Tensor | None]] = []
        for number, part in enumerate(self.parts):
            inside = (cells >= part.start) & (cells < part.stop)
            if number > 0 and not inside.any():
                continue
            if inside.all():
                pieces = []
            mask = group.per_row(self.axis, torch.from_numpy(inside)) if pieces else None
            pieces.append((self._read(group, part, boxes), mask))

        def step(frame: Frame) -> Tensor:
            out: Tensor | None = None
            for read, mask in pieces:
                block = read(frame).to(dtype)
                if out is None or mask is None:
                    out = block
                    continue
                out = torch.where(along(frame.of(mask), dim, block.dim()), block, out)
            assert out is not None
            return out

        return step

    def _read(self, group: Group, part: _Part, boxes: Boxes) -> Callable[[Frame], Tensor]:
        reads: Boxes = tuple(
            Box(b.offset - part.shift, b.size) if b is not None and axis == self.axis else b
            for axis, b in enumerate(boxes)
        )
        if self.view.kinds[part.value] is Kind.LOCAL:
            return group.read(part.value, reads)
        return group.cut(part.value, self.dims, reads, len(self.view.shape(part.value)))


def concatenate_along(node: Node, view: View) -> Rule | None:
    """Cat along a window axis."""
    values = node.operands()
    target = node.results[0]
    rank = len(view.graph.shapes[target])
    along = (node.args[1] if len(node.args) > 1 else 0) % rank
    dims = _common_dims(view, values)
    if dims is None or along not in dims:
        return None
    parts, start = [], 0
    for value in values:
        stop = start + view.shape(value)[along]
        parts.append(_Part(value, start, stop, start))
        start = stop
    return _SpliceRule(node, view, dims.index(along), dims, parts)


def scatter_along(node: Node, view: View) -> Rule | None:
    """slice_scatter along a window axis, without a step."""
    into, part = node.operands()[:2]
    named = node.bound()
    dims = _common_dims(view, [into, part])
    rank = len(view.graph.shapes[into])
    along = named["dim"] % rank
    if dims is None or along not in dims or named["step"] != 1:
        return None
    if view.graph.shapes[part] != view.graph.shapes[node.results[0]]:
        sizes = list(view.shape(into))
        sizes[along] = view.shape(part)[along]
        if tuple(sizes) != view.shape(part):
            return None
    size = view.shape(into)[along]
    start = _bounded(named["start"], 0, size)
    stop = _bounded(named["end"], size, size)
    if stop - start != view.shape(part)[along]:
        return None
    whole = _Part(into, 0, size, 0)
    return _SpliceRule(
        node, view, dims.index(along), dims, [whole, _Part(part, start, stop, start)]
    )


def _bounded(index: object, default: int, size: int) -> int:
    """A slice's start or end as Python reads it."""
    if not isinstance(index, int):
        return default
    return max(0, min(index + size if index < 0 else index, size))


def _common_dims(view: View, values: list[ValueId]) -> Dims | None:
    """The dimensions of the axes, where all local operands agree and the others have rows."""
    dims = {view.dims[v] for v in values if view.kinds[v] is Kind.LOCAL}
    if len(dims) != 1 or any(not batch_rows(view, v) for v in values if _is_image(view, v)):
        return None
    if any(view.kinds[v] is Kind.FULL for v in values):
        return None
    own = dims.pop()
    constants = [v for v in values if view.kinds[v] is Kind.CONSTANT]
    if None in own or any(view.shape(v)[0] != 1 for v in constants):
        return None
    return own


def _is_image(view: View, value: ValueId) -> bool:
    return view.kinds[value] is Kind.IMAGE
