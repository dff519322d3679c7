"""Patches drawn by Hypothesis, for the kernels that read them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from hypothesis import strategies as st
from layers import Draw
from torch import Tensor

from captum_krypton._kernels import ACTIVATIONS, PATCH_TYPES, Patches, in_channels_last

EPSILON = torch.finfo(torch.float32).eps
_LARGEST = {1: 23, 2: 13, 3: 7}  # size of a volume, by its window axes

Size = tuple[int, ...]

STORED = st.sampled_from([torch.float32, *PATCH_TYPES])  # float32 in half of the cases


def _rounding(expected: Tensor, dtype: torch.dtype) -> Tensor:
    """How far numbers are from the nearest of a type that is stored; nothing for float32."""
    if dtype is torch.float32:
        return torch.zeros_like(expected)
    kind = torch.finfo(dtype)
    return kind.eps / 2 * expected.abs() + kind.smallest_normal * kind.eps / 2


def stored(source: Patches, dtype: torch.dtype) -> Patches:
    """The same patches in another type."""
    return source._replace(base=source.base.to(dtype), patch=source.patch.to(dtype))


def within(
    actual: Tensor, expected: Tensor, limit: float, dtype: torch.dtype, extent: Tensor | None
) -> bool:
    """Whether an output differs by no more than `limit` and a rounding to the type it is stored in.

    What a kernel need not compute does not count.
    """
    allowed = limit + _rounding(expected.abs() + limit, dtype)
    return bool((counted((actual - expected).abs() - allowed, extent) <= 0).all())


def counted(output: Tensor, extent: Tensor | None) -> Tensor:
    """The output without what a kernel need not compute."""
    if extent is None:
        return output
    for axis, size in enumerate(output.shape[2:]):
        outside = torch.arange(size) >= extent[:, axis, None]
        shape = [len(output), *[1] * (output.dim() - 1)]
        shape[axis + 2] = size
        output = output.masked_fill(outside.reshape(shape), 0)
    return output


def numbers(draw: Draw) -> torch.Generator:
    return torch.Generator().manual_seed(draw(st.integers(0, 2**16)))


def sizes(axes: int, least: int, most: int) -> st.SearchStrategy[Size]:
    """One number for each axis."""
    return st.tuples(*[st.integers(least, most)] * axes)


def offsets(
    noise: torch.Generator, windows: int, axes: int, low: int = -4, high: int = 12
) -> Tensor:
    """A cell for each window, in and around a volume."""
    high = min(high, _LARGEST[axes] - 1)
    return torch.randint(low, high, (windows, axes), generator=noise)


def patches(
    draw: Draw,
    noise: torch.Generator,
    windows: int,
    images: int,
    channels: int,
    last: bool,
    axes: int = 2,
) -> Patches:
    largest = _LARGEST[axes]
    volume, patch_size = draw(sizes(axes, 1, largest)), draw(sizes(axes, 0, min(9, largest)))
    base = torch.randn(images, channels, *volume, generator=noise)
    patch = torch.randn(windows, channels, *patch_size, generator=noise)
    return Patches(
        in_channels_last(base) if last else base,
        in_channels_last(patch) if last else patch,
        torch.randint(images, (windows,), generator=noise),
        offsets(noise, windows, axes),
        extents(draw, noise, windows, patch_size),
    )


def extents(draw: Draw, noise: torch.Generator, windows: int, size: Size) -> Tensor | None:
    if draw(st.booleans()):
        return None
    columns = [torch.randint(most + 1, (windows,), generator=noise) for most in size]
    return torch.stack(columns, 1)


def naive_block(source: Patches, read_offset: Tensor, size: Size, fill: float = 0.0) -> Tensor:
    """Every cell of every window's block by itself, from base, patch or neither; float64."""
    base, patch, image, offset, extent = source
    out = torch.full((len(patch), base.shape[1], *size), fill, dtype=torch.float64)
    for window in range(len(patch)):
        own = patch.shape[2:] if extent is None else extent[window].tolist()
        for cell in itertools.product(*map(range, size)):
            at = [int(first) + i for first, i in zip(read_offset[window], cell, strict=True)]
            if not all(0 <= i < n for i, n in zip(at, base.shape[2:], strict=True)):
                continue
            mine = [i - int(first) for i, first in zip(at, offset[window], strict=True)]
            inside = all(0 <= i < n for i, n in zip(mine, own, strict=True))
            row, volume, place = (window, patch, mine) if inside else (image[window], base, at)
            out[(window, slice(None), *cell)] = volume[(row, slice(None), *place)].double()
    return out


def naive_taps(
    source: Patches,
    read_offset: Tensor,
    size: Size,
    kernel: Size,
    stride: Size,
    dilation: Size,
    fill: float = 0.0,
) -> Iterator[tuple[Size, Tensor]]:
    """Every output cell with what it reads, (windows, channels, *kernel), float64."""
    geometry = list(zip(size, kernel, stride, dilation, strict=True))
    read = tuple((n - 1) * s + (k - 1) * d + 1 for n, k, s, d in geometry)
    block = naive_block(source, read_offset, read, fill)
    for cell in itertools.product(*map(range, size)):
        taps = [
            slice(i * s, i * s + (k - 1) * d + 1, d)
            for i, (_, k, s, d) in zip(cell, geometry, strict=True)
        ]
        yield cell, block[(..., *taps)]


@st.composite
def endings(draw: Draw, noise: torch.Generator, channels: int) -> tuple[str, Tensor | None]:
    """An activation and, for PReLU, its slopes."""
    activation = draw(st.sampled_from(ACTIVATIONS))
    slope = torch.randn(channels, generator=noise) if activation == "prelu" else None
    return activation, slope
