"""One call from checked arguments to maps: capture, plan, run, compare."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from captum._utils.common import _run_forward, _select_targets
from torch import Tensor

from ._approximate import Approximate, Approximation, Windows, approximate, growing
from ._call import (
    Call,
    OcclusionMap,
    Predicted,
    Report,
    WindowGrid,
    difference,
    map_of,
    progress,
    resolve_target,
    row_target,
    tolerance,
)
from ._capture import Capture, NotCapturable, watched
from ._kernels import backend_info, calibration_of
from ._plan import Plan
from ._run import (
    CompileCache,
    Compiled,
    Execution,
    FewWindows,
    Noise,
    RunStatistics,
    Stale,
    checked_windows,
    default_memory_budget,
    naive_scores,
    rounding_of,
    signature,
)

__all__ = ["Engine", "Fallback"]

T = TypeVar("T")

_MOST_ROWS = {"cpu": 64}
_MOST_ROWS_ELSEWHERE = 512


class Fallback(Exception):
    """The map cannot be made from a graph; the message says why.

    Args:
        reason: why.
        quiet: true where Captum's path is as fast as any.
    """

    def __init__(self, reason: str, *, quiet: bool = False) -> None:
        super().__init__(reason)
        self.quiet = quiet


@dataclass(frozen=True)
class _Work:
    """What maps are made from.

    Attributes:
        compiled: the captured model.
        output: the forward function's output for the untouched inputs.
        reference: the outcome of the untouched inputs, by their `target`.
    """

    compiled: Compiled
    output: Tensor
    reference: Tensor
    target: Any


class Engine:
    """Makes maps for one forward function, and keeps its captures.

    Args:
        forward: the forward function.
        memory_budget: bytes for activations, or None for a share of the free memory.
        winograd: whether convolutions may run by Winograd's algorithm.
        self_check: whether the first map of a graph is compared with the forward function.
        cuda_graphs: whether batches on a GPU are captured and replayed.
        compile_pointwise: whether torch.compile makes what follows a convolution of PyTorch's own.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        memory_budget: int | None,
        winograd: bool,
        self_check: bool,
        cuda_graphs: bool = True,
        compile_pointwise: bool = False,
    ) -> None:
        self.forward, self.memory_budget = forward, memory_budget
        self.winograd, self.self_check = winograd, self_check
        self.cuda_graphs, self.compile_pointwise = cuda_graphs, compile_pointwise
        self.cache = CompileCache()
        self.few = FewWindows(forward, memory_budget)

    def maps(
        self,
        call: Call,
        show_progress: bool,
        approximation: Approximation,
        ran: list[tuple[Plan, RunStatistics]] | None = None,
    ) -> tuple[OcclusionMap, ...]:
        """One map for each input.

        Args:
            call: the checked arguments.
            show_progress: whether to show a progress bar over the windows.
            approximation: how the maps may differ from the exact ones.
            ran: gets the plan of each input, and what running it took.

        Raises:
            Fallback: where the forward function must be run itself, for every window.
        """
        started = time.perf_counter()
        approximation.check(call)
        _refuse(call)
        kind = signature(call)
        if ran is None and not self.cache.knows(kind) and self.few.takes(call, kind):
            maps = self.few.maps(call, kind, show_progress)
            if maps is not None:
                return maps
        work = self._untouched(call, approximation)
        timed, ran = ran is not None, [] if ran is None else ran
        rest = (show_progress, approximation, timed, started, ran)
        return self._attempted(call, work, approximation, lambda work: self._run(call, work, *rest))

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
        if not work.compiled.reads[0]:
            yield _unread(call, call.grids[0], work.reference, work.target, 0.0)
            return

        def begun(work: _Work) -> tuple[Capture, OcclusionMap, Iterator[OcclusionMap]]:
            stages = self._stages(call, work, approximation, started)
            return work.compiled.capture, next(stages), stages

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

    def _untouched(self, call: Call, approximation: Approximation) -> _Work:
        """The model as it is now, and its outcome for the untouched inputs."""
        compiled = self._compiled(call)
        approximation.check_model(compiled)
        fresh = not compiled.notes
        output, notes = self._reference(call, compiled)
        key = (call.examples, call.inputs[0].is_inference(), torch.is_inference_mode_enabled())
        if not fresh and compiled.notes.get(key) != notes:
            before, compiled = compiled, self._compiled(call, renew=True)
            approximation.check_model(compiled)
            if key not in before.notes and compiled.capture.says_the_same_as(before.capture):
                compiled.notes, compiled.checked = before.notes, before.checked
        compiled.notes[key] = notes
        target = resolve_target(output, call.target)
        return _Work(compiled, output, _select_targets(output, target), target)

    def _attempted(
        self,
        call: Call,
        work: _Work,
        approximation: Approximation,
        attempt: Callable[[_Work], T],
    ) -> T:
        """What `attempt` gives: where the graph is stale, with the model captured anew."""
        try:
            return attempt(work)
        except Stale:
            compiled = self._compiled(call, renew=True)
        approximation.check_model(compiled)
        compiled.notes.update(work.compiled.notes)
        try:
            return attempt(replace(work, compiled=compiled))
        except Stale as stale:
            raise Fallback(str(stale)) from None

    def plans(self, call: Call, approximation: Approximation) -> tuple[Plan, ...]:
        """The plan for each input."""
        approximation.check(call)
        _refuse(call)
        compiled = self._compiled(call)
        approximation.check_model(compiled)
        threshold = approximation.threshold
        read = [i for i in range(len(call.inputs)) if compiled.reads[i]]
        return tuple(self._plan(compiled, call, i, threshold) for i in read)

    def digest(self, call: Call) -> str:
        """A digest of the graph that is captured for a call."""
        return self._compiled(call).digest

    def resolved_target(self, call: Call) -> Any:
        """The target as Captum takes it; runs the forward function only where it must."""
        if not isinstance(call.target, Predicted):
            return call.target
        output = _run_forward(self.forward, call.inputs, None, call.extra or None)
        return resolve_target(output, call.target) if isinstance(output, Tensor) else None

    def _compiled(self, call: Call, *, renew: bool = False) -> Compiled:
        try:
            return self.cache.get(self.forward, call, renew=renew)
        except NotCapturable as refusal:
            raise Fallback(str(refusal)) from None
        except Exception as error:  # the user's function failed on rows of ours: Captum's path
            text = f"capturing the forward failed with {type(error).__name__}: {error}"
            raise Fallback(text) from error

    def _reference(self, call: Call, compiled: Compiled) -> tuple[Tensor, list[Any]]:
        """The forward function on the untouched inputs, and what it ran."""
        output, notes = watched(self.forward, call.arguments, compiled.capture.leaves)
        if not isinstance(output, Tensor) or output.dim() == 0:
            raise Fallback("the forward returns one number for the whole batch")
        if output.shape[0] != call.examples:
            raise Fallback("the forward does not return one row an example")
        return output.detach(), notes

    def _plan(self, compiled: Compiled, call: Call, position: int, threshold: float) -> Plan:
        device = call.inputs[position].device
        budget = self.memory_budget or default_memory_budget(device)
        budget = 1 << (budget.bit_length() - 1)  # a power of two, so that plans are used again
        if self.cuda_graphs and device.type == "cuda":  # they take memory, and know their plan
            budget = compiled.budgets.setdefault(device, budget)
        most = _MOST_ROWS.get(device.type, _MOST_ROWS_ELSEWHERE)
        if call.perturbations is not None:
            most = call.perturbations * call.examples
        return compiled.plan(
            call,
            position,
            memory_budget=budget,
            most_rows=most,
            winograd=self.winograd,
            threshold=threshold,
        )

    def _run(
        self,
        call: Call,
        work: _Work,
        show_progress: bool,
        approximation: Approximation,
        timed: bool,
        started: float,
        ran: list[tuple[Plan, RunStatistics]],
    ) -> tuple[OcclusionMap, ...]:
        ran.clear()  # of a run that was given up
        compiled, reference = work.compiled, work.reference
        plans = {
            i: self._plan(compiled, call, i, approximation.threshold)
            for i in range(len(call.inputs))
            if compiled.reads[i]
        }
        windows = sum(plan.grid.total for plan in plans.values())
        maps = []
        setup = time.perf_counter() - started
        with progress(call, show_progress, windows) as advance:
            for position, grid in enumerate(call.grids):
                began = time.perf_counter() - setup
                if position not in plans:
                    seconds = time.perf_counter() - began
                    maps.append(_unread(call, grid, reference, work.target, seconds))
                    setup = 0.0
                    continue
                plan = plans[position]
                noise = self._noise(call, work)
                checking = self._to_check(call, compiled, position)
                estimated: float | None = 1.0 if approximation.exact else None
                asked = (call, work, position, noise, timed)
                execution = self._execution(plan, *asked)
                if approximation.exact:
                    scores = execution.run(advance)
                    evaluated = exact = plan.grid.total * call.examples
                    ours, saving = scores[:, checking], plan.theoretical_speedup
                else:
                    executions = {plan.threshold: execution}
                    if plan.threshold < 1 and (checking or approximation.grows):
                        unbounded = self._plan(compiled, call, position, 1.0)
                        executions[1.0] = self._execution(unbounded, *asked)
                    made, ours, saving = _approximated(
                        approximation, executions, plan, reference, checking, advance
                    )
                    scores, evaluated = made.scores, int(made.known.sum())
                    exact, estimated = int(made.exact.sum()), _estimated(made, plan)
                _wait(scores)
                check = time.perf_counter()
                error = self._check(call, work, position, checking, ours, noise)
                now = time.perf_counter()
                report = replace(
                    self._report(call, position, plan, execution.statistics),
                    seconds=now - began,
                    setup_seconds=setup + now - check,
                    theoretical_speedup=saving,
                    checked_windows=len(checking),
                    largest_check_error=error,
                    windows_evaluated=evaluated,
                    windows_exact=exact,
                    estimated_ssim=estimated,
                )
                if approximation.exact and not timed:  # else it is no prediction of this run
                    _observe(call.inputs[position].device, report)
                ran.append((plan, execution.statistics))
                maps.append(map_of(plan.grid, scores, reference, work.target, report))
                setup = 0.0  # counted with the first input
        return tuple(maps)

    def _stages(
        self, call: Call, work: _Work, approximation: Approximation, started: float
    ) -> Generator[OcclusionMap, None, None]:
        """Ever better maps of the one image of a call."""
        compiled, noise = work.compiled, self._noise(call, work)
        plan = self._plan(compiled, call, 0, approximation.threshold)
        unbounded = self._plan(compiled, call, 0, 1.0)
        executions = {
            p.threshold: self._execution(p, call, work, 0, noise, timed=False)
            for p in (plan, unbounded)
        }
        windows = Windows(executions, slice(0, 1), lambda rows: None)
        setup, error = time.perf_counter() - started, 0.0
        checking = self._to_check(call, compiled, 0)
        if checking:
            check = time.perf_counter()
            selected = np.zeros((1, plan.grid.total), bool)
            selected[:, checking] = True
            ours = windows.run(selected, 1.0)[:, checking]
            error = self._check(call, work, 0, checking, ours, noise)
            windows.runs.clear()
            setup += time.perf_counter() - check
        statistics = executions[plan.threshold].statistics
        spent, resumed = 0.0, time.perf_counter()  # the caller's time between maps is not counted
        for made in growing(approximation, windows, plan, work.reference, 0):
            spent += time.perf_counter() - resumed
            macs = sum(n * executions[t].plan.macs_incremental for t, n in windows.runs.items())
            report = replace(
                self._report(call, 0, plan, statistics),
                seconds=setup + spent,
                setup_seconds=setup,
                theoretical_speedup=plan.grid.total * plan.macs_full / macs if macs else 1.0,
                checked_windows=len(checking),
                largest_check_error=error,
                windows_evaluated=int(made.known.sum()),
                windows_exact=int(made.exact.sum()),
                estimated_ssim=_estimated(made, plan),
            )
            yield map_of(plan.grid, made.scores, work.reference, work.target, report)
            if approximation.is_enough(made, spent):
                return
            resumed = time.perf_counter()

    def _report(self, call: Call, position: int, plan: Plan, statistics: RunStatistics) -> Report:
        """What is known of a run without its outcome."""
        return Report(
            "incremental" if plan.incremental else "full",
            plan.reasons,
            plan.grid.total,
            len(plan.groups),
            statistics.batches,
            statistics.batch_size,
            backend=backend_info("cuda" if call.inputs[position].is_cuda else "cpu").name,
            predicted_seconds=plan.seconds * call.examples,
            threshold=plan.threshold,
            batches_replayed=statistics.replayed,
        )

    def _execution(
        self,
        plan: Plan,
        call: Call,
        work: _Work,
        position: int,
        noise: Noise,
        timed: bool,
    ) -> Execution:
        compiled, target = work.compiled, work.target
        on_gpu = call.inputs[position].is_cuda
        replays = self.cuda_graphs and on_gpu and not timed
        execution = Execution(
            plan,
            compiled.constants,
            tuple(a for a, b in zip(call.arguments, call.batched, strict=True) if b),
            _baseline(call, position),
            lambda rows, image: _select_targets(rows, row_target(target, image)),
            last=compiled.last,
            packs=compiled.packs,
            on_base=noise.see,
            residents=compiled.residents if replays else None,
            compiles=self.compile_pointwise,
        )
        if timed and on_gpu:
            execution.statistics.wait = torch.cuda.synchronize
        return execution

    def _noise(self, call: Call, work: _Work) -> Noise:
        """What compares the graph's outcome for the untouched inputs with the forward's."""

        def select(rows: Tensor, images: slice) -> Tensor:
            numbers = torch.arange(images.start, images.stop, device=rows.device)
            chosen: Tensor = _select_targets(rows, row_target(work.target, numbers))
            return chosen

        def outcome(inputs: tuple[Tensor, ...]) -> Tensor:
            output = _run_forward(self.forward, inputs, None, call.extra or None)
            return select(output.detach(), slice(0, call.examples))

        return Noise(
            work.output, select, lambda: rounding_of(outcome, call.inputs, outcome(call.inputs))
        )

    def _to_check(
        self, call: Call, compiled: Compiled, position: int
    ) -> list[int]:
        """The windows to run through the forward function too, on the first use of a plan.

        Windows are checked where they are exact: by the plan without a threshold.
        """
        if not self.self_check:
            return []
        plan = self._plan(compiled, call, position, 1.0)
        if (position, plan.layout) in compiled.checked:
            return []
        return checked_windows(plan.grid.counts)

    def _check(
        self,
        call: Call,
        work: _Work,
        position: int,
        windows: list[int],
        scores: Tensor,
        noise: Noise,
    ) -> float:
        """Runs a few windows through the forward function and compares their `scores`."""
        if not windows:
            return 0.0
        single = replace(call, perturbations=1)
        naive = naive_scores(
            self.forward,
            single,
            position,
            work.target,
            windows,
            lambda rows: None,
            captum=False,
        )
        ours = scores.movedim(1, 0).reshape(naive.shape)
        error = difference(ours, naive)
        allowed = max(tolerance(naive, work.reference), 20 * noise.error)
        if not error <= allowed:
            raise Fallback(
                f"the first map differs from the forward function by {error:.3g} at windows "
                f"{windows} (allowed: {allowed:.3g})"
            )
        plan = self._plan(work.compiled, call, position, 1.0)
        work.compiled.checked.add((position, plan.layout))
        return error


