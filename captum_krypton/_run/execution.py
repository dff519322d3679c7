"""Runs a plan: materialises the base, then gathers, applies and projects, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .._capture import ValueId
from .._kernels import arena, trim
from .._operators import Mask
from .._plan import Analysis
from .base import FILL, Base
from .batches import Batches, GroupRun, RunStatistics
from .begun import Begun
from .group import Material, Selection, WindowGroup
from .head import Head
from .layout import in_layout
from .replay_cache import ReplayCache

__all__ = ["Bases", "Execution"]

Outcome = Callable[[Tensor, Tensor], Tensor]
Bases = dict[int, tuple[Analysis, Tensor, dict[ValueId, Tensor]]]  # by the analysis's `id`

# Room for the outputs of kernels, in batches: holes lie between them, and the head's wait there.
# What is not needed is not touched.
_ARENA = 4
# Outputs that wait for the untouched outcome, where batches are replayed before that is asked for.
_WAITING_BYTES = 1 << 26


class Execution:
    """Runs of a plan over some images: all windows at once, or some of them at a time.

    Args:
        material: what the windows are computed from.
        inputs: the batched inputs, each (N, ...).
        baseline: what the windows are filled with: a number, or a tensor of shape (1, ...) or
            (N, ...) that has the occluded input's shape otherwise.
        outcome: from output rows and their image numbers to the outcome rows that are kept.
        reference: gives the outcome rows of the untouched images, (N, ...): those of windows that
            cannot reach what the outcome depends on.
        on_base: told the graph's output for the untouched images, before any window is run.
        replays: groups that are kept from run to run, so that their batches can be replayed; None
            where every batch is run by its operators.
        bases: the values of all images by their analysis, for runs that differ in their baseline
            alone; None where they are not to be kept.
    """

    def __init__(
        self,
        material: Material,
        inputs: tuple[Tensor, ...],
        baseline: Tensor | float,
        outcome: Outcome,
        reference: Callable[[], Tensor],
        *,
        on_base: Callable[[slice, Tensor], None] = lambda images, output: None,
        replays: ReplayCache | None = None,
        bases: Bases | None = None,
    ) -> None:
        self.material, self.plan = material, material.plan
        self.inputs, self.baseline = inputs, baseline
        self.outcome, self.reference = outcome, reference
        self.on_base, self.replays, self.bases = on_base, replays, bases
        self.statistics = RunStatistics(batch_size=self.plan.batch_size)
        self.images = inputs[0].shape[0]
        self._memory_held = False

    def run(
        self,
        progress: Callable[[int], None],
        begun: Begun | None = None,
        again: Sequence[int] = (),
    ) -> Tensor:
        """Outcomes of all windows, (N, windows, ...), windows in row-major order.

        Args:
            progress: told the number of windows of every batch that has been run.
            begun: windows whose outcomes there are.
            again: windows to run even so.
        """
        known = [] if begun is None else sorted(set(begun.windows).difference(again))
        selected = np.ones((self.images, self.plan.grid.total), bool)
        selected[:, known] = False
        scores = torch.cat(
            [self._part(images, progress, selected[images]) for images in self.side_by_side()]
        )
        if begun is not None and known:
            scores[:, known] = begun.scores(known).movedim(0, 1).to(scores.dtype)
            progress(len(known) * self.images)
        return scores

    def _part(self, images: slice, progress: Callable[[int], None], selected: Selection) -> Tensor:
        """Outcomes of the windows of images that lie side by side."""
        if self.replays is None or self.bases is not None or not selected.all():
            return self.evaluate(images, self.materialise(images), progress, selected)
        with self.replays.made(self.material, self._inputs(images), self._fill(images)) as made:
            if made is not None:
                replays, output = made
                unreached = self.plan.unreached * (images.stop - images.start)
                groups = replays.batches(self.statistics)
                asked = partial(self.on_base, images, output)
                return self._evaluated(images, groups, progress, unreached, asked)
        return self.evaluate(images, self.materialise(images), progress)

    def side_by_side(self) -> Iterator[slice]:
        """The images in parts whose bases fit in memory together."""
        for first in range(0, self.images, self.plan.images):
            yield slice(first, min(first + self.plan.images, self.images))

    @contextmanager
    def memory(self) -> Iterator[None]:
        """Keeps the memory of batches from one `evaluate` to the next."""
        room = _ARENA * self.plan.batch_bytes if self.inputs[0].is_cpu else 0
        with arena(room):
            self._memory_held = True
            try:
                yield
            finally:
                self._memory_held = False

    def materialise(self, images: slice) -> Base:
        """The base of some images, for this plan and others of its analysis."""
        output, values = self._values(images)
        self.on_base(images, output)
        kept, fill = dict(values), self._fill(images)
        if fill is not None:
            kept[FILL] = fill
        return Base(kept, self.material.channels_last)

    def _fill(self, images: slice) -> Tensor | None:
        """What the windows of some images are filled with, where it is a tensor."""
        if not isinstance(self.baseline, Tensor):
            return None
        return self.baseline if self.baseline.shape[0] == 1 else self.baseline[images]

    def _inputs(self, images: slice) -> tuple[Tensor, ...]:
        """The inputs of some images, in the layout of activations."""
        return tuple(in_layout(t[images], self.material.channels_last) for t in self.inputs)

    def _values(self, images: slice) -> tuple[Tensor, dict[ValueId, Tensor]]:
        """The graph's output for some untouched images, and the values that windows read."""
        analysis = self.plan.analysis
        if self.bases is not None and (found := self.bases.get(id(analysis))) is not None:
            return found[1:]
        output, kept = self.material.untouched(self._inputs(images))
        if self.bases is not None and self.images <= self.plan.images:  # else memory is short
            self.bases[id(analysis)] = analysis, output, kept
        return output, kept

    def evaluate(
        self,
        images: slice,
        base: Base,
        progress: Callable[[int], None],
        selected: Selection | None = None,
    ) -> Tensor:
        """Outcomes of the windows of some images, (images, windows, ...).

        Args:
            images: which images.
            base: from `materialise` for these images.
            progress: told the number of windows of every batch that has been run.
            selected: which windows to run; the others' outcomes hold anything.
        """
        if selected is None:
            unreached = self.plan.unreached * (images.stop - images.start)
        else:
            unreached = int((selected & ~self.plan.runs).sum())
        return self._evaluated(images, self._groups(base, selected), progress, unreached)

    def _evaluated(
        self,
        images: slice,
        groups: Generator[Batches, None, None],
        progress: Callable[[int], None],
        unreached: int,
        late: Callable[[], None] | None = None,
    ) -> Tensor:
        """Outcomes of the windows of some images, by the batches of one group after another.

        Args:
            images: which images.
            groups: the batches.
            progress: told the number of windows of every batch that has been run.
            unreached: how many of the windows asked for change no outcome.
            late: asks for the untouched outcome, which takes the host a while: only when all
                batches have been launched, or when too many of their outputs wait for it.
        """
        collected: _Collected | None = None
        waiting: list[tuple[Tensor, Tensor]] = []
        room = 0 if late is None else _WAITING_BYTES

        def collect() -> _Collected:
            nonlocal collected
            if collected is None:
                if late is not None:
                    late()
                collected = _Collected(self.reference()[images], self.plan.runs)
            for output, order in waiting:
                image = torch.div(order, self.plan.grid.total, rounding_mode="floor")
                collected.put(order, self.outcome(output, image + images.start))
            waiting.clear()
            return collected

        def finish(output: Tensor, order: Tensor) -> None:
            waiting.append((output, order))
            if sum(t.numel() * t.element_size() for t, _ in waiting) > room:
                collect()

        head = Head(self.plan, self.material.constants, finish, self.statistics.clock)
        with nullcontext() if self._memory_held else self.memory():
            with closing(groups):
                for batches in groups:
                    for rows, order, values in batches:
                        head.add(values, order)
                        progress(rows)
            head.flush()
        if unreached:
            progress(unreached)
        return collect().result()

    def _groups(self, base: Base, selected: Selection | None) -> Generator[Batches, None, None]:
        """The batches of one group after another."""
        if selected is not None and selected.all():
            selected = None
        if self.replays is not None and selected is None:
            with self.replays.of(self.material, base) as kept:
                if kept is not None:
                    yield from kept.batches(self.statistics)
                    return
        for number, group in enumerate(self.plan.groups):
            if number:
                trim()  # patches of another size follow
            windows = WindowGroup(self.material, group, base, selected)
            yield GroupRun(windows).batches(self.statistics)


class _Collected:
    """Outcome rows put in order as they arrive; those of windows that are not run are there.

    Args:
        reference: the outcome rows of the untouched images.
        runs: which windows are run, (windows,).
    """

    def __init__(self, reference: Tensor, runs: Mask) -> None:
        self.shape = len(reference), len(runs), *reference.shape[1:]
        if runs.all():
            self.rows = reference.new_empty(self.shape).flatten(0, 1)
        else:
            self.rows = reference.repeat_interleave(len(runs), 0)

    def put(self, order: Tensor, outcome: Tensor) -> None:
        self.rows.index_copy_(0, order, outcome)

    def result(self) -> Tensor:
        return self.rows.reshape(self.shape)
