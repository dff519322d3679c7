"""How to run all windows: groups of equal geometry, batches, and what they cost.

All windows of a batch share one patch size at every operator. The paper gives all windows of a
map one size; here each axis is cut into a few segments of similar geometry, and every combination
of segments is a group with its own sizes, so that windows at the border, which reach less far,
cost less.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ._analyse import Analysis, multiply_accumulates
from ._graph import Node, ValueId
from ._operators import Boxes, Kind, PatchRule
from ._regions import Box, Reach, align
from ._windows import WindowGrid

__all__ = ["GroupPlan", "NodeCost", "Plan", "make_plan"]

# Costs in multiply-accumulates. They only rank plans; their ratios are those of a desktop CPU.
_PER_ELEMENT = 30.0  # moving one element through memory
_PER_CALL = 1.2e7  # calling one operator, and what its smaller batch loses
_GROUPED = 8.0  # a multiply-accumulate of a depthwise or narrow grouped convolution
_MAX_SEGMENTS = 6
_TAIL_ELEMENTS = 1 << 16  # a row of the tail's values is no larger than this


@dataclass(frozen=True)
class NodeCost:
    """What one operator costs a row: multiply-accumulates and elements moved."""

    macs: int
    elements: int
    weight: float = 1.0

    def at(self, share: float) -> float:
        """The cost of computing `share` of the operator's output."""
        return share * (self.macs * self.weight + self.elements * _PER_ELEMENT)


@dataclass(frozen=True)
class GroupPlan:
    """Windows that share one patch size at every operator.

    Attributes:
        segments: for each window axis, the positions along it.
        boxes: where the patches of each local value lie, for the positions of the segments.
        cost: predicted cost of one window, in multiply-accumulates.
        macs: multiply-accumulates of one window.
        row_bytes: memory that one window needs at the worst moment.
    """

    segments: tuple[slice, ...]
    boxes: dict[ValueId, Boxes]
    cost: float
    macs: float
    row_bytes: int

    @property
    def positions(self) -> int:
        """Window positions of the group, over the window axes."""
        return math.prod(s.stop - s.start for s in self.segments)


@dataclass(frozen=True)
class Plan:
    """How all windows of one input are run.

    Attributes:
        analysis: kinds, axes and rules of the graph's values and operators.
        grid: the windows.
        axes: the input's dimensions (without the batch) that are window axes of the analysis.
        groups: the groups, in the order in which they run.
        tail: how many of the last operators run once for the rows of several batches.
        images: how many images are run side by side.
        batch_size: the most rows in a batch.
        costs: what each operator costs on whole volumes.
        memory: bytes that the base and one batch are expected to take.
    """

    analysis: Analysis
    grid: WindowGrid
    axes: tuple[int, ...]
    groups: tuple[GroupPlan, ...]
    tail: int
    images: int
    batch_size: int
    costs: tuple[NodeCost, ...]
    memory: int

    @property
    def incremental(self) -> bool:
        """Whether any operator works on patches."""
        return any(rule is not None for rule in self.analysis.rules)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why no operator works on patches, where none does."""
        if self.incremental:
            return ()
        return ("whole volumes are predicted to cost less than patches",)

    @property
    def others(self) -> tuple[int, ...]:
        """The input's dimensions (without the batch) that are not window axes of the analysis."""
        return tuple(d for d in range(len(self.grid.shape)) if d not in self.axes)

    @property
    def copies(self) -> int:
        """Windows that differ only along dimensions such as channels."""
        return math.prod(self.grid.counts[d] for d in self.others)

    @cached_property
    def macs_full(self) -> int:
        """Q: multiply-accumulates of one window on whole volumes (Eq. 13-14)."""
        return sum(cost.macs for cost in self.costs)

    @cached_property
    def macs_incremental(self) -> float:
        """Q_inc: mean multiply-accumulates of one window (Eq. 15-16)."""
        total = sum(group.macs * group.positions for group in self.groups)
        return total / sum(group.positions for group in self.groups)

    @property
    def theoretical_speedup(self) -> float:
        """R: the saving in multiply-accumulates over the map (Eq. 17)."""
        return self.macs_full / self.macs_incremental if self.macs_incremental else 1.0

    @property
    def cost(self) -> float:
        """Predicted cost of all windows of one image, its base included."""
        windows = self.copies * sum(group.cost * group.positions for group in self.groups)
        calls = sum(
            math.ceil(self.copies * group.positions / self.batch_size) for group in self.groups
        )
        return windows + calls * len(self.costs) * _PER_CALL + sum(c.at(1.0) for c in self.costs)


