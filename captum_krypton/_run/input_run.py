"""One input of a call: its plans, what runs them, and what its first map is checked with."""

from __future__ import annotations

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
    row_target,
    tolerance,
)
from .._kernels import backend_info
from .._plan import Plan
from .batches import RunStatistics
from .captured_model import CapturedModel
from .check import Noise, checked_windows, rounding_of
from .execution import Execution
from .naive import Fallback, naive_scores

__all__ = ["InputRun", "Untouched"]


@dataclass(frozen=True)
class Untouched:
    """The model as it is now, and what it makes of the untouched inputs.

    Attributes:
        model: the captured model.
        output: the forward function's output.
        reference: the outcome, by `target`.
        target: Captum's target.
    """

    model: CapturedModel
    output: Tensor
    reference: Tensor
    target: Any


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
        self._noise = Noise(untouched.output, self._outcome, self._rounding)

    @property
    def is_read(self) -> bool:
        """Whether the outcome depends on this input."""
        return self.model.reads[self.position]

    @cached_property
    def plan(self) -> Plan:
        """The plan with the threshold."""
        return self.model.plan_of(self.call, self.position, self.settings, self.threshold)

    @cached_property
    def exact_plan(self) -> Plan:
        """The plan without a threshold."""
        if self.threshold == 1:
            return self.plan
        return self.model.plan_of(self.call, self.position, self.settings)

    def execution(self, plan: Plan) -> Execution:
        """What runs the windows by a plan."""
        call, model, target = self.call, self.model, self.untouched.target
        replayed = self.settings.cuda_graphs and self.device.type == "cuda" and not self.timed
        baseline = self._baseline()
        execution = Execution(
            model.material(plan, baseline, self.settings.compile_pointwise),
            tuple(a for a, b in zip(call.arguments, call.batched, strict=True) if b),
            baseline,
            lambda rows, image: _select_targets(rows, row_target(target, image)),
            on_base=self._noise.see,
            replays=model.replays if replayed else None,
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

    def _outcome(self, output: Tensor, images: slice) -> Tensor:
        """The outcomes that the map shows, of output rows of some images."""
        numbers = torch.arange(images.start, images.stop, device=output.device)
        chosen: Tensor = _select_targets(output, row_target(self.untouched.target, numbers))
        return chosen

    def _rounding(self) -> Tensor:
        """How far rounding its inputs moves each outcome of the forward function."""
        call = self.call

        def outcome(inputs: tuple[Tensor, ...]) -> Tensor:
            output = _run_forward(self.forward, inputs, None, call.extra or None)
            return self._outcome(output.detach(), slice(0, call.examples))

        return rounding_of(outcome, call.inputs, outcome(call.inputs))

    @cached_property
    def checking(self) -> list[int]:
        """The windows to run through the forward function too, on the first use of a plan.

        Windows are checked where they are exact: by the plan without a threshold.
        """
        if not self.settings.self_check or self._check_key in self.model.checked:
            return []
        return checked_windows(self.grid.counts)

    @property
    def _check_key(self) -> tuple[Any, ...]:
        return self.position, self.exact_plan.layout

    def check(self, scores: Tensor) -> float:
        """Compares exact `scores` of the windows to check with the forward function's.

        Returns:
            The largest difference.

        Raises:
            Fallback: where it is more than rounding.
        """
        if not self.checking:
            return 0.0
        naive = naive_scores(
            self.forward,
            replace(self.call, perturbations=1),
            self.position,
            self.untouched.target,
            self.checking,
            lambda rows: None,
            captum=False,
        )
        error = difference(scores.movedim(1, 0).reshape(naive.shape), naive)
        allowed = max(tolerance(naive, self.untouched.reference), 20 * self._noise.error)
        if not error <= allowed:
            raise Fallback(
                f"the first map differs from the forward function by {error:.3g} at windows "
                f"{self.checking} (allowed: {allowed:.3g})"
            )
        self.model.checked.add(self._check_key)
        return error

    # --- maps

    def map(self, scores: Tensor, report: Report) -> OcclusionMap:
        """The map with the outcomes of all windows, (N, windows, outputs...)."""
        reference = self._noise.reference(self.untouched.reference)
        return map_of(self.grid, scores, reference, self.untouched.target, report)

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
        )

    def unread(self, seconds: float) -> OcclusionMap:
        """The map of an input that the outcome does not depend on: no window changes anything."""
        reference, total = self.untouched.reference, self.grid.total
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
