"""How to run all windows: groups of like geometry, batches, and what they cost.

All patches of a batch have one size in memory at every operator. The paper gives all windows of a
map one size; here each axis is cut into a few segments of similar geometry, and every combination
of segments is a group with its own sizes, so that windows at the border, which reach less far,
cost less. The compiled kernels go further: they compute of every patch the cells that its own
window reaches, and no others.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .._call import WindowGrid
from .._capture import Node, ValueId, resolve
from .._kernels import Rates
from .._operators import (
    Algorithm,
    Box,
    Boxes,
    Kind,
    Means,
    PatchRule,
    Reach,
    Rule,
    align,
    exact,
    same_boxes,
)
from .analysis import Analysis, multiply_accumulates

__all__ = ["GroupPlan", "NodeCost", "Plan", "make_plan"]

_MAX_SEGMENTS = 6
_TAIL_ELEMENTS = 1 << 16  # a row of the tail's values is no larger than this


@dataclass(frozen=True)
class NodeCost:
    """What one operator of torch costs a row on whole volumes.

    Attributes:
        macs: multiply-accumulates (Eq. 13).
        elements: elements that it writes.
        seconds: predicted time.
    """

    macs: int
    elements: int
    seconds: float


@dataclass(frozen=True)
class GroupPlan:
    """Windows that share one patch size at every operator.

    Attributes:
        segments: for each window axis, the positions along it.
        boxes: where the patches of each local value lie, for the positions of the segments.
        algorithms: how each local value is computed.
        seconds: predicted time of each operator for one window, by its position in the graph.
        macs: mean multiply-accumulates of each operator for a window (Eq. 15).
        call: predicted time that a batch takes besides.
        row_bytes: memory that one window needs at the worst moment.
    """

    segments: tuple[slice, ...]
    boxes: dict[ValueId, Boxes]
    algorithms: dict[ValueId, Algorithm]
    seconds: tuple[float, ...]
    macs: tuple[float, ...]
    call: float
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
        threshold: the projective field threshold; 1 where the plan is exact.
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
        segments = tuple((tuple((s.start, s.stop) for s in cut), used) for cut, used in groups)
        return self.grid, self.images, self.batch_size, self.tail, self.threshold, segments

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why no operator works on patches, where none does."""
        if self.incremental:
            return ()
        return ("whole volumes are predicted to cost less than patches",)

    @property
    def batch_bytes(self) -> int:
        """Memory that one batch is expected to take at the worst moment."""
        return self.batch_size * max(group.row_bytes for group in self.groups)

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
        return sum(map(self.operator_macs, range(len(self.costs))))

    def operator_macs(self, number: int) -> float:
        """Mean multiply-accumulates of an operator for one window (Eq. 15)."""
        total = sum(group.macs[number] * group.positions for group in self.groups)
        return total / sum(group.positions for group in self.groups)

    @property
    def theoretical_speedup(self) -> float:
        """R: the saving in multiply-accumulates over the map (Eq. 17)."""
        return self.macs_full / self.macs_incremental if self.macs_incremental else 1.0

    def _batches(self, group: GroupPlan) -> int:
        return math.ceil(self.copies * group.positions / self.batch_size)

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


def node_costs(analysis: Analysis, rates: Rates) -> tuple[NodeCost, ...]:
    """What every operator costs a row on whole volumes."""
    graph = analysis.graph
    costs = []
    for node in graph.nodes:
        elements = sum(math.prod(graph.size(v, 1)) for v in node.outputs if v >= 0)
        macs = 0 if _is_shared(analysis, node) else multiply_accumulates(graph, node)
        rate = rates.linear
        if node.name in ("aten.convolution", "captum_krypton.convolution_block"):
            inner = graph.size(node.operands()[1], 1)[1]
            groups = resolve(node.bound()["groups"], graph.constants.__getitem__, 1)
            rate = rates.of_torch_convolution(groups, inner)
        costs.append(NodeCost(macs, elements, macs * rate + elements * rates.element))
    return tuple(costs)


def _is_shared(analysis: Analysis, node: Node) -> bool:
    """Whether the operator runs in the base alone."""
    return all(v < 0 or analysis.kinds[v] is Kind.IMAGE for v in node.outputs)


