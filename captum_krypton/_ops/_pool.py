"""`pool_patches`: the pooling of every window's read-in block, which is never made."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_krypton._ops import _loader
from captum_krypton._ops._convolve import Patches
from captum_krypton._ops._gather import gather_patches
from captum_krypton._ops._library import library

__all__ = ["pool_patches"]

library.define(
    "pool_patches(Tensor base, Tensor patch, Tensor image, Tensor patch_offset, "
    "Tensor read_offset, SymInt[] size, int[] kernel, int[] stride, int[] dilation, "
    "bool maximum, float divisor) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def pool_patches(
    source: Patches,
    read_offset: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    *,
    stride: Sequence[int],
    dilation: Sequence[int] = (1, 1),
    maximum: bool,
    divisor: float = 1.0,
) -> Tensor:
    """Pools every window's read-in block.

    The cells of a read-in block are those of `gather_patches`; outside of the volume they are -inf
    for max pooling and zero otherwise. The kernel reads them where they lie.

    Args:
        source: the pooling's input.
        read_offset: the first cell of each window's read-in block, (B, 2), int64; negative inside
            the leading padding.
        size: height and width of the output patches, in cells.
        kernel: height and width of the pooling's window, in cells.
        stride: its stride along each axis.
        dilation: its dilation along each axis.
        maximum: max pooling; else sums over the window.
        divisor: what the sums are divided by.

    Returns:
        The output patches, (B, C, *size), float32, channels-last.
    """
    if not _loader.ready:
        _loader.load()
    result: Tensor = torch.ops.captum_krypton.pool_patches.default(
        *source, read_offset, size, kernel, stride, dilation, maximum, divisor
    )
    return result


def _reference(
    base: Tensor,
    patch: Tensor,
    image: Tensor,
    patch_offset: Tensor,
    read_offset: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    maximum: bool,
    divisor: float,
) -> Tensor:
    """The plain-torch twin: gathers the blocks and pools them."""
    read_size = [
        (n - 1) * s + (k - 1) * d + 1
        for n, s, k, d in zip(size, stride, kernel, dilation, strict=True)
    ]
    fill = -math.inf if maximum else 0.0
    block = gather_patches(base, patch, image, patch_offset, read_offset, read_size, fill)
    if maximum:
        pooled = F.max_pool2d(block, tuple(kernel), tuple(stride), 0, tuple(dilation))
    else:
        ones = block.new_ones(block.shape[1], 1, *kernel)
        pooled = F.conv2d(block, ones, None, tuple(stride), 0, tuple(dilation), block.shape[1])
        pooled = pooled / divisor
    return pooled.contiguous(memory_format=torch.channels_last)


def _fake(
    base: Tensor,
    patch: Tensor,
    image: Tensor,
    patch_offset: Tensor,
    read_offset: Tensor,
    size: Sequence[int],
    *rest: object,
) -> Tensor:
    shape = (patch.shape[0], base.shape[1], *size)
    return base.new_empty(shape).contiguous(memory_format=torch.channels_last)


library.impl("pool_patches", _reference, "CompositeExplicitAutograd")
torch.library.register_fake("captum_krypton::pool_patches", _fake, lib=library)
