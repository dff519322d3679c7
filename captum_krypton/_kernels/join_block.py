"""`join_block`: channels side by side, scaled, shifted and clamped, on whole volumes."""

from __future__ import annotations

import torch
from torch import Tensor

from .activation import scale_and_clamp
from .arena import cat_in_arena
from .library import library

__all__ = ["join_block"]

library.define(
    "join_block(Tensor[] tensors, Tensor? scale, Tensor? shift, float low, float high) -> Tensor"
)


def _join_block(
    tensors: list[Tensor], scale: Tensor | None, shift: Tensor | None, low: float, high: float
) -> Tensor:
    alone = len(tensors) == 1 and None not in (scale, shift)  # what is scaled is a new tensor
    joined = tensors[0] if alone else cat_in_arena(tensors, 1)
    return scale_and_clamp(joined, scale, shift, low, high)


library.impl("join_block", _join_block, "CompositeExplicitAutograd")
join_block = torch.ops.captum_krypton.join_block.default
"""Clamp(cat(tensors, 1) * scale + shift), on whole volumes; scale and shift by channel, or None."""
