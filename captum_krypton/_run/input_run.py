"""One input of a call: its plans, what runs them, and what its first map is checked with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from captum._utils.common import _run_forward, _select_targets
from torch import Tensor

from .._call import (
    Call,
    OcclusionMap,
    Report,
    Settings,
    difference,
    map_of,
    part_target,
    row_target,
    tolerance,
)
from .._kernels import backend_info
from .._plan import Plan
from .batches import RunStatistics
from .begun import Begun
from .captured_model import CapturedModel
from .check import Noise, Stale, checked_windows, rounding_of
from .execution import Bases, Execution
from .naive import Fallback, naive_report, naive_scores
from .pace import Pace, in_best_batches

__all__ = ["Answer", "InputRun", "Untouched"]

_MOST_ROWS = 8  # that the forward function runs together: more gain little, and take memory


class Answer:
    """What the forward function makes of the untouched inputs, asked when it is first needed.

    Args:
        ask: gives its output, and the outcome.
    """

    def __init__(self, ask: Callable[[], tuple[Tensor, Tensor]]) -> None:
        self._ask = ask

    @classmethod
    def of(cls, output: Tensor, outcome: Tensor) -> Answer:
        """The answer that was given."""
        made = cls(lambda: (output, outcome))
        _ = made.both
        return made

    @property
    def is_known(self) -> bool:
        """Whether it has been asked."""
        return "both" in self.__dict__

    @cached_property
    def both(self) -> tuple[Tensor, Tensor]:
        """The output and the outcome."""
        return self._ask()


@dataclass(frozen=True)
class Untouched:
    """The model as it is now, and what it makes of the untouched inputs.

    Attributes:
        model: the captured model.
        answer: the forward function's.
        target: Captum's target.
        bases: the values that windows read, for calls that differ in their baselines alone: of each
            input the dictionary of an `Execution`. None where no other call follows.
        begun: the windows of the only input that the forward function has run; None where it has
            run none, or where they may not be part of the map.
    """

    model: CapturedModel
    answer: Answer
    target: Any
    bases: dict[int, Bases] | None = None
    begun: Begun | None = None

    @property
    def output(self) -> Tensor:
        """The forward function's output."""
        return self.answer.both[0]

    @property
    def reference(self) -> Tensor:
        """The outcome, by `target`."""
        return self.answer.both[1]


