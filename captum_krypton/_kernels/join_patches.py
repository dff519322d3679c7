"""`join_patches`: channels of several patches side by side, scaled, shifted and clamped."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import loader, reference
from .convolve_patches import Patches
from .formats import empty_in_format
from .library import library

__all__ = ["join_patches"]

library.define(
    "join_patches(Tensor[] bases, Tensor[] patches, Tensor image, Tensor[] patch_offsets, "
    "Tensor[] patch_extents, Tensor read_offset, SymInt[] size, Tensor? output_extent, "
    "Tensor? scale, Tensor? shift, float low, float high) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def join_patches(
    sources: Sequence[Patches],
    read_offset: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    size: Sequence[int],
    *,
    low: float = -math.inf,
    high: float = math.inf,
    output_extent: Tensor | None = None,
) -> Tensor:
    """Puts the channels of every window's blocks side by side, scales, shifts and clamps them.

    The cells of a block are those of `gather_patches`, with zeros outside of the volume.

    Args:
        sources: the values whose channels are joined, of one size along one to three axes and one
            type, any of `PATCH_TYPES`; `image` is the same in all.
        read_offset: the first cell of each window's block, (B, axes), int64.
        scale: (K,), float32, what the numbers of each channel of the output are multiplied by;
            None for 1.
        shift: (K,), float32, what is added to them then; None with `scale`.
        size: the output patches' size along each axis, in cells.
        low: the least value of the output.
        high: the largest value of the output.
        output_extent: how many cells of each output patch are computed, from its first, (B, axes),
            int64; the others hold anything. None for all.

    Returns:
        The output patches, (B, K, *size), channels-last, of the values' type.
    """
    loader.prepare()
    result: Tensor = torch.ops.captum_krypton.join_patches.default(
        [source.base for source in sources],
        [source.patch for source in sources],
        sources[0].image,
        [source.patch_offset for source in sources],
        [_extent(source) for source in sources],
        read_offset,
        size,
        output_extent,
        scale,
        shift,
        low,
        high,
    )
    return result


def _extent(source: Patches) -> Tensor:
    if source.patch_extent is not None:
        return source.patch_extent
    return source.patch_offset.new_tensor(source.patch.shape[2:]).expand_as(source.patch_offset)


def _fake(bases: list[Tensor], patches: list[Tensor], image: Tensor, *rest: object) -> Tensor:
    size = rest[3]
    assert isinstance(size, (list, tuple))
    shape = (patches[0].shape[0], sum(base.shape[1] for base in bases), *size)
    return empty_in_format(shape, bases[0], last=True)


library.impl("join_patches", reference.join_patches, "CompositeExplicitAutograd")
torch.library.register_fake("captum_krypton::join_patches", _fake, lib=library)
