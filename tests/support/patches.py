"""Patches drawn by Hypothesis, for the kernels that read them."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from layers import Draw
from torch import Tensor

from captum_krypton._kernels import Patches

EPSILON = torch.finfo(torch.float32).eps


def counted(output: Tensor, extent: Tensor | None) -> Tensor:
    """The output without what a kernel need not compute."""
    if extent is None:
        return output
    outside = [
        torch.arange(size) >= extent[:, axis, None] for axis, size in enumerate(output.shape[2:])
    ]
    return output.masked_fill(outside[0][:, None, :, None] | outside[1][:, None, None, :], 0)


def numbers(draw: Draw) -> torch.Generator:
    return torch.Generator().manual_seed(draw(st.integers(0, 2**16)))


def patches(
    draw: Draw, noise: torch.Generator, windows: int, images: int, channels: int, last: bool
) -> Patches:
    height, width = draw(st.integers(1, 13)), draw(st.integers(1, 13))
    patch_size = draw(st.tuples(st.integers(0, 9), st.integers(0, 9)))
    base = torch.randn(images, channels, height, width, generator=noise)
    patch = torch.randn(windows, channels, *patch_size, generator=noise)
    memory_format = torch.channels_last if last else torch.contiguous_format
    return Patches(
        base.contiguous(memory_format=memory_format),
        patch.contiguous(memory_format=memory_format),
        torch.randint(images, (windows,), generator=noise),
        torch.randint(-4, 12, (windows, 2), generator=noise),
        extents(draw, noise, windows, patch_size),
    )


def extents(
    draw: Draw, noise: torch.Generator, windows: int, size: tuple[int, int]
) -> Tensor | None:
    if draw(st.booleans()):
        return None
    columns = [torch.randint(most + 1, (windows,), generator=noise) for most in size]
    return torch.stack(columns, 1)
