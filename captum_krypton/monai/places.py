"""Where windows lie, as MONAI lays them, and how their outcomes are blended into a map."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Places", "blended", "places_of"]

_EDGE_SCALE, _LEAST_WEIGHT = 0.125, 1e-3  # of MONAI's Gaussian weights


@dataclass(frozen=True)
class Places:
    """Windows of one size over a part of an image.

    Attributes:
        size: the image's spatial shape.
        window: the window's size along each axis.
        first: the part's first cell along each axis.
        last: where the part ends.
        starts: the first cell of the windows along each axis; windows are all combinations.
        kept: the part of the image that the map shows, a slice an axis.
    """

    size: tuple[int, ...]
    window: tuple[int, ...]
    first: tuple[int, ...]
    last: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]
    kept: tuple[slice, ...]

    @property
    def corners(self) -> list[tuple[int, ...]]:
        """The first cell of every window, the last axis fastest."""
        return list(itertools.product(*self.starts))

    @property
    def boxes(self) -> list[tuple[slice, ...]]:
        """Every window as a slice an axis."""
        return [
            tuple(slice(c, c + w) for c, w in zip(corner, self.window, strict=True))
            for corner in self.corners
        ]


def places_of(
    size: Sequence[int], mask_size: Any, overlap: Any, b_box: Sequence[int] | None
) -> Places:
    """The windows of a call.

    Args:
        size: the image's spatial shape.
        mask_size: the window's side, or one an axis.
        overlap: the share of a window that the next one covers too, in [0, 1), or one an axis.
        b_box: the least and the largest index of every axis, one after another; -1 for none.

    Raises:
        ValueError: for an argument of another length or out of range, and a window that is larger
            than the image.
    """
    axes = len(size)
    window = [int(side) for side in _each(mask_size, axes, "mask_size")]
    shares = [float(share) for share in _each(overlap, axes, "overlap")]
    if any(side < 1 for side in window):
        raise ValueError(f"mask_size must be positive, not {mask_size}")
    if not all(0 <= share < 1 for share in shares):
        raise ValueError(f"overlap must be at least 0 and less than 1, not {overlap}")
    first, last, kept = [0] * axes, list(size), [slice(0, n) for n in size]
    if b_box is not None:
        box = [int(end) for end in b_box]
        if len(box) != 2 * axes:
            raise ValueError(
                f"b_box must have a minimum and a maximum for each of {axes} axes, not {len(box)} "
                "numbers"
            )
        for axis, (low, high) in enumerate(zip(box[::2], box[1::2], strict=True)):
            edge = (window[axis] - 1) // 2  # half a window around the box
            first[axis] = max(low - edge, 0)
            last[axis] = size[axis] if high == -1 else min(high + edge, size[axis])
            kept[axis] = slice(max(low, 0), high if high > 0 else size[axis])
            if not first[axis] < last[axis] or kept[axis].start >= kept[axis].stop:
                raise ValueError(
                    f"b_box has {low} to {high} along axis {axis}, which holds none of the "
                    f"{size[axis]} cells; -1 stands for all"
                )
            window[axis] = min(window[axis], last[axis] - first[axis])
    if any(w > end - start for w, start, end in zip(window, first, last, strict=True)):
        raise ValueError(
            f"mask_size must not be larger than the image, {tuple(size)}, but is {tuple(window)}"
        )
    starts = tuple(map(_starts, first, last, window, shares))
    return Places(tuple(size), tuple(window), tuple(first), tuple(last), starts, tuple(kept))


def blended(scores: Tensor, places: Places, gaussian: bool) -> Tensor:
    """The weighted mean, over the windows that cover a cell, of their outcomes.

    Args:
        scores: (windows, classes).
        places: where the windows lie.
        gaussian: whether a cell counts less the farther it is from a window's centre.

    Returns:
        (1, classes, *shape), the part of the image that `places` keeps; 0 where no window is.
    """
    weight = torch.ones(places.window)
    if gaussian:
        weight = _weight(places.window)
    weight = weight.to(scores)
    total = scores.new_zeros((scores.shape[1], *places.size))
    count = scores.new_zeros(places.size)
    shape = (-1, *[1] * len(places.size))
    for row, box in zip(scores, places.boxes, strict=True):
        cells = (slice(None), *box)
        total[cells] += row.reshape(shape) * weight
        count[box] += weight
    total = torch.where(count > 0, total / count, 0)
    kept = (slice(None), *places.kept)
    return total[kept][None]


def _each(value: Any, axes: int, name: str) -> tuple[Any, ...]:
    """A value for every axis."""
    if isinstance(value, (int, float)):
        return (value,) * axes
    values = tuple(value)
    if len(values) != axes:
        raise ValueError(f"{name} must be a number or {axes} of them, not {len(values)}")
    return values


def _starts(first: int, last: int, window: int, share: float) -> tuple[int, ...]:
    """Where windows start along an axis; the last one is moved to the border, not clipped."""
    step = max(int(window * (1 - share)), 1)
    steps = math.ceil((last - first - window) / step)
    return tuple(first + min(i * step, last - first - window) for i in range(steps + 1))


def _weight(window: tuple[int, ...]) -> Tensor:
    """MONAI's Gaussian weights of the cells of a window."""
    weight = torch.ones(())
    for side in window:
        cell = torch.arange(side) - (side - 1) / 2
        line = torch.exp(cell**2 / (-2 * (_EDGE_SCALE * side) ** 2))
        weight = weight[..., None] * line
    return weight.clamp(min=max(float(weight.min()), _LEAST_WEIGHT))