def _unread(
    call: Call, grid: WindowGrid, reference: Tensor, target: Any, seconds: float
) -> OcclusionMap:
    """The map of an input that the outcome does not depend on: no window changes anything."""
    rows = reference[:, None].expand(-1, grid.total, *reference.shape[1:]).clone()
    report = Report(
        "incremental",
        ("the outcome does not depend on this input",),
        grid.total,
        0,
        0,
        0,
        seconds,
        windows_exact=grid.total * call.examples,
        estimated_ssim=1.0,
    )
    return map_of(grid, rows, reference, target, report)


def _approximated(
    approximation: Approximation,
    executions: dict[float, Execution],
    plan: Plan,
    reference: Tensor,
    checking: list[int],
    advance: Callable[[int], None],
) -> tuple[Approximate, Tensor, float]:
    """The approximate map of all images.

    Args:
        approximation: how the map may differ from the exact one.
        executions: a run of each plan that is needed, by its threshold.
        plan: the plan with the approximation's threshold.
        reference: the outcome of the untouched inputs.
        checking: windows that are to be run exactly as well.
        advance: told the number of windows of every batch that has been run.

    Returns:
        The map, the exact outcomes of the windows to check, (N, checking, outputs...), and the
        saving in multiply-accumulates (Eq. 17).
    """
    maps, exact, macs = [], [], 0.0
    for images in executions[plan.threshold].side_by_side():
        windows = Windows(executions, images, advance)
        maps.append(approximate(approximation, windows, plan, reference[images]))
        for threshold, count in windows.runs.items():
            macs += count * executions[threshold].plan.macs_incremental
        scores = maps[-1].scores
        if checking:
            selected = np.zeros_like(maps[-1].known)
            selected[:, checking] = True
            windows.advance = lambda rows: None
            scores = windows.run(selected, 1.0)
        exact.append(scores[:, checking])
    made = Approximate.of_all(maps)
    full = made.known.size * plan.macs_full
    return made, torch.cat(exact), full / macs if macs else 1.0


def _estimated(made: Approximate, plan: Plan) -> float | None:
    """The similarity to the exact map that every image's is expected to have at least."""
    if made.quality is not None:
        return min(made.quality)
    return 1.0 if plan.threshold == 1 and made.known.all() else None


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


def _baseline(call: Call, position: int) -> Tensor | float:
    baseline = call.baselines[position]
    if not isinstance(baseline, Tensor):
        return float(baseline)
    tensor = call.inputs[position]
    rows = tensor.shape[0] if baseline.dim() == tensor.dim() and baseline.shape[0] > 1 else 1
    return baseline.to(tensor.dtype).broadcast_to(rows, *tensor.shape[1:])


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
