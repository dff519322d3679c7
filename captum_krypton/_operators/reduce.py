"""Rules for operators that reduce along window axes: a mean over one of two, or over all."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from .._capture import Node, ValueId
from .._kernels import Patches, gather_patches
from .pointwise import acted_on
from .regions import Box, Interval, Reach
from .rule import Boxes, Frame, Group, Kind, Rule, Step, View, batch_rows

__all__ = ["reduction"]

_TOTALS = {"aten.mean", "aten.sum"}


class _ReductionRule(Rule):
    """Reads the reduced axes whole; along the others the output is local as its input is."""

    def __init__(self, node: Node, view: View, gone: set[int], kept: bool) -> None:
        self.node, self.view = node, view
        self.source = node.operands()[0]
        self.own = view.dims[self.source]
        self.dims = tuple(
            None if d is None or d in gone else d - (0 if kept else sum(g < d for g in gone))
            for d in self.own
        )
        self.gone = gone

    def reach(self, axis: int, operands: dict[ValueId, Reach]) -> Reach:
        return operands[self.source]

    def demand(self, axis: int, wanted: Interval | None) -> dict[ValueId, Interval]:
        return {} if wanted is None else {self.source: wanted}

    def step(self, group: Group) -> Step:
        boxes = group.boxes(self.outputs[0])
        sizes = self.view.shape(self.source)
        reads: list[Box | None] = []
        for axis, dim in enumerate(self.own):
            if dim in self.gone and dim is not None:
                positions = group.positions(axis)
                reads.append(Box(np.zeros(positions, np.int64), sizes[dim]))
            else:
                reads.append(boxes[axis])
        read = group.read(self.source, tuple(reads))
        args, kwargs, op = self.node.args[1:], self.node.kwargs, self.node.op
        return lambda frame: op(read(frame), *args, **kwargs)


# Patches of a larger share of their volume are no cheaper than the volume itself.
_MOST_OF_VOLUME = 0.5


class _TotalRule(Rule):
    """A mean or a sum over all window axes: of the patch, and of the base around it.

    What lies before and behind the patch is looked up in sums along each axis. Nothing is taken
    away from a sum over all: what a window covers may be infinite, or large beside all else. The
    output has no window axis left, and changes everywhere.
    """

    def __init__(self, node: Node, view: View, kept: bool) -> None:
        self.node, self.view = node, view
        self.source = node.operands()[0]
        shape, own = view.shape(self.source), view.dims[self.source]
        self.dims = (None,) * len(own)
        self.full = [shape[dim] for dim in own if dim is not None]
        self.divisor = math.prod(self.full) if node.name == "aten.mean" else 1
        self.shape = (*shape[1:2], *([1] * len(self.full) if kept else []))
        dtype = view.graph.dtypes[self.source]
        self.dtype = torch.float32 if dtype.itemsize < 4 else dtype

    def reach(self, axis: int, operands: dict[ValueId, Reach]) -> Reach:
        raise AssertionError("no window axis is left")

    def on_volumes(self, boxes: dict[ValueId, Boxes]) -> bool:
        size = [box.size for box in boxes[self.source] if box is not None]
        return math.prod(size) > _MOST_OF_VOLUME * math.prod(self.full)

    def step(self, group: Group) -> Step:
        boxes = group.boxes(self.source)
        if self.on_volumes({self.source: boxes}):
            return self.whole_step(group)
        inside, around = self._inside(group, boxes), self._around(group, boxes)
        patches, dtype = group.patches(self.source), self.view.graph.dtypes[self.source]

        def step(frame: Frame) -> Tensor:
            found = patches(frame)
            total = inside(found).add_(around(frame, found.image)).div_(self.divisor)
            return total.reshape(-1, *self.shape).to(dtype)

        return step

    def _inside(self, group: Group, boxes: Boxes) -> Callable[[Patches], Tensor]:
        """The sum of each patch's own cells in the volume, (rows, channels)."""
        axes = tuple(range(2, 2 + len(self.full)))
        size = [box.size for box in boxes if box is not None]
        nothing = group.derived(self.source, "nothing", lambda base: torch.zeros_like(base[:1]))

        def inside(found: Patches) -> Tensor:
            _, patch, image, offset, extent = found
            own = gather_patches(
                nothing, patch, torch.zeros_like(image), offset, offset, size, 0.0, extent
            )
            return own.sum(axes, dtype=self.dtype)

        return inside

    def _around(self, group: Group, boxes: Boxes) -> Callable[[Frame, Tensor], Tensor]:
        """The sum of the base outside of each patch, (rows, channels).

        Along the first axis, all that lies before and behind the patch; along the next one, what
        does so in the patch's range of the first; and so on.
        """
        places, extent = group.offsets(boxes), group.extents(boxes)
        sizes = [box.size for box in boxes if box is not None]
        full, size = torch.tensor([self.full, sizes], device=places.device)
        start = torch.minimum(places.clamp(min=0), full)
        stop = torch.minimum((places + (size if extent is None else extent)).clamp(min=0), full)
        parts = [self._range(start, stop, axis, length) for axis, length in enumerate(sizes)]
        terms = []
        for axis in range(len(self.full)):
            for name, cells in (("before", start), ("behind", stop)):
                sums = group.derived(self.source, f"{name} {axis}", self._sums(name, axis))
                terms.append((sums, parts[:axis], cells[:, axis].contiguous()))

        def around(frame: Frame, image: Tensor) -> Tensor:
            total = None
            for sums, before, cell in terms:
                depth = len(before)
                ranges = [_spread(frame.of(part), d, depth) for d, part in enumerate(before)]
                where = (_spread(image, None, depth), *ranges, _spread(frame.of(cell), None, depth))
                found = sums[where]
                found = found.sum(tuple(range(1, 1 + depth))) if depth else found
                total = found if total is None else total.add_(found)
            assert total is not None
            return total

        return around

    def _range(self, start: Tensor, stop: Tensor, axis: int, size: int) -> Tensor:
        """Where a patch's cells lie along an axis, (windows, size): at its end if outside."""
        place = start[:, axis, None] + torch.arange(size, device=start.device)
        return torch.where(place < stop[:, axis, None], place, self.full[axis])

    def _sums(self, name: str, axis: int) -> Callable[[Tensor], Tensor]:
        """Of a volume: the sums before or behind each place along an axis, over all later axes.

        The result is (N, *earlier axes, places, channels). Each earlier axis has a place of zeros
        more, at its end.
        """

        def sums(base: Tensor) -> Tensor:
            later = tuple(range(3 + axis, base.dim()))
            volume = base.sum(later, dtype=self.dtype) if later else base.to(self.dtype)
            dim = 2 + axis
            if name == "before":
                made, place = volume.cumsum(dim), (1, 0)
            else:
                made, place = volume.flip(dim).cumsum(dim).flip(dim), (0, 1)
            return nn.functional.pad(made, (*place, *(0, 1) * axis)).movedim(1, -1).contiguous()

        return sums


def _spread(table: Tensor, place: int | None, depth: int) -> Tensor:
    """(rows,) or (rows, size) with `depth` dimensions after the first, the size at one of them."""
    shape = [1] * depth
    if place is not None:
        shape[place] = table.shape[1]
    return table.reshape(-1, *shape)


def reduction(node: Node, view: View) -> Rule | None:
    """Reductions over some of the window axes, perhaps with other dimensions."""
    source = node.operands()[0]
    if view.kinds[source] is not Kind.LOCAL or len(node.operands()) != 1:
        return None
    if not all(batch_rows(view, v) for v in (source, *node.results)):
        return None
    rank = len(view.graph.shapes[source])
    gone = acted_on(node.bound(), rank)
    if gone is None or 0 in gone:
        return None
    kept = len(view.graph.shapes[node.results[0]]) == rank
    rule = _ReductionRule(node, view, gone, kept)
    if any(d is not None for d in rule.dims):
        return rule
    own = [d for d in rule.own if d is not None]
    plain = node.bound().get("dtype") is None and view.graph.dtypes[source].is_floating_point
    if node.name not in _TOTALS or not plain or own != list(range(2, rank)) or gone != set(own):
        return None  # an operator on whole volumes
    return _TotalRule(node, view, kept)
