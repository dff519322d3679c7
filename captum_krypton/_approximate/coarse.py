"""Maps from some of their windows: every k-th along each axis, the others interpolated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._operators import Floats, Integers, Mask
from .libraries import scipy

__all__ = ["CoarseGrid"]


@dataclass(frozen=True)
class CoarseGrid:
    """Every `step`-th window position along the window axes, and the last.

    Values on the grid are tensors (images, windows, outputs...), windows in row-major order.

    Attributes:
        counts: windows along each dimension of the input.
        axes: the dimensions that are window axes; of the others, every position belongs to it.
        step: the distance of its positions, in windows.
    """

    counts: tuple[int, ...]
    axes: tuple[int, ...]
    step: int

    @cached_property
    def nodes(self) -> tuple[Integers, ...]:
        """Its positions along each dimension."""
        return tuple(
            np.unique(np.append(np.arange(0, count, self.step), count - 1))
            if dim in self.axes
            else np.arange(count)
            for dim, count in enumerate(self.counts)
        )

    @cached_property
    def nearest(self) -> tuple[Integers, ...]:
        """For every position along each dimension, the number of the nearest node."""
        return tuple(
            np.searchsorted((nodes[1:] + nodes[:-1]) / 2, np.arange(count))
            for nodes, count in zip(self.nodes, self.counts, strict=True)
        )

    @cached_property
    def windows(self) -> Mask:
        """Which windows are its own, (windows,)."""
        mask = np.zeros(self.counts, bool)
        mask[np.ix_(*self.nodes)] = True
        return mask.reshape(-1)

    @cached_property
    def cells(self) -> Integers:
        """For every window, the nearest one of its own, by number, (windows,)."""
        near = [nodes[n] for nodes, n in zip(self.nodes, self.nearest, strict=True)]
        return np.ravel_multi_index(np.meshgrid(*near, indexing="ij"), self.counts).reshape(-1)

    def repeated(self, values: Tensor) -> Tensor:
        """Every window has the value of the nearest one of the grid's."""
        return values[:, torch.from_numpy(self.cells).to(values.device)]

    def spline(self, values: Tensor) -> Tensor:
        """The cubic spline through the grid's windows, of lower degree where they are fewer."""
        total = values.double().reshape(values.shape[0], *self.counts, *values.shape[2:])
        for dim, (nodes, count) in enumerate(zip(self.nodes, self.counts, strict=True), 1):
            if len(nodes) == count:
                continue
            own = total.index_select(dim, torch.from_numpy(nodes).to(values.device))
            matrix = torch.from_numpy(_spline_matrix(nodes, count)).to(values.device)
            total = torch.tensordot(matrix, own, dims=([1], [dim])).movedim(0, dim)
        return total.reshape(values.shape).to(values.dtype)


def _spline_matrix(nodes: Integers, count: int) -> Floats:
    """(count, nodes): what each node adds to each position."""
    if len(nodes) == 1:
        return np.ones((count, 1))
    spline: Callable[[Any], Floats] = scipy("interpolate").make_interp_spline(
        nodes, np.eye(len(nodes)), k=_degree(len(nodes))
    )
    return spline(np.arange(count))


def _degree(nodes: int) -> int:
    """Three where there are enough nodes; an odd degree, whose knots are the nodes."""
    return 3 if nodes >= 4 else 1
