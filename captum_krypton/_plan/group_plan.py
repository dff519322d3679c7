"""A group of windows: where its patches lie, which algorithms compute them, what that costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .._capture import Node, ValueId
from .._operators import Algorithm, Boxes, PatchRule, Positions, Rule, numbers, same_boxes
from .analysis import Analysis
from .cost import NodeCost, is_shared
from .workload import Workload

__all__ = ["GroupPlan", "plan_group"]


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
        rows: the most rows in a batch.
        positions: window positions of the group, over the window axes.
    """

    segments: tuple[Positions, ...]
    boxes: dict[ValueId, Boxes]
    algorithms: dict[ValueId, Algorithm]
    seconds: tuple[float, ...]
    macs: tuple[float, ...]
    call: float
    row_bytes: int
    rows: int
    positions: int


def plan_group(
    work: Workload,
    segments: tuple[Positions, ...],
    paired: bool,
    batch_size: Callable[[int], int],
    element_bytes: int,
) -> GroupPlan:
    """The plan of the windows at the positions of the segments.

    Args:
        work: what is to be planned.
        segments: for each window axis, the positions along it.
        paired: whether a window has the same position along all axes.
        batch_size: from the bytes of a row to the most rows in a batch.
        element_bytes: bytes of one element.
    """
    return _Planner(work, segments, paired).planned(batch_size, element_bytes)


class _Planner:
    """Goes through the operators and notes how each is computed for the windows of a group."""

    def __init__(self, work: Workload, segments: tuple[Positions, ...], paired: bool) -> None:
        self.work, self.segments, self.paired = work, segments, paired
        self.analysis, self.graph, self.rates = work.analysis, work.analysis.graph, work.means.rates
        occluded = self.analysis.occluded
        self.boxes: dict[ValueId, Boxes] = {occluded: work.boxes(occluded, segments)}
        self.algorithms: dict[ValueId, Algorithm] = {}
        self.rooms: dict[ValueId, float] = {}  # the share of a whole volume that memory is for
        self.seconds: list[float] = []
        self.macs: list[float] = []
        self.call = 0.0

    def planned(self, batch_size: Callable[[int], int], element_bytes: int) -> GroupPlan:
        """The plan of the group."""
        for node, rule, cost in self.work.operators():
            if rule is not None and not rule.on_volumes(self.boxes):
                self._on_patches(node, rule, cost)
            elif is_shared(self.analysis, node):
                self.seconds.append(0.0)
                self.macs.append(0.0)
            else:
                self._on_volumes(node, rule, cost)
        elements = _most_elements(self.analysis, self.boxes, self.algorithms, self.rooms)
        row_bytes = int(elements * element_bytes)
        lengths = [len(numbers(positions)) for positions in self.segments]
        return GroupPlan(
            self.segments,
            self.boxes,
            self.algorithms,
            tuple(self.seconds),
            tuple(self.macs),
            self.call,
            row_bytes,
            batch_size(row_bytes),
            lengths[0] if self.paired else math.prod(lengths),
        )

    def _local(self, node: Node) -> list[ValueId]:
        return [v for v in dict.fromkeys(node.operands()) if v in self.boxes]

    def _on_volumes(self, node: Node, rule: Rule | None, cost: NodeCost) -> None:
        local = self._local(node)
        if rule is not None:
            self.boxes.update((v, self.work.boxes(v, self.segments)) for v in rule.outputs)
            self.algorithms.update(dict.fromkeys(rule.outputs, Algorithm.TORCH))
        projected = sum(math.prod(self.graph.size(v, 1)) for v in local)
        self.seconds.append(cost.seconds + projected * self.rates.element)
        self.macs.append(cost.macs)
        self.rooms.update(dict.fromkeys(node.results, 1.0))
        self.call += self.rates.call * (1 + len(local))

    def _on_patches(self, node: Node, rule: Rule, cost: NodeCost) -> None:
        local, value = self._local(node), rule.outputs[0]
        self._place(rule)
        share, room = self._shares(value)
        algorithm, spent = rule.algorithm(self.boxes[value], self.work.means)
        if algorithm is not Algorithm.TORCH:
            self.call += self.rates.kernel
        else:
            self.call += self.rates.call
            moved = cost.elements * room * self.rates.element
            spent = cost.seconds * room if spent is None else spent + moved
            if all(box is None for box in self.boxes[value]):  # it reads patches, and base there
                sizes = {v: math.prod(self.graph.size(v, 1)) for v in local}
                read = sum(size * self.rooms.get(v, 1.0) for v, size in sizes.items())
                spent += 2 * read * self.rates.element
        assert spent is not None
        self.seconds.append(spent)
        self.macs.append(cost.macs * share)
        self.algorithms.update(dict.fromkeys(rule.outputs, algorithm))
        self.rooms.update(dict.fromkeys(node.results, room))

    def _shares(self, value: ValueId) -> tuple[float, float]:
        """How much of a whole volume patches have, by their cells and by their room."""
        sizes = [self.analysis.full_size(value, axis) for axis in range(len(self.segments))]
        present = [(b, n) for b, n in zip(self.boxes[value], sizes, strict=True) if b and n]
        room = math.prod(box.size / full for box, full in present)
        if not self.paired:
            return math.prod(float(box.cells.mean()) / full for box, full in present), room
        shares = [box.cells / full for box, full in present]
        return float(np.mean(math.prod(shares))), room

    def _place(self, rule: Rule) -> None:
        """Where the patches of the rule's outputs lie."""
        ragged, inherited = self.work.is_ragged(rule), rule.inherits()
        alignment = None if ragged else rule.alignment
        for value in rule.outputs:
            made = self.work.boxes(value, self.segments, alignment, ragged=ragged)
            if inherited is not None:
                made = _inherited(self.boxes[inherited], made)
            self.boxes[value] = made


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


def _inherited(own: Boxes, made: Boxes) -> Boxes:
    """A patch-wise operator's output lies where its one local operand does."""
    return tuple(m if b is None or m is None else b for b, m in zip(own, made, strict=True))
