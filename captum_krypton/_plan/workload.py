"""What is to be planned: how far windows reach, what operators cost, what may be used."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .._capture import ValueId
from .._operators import Box, Boxes, Means, Positions, Reach, Rule, align, exact
from .analysis import Analysis
from .cost import NodeCost, is_shared

__all__ = ["Operator", "Workload"]


@dataclass(frozen=True)
class Operator:
    """One operator, as a plan sees it.

    Attributes:
        rule: its rule, if it has one.
        cost: what it costs on whole volumes.
        reads: the values that it reads, each once.
        makes: the values that it defines and something reads.
        shared: whether it runs in the base alone.
    """

    rule: Rule | None
    cost: NodeCost
    reads: tuple[ValueId, ...]
    makes: tuple[ValueId, ...]
    shared: bool


@dataclass(frozen=True)
class Workload:
    """What is to be planned.

    Attributes:
        analysis: kinds, axes and rules.
        reaches: what each window position changes of every local value, along each axis.
        costs: what each operator costs on whole volumes.
        means: what the plan may use.
    """

    analysis: Analysis
    reaches: dict[ValueId, tuple[Reach | None, ...]]
    costs: tuple[NodeCost, ...]
    means: Means
    # Groups of windows are combinations of segments: what lies along one axis is the same in many.
    _along: dict[Any, Box] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def operators(self) -> tuple[Operator, ...]:
        """The operators, in the order in which they run."""
        analysis = self.analysis
        rows = zip(analysis.graph.nodes, analysis.rules, self.costs, strict=True)
        return tuple(
            Operator(
                rule,
                cost,
                tuple(dict.fromkeys(node.operands())),
                tuple(node.results),
                is_shared(analysis, node),
            )
            for node, rule, cost in rows
        )

    @cached_property
    def elements(self) -> dict[ValueId, int]:
        """Elements of each value's whole volume, of one row."""
        graph = self.analysis.graph
        return {value: math.prod(graph.size(value, 1)) for value in graph.shapes}

    @cached_property
    def last_uses(self) -> dict[ValueId, int]:
        """The position of the last operator that reads each value."""
        return self.analysis.graph.last_uses()

    def is_ragged(self, rule: Rule) -> bool:
        """Whether every window's patch lies at its own cells.

        Only where kernels gain by it, and only for numbers: what lies beyond a patch's own cells
        goes through operators of torch too, unread.
        """
        dtypes = self.analysis.graph.dtypes
        numbers = all(dtypes[v].is_floating_point for v in rule.outputs)
        return self.means.cpu_kernels and rule.ragged and numbers

    def boxes(
        self,
        value: ValueId,
        segments: tuple[Positions, ...],
        alignment: Callable[[int], tuple[int, int]] | None = None,
        *,
        ragged: bool = False,
    ) -> Boxes:
        """Where the patches of a local value lie, for the window positions of the segments.

        Args:
            value: the value.
            segments: the positions along each window axis.
            alignment: by axis, the modulus and residue of the patches' first cells; None for any.
            ragged: whether every window's patch lies at its own cells.
        """
        boxes: list[Box | None] = []
        for axis, reach in enumerate(self.reaches[value]):
            full = self.analysis.full_size(value, axis)
            if reach is None or full is None:
                boxes.append(None)
                continue
            turn = (1, 0) if ragged or alignment is None else alignment(axis)
            positions = segments[axis]
            if not isinstance(positions, slice):
                boxes.append(self._box(value, axis, positions, turn, ragged))
                continue
            key = (value, axis, positions.start, positions.stop, turn, ragged)
            if key not in self._along:
                self._along[key] = self._box(value, axis, positions, turn, ragged)
            boxes.append(self._along[key])
        return tuple(boxes)

    def _box(
        self, value: ValueId, axis: int, positions: Positions, turn: tuple[int, int], ragged: bool
    ) -> Box:
        reach, full = self.reaches[value][axis], self.analysis.full_size(value, axis)
        assert reach is not None and full is not None
        part = reach.segment(positions)
        if ragged:
            return exact(part)
        cells = self.analysis.demands[value][axis]
        if cells is None or part.longest > cells[1] - cells[0]:  # it is computed whole
            cells = (0, full)
        return align(part, cells, *turn)