class InputRun:
    """The windows of one input of a call.

    Args:
        forward: the forward function.
        call: the checked arguments.
        untouched: the model, and its outcome for the untouched inputs.
        position: which input.
        settings: how maps are made.
        threshold: the projective field threshold; 1 is exact.
        timed: whether operators are timed one by one.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        call: Call,
        untouched: Untouched,
        position: int,
        settings: Settings,
        threshold: float = 1.0,
        *,
        timed: bool = False,
    ) -> None:
        self.forward, self.call, self.position = forward, call, position
        self.model, self.untouched = untouched.model, untouched
        self.settings, self.threshold, self.timed = settings, threshold, timed
        self.grid, self.device = call.grids[position], call.inputs[position].device
        self.target = untouched.target
        shape = self._shape
        fits = not untouched.answer.is_known or untouched.output.shape[1:] == shape
        narrows = self.is_read and fits  # else the graph is stale
        self.part = self.model.part(call, position, self.target) if narrows else None
        if self.part is not None:
            self.target = part_target(self.target, self.part, shape)

    @property
    def _shape(self) -> tuple[int, ...]:
        """The shape of the graph's output without the batch."""
        graph = self.model.graph
        return graph.size(graph.output, 1)[1:]

    @cached_property
    def reference(self) -> Tensor:
        """What the outcomes of windows are held against, (N, outputs...): the untouched inputs'.

        In 16 bits they are the graph's own from when its base is made: what is rounded otherwise
        than in the forward function is the same in the windows, and no drop.
        """
        return self.untouched.reference.clone()

    @cached_property
    def _noise(self) -> Noise:
        output = self.untouched.output
        if self.part is not None and output.shape[1:] != self._shape:
            raise Stale("the forward function's output has another shape than the graph's")
        return Noise(self._in_part(output), self._outcome, self._rounding)

    @property
    def is_read(self) -> bool:
        """Whether the outcome depends on this input."""
        return self.model.reads[self.position]

    @cached_property
    def plan(self) -> Plan:
        """The plan with the threshold."""
        return self._plan(self.threshold)

    @cached_property
    def exact_plan(self) -> Plan:
        """The plan without a threshold."""
        if self.threshold == 1:
            return self.plan
        return self._plan(1.0)

    def _plan(self, threshold: float) -> Plan:
        return self.model.plan_of(self.call, self.position, self.settings, threshold, self.part)

    def execution(self, plan: Plan) -> Execution:
        """What runs the windows by a plan."""
        call, model, target = self.call, self.model, self.target
        replayed = self.settings.cuda_graphs and self.device.type == "cuda" and not self.timed
        baseline = self._baseline()
        bases = self.untouched.bases
        execution = Execution(
            model.material(
                plan, baseline, call.own_mean[self.position], self.settings.compile_pointwise
            ),
            tuple(a for a, b in zip(call.arguments, call.batched, strict=True) if b),
            baseline,
            lambda rows, image: _select_targets(rows, row_target(target, image)),
            lambda: self.reference,
            on_base=self._see,
            replays=model.replays if replayed else None,
            bases=None if bases is None else bases.setdefault(self.position, {}),
        )
        if self.timed and self.device.type == "cuda":
            execution.statistics.wait = torch.cuda.synchronize
        return execution

    def _baseline(self) -> Tensor | float:
        baseline = self.call.baselines[self.position]
        if not isinstance(baseline, Tensor):
            return float(baseline)
        tensor = self.call.inputs[self.position]
        several = baseline.dim() == tensor.dim() and baseline.shape[0] > 1
        rows = tensor.shape[0] if several else 1
        return baseline.to(tensor.dtype).broadcast_to(rows, *tensor.shape[1:])

    # --- the check of a plan's first map

    def _see(self, images: slice, output: Tensor) -> None:
        own, place = self._noise.see(images, output), self.reference[images]
        if place.dtype in (torch.float16, torch.bfloat16):
            place.copy_(own.reshape(place.shape))

    def _in_part(self, output: Tensor) -> Tensor:
        """The part of the forward function's output that the graph computes."""
        for dim, (start, stop) in enumerate(self.part or (), 1):
            output = output.narrow(dim, start, stop - start)
        return output

    def _outcome(self, output: Tensor, images: slice) -> Tensor:
        """The outcomes that the map shows, of the graph's output rows of some images."""
        numbers = torch.arange(images.start, images.stop, device=output.device)
        chosen: Tensor = _select_targets(output, row_target(self.target, numbers))
        return chosen

    def _rounding(self) -> Tensor:
        """How far rounding its inputs moves each outcome of the forward function."""
        call = self.call

        def outcome(inputs: tuple[Tensor, ...]) -> Tensor:
            output = _run_forward(self.forward, inputs, None, call.extra or None)
            return self._outcome(self._in_part(output.detach()), slice(0, call.examples))

        return rounding_of(outcome, call.inputs, outcome(call.inputs))

    @cached_property
    def checking(self) -> list[int]:
        """The windows to run through the forward function too, on the first use of a plan.

        Windows are checked where they are exact: by the plan without a threshold.
        """
        if not self.settings.self_check or self._check_key in self.model.checked:
            return []
        return checked_windows(self.grid.counts, self.exact_plan.runs)

    @property
    def _check_key(self) -> tuple[Any, ...]:
        return self.position, self.part, self.exact_plan.layout

    def check(self, scores: Tensor) -> float:
        """Compares exact `scores` of the windows to check with the forward function's.

        Returns:
            The largest difference.

        Raises:
            Fallback: where it is more than rounding.
        """
        if not self.checking:
            return 0.0
        started = time.perf_counter()
        begun = self.untouched.begun
        if begun is not None and set(self.checking) <= set(begun.windows):
            naive = begun.scores(self.checking)
        else:
            naive = self._by_forward(self.checking)
        if self.device.type == "cpu":  # elsewhere it may not have ended
            self.pace.alone = (time.perf_counter() - started) / len(self.checking)
        error = difference(scores.movedim(1, 0).reshape(naive.shape), naive)
        allowed = max(tolerance(naive, self.untouched.reference), 20 * self._noise.error)
        if not error <= allowed:
            raise Fallback(
                f"the first map differs from the forward function by {error:.3g} at windows "
                f"{self.checking} (allowed: {allowed:.3g})"
            )
        self.model.checked.add(self._check_key)
        return error

    def _by_forward(self, windows: list[int], at_once: int = 1) -> Tensor:
        """Outcomes of some windows by the forward function itself, (windows, N, outputs...)."""
        call = replace(self.call, perturbations=at_once)
        target = self.untouched.target
        return naive_scores(
            self.forward, call, self.position, target, windows, lambda rows: None, captum=False
        )

    # --- maps

    @property
    def pace(self) -> Pace:
        """What windows of the exact plan have taken so far."""
        return self.model.paces.setdefault(self._check_key, Pace())

    def map_by_forward(self, advance: Callable[[int], None], setup: float) -> OcclusionMap:
        """The exact map by the forward function itself, in the batches that suit it best.

        Args:
            advance: told the number of windows of every batch that has been run.
            setup: seconds that were spent before.
        """
        call, started, pace = self.call, time.perf_counter(), self.pace

        def run(windows: list[int]) -> Tensor:
            scores = self._by_forward(windows, len(windows))
            advance(len(windows) * call.examples)
            return scores

        most = min(_MOST_ROWS // call.examples, call.perturbations or _MOST_ROWS)
        arguments = zip(call.arguments, call.batched, strict=True)
        if any(isinstance(a, Tensor) and not batched for a, batched in arguments):
            most = 1  # Captum repeats it for several windows
        scores, size = in_best_batches(run, self.grid.total, max(1, most))
        pace.together = min(pace.together, (time.perf_counter() - started) / self.grid.total)
        reason = (
            "the forward function itself takes less time than the plan: "
            f"{pace.together:.3g} against {pace.by_plan:.3g} s a window"
        )
        report = naive_report("naive", reason, self.grid.total, size, call, started, setup)
        reference, target = self.untouched.reference, self.untouched.target
        return map_of(self.grid, scores.movedim(0, 1), reference, target, report)

    def map(self, scores: Tensor, report: Report) -> OcclusionMap:
        """The map with the outcomes of all windows by a plan, (N, windows, outputs...)."""
        return map_of(self.grid, scores, self.reference, self.untouched.target, report)

    def report(self, statistics: RunStatistics) -> Report:
        """What is known of a run without its outcome."""
        plan = self.plan
        return Report(
            "incremental" if plan.incremental else "full",
            plan.reasons,
            plan.grid.total,
            len(plan.groups),
            statistics.batches,
            statistics.batch_size,
            backend=backend_info("cuda" if self.device.type == "cuda" else "cpu").name,
            predicted_seconds=plan.seconds * self.call.examples,
            threshold=plan.threshold,
            batches_replayed=statistics.replayed,
            checked_windows=len(self.checking),
            windows_unreached=plan.unreached,
        )

    def unread(self, seconds: float) -> OcclusionMap:
        """The map of an input that the outcome does not depend on: no window changes anything."""
        reference, total = self.reference, self.grid.total
        rows = reference[:, None].expand(-1, total, *reference.shape[1:]).clone()
        report = Report(
            "incremental",
            ("the outcome does not depend on this input",),
            total,
            0,
            0,
            0,
            seconds,
            windows_exact=total * self.call.examples,
            estimated_ssim=1.0,
        )
        return self.map(rows, report)
