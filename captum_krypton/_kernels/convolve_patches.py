"""`convolve_patches`: the convolution of every window's read-in block, which is never made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import loader, reference
from .activation import ACTIVATIONS
from .formats import empty_in_format, in_channels_last
from .library import library

__all__ = [
    "PackedWeight",
    "Patches",
    "allows_winograd",
    "convolve_patches",
    "is_narrow",
    "pack_weight",
    "panel_size",
    "winograd_limit",
    "winograd_sizes",
]

library.define(
    "convolve_patches(Tensor base, Tensor patch, Tensor image, Tensor patch_offset, "
    "Tensor? patch_extent, Tensor read_offset, Tensor weight, Tensor packed, Tensor? bias, "
    "SymInt[] size, Tensor? output_extent, int[] stride, int[] dilation, bool winograd, "
    "Tensor? residual_base, Tensor? residual_patch, Tensor? residual_offset, "
    "Tensor? residual_extent, Tensor? output_offset, float low, float high, "
    "int activation=0, Tensor? energy=None, Tensor? limit=None, Tensor? slope=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
library.define("panel_size() -> int")

# As in csrc/cpu/winograd_sizes.h: where Winograd's algorithm interpolates besides 0 and infinity,
# and at the negatives, by the taps of a group; the taps that an axis may have.
_PAIRS = {3: (0.625, 1.5), 4: (0.5, 1.0, 2.0)}
_MOST_TAPS = 9
_LEAST_CHANNELS = 16  # no kernel has more lanes

# How many times louder a tile of Winograd's algorithm may be than the typical cell of its image,
# and than a quiet one: one in fifty is quieter. Activations of most networks stay below 10 and 830.
_ABOVE_TYPICAL, _ABOVE_QUIET, _QUIET = 32.0, 1024.0, 0.02
_LEVELS = 64  # cells along an axis from which that is known, or twice as many


class Patches(NamedTuple):
    """A value that windows change in part, for a batch of windows.

    Attributes:
        base: the untouched images' volumes, (N, C, *axes), one to three axes.
        patch: the windows' patches, (B, C, *axes).
        image: the row of `base` that each window belongs to, (B,), int64.
        patch_offset: the first cell of each patch in the volume, (B, axes), int64.
        patch_extent: how many cells of each patch count, from its first, (B, axes), int64; None
            for all of them.
    """

    base: Tensor
    patch: Tensor
    image: Tensor
    patch_offset: Tensor
    patch_extent: Tensor | None = None


@dataclass(frozen=True)
class PackedWeight:
    """A weight as the kernels read it.

    Attributes:
        weight: (K, C, *kernel), one to three axes; C is a group's.
        packed: the same numbers, or their transform, in the kernels' order.
        winograd: whether it is transformed for Winograd's algorithm.
        energy: for Winograd's algorithm, how much of the outputs' mean square each input channel
            makes, (C,): the squares of its weights, mean over the outputs.
    """

    weight: Tensor
    packed: Tensor
    winograd: bool
    energy: Tensor | None = None


def panel_size() -> int:
    """Output channels in a panel of packed weights; 0 where there are no compiled kernels."""
    loader.prepare()
    if not loader.has_kernels():
        return 0
    found: int = torch.ops.captum_krypton.panel_size.default()
    return found


def is_narrow(groups: int, out_channels: int, panel: int) -> bool:
    """Whether most lanes of a panel would be idle (`is_narrow` in csrc/cpu/kernels.h)."""
    return groups == 1 and 8 * out_channels <= panel


def _group_taps(kernel: Sequence[int]) -> int:
    """Taps in a group of Winograd's algorithm (`group_taps` in csrc/cpu/winograd_sizes.h)."""
    _, height, width = _lifted(kernel)
    return 4 if min(height, width) == 1 and max(height, width) in (4, 7, 8) else 3


def _lifted(kernel: Sequence[int]) -> list[int]:
    """The kernel's taps along depth, height and width; one where there is no such axis."""
    return [1] * (3 - len(kernel)) + list(kernel)