def make_plan(
    analysis: Analysis,
    grid: WindowGrid,
    axes: tuple[int, ...],
    *,
    means: Means,
    images: int,
    memory_budget: int,
    batch_bytes: int | None,
    most_rows: int,
    element_bytes: int,
    threshold: float = 1.0,
) -> Plan:
    """Cuts the axes into segments and chooses the batch size.

    Args:
        analysis: kinds, axes and rules.
        grid: the windows.
        axes: the input's dimensions (without the batch) that are window axes.
        means: what the plan may use.
        images: images in the input.
        memory_budget: bytes that the base and one batch may take.
        batch_bytes: bytes beyond which a batch is no faster; None where it always is.
        most_rows: the most rows that a batch may have.
        element_bytes: bytes of one element.
        threshold: the projective field threshold (Section 4.2).
    """
    windows = tuple(grid.along(dim) for dim in axes)
    reaches = analysis.reaches(windows, threshold)
    costs = node_costs(analysis, means.rates)
    best: Plan | None = None
    positions = [len(w.start) for w in windows]
    curves = [
        _Segmenter(analysis, reaches, costs, means, axis, positions[axis])
        for axis in range(len(axes))
    ]
    base = element_bytes * sum(math.prod(analysis.graph.size(v, 1)) for v in analysis.kept)
    side_by_side = max(1, min(images, int(memory_budget // 2 // max(base, 1))))
    room = max(memory_budget - base * side_by_side, memory_budget // 2)
    room = room if batch_bytes is None else min(room, batch_bytes)
    tail = _tail(analysis)
    most = _MAX_SEGMENTS if any(curve.matters for curve in curves) else 1
    worse = 0
    for count in range(1, min(most, max(positions, default=1)) + 1):
        cuts = [curve.cut(min(count, n)) for curve, n in zip(curves, positions, strict=True)]
        groups = tuple(
            _group(analysis, reaches, costs, means, segments, element_bytes)
            for segments in itertools.product(*cuts)
        )
        row_bytes = max(group.row_bytes for group in groups)
        batch = max(1, min(most_rows, room // max(row_bytes, 1)))
        memory = base * side_by_side + batch * row_bytes
        plan = Plan(
            analysis, grid, axes, groups, tail, side_by_side, batch, costs, memory, threshold
        )
        if best is None or plan.seconds < best.seconds:
            best, worse = plan, 0
            continue
        worse += 1
        if worse == 2:  # the second cut may pay only with the third: a map has two borders
            break
    assert best is not None
    return best


class _Segmenter:
    """Cuts one axis into segments of similar geometry, by dynamic programming over their cost.

    The cost of a segment is its number of positions times the sum over operators of cost and
    largest patch; along the other axes, every operator has its mean patch. Operators that compute
    each window's own cells do not count.
    """

    def __init__(
        self,
        analysis: Analysis,
        reaches: dict[ValueId, tuple[Reach | None, ...]],
        costs: tuple[NodeCost, ...],
        means: Means,
        axis: int,
        positions: int,
    ) -> None:
        sizes, weights = [], []
        for rule, cost in zip(analysis.rules, costs, strict=True):
            if rule is None:
                continue
            value = rule.outputs[0]
            if _is_ragged(rule, means):
                boxes = tuple(None if r is None else exact(r) for r in reaches[value])
                if rule.algorithm(boxes, means)[0] is not Algorithm.TORCH:
                    continue
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
                weights.append(cost.seconds * share)
        self.matters = any(weights)
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
    means: Means,
    segments: tuple[slice, ...],
    element_bytes: int,
) -> GroupPlan:
    rates, graph = means.rates, analysis.graph
    boxes: dict[ValueId, Boxes] = {}
    boxes[analysis.occluded] = _boxes(analysis, analysis.occluded, reaches, segments)
    algorithms: dict[ValueId, Algorithm] = {}
    seconds: list[float] = []
    macs: list[float] = []
    call = 0.0
    rooms: dict[ValueId, float] = {}
    for node, rule, cost in zip(graph.nodes, analysis.rules, costs, strict=True):
        local = [v for v in dict.fromkeys(node.operands()) if v in boxes]
        if rule is None or rule.on_volumes(boxes):
            if _is_shared(analysis, node):
                seconds.append(0.0)
                macs.append(0.0)
                continue
            if rule is not None:
                boxes.update((v, _boxes(analysis, v, reaches, segments)) for v in rule.outputs)
                algorithms.update(dict.fromkeys(rule.outputs, Algorithm.TORCH))
            projected = sum(math.prod(graph.size(v, 1)) for v in local)
            seconds.append(cost.seconds + projected * rates.element)
            share = room = 1.0
            call += rates.call * (1 + len(local))
        else:
            ragged = _is_ragged(rule, means)
            for value in rule.outputs:
                alignment = None if ragged else rule.alignment
                made = _boxes(analysis, value, reaches, segments, alignment, ragged=ragged)
                inherited = rule.inherits()
                if inherited is not None:
                    made = _inherited(boxes[inherited], made)
                boxes[value] = made
            value = rule.outputs[0]
            share = room = 1.0
            for axis, box in enumerate(boxes[value]):
                full = analysis.full_size(value, axis)
                if box is not None and full is not None:
                    share *= float(box.cells.mean()) / full
                    room *= box.size / full
            algorithm, spent = rule.algorithm(boxes[value], means)
            algorithms.update(dict.fromkeys(rule.outputs, algorithm))
            if algorithm is not Algorithm.TORCH:
                call += rates.kernel
            else:
                call += rates.call
                moved = cost.elements * room * rates.element
                spent = cost.seconds * room if spent is None else spent + moved
                if all(box is None for box in boxes[value]):  # it reads patches, and the base there
                    read = sum(math.prod(graph.size(v, 1)) * rooms.get(v, 1.0) for v in local)
                    spent += 2 * read * rates.element
            assert spent is not None
            seconds.append(spent)
        macs.append(cost.macs * share)
        rooms.update(dict.fromkeys(node.results, room))
    return GroupPlan(
        segments,
        boxes,
        algorithms,
        tuple(seconds),
        tuple(macs),
        call,
        int(_most_elements(analysis, boxes, algorithms, rooms) * element_bytes),
    )


def _most_elements(
    analysis: Analysis,
    boxes: dict[ValueId, Boxes],
    algorithms: dict[ValueId, Algorithm],
    rooms: dict[ValueId, float],
) -> float:
    """Elements that one window needs at the worst moment.

    Args:
        analysis: kinds, axes and rules.
        boxes: where the patches of each local value lie.
        algorithms: how each local value is computed.
        rooms: the share of the whole volume that each computed value's memory is.
    """
    graph = analysis.graph
    last_use = graph.last_uses()
    live: dict[ValueId, float] = {}
    most = 0.0
    for i, (node, rule) in enumerate(zip(graph.nodes, analysis.rules, strict=True)):
        made = {v: rooms[v] * math.prod(graph.size(v, 1)) for v in node.results if v in rooms}
        if not made:
            continue
        gathered = 0.0
        for value in dict.fromkeys(node.operands()):
            if value not in boxes or algorithms.get(node.results[0]) not in (None, Algorithm.TORCH):
                continue  # kernels read in place
            full = math.prod(graph.size(value, 1))
            if rule is None or rule.on_volumes(boxes):
                gathered += full
            elif all(box is None for box in boxes[node.results[0]]):
                gathered += 2 * full * rooms.get(value, 1.0)
            elif not isinstance(rule, PatchRule) or not same_boxes(
                boxes[value], boxes[node.results[0]]
            ):
                gathered += full * max(rooms.get(value, 1.0), rooms[node.results[0]])
        live.update(made)
        most = max(most, sum(live.values()) + gathered)
        for value in (*node.operands(), *made):
            if last_use.get(value, -1) <= i and value != graph.output:
                live.pop(value, None)
    return most


def _is_ragged(rule: Rule, means: Means) -> bool:
    """Whether every window's patch lies at its own cells.

    Only where kernels gain by it, and only for numbers: what lies beyond a patch's own cells goes
    through operators of torch too, unread.
    """
    dtypes = rule.view.graph.dtypes
    return means.kernels and rule.ragged and all(dtypes[v].is_floating_point for v in rule.outputs)


def _inherited(own: Boxes, made: Boxes) -> Boxes:
    """A patch-wise operator's output lies where its one local operand does."""
    return tuple(m if b is None or m is None else b for b, m in zip(own, made, strict=True))


def _boxes(
    analysis: Analysis,
    value: ValueId,
    reaches: dict[ValueId, tuple[Reach | None, ...]],
    segments: tuple[slice, ...],
    alignment: object = None,
    *,
    ragged: bool = False,
) -> Boxes:
    boxes: list[Box | None] = []
    for axis, reach in enumerate(reaches[value]):
        full = analysis.full_size(value, axis)
        if reach is None or full is None:
            boxes.append(None)
            continue
        if ragged:
            boxes.append(exact(reach.segment(segments[axis])))
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
