"""One call from checked arguments to maps: capture, plan, run, compare."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from captum._utils.common import _run_forward, _select_targets
from torch import Tensor
from tqdm.auto import tqdm

from ._arguments import Call, Predicted
from ._capture import refuse_training, watched
from ._compile import CompileCache, Compiled, default_memory_budget, signature
from ._execute import Execution, RunStatistics
from ._heatmap import OcclusionMap, Report
from ._naive import naive_scores
from ._ops import backend_info
from ._plan import Plan
from ._recorder import NotCapturable

__all__ = ["Engine", "Fallback"]

# How far two computations of one outcome may be apart, relative to the largest outcome: on the
# checked windows, and (a hundred times as far) on the untouched input.
_TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
_LOOSE = 100.0
_MOST_ROWS = {"cpu": 64}
_MOST_ROWS_ELSEWHERE = 256

# Capture, packed weights, a plan and a check take about as long as so many rows of the forward
# function (12 to 17, docs/design.md). The first maps of a model save less with fewer windows.
_SETUP_ROWS = 24
_ROWS_TOGETHER = {"cpu": 4}
_ROWS_TOGETHER_ELSEWHERE = 64


class Fallback(Exception):
    """The map cannot be made from a graph; the message says why.

    Args:
        reason: why.
        quiet: true where Captum's path is as fast as any.
    """

    def __init__(self, reason: str, *, quiet: bool = False) -> None:
        super().__init__(reason)
        self.quiet = quiet


class _Stale(Exception):
    """The graph and the forward function give different outcomes for the untouched input."""


class Engine:
    """Makes maps for one forward function, and keeps its captures.

    Args:
        forward: the forward function.
        memory_budget: bytes for activations, or None for a share of the free memory.
        winograd: whether 3 x 3 convolutions may run by Winograd's algorithm.
        self_check: whether the first map of a graph is compared with the forward function.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        memory_budget: int | None,
        winograd: bool,
        self_check: bool,
    ) -> None:
        self.forward, self.memory_budget = forward, memory_budget
        self.winograd, self.self_check = winograd, self_check
        self.cache = CompileCache()
        self._rows_without: Counter[Any] = Counter()  # signature -> rows run without a graph

    def maps(
        self,
        call: Call,
        show_progress: bool,
        ran: list[tuple[Plan, RunStatistics]] | None = None,
    ) -> tuple[OcclusionMap, ...]:
        """One map for each input.

        Args:
            call: the checked arguments.
            show_progress: whether to show a progress bar over the windows.
            ran: gets the plan of each input, and what running it took.

        Raises:
            Fallback: where the forward function must be run itself, for every window.
        """
        started = time.perf_counter()
        _refuse(call)
        with _untouched_random_state(call):
            if ran is None and self._too_few(call):
                few = self._maps_without_graph(call, show_progress)
                if few is not None:
                    return few
            compiled = self._compiled(call)
            fresh = not compiled.notes
            output, notes = self._reference(call, compiled)
            key = (call.examples, call.inputs[0].is_inference(), torch.is_inference_mode_enabled())
            if not fresh and compiled.notes.get(key) != notes:
                before, compiled = compiled, self._compiled(call, renew=True)
                if key not in before.notes and compiled.capture.says_the_same_as(before.capture):
                    compiled.notes, compiled.checked = before.notes, before.checked
            compiled.notes[key] = notes
            target = resolve_target(output, call.target)
            reference = _select_targets(output, target)
            rest = (output, reference, target, show_progress, started, [] if ran is None else ran)
            try:
                return self._run(call, compiled, *rest)
            except _Stale:
                compiled = self._compiled(call, renew=True)
                compiled.notes[key] = notes
            try:
                return self._run(call, compiled, *rest)
            except _Stale as stale:
                raise Fallback(str(stale)) from None

    def plans(self, call: Call) -> tuple[Plan, ...]:
        """The plan for each input."""
        _refuse(call)
        with _untouched_random_state(call):
            compiled = self._compiled(call)
        return tuple(self._plan(compiled, call, i) for i in range(len(call.inputs)))

    def naive_maps(
        self, call: Call, fallback: Fallback, show_progress: bool
    ) -> tuple[OcclusionMap, ...]:
        """The maps by running the forward function for every window, as Captum does."""
        output = _run_forward(self.forward, call.inputs, None, call.extra or None)
        if not isinstance(output, Tensor):
            output = torch.tensor(output)
        target = resolve_target(output, call.target)
        reference = _select_targets(output, target)
        maps = []
        for position, grid in enumerate(call.grids):
            started = time.perf_counter()
            with _progress(call, show_progress, grid.total) as advance:
                scores = naive_scores(
                    self.forward,
                    call,
                    position,
                    target,
                    list(range(grid.total)),
                    advance,
                    captum=True,
                )
            report = Report(
                "captum",
                (str(fallback),),
                grid.total,
                1,
                math.ceil(grid.total / (call.perturbations or 1)),
                call.perturbations or 1,
                time.perf_counter() - started,
            )
            rows = scores.movedim(0, 1) if scores.dim() > 1 else scores[None]
            maps.append(_map(call, position, rows, reference, target, report))
        return tuple(maps)

    def _too_few(self, call: Call) -> bool:
        """Whether the windows are too few for a graph to pay, those of earlier calls counted."""
        rows = call.examples * sum(grid.total for grid in call.grids)
        key = signature(call)
        if self._rows_without[key] + rows > _SETUP_ROWS or self.cache.knows(key):
            return False
        arguments = zip(call.arguments, call.batched, strict=True)
        if any(isinstance(a, Tensor) and not batched for a, batched in arguments):
            return False  # Captum repeats it for several windows
        try:
            refuse_training(self.forward)
        except NotCapturable:
            return False
        self._rows_without[key] += rows
        return True

    def _maps_without_graph(
        self, call: Call, show_progress: bool
    ) -> tuple[OcclusionMap, ...] | None:
        """The maps by the forward function itself, a few windows at a time.

        Windows that run together must not change each other's outcome: one is run alone too.

        Returns:
            The maps, or None where this does not hold, or where the forward fails or draws random
            numbers: a capture says why.
        """
        device = call.inputs[0].device.type
        most = _ROWS_TOGETHER.get(device, _ROWS_TOGETHER_ELSEWHERE)
        most = min(most, call.perturbations or most)
        step = max(1, most // call.examples)
        together = Call(**{**vars(call), "perturbations": step})
        maps: list[OcclusionMap] = []
        windows = sum(grid.total for grid in call.grids)
        random_state = _random_state(call)
        try:
            started = time.perf_counter()
            output = _run_forward(self.forward, call.inputs, None, call.extra or None)
            if not isinstance(output, Tensor) or output.shape[:1] != (call.examples,):
                return None
            target = resolve_target(output.detach(), call.target)
            reference = _select_targets(output.detach(), target)
            with _progress(call, show_progress, windows) as advance:
                for position, grid in enumerate(call.grids):
                    run = (self.forward, together, position, target)
                    scores = naive_scores(*run, list(range(grid.total)), advance, captum=False)
                    if not maps and not self._alone_as_together(*run, scores, reference):
                        return None
                    now = time.perf_counter()
                    report = Report(
                        "naive",
                        (f"{windows} windows are too few for a graph to pay",),
                        grid.total,
                        1,
                        math.ceil(grid.total / step),
                        min(step, grid.total) * call.examples,
                        now - started,
                    )
                    maps.append(
                        _map(call, position, scores.movedim(0, 1), reference, target, report)
                    )
                    started = now
        except Exception:  # said by the path that follows, if it is met there too
            return None
        return tuple(maps) if _random_state(call) == random_state else None

    def _alone_as_together(
        self,
        forward: Callable[..., Any],
        together: Call,
        position: int,
        target: Any,
        scores: Tensor,
        reference: Tensor,
    ) -> bool:
        """Whether a window from within a batch has the same outcome in a batch of its own."""
        step, total = together.perturbations or 1, together.grids[position].total
        if step == 1 or total == 1:
            return True
        window = total // 2
        window += (1 - window) % step  # neither the first nor, of four, the last in its batch
        window = window if window < total else 1
        single = Call(**{**vars(together), "perturbations": 1})
        alone = naive_scores(
            forward, single, position, target, [window], lambda rows: None, captum=False
        )
        return difference(scores[[window]], alone) <= tolerance(alone, reference)

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

    def _plan(self, compiled: Compiled, call: Call, position: int) -> Plan:
        device = call.inputs[position].device
        budget = self.memory_budget or default_memory_budget(device)
        budget = 1 << (budget.bit_length() - 1)  # a power of two, so that plans are used again
        most = _MOST_ROWS.get(device.type, _MOST_ROWS_ELSEWHERE)
        if call.perturbations is not None:
            most = call.perturbations * call.examples
        return compiled.plan(
            call, position, memory_budget=budget, most_rows=most, winograd=self.winograd
        )

    def _run(
        self,
        call: Call,
        compiled: Compiled,
        output: Tensor,
        reference: Tensor,
        target: Any,
        show_progress: bool,
        started: float,
        ran: list[tuple[Plan, RunStatistics]],
    ) -> tuple[OcclusionMap, ...]:
        ran.clear()  # of a run that was given up
        plans = [self._plan(compiled, call, i) for i in range(len(call.inputs))]
        windows = sum(plan.grid.total for plan in plans)
        maps = []
        setup = time.perf_counter() - started
        with _progress(call, show_progress, windows) as advance:
            for position, plan in enumerate(plans):
                began = time.perf_counter() - setup
                noise = _Noise(output)
                execution = Execution(
                    plan,
                    compiled.constants,
                    tuple(a for a, b in zip(call.arguments, call.batched, strict=True) if b),
                    _baseline(call, position),
                    lambda rows, image: _select_targets(rows, _row_target(target, image)),
                    last=compiled.last,
                    packs=compiled.packs,
                    on_base=noise.see,
                )
                scores = execution.run(advance)
                check = time.perf_counter()
                checked, error = self._check(
                    call, compiled, position, plan, scores, reference, target, noise
                )
                now = time.perf_counter()
                report = Report(
                    "incremental" if plan.incremental else "full",
                    plan.reasons,
                    plan.grid.total,
                    len(plan.groups),
                    execution.statistics.batches,
                    execution.statistics.batch_size,
                    now - began,
                    setup + now - check,
                    plan.theoretical_speedup,
                    checked,
                    error,
                    backend_info().name,
                    plan.seconds * call.examples,
                )
                ran.append((plan, execution.statistics))
                maps.append(_map(call, position, scores, reference, target, report))
                setup = 0.0  # counted with the first input
        return tuple(maps)

    def _check(
        self,
        call: Call,
        compiled: Compiled,
        position: int,
        plan: Plan,
        scores: Tensor,
        reference: Tensor,
        target: Any,
        noise: _Noise,
    ) -> tuple[int, float]:
        """Runs a few windows through the forward function, on the first use of a plan."""
        key = (position, plan.grid)
        if not self.self_check or key in compiled.checked:
            return 0, 0.0
        windows = checked_windows(plan.grid.counts)
        single = Call(**{**vars(call), "perturbations": 1})
        naive = naive_scores(
            self.forward,
            single,
            position,
            target,
            windows,
            lambda rows: None,
            captum=False,
        )
        ours = scores.movedim(1, 0)[windows].reshape(naive.shape)
        error = difference(ours, naive)
        allowed = max(tolerance(naive, reference), 20 * noise.error)
        if not error <= allowed:
            raise Fallback(
                f"the first map differs from the forward function by {error:.3g} at windows "
                f"{windows} (allowed: {allowed:.3g})"
            )
        compiled.checked.add(key)
        return len(windows), error


class _Noise:
    """Compares the graph's outcome for the untouched input with the forward function's."""

    def __init__(self, output: Tensor) -> None:
        self.output = output
        self.error = 0.0

    def see(self, images: slice, output: Tensor) -> None:
        """Takes the graph's output for some of the images."""
        expected = self.output[images]
        if output.shape != expected.shape or output.dtype != expected.dtype:
            raise _Stale("the graph's output has another shape or type than the forward's")
        error = difference(output, expected)
        allowed = tolerance(expected) * _LOOSE
        if not error <= allowed:
            raise _Stale(
                f"the captured graph gives an outcome that differs by {error:.3g} from the "
                f"forward function's (allowed: {allowed:.3g})"
            )
        self.error = max(self.error, error)


def tolerance(*outcomes: Tensor) -> float:
    """How far apart two computations of such outcomes may be: rounding, and no more."""
    dtype = outcomes[0].dtype
    if dtype not in _TOLERANCE:
        return 0.0
    scale = max(float(_largest(outcome)) for outcome in outcomes)
    return _TOLERANCE[dtype] * scale + 4 * torch.finfo(dtype).eps


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference; infinite where one is finite and the other is not."""
    if a.numel() == 0:
        return 0.0
    a, b = a.double(), b.double()
    gap = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())
    return float(gap.nan_to_num(nan=math.inf, posinf=math.inf).max())


def _largest(tensor: Tensor) -> Tensor:
    finite = tensor.double().abs()
    finite = torch.where(finite.isfinite(), finite, 0.0)
    return finite.max() if finite.numel() else finite.sum()


def checked_windows(counts: tuple[int, ...]) -> list[int]:
    """The middle one of the windows, a corner, the last and an edge, by row-major number.

    One of 256, but one at least and four at most: a check must not cost what it checks.
    """
    places = [
        tuple(c // 2 for c in counts),
        tuple(0 for _ in counts),
        tuple(c - 1 for c in counts),
        tuple(c // 2 if i == len(counts) - 1 else c - 1 for i, c in enumerate(counts)),
    ]
    numbers = set()
    for place in places[: max(1, math.prod(counts) // 256)]:
        number = 0
        for index, count in zip(place, counts, strict=True):
            number = number * count + index
        numbers.add(number)
    return sorted(numbers)


def resolve_target(output: Tensor, target: Any) -> Any:
    """Captum's target; for the default, the largest output of each example."""
    if not isinstance(target, Predicted):
        return target
    if output.dim() < 2 or output.numel() == 0:
        return None
    best = output.reshape(output.shape[0], -1).argmax(1)
    if output.dim() == 2:
        return int(best) if len(best) == 1 else best
    index = torch.unravel_index(best, output.shape[1:])
    return [tuple(int(i[n]) for i in index) for n in range(output.shape[0])]


def _row_target(target: Any, image: Tensor) -> Any:
    """The target for rows that belong to the given images."""
    if isinstance(target, list):
        return [target[i] for i in image.tolist()]
    if isinstance(target, Tensor) and target.numel() > 1:
        return target.to(image.device)[image]
    return target


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


def _map(
    call: Call, position: int, scores: Tensor, reference: Tensor, target: Any, report: Report
) -> OcclusionMap:
    """Puts (N, windows, outputs...) into the shape of the grid."""
    grid = call.grids[position]
    counts = grid.counts
    if len(counts) > 1 and counts[0] == 1:
        counts = counts[1:]
    ordered = scores.movedim(1, -1)
    ordered = ordered.reshape(*ordered.shape[:-1], *counts)
    return OcclusionMap(ordered, reference, grid, target, report)


def _devices(call: Call) -> list[int]:
    return sorted({t.device.index for t in call.inputs if t.is_cuda})


def _random_state(call: Call) -> list[bytes]:
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in _devices(call))]
    return [state.numpy().tobytes() for state in states]


@contextmanager
def _untouched_random_state(call: Call) -> Iterator[None]:
    with torch.random.fork_rng(devices=_devices(call)):
        yield


@contextmanager
def _progress(call: Call, show: bool, windows: int) -> Iterator[Callable[[int], None]]:
    """A progress bar over windows, told of rows: a window has one for each example."""
    if not show:
        yield lambda rows: None
        return
    with tqdm(total=windows, desc="Krypton Occlusion", unit="window") as bar:
        rows = 0

        def advance(more: int) -> None:
            nonlocal rows
            before, rows = rows // call.examples, rows + more
            bar.update(rows // call.examples - before)

        yield advance
