"""What is done to the numbers that an operator makes before it stores them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ACTIVATIONS", "activate", "scale_and_clamp"]

aten = torch.ops.aten

# In the order of csrc/activation.h: what overwrites its argument with the activation.
_IN_PLACE: dict[str, Callable[[Tensor], object]] = {
    "none": lambda tensor: tensor,
    "gelu": aten.gelu_.default,
    "silu": lambda tensor: F.silu(tensor, inplace=True),
    "hardswish": lambda tensor: F.hardswish(tensor, inplace=True),
}
ACTIVATIONS = tuple(_IN_PLACE)


def activate(tensor: Tensor, activation: str) -> Tensor:
    """The activation of every number, in place."""
    _IN_PLACE[activation](tensor)
    return tensor


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
