"""The windows of an occlusion map: where each one lies, along every dimension of the input."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .._operators import Reach

__all__ = ["WindowGrid"]


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
        first = 1 if len(self.shape) > 1 else 0
        return tuple(range(first, len(self.shape)))[-3:]

    def along(self, dim: int) -> Reach:
        """The interval that each window position covers along a dimension (0: channels)."""
        start = np.arange(self.counts[dim], dtype=np.int64) * self.stride[dim]
        return Reach(start, np.minimum(start + self.window[dim], self.shape[dim]))

    def cover(self, dim: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        """(cells, positions): 1 where a window position covers a cell along a dimension."""
        reach = self.along(dim)
        cells = np.arange(self.shape[dim])[:, None]
        return ((cells >= reach.start) & (cells < reach.stop)).astype(np.float64)
