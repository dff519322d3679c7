"""What is done to the numbers that an operator makes before it stores them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ACTIVATIONS", "activate", "scale_and_clamp"]

aten = torch.ops.aten

# In the order of csrc/activation.h: what gives the activation of a tensor, which it may overwrite.
_ACTIVATED: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda tensor: tensor,
    "gelu": aten.gelu_.default,
    "silu": lambda tensor: F.silu(tensor, inplace=True),
    "hardswish": lambda tensor: F.hardswish(tensor, inplace=True),
}
ACTIVATIONS = (*_ACTIVATED, "prelu")


def activate(tensor: Tensor, activation: str, slope: Tensor | None = None) -> Tensor:
    """The activation of every number; `tensor` may be overwritten.

    Args:
        tensor: (N, C, ...).
        activation: one of `ACTIVATIONS`.
        slope: for PReLU, what numbers up to 0 are multiplied by, (C,).
    """
    if activation != "prelu":
        return _ACTIVATED[activation](tensor)
    if slope is None:
        raise ValueError("slope is None; PReLU has a number for each channel")
    return F.prelu(tensor, slope)


def scale_and_clamp(
    tensor: Tensor, scale: Tensor | None, shift: Tensor | None, low: float, high: float
) -> Tensor:
    """`tensor * scale + shift`, clamped; `scale` and `shift` have a number for each channel.

    They may have more bits than the tensor: the result is rounded once.
    """
    dtype = tensor.dtype
    if scale is not None and shift is not None:
        of_channels = (-1, *[1] * (tensor.dim() - 2))
        wide = tensor.to(scale.dtype)
        tensor = torch.addcmul(shift.reshape(of_channels), wide, scale.reshape(of_channels))
    clamped = tensor if (low, high) == (-math.inf, math.inf) else tensor.clamp(low, high)
    return clamped.to(dtype)
