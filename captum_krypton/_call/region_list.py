"""Regions of any shape and place: boxes, the segments of a mask, or masks that overlap."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._operators import Integers, Reach
from .arguments import ArgumentError
from .windows import covered_cells, window_axes

__all__ = ["RegionList"]


class RegionList:
    """Regions of one input, each covered as a window of a grid is.

    A region has a box, its bounding box. Where it is not the whole of its box, `labels` says which
    cells are its own: those that hold its number, counted from 1. Regions that overlap lie in
    different layers of labels.

    Args:
        shape: the input's shape without its batch dimension.
        boxes: (regions, dimensions, 2), the first cell of each region and where it ends.
        labels: (layers, *shape), int32, size 1 along a dimension that no region is bounded in but
            its box; None where every region is its box.
        layers: (regions,), the layer that each region lies in; all in the first if left out.
    """

    shape: tuple[int, ...]
    labels: Tensor | None
    layers: Integers
    paired: bool = True  # a window has one position, the same along all dimensions

    def __init__(
        self,
        shape: tuple[int, ...],
        boxes: Integers,
        labels: Tensor | None = None,
        layers: Integers | None = None,
    ) -> None:
        self.shape, self.boxes, self.labels = shape, boxes, labels
        self.layers = np.zeros(len(boxes), np.int64) if layers is None else layers

    @classmethod
    def of_boxes(cls, shape: tuple[int, ...], boxes: Sequence[Any]) -> RegionList:
        """Boxes as tuples of slices, one for each dimension but the channels, or for all.

        Raises:
            ArgumentError: for no boxes, and one that is empty, has a step or sticks out.
        """
        if not len(boxes):
            raise ArgumentError("windows must have at least one box")
        made = [_ends(shape, number, box) for number, box in enumerate(boxes)]
        return cls(shape, np.array(made, np.int64).reshape(len(made), len(shape), 2))

    @classmethod
    def of_mask(cls, shape: tuple[int, ...], mask: Tensor) -> RegionList:
        """The regions of equal numbers in a mask, from the smallest number on.

        Args:
            shape: the input's shape without its batch dimension.
            mask: of the same number of dimensions, each of the input's size or 1.
        """
        found, labels = torch.unique(mask, return_inverse=True)
        sizes = [n if m > 1 else None for n, m in zip(shape, mask.shape, strict=True)]
        boxes = _bounding_boxes(labels, len(found), sizes, shape)
        return cls(shape, boxes, (labels[None] + 1).int())

    @classmethod
    def of_masks(cls, shape: tuple[int, ...], masks: Tensor) -> RegionList:
        """One region a mask; masks may overlap, and an empty one changes nothing.

        Args:
            shape: the input's shape without its batch dimension.
            masks: (regions, ...), bool, each dimension of the input's size or 1.
        """
        layers: list[Tensor] = []
        chosen, boxes = [], []
        for number, mask in enumerate(masks.bool()):
            free = (i for i, layer in enumerate(layers) if not bool((layer[mask] > 0).any()))
            layer = next(free, len(layers))
            if layer == len(layers):
                layers.append(torch.zeros(mask.shape, dtype=torch.int32, device=mask.device))
            layers[layer][mask] = number + 1
            chosen.append(layer)
            boxes.append(_bounding_box(mask, shape))
        corners = np.array(boxes, np.int64).reshape(len(boxes), len(shape), 2)
        return cls(shape, corners, torch.stack(layers), np.array(chosen, np.int64))

    @property
    def counts(self) -> tuple[int, ...]:
        """How many regions there are, as the size of a map."""
        return (len(self.boxes),)

    @property
    def total(self) -> int:
        """How many regions there are."""
        return len(self.boxes)

    @property
    def axes(self) -> tuple[int, ...]:
        """The window axes, as those of a grid."""
        return window_axes(self.shape)

    def along(self, dim: int) -> Reach:
        """The interval that each region's box covers along a dimension (0: channels)."""
        return Reach(self.boxes[:, dim, 0], self.boxes[:, dim, 1])

    def positions(self, windows: Sequence[int]) -> tuple[Integers, ...]:
        """The position of some regions along each dimension: their own number."""
        return (np.array(windows, np.int64),) * len(self.shape)

    def cells(self, windows: Sequence[int], device: torch.device) -> Tensor:
        """Which cells some regions cover, (regions, *shape), bool; sizes of 1 stand for all."""
        inside = covered_cells(self, windows, device)
        if self.labels is None:
            return inside
        labels = self.labels.to(device)[torch.from_numpy(self.layers[windows]).to(device)]
        number = torch.tensor(windows, device=device) + 1
        return inside & (labels == number.reshape(-1, *[1] * len(self.shape)))

    def spread(self, values: Tensor) -> Tensor:
        """The mean, over the regions that cover a cell, of a value a region.

        Args:
            values: (rows, regions).

        Returns:
            (rows, *shape); not a number where no region covers a cell.
        """
        if self.labels is not None and len(self.labels) == 1:
            nothing = values.new_full((len(values), 1), math.nan)
            found = torch.cat([nothing, values], 1)[:, self.labels[0].long().to(values.device)]
            return found.expand(len(values), *self.shape)
        total = values.new_zeros((len(values), *self.shape))
        number = values.new_zeros(self.shape)
        for region in range(self.total):
            inside = self.cells([region], values.device)[0].to(values.dtype)
            total += inside * values[:, region].reshape(-1, *[1] * len(self.shape))
            number += inside
        return total / number

    def means(self, values: Tensor) -> Tensor:
        """The mean of the cells that a region covers, channel by channel; 0 where it covers none.

        Args:
            values: (rows, *shape).

        Returns:
            float64, (rows, regions, channels), or (rows, regions, 1) where there are no channels.
        """
        values = values.double() if len(self.shape) > 1 else values.double()[:, None]
        found = []
        for region in range(self.total):
            inside = self.cells([region], values.device)
            inside = inside if len(self.shape) > 1 else inside[:, None]
            cells = tuple(range(2, values.dim()))
            total = torch.where(inside, values, 0).sum(cells)
            found.append(total / inside.expand(values.shape).sum(cells).clamp(min=1))
        return torch.stack(found, 1)

    @cached_property
    def _key(self) -> tuple[Any, ...]:
        digest = hashlib.blake2b(self.boxes.tobytes() + self.layers.tobytes())
        if self.labels is not None:
            digest.update(self.labels.cpu().contiguous().numpy().tobytes())
        shape = None if self.labels is None else tuple(self.labels.shape)
        return self.shape, shape, digest.digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RegionList) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"RegionList({self.total} regions of {self.shape})"


