"""The patches of the occluded input: the baseline inside each window, the image around it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .._operators import Frame, along
from .base import FILL
from .group import WindowGroup
from .layout import in_layout

__all__ = ["OccludedPatches"]


class OccludedPatches:
    """Makes the patches of the occluded input for the windows of a group."""

    def __init__(self, group: WindowGroup) -> None:
        self.group, self.value = group, group.analysis.occluded
        dims, boxes = group.analysis.dims[self.value], group.boxes(self.value)
        shape = group.graph.size(self.value, 1)
        kept = group.base.kept
        if FILL in kept:
            fill = kept[FILL]
            self.fill = group.cut_from(fill, FILL, dims, boxes, shape, shared=fill.shape[0] == 1)
        self.original = group.cut_from(
            kept[self.value], self.value, dims, boxes, shape, shared=False
        )
        self.masks = list(self._masks())

    def _masks(self) -> Iterator[tuple[int, Tensor]]:
        """For each dimension that a window does not cover all of in its patch: where it does."""
        group, plan = self.group, self.group.plan
        for axis, (dim, box) in enumerate(zip(plan.axes, group.boxes(self.value), strict=True)):
            assert box is not None
            window = plan.grid.along(dim).segment(group.planned.segments[axis])
            cell = box.offset[:, None] + np.arange(box.size)
            inside = (cell >= window.start[:, None]) & (cell < window.stop[:, None])
            if not inside.all():
                yield dim + 1, group.to_device(inside[group.position[axis]])
        for dim in plan.others:
            inside = plan.grid.cover(dim).T > 0
            if not inside.all():
                yield dim + 1, group.to_device(inside[group.other[dim]])

    def __call__(self, batch: Frame) -> Tensor:
        """The patches of a batch's windows."""
        group, number = self.group, self.group.material.fill
        if number is None:
            fill = self.fill(batch)
        else:
            sizes = list(group.graph.size(self.value, 1))
            for dim, box in zip(group.plan.axes, group.boxes(self.value), strict=True):
                assert box is not None
                sizes[dim + 1] = box.size
            like = group.base.kept[self.value]
            fill = torch.full(
                (batch.rows, *sizes[1:]), number, dtype=like.dtype, device=like.device
            )
            fill = in_layout(fill, group.material.channels_last)
        if not self.masks:
            return fill
        mask: Tensor | None = None
        for dim, table in self.masks:
            part = along(batch.of(table), dim, fill.dim())
            mask = part if mask is None else mask & part
        assert mask is not None
        patches = torch.where(mask, fill, self.original(batch))
        return in_layout(patches, group.material.channels_last)
