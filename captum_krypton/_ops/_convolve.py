"""`convolve_patches`: the convolution of every window's read-in block, which is never made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from captum_krypton._ops import _loader, _reference
from captum_krypton._ops._library import library

__all__ = ["PackedWeight", "Patches", "convolve_patches", "pack_weight", "panel_size"]

library.define(
    "convolve_patches(Tensor base, Tensor patch, Tensor image, Tensor patch_offset, "
    "Tensor read_offset, Tensor weight, Tensor packed, Tensor? bias, SymInt[] size, "
    "int[] stride, int[] dilation, int tile, Tensor? residual_base, Tensor? residual_patch, "
    "Tensor? residual_offset, Tensor? output_offset, float low, float high) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
library.define("panel_size() -> int")

# Where F(4, 3) interpolates, besides 0 and infinity; as in csrc/convolve.h.
_POINTS = (0.625, 1.5)


class Patches(NamedTuple):
    """A value that windows change in part, for a batch of windows.

    Attributes:
        base: the untouched images' volumes, (N, C, H, W).
        patch: the windows' patches, (B, C, P, Q).
        image: the row of `base` that each window belongs to, (B,), int64.
        patch_offset: the first cell of each patch in the volume, (B, 2), int64.
    """

    base: Tensor
    patch: Tensor
    image: Tensor
    patch_offset: Tensor


@dataclass(frozen=True)
class PackedWeight:
    """A weight as the kernels read it.

    Attributes:
        weight: (K, C, kernel height, kernel width); (C, 1, ...) for a depthwise convolution.
        packed: the same numbers, or their transform, in the kernels' order.
        tile: 0 for a direct convolution, else the side of Winograd's output tiles, 2 or 4.
    """

    weight: Tensor
    packed: Tensor
    tile: int


def panel_size() -> int:
    """Output channels in a panel of packed weights; 0 where there are no compiled kernels."""
    if not _loader.ready:
        _loader.load()
    if not _loader.has_kernels():
        return 0
    found: int = torch.ops.captum_krypton.panel_size.default()
    return found


def pack_weight(weight: Tensor, tile: int = 0, *, depthwise: bool = False) -> PackedWeight:
    """Puts a weight into the order of the kernels.

    Args:
        weight: (K, C, kernel height, kernel width), float32.
        tile: 0 for a direct convolution; 2 or 4 for Winograd's F(2x2, 3x3) or F(4x4, 3x3).
        depthwise: whether each channel has a kernel of its own; C is 1 then.
    """
    panel = panel_size()
    if panel == 0:
        return PackedWeight(weight, weight, tile)
    if depthwise:
        return PackedWeight(weight, weight.flatten(1).t().contiguous(), tile)
    points = _weight_transform(tile) if tile else None
    count = math.prod(weight.shape[2:]) if points is None else len(points)
    panels = -(-len(weight) // panel)
    packed = weight.new_zeros(count, panels, weight.shape[1], panel)
    for number in range(panels):  # one at a time: float64 takes twice the memory
        rows = weight[number * panel : (number + 1) * panel].flatten(2)
        if points is not None:
            rows = (rows.double() @ points.t()).to(weight.dtype)
        packed[:, number, :, : len(rows)] = rows.permute(2, 1, 0)
    if points is None:  # panel by panel, each with its taps
        packed = packed.transpose(0, 1).contiguous()
    return PackedWeight(weight, packed, tile)


def _weight_transform(tile: int) -> Tensor:
    """Winograd's G of both axes: the nine taps to (tile + 2) squared points, float64."""
    if tile == 2:
        rows = [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]
        one = torch.tensor(rows, dtype=torch.float64)
        return torch.kron(one, one)
    a, b = _POINTS
    at_a, at_b = 2 * a * a * (a * a - b * b), 2 * b * b * (b * b - a * a)
    rows = [
        [1 / (a * b) ** 2, 0, 0],
        [1 / at_a, a / at_a, a * a / at_a],
        [1 / at_a, -a / at_a, a * a / at_a],
        [1 / at_b, b / at_b, b * b / at_b],
        [1 / at_b, -b / at_b, b * b / at_b],
        [0, 0, 1],
    ]
    one = torch.tensor(rows, dtype=torch.float64)
    return torch.kron(one, one)


def convolve_patches(
    source: Patches,
    read_offset: Tensor,
    weight: PackedWeight,
    bias: Tensor | None,
    size: Sequence[int],
    *,
    stride: Sequence[int] = (1, 1),
    dilation: Sequence[int] = (1, 1),
    residual: Patches | None = None,
    output_offset: Tensor | None = None,
    low: float = -math.inf,
    high: float = math.inf,
) -> Tensor:
    """Convolves every window's read-in block, adds a residual and clamps.

    The cells of a read-in block are those of `gather_patches`, with zeros outside of the volume;
    the kernel reads them where they lie.

    Args:
        source: the convolution's input.
        read_offset: the first cell of each window's read-in block, (B, 2), int64; negative inside
            the leading padding.
        weight: from `pack_weight`.
        bias: (K,), or None.
        size: height and width of the output patches, in cells.
        stride: the convolution's stride along each axis.
        dilation: the convolution's dilation along each axis.
        residual: what is added to the output, of K channels; None for nothing.
        output_offset: the first cell of each output patch in the residual's volume, (B, 2), int64.
        low: the least value of the output.
        high: the largest value of the output.

    Returns:
        The output patches, (B, K, *size), float32, channels-last.
    """
    if not _loader.ready:
        _loader.load()
    base, patch, offset = (
        (None, None, None)
        if residual is None
        else (residual.base, residual.patch, residual.patch_offset)
    )
    result: Tensor = torch.ops.captum_krypton.convolve_patches.default(
        *source,
        read_offset,
        weight.weight,
        weight.packed,
        bias,
        size,
        stride,
        dilation,
        weight.tile,
        base,
        patch,
        offset,
        output_offset,
        low,
        high,
    )
    return result


def _fake(
    base: Tensor,
    patch: Tensor,
    image: Tensor,
    patch_offset: Tensor,
    read_offset: Tensor,
    weight: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    size: Sequence[int],
    *rest: object,
) -> Tensor:
    shape = (patch.shape[0], weight.shape[0], *size)
    return base.new_empty(shape).contiguous(memory_format=torch.channels_last)


library.impl("convolve_patches", _reference.convolve_patches, "CompositeExplicitAutograd")
torch.library.register_fake("captum_krypton::convolve_patches", _fake, lib=library)