def _ends(shape: tuple[int, ...], number: int, box: Any) -> list[tuple[int, int]]:
    """The first cell of a box and where it ends, along each dimension."""
    given = box if isinstance(box, tuple) else (box,)
    missing = len(shape) - len(given)
    if missing not in (0, 1) or not all(isinstance(side, slice) for side in given):
        raise ArgumentError(
            f"windows[{number}] must be a tuple of {len(shape) - 1} or {len(shape)} slices, one "
            f"for each dimension but the batch (and the channels), not {box!r}"
        )
    ends = [(0, size) for size in shape[:missing]]
    for side, size in zip(given, shape[missing:], strict=True):
        start, stop = side.start or 0, size if side.stop is None else side.stop
        if side.step not in (None, 1) or not 0 <= start < stop <= size:
            raise ArgumentError(
                f"windows[{number}] has {side}: it must name at least one of {size} cells, "
                "none outside, without a step"
            )
        ends.append((start, stop))
    return ends


def _bounding_boxes(
    labels: Tensor, regions: int, sizes: list[int | None], shape: tuple[int, ...]
) -> Integers:
    """The bounding box of every label, (regions, dimensions, 2); None is a size of 1 for all."""
    boxes = np.empty((regions, len(shape), 2), np.int64)
    flat = labels.reshape(-1)
    for dim, size in enumerate(sizes):
        if size is None:
            boxes[:, dim] = 0, shape[dim]
            continue
        line = [1] * len(shape)
        line[dim] = size
        cell = torch.arange(size, device=labels.device).reshape(line).expand(labels.shape)
        for end, name in enumerate(("amin", "amax")):
            found = torch.zeros(regions, dtype=torch.int64, device=labels.device)
            found = found.scatter_reduce(0, flat, cell.reshape(-1), name, include_self=False)
            boxes[:, dim, end] = found.cpu().numpy() + end
    return boxes


def _bounding_box(mask: Tensor, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """The bounding box of a mask; one cell for an empty one."""
    ends = []
    for dim, size in enumerate(shape):
        if mask.shape[dim] == 1:
            ends.append((0, size))
            continue
        others = [d for d in range(mask.dim()) if d != dim]
        inside = mask.any(dim=others) if others else mask
        cells = inside.nonzero().flatten().tolist() or [0]
        ends.append((cells[0], cells[-1] + 1))
    return ends
