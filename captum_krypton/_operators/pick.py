"""Rules for operators that read some cells of a window axis and leave the axis out.

One index of it, constant indices or a constant mask, and axes of one cell that are squeezed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .._capture import Node, Value, ValueId
from .regions import Box, Interval, Reach
from .rule import Dims, Frame, Group, Kind, Rule, Step, View, batch_rows

__all__ = ["by_constants", "of_axis", "squeezed"]

Apply = Callable[[Tensor], Tensor]


class _PickRule(Rule):
    """Reads the same cells for every window, from its patch or from the base.

    Along axes that the output keeps, it is local as its input is.

    Args:
        node: the operator.
        view: the graph and what is known of the operands.
        dims: the output's dimensions that carry the axes.
        cells: for each axis that goes, the cells that are read.
        apply: makes the output of a block of these cells.
    """

    fresh = False

    def __init__(
        self, node: Node, view: View, dims: Dims, cells: dict[int, Interval], apply: Apply
    ) -> None:
        self.node, self.view, self.dims = node, view, dims
        self.source = node.operands()[0]
        self.cells, self.apply = cells, apply

    def reach(self, axis: int, operands: dict[ValueId, Reach]) -> Reach:
        return operands[self.source]

    def demand(self, axis: int, wanted: Interval | None) -> dict[ValueId, Interval]:
        read = self.cells.get(axis, wanted)
        return {} if read is None else {self.source: read}

    def step(self, group: Group) -> Step:
        reads: list[Box | None] = list(group.boxes(self.outputs[0]))
        for axis, (start, stop) in self.cells.items():
            reads[axis] = Box(np.full(group.positions(axis), start), stop - start)
        read, apply = group.read(self.source, tuple(reads)), self.apply

        def step(frame: Frame) -> Tensor:
            return apply(read(frame))

        return step


def of_axis(node: Node, view: View) -> Rule | None:
    """`select` along a window axis."""
    source = node.operands()[0]
    if view.kinds[source] is not Kind.LOCAL or not batch_rows(view, source):
        return None
    own, named = view.dims[source], node.bound()
    dim, index = named["dim"] % len(view.shape(source)), named["index"]
    if dim not in own or type(index) is not int:
        return None
    place = index % view.shape(source)[dim]
    dims = tuple(None if d is None or d == dim else d - (d > dim) for d in own)
    cells = {own.index(dim): (place, place + 1)}
    return _PickRule(node, view, dims, cells, lambda block: block.select(dim, 0))


def squeezed(
    node: Node, view: View, dims: Dims, cells: dict[int, Interval], after: tuple[int, ...]
) -> Rule:
    """A reshape to `after` in which axes of one cell go: those of `cells`."""

    def apply(block: Tensor) -> Tensor:
        shape = [len(block), *after[1:]]
        for dim, was in zip(dims, view.dims[node.operands()[0]], strict=True):
            if dim is not None and was is not None:
                shape[dim] = block.shape[was]
        return block.reshape(shape)

    return _PickRule(node, view, dims, cells, apply)


def by_constants(node: Node, view: View) -> Rule | None:
    """`index` by constant integers or a constant mask, of dimensions that are neighbours."""
    named = node.bound()
    source = named["self"].id
    if not view.only_first_varies(node) or not batch_rows(view, source):
        return None
    shape, own = view.shape(source), view.dims[source]
    found: list[Tensor | None] = []
    for entry in named["indices"]:
        if not isinstance(entry, Value):
            found.append(None)
            continue
        index = view.constants[entry.id]
        if index.dtype in (torch.bool, torch.uint8):
            found += index.nonzero(as_tuple=True)
        else:
            found.append(index)
    indexed = [dim for dim, index in enumerate(found) if index is not None]
    if not indexed or indexed[0] == 0 or indexed[-1] - indexed[0] + 1 != len(indexed):
        return None
    cells: dict[int, Interval] = {}
    places: list[Tensor] = []
    for dim, given in enumerate(found):
        if given is None:
            continue
        place = torch.where(given < 0, given + shape[dim], given)
        if dim in own:
            first, last = int(place.min()), int(place.max())
            cells[own.index(dim)] = first, last + 1
            place = place - first
        places.append(place)
    lead = indexed[0]
    more = len(torch.broadcast_shapes(*[place.shape for place in places])) - len(indexed)
    dims = tuple(None if d is None or d in indexed else d + (more if d > lead else 0) for d in own)

    def apply(block: Tensor) -> Tensor:
        index = [None] * lead + [place.to(block.device) for place in places]
        made: Tensor = node.op(block, index)
        return made

    return _PickRule(node, view, dims, cells, apply)
