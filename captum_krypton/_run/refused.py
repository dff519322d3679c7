"""Inputs that a forward function refuses as they are, and takes in another form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from captum._utils.common import _run_forward
from torch import Tensor

from .._call import ArgumentError, Call

__all__ = ["check_refused"]

_COLOURS = 1, 3, 4  # channels of a picture


def check_refused(forward: Callable[..., Any], call: Call, error: Exception) -> None:
    """Says what to change where a forward function fails on inputs that lack a usual form.

    Of inputs that could be put in another form (`_forms`) the untouched ones are run once more. If
    they fail, their other forms are run too, up to one that does not.

    Args:
        forward: the forward function.
        call: the checked arguments.
        error: what the forward function raised for them, or for some made of them.

    Raises:
        ArgumentError: where the forward function fails on the inputs and takes another form.
    """
    (tensor, *more) = call.inputs
    forms = [] if more else list(_forms(tensor, _floating(forward)))
    if not forms or isinstance(error, torch.OutOfMemoryError):
        return
    devices = [tensor.device] if tensor.is_cuda else []
    with torch.random.fork_rng(devices):
        failure = _failure(forward, call, tensor)
        if failure is None:
            return
        takes = (words for words, form in forms if _failure(forward, call, form) is None)
        taken = next(takes, None)
    if taken is not None:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ArgumentError(
            f"inputs of shape {tuple(tensor.shape)} and {kind} make forward_func fail with "
            f"{type(failure).__name__} ({failure}); it takes {taken}"
        ) from failure


def _failure(forward: Callable[..., Any], call: Call, tensor: Tensor) -> Exception | None:
    """What a forward function raises for an input."""
    try:
        _run_forward(forward, tensor, None, call.extra or None)
    except Exception as failure:
        return failure
    return None


def _floating(forward: Callable[..., Any]) -> torch.dtype | None:
    """The precision of a model, None where it has none; float32 for another function."""
    if not isinstance(forward, torch.nn.Module):
        return torch.float32
    return next((p.dtype for p in forward.parameters() if p.is_floating_point()), None)


def _forms(tensor: Tensor, floating: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
    """Other forms of an input, those with the fewest changes first, and words for each."""
    kinds = [("", tensor)]
    if floating is not None and tensor.dtype != floating and not tensor.is_complex():
        told = ", scaled and normalized as for its training" if tensor.dtype == torch.uint8 else ""
        kinds.append((f".to({floating}){told}", tensor.to(floating)))
    channels = 1 if tensor.dim() > 3 else 0  # of a picture without a batch dimension, the first
    for words, other in kinds:
        placed = [("inputs", other)]
        if tensor.dim() >= 3 and tensor.shape[-1] in _COLOURS:
            placed.append((f"inputs.movedim(-1, {channels})", other.movedim(-1, channels)))
        for name, form in placed:
            if form is not tensor:
                yield name + words, form
            if tensor.dim() in (2, 3):
                yield f"{name}[None]{words}", form[None]
