"""The plain-torch twin of each kernel: any device, any dtype, nothing to compile."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .activation import ACTIVATIONS, activate, scale_and_clamp
from .formats import empty_in_format, in_channels_last

__all__ = [
    "LOWEST",
    "convolve_patches",
    "gather_patches",
    "join_patches",
    "pool_patches",
    "result_is_last",
    "transposed_patches",
]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)
_UNSIGNED = (torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
LOWEST: dict[torch.dtype, float | int] = {
    **dict.fromkeys(_FLOATS, float("-inf")),
    **{dtype: torch.iinfo(dtype).min for dtype in _INTEGERS},
    **dict.fromkeys(_UNSIGNED, 0),
}
"""What a fill of -inf is in each dtype that has a lowest value."""

# torch has few kernels for these: their bytes are moved as those of their signed twins.
_SIGNED = {
    torch.uint16: torch.int16,
    torch.uint32: torch.int32,
    torch.uint64: torch.int64,
}


_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_LARGEST = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def result_is_last(base: Tensor) -> bool:
    """Whether blocks cut out of `base` have channels last; those of a base that is both do not."""
    return base.dim() > 2 and not base.is_contiguous() and base.stride(1) == 1


def gather_patches(
    base: Tensor,
    patch: Tensor,
    image: Tensor,
    patch_offset: Tensor,
    read_offset: Tensor,
    read_size: Sequence[int],
    fill: float,
    patch_extent: Tensor | None = None,
) -> Tensor:
    """The reference of `captum_krypton::gather_patches`; arguments as there."""
    if signed := _SIGNED.get(base.dtype):
        base_bits, patch_bits = base.view(signed), patch.view(signed)
        offsets = (image, patch_offset, read_offset)
        block = gather_patches(base_bits, patch_bits, *offsets, read_size, 0.0, patch_extent)
        return block.view(base.dtype)
    windows, rank = patch.shape[0], base.dim() - 2
    rows, device = base.shape[0], base.device
    if device.type == "cpu" and bool(((image < 0) | (image >= rows)).any()):
        raise RuntimeError(f"image names rows {image.tolist()} of base; expected 0 to {rows - 1}")
    value = 0 if fill == 0 else LOWEST[base.dtype]
    shape = (windows, base.shape[1], *read_size)
    if 0 in shape or 0 in base.shape:
        return empty_in_format(shape, base, result_is_last(base)).fill_(value)

    per_window = [windows, *[1] * rank]
    inside = torch.ones(per_window, dtype=torch.bool, device=device)
    covered = inside
    base_index = [image.view(per_window)]
    patch_index = [torch.arange(windows, device=device).view(per_window)]
    for axis, size in enumerate(read_size):
        view = list(per_window)
        view[axis + 1] = size
        base_size, patch_size = base.shape[axis + 2], patch.shape[axis + 2]
        at_base = (read_offset[:, axis, None] + torch.arange(size, device=device)).view(view)
        at_patch = at_base - patch_offset[:, axis].view(per_window)
        inside = inside & (at_base >= 0) & (at_base < base_size)
        extent: Tensor | int = patch_size
        if patch_extent is not None:
            extent = patch_extent[:, axis].view(per_window)
        covered = covered & (at_patch >= 0) & (at_patch < extent)
        base_index.append(at_base.clamp(0, base_size - 1))
        patch_index.append(at_patch.clamp(0, max(patch_size - 1, 0)))

    # With the channels last, the indices are adjacent and each of them moves a run of channels.
    block = base.movedim(1, -1)[tuple(base_index)]
    if 0 not in patch.shape:
        own = patch.movedim(1, -1)[tuple(patch_index)]
        block = torch.where(covered[..., None], own, block)
    padding = base.new_full((), value)
    result = empty_in_format(shape, base, result_is_last(base))
    torch.where(inside[..., None], block, padding, out=result.movedim(1, -1))
    return result


def _read_size(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """The cells that output patches of `size` read, along each axis (Eq. 24-25)."""
    return [
        (n - 1) * s + (k - 1) * d + 1
        for n, k, s, d in zip(size, kernel, stride, dilation, strict=True)
    ]


def convolve_patches(
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
    output_extent: Tensor | None,
    stride: Sequence[int],
    dilation: Sequence[int],
    winograd: bool,
    residual_base: Tensor | None,
    residual_patch: Tensor | None,
    residual_offset: Tensor | None,
    residual_extent: Tensor | None,
    output_offset: Tensor | None,
    low: float,
    high: float,
    activation: int = 0,
    energy: Tensor | None = None,
    limit: Tensor | None = None,
    slope: Tensor | None = None,
) -> Tensor:
    """The reference of `captum_krypton::convolve_patches`: direct, on gathered blocks.

    Cells of the output beyond `output_extent` are computed too.
    """
    read_size = _read_size(size, weight.shape[2:], stride, dilation)
    block = gather_patches(
        base, patch, image, patch_offset, read_offset, read_size, 0.0, patch_extent
    )
    groups = base.shape[1] // weight.shape[1]
    convolve = _CONVOLUTIONS[len(size)]
    wide = block.to(weight.dtype)
    out = convolve(wide, weight, bias, tuple(stride), 0, tuple(dilation), groups)
    residual = (residual_base, residual_patch, residual_offset, residual_extent)
    out = _ended(out, image, *residual, output_offset, low, high, activation, slope)
    return in_channels_last(out.to(base.dtype))


def _ended(
    out: Tensor,
    image: Tensor,
    base: Tensor | None,
    patch: Tensor | None,
    offset: Tensor | None,
    extent: Tensor | None,
    output_offset: Tensor | None,
    low: float,
    high: float,
    activation: int,
    slope: Tensor | None,
) -> Tensor:
    """The residual added, activated and clamped."""
    if base is not None:
        assert patch is not None and offset is not None and output_offset is not None
        size = out.shape[2:]
        out = out + gather_patches(base, patch, image, offset, output_offset, size, 0.0, extent)
    return activate(out, ACTIVATIONS[activation], slope).clamp(low, high)


def transposed_patches(
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
    residual_base: Tensor | None,
    residual_patch: Tensor | None,
    residual_offset: Tensor | None,
    residual_extent: Tensor | None,
    low: float,
    high: float,
    activation: int = 0,
    slope: Tensor | None = None,
) -> Tensor:
    """The reference of `captum_krypton::transposed_patches`, on gathered blocks.

    PyTorch's own transposed convolution makes more of each than is wanted, from the first input
    cell on that a wanted one reads; those are cut out. Beyond them, nothing is added up.

    Cells of the output beyond `output_extent` are computed too.
    """
    windows = len(patch)
    steps, padded = (output_offset.new_tensor(numbers) for numbers in (stride, padding))
    spans = [(k - 1) * d for k, d in zip(weight.shape[2:], dilation, strict=True)]
    first = -torch.div(
        output_offset.new_tensor(spans) - output_offset - padded, steps, rounding_mode="floor"
    )
    read_size = [
        (n - 1 + span) // step + 1 for n, span, step in zip(size, spans, stride, strict=True)
    ]
    block = gather_patches(base, patch, image, patch_offset, first, read_size, 0.0, patch_extent)
    transposed = _TRANSPOSED[len(size)]
    made = transposed(
        block.to(weight.dtype), weight, None, tuple(stride), 0, 0, groups, tuple(dilation)
    )
    none = made.new_empty(*made.shape[:2], *[0] * len(size))
    own = torch.arange(windows, device=image.device)
    skipped = output_offset + padded - first * steps
    out = gather_patches(made, none, own, skipped * 0, skipped, size, 0.0)
    if bias is not None:
        out = out + bias.reshape(-1, *[1] * len(size))
    residual = (residual_base, residual_patch, residual_offset, residual_extent)
    out = _ended(out, image, *residual, output_offset, low, high, activation, slope)
    return in_channels_last(out.to(base.dtype))


def pool_patches(
    base: Tensor,
    patch: Tensor,
    image: Tensor,
    patch_offset: Tensor,
    patch_extent: Tensor | None,
    read_offset: Tensor,
    size: Sequence[int],
    output_extent: Tensor | None,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    maximum: bool,
    divisor: float,
) -> Tensor:
    """The reference of `captum_krypton::pool_patches`, on gathered blocks."""
    read_size = _read_size(size, kernel, stride, dilation)
    fill = -math.inf if maximum else 0.0
    block = gather_patches(
        base, patch, image, patch_offset, read_offset, read_size, fill, patch_extent
    )
    if maximum:
        largest = _LARGEST[len(size)]
        pooled = largest(block, tuple(kernel), tuple(stride), 0, tuple(dilation))
    else:
        ones = block.new_ones(block.shape[1], 1, *kernel)
        convolve = _CONVOLUTIONS[len(size)]
        pooled = convolve(block, ones, None, tuple(stride), 0, tuple(dilation), block.shape[1])
        pooled = pooled / divisor
    return in_channels_last(pooled)


def join_patches(
    bases: list[Tensor],
    patches: list[Tensor],
    image: Tensor,
    patch_offsets: list[Tensor],
    patch_extents: list[Tensor],
    read_offset: Tensor,
    size: Sequence[int],
    output_extent: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    low: float,
    high: float,
) -> Tensor:
    """The reference of `captum_krypton::join_patches`, on gathered blocks."""
    blocks = [
        gather_patches(base, patch, image, offset, read_offset, size, 0.0, extent)
        for base, patch, offset, extent in zip(
            bases, patches, patch_offsets, patch_extents, strict=True
        )
    ]
    joined = scale_and_clamp(torch.cat(blocks, 1), scale, shift, low, high)
    return in_channels_last(joined)
