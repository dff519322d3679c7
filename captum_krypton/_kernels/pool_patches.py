"""`pool_patches`: the pooling of every window's read-in block, which is never made."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import loader, reference
from .convolve_patches import Patches
from .formats import empty_in_format
from .library import library

__all__ = ["pool_patches"]

library.define(
    "pool_patches(Tensor base, Tensor patch, Tensor image, Tensor patch_offset, "
    "Tensor? patch_extent, Tensor read_offset, SymInt[] size, Tensor? output_extent, "
    "int[] kernel, int[] stride, int[] dilation, bool maximum, float divisor) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def pool_patches(
    source: Patches,
    read_offset: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    *,
    stride: Sequence[int],
    dilation: Sequence[int] | None = None,
    maximum: bool,
    divisor: float = 1.0,
    output_extent: Tensor | None = None,
) -> Tensor:
    """Pools every window's read-in block.

    The cells of a read-in block are those of `gather_patches`; outside of the volume they are -inf
    for max pooling and zero otherwise. The kernel reads them where they lie.

    Args:
        source: the pooling's input, any of `PATCH_TYPES`, of one to three axes; on a GPU of two.
        read_offset: the first cell of each window's read-in block, (B, axes), int64; negative
            inside the leading padding.
        size: the output patches' size along each axis, in cells.
        kernel: the size of the pooling's window along each axis, in cells.
        stride: its stride along each axis.
        dilation: its dilation along each axis; None for 1.
        maximum: max pooling; else sums over the window.
        divisor: what the sums are divided by.
        output_extent: how many cells of each output patch are computed, from its first, (B, axes),
            int64; the others hold anything. None for all.

    Returns:
        The output patches, (B, C, *size), channels-last, of the input's type.
    """
    loader.prepare("cuda" if source.base.is_cuda else "cpu")
    dilation = [1] * len(kernel) if dilation is None else dilation
    result: Tensor = torch.ops.captum_krypton.pool_patches.default(
        *source, read_offset, size, output_extent, kernel, stride, dilation, maximum, divisor
    )
    return result


def _fake(
    base: Tensor,
    patch: Tensor,
    image: Tensor,
    patch_offset: Tensor,
    patch_extent: Tensor | None,
    read_offset: Tensor,
    size: Sequence[int],
    *rest: object,
) -> Tensor:
    shape = (patch.shape[0], base.shape[1], *size)
    return empty_in_format(shape, base, last=True)


library.impl("pool_patches", reference.pool_patches, "CompositeExplicitAutograd")
torch.library.register_fake("captum_krypton::pool_patches", _fake, lib=library)
