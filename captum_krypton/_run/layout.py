"""Memory layouts, and values seen as blocks: rows, channels, window axes."""

from __future__ import annotations

from torch import Tensor

from .._kernels import PATCH_TYPES, in_channels_last
from .._operators import Dims

__all__ = ["from_block", "in_layout", "prefers_channels_last", "to_block"]


def prefers_channels_last(tensor: Tensor) -> bool:
    """Whether kernels for tensors of this kind are faster with channels last."""
    return tensor.dtype in PATCH_TYPES


def in_layout(tensor: Tensor, channels_last: bool) -> Tensor:
    """The tensor, contiguous with its channels last or first.

    Where there is one axis, channels are last for the kernels only: PyTorch has no such format.
    """
    last = tensor.dim() in (4, 5)
    if tensor.dim() == 3:
        last = tensor.device.type == "cpu" and tensor.dtype in PATCH_TYPES
    return in_channels_last(tensor) if channels_last and last else tensor.contiguous()


def to_block(tensor: Tensor, dims: Dims) -> Tensor:
    """(rows, ...) with window axes at `dims` as (rows, all else, *axes)."""
    present = [d for d in dims if d is not None]
    if present == list(range(2, tensor.dim())):
        return tensor
    others = [d for d in range(1, tensor.dim()) if d not in present]
    moved = tensor.permute(0, *others, *present)
    return moved.flatten(1, len(others)) if others else moved.unsqueeze(1)


def from_block(block: Tensor, dims: Dims, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `to_block` for a value whose dimensions but the axes have sizes `shape`."""
    present = [d for d in dims if d is not None]
    if present == list(range(2, len(shape))):
        return block
    others = [d for d in range(1, len(shape)) if d not in present]
    moved = block.reshape(block.shape[0], *(shape[d] for d in others), *block.shape[2:])
    order = [0, *others, *present]
    return moved.permute([order.index(d) for d in range(len(shape))])
