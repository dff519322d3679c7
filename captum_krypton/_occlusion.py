"""`KryptonOcclusion`: Captum's arguments in, Captum's attributions out, sooner."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any, overload

import torch
from captum.attr import Occlusion
from captum.log import log_usage
from torch import Tensor

from ._arguments import PREDICTED, ArgumentError, Call, make_call
from ._engine import Engine, Fallback
from ._execute import RunStatistics
from ._explain import Explanation, explain
from ._heatmap import OcclusionMap
from ._naive import naive_maps
from ._plan import Plan

__all__ = ["KryptonFallbackWarning", "KryptonOcclusion"]

_Windows = tuple[int, ...] | tuple[tuple[int, ...], ...] | None
_Strides = int | tuple[int, ...] | tuple[int | tuple[int, ...], ...] | None


class KryptonFallbackWarning(UserWarning):
    """A map was made by Captum's own path; the message says why."""


class KryptonOcclusion(Occlusion):  # type: ignore[misc]
    """Occlusion attributions equal to `captum.attr.Occlusion`'s, in a fraction of the time.

    The model is captured as a graph and its values for the untouched input are kept; for every
    window only the part of each value that the window can reach is computed again (incremental
    inference, Section 4.1 of the KRYPTON paper). What cannot be captured runs through Captum's own
    code, with a `KryptonFallbackWarning`.

    Args:
        forward_func: the model, or any callable that Captum's Occlusion takes.
        memory_budget: bytes that activations may take, for the choice of the batch size; a
            quarter of the free memory where left out.
        winograd: whether 3 x 3 convolutions may run by Winograd's algorithm, where they are faster
            by it. Results then differ in rounding only.
        self_check: whether the first map of a graph is compared with the forward function itself
            on a few windows; a difference leads to Captum's path.

    Examples:
        >>> krypton = KryptonOcclusion(model)
        >>> attribution = krypton.attribute(x)
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        memory_budget: int | None = None,
        winograd: bool = True,
        self_check: bool = True,
    ) -> None:
        if not callable(forward_func):
            raise TypeError(f"forward_func must be callable, not {type(forward_func).__name__}")
        if memory_budget is not None and memory_budget <= 0:
            raise ArgumentError(f"memory_budget must be positive bytes, not {memory_budget}")
        super().__init__(forward_func)
        self.memory_budget = memory_budget
        self.winograd = winograd
        self.self_check = self_check
        self._engine = Engine(forward_func, memory_budget, winograd, self_check)
        self._warned: set[str] = set()

    @overload
    def attribute(
        self,
        inputs: Tensor,
        sliding_window_shapes: _Windows = ...,
        strides: _Strides = ...,
        baselines: Any = ...,
        target: Any = ...,
        additional_forward_args: Any = ...,
        perturbations_per_eval: int | None = ...,
        show_progress: bool = ...,
    ) -> Tensor: ...

    @overload
    def attribute(
        self,
        inputs: tuple[Tensor, ...],
        sliding_window_shapes: _Windows = ...,
        strides: _Strides = ...,
        baselines: Any = ...,
        target: Any = ...,
        additional_forward_args: Any = ...,
        perturbations_per_eval: int | None = ...,
        show_progress: bool = ...,
    ) -> tuple[Tensor, ...]: ...

    @log_usage()  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        sliding_window_shapes: tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None,
        strides: int | tuple[int, ...] | tuple[int | tuple[int, ...], ...] | None = None,
        baselines: Any = None,
        target: Any = PREDICTED,
        additional_forward_args: Any = None,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        """Attributions by occlusion: the mean drop of the outcome over the windows on a cell.

        Every argument is Captum's, in Captum's order. What may be left out besides:

        Args:
            inputs: the input, (N, ...), or a tuple of inputs, occluded one after another.
            sliding_window_shapes: the window's shape without the batch dimension, or one for each
                input. Default: all channels, a square of a fourteenth of the shorter side.
            strides: distance of neighbouring windows, a number or one a dimension, or one of these
                for each input. Default: a quarter of the default window, or 1 where the window is
                given (Captum's default).
            baselines: what covers a window: a number or a tensor of shape (N, ...) or (1, ...),
                or one of these for each input. Default: 0.
            target: the outcome's index, as in Captum. Default: the class predicted for the
                untouched input, for each example, where the forward gives several outputs an
                example. None means None: every output is an outcome.
            additional_forward_args: further arguments of the forward function.
            perturbations_per_eval: windows evaluated together at most. Default: chosen for the
                memory budget.
            show_progress: whether to show a progress bar over the windows.

        Returns:
            float32, of the input's shape (or (outcomes, *input shape)), a tuple for a tuple.
            A value that is not finite inside a window is replaced by the baseline; Captum's
            formula would keep it.

        Raises:
            AssertionError: for arguments that Captum refuses; see `ArgumentError`.
            IndexError: for a target that the output does not have.
        """
        call = make_call(
            inputs,
            sliding_window_shapes,
            strides,
            baselines,
            target,
            additional_forward_args,
            perturbations_per_eval,
        )
        try:
            maps = self._engine.maps(call, show_progress)
        except Fallback as fallback:
            made: Tensor | tuple[Tensor, ...] = self._captum(call, fallback, show_progress)
            return made
        attributions = tuple(m.attribution() for m in maps)
        return attributions if call.is_tuple else attributions[0]

    @overload
    def heatmap(
        self,
        inputs: Tensor,
        sliding_window_shapes: _Windows = ...,
        strides: _Strides = ...,
        baselines: Any = ...,
        target: Any = ...,
        additional_forward_args: Any = ...,
        perturbations_per_eval: int | None = ...,
        show_progress: bool = ...,
    ) -> OcclusionMap: ...

    @overload
    def heatmap(
        self,
        inputs: tuple[Tensor, ...],
        sliding_window_shapes: _Windows = ...,
        strides: _Strides = ...,
        baselines: Any = ...,
        target: Any = ...,
        additional_forward_args: Any = ...,
        perturbations_per_eval: int | None = ...,
        show_progress: bool = ...,
    ) -> tuple[OcclusionMap, ...]: ...

    @torch.no_grad()
    def heatmap(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        sliding_window_shapes: tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None,
        strides: int | tuple[int, ...] | tuple[int | tuple[int, ...], ...] | None = None,
        baselines: Any = None,
        target: Any = PREDICTED,
        additional_forward_args: Any = None,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
    ) -> OcclusionMap | tuple[OcclusionMap, ...]:
        """The outcome at every window (the paper's M, Eq. 6), and how it was made.

        Takes the arguments of `attribute`.

        Returns:
            An `OcclusionMap`; a tuple of them for a tuple of inputs.

        Raises:
            AssertionError: for arguments that Captum refuses; see `ArgumentError`.
            IndexError: for a target that the output does not have.
        """
        call = make_call(
            inputs,
            sliding_window_shapes,
            strides,
            baselines,
            target,
            additional_forward_args,
            perturbations_per_eval,
        )
        try:
            maps = self._engine.maps(call, show_progress)
        except Fallback as fallback:
            self._warn(fallback)
            maps = naive_maps(self.forward_func, call, str(fallback), show_progress)
        return maps if call.is_tuple else maps[0]

    @torch.no_grad()
    def explain(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        sliding_window_shapes: tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None,
        strides: int | tuple[int, ...] | tuple[int | tuple[int, ...], ...] | None = None,
        baselines: Any = None,
        target: Any = PREDICTED,
        additional_forward_args: Any = None,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
        *,
        run: bool = False,
    ) -> Explanation:
        """The plan for a map; print it.

        Takes the arguments of `attribute`. With `run=True` the map is made too, and every
        operator's measured time stands beside the predicted one (on a GPU, that of its launches).
        Without it, nothing but the untouched input is run.

        Returns:
            One row an operator (output, patch and read-in size, algorithm, multiply-accumulates
            full and incremental, time), the totals with the theoretical speed-up (Eq. 13-17), and
            why operators are global or the whole map falls back.
        """
        call = make_call(
            inputs,
            sliding_window_shapes,
            strides,
            baselines,
            target,
            additional_forward_args,
            perturbations_per_eval,
        )
        try:
            if not run:
                return explain(self._engine.plans(call))
            ran: list[tuple[Plan, RunStatistics]] = []
            self._engine.maps(call, show_progress, ran)
            plans, statistics = zip(*ran, strict=True)
            return explain(plans, tuple(s.spent for s in statistics))
        except Fallback as fallback:
            return Explanation((), str(fallback))

    def _captum(self, call: Call, fallback: Fallback, show_progress: bool) -> Any:
        """Captum's own path, for what the engine cannot do."""
        self._warn(fallback)
        target = self._engine.resolved_target(call)
        return Occlusion.attribute.__wrapped__(
            self,
            call.inputs if call.is_tuple else call.inputs[0],
            sliding_window_shapes=call.windows,
            strides=call.strides,
            baselines=call.baselines if call.is_tuple else call.baselines[0],
            target=target,
            additional_forward_args=call.extra or None,
            perturbations_per_eval=call.perturbations or 1,
            show_progress=show_progress,
        )

    def _warn(self, fallback: Fallback) -> None:
        """Says once for each reason that a map is made by Captum's path."""
        reason = str(fallback)
        if fallback.quiet or reason in self._warned:
            return
        self._warned.add(reason)
        warnings.warn(
            f"this map is made by Captum's own path, at its speed: {reason}",
            KryptonFallbackWarning,
            stacklevel=_callers_level(),
        )


def _callers_level() -> int:
    """The stack level of the first caller outside this package, Captum and torch."""
    inside = ("captum_krypton.", "captum.", "torch.")
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and f"{frame.f_globals.get('__name__')}.".startswith(inside):
        level, frame = level + 1, frame.f_back
    return level
