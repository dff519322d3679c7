"""The windows of an occlusion map: where each one lies, along every dimension of the input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .._operators import Integers, Mask, Reach

__all__ = ["WindowGrid", "Windows", "covered_cells", "window_axes"]


class Windows(Protocol):
    """Where the windows of one input lie."""

    @property
    def paired(self) -> bool:
        """Whether a window has one position, the same along all dimensions.

        Else there is a window for every combination of positions.
        """

    @property
    def labels(self) -> Tensor | None:
        """Which cells of its box a window covers, see `RegionList`; None for all."""

    @property
    def layers(self) -> Integers:
        """The layer of labels that each window has."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The input's shape without its batch dimension."""

    @property
    def counts(self) -> tuple[int, ...]:
        """The size of a map; its product is `total`."""

    @property
    def total(self) -> int:
        """Windows in all."""

    @property
    def axes(self) -> tuple[int, ...]:
        """The window axes."""

    def along(self, dim: int) -> Reach:
        """The interval that each window position covers along a dimension (0: channels)."""

    def positions(self, windows: Sequence[int]) -> tuple[Integers, ...]:
        """The position of some windows along each dimension."""

    def cells(self, windows: Sequence[int], device: torch.device) -> Tensor:
        """Which cells some windows cover, (windows, *shape), bool; sizes of 1 stand for all."""

    def spread(self, values: Tensor) -> Tensor:
        """The mean, over the windows that cover a cell, of a value a window.

        Args:
            values: (rows, *counts).

        Returns:
            (rows, *shape).
        """

    def means(self, values: Tensor) -> Tensor:
        """The mean of the cells that a window covers, channel by channel.

        Args:
            values: (rows, *shape).

        Returns:
            float64, (rows, windows, channels), or (rows, windows, 1) where there are no channels.
        """


@dataclass(frozen=True)
class WindowGrid:
    """Captum's sliding windows over one input.

    Windows start at 0 and follow each other by the stride until the input is covered; the last
    one is clipped at the border, not moved. Their count along a dimension is
    `ceil((size - window) / stride) + 1`: one more than Eq. 1-2 of the paper where the last window
    is clipped.

    Attributes:
        shape: the input's shape without its batch dimension.
        window: the window's size along each of these dimensions.
        stride: the distance of neighbouring windows.
    """

    shape: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def paired(self) -> bool:
        """Windows are all combinations of positions."""
        return False

    @property
    def labels(self) -> Tensor | None:
        """Every window is its box."""
        return None

    @property
    def layers(self) -> Integers:
        """There are no labels."""
        return np.zeros(0, np.int64)

    @property
    def counts(self) -> tuple[int, ...]:
        """Windows along each dimension."""
        return tuple(
            math.ceil((size - window) / stride) + 1
            for size, window, stride in zip(self.shape, self.window, self.stride, strict=True)
        )

    @property
    def total(self) -> int:
        """Windows in all."""
        return math.prod(self.counts)

    @property
    def axes(self) -> tuple[int, ...]:
        """The window axes: the dimensions but the channels, the last three at most."""
        return window_axes(self.shape)

    def along(self, dim: int) -> Reach:
        """The interval that each window position covers along a dimension (0: channels)."""
        start = np.arange(self.counts[dim], dtype=np.int64) * self.stride[dim]
        return Reach(start, np.minimum(start + self.window[dim], self.shape[dim]))

    def positions(self, windows: Sequence[int]) -> tuple[Integers, ...]:
        """The position of some windows along each dimension, from their row-major numbers."""
        return np.unravel_index(np.array(windows, np.int64), self.counts)

    def cells(self, windows: Sequence[int], device: torch.device) -> Tensor:
        """Which cells some windows cover, (windows, *shape), bool; sizes of 1 stand for all."""
        return covered_cells(self, windows, device)

    def spread(self, values: Tensor) -> Tensor:
        """The mean, over the windows that cover a cell, of a value a window.

        Args:
            values: (rows, *counts).

        Returns:
            (rows, *shape).
        """
        for dim in range(len(self.shape)):
            inside = self._inside(dim)
            share = torch.from_numpy((inside / inside.sum(0)).T).to(values)
            values = _contracted(values, share, dim + 1)
        return values

    def means(self, values: Tensor) -> Tensor:
        """The mean of the cells that a window covers, channel by channel.

        Args:
            values: (rows, *shape).

        Returns:
            float64, (rows, windows, channels), or (rows, windows, 1) where there are no channels.
        """
        values = values.double() if len(self.shape) > 1 else values.double()[:, None]
        first = 1 if len(self.shape) > 1 else 0  # the other dimensions have cells of a window
        for dim in range(first, len(self.shape)):
            inside = self._inside(dim)
            share = torch.from_numpy(inside / inside.sum(1, keepdims=True)).to(values)
            values = _contracted(values, share, dim - first + 2)
        places = values.flatten(2).movedim(1, 2)  # (rows, places, channels)
        return places.repeat(1, self.total // places.shape[1], 1)

    def _inside(self, dim: int) -> Mask:
        """Which cells of a dimension each window position covers, (positions, cells)."""
        return self.along(dim).holds(np.arange(self.shape[dim]))


def window_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The dimensions of an input but the channels, the last three at most."""
    first = 1 if len(shape) > 1 else 0
    return tuple(range(first, len(shape)))[-3:]


def covered_cells(grid: Windows, windows: Sequence[int], device: torch.device) -> Tensor:
    """The cells in the boxes of some windows, (windows, *shape), bool; sizes of 1 stand for all."""
    covered = torch.ones((len(windows), *[1] * len(grid.shape)), dtype=torch.bool, device=device)
    for dim, position in enumerate(grid.positions(windows)):
        inside = grid.along(dim).segment(position).holds(np.arange(grid.shape[dim]))
        if not inside.all():
            line = [1] * covered.dim()
            line[0], line[dim + 1] = inside.shape
            covered = covered & torch.from_numpy(inside).reshape(line).to(device)
    return covered


def _contracted(values: Tensor, matrix: Tensor, dim: int) -> Tensor:
    """Sums the windows along one dimension over the cells that each covers."""
    if matrix.shape[1] == 1 and bool((matrix == 1).all()):
        return values.expand(*values.shape[:dim], matrix.shape[0], *values.shape[dim + 1 :])
    summed: Tensor = torch.tensordot(matrix, values, dims=([1], [dim]))
    return summed.movedim(0, dim)
