"""How far a window reaches, and what an output depends on: intervals, one axis at a time.

The paper's Eq. 18-29 with their bounds made exact: an interval is computed with a ceiling on one
side and a floor on the other and clipped to the volume. All functions take arrays with one entry
a window position along the axis, and know nothing of the other axes: occlusion windows and the
operators here are separable, so one, two and three spatial axes are the same code.

What an output depends on goes the other way, and is one interval for the whole map: that of the
cells that are read, as Eq. 22-25 have it for a patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

__all__ = [
    "Box",
    "Floats",
    "Integers",
    "Interval",
    "Mask",
    "Positions",
    "Reach",
    "align",
    "bounded",
    "crop",
    "everywhere",
    "exact",
    "hull",
    "index_map_demand",
    "index_map_reach",
    "numbers",
    "same_boxes",
    "shift",
    "union",
    "window_demand",
    "window_reach",
    "window_read",
    "window_span",
]

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
# Window positions along an axis: neighbouring ones, or any.
Positions = slice | Integers
Interval = tuple[int, int]  # cells from the first up to the second; none where these are equal


@dataclass(frozen=True)
class Reach:
    """The half-open interval [start, stop) that each window position can change."""

    start: Integers
    stop: Integers

    def clipped(self, size: int) -> Reach:
        """The part of the intervals inside a volume of `size`; an empty one has start == stop."""
        start = np.clip(self.start, 0, size)
        return Reach(start, np.maximum(np.clip(self.stop, 0, size), start))

    def within(self, cells: Interval) -> Reach:
        """The part of the intervals inside of another one."""
        start = np.clip(self.start, *cells)
        return Reach(start, np.maximum(np.clip(self.stop, *cells), start))

    def where(self, positions: Mask) -> Reach:
        """The intervals of some of the window positions; those of the others are empty."""
        return Reach(self.start, np.where(positions, self.stop, self.start))

    @property
    def some(self) -> Mask:
        """Which of the intervals are not empty."""
        found: Mask = self.stop > self.start
        return found

    def segment(self, positions: Positions) -> Reach:
        """The intervals of some of the window positions."""
        return Reach(self.start[positions], self.stop[positions])

    def holds(self, cells: Integers) -> Mask:
        """Which cells lie in each interval, (positions, cells).

        Args:
            cells: (cells,), or (positions, cells) where every position is asked about its own.
        """
        inside: Mask = (cells >= self.start[:, None]) & (cells < self.stop[:, None])
        return inside

    @cached_property
    def longest(self) -> int:
        """The size of a patch that holds any of the intervals, at least 1."""
        return max(1, int((self.stop - self.start).max(initial=1)))


@dataclass(frozen=True)
class Box:
    """Where the patches of a group of windows lie along one axis: same size, own offsets.

    Attributes:
        offset: the first cell of each patch.
        size: cells that every patch has room for.
        extent: how many of them count, from the first; None where all do. The others may hold
            anything and are never read.
    """

    offset: Integers
    size: int
    extent: Integers | None = None

    def same_as(self, other: Box) -> bool:
        """Whether both describe the same cells."""
        return self is other or (
            self.size == other.size
            and np.array_equal(self.offset, other.offset)
            and np.array_equal(self.cells, other.cells)
        )

    @cached_property
    def cells(self) -> Integers:
        """How many cells of each patch count."""
        return np.full_like(self.offset, self.size) if self.extent is None else self.extent

    @cached_property
    def mean_cells(self) -> float:
        """The mean of `cells`."""
        return float(self.size) if self.extent is None else float(self.extent.mean())

    def is_whole(self, size: int) -> bool:
        """Whether every patch is the whole volume."""
        return self.size == size and self.extent is None and not self.offset.any()


def numbers(positions: Positions) -> Integers:
    """Window positions one by one."""
    if isinstance(positions, slice):
        return np.arange(positions.start, positions.stop, dtype=np.int64)
    return positions


def same_boxes(a: tuple[Box | None, ...], b: tuple[Box | None, ...]) -> bool:
    """Whether both describe the same cells along every axis."""
    return all(
        x is y if x is None or y is None else x.same_as(y) for x, y in zip(a, b, strict=True)
    )


def window_reach(
    reach: Reach, *, kernel: int, stride: int, padding: int, dilation: int, size: int
) -> Reach:
    """Output interval of a convolution or pooling (Eq. 18-21, exact).

    Args:
        reach: the changed interval of the input.
        kernel: taps along this axis.
        stride: distance of neighbouring outputs in the input.
        padding: cells put before the input.
        dilation: distance of neighbouring taps.
        size: the output's size along this axis.
    """
    span = (kernel - 1) * dilation
    start = -((span - padding - reach.start) // stride)  # a ceiling
    stop = (reach.stop - 1 + padding) // stride + 1
    empty = reach.stop <= reach.start
    return Reach(start, np.where(empty, start, stop)).clipped(size)


def window_demand(
    cells: Interval, *, kernel: int, stride: int, padding: int, dilation: int, size: int
) -> Interval:
    """The cells of an input of `size` that the outputs `cells` read (Eq. 22-25)."""
    start, stop = cells
    span = (kernel - 1) * dilation
    return bounded((start * stride - padding, (stop - 1) * stride - padding + span + 1), size)


def index_map_demand(cells: Interval, taps: Integers) -> Interval:
    """The interval of all input cells that the outputs `cells`, one at least, read.

    Args:
        cells: the outputs.
        taps: (size, taps) the input cells that each output reads.
    """
    read = taps[slice(*cells)]
    return int(read.min()), int(read.max()) + 1


def bounded(cells: Interval, size: int) -> Interval:
    """The part of an interval inside a volume of `size`."""
    start = min(max(cells[0], 0), size)
    return start, max(min(cells[1], size), start)


def hull(a: Interval, b: Interval) -> Interval:
    """The smallest interval that holds both; an empty one counts for nothing."""
    if a[0] == a[1] or b[0] == b[1]:
        return b if a[0] == a[1] else a
    return min(a[0], b[0]), max(a[1], b[1])


def window_read(box: Box, *, kernel: int, stride: int, padding: int, dilation: int) -> Box:
    """Input block that the outputs in `box` read (Eq. 22-25); it may stick out into the padding."""
    return Box(box.offset * stride - padding, window_span(box.size, kernel, stride, dilation))


def window_span(size: int, kernel: int, stride: int, dilation: int) -> int:
    """How many cells the input block of `size` neighbouring outputs has (Eq. 24-25)."""
    return (size - 1) * stride + (kernel - 1) * dilation + 1


def shift(reach: Reach, by: int, size: int) -> Reach:
    """The interval moved by `by` cells and clipped to a volume of `size`."""
    return Reach(reach.start + by, reach.stop + by).clipped(size)


def index_map_reach(reach: Reach, taps: Integers, size: int) -> Reach:
    """Bounding interval of the outputs that read a changed cell.

    Args:
        reach: the changed interval of the input.
        taps: (size, taps) the input cells that each output reads.
        size: the output's size along this axis.
    """
    taps = taps.reshape(size, -1, 1)
    read = np.logical_and(taps >= reach.start, taps < reach.stop)
    touched = np.asarray(read.any(1))  # (size, positions)
    start = touched.argmax(0)
    stop = size - touched[::-1].argmax(0)
    return Reach(start, np.where(touched.any(0), stop, start))


def union(reaches: list[Reach]) -> Reach:
    """The smallest intervals that hold all of the given; empty ones count for nothing."""
    if len(reaches) == 1:
        return reaches[0]
    far = np.iinfo(np.int64).max
    starts = [np.where(r.stop > r.start, r.start, far) for r in reaches]
    stops = [np.where(r.stop > r.start, r.stop, -1) for r in reaches]
    start, stop = np.min(starts, 0), np.max(stops, 0)
    empty = stop < 0
    start = np.where(empty, reaches[0].start, start)
    return Reach(start, np.where(empty, start, stop))


def everywhere(like: Reach, size: int) -> Reach:
    """The whole volume, for as many window positions as `like` has."""
    return Reach(like.start * 0, like.start * 0 + size)


def crop(reach: Reach, cells: int, centre: Floats) -> Reach:
    """At most `cells` cells of each interval, those about `centre` (Eq. 31-36).

    The paper crops about the middle of the interval. At the border of a volume, where the interval
    is cut off, that is not where the window's own cells project to; `centre` is.
    """
    last = np.maximum(reach.stop - cells, reach.start)
    start = np.clip(np.ceil(centre - cells / 2).astype(np.int64), reach.start, last)
    return Reach(start, np.minimum(start + cells, reach.stop))


def exact(reach: Reach) -> Box:
    """Patches of the size of the longest interval, of which each interval's own cells count."""
    extent = reach.stop - reach.start
    size = reach.longest
    return Box(reach.start, size, None if (extent == size).all() else extent)


def align(reach: Reach, cells: Interval, modulus: int = 1, residue: int = 0) -> Box:
    """One patch size for all intervals, each at its own offset.

    A patch larger than its interval is moved inside of `cells`, the volume or what is asked for of
    it, so that it still holds true values (Eq. 40-41). Where offsets must be `residue` modulo
    `modulus` the patch sticks out instead; what lies outside is never read.
    """
    if modulus == 1:
        length = min(reach.longest, cells[1] - cells[0])
        return Box(np.clip(reach.start, cells[0], cells[1] - length), length)
    offset = reach.start - (reach.start - residue) % modulus
    return Box(offset, max(1, int((reach.stop - offset).max(initial=1))))
