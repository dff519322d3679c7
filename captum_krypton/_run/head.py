"""The last operators of a graph, run once for the rows of many batches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .._capture import Node, ValueId, resolve
from .._operators import Kind
from .._plan import Plan
from .interpreter import store

__all__ = ["Clock", "Head", "frontier", "run_head", "untimed"]

Clock = Callable[[Node], AbstractContextManager[None]]

_WAITING_BYTES = 1 << 26  # values of finished batches that wait for the head


class Head:
    """The last operators, run once for the rows of many batches.

    Args:
        plan: the plan.
        constants: from `prepare_constants`.
        finish: told the output rows and their places in the result.
        clock: takes the time of an operator.
    """

    def __init__(
        self,
        plan: Plan,
        constants: dict[ValueId, Tensor],
        finish: Callable[[Tensor, Tensor], None],
        clock: Clock,
    ) -> None:
        self.plan, self.constants, self.finish, self.clock = plan, constants, finish, clock
        self.waiting: dict[ValueId, Tensor] = {}  # room for many rows of each value
        self.order: list[Tensor] = []
        self.rows = self.room = 0

    def add(self, values: dict[ValueId, Tensor], order: Tensor) -> None:
        """Takes a batch's `frontier` values, and the places of its rows in the result."""
        rows = len(order)
        if self.rows + rows > self.room:
            self.flush()
        if rows > self.room:
            row_bytes = sum(t[0].numel() * t.element_size() for t in values.values())
            self.room = max(rows, self._most_rows(row_bytes))
            self.waiting = {v: t.new_empty((self.room, *t.shape[1:])) for v, t in values.items()}
        # Copied: kept as they are, they would lie between the memory of later batches.
        for value, tensor in values.items():
            self.waiting[value][self.rows : self.rows + rows] = tensor
        self.order.append(order)
        self.rows += rows

    def _most_rows(self, row_bytes: int) -> int:
        if not self.plan.head:
            return 0
        windows = self.plan.images * self.plan.grid.total
        return min(windows, max(1, _WAITING_BYTES // max(row_bytes, 1)))

    def flush(self) -> None:
        """Runs the head for all rows that wait."""
        if not self.order:
            return
        order = torch.cat(self.order)
        values = {v: room[: self.rows] for v, room in self.waiting.items()}
        self.order, self.rows = [], 0
        self.finish(run_head(self.plan, self.constants, values, len(order), self.clock), order)


def untimed(node: Node) -> AbstractContextManager[None]:
    """A clock that takes no time."""
    return nullcontext()


def run_head(
    plan: Plan,
    constants: dict[ValueId, Tensor],
    values: dict[ValueId, Tensor],
    rows: int,
    clock: Clock = untimed,
) -> Tensor:
    """The graph's output of some rows, from their `frontier` values."""
    graph, values = plan.analysis.graph, dict(values)

    def tensor(value: ValueId) -> Tensor:
        return values[value] if value in values else constants[value]

    for node in graph.nodes[len(graph.nodes) - plan.head :]:
        args, kwargs = resolve((node.args, node.kwargs), tensor, rows)
        with clock(node):
            store(values, node, node.op(*args, **kwargs))
    return values[graph.output]


def frontier(plan: Plan) -> tuple[ValueId, ...]:
    """The values that the head reads from the batches."""
    graph = plan.analysis.graph
    nodes = graph.nodes[len(graph.nodes) - plan.head :]
    made = {v for node in nodes for v in node.outputs}
    if not nodes:
        return (graph.output,)
    read = dict.fromkeys(v for node in nodes for v in node.operands())
    kinds = plan.analysis.kinds
    return tuple(v for v in read if v not in made and kinds[v] is not Kind.CONSTANT)
