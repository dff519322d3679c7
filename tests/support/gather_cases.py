"""Cases for `gather_patches`, and what it must make of them, by a loop over single cells."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

# What -inf is, written out once more; None where the dtype has no lowest value.
LOWEST = {
    torch.float16: float("-inf"),
    torch.bfloat16: float("-inf"),
    torch.float32: float("-inf"),
    torch.float64: float("-inf"),
    torch.int8: -(2**7),
    torch.int16: -(2**15),
    torch.int32: -(2**31),
    torch.int64: -(2**63),
    torch.uint8: 0,
    torch.uint16: 0,
    torch.uint32: 0,
    torch.uint64: 0,
    torch.bool: False,
    torch.complex64: None,
    torch.complex128: None,
}


@dataclass(frozen=True)
class Case:
    base: Tensor
    patch: Tensor
    image: Tensor
    patch_offset: Tensor
    read_offset: Tensor
    read_size: tuple[int, ...]
    fill: float
    patch_extent: Tensor | None = None

    def cells(self, window: int) -> list[int]:
        """How many cells of the window's patch count, along each axis."""
        if self.patch_extent is None:
            return list(self.patch.shape[2:])
        return self.patch_extent[window].tolist()

    def arguments(self) -> tuple[Any, ...]:
        return (
            self.base,
            self.patch,
            self.image,
            self.patch_offset,
            self.read_offset,
            self.read_size,
            self.fill,
            self.patch_extent,
        )


def naive(case: Case) -> Tensor:
    """Algorithm 1, one cell at a time."""
    base, patch = case.base, case.patch
    windows, channels, rank = patch.shape[0], base.shape[1], base.dim() - 2
    padding = LOWEST[base.dtype] if case.fill else 0
    result = torch.full((windows, channels, *case.read_size), padding, dtype=base.dtype)
    for window, cell in itertools.product(
        range(windows), itertools.product(*map(range, case.read_size))
    ):
        at = [int(case.read_offset[window, axis]) + cell[axis] for axis in range(rank)]
        at_patch = [at[axis] - int(case.patch_offset[window, axis]) for axis in range(rank)]
        if not all(0 <= at[axis] < base.shape[axis + 2] for axis in range(rank)):
            continue
        covered = all(0 <= at_patch[axis] < case.cells(window)[axis] for axis in range(rank))
        for channel in range(channels):
            result[(window, channel, *cell)] = (
                patch[(window, channel, *at_patch)]
                if covered
                else base[(int(case.image[window]), channel, *at)]
            )
    return result


def bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, so that a NaN equals itself and -0.0 is not 0.0."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def last(tensor: Tensor) -> Tensor:
    """The same numbers with the channels of a cell side by side."""
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int, layout: str) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_complex or dtype.is_floating_point:
        tensor = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        tensor.view(-1)[::7] = float("nan")
        tensor.view(-1)[3::7] = -0.0
    else:
        tensor = torch.randint(-(2**40), 2**40, shape, generator=generator).to(dtype)
    if layout == "channels last":
        return last(tensor)
    if layout == "reversed axes":
        return (
            tensor.permute(*reversed(range(len(shape))))
            .contiguous()
            .permute(*reversed(range(len(shape))))
        )
    if layout == "every other":
        spread = torch.zeros(*shape[:-1], shape[-1] * 2, dtype=dtype)
        spread[..., ::2] = tensor
        return spread[..., ::2]
    if layout == "some channels":
        spread = torch.zeros(shape[0], shape[1] + 2, *shape[2:], dtype=dtype)
        spread[:, 1:-1] = tensor
        return last(spread)[:, 1:-1]
    return tensor


LAYOUTS = ["contiguous", "channels last", "some channels", "every other", "reversed axes"]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rank = draw(st.integers(1, 3))
    largest = {1: 12, 2: 6, 3: 4}[rank]
    axes = st.lists(st.integers(1, largest), min_size=rank, max_size=rank)
    axes_or_empty = st.lists(st.integers(0, largest + 2), min_size=rank, max_size=rank)
    dtype = draw(st.sampled_from(list(LOWEST)))
    images, windows, channels = (
        draw(st.integers(1, 3)),
        draw(st.integers(0, 4)),
        draw(st.sampled_from([0, 1, 2, 3, 5, 8])),
    )
    seed = draw(st.integers(0, 2**16))
    base = values((images, channels, *draw(axes)), dtype, seed, draw(st.sampled_from(LAYOUTS)))
    patch = values(
        (windows, channels, *draw(axes_or_empty)), dtype, seed + 1, draw(st.sampled_from(LAYOUTS))
    )
    near = st.integers(-largest - 3, largest + 3)
    far = st.sampled_from([-(2**63), 2**63 - 1, 2**62, -(2**62), 2**31, -(2**31)])
    offsets = st.lists(st.one_of(near, near, near, far), min_size=rank, max_size=rank)
    rows = st.lists(offsets, min_size=windows, max_size=windows)

    def drawn(strategy: st.SearchStrategy[list[list[int]]]) -> Tensor:
        return torch.tensor(draw(strategy), dtype=torch.int64).reshape(windows, rank)

    image = draw(st.lists(st.integers(0, images - 1), min_size=windows, max_size=windows))
    cells = [st.integers(0, size) for size in patch.shape[2:]]
    rows_of_cells = st.lists(st.tuples(*cells), min_size=windows, max_size=windows)
    fills = [0.0] if LOWEST[dtype] is None else [0.0, float("-inf")]
    return Case(
        base,
        patch,
        torch.tensor(image, dtype=torch.int64),
        drawn(rows),
        drawn(rows),
        tuple(draw(axes_or_empty)),
        draw(st.sampled_from(fills)),
        drawn(rows_of_cells) if draw(st.booleans()) else None,
    )


def wide(layout: str, dtype: torch.dtype = torch.float32) -> Case:
    """Enough work for several threads, and patches over every border."""
    windows = 16
    generator = torch.Generator().manual_seed(0)
    return Case(
        values((2, 17, 40, 40), dtype, 1, layout),
        values((windows, 17, 9, 11), dtype, 2, layout),
        torch.randint(0, 2, (windows,), generator=generator),
        torch.randint(-12, 44, (windows, 2), generator=generator),
        torch.randint(-12, 30, (windows, 2), generator=generator),
        (21, 23),
        float("-inf"),
    )