def winograd_sizes(
    kernel: Sequence[int], cells: Sequence[npt.NDArray[np.int64]]
) -> tuple[float, int]:
    """What Winograd's algorithm makes of patches.

    Args:
        kernel: the kernel's taps along each axis.
        cells: the cells along each axis that each window's patch has.

    Returns:
        A window's points, on average, and the groups of taps, of which each has as many products
        as there are points.
    """
    group = _group_taps(kernel)
    outputs = 2 * len(_PAIRS[group]) + 2 - (group - 1)  # of a tile, at most
    points, groups = 1.0, 1
    planar = [False] * (len(kernel) - 2) + [True] * 2  # the depth's taps are groups of one
    for taps, n, transformed in zip(kernel, cells, planar[-len(kernel) :], strict=True):
        along = n if taps == 1 or not transformed else n + (group - 1) * -(-n // outputs)
        points *= float(along.mean())
        groups *= -(-taps // group) if transformed else taps
    return points, groups


def allows_winograd(weight: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> bool:
    """Whether Winograd's algorithm computes an ungrouped convolution.

    Args:
        weight: the weight's shape, (K, C, *kernel), one to three axes.
        stride: the convolution's stride along each axis.
        dilation: the convolution's dilation along each axis.
    """
    channels, (depth, height, width) = weight[:2], _lifted(weight[2:])
    steps = {*stride, *dilation}
    return (
        steps == {1}
        and max(height, width) > 1
        and max(depth, height, width) <= _MOST_TAPS
        and min(channels) >= _LEAST_CHANNELS
    )


def pack_weight(weight: Tensor, winograd: bool = False, *, groups: int = 1) -> PackedWeight:
    """Puts a weight into the order of the kernels.

    Args:
        weight: (K, C, *kernel), one to three axes, float32; C is a group's.
        winograd: for Winograd's algorithm; see `allows_winograd`.
        groups: groups of channels that do not mix.

    Raises:
        ValueError: for a grouped convolution by Winograd's algorithm.
    """
    if winograd and groups > 1:
        raise ValueError(f"winograd is for ungrouped convolutions; groups is {groups}")
    panel = panel_size()
    energy = None
    if winograd:  # channels last, as a tile out of range reads it
        weight = in_channels_last(weight)
        energy = weight.square().sum((0, *range(2, weight.dim()))) / len(weight)
    if panel == 0:
        return PackedWeight(weight, weight, winograd, energy)
    if not winograd and is_narrow(groups, len(weight), panel):
        return PackedWeight(weight, weight.flatten(2).transpose(1, 2).contiguous(), winograd)
    if groups > 1 and len(weight) == groups and weight.shape[1] == 1:  # depthwise
        return PackedWeight(weight, weight.flatten(1).t().contiguous(), winograd)
    if groups > 1:
        parts = [_in_panels(part, panel, None) for part in weight.chunk(groups)]
        return PackedWeight(weight, torch.cat(parts), winograd)
    transform = _weight_transform(weight.shape[2:]) if winograd else None
    return PackedWeight(weight, _in_panels(weight, panel, transform), winograd, energy)


def _in_panels(weight: Tensor, panel: int, transform: Tensor | None) -> Tensor:
    """The weight or its points in panels of output channels, the last one filled up with zeros."""
    count = math.prod(weight.shape[2:]) if transform is None else transform.shape[1]
    channels = weight.shape[1]
    depth = channels * (1 if transform is None else transform.shape[0])
    panels = -(-len(weight) // panel)
    packed = weight.new_zeros(count, panels, depth, panel)
    for number in range(panels):  # one at a time: they stay in the caches
        rows = weight[number * panel : (number + 1) * panel].flatten(2)
        taps = rows.permute(2, 1, 0).contiguous()  # (taps, channels, rows)
        if transform is None:
            packed[:, number, :, : len(rows)] = taps
            continue
        taps = taps.flatten(1).double()
        for group, matrix in enumerate(transform):
            points = (matrix @ taps).unflatten(1, (channels, len(rows)))
            of_group = slice(group * channels, (group + 1) * channels)
            packed[:, number, of_group, : len(rows)] = points
    # Without a transform panel by panel, each with its taps.
    return packed.transpose(0, 1).contiguous() if transform is None else packed


def winograd_limit(base: Tensor, energy: Tensor) -> Tensor:
    """Up to which level Winograd's algorithm computes a tile, (N,): `Range` in csrc/cpu/kernels.h.

    All outputs of a tile have an error in proportion to the root of the tile's level. Where all
    cells are alike, that is Winograd's ordinary error, about 5e-7 of an output. A tile that is
    `_ABOVE_TYPICAL` times louder than the image's typical cell leaves an error of 2e-5 of a typical
    output in those that read none of its loud cells, and `_ABOVE_QUIET` bounds the error of the
    quieter ones in the same way. Cells of zeros are no measure, nor is what is not finite.

    Args:
        base: the untouched images' volumes, (N, C, *axes).
        energy: the weight's, (C,), from `pack_weight`.
    """
    some = [slice(None), *(slice(None, None, max(1, n // _LEVELS)) for n in base.shape[2:])]
    cells = base.movedim(1, -1)[tuple(some)]
    levels = (cells.to(energy.dtype).square() @ energy).flatten(1)
    limits = []
    for level in levels:
        level = level[(level > 0) & level.isfinite()]
        if len(level) == 0:
            limits.append(levels.new_zeros(()))
            continue
        quiet, typical = torch.quantile(level, level.new_tensor([_QUIET, 0.5]))
        limits.append(torch.minimum(_ABOVE_TYPICAL**2 * typical, _ABOVE_QUIET**2 * quiet))
    return torch.stack(limits)


def _weight_transform(kernel: Sequence[int]) -> Tensor:
    """From taps to points, (groups of taps, points, taps), of all axes, float64.

    Each tap along the depth is a group of its own, and has no points.
    """
    group, (depth, *plane) = _group_taps(kernel), _lifted(kernel)
    first, second = (_axis_transform(taps, group) for taps in plane)
    both = torch.einsum("gpt,hqu->ghpqtu", first, second)
    both = both.flatten(4).flatten(2, 3).flatten(0, 1)
    taps = torch.eye(depth, dtype=both.dtype)
    return torch.einsum("de,gpt->dgpet", taps, both).flatten(3).flatten(0, 1)


def _axis_transform(taps: int, group: int) -> Tensor:
    """Winograd's G for every group of taps; the identity for an axis of one tap."""
    if taps == 1:
        return torch.ones(1, 1, 1, dtype=torch.float64)
    finite = [0.0, *(sign * place for place in _PAIRS[group] for sign in (1, -1))]
    rows = []
    for place in finite:
        divisor = math.prod(place - other for other in finite if other != place)
        rows.append([place**power / divisor for power in range(group)])
    rows.append([0.0] * (group - 1) + [1.0])  # infinity
    one = torch.tensor(rows, dtype=torch.float64)
    groups = -(-taps // group)
    every = one.new_zeros(groups, len(rows), group * groups)
    for number in range(groups):
        every[number, :, group * number : group * (number + 1)] = one
    return every[:, :, :taps]


def convolve_patches(
    source: Patches,
    read_offset: Tensor,
    weight: PackedWeight,
    bias: Tensor | None,
    size: Sequence[int],
    *,
    stride: Sequence[int] | None = None,
    dilation: Sequence[int] | None = None,
    residual: Patches | None = None,
    output_offset: Tensor | None = None,
    low: float = -math.inf,
    high: float = math.inf,
    output_extent: Tensor | None = None,
    activation: str = "none",
    limit: Tensor | None = None,
    slope: Tensor | None = None,
) -> Tensor:
    """Convolves every window's read-in block, adds a residual, activates and clamps.

    The cells of a read-in block are those of `gather_patches`, with zeros outside of the volume;
    the kernel reads them where they lie.

    Args:
        source: the convolution's input, any of `PATCH_TYPES`.
        read_offset: the first cell of each window's read-in block, (B, axes), int64; negative
            inside the leading padding.
        weight: from `pack_weight`.
        bias: (K,), float32, or None.
        size: the output patches' size along each axis, in cells.
        stride: the convolution's stride along each axis; None for 1.
        dilation: the convolution's dilation along each axis; None for 1.
        residual: what is added to the output, of K channels and the input's type; None for nothing.
        output_offset: the first cell of each output patch in the residual's volume, (B, axes),
            int64.
        low: the least value of the output.
        high: the largest value of the output.
        output_extent: how many cells of each output patch are computed, from its first, (B, axes),
            int64; the others hold anything. None for all.
        activation: one of `ACTIVATIONS`.
        limit: up to which level Winograd's algorithm computes a tile, (N,), from `winograd_limit`;
            louder ones are convolved directly, and those that hold a number that is not finite.
            None for no limit.
        slope: for PReLU, what numbers up to 0 are multiplied by, (K,).

    Returns:
        The output patches, (B, K, *size), channels-last, of the input's type.
    """
    loader.prepare()
    ones = [1] * len(size)
    base, patch, _, offset, extent = (None,) * 5 if residual is None else residual
    result: Tensor = torch.ops.captum_krypton.convolve_patches.default(
        *source,
        read_offset,
        weight.weight,
        weight.packed,
        bias,
        size,
        output_extent,
        ones if stride is None else stride,
        ones if dilation is None else dilation,
        weight.winograd,
        base,
        patch,
        offset,
        extent,
        output_offset,
        low,
        high,
        ACTIVATIONS.index(activation),
        weight.energy,
        limit,
        slope,
    )
    return result


def _fake(
    base: Tensor,
    patch: Tensor,
    image: Tensor,
    patch_offset: Tensor,
    patch_extent: Tensor | None,
    read_offset: Tensor,
    weight: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    size: Sequence[int],
    *rest: object,
) -> Tensor:
    shape = (patch.shape[0], weight.shape[0], *size)
    return empty_in_format(shape, base, last=True)


library.impl("convolve_patches", reference.convolve_patches, "CompositeExplicitAutograd")
torch.library.register_fake("captum_krypton::convolve_patches", _fake, lib=library)
