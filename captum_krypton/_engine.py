"""One call from checked arguments to maps: capture, plan, run, compare."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from captum._utils.common import _run_forward, _select_targets
from torch import Tensor

from ._approximate import Approximation, make_maps
from ._call import (
    Call,
    OcclusionMap,
    Predicted,
    Report,
    Settings,
    progress,
    resolve_target,
    signature,
)
from ._capture import Capture, NotCapturable, watched
from ._growing import growing_maps
from ._kernels import calibration_of
from ._plan import Plan
from ._run import (
    Answer,
    Begun,
    CapturedModel,
    Fallback,
    FewWindows,
    InputRun,
    ModelCache,
    RunStatistics,
    Stale,
    Untouched,
    check_refused,
)

__all__ = ["Engine"]

T = TypeVar("T")


class Engine:
    """Makes maps for one forward function, and keeps its captures.

    Args:
        forward: the forward function.
        settings: how maps are made.
    """

    def __init__(self, forward: Callable[..., Any], settings: Settings) -> None:
        self.forward, self.settings = forward, settings
        self.cache = ModelCache()
        self.few = FewWindows(forward, settings.memory_budget)

    def samples(
        self, calls: Sequence[Call], show_progress: bool | None, approximation: Approximation
    ) -> list[tuple[OcclusionMap, ...]]:
        """The maps of calls that differ in their baselines alone: untouched inputs are run once.

        Args:
            calls: the checked arguments.
            show_progress: whether to show a progress bar over the windows of each.
            approximation: how the maps may differ from the exact ones.

        Raises:
            Fallback: where the forward function must be run itself, for every window.
        """
        kept: list[Untouched] | None = [] if len(calls) > 1 else None
        return [self.maps(call, show_progress, approximation, kept=kept) for call in calls]

    def maps(
        self,
        call: Call,
        show_progress: bool | None,
        approximation: Approximation,
        ran: list[tuple[Plan, RunStatistics]] | None = None,
        kept: list[Untouched] | None = None,
    ) -> tuple[OcclusionMap, ...]:
        """One map for each input.

        Args:
            call: the checked arguments.
            show_progress: whether to show a progress bar over the windows; None for a late one.
            approximation: how the maps may differ from the exact ones.
            ran: gets the plan of each input, and what running it took.
            kept: the untouched inputs of a call that differs in its baselines alone, if one was
                made before; gets those of this one for the next.

        Raises:
            Fallback: where the forward function must be run itself, for every window.
        """
        started = time.perf_counter()
        approximation.check(call)
        _refuse(call)
        kind = signature(call)
        begun = None
        if ran is None and not self.cache.knows(kind) and self.few.takes(call, kind):
            first = self.few.maps(call, kind, show_progress)
            if isinstance(first, tuple):
                return first
            begun = first
        launched = None
        if ran is None and kept is None and approximation.exact:
            launched = self._launched_first(call)
        timed, ran = ran is not None, [] if ran is None else ran

        def run(work: Untouched) -> tuple[OcclusionMap, ...]:
            ran.clear()  # of a run that was given up
            runs = self._runs(call, work, approximation, timed=timed)
            maps = self._made(call, runs, approximation, show_progress, started, ran)
            if kept is not None:
                kept[:] = [replace(work, begun=None)]
            return maps

        if launched is not None:
            try:
                return run(launched)
            except Stale:  # the model has changed: once more, in the ordinary order
                pass
        work = kept[0] if kept else self._untouched(call, approximation, begun)
        if kept is not None and work.bases is None:
            work = replace(work, bases={})
        return self._attempted(call, work, approximation, run)

    def growing(
        self, call: Call, approximation: Approximation
    ) -> Generator[OcclusionMap, None, None]:
        """Ever better maps of one image, the last one exact or as good as was asked for.

        Args:
            call: the checked arguments: one input, one example.
            approximation: what the maps begin with and where they end.

        Raises:
            Fallback: where the forward function must be run itself, for every window.
            RuntimeError: where the model, its mode or autocast has changed since the first map.
        """
        started = time.perf_counter()
        approximation.check(call)
        _refuse(call)
        call = call.detached()
        work = self._untouched(call, approximation)
        (run,) = self._runs(call, work, approximation)
        if not run.is_read:
            yield run.unread(0.0)
            return

        def begun(work: Untouched) -> tuple[Capture, OcclusionMap, Iterator[OcclusionMap]]:
            (run,) = self._runs(call, work, approximation)
            stages = growing_maps(approximation, run, started)
            return work.model.capture, next(stages), stages

        capture, first, stages = self._attempted(call, work, approximation, begun)
        yield first
        while True:
            if not capture.is_current(self.forward):
                raise RuntimeError(
                    "the model, its mode or autocast has changed since this map began to grow: "
                    "begin again"
                )
            following = next(stages, None)
            if following is None:
                return
            yield following

    def _untouched(
        self, call: Call, approximation: Approximation, begun: Begun | None = None
    ) -> Untouched:
        """The model as it is now, and its outcome for the untouched inputs."""
        begun = begun if approximation.exact else None
        model = self._model(call, begun=begun)
        approximation.check_model(model)
        fresh = not model.notes
        output, notes = self._reference(call, model)
        key = _way(call)
        if not fresh and model.notes.get(key) != notes:
            before, model = model, self._model(call, renew=True)
            approximation.check_model(model)
            if key not in before.notes and model.capture.says_the_same_as(before.capture):
                model.notes, model.checked = before.notes, before.checked
        model.notes[key] = notes
        target = resolve_target(output, call.target)
        answer = Answer.of(output, _select_targets(output, target))
        return Untouched(model, answer, target, begun=begun)

    def _launched_first(self, call: Call) -> Untouched | None:
        """The model and an answer that is not asked for before windows have been launched.

        On a GPU the forward function takes its host as long as many windows take the device. None
        where the answer must come first: where it says what the target is, or where nothing is
        known yet of what the forward function does.
        """
        if not (self.settings.cuda_graphs and _replays(call)) or len(call.inputs) > 1:
            return None
        if isinstance(call.target, Predicted) or not self.cache.knows(signature(call)):
            return None
        model, key = self._model(call), _way(call)
        known = model.notes.get(key)
        if known is None:
            return None

        def ask() -> tuple[Tensor, Tensor]:
            output, notes = self._reference(call, model)
            if notes != known:
                raise Stale("the forward function does something else than it did")
            return output, _select_targets(output, call.target)

        return Untouched(model, Answer(ask), call.target)

    def _attempted(
        self,
        call: Call,
        work: Untouched,
        approximation: Approximation,
        attempt: Callable[[Untouched], T],
    ) -> T:
        """What `attempt` gives: where the graph is stale, with the model captured anew."""
        try:
            return attempt(work)
        except Stale:
            model = self._model(call, renew=True)
        approximation.check_model(model)
        model.notes.update(work.model.notes)
        try:
            return attempt(replace(work, model=model, bases=None if work.bases is None else {}))
        except Stale as stale:
            raise Fallback(str(stale)) from None

    def plans(self, call: Call, approximation: Approximation) -> tuple[Plan, ...]:
        """The plan for each input."""
        approximation.check(call)
        _refuse(call)
        model = self._model(call)
        approximation.check_model(model)
        target = self.resolved_target(call)
        return tuple(
            model.plan_of(
                call,
                position,
                self.settings,
                approximation.threshold,
                model.part(call, position, target),
            )
            for position in range(len(call.inputs))
            if model.reads[position]
        )

    def digest(self, call: Call) -> str:
        """A digest of the graph that is captured for a call."""
        return self._model(call).digest

    def resolved_target(self, call: Call) -> Any:
        """The target as Captum takes it; runs the forward function only where it must."""
        if not isinstance(call.target, Predicted):
            return call.target
        try:
            output = _run_forward(self.forward, call.inputs, None, call.extra or None)
        except Exception as error:
            check_refused(self.forward, call, error)
            raise
        return resolve_target(output, call.target) if isinstance(output, Tensor) else None

    def _model(
        self, call: Call, *, renew: bool = False, begun: Begun | None = None
    ) -> CapturedModel:
        try:
            return self.cache.get(self.forward, call, renew=renew, begun=begun)
        except NotCapturable as refusal:
            raise Fallback(str(refusal)) from None
        except Exception as error:  # the user's function failed on rows of ours: Captum's path
            check_refused(self.forward, call, error)
            text = f"capturing the forward failed with {type(error).__name__}: {error}"
            raise Fallback(text) from error

    def _reference(self, call: Call, model: CapturedModel) -> tuple[Tensor, list[Any]]:
        """The forward function on the untouched inputs, and what it ran."""
        output, notes = watched(self.forward, call.arguments, model.capture.leaves)
        if not isinstance(output, Tensor) or output.dim() == 0:
            raise Fallback("the forward returns one number for the whole batch")
        if output.shape[0] != call.examples:
            raise Fallback("the forward does not return one row an example")
        return output.detach(), notes

    def _runs(
        self, call: Call, work: Untouched, approximation: Approximation, *, timed: bool = False
    ) -> list[InputRun]:
        """The windows of each input."""
        return [
            InputRun(
                self.forward,
                call,
                work,
                position,
                self.settings,
                approximation.threshold,
                timed=timed,
            )
            for position in range(len(call.inputs))
        ]

    def _made(
        self,
        call: Call,
        runs: list[InputRun],
        approximation: Approximation,
        show_progress: bool | None,
        started: float,
        ran: list[tuple[Plan, RunStatistics]],
    ) -> tuple[OcclusionMap, ...]:
        """The maps of all inputs; `ran` gets what made them."""
        plans = [run.plan for run in runs if run.is_read]
        windows = sum(plan.grid.total for plan in plans)
        setup = time.perf_counter() - started  # counted with the first input
        maps = []
        with progress(call, show_progress, windows) as advance:
            for run in runs:
                began = time.perf_counter()
                if not run.is_read:
                    maps.append(run.unread(setup + time.perf_counter() - began))
                    setup = 0.0
                    continue
                ordinary = approximation.exact and not run.timed
                if ordinary and run.pace.leaves_plan:
                    maps.append(run.map_by_forward(advance, setup))
                    setup = 0.0
                    continue
                made = make_maps(approximation, run, advance)
                _wait(made.maps.scores)
                check = time.perf_counter()
                error = run.check(made.checked)
                now = time.perf_counter()
                report = replace(
                    made.maps.report(run, made.execution, made.speedup),
                    seconds=setup + now - began,
                    setup_seconds=setup + now - check,
                    largest_check_error=error,
                )
                if ordinary:  # else it is no prediction of this run
                    _observe(run.device, report)
                    run.pace.saw_plan(check - began, run.grid.total)
                ran.append((run.plan, made.execution.statistics))
                maps.append(run.map(made.maps.scores, report))
                setup = 0.0
        return tuple(maps)


def _replays(call: Call) -> bool:
    """Whether batches may be replayed."""
    return call.inputs[0].is_cuda


def _way(call: Call) -> tuple[Any, ...]:
    """What a forward function may do other operators by, though it is the same function."""
    return call.examples, call.inputs[0].is_inference(), torch.is_inference_mode_enabled()


def _observe(device: torch.device, report: Report) -> None:
    """Holds the rates that a map was planned with against its time.

    A batch that is replayed has no launches, which were counted: its prediction is an upper bound.
    """
    replayed = report.batches_replayed > 0
    seconds = report.seconds - report.setup_seconds
    calibration_of(device).observe(report.predicted_seconds, seconds, at_most=replayed)


def _wait(tensor: Tensor) -> None:
    """Waits for the tensor's device, so that a time is that of its work."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def _refuse(call: Call) -> None:
    """Raises Fallback for inputs that only Captum's own arithmetic can be asked about."""
    for i, (tensor, baseline) in enumerate(zip(call.inputs, call.baselines, strict=True)):
        if tensor.dim() < 2:
            raise Fallback(f"inputs[{i}] has no dimension besides the batch", quiet=True)
        if tensor.numel() == 0:
            raise Fallback(f"inputs[{i}] is empty", quiet=True)
        if tensor.dtype is torch.bool or tensor.is_complex():
            raise Fallback(f"inputs[{i}] is of type {tensor.dtype}")
        if torch.result_type(tensor, baseline) != tensor.dtype:
            raise Fallback(
                f"baselines[{i}] changes the type of inputs[{i}] from {tensor.dtype} to "
                f"{torch.result_type(tensor, baseline)}"
            )
        finite = (
            bool(baseline.isfinite().all())
            if isinstance(baseline, Tensor)
            else math.isfinite(baseline)
        )
        if not finite:
            raise Fallback(f"baselines[{i}] is not finite")
