"""Memory formats by the number of dimensions.

With channels last, the channels of a cell lie side by side and its cells in their order. PyTorch
has a name for that where there are two or three axes after the channels, and none where there is
one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["PATCH_TYPES", "in_channels_last", "empty_in_format", "is_channels_last"]

PATCH_TYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What the compiled kernels convolve, pool and join: they compute in float32, and round once."""

_NAMED = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_channels_last(tensor: Tensor) -> bool:
    """Whether (rows, channels, *axes), one to three axes, lies with channels last, without gaps."""
    if tensor.dim() == 3:
        return tensor.transpose(1, 2).is_contiguous()
    named = _NAMED.get(tensor.dim())
    return named is not None and tensor.is_contiguous(memory_format=named)


def in_channels_last(tensor: Tensor) -> Tensor:
    """(rows, channels, *axes), one to three axes, with channels last."""
    if tensor.dim() == 3:
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    return tensor.contiguous(memory_format=_NAMED[tensor.dim()])


def empty_in_format(shape: Sequence[int], like: Tensor, last: bool) -> Tensor:
    """A tensor without content of the dtype and device of `like`, channels last or first."""
    dtype, device = like.dtype, like.device
    if last and len(shape) == 3:
        cells = torch.empty((shape[0], shape[2], shape[1]), dtype=dtype, device=device)
        return cells.transpose(1, 2)
    memory_format = _NAMED[len(shape)] if last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=device, memory_format=memory_format)
