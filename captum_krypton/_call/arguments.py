"""Captum's arguments, checked and in one form, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from captum._utils.common import _format_additional_forward_args, _format_tensor_into_tuples
from captum.attr._utils.common import (
    _format_and_verify_sliding_window_shapes,
    _format_and_verify_strides,
    _format_input_baseline,
)
from torch import Tensor

from .windows import WindowGrid, Windows

__all__ = [
    "PREDICTED",
    "ArgumentError",
    "Call",
    "PatchMean",
    "Predicted",
    "call_of",
    "checked_inputs",
    "make_call",
    "signature",
]


class ArgumentError(AssertionError, ValueError):
    """An argument that cannot be used.

    Captum raises AssertionError for these; ours are that too, and a ValueError as well.
    """


class Predicted:
    """The default target: the class predicted for the untouched input, for each example."""

    def __repr__(self) -> str:
        return "PREDICTED"


PREDICTED = Predicted()


class PatchMean:
    """A baseline: every window is covered by its own mean, channel by channel."""

    def __repr__(self) -> str:
        return "mean_patch()"


@dataclass(frozen=True)
class Call:
    """One call of `attribute`, checked.

    Attributes:
        inputs: the inputs as a tuple, each (N, ...).
        is_tuple: whether the user gave a tuple.
        grids: the windows of each input.
        baselines: a number or a tensor for each input.
        target: Captum's target, or `PREDICTED`.
        extra: the additional forward arguments.
        perturbations: windows an evaluation at most, or None.
        own_mean: for each input, whether windows are covered by their own mean; its baseline does
            not count then.
        method: what the windows are of, for the progress bar.
    """

    inputs: tuple[Tensor, ...]
    is_tuple: bool
    grids: tuple[Windows, ...]
    baselines: tuple[Any, ...]
    target: Any
    extra: tuple[Any, ...]
    perturbations: int | None
    own_mean: tuple[bool, ...]
    method: str = "Occlusion"

    def detached(self) -> Call:
        """The same call, with tensors of its own: what the user writes over stays as it was."""

        def own(thing: Any) -> Any:
            return thing.detach().clone() if isinstance(thing, Tensor) else thing

        extra = zip(self.extra, self.batched[len(self.inputs) :], strict=True)
        return replace(
            self,
            inputs=tuple(map(own, self.inputs)),
            baselines=tuple(map(own, self.baselines)),
            extra=tuple(own(a) if batched else a for a, batched in extra),
        )

    @property
    def examples(self) -> int:
        """N, the rows of the inputs."""
        return int(self.inputs[0].shape[0])

    @property
    def arguments(self) -> tuple[Any, ...]:
        """All positional arguments of the forward function."""
        return (*self.inputs, *self.extra)

    @property
    def batched(self) -> tuple[bool, ...]:
        """For each argument, whether it is a tensor with one row an example."""
        return tuple(
            isinstance(a, Tensor) and a.dim() > 0 and a.shape[0] == self.examples
            for a in self.arguments
        )


def make_call(
    inputs: Any,
    sliding_window_shapes: Any,
    strides: Any,
    baselines: Any,
    target: Any,
    additional_forward_args: Any,
    perturbations_per_eval: Any,
) -> Call:
    """Checks the arguments of `KryptonOcclusion.attribute`.

    Raises:
        AssertionError: where Captum raises it: wrong shapes, strides and baselines.
        ArgumentError: an AssertionError and a ValueError, for anything else that cannot be used.
        TypeError: for inputs that are not tensors.
    """
    formatted = checked_inputs(inputs)
    _check_rows(formatted)
    if sliding_window_shapes is None:
        sliding_window_shapes = tuple(default_window(t) for t in formatted)
        if strides is None:
            strides = tuple(default_stride(t) for t in formatted)
            strides = strides if isinstance(inputs, tuple) else strides[0]
    windows = _windows(sliding_window_shapes, formatted)
    steps = _strides(strides, formatted)
    grids = tuple(
        _grid(i, tensor, window, step)
        for i, (tensor, window, step) in enumerate(zip(formatted, windows, steps, strict=True))
    )
    return call_of(
        inputs, grids, baselines, target, additional_forward_args, perturbations_per_eval
    )


def call_of(
    inputs: Any,
    grids: tuple[Windows, ...],
    baselines: Any,
    target: Any,
    additional_forward_args: Any,
    perturbations_per_eval: Any,
) -> Call:
    """The call for checked inputs and their windows, with the other arguments checked.

    Raises:
        AssertionError: where Captum raises it.
        ArgumentError: an AssertionError and a ValueError, for anything else that cannot be used.
    """
    formatted = _format_tensor_into_tuples(inputs)
    _check_perturbations(perturbations_per_eval)
    given = baselines if isinstance(baselines, tuple) else (baselines,)
    own_mean = tuple(isinstance(one, PatchMean) for one in given)
    if any(own_mean):
        numbers = tuple(0 if own else one for own, one in zip(own_mean, given, strict=True))
        baselines = numbers if isinstance(baselines, tuple) else numbers[0]
    _, formatted_baselines = _format_input_baseline(inputs, baselines)
    _validate_baselines(formatted, formatted_baselines)
    extra = _format_additional_forward_args(additional_forward_args) or ()
    return Call(
        formatted,
        isinstance(inputs, tuple),
        grids,
        formatted_baselines,
        target,
        tuple(extra),
        perturbations_per_eval,
        own_mean if len(own_mean) == len(formatted) else (False,) * len(formatted),
    )


def checked_inputs(inputs: Any) -> tuple[Tensor, ...]:
    """The inputs as a tuple of tensors.

    Raises:
        ArgumentError: for a tensor without rows.
        TypeError: for inputs that are not tensors.
    """
    formatted: tuple[Tensor, ...] = _format_tensor_into_tuples(inputs)
    for i, tensor in enumerate(formatted):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"inputs[{i}] must be a tensor, not {type(tensor).__name__}")
        if tensor.dim() == 0:
            raise ArgumentError(f"inputs[{i}] must have a batch dimension, but is a 0-d tensor")
    return formatted


def default_window(tensor: Tensor) -> tuple[int, ...]:
    """All channels, a cube of a fourteenth of the shorter side: 16 at 224 pixels."""
    shape = tuple(tensor.shape[1:])
    spatial = shape[1:] if len(shape) > 1 else shape
    side = max(1, round(min(spatial, default=1) / 14))
    cube = tuple(min(side, size) for size in spatial)
    return (shape[0], *cube) if len(shape) > 1 else cube


def default_stride(tensor: Tensor) -> tuple[int, ...]:
    """A quarter of the default window along every spatial axis: the paper's workload."""
    window = default_window(tensor)
    spatial = window[1:] if len(window) > 1 else window
    steps = tuple(max(1, side // 4) for side in spatial)
    return (window[0], *steps) if len(window) > 1 else steps


def _check_rows(inputs: tuple[Tensor, ...]) -> None:
    rows = {int(t.shape[0]) for t in inputs}
    if len(rows) > 1:
        raise ArgumentError(
            f"inputs must have the same first dimension, but have {sorted(rows)} rows"
        )


def _windows(shapes: Any, inputs: tuple[Tensor, ...]) -> tuple[tuple[int, ...], ...]:
    if not isinstance(shapes, tuple) or not shapes:
        raise ArgumentError(
            "sliding_window_shapes must be a tuple with one entry a dimension of the input "
            f"(without the batch), or a tuple of such tuples, not {shapes!r}"
        )
    try:
        windows: tuple[tuple[int, ...], ...] = _format_and_verify_sliding_window_shapes(
            shapes, inputs
        )
    except AssertionError as error:
        if len(inputs) == 1 and len(shapes) == inputs[0].dim():
            raise ArgumentError(
                f"{error} inputs has shape {tuple(inputs[0].shape)}, of which the first dimension "
                "is the batch's: inputs[None] is a batch of one"
            ) from None
        raise
    for i, window in enumerate(windows):
        if not all(isinstance(side, int) and side > 0 for side in window):
            raise ArgumentError(
                f"sliding_window_shapes for input {i} must be positive integers, not {window}"
            )
    return windows


def _strides(strides: Any, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    steps: tuple[Any, ...] = _format_and_verify_strides(strides, inputs)
    for i, step in enumerate(steps):
        listed = step if isinstance(step, tuple) else (step,)
        if not all(isinstance(s, int) and s > 0 for s in listed):
            raise ArgumentError(f"strides for input {i} must be positive integers, not {step}")
    return steps


def _grid(i: int, tensor: Tensor, window: tuple[int, ...], step: Any) -> WindowGrid:
    shape = tuple(tensor.shape[1:])
    stride = step if isinstance(step, tuple) else (step,) * len(shape)
    if any(w > s for w, s in zip(window, shape, strict=True)):
        raise ArgumentError(
            f"sliding_window_shapes for input {i} is {window}: larger than the input's shape "
            f"{shape} (without the batch)"
        )
    if any(s > w and w < n for s, w, n in zip(stride, window, shape, strict=True)):
        raise ArgumentError(
            f"strides for input {i} is {stride}: a stride may not exceed the window {window}, "
            "except where the window spans the input"
        )
    return WindowGrid(shape, window, tuple(stride))


def _check_perturbations(value: Any) -> None:
    if value is not None and not (type(value) is int and value >= 1):
        raise ArgumentError(
            f"perturbations_per_eval must be an integer of at least 1, or None, not {value!r}"
        )


def _validate_baselines(inputs: tuple[Tensor, ...], baselines: tuple[Any, ...]) -> None:
    if len(baselines) != len(inputs):
        raise ArgumentError(
            f"baselines has {len(baselines)} entries, expected one for each of the "
            f"{len(inputs)} inputs"
        )
    for i, (tensor, baseline) in enumerate(zip(inputs, baselines, strict=True)):
        if not isinstance(baseline, Tensor):
            continue
        try:
            fits = torch.broadcast_shapes(baseline.shape, tensor.shape) == tensor.shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ArgumentError(
                f"baselines[{i}] has shape {tuple(baseline.shape)}, expected "
                f"{tuple(tensor.shape)} or a shape that broadcasts to it"
            )


def signature(call: Call) -> tuple[Any, ...]:
    """What of a call a capture depends on: kinds and shapes of tensors, values of the rest.

    It holds none of the arguments. That two objects have one hash, one after another, does no harm:
    what a graph was made from is compared at every call.
    """
    return tuple(
        (tuple(argument.shape[1:]), argument.dtype, argument.device)
        if isinstance(argument, Tensor) and batched
        else _key(argument)
        for argument, batched in zip(call.arguments, call.batched, strict=True)
    )


_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


def _key(argument: Any) -> Any:
    """A value that tells an argument from others, and keeps nothing of it alive."""
    if type(argument) in _PLAIN:
        return type(argument), argument
    if isinstance(argument, (tuple, list)):
        return type(argument), tuple(map(_key, argument))
    if isinstance(argument, dict):
        return type(argument), tuple((_key(k), _key(v)) for k, v in argument.items())
    try:
        return type(argument), hash(argument)
    except TypeError:
        return type(argument), id(argument)
