"""Rules for operators that reduce along a window axis, such as a mean over one of two axes."""

from __future__ import annotations

import numpy as np

from .._graph import Node, ValueId
from .._regions import Box, Reach
from ._pointwise import acted_on
from ._rule import Group, Kind, Rule, Step, View, batch_rows

__all__ = ["reduction"]


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
    if all(d is None for d in rule.dims):
        return None  # nothing local is left: an operator on whole volumes
    return rule
