"""What is replayed on a GPU from map to map: groups with their graphs, and the base they read."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor

from .._kernels import GraphPool, graph_settings
from .base import FILL, Base
from .batches import Batches, GroupRun, RunStatistics, out_of_memory
from .group import Material, WindowGroup
from .replay import ReplayedGroup
from .replayed_base import ReplayedBase

__all__ = ["ReplayCache", "Replays"]

T = TypeVar("T")

# For each input: images that do not fit side by side come in parts of two sizes.
_KEPT = 2


class Replays:
    """All groups of a plan, and the base that they read."""

    def __init__(self, material: Material, base: Base) -> None:
        self.material = material  # alive, as its plan's identity is in the key
        self.base, pool = base.clone(), GraphPool()
        self._untouched = ReplayedBase(material, self.base)
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

    def make(self, inputs: tuple[Tensor, ...], fill: Tensor | None) -> Tensor:
        """Makes the base of the next images; the graph's output for them (see `ReplayedBase`)."""
        self.runs += 1
        return self._untouched.make(inputs, fill)

    def batches(self, statistics: RunStatistics) -> Generator[Batches, None, None]:
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

        def take() -> Replays:
            fill = base.kept.get(FILL)
            original = base.kept[material.plan.analysis.occluded]
            key = self._key(material, original, fill)
            found = self._find(key) or self._keep(key, Replays(material, base))
            found.load(base)
            return found

        with self._alone() as alone:
            yield self._where_there_is_room(take) if alone else None

    @contextmanager
    def made(
        self, material: Material, inputs: tuple[Tensor, ...], fill: Tensor | None
    ) -> Iterator[tuple[Replays, Tensor] | None]:
        """The groups of a plan that have run before, with the base of some images made.

        None as for `of`, and where they have not run.

        Args:
            material: what windows are computed from.
            inputs: the batched inputs, in the layout of activations.
            fill: what windows are filled with, where it is a tensor.
        """
        analysis = material.plan.analysis

        def take() -> tuple[Replays, Tensor] | None:
            original = inputs[analysis.graph.inputs.index(analysis.occluded)]
            found = self._find(self._key(material, original, fill))
            return None if found is None else (found, found.make(inputs, fill))

        with self._alone() as alone:
            yield self._where_there_is_room(take) if alone else None

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether no other thread has the groups; until then none gets them."""
        alone = self._lock.acquire(blocking=False)
        try:
            yield alone
        finally:
            if alone:
                self._lock.release()

    def _where_there_is_room(self, take: Callable[[], T | None]) -> T | None:
        try:
            return take()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            self._entries.clear()
            return None

    def _key(self, material: Material, original: Tensor, fill: Tensor | None) -> tuple[Any, ...]:
        covered = material.fill if fill is None else tuple(fill.shape), material.own_mean
        settings = graph_settings(original.device)
        return id(material.plan), original.shape[0], covered, *settings

    def _find(self, key: tuple[Any, ...]) -> Replays | None:
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
        return found

    def _keep(self, key: tuple[Any, ...], replays: Replays) -> Replays:
        while len(self._entries) >= self._most:
            self._entries.popitem(last=False)
        self._entries[key] = replays
        return replays
