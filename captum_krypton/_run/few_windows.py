"""A model's first windows, run through the forward function while a graph would not pay."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from captum._utils.common import _select_targets
from torch import Tensor

from .._call import (
    Call,
    OcclusionMap,
    difference,
    map_of,
    progress,
    resolve_target,
    tolerance,
)
from .._capture import NotCapturable, Recording, graph_of, record, refuse_modules
from .._plan import default_memory_budget
from .begun import Begun
from .check import LOOSE, checked_windows
from .naive import naive_report, naive_scores

__all__ = ["FewWindows"]

# Capture, packed weights, a plan and a check take about as long as 16 to 20 windows (see
# docs/design.md). A model's first maps save less where they have fewer windows than this in all.
_SETUP_ROWS = 24
# Where a row takes long, what does not grow with it counts for less, and on the CPU rows gain
# nothing by company: their activations leave the caches as it is.
_LONG_SECONDS, _SETUP_LONG_ROWS = 0.3, 12
_ROWS_TOGETHER = {"cpu": 4}
_ROWS_TOGETHER_ELSEWHERE = 64
# After so many batches of them, larger ones where there is room: what they take is known by then.
_BATCHES, _MOST_ROWS = 2, 512
# A GPU runs windows sooner than its host captures a model, so there seconds are counted: of all
# that is made on first use, and of what any map by a graph takes at least.
_SETUP_SECONDS, _LEAST_SECONDS = 0.5, 0.02


class FewWindows:
    """A model's first windows, run through the forward function while a graph would not pay.

    Args:
        forward: the forward function.
        memory_budget: bytes for activations; None where nothing was asked for.
    """

    def __init__(self, forward: Callable[..., Any], memory_budget: int | None = None) -> None:
        self.forward, self.memory_budget = forward, memory_budget
        self._rows: Counter[Any] = Counter()  # of each kind of input, run so far
        self._spent: dict[Any, _Spent] = {}  # the same on GPUs, in seconds

    def takes(self, call: Call, kind: tuple[Any, ...]) -> bool:
        """Counts the call's windows in, where with those of its `kind` before they are so few."""
        rows = call.examples * sum(grid.total for grid in call.grids)
        if _on_gpu(call):
            if self.memory_budget is not None:
                return False  # what a batch of whole forward passes takes is not known
            if not self._spent.setdefault(kind, _Spent()).allows(rows):
                return False
        elif self._rows[kind] + rows > _SETUP_ROWS:
            return False
        arguments = zip(call.arguments, call.batched, strict=True)
        if any(isinstance(a, Tensor) and not batched for a, batched in arguments):
            return False  # Captum repeats it for several windows
        try:
            refuse_modules(self.forward)
        except NotCapturable:
            return False
        self._rows[kind] += rows
        return True

    def maps(
        self, call: Call, kind: Any, show_progress: bool | None
    ) -> tuple[OcclusionMap, ...] | Begun | None:
        """The maps by the forward function itself, a few windows at a time.

        Windows that run together must not change each other's outcome. The untouched inputs and the
        first windows are recorded, and the recordings asked what a capture is asked; one window of
        each input is run alone too.

        Returns:
            The maps, or None where this does not hold, or where the forward fails or draws random
            numbers (a capture says why). Where it takes so long that a graph does pay, what has
            been begun of the map of one input, else None.
        """
        try:
            return self._maps(call, kind, show_progress)
        except Exception:  # said by the path that follows, if it is met there too
            return None

    def _maps(
        self, call: Call, kind: Any, show_progress: bool | None
    ) -> tuple[OcclusionMap, ...] | Begun | None:
        maps: list[OcclusionMap] = []
        windows = sum(grid.total for grid in call.grids)
        started = time.perf_counter()
        untouched = record(self.forward, call.arguments, call.batched)
        output = untouched.result
        if output.shape[:1] != (call.examples,):
            return None
        target = resolve_target(output, call.target)
        reference = _select_targets(output, target)
        spent = self._spent.get(kind)
        seconds = time.perf_counter() - started  # on a GPU the first one loads libraries
        long = spent is None and seconds > _LONG_SECONDS * call.examples
        if long and windows * call.examples > _SETUP_LONG_ROWS:
            return None
        step = self._windows_together(call, long)
        together = replace(call, perturbations=step)
        with progress(call, show_progress, windows) as advance:
            if spent is not None:
                advance = spent.watched(advance, call)
            for position, grid in enumerate(call.grids):
                forward = _Questioned(self.forward, call, untouched)
                begun = self._begun(forward, together, position, target)
                most = _BATCHES * step
                while begun.left:
                    if len(begun.windows) == most and call.perturbations is None:
                        begun.step = max(step, self._rows_that_fit(untouched) // call.examples)
                    rows = begun.run_batch() * call.examples
                    try:
                        advance(rows)
                    except _GraphPaysError as pays:
                        begun.of_window = pays.of_row * call.examples
                        return begun if _is_kept(begun, call) else None
                if not self._alone_as_together(together, position, target, begun, reference):
                    return None
                scores = begun.scores(list(range(grid.total)))
                reason = f"a graph would not pay yet: {windows} windows are too few"
                report = naive_report("naive", reason, grid.total, step, call, started)
                maps.append(map_of(grid, scores.movedim(0, 1), reference, target, report))
                started = time.perf_counter()
        return tuple(maps)

    def _begun(self, forward: _Questioned, together: Call, position: int, target: Any) -> Begun:
        """The windows of an input, none of them run: first those that a plan is checked with."""

        def run(windows: list[int]) -> Tensor:
            asked = replace(together, perturbations=len(windows))
            return naive_scores(
                forward, asked, position, target, windows, lambda rows: None, captum=False
            )

        grid, order = together.grids[position], list[int]()
        if _on_gpu(together):
            order = checked_windows(grid.counts, np.ones(grid.total, bool))
        order += sorted(set(range(grid.total)).difference(order))
        return Begun(run, order, together.perturbations or 1)

    def _windows_together(self, call: Call, long: bool) -> int:
        """How many windows run together; `long` says whether a row takes long."""
        device = call.inputs[0].device.type
        rows = _ROWS_TOGETHER.get(device, _ROWS_TOGETHER_ELSEWHERE)
        if device == "cpu" and long:
            rows = 1
        rows = min(rows, (call.perturbations or rows) * call.examples)
        return max(1, rows // call.examples)

    def _rows_that_fit(self, untouched: Recording) -> int:
        """How many rows a GPU has room for: as if no value were given up before the last."""
        if not untouched.result.is_cuda:
            return 0
        every = sum(
            math.prod(shape) * untouched.dtypes[value].itemsize
            for value, shape in untouched.shapes.items()
            if value not in untouched.leaves
        )
        of_row = every / max(1, untouched.result.shape[0])
        free = default_memory_budget(untouched.result.device)
        return min(_MOST_ROWS, 1 << int(max(1, free / max(1.0, of_row))).bit_length() - 1)

    def _alone_as_together(
        self,
        together: Call,
        position: int,
        target: Any,
        begun: Begun,
        reference: Tensor,
    ) -> bool:
        """Whether a window from within a batch has the same outcome in a batch of its own.

        On a GPU another size of batch is another algorithm, and TF32 has a mantissa of ten bits.
        There it is held closely to a batch of the same size, with other windows in it.
        """
        step, total = together.perturbations or 1, together.grids[position].total
        window = total // 2
        window += (1 - window) % step  # neither the first nor, of four, the last in its batch
        window = window if window < total else min(1, total - 1)
        if begun.place(window)[1] == 1:  # one of a larger batch, if there was one
            window = max(begun.windows, key=lambda w: begun.place(w)[1])
        place, size = begun.place(window)
        if size == 1:
            return True

        def again(windows: list[int], rows: int) -> Tensor:
            asked = replace(together, perturbations=rows)
            return naive_scores(
                self.forward, asked, position, target, windows, lambda rows: None, captum=False
            )

        made, alone = begun.scores([window]), again([window], 1)
        allowed = tolerance(alone, reference)
        if _on_gpu(together):
            companions = [(window + 1) % total] * (size - 1)
            place = (place + 1) % size  # another one, where there is another
            moved = again([*companions[:place], window, *companions[place:]], size)
            if not difference(made, moved[[place]]) <= allowed:
                return False
            if alone.dtype is torch.float32:
                allowed *= LOOSE
        return difference(made, alone) <= allowed


class _Questioned:
    """A forward function whose first call is asked whether it mixes the rows of its batch.

    Args:
        forward: the forward function.
        call: the call that its batches belong to.
        untouched: the recording of that call's own inputs.
    """

    def __init__(self, forward: Callable[..., Any], call: Call, untouched: Recording) -> None:
        self._forward, self._call, self._untouched = forward, call, untouched
        self._asked = False

    def __call__(self, *arguments: Any) -> Any:
        """Calls the forward function.

        Raises:
            NotCapturable: where the rows of its batch are mixed.
        """
        rows = arguments[0].shape[0]
        if self._asked or rows == self._call.examples:
            return self._forward(*arguments)
        self._asked = True
        several = record(self._forward, arguments, self._call.batched, profile=False)
        graph_of(self._untouched, several, (self._call.examples, rows))
        return several.result


class _GraphPaysError(Exception):
    """A map takes so long that a graph pays; `of_row` is what a row of it takes, in seconds."""

    def __init__(self, of_row: float) -> None:
        super().__init__(of_row)
        self.of_row = of_row


class _Spent:
    """What a model's windows have taken on a GPU so far, while a graph would not pay."""

    def __init__(self) -> None:
        self.total, self.of_row = 0.0, math.inf  # seconds
        self.warm = False  # whether all that is made on first use has been made

    def allows(self, rows: int) -> bool:
        """Whether so many more may follow."""
        return self.total < _SETUP_SECONDS or rows * self.of_row < _LEAST_SECONDS

    def watched(self, advance: Callable[[int], None], call: Call) -> Callable[[int], None]:
        """`advance`, which raises as soon as a call is seen to take more than is left."""
        rows = call.examples * sum(grid.total for grid in call.grids)
        done, since, before = 0, time.perf_counter(), 0

        def watching(more: int) -> None:
            nonlocal done, since, before
            if call.inputs[0].is_cuda:
                torch.cuda.synchronize(call.inputs[0].device)
            now, done = time.perf_counter(), done + more
            if self.warm or done > more:
                self.of_row = (now - since) / (done - before)
            if done == more and not self.warm:
                since, before = now, done
            needed = rows * self.of_row
            if done == rows:
                self.total += needed if needed < math.inf else 0.0
                self.warm = True
            elif _LEAST_SECONDS <= needed < math.inf and needed > _SETUP_SECONDS - self.total:
                self.total = math.inf
                raise _GraphPaysError(self.of_row)
            advance(more)

        return watching


def _is_kept(begun: Begun, call: Call) -> bool:
    """Whether what was begun may be part of a map by the graph.

    In 16 bits it may not: what the graph rounds otherwise is no drop only among its own outcomes.
    """
    half = begun.scores(begun.windows[:1]).dtype in (torch.float16, torch.bfloat16)
    return len(call.grids) == 1 and not half


def _on_gpu(call: Call) -> bool:
    return call.inputs[0].is_cuda
