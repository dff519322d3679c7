"""`gather_patches`: the read-in patches of Algorithm 1, for a batch of windows at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import loader, reference
from .formats import empty_in_format
from .library import library

__all__ = ["gather_patches"]

library.define(
    "gather_patches(Tensor base, Tensor patch, Tensor image, Tensor patch_offset, "
    "Tensor read_offset, SymInt[] read_size, float fill, Tensor? patch_extent=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _fake_gather_patches(
    base: Tensor,
    patch: Tensor,
    image: Tensor,
    patch_offset: Tensor,
    read_offset: Tensor,
    read_size: Sequence[int],
    fill: float,
    patch_extent: Tensor | None = None,
) -> Tensor:
    shape = (patch.shape[0], base.shape[1], *read_size)
    return empty_in_format(shape, base, reference.result_is_last(base))


library.impl("gather_patches", reference.gather_patches, "CompositeExplicitAutograd")
torch.library.register_fake("captum_krypton::gather_patches", _fake_gather_patches, lib=library)
_op = torch.ops.captum_krypton.gather_patches.default
_MINUS_INFINITY = float("-inf")


def gather_patches(
    base: Tensor,
    patch: Tensor,
    image: Tensor,
    patch_offset: Tensor,
    read_offset: Tensor,
    read_size: Sequence[int],
    fill: float = 0.0,
    patch_extent: Tensor | None = None,
) -> Tensor:
    """Cuts a read-in block out of the base for every window and lays the window's patch over it.

    This is the loop of Algorithm 1, INCREMENTALINFERENCE (lines 4 to 8), for all windows of a
    batch in one call. With the read-in block equal to the volume (`read_offset` 0, `read_size` S)
    it is INCREMENTALTOFULLPROJECTION. The cell `i` of a window's block lies at the coordinate
    `y = read_offset + i` of the volume, along each axis, and holds

    - `fill` where `y` is outside the volume on any axis (the padding of the operator to come),
    - else the patch's value where `y` is inside `[patch_offset, patch_offset + E)` on all axes,
    - else the value of the base.

    A patch may stick out of the volume: such cells are never read. It may also be empty on an
    axis, which makes the call a plain crop of the base.

    The result is channels-last where `base` is not contiguous and its channel stride is 1, and
    contiguous otherwise. A base that is both (1 channel, or spatial size 1) therefore counts as
    contiguous.

    Args:
        base: Pre-materialised volumes of the untouched images, (N, C, *S), 1 to 3 spatial axes.
        patch: The windows' updated patches, (B, C, *P), of the dtype of `base`, in any layout.
        image: The row of `base` that each window belongs to, (B,), int64, from 0 to N - 1.
        patch_offset: First cell of each patch in the volume, in cells, (B, spatial axes), int64.
        read_offset: First cell of each read-in block in the volume, in cells, (B, spatial axes),
            int64; negative inside the leading padding.
        read_size: Size R of the read-in blocks in cells, one number per spatial axis.
        fill: Value of the padding: 0, or -inf for max pooling, which for an integer dtype is the
            lowest integer and for bool is False.
        patch_extent: E, how many cells of each patch count, from its first, (B, spatial axes),
            int64; None for all of them, P.

    Returns:
        The read-in blocks, (B, C, *R), of the dtype and on the device of `base`.

    Raises:
        TypeError: If `patch` is not of the dtype of `base`, or an index tensor is not int64, or
            `fill` is -inf and the dtype has no lowest value.
        ValueError: If shapes do not fit each other, or `fill` is neither 0 nor -inf.
        RuntimeError: If `image` names a row that `base` does not have (said on the CPU only), or
            `KRYPTON_BACKEND=cpp` asks for the compiled kernel and it cannot be loaded.
    """
    device = "cuda" if base.is_cuda else "cpu"
    loader.prepare(device)
    shape, patch_shape, rank = base.shape, patch.shape, base.dim() - 2
    windows = patch_shape[0] if patch_shape else -1
    offset_shape = (windows, rank)
    if not (
        patch.dtype is base.dtype
        and 1 <= rank <= 3
        and patch.dim() == rank + 2
        and patch_shape[1] == shape[1]
        and image.shape == (windows,)
        and patch_offset.shape == offset_shape
        and read_offset.shape == offset_shape
        and image.dtype is torch.int64
        and patch_offset.dtype is torch.int64
        and read_offset.dtype is torch.int64
        and len(read_size) == rank
        and min(read_size) >= 0
        and (
            patch_extent is None
            or (patch_extent.shape == offset_shape and patch_extent.dtype is torch.int64)
        )
        and (fill == 0 or (fill == _MINUS_INFINITY and base.dtype in reference.LOWEST))
    ):
        _explain(base, patch, image, patch_offset, read_offset, read_size, fill, patch_extent)
    result: Tensor = _op(
        base, patch, image, patch_offset, read_offset, read_size, fill, patch_extent
    )
    return result


def _explain(
    base: Tensor,
    patch: Tensor,
    image: Tensor,
    patch_offset: Tensor,
    read_offset: Tensor,
    read_size: Sequence[int],
    fill: float,
    patch_extent: Tensor | None,
) -> None:
    """Raises the error that says which argument of `gather_patches` is wrong."""
    rank = base.dim() - 2
    if not 1 <= rank <= 3:
        raise ValueError(
            f"base has shape {tuple(base.shape)}; expected (N, C, *S) with 1 to 3 spatial axes"
        )
    if patch.dtype != base.dtype:
        raise TypeError(f"patch is {patch.dtype}; expected the dtype of base, {base.dtype}")
    if patch.dim() != base.dim() or patch.shape[1] != base.shape[1]:
        raise ValueError(
            f"patch has shape {tuple(patch.shape)}; expected (B, {base.shape[1]}, *P) with "
            f"{rank} spatial axes, as base of shape {tuple(base.shape)}"
        )
    windows = patch.shape[0]
    for name, tensor, expected in (
        ("image", image, (windows,)),
        ("patch_offset", patch_offset, (windows, rank)),
        ("read_offset", read_offset, (windows, rank)),
        ("patch_extent", patch_extent, (windows, rank)),
    ):
        if tensor is None:
            continue
        if tensor.dtype != torch.int64:
            raise TypeError(f"{name} is {tensor.dtype}; expected torch.int64")
        if tensor.shape != expected:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {expected}")
    if len(read_size) != rank or min(read_size) < 0:
        raise ValueError(f"read_size is {tuple(read_size)}; expected {rank} numbers, 0 or more")
    if fill != _MINUS_INFINITY:
        raise ValueError(f"fill is {fill}; expected 0 or -inf")
    raise TypeError(f"fill is -inf, which {base.dtype} (the dtype of base) has not; expected 0")
