"""What is to be planned: how far windows reach, what operators cost, what may be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .._capture import Node, ValueId
from .._operators import Box, Boxes, Means, Positions, Reach, Rule, align, exact
from .analysis import Analysis
from .cost import NodeCost

__all__ = ["Workload"]


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

    def operators(self) -> Iterator[tuple[Node, Rule | None, NodeCost]]:
        """Every operator with its rule and what it costs on whole volumes."""
        analysis = self.analysis
        yield from zip(analysis.graph.nodes, analysis.rules, self.costs, strict=True)

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
            if ragged:
                boxes.append(exact(reach.segment(segments[axis])))
                continue
            part, cells = reach.segment(segments[axis]), self.analysis.demands[value][axis]
            if cells is None or part.longest > cells[1] - cells[0]:  # it is computed whole
                cells = (0, full)
            modulus, residue = (1, 0) if alignment is None else alignment(axis)
            boxes.append(align(part, cells, modulus, residue))
        return tuple(boxes)
