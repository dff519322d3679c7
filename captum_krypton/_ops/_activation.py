"""The activations that convolutions can end with."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ACTIVATIONS", "activate"]

aten = torch.ops.aten

# In the order of csrc/convolve.h: what overwrites its argument with the activation.
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
