"""Rules for operators that read other cells than a sliding window does.

Interpolation, reflecting and replicating padding, strided slices, flips and rolls are maps along
one axis at a time: every output cell is a weighted sum of a few input cells. The map is read off
the operator itself, by running it on a ramp or on unit vectors, so that its rounding, corner
alignment and border handling are ATen's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from .._capture import Node, ValueId, resolve
from .pointwise import acted_on
from .regions import (
    Box,
    Floats,
    Interval,
    Reach,
    bounded,
    index_map_demand,
    index_map_reach,
    shift,
)
from .rule import Boxes, Frame, Group, Kind, Rule, Step, View, along, batch_rows

__all__ = ["constant_padding", "index_map", "interpolation", "shuffle"]

aten = torch.ops.aten
Integers = npt.NDArray[np.int64]


class _MapRule(Rule):
    """Every output cell is a weighted sum of a few input cells, axis by axis."""

    fresh = False

    def __init__(
        self,
        node: Node,
        view: View,
        taps: dict[int, tuple[Integers, npt.NDArray[np.float64] | None]],
        rest: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.node, self.view, self.taps, self.rest = node, view, taps, rest
        self.source = node.operands()[0]
        self.dims = view.dims[self.source]

    def reach(self, axis: int, operands: dict[ValueId, Reach]) -> Reach:
        if axis not in self.taps:
            return operands[self.source]
        return index_map_reach(operands[self.source], self.taps[axis][0], self.size(axis))

    def demand(self, axis: int, wanted: Interval | None) -> dict[ValueId, Interval]:
        if wanted is None:
            return {}
        taps = self.taps.get(axis)
        return {self.source: wanted if taps is None else index_map_demand(wanted, taps[0])}

    def centre(self, axis: int, operands: dict[ValueId, Floats]) -> Floats:
        """In the middle of the output whose taps are nearest."""
        centre = operands[self.source]
        if axis not in self.taps:
            return centre
        taps = self.taps[axis][0].reshape(self.size(axis), -1).mean(1) + 0.5
        nearest: Floats = np.abs(taps[:, None] - centre).argmin(0) + 0.5
        return nearest

    def step(self, group: Group) -> Step:
        boxes = group.boxes(self.outputs[0])
        reads: list[Box | None] = list(boxes)
        maps: list[tuple[int, Tensor, Tensor | None]] = []
        for axis, (taps, weights) in self.taps.items():
            box, dim = boxes[axis], self.dims[axis]
            assert box is not None and dim is not None
            cells = np.clip(box.offset[:, None] + np.arange(box.size), 0, len(taps) - 1)
            index = taps[cells]  # (positions, size, taps)
            start = index.min((1, 2))
            reads[axis] = Box(start, int((index.max((1, 2)) - start).max()) + 1)
            index = index - start[:, None, None]
            table = group.per_row(axis, torch.from_numpy(index))
            scale = None
            if weights is not None:
                scale = group.per_row(axis, torch.from_numpy(weights[cells]))
            maps.append((dim, table, scale))
        read = group.read(self.source, tuple(reads))
        rest = self.rest

        def step(frame: Frame) -> Tensor:
            block = read(frame)
            for dim, table, scale in maps:
                weights = None if scale is None else frame.of(scale)
                block = _apply_map(block, dim, frame.of(table), weights)
            return block if rest is None else rest(block)

        return step


def _apply_map(block: Tensor, dim: int, index: Tensor, weights: Tensor | None) -> Tensor:
    """sum_t weights[row, o, t] * block[row, ..., index[row, o, t], ...] along `dim`."""
    moved = block.movedim(dim, 1)
    rows, length = moved.shape[:2]
    flat = moved.reshape(rows * length, *moved.shape[2:])
    start = torch.arange(rows, device=block.device)[:, None] * length
    out: Tensor | None = None
    for tap in range(index.shape[2]):
        picked = flat.index_select(0, (index[:, :, tap] + start).reshape(-1))
        picked = picked.reshape(rows, index.shape[1], *moved.shape[2:])
        if weights is not None:
            shape = (rows, index.shape[1], *([1] * (moved.dim() - 2)))
            picked = picked.mul_(weights[:, :, tap].to(block.dtype).reshape(shape))
        out = picked if out is None else out.add_(picked)
    assert out is not None
    return out.movedim(1, dim)


def _probe(node: Node, view: View, volume: Tensor) -> Tensor:
    """The operator run on another tensor in place of its input."""
    source = node.operands()[0]

    def tensor(value: ValueId) -> Tensor:
        return volume if value == source else view.constants[value]

    args, kwargs = resolve((node.args, node.kwargs), tensor, volume.shape[0])
    out = node.op(*args, **kwargs)
    assert isinstance(out, Tensor)
    return out


def index_map(node: Node, view: View) -> Rule | None:
    """Slices, flips, rolls, nearest upsampling, reflecting and replicating padding."""
    source, target = node.operands()[0], node.results[0]
    if not view.only_first_varies(node) or node.several:
        return None
    if not batch_rows(view, source) or not batch_rows(view, target):
        return None
    shape = view.shape(source)
    if len(view.shape(target)) != len(shape):
        return None
    named = node.bound()
    if "dim" in named or "dims" in named:
        acted = acted_on(named, len(shape))
        if acted is None or not acted <= set(view.dims[source]):
            return None
    after = view.shape(target)
    if any(d not in view.dims[source] and after[d] != shape[d] for d in range(1, len(shape))):
        return None
    taps: dict[int, tuple[Integers, npt.NDArray[np.float64] | None]] = {}
    small = [size if d >= 2 or d in view.dims[source] else 1 for d, size in enumerate(shape)]
    for axis, dim in enumerate(view.dims[source]):
        if dim is None:
            continue
        kind = torch.float64 if view.graph.dtypes[source] is torch.float64 else torch.float32
        ramp = torch.arange(shape[dim], dtype=kind)
        ramp = ramp.reshape([-1 if d == dim else 1 for d in range(len(shape))]).expand(small)
        out = _probe(node, view, ramp.contiguous())
        line = out.movedim(dim, 0).reshape(out.shape[dim], -1)[:, 0]
        index = line.to(torch.int64).numpy()
        if index.shape[0] != shape[dim] or (index != np.arange(shape[dim])).any():
            taps[axis] = (index[:, None], None)
    return _MapRule(node, view, taps)


def interpolation(node: Node, view: View) -> Rule | None:
    """Linear, bilinear, bicubic and trilinear resampling, antialiased or not."""
    source = node.operands()[0]
    if view.kinds[source] is not Kind.LOCAL or any(
        d is not None and d < 2 for d in view.dims[source]
    ):
        return None
    shape, after = view.shape(source), view.shape(node.results[0])
    if any(d not in view.dims[source] for d in range(2, len(shape))):
        return None
    taps: dict[int, tuple[Integers, npt.NDArray[np.float64] | None]] = {}
    kind = torch.float64 if view.graph.dtypes[source] is torch.float64 else torch.float32
    for axis, dim in enumerate(view.dims[source]):
        if dim is None:
            continue
        length = shape[dim]
        others = [d for d in range(2, len(shape)) if d != dim]
        unit = torch.eye(length, dtype=kind)
        volume = unit.reshape(
            [length, 1, *(length if d == dim else 1 for d in range(2, len(shape)))]
        ).expand([length, 1, *shape[2:]])
        out = _probe(node, view, volume.contiguous())
        for d in sorted(others, reverse=True):
            out = out.select(d, 0)
        matrix = out.reshape(length, after[dim]).T.double().numpy()  # (outputs, inputs)
        taps[axis] = _sparse_rows(matrix)
    return _MapRule(node, view, taps)


def _sparse_rows(
    matrix: npt.NDArray[np.float64],
) -> tuple[Integers, npt.NDArray[np.float64]]:
    """The columns and weights of every row, padded to the same count with weightless taps."""
    count = max(1, int((matrix != 0).sum(1).max()))
    order = np.argsort(matrix == 0, axis=1, kind="stable")[:, :count]
    weights = np.take_along_axis(matrix, order, 1)
    index = np.where(weights != 0, order, order[:, :1])  # a weightless tap repeats the first
    return index.astype(np.int64), weights


class _PaddingRule(Rule):
    fresh = False  # where a patch touches no border it is passed on as it is

    def __init__(self, node: Node, view: View, before: list[int], after: list[int]) -> None:
        self.node, self.view = node, view
        self.source = node.operands()[0]
        self.dims = view.dims[self.source]
        self.before, self.after = before, after
        self.value = float(node.bound()["value"])

    def reach(self, axis: int, operands: dict[ValueId, Reach]) -> Reach:
        dim = self.dims[axis]
        assert dim is not None
        return shift(operands[self.source], self.before[dim], self.size(axis))

    def demand(self, axis: int, wanted: Interval | None) -> dict[ValueId, Interval]:
        dim = self.dims[axis]
        if wanted is None or dim is None:
            return {}
        moved = wanted[0] - self.before[dim], wanted[1] - self.before[dim]
        return {self.source: bounded(moved, self.view.shape(self.source)[dim])}

    def centre(self, axis: int, operands: dict[ValueId, Floats]) -> Floats:
        dim = self.dims[axis]
        assert dim is not None
        return operands[self.source] + self.before[dim]

    def step(self, group: Group) -> Step:
        reads: list[Box | None] = []
        rest: list[int] = []
        for d in reversed(range(len(self.before))):
            rest += [0, 0] if d in self.dims else [self.before[d], self.after[d]]
        for box, dim in zip(group.boxes(self.outputs[0]), self.dims, strict=True):
            if box is None or dim is None:
                reads.append(None)
            else:
                reads.append(Box(box.offset - self.before[dim], box.size))
        plain = self.value in (0.0, -math.inf)
        read = group.read(self.source, tuple(reads), self.value if plain else 0.0)
        outside = [] if plain else list(self._outside(group, tuple(reads)))
        if not outside and not any(rest):
            return read

        def step(frame: Frame) -> Tensor:
            block = read(frame)
            for dim, table in outside:
                block = block.masked_fill(along(frame.of(table), dim, block.dim()), self.value)
            return F.pad(block, rest, value=self.value) if any(rest) else block

        return step

    def _outside(self, group: Group, reads: Boxes) -> Iterator[tuple[int, Tensor]]:
        """For each axis, which cells of the block lie outside the input."""
        sizes = self.view.shape(self.source)
        for axis, (box, dim) in enumerate(zip(reads, self.dims, strict=True)):
            if box is None or dim is None:
                continue
            cells = box.offset[:, None] + np.arange(box.size)
            outside = (cells < 0) | (cells >= sizes[dim])
            if outside.any():
                yield dim, group.per_row(axis, torch.from_numpy(outside))


def constant_padding(node: Node, view: View) -> Rule | None:
    """constant_pad_nd, also with negative amounts."""
    source = node.operands()[0]
    if view.kinds[source] is not Kind.LOCAL:
        return None
    rank = len(view.graph.shapes[source])
    pad = node.args[1]
    before, after = [0] * rank, [0] * rank
    for i in range(len(pad) // 2):
        before[rank - 1 - i], after[rank - 1 - i] = pad[2 * i], pad[2 * i + 1]
    if before[0] or after[0]:
        return None
    if any(
        b < 0 or a < 0
        for d, (b, a) in enumerate(zip(before, after, strict=True))
        if d in view.dims[source] and b + a + view.shape(source)[d] <= 0
    ):
        return None
    return _PaddingRule(node, view, before, after)


class _ShuffleRule(Rule):
    """pixel_shuffle: channels become squares of cells."""

    def __init__(self, node: Node, view: View) -> None:
        self.node, self.view = node, view
        self.source = node.operands()[0]
        self.dims = view.dims[self.source]
        self.factor = int(node.args[1])

    def reach(self, axis: int, operands: dict[ValueId, Reach]) -> Reach:
        reach = operands[self.source]
        return Reach(reach.start * self.factor, reach.stop * self.factor)

    def demand(self, axis: int, wanted: Interval | None) -> dict[ValueId, Interval]:
        if wanted is None:
            return {}
        return {self.source: (wanted[0] // self.factor, -(-wanted[1] // self.factor))}

    def alignment(self, axis: int) -> tuple[int, int]:
        return self.factor, 0

    def step(self, group: Group) -> Step:
        boxes: Boxes = group.boxes(self.outputs[0])
        reads = tuple(
            None if b is None else Box(b.offset // self.factor, -(-b.size // self.factor))
            for b in boxes
        )
        read = group.read(self.source, reads)
        sizes = [(d, b.size) for d, b in zip(self.dims, boxes, strict=True) if b is not None]

        def step(frame: Frame) -> Tensor:
            out = F.pixel_shuffle(read(frame), self.factor)
            for dim, size in sizes:
                assert dim is not None
                out = out.narrow(dim, 0, size)
            return out

        return step


def shuffle(node: Node, view: View) -> Rule | None:
    """pixel_shuffle over the last two dimensions."""
    source = node.operands()[0]
    rank = len(view.graph.shapes[source])
    if view.kinds[source] is not Kind.LOCAL or rank != 4:
        return None
    if any(d is not None and d < 2 for d in view.dims[source]):
        return None
    if any(d not in view.dims[source] for d in (2, 3)):
        return None
    return _ShuffleRule(node, view)
