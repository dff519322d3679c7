"""How to run all windows: groups of like geometry, batches, and what they cost.

Windows that cannot reach what the outcome depends on are in no group.

All patches of a batch have one size in memory at every operator. The paper gives all windows of a
map one size; here each axis is cut into a few segments of similar geometry, and every combination
of segments is a group with its own sizes, so that windows at the border, which reach less far,
cost less. The compiled kernels go further: they compute of every patch the cells that its own
window reaches, and no others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .._call import Windows
from .._operators import Kind, Mask, Means, Positions, numbers
from .analysis import Analysis
from .batch_size import Room
from .cost import NodeCost, node_costs
from .group_plan import GroupPlan, plan_group
from .segments import PairedSegmenter, Segmenter
from .workload import Workload

__all__ = ["Plan", "make_plan"]

_MAX_SEGMENTS = 6
_HEAD_ELEMENTS = 1 << 16  # a row of the head's values is no larger than this


@dataclass(frozen=True)
class Plan:
    """How all windows of one input are run.

    Attributes:
        analysis: kinds, axes and rules of the graph's values and operators.
        grid: the windows.
        axes: the input's dimensions (without the batch) that are window axes of the analysis.
        groups: the groups, in the order in which they run.
        head: how many of the last operators run once for the rows of several batches.
        images: how many images are run side by side.
        batch_size: the most rows in a batch.
        costs: what each operator costs on whole volumes.
        memory: bytes that the base and one batch are expected to take.
        threshold: the projective field threshold; 1 where the plan is exact.
        reached: for each window axis, the positions of the windows that are run: all that can
            change the outcome, one at least.
    """

    analysis: Analysis
    grid: Windows
    axes: tuple[int, ...]
    reached: tuple[Positions, ...]
    groups: tuple[GroupPlan, ...]
    head: int
    images: int
    batch_size: int
    costs: tuple[NodeCost, ...]
    memory: int
    threshold: float = 1.0

    @property
    def incremental(self) -> bool:
        """Whether any operator works on patches."""
        return any(rule is not None and not rule.is_global for rule in self.analysis.rules)

    @cached_property
    def layout(self) -> tuple[object, ...]:
        """What tells how two plans of one input and graph run from each other."""
        groups = (
            (g.segments, tuple(sorted((v, a.value) for v, a in g.algorithms.items())))
            for g in self.groups
        )
        if self.grid.paired:  # each list has boxes of its own: they are run alike
            algorithms = tuple(sorted({used for _, used in groups}))
            return "regions", self.images, self.head, self.threshold, algorithms
        segments = tuple((tuple(map(_ends, cut)), used) for cut, used in groups)
        return self.grid, self.images, self.batch_size, self.head, self.threshold, segments

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why no operator works on patches, where none does."""
        if self.incremental:
            return ()
        return ("whole volumes are predicted to cost less than patches",)

    @property
    def batch_bytes(self) -> int:
        """Memory that one batch is expected to take at the worst moment."""
        return max(group.rows * group.row_bytes for group in self.groups)

    @property
    def others(self) -> tuple[int, ...]:
        """The input's dimensions (without the batch) that are not window axes of the analysis."""
        return tuple(d for d in range(len(self.grid.shape)) if d not in self.axes)

    @property
    def copies(self) -> int:
        """Windows that differ only along dimensions such as channels."""
        if self.grid.paired:
            return 1
        return math.prod(self.grid.counts[d] for d in self.others)

    @cached_property
    def runs(self) -> Mask:
        """Which windows are run, (windows,) in row-major order; the others change no outcome."""
        found = np.zeros(self.grid.counts, bool)
        if self.grid.paired:
            found[self.reached[0]] = True
            return found
        where = dict(zip(self.axes, self.reached, strict=True))
        found[tuple(where.get(dim, slice(None)) for dim in range(found.ndim))] = True
        return found.reshape(-1)

    @property
    def unreached(self) -> int:
        """How many windows cannot reach what the outcome depends on."""
        return self.grid.total - int(self.runs.sum())

    @cached_property
    def macs_full(self) -> int:
        """Q: multiply-accumulates of one window on whole volumes (Eq. 13-14)."""
        return sum(cost.macs for cost in self.costs)

    @cached_property
    def macs_incremental(self) -> float:
        """Q_inc: mean multiply-accumulates of one window (Eq. 15-16)."""
        return sum(map(self.operator_macs, range(len(self.costs))))

    def operator_macs(self, number: int) -> float:
        """Mean multiply-accumulates of an operator for one window (Eq. 15)."""
        total = sum(group.macs[number] * group.positions for group in self.groups)
        return total * self.copies / self.grid.total

    @property
    def theoretical_speedup(self) -> float:
        """R: the saving in multiply-accumulates over the map (Eq. 17)."""
        return self.saving(1, self.macs_incremental)

    def saving(self, windows: int, macs: float) -> float:
        """The saving (Eq. 17) where so many windows took so many multiply-accumulates in all."""
        return windows * self.macs_full / macs if macs else 1.0

    def _batches(self, group: GroupPlan) -> int:
        return math.ceil(self.copies * group.positions / group.rows)

    @property
    def base_seconds(self) -> float:
        """Predicted time of the base of one image."""
        return sum(cost.seconds for cost in self.costs)

    def operator_seconds(self, number: int) -> float:
        """Predicted time of an operator for all windows of one image, its calls not counted."""
        return sum(self.copies * group.positions * group.seconds[number] for group in self.groups)

    @property
    def seconds(self) -> float:
        """Predicted time of all windows of one image, its base included."""
        windows = sum(
            self.copies * group.positions * sum(group.seconds) + self._batches(group) * group.call
            for group in self.groups
        )
        return windows + self.base_seconds


