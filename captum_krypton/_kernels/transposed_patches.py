"""`transposed_patches`: the transposed convolution of every window's input, which is never made.

Along an axis, outputs whose place plus the padding is the same modulo the stride (a *phase*) read
the same taps of the kernel, and neighbours of them read neighbouring cells of the input. So each
phase is an ordinary convolution of stride 1 by some of the taps, and nothing is multiplied by a
zero.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import loader, reference
from .activation import ACTIVATIONS
from .convolve_patches import Patches, pack_weight, panel_size
from .formats import empty_in_format
from .library import library

__all__ = ["PackedTransposed", "pack_transposed", "transposed_patches"]

library.define(
    "transposed_patches(Tensor base, Tensor patch, Tensor image, Tensor patch_offset, "
    "Tensor? patch_extent, Tensor output_offset, Tensor weight, Tensor packed, Tensor? bias, "
    "SymInt[] size, Tensor? output_extent, int[] stride, int[] padding, int[] dilation, "
    "int groups, Tensor? residual_base, Tensor? residual_patch, Tensor? residual_offset, "
    "Tensor? residual_extent, float low, float high, int activation=0, Tensor? slope=None) "
    "-> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@dataclass(frozen=True)
class PackedTransposed:
    """A transposed convolution's weight as the kernels read it.

    Attributes:
        weight: (C, K, *kernel), one to three axes; K is a group's.
        packed: the same numbers in the kernels' order, phase by phase.
        stride: the stride that it is for, along each axis.
        dilation: the dilation that it is for, along each axis.
        groups: groups of channels that do not mix.
    """

    weight: Tensor
    packed: Tensor
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def pack_transposed(
    weight: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int = 1
) -> PackedTransposed:
    """Puts a transposed convolution's weight into the order of the kernels.

    Args:
        weight: (C, K, *kernel), one to three axes, float32; K is a group's.
        stride: the stride along each axis.
        dilation: the dilation along each axis.
        groups: groups of channels that do not mix.
    """
    packed = weight
    if panel_size():
        ordinary = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        of_axes = [
            _taps_of_phases(*axis) for axis in zip(weight.shape[2:], stride, dilation, strict=True)
        ]
        parts = []
        for taps in itertools.product(*of_axes):
            part = ordinary
            for axis, chosen in enumerate(taps):
                part = part.index_select(axis + 2, torch.tensor(chosen, dtype=torch.int64))
            if part.numel():
                parts.append(pack_weight(part, groups=groups).packed.flatten())
        packed = torch.cat(parts)
    return PackedTransposed(weight, packed, tuple(stride), tuple(dilation), groups)


def _taps_of_phases(taps: int, stride: int, dilation: int) -> list[list[int]]:
    """The taps that the outputs of each phase read, in the order of what they read."""
    return [
        [tap for tap in reversed(range(taps)) if tap * dilation % stride == phase]
        for phase in range(stride)
    ]


def transposed_patches(
    source: Patches,
    output_offset: Tensor,
    weight: PackedTransposed,
    bias: Tensor | None,
    size: Sequence[int],
    *,
    padding: Sequence[int] | None = None,
    residual: Patches | None = None,
    low: float = -math.inf,
    high: float = math.inf,
    output_extent: Tensor | None = None,
    activation: str = "none",
    slope: Tensor | None = None,
) -> Tensor:
    """Makes every window's cells of a transposed convolution's output, and finishes them.

    Cells of the input outside of its volume add nothing.

    Args:
        source: the transposed convolution's input, any of `PATCH_TYPES`.
        output_offset: the first cell of each output patch in the output's volume, (B, axes), int64.
        weight: from `pack_transposed`.
        bias: (K,), float32, or None.
        size: the output patches' size along each axis, in cells.
        padding: the transposed convolution's padding along each axis: cells that are missing in
            front of its output; None for 0.
        residual: what is added to the output, of K channels and the input's type; None for nothing.
        low: the least value of the output.
        high: the largest value of the output.
        output_extent: how many cells of each output patch are computed, from its first, (B, axes),
            int64; the others hold anything. None for all.
        activation: one of `ACTIVATIONS`.
        slope: for PReLU, what numbers up to 0 are multiplied by, (K,), float32.

    Returns:
        The output patches, (B, K, *size), channels-last, of the input's type; here K is that of all
        groups.
    """
    loader.prepare()
    base, patch, _, offset, extent = (None,) * 5 if residual is None else residual
    result: Tensor = torch.ops.captum_krypton.transposed_patches.default(
        *source,
        output_offset,
        weight.weight,
        weight.packed,
        bias,
        size,
        output_extent,
        weight.stride,
        [0] * len(size) if padding is None else padding,
        weight.dilation,
        weight.groups,
        base,
        patch,
        offset,
        extent,
        low,
        high,
        ACTIVATIONS.index(activation),
        slope,
    )
    return result


def _fake(
    base: Tensor,
    patch: Tensor,
    image: Tensor,
    patch_offset: Tensor,
    patch_extent: Tensor | None,
    output_offset: Tensor,
    weight: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    size: Sequence[int],
    output_extent: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    *rest: object,
) -> Tensor:
    shape = (patch.shape[0], weight.shape[1] * groups, *size)
    return empty_in_format(shape, base, last=True)


library.impl("transposed_patches", reference.transposed_patches, "CompositeExplicitAutograd")
torch.library.register_fake("captum_krypton::transposed_patches", _fake, lib=library)
