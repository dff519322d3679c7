"""The patches of the occluded input: the baseline inside each window, the image around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from .._operators import Frame, along
from .base import FILL, LABELS, MEANS
from .group import WindowGroup
from .layout import in_layout

__all__ = ["OccludedPatches"]


class OccludedPatches:
    """Makes the patches of the occluded input for the windows of a group."""

    def __init__(self, group: WindowGroup) -> None:
        self.group, self.value = group, group.analysis.occluded
        dims, boxes = group.analysis.dims[self.value], group.boxes(self.value)
        shape = group.graph.size(self.value, 1)
        original = group.base.kept[self.value]
        self.original = group.cut_from(original, self.value, dims, boxes, shape)
        self.fill = self._filling()
        self.masks = list(self._masks())
        labels = group.plan.grid.labels
        self.labels = None if labels is None else self._labels(labels)

    def _masks(self) -> Iterator[tuple[int, Tensor]]:
        """For each dimension that a window does not cover all of in its patch: where it does."""
        group, plan = self.group, self.group.plan
        for axis, (dim, box) in enumerate(zip(plan.axes, group.boxes(self.value), strict=True)):
            assert box is not None
            window = plan.grid.along(dim).segment(group.planned.segments[axis])
            cell = box.offset[:, None] + np.arange(box.size)
            inside = window.holds(cell)
            if not inside.all():
                yield dim + 1, group.to_device(inside[group.position[axis]])
        for dim in plan.others:
            inside = plan.grid.along(dim).holds(np.arange(plan.grid.shape[dim]))
            if not inside.all():
                yield dim + 1, group.to_device(inside[group.other[dim]])

    def _labels(self, labels: Tensor) -> Callable[[Frame], Tensor]:
        """A function that says which cells of the patches are the windows' own, by their numbers.

        Args:
            labels: (layers, *shape), see `RegionList`.
        """
        group, plan, rank = self.group, self.group.plan, labels.dim()
        window = group.order % plan.grid.total
        number = (window + 1).to(labels.dtype)
        sizes = [n if d - 1 in plan.axes else -1 for d, n in enumerate((0, *plan.grid.shape))]
        labels = labels.to(group.device).expand(-1, *sizes[1:])
        dims, boxes = group.analysis.dims[self.value], group.boxes(self.value)
        layer = group.to_device(plan.grid.layers)[window]
        cut = group.cut_from(labels, LABELS, dims, boxes, tuple(labels.shape), layer)
        return lambda batch: cut(batch) == batch.of(number).reshape(-1, *[1] * (rank - 1))

    def _filling(self) -> Callable[[Frame], Tensor]:
        """A function that gives what the windows are filled with, in whole patches."""
        group, number = self.group, self.group.material.fill
        shape, like = group.graph.size(self.value, 1), group.base.kept[self.value]
        if FILL in group.base.kept:
            dims, boxes = group.analysis.dims[self.value], group.boxes(self.value)
            fill = group.base.kept[FILL]
            first = torch.zeros_like(group.image_rows) if fill.shape[0] == 1 else None
            return group.cut_from(fill, FILL, dims, boxes, shape, first)
        sizes = list(shape[1:])
        for dim, box in zip(group.plan.axes, group.boxes(self.value), strict=True):
            assert box is not None
            sizes[dim] = box.size
        if group.material.own_mean:
            grid, ones = group.plan.grid, (1,) * (len(sizes) - 1)
            every = group.derived(self.value, MEANS, lambda kept: grid.means(kept).to(kept.dtype))
            means = every.flatten(0, 1)  # of every image's windows, (rows, channels), a view

            def own(batch: Frame) -> Tensor:
                found = means.index_select(0, batch.of(group.order))
                return found.reshape(batch.rows, -1, *ones).expand(-1, *sizes)

            return own
        assert number is not None
        return lambda batch: torch.full(
            (batch.rows, *sizes), number, dtype=like.dtype, device=like.device
        )

    def __call__(self, batch: Frame) -> Tensor:
        """The patches of a batch's windows."""
        fill, last = self.fill(batch), self.group.material.channels_last
        rank = fill.dim()
        parts = [along(batch.of(table), dim, rank) for dim, table in self.masks]
        if self.labels is not None:
            parts.append(self.labels(batch))
        if not parts:
            return in_layout(fill, last)
        mask = reduce(torch.logical_and, parts)
        return in_layout(torch.where(mask, fill, self.original(batch)), last)