def make_plan(
    analysis: Analysis,
    grid: Windows,
    axes: tuple[int, ...],
    *,
    means: Means,
    room: Room,
    images: int,
    element_bytes: int,
    threshold: float = 1.0,
    reached: tuple[Positions, ...] | None = None,
) -> Plan:
    """Cuts the axes into segments and chooses the batch size.

    Args:
        analysis: kinds, axes and rules.
        grid: the windows.
        axes: the input's dimensions (without the batch) that are window axes.
        means: what the plan may use.
        room: what it may take of the device.
        images: images in the input.
        element_bytes: bytes of one element.
        threshold: the projective field threshold (Section 4.2).
        reached: for each window axis, the positions of the windows that are to be run; None for
            those that can change the outcome by this analysis.
    """
    reaches = analysis.reaches(tuple(grid.along(dim) for dim in axes), threshold)
    reached = reaches.reached(grid.paired) if reached is None else reached
    work = Workload(analysis, reaches.intervals, node_costs(analysis, means.rates), means)

    def batch_size(row_bytes: int) -> int:
        return room.batch_size(base, row_bytes)

    cutter = PairedSegmenter(work, reached) if grid.paired else Segmenter(work, reached)
    base = element_bytes * sum(math.prod(analysis.graph.size(v, 1)) for v in analysis.kept)
    side_by_side = room.images(base, images)
    base *= side_by_side
    head = _head(analysis)
    most = _MAX_SEGMENTS if cutter.matters else 1
    best: Plan | None = None
    worse = 0
    longest = max((len(numbers(positions)) for positions in reached), default=1)
    for count in range(1, min(most, longest) + 1):
        groups = tuple(
            plan_group(work, segments, grid.paired, batch_size, element_bytes)
            for segments in cutter.cut(count)
        )
        batch = max(group.rows for group in groups)
        memory = base + max(group.rows * group.row_bytes for group in groups)
        plan = Plan(
            analysis,
            grid,
            axes,
            reached,
            groups,
            head,
            side_by_side,
            batch,
            work.costs,
            memory,
            threshold,
        )
        if best is None or plan.seconds < best.seconds:
            best, worse = plan, 0
            continue
        worse += 1
        if worse == 2:  # the second cut may pay only with the third: a map has two borders
            break
    assert best is not None
    return best


def _ends(positions: Positions) -> tuple[int, int]:
    cells = numbers(positions)
    return int(cells[0]), int(cells[-1]) + 1


def _head(analysis: Analysis) -> int:
    """How many of the last operators can run once for the rows of many batches.

    They are global operators on small values: the classifier's head.
    """
    graph = analysis.graph
    head = 0
    for node in reversed(graph.nodes):
        operands = [v for v in node.operands() if analysis.kinds[v] is not Kind.CONSTANT]
        values = [*operands, *(v for v in node.outputs if v >= 0)]
        small = all(math.prod(graph.size(v, 1)) <= _HEAD_ELEMENTS for v in values)
        rows = all(
            graph.shapes[v] and graph.size(v, 5)[0] == 5 and graph.size(v, 7)[0] == 7
            for v in values
        )
        full = all(analysis.kinds[v] is Kind.FULL for v in values)
        if not (small and rows and full and operands):
            break
        head += 1
    return head
