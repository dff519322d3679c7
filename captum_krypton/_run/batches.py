"""The windows of one group in batches, each run operator by operator."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._capture import Node, ValueId
from .._operators import Frame, Kind, Step, same_boxes, whole_step
from .group import WindowGroup
from .head import Clock, untimed
from .interpreter import store
from .occluded import OccludedPatches

__all__ = ["Batch", "Batches", "GroupRun", "RunStatistics", "out_of_memory"]

Batches = Iterator[tuple[int, Tensor, dict[ValueId, Tensor]]]  # rows, places, the head's values


@dataclass
class RunStatistics:
    """What a run did.

    Attributes:
        batches: batches run.
        batch_size: the most rows in a batch at the end.
        spent: seconds of every operator on windows, by its first result.
        replayed: batches that were replayed from a CUDA graph.
        wait: waits for the device, where operators are to be timed one by one.
    """

    batches: int = 0
    batch_size: int = 0
    spent: dict[ValueId, float] = field(default_factory=dict)
    replayed: int = 0
    wait: Callable[[], None] = lambda: None

    @contextmanager
    def clock(self, node: Node) -> Iterator[None]:
        """Counts the time of the block as the operator's."""
        value = node.results[0]
        self.wait()
        started = time.perf_counter()
        yield
        self.wait()
        self.spent[value] = self.spent.get(value, 0.0) + time.perf_counter() - started


@dataclass
class Batch:
    """Neighbouring rows of a group (see `captum_krypton._operators.Frame`)."""

    start: int
    rows: int
    values: dict[ValueId, Tensor] = field(default_factory=dict)

    def of(self, table: Tensor) -> Tensor:
        return table[self.start : self.start + self.rows]


class GroupRun:
    """The steps that compute the windows of a group, and the batches that they run in."""

    def __init__(self, group: WindowGroup) -> None:
        self.group, self.material = group, group.material
        self.order = self.group.order
        self.steps: list[tuple[Node, Step, tuple[ValueId, ...]]] = []
        self.readers: dict[ValueId, Callable[[Frame], Tensor]] = {}
        if len(self.order):
            self.occluded = OccludedPatches(group)
            self.steps = list(self._steps())
            self.readers = {v: group.whole(v) for v in group.material.frontier}

    def _steps(self) -> Iterator[tuple[Node, Step, tuple[ValueId, ...]]]:
        group, analysis = self.group, self.group.analysis
        graph, plan = group.graph, group.plan
        nodes = graph.nodes[: len(graph.nodes) - plan.head]
        needed = self.material.frontier
        last_use = graph.last_uses()
        for i, node in enumerate(nodes):
            outputs = [v for v in node.outputs if v >= 0]
            if all(analysis.kinds[v] is Kind.IMAGE for v in outputs):
                continue
            rule = analysis.rules[i]
            if rule is None:
                step = whole_step(node, group)
            elif self._is_whole(node, outputs):
                step = rule.whole_step(group)
            else:
                step = rule.step(group)
            values = {*node.operands(), *outputs}
            gone = tuple(v for v in values if last_use.get(v, -1) <= i and v not in needed)
            yield node, step, gone

    def _is_whole(self, node: Node, outputs: list[ValueId]) -> bool:
        """Whether the operator's local operands and outputs are whole volumes in this group."""
        group = self.group
        local = [v for v in (*node.operands(), *outputs) if group.analysis.kinds[v] is Kind.LOCAL]
        return all(same_boxes(group.boxes(v), group.whole_boxes(v)) for v in local)

    def batches(self, statistics: RunStatistics, start: int = 0) -> Batches:
        """Runs the group from a row on."""
        total = len(self.order)
        most = min(statistics.batch_size, self.group.planned.rows)
        rest = -(-(total - start) // most)
        while start < total:
            most = min(statistics.batch_size, self.group.planned.rows)
            rows = min(most, -(-(total - start) // max(rest, 1)))
            try:
                values = self.values(Batch(start, rows), statistics.clock)
            except RuntimeError as error:
                if rows == 1 or not out_of_memory(error):
                    raise
                statistics.batch_size = rows // 2
                continue
            statistics.batches += 1
            rest -= 1
            yield rows, self.order[start : start + rows], values
            start += rows

    def values(self, frame: Frame, clock: Clock = untimed) -> dict[ValueId, Tensor]:
        """Runs the rows of a frame; what the head reads."""
        frame.values[self.group.analysis.occluded] = self.occluded(frame)
        for node, step, gone in self.steps:
            with clock(node):
                store(frame.values, node, step(frame))
            for value in gone:
                frame.values.pop(value, None)
        return {v: read(frame) for v, read in self.readers.items()}


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocation failed, on any device."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text
