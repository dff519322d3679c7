"""A group of windows: where its patches lie, which algorithms compute them, what that costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .._capture import ValueId
from .._operators import (
    Algorithm,
    Box,
    Boxes,
    Means,
    PatchRule,
    Reach,
    Rule,
    align,
    exact,
    same_boxes,
)
from .analysis import Analysis
from .cost import NodeCost, is_shared

__all__ = ["GroupPlan", "is_ragged", "plan_group"]


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


def plan_group(
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
            if is_shared(analysis, node):
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
            ragged = is_ragged(rule, means)
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


def is_ragged(rule: Rule, means: Means) -> bool:
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
