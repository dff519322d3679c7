"""A group of windows: where its patches lie, which algorithms compute them, what that costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .._capture import ValueId
from .._operators import Algorithm, Boxes, PatchRule, Positions, Rule, numbers, same_boxes
from .workload import Operator, Workload

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
        self.analysis, self.rates = work.analysis, work.means.rates
        occluded = self.analysis.occluded
        self.boxes: dict[ValueId, Boxes] = {occluded: work.boxes(occluded, segments)}
        self.algorithms: dict[ValueId, Algorithm] = {}
        self.rooms: dict[ValueId, float] = {}  # the share of a whole volume that memory is for
        self.seconds: list[float] = []
        self.macs: list[float] = []
        self.call = 0.0

    def planned(self, batch_size: Callable[[int], int], element_bytes: int) -> GroupPlan:
        """The plan of the group."""
        for operator in self.work.operators:
            rule = operator.rule
            if rule is not None and not rule.on_volumes(self.boxes):
                self._on_patches(operator, rule)
            elif operator.shared:
                self.seconds.append(0.0)
                self.macs.append(0.0)
            else:
                self._on_volumes(operator)
        elements = _most_elements(self.work, self.boxes, self.algorithms, self.rooms)
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

    def _local(self, operator: Operator) -> list[ValueId]:
        return [v for v in operator.reads if v in self.boxes]

    def _on_volumes(self, operator: Operator) -> None:
        local, rule, cost = self._local(operator), operator.rule, operator.cost
        if rule is not None:
            self.boxes.update((v, self.work.boxes(v, self.segments)) for v in rule.outputs)
            self.algorithms.update(dict.fromkeys(rule.outputs, Algorithm.TORCH))
        projected = sum(self.work.elements[v] for v in local)
        self.seconds.append(cost.seconds + projected * self.rates.element)
        self.macs.append(cost.macs)
        self.rooms.update(dict.fromkeys(operator.makes, 1.0))
        self.call += self.rates.call * (1 + len(local))

    def _on_patches(self, operator: Operator, rule: Rule) -> None:
        value, cost = operator.makes[0], operator.cost
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
                local, elements = self._local(operator), self.work.elements
                read = sum(elements[v] * self.rooms.get(v, 1.0) for v in local)
                spent += 2 * read * self.rates.element
        assert spent is not None
        self.seconds.append(spent)
        self.macs.append(cost.macs * share)
        self.algorithms.update(dict.fromkeys(operator.makes, algorithm))
        self.rooms.update(dict.fromkeys(operator.makes, room))

    def _shares(self, value: ValueId) -> tuple[float, float]:
        """How much of a whole volume patches have, by their cells and by their room."""
        sizes = [self.analysis.full_size(value, axis) for axis in range(len(self.segments))]
        present = [(b, n) for b, n in zip(self.boxes[value], sizes, strict=True) if b and n]
        room = math.prod(box.size / full for box, full in present)
        if not self.paired:
            return math.prod(box.mean_cells / full for box, full in present), room
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
    work: Workload,
    boxes: dict[ValueId, Boxes],
    algorithms: dict[ValueId, Algorithm],
    rooms: dict[ValueId, float],
) -> float:
    """Elements that one window needs at the worst moment.

    Args:
        work: what is to be planned.
        boxes: where the patches of each local value lie.
        algorithms: how each local value is computed.
        rooms: the share of the whole volume that each computed value's memory is.
    """
    elements, last_use, output = work.elements, work.last_uses, work.analysis.graph.output
    live: dict[ValueId, float] = {}
    most = held = 0.0
    for i, operator in enumerate(work.operators):
        made = {v: rooms[v] * elements[v] for v in operator.makes if v in rooms}
        if not made:
            continue
        rule, value = operator.rule, operator.makes[0]
        gathered = 0.0
        if algorithms.get(value) in (None, Algorithm.TORCH):  # kernels read in place
            for read in operator.reads:
                if read not in boxes:
                    continue
                full = elements[read]
                if rule is None or rule.on_volumes(boxes):
                    gathered += full
                elif all(box is None for box in boxes[value]):
                    gathered += 2 * full * rooms.get(read, 1.0)
                elif not isinstance(rule, PatchRule) or not same_boxes(boxes[read], boxes[value]):
                    gathered += full * max(rooms.get(read, 1.0), rooms[value])
        live.update(made)
        held += sum(made.values())
        most = max(most, held + gathered)
        for value in (*operator.reads, *made):
            if last_use.get(value, -1) <= i and value != output:
                held -= live.pop(value, 0.0)
    return most


def _inherited(own: Boxes, made: Boxes) -> Boxes:
    """A patch-wise operator's output lies where its one local operand does."""
    return tuple(m if b is None or m is None else b for b, m in zip(own, made, strict=True))