def node_costs(analysis: Analysis) -> tuple[NodeCost, ...]:
    """What every operator costs a row on whole volumes."""
    graph = analysis.graph
    costs = []
    for node in graph.nodes:
        elements = sum(math.prod(graph.size(v, 1)) for v in node.outputs if v >= 0)
        macs = 0 if _is_shared(analysis, node) else multiply_accumulates(graph, node)
        weight = 1.0
        if node.name in ("aten.convolution", "captum_krypton.convolution_block"):
            inner = graph.size(node.operands()[1], 1)[1]
            weight = _GROUPED if inner < 8 and node.bound()["groups"] > 1 else 1.0
        costs.append(NodeCost(macs, elements, weight))
    return tuple(costs)


def _is_shared(analysis: Analysis, node: Node) -> bool:
    """Whether the operator runs in the base alone."""
    return all(v < 0 or analysis.kinds[v] is Kind.IMAGE for v in node.outputs)


def make_plan(
    analysis: Analysis,
    grid: WindowGrid,
    axes: tuple[int, ...],
    *,
    images: int,
    memory_budget: int,
    most_rows: int,
    element_bytes: int,
) -> Plan:
    """Cuts the axes into segments and chooses the batch size.

    Args:
        analysis: kinds, axes and rules.
        grid: the windows.
        axes: the input's dimensions (without the batch) that are window axes.
        images: images in the input.
        memory_budget: bytes that the base and one batch may take.
        most_rows: the most rows that a batch may have.
        element_bytes: bytes of one element.
    """
    windows = tuple(grid.along(dim) for dim in axes)
    reaches = analysis.reaches(windows)
    costs = node_costs(analysis)
    best: Plan | None = None
    positions = [len(w.start) for w in windows]
    curves = [
        _Segmenter(analysis, reaches, costs, axis, positions[axis]) for axis in range(len(axes))
    ]
    for count in range(1, _MAX_SEGMENTS + 1):
        if count > 1 and count > max(positions, default=1):
            break
        cuts = [curve.cut(min(count, n)) for curve, n in zip(curves, positions, strict=True)]
        groups = tuple(
            _group(analysis, reaches, costs, segments, element_bytes)
            for segments in itertools.product(*cuts)
        )
        base = element_bytes * sum(math.prod(analysis.graph.size(v, 1)) for v in analysis.kept)
        side_by_side = max(1, min(images, int(memory_budget // 2 // max(base, 1))))
        room = max(memory_budget - base * side_by_side, memory_budget // 2)
        row_bytes = max(group.row_bytes for group in groups)
        batch = max(1, min(most_rows, room // max(row_bytes, 1)))
        tail = _tail(analysis)
        memory = base * side_by_side + batch * row_bytes
        plan = Plan(analysis, grid, axes, groups, tail, side_by_side, batch, costs, memory)
        if best is None or plan.cost < best.cost:
            best = plan
    assert best is not None
    return best


class _Segmenter:
    """Cuts one axis into segments of similar geometry, by dynamic programming over their cost.

    The cost of a segment is its number of positions times the sum over operators of cost and
    largest patch; along the other axes, every operator has its mean patch.
    """

    def __init__(
        self,
        analysis: Analysis,
        reaches: dict[ValueId, tuple[Reach | None, ...]],
        costs: tuple[NodeCost, ...],
        axis: int,
        positions: int,
    ) -> None:
        sizes, weights = [], []
        for rule, cost in zip(analysis.rules, costs, strict=True):
            if rule is None:
                continue
            value = rule.outputs[0]
            share = 1.0
            for other, reach in enumerate(reaches[value]):
                full = analysis.full_size(value, other)
                if reach is None or full is None:
                    continue
                length = np.clip(reach.stop - reach.start, 1, full)
                if other == axis:
                    sizes.append(length / full)
                else:
                    share *= float(length.mean()) / full
            if reaches[value][axis] is not None:
                weights.append(cost.at(1.0) * share)
        self.positions = positions
        self.steps = self._boundaries(positions)
        self.cost = self._segment_costs(np.array(sizes), np.array(weights))

    @staticmethod
    def _boundaries(positions: int) -> list[int]:
        stride = max(1, math.ceil(positions / 64))
        return [*range(0, positions, stride), positions]

    def _segment_costs(
        self, sizes: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        steps, count = self.steps, len(self.steps)
        cost = np.full((count, count), np.inf)
        for i in range(count - 1):
            largest = np.zeros(len(weights))
            for j in range(i + 1, count):
                if len(weights):
                    block = sizes[:, steps[j - 1] : steps[j]].max(1)
                    largest = np.maximum(largest, block)
                cost[i, j] = (steps[j] - steps[i]) * float(largest @ weights)
        return cost

    def cut(self, segments: int) -> list[slice]:
        """The cheapest cut into at most `segments` segments."""
        count = len(self.steps)
        segments = min(segments, count - 1)
        best = np.full((segments + 1, count), np.inf)
        best[0, 0] = 0.0
        last = np.zeros((segments + 1, count), int)
        for k in range(1, segments + 1):
            total = best[k - 1][:, None] + self.cost
            last[k] = total.argmin(0)
            best[k] = total.min(0)
        end, cuts = count - 1, []
        for k in range(segments, 0, -1):
            start = int(last[k, end])
            cuts.append(slice(self.steps[start], self.steps[end]))
            end = start
        return cuts[::-1]


def _group(
    analysis: Analysis,
    reaches: dict[ValueId, tuple[Reach | None, ...]],
    costs: tuple[NodeCost, ...],
    segments: tuple[slice, ...],
    element_bytes: int,
) -> GroupPlan:
    boxes: dict[ValueId, Boxes] = {}
    boxes[analysis.occluded] = _boxes(analysis, analysis.occluded, reaches, segments)
    cost = macs = 0.0
    largest = 0.0
    for node, rule, node_cost in zip(analysis.graph.nodes, analysis.rules, costs, strict=True):
        share = 1.0
        if rule is not None:
            local = [v for v in dict.fromkeys(node.operands()) if v in boxes]
            for value in rule.outputs:
                made = _boxes(analysis, value, reaches, segments, rule.alignment)
                if isinstance(rule, PatchRule) and len(local) == 1:
                    made = _inherited(boxes[local[0]], made)
                boxes[value] = made
            for axis, box in enumerate(boxes[rule.outputs[0]]):
                full = analysis.full_size(rule.outputs[0], axis)
                if box is not None and full is not None:
                    share *= box.size / full
        elif _is_shared(analysis, node):
            continue
        cost += node_cost.at(share)
        macs += node_cost.macs * share
        # the output, its read-in block and what waits for a later join
        largest = max(largest, 4.0 * share * node_cost.elements)
    return GroupPlan(segments, boxes, cost, macs, int(largest * element_bytes))


def _inherited(own: Boxes, made: Boxes) -> Boxes:
    """A patch-wise operator's output lies where its one local operand does."""
    return tuple(m if b is None or m is None else b for b, m in zip(own, made, strict=True))


def _boxes(
    analysis: Analysis,
    value: ValueId,
    reaches: dict[ValueId, tuple[Reach | None, ...]],
    segments: tuple[slice, ...],
    alignment: object = None,
) -> Boxes:
    boxes: list[Box | None] = []
    for axis, reach in enumerate(reaches[value]):
        full = analysis.full_size(value, axis)
        if reach is None or full is None:
            boxes.append(None)
            continue
        modulus, residue = alignment(axis) if callable(alignment) else (1, 0)
        boxes.append(align(reach.segment(segments[axis]), full, modulus, residue))
    return tuple(boxes)


def _tail(analysis: Analysis) -> int:
    """How many of the last operators can run once for the rows of many batches.

    They are global operators on small values: the classifier's head.
    """
    graph = analysis.graph
    tail = 0
    for node in reversed(graph.nodes):
        operands = [v for v in node.operands() if analysis.kinds[v] is not Kind.CONSTANT]
        values = [*operands, *(v for v in node.outputs if v >= 0)]
        small = all(math.prod(graph.size(v, 1)) <= _TAIL_ELEMENTS for v in values)
        rows = all(
            graph.shapes[v] and graph.size(v, 5)[0] == 5 and graph.size(v, 7)[0] == 7
            for v in values
        )
        full = all(analysis.kinds[v] is Kind.FULL for v in values)
        if not (small and rows and full and operands):
            break
        tail += 1
    return tail
