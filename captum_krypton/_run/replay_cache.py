"""What is replayed on a GPU from map to map: groups with their graphs, and the base they read."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .._kernels import GraphPool, graph_settings
from .base import FILL, Base
from .batches import Batches, GroupRun, RunStatistics, out_of_memory
from .group import Material, WindowGroup
from .replay import ReplayedGroup

__all__ = ["ReplayCache", "Replays"]

# For each input: images that do not fit side by side come in parts of two sizes.
_KEPT = 2


class Replays:
    """All groups of a plan, and the base that they read."""

    def __init__(self, material: Material, base: Base) -> None:
        self.material = material  # alive, as its plan's identity is in the key
        self.base, pool = base.clone(), GraphPool()
        self.groups = [
            ReplayedGroup(GroupRun(WindowGroup(material, group, self.base)), pool)
            for group in material.plan.groups
        ]
        self.runs = 0

    def load(self, base: Base) -> None:
        """Takes the base of the next images."""
        if self.runs:
            self.base.load(base)
        self.runs += 1

    def batches(self, statistics: RunStatistics) -> Iterator[Batches]:
        """The batches of one group after another."""
        for group in self.groups:
            yield group.batches(statistics, again=self.runs > 1)


class ReplayCache:
    """The groups that ran last, by what their graphs depend on.

    One thread has them at a time; others run their batches by the operators.

    Args:
        inputs: how many inputs are occluded in turn.
    """

    def __init__(self, inputs: int = 1) -> None:
        self._most = _KEPT * inputs
        self._entries: OrderedDict[tuple[Any, ...], Replays] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def of(self, material: Material, base: Base) -> Iterator[Replays | None]:
        """The groups of a plan, with a base loaded.

        None while another thread has them, and where there is no memory for them.
        """
        if not self._lock.acquire(blocking=False):
            yield None
            return
        try:
            try:
                found = self._take(material, base)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                self._entries.clear()
                found = None
            yield found
        finally:
            self._lock.release()

    def _take(self, material: Material, base: Base) -> Replays:
        original = base.kept[material.plan.analysis.occluded]
        fill = tuple(base.kept[FILL].shape) if FILL in base.kept else material.fill
        covered = fill, material.own_mean
        key = (id(material.plan), original.shape[0], covered, *graph_settings(original.device))
        if key not in self._entries:
            while len(self._entries) >= self._most:
                self._entries.popitem(last=False)
            self._entries[key] = Replays(material, base)
        self._entries.move_to_end(key)
        self._entries[key].load(base)
        return self._entries[key]
