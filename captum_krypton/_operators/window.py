"""What operators with a sliding window share, and the rules for pooling (Section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .._capture import Node, ValueId
from .._kernels import PATCH_TYPES, pool_patches
from .regions import Box, Interval, Reach, window_demand, window_reach, window_read, window_span
from .rule import Algorithm, Boxes, Frame, Group, Kind, Means, Rule, Step, View, along

__all__ = ["WindowRule", "average_pooling", "carries_axes", "max_pooling", "unshuffle"]


class WindowRule(Rule):
    """An operator that slides a kernel over the trailing `rank` dimensions of its input.

    Dimensions without a window axis keep the operator's own padding; along the others the padding
    is read as part of the block, filled with `fill`.
    """

    fill = 0.0
    ragged = True

    def __init__(
        self,
        node: Node,
        view: View,
        source: ValueId,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ) -> None:
        self.node, self.view, self.source = node, view, source
        self.kernel, self.stride = list(kernel), list(stride)
        self.padding, self.dilation = list(padding), list(dilation)
        self.dims = view.dims[source]
        self.lead = len(view.graph.shapes[source]) - len(self.kernel)

    def _geometry(self, axis: int) -> dict[str, int]:
        dim = self.dims[axis]
        assert dim is not None
        i = dim - self.lead
        return {
            "kernel": self.kernel[i],
            "stride": self.stride[i],
            "padding": self.padding[i],
            "dilation": self.dilation[i],
        }

    def reach(self, axis: int, operands: dict[ValueId, Reach]) -> Reach:
        """Eq. 18-21, exact at the borders."""
        return window_reach(operands[self.source], size=self.size(axis), **self._geometry(axis))

    def demand(self, axis: int, wanted: Interval | None) -> dict[ValueId, Interval]:
        if wanted is None:
            return {}
        dim = self.dims[axis]
        assert dim is not None
        size = self.view.shape(self.source)[dim]
        return {self.source: window_demand(wanted, size=size, **self._geometry(axis))}

    def reads(self, boxes: Boxes) -> Boxes:
        """Eq. 22-25."""
        return tuple(
            None if box is None else window_read(box, **self._geometry(axis))
            for axis, box in enumerate(boxes)
        )

    def read_size(self, boxes: Boxes) -> tuple[int, ...]:
        """Eq. 24-25."""
        return tuple(
            window_span(box.size, self.kernel[i], self.stride[i], self.dilation[i])
            for box, dim in zip(boxes, self.dims, strict=True)
            if box is not None and dim is not None
            for i in (dim - self.lead,)
        )

    def can_have_kernel(self, means: Means) -> bool:
        """Whether a compiled kernel can read this operator's input where it lies."""
        stored = self.view.graph.dtypes[self.source] in PATCH_TYPES
        rank = len(self.view.shape(self.source))
        return means.cpu_kernels and stored and self.dims == tuple(range(self.lead, rank))

    def block(self, group: Group) -> Callable[[Frame], Tensor]:
        """Algorithm 1: the read-in block of every window."""
        return group.read(self.source, self.reads(group.boxes(self.outputs[0])), self.fill)

    def own_padding(self) -> list[int]:
        """The padding that the read-in block does not have yet."""
        own = list(self.padding)
        for dim in self.dims:
            if dim is not None:
                own[dim - self.lead] = 0
        return own


def carries_axes(view: View, source: ValueId, rank: int) -> bool:
    """Whether every window axis of the value is one of its trailing `rank` dimensions."""
    lead = len(view.graph.shapes[source]) - rank
    return lead == 2 and all(d is None or d >= lead for d in view.dims[source])


def _listed(value: Any, rank: int) -> list[int]:
    """A pooling argument for every dimension: one number stands for all."""
    if isinstance(value, int):
        return [value] * rank
    return list(value) * rank if len(value) == 1 else list(value)


class _Pooling(WindowRule):
    @property
    def _flat(self) -> int:
        """How many dimensions in front of the window axes do nothing: PyTorch pools signals so."""
        axes = len([dim for dim in self.dims if dim is not None])
        flat, shape = len(self.kernel) - axes, self.view.shape(self.source)[2:]
        idle = all((shape[i], self.kernel[i], self.padding[i]) == (1, 1, 0) for i in range(flat))
        return flat if idle else 0

    def can_have_kernel(self, means: Means) -> bool:
        if self.view.graph.dtypes[self.source] not in PATCH_TYPES:
            return False
        axes = tuple(range(2 + self._flat, len(self.view.shape(self.source))))
        if means.cpu_kernels and self.dims == axes:
            return True
        return means.gpu_pooling and self.dims == (2, 3)

    def algorithm(self, boxes: Boxes, means: Means) -> tuple[Algorithm, float]:
        channels = self.view.shape(self.source)[1]
        if not self.can_have_kernel(means):
            size = math.prod(self.read_size(boxes)) * channels
            return Algorithm.TORCH, 2 * size * means.rates.element
        outputs = math.prod(box.mean_cells for box in boxes if box is not None)
        numbers = outputs * channels * math.prod(self.kernel)
        return Algorithm.POOLING, numbers * means.rates.pooling

    def whole_step(self, group: Group) -> Step:
        """The kernel is as good for patches that are whole volumes."""
        if group.algorithm(self.outputs[0]) is Algorithm.POOLING:
            return self.step(group)
        return super().whole_step(group)

    def pooled(self, group: Group, *, maximum: bool, divisor: int) -> Callable[[Frame], Tensor]:
        """A function that gives the output patches: maxima, or sums over a divisor."""
        boxes = group.boxes(self.outputs[0])
        kernel, stride, dilation = self.kernel, self.stride, self.dilation
        if group.algorithm(self.outputs[0]) is Algorithm.POOLING:
            size = [box.size for box in boxes if box is not None]
            source, read_offset = group.patches(self.source), group.offsets(self.reads(boxes))
            extent, flat = group.extents(boxes), self._flat

            def by_kernel(frame: Frame) -> Tensor:
                made = pool_patches(
                    source(frame),
                    frame.of(read_offset),
                    size,
                    kernel[flat:],
                    stride=stride[flat:],
                    dilation=dilation[flat:],
                    maximum=maximum,
                    divisor=divisor,
                    output_extent=None if extent is None else frame.of(extent),
                )
                for _ in range(flat):
                    made = made.unsqueeze(2)
                return made

            return by_kernel
        block, padding, planar = self.block(group), self.own_padding(), len(kernel) == 2
        if maximum:
            largest = F.max_pool2d if planar else F.max_pool3d
            return lambda frame: largest(block(frame), kernel, stride, padding, dilation)
        mean = F.avg_pool2d if planar else F.avg_pool3d
        return lambda frame: mean(block(frame), kernel, stride, padding, divisor_override=divisor)


class _MaxPooling(_Pooling):
    fill = -math.inf

    def step(self, group: Group) -> Step:
        pooled = self.pooled(group, maximum=True, divisor=1)
        return (lambda frame: (pooled(frame), None)) if self.node.several else pooled


def max_pooling(node: Node, view: View) -> Rule | None:
    """Max pooling, adaptive too where the output divides the input; without its indices."""
    source = node.operands()[0]
    rank = 3 if "3d" in node.name else 2
    if view.kinds[source] is not Kind.LOCAL or not carries_axes(view, source, rank):
        return None
    if node.several and (node.outputs[0] < 0 or node.outputs[1] >= 0):
        return None  # someone reads the indices
    if not view.graph.dtypes[source].is_floating_point:
        return None
    if "adaptive" in node.name:
        geometry = _adaptive(node, view, source, rank)
        if geometry is None:
            return None
        kernel, stride, padding, dilation = geometry
    else:
        named = node.bound()
        kernel = _listed(named["kernel_size"], rank)
        stride = _listed(named["stride"] or kernel, rank)
        padding, dilation = _listed(named["padding"], rank), _listed(named["dilation"], rank)
        untracked = [i for i in range(rank) if i + 2 not in view.dims[source]]
        before, after = view.shape(source)[2:], view.shape(node.results[0])[2:]
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        if named["ceil_mode"] and not _exact(before, after, spans, stride, untracked):
            return None
    return _MaxPooling(node, view, source, kernel, stride, padding, dilation)


def _adaptive(
    node: Node, view: View, source: ValueId, rank: int
) -> tuple[list[int], list[int], list[int], list[int]] | None:
    before = view.shape(source)[-rank:]
    after = view.shape(node.results[0])[-rank:]
    if any(a == 0 or b % a for a, b in zip(after, before, strict=True)):
        return None
    sizes = [b // a for a, b in zip(after, before, strict=True)]
    return sizes, sizes, [0] * rank, [1] * rank


class _AveragePooling(_Pooling):
    """Means of the block, corrected where fewer cells count: sums may be too large for 16 bits."""

    counts: list[np.ndarray[Any, Any] | None]
    divisor: int | None = None

    def step(self, group: Group) -> Step:
        boxes = group.boxes(self.outputs[0])
        pooled = self.pooled(group, maximum=False, divisor=self.divisor or math.prod(self.kernel))
        factors = [
            (dim, group.per_row(axis, torch.from_numpy(self._factors(dim, counts, box))))
            for axis, (dim, box) in enumerate(zip(self.dims, boxes, strict=True))
            if dim is not None
            and box is not None
            and (counts := self.counts[dim - self.lead]) is not None
        ]
        if not factors:
            return pooled
        dtype = torch.promote_types(self.view.graph.dtypes[self.source], torch.float32)

        def step(frame: Frame) -> Tensor:
            mean = pooled(frame)
            for dim, table in factors:
                mean.mul_(along(frame.of(table), dim, mean.dim()).to(dtype))
            return mean

        return step

    def _factors(
        self, dim: int, counts: np.ndarray[Any, Any], box: Box
    ) -> np.ndarray[Any, np.dtype[np.float64]]:
        made: np.ndarray[Any, np.dtype[np.float64]]
        made = self.kernel[dim - self.lead] / _windows_of(counts, box)
        return made


def _windows_of(counts: np.ndarray[Any, Any], box: Box) -> np.ndarray[Any, Any]:
    """counts[offset : offset + size] for every offset; 1 outside the volume."""
    index = box.offset[:, None] + np.arange(box.size)
    inside = (index >= 0) & (index < len(counts))
    return np.where(inside, counts[np.clip(index, 0, len(counts) - 1)], 1)


def average_pooling(node: Node, view: View) -> Rule | None:
    """Average pooling: ceil_mode, count_include_pad, divisor_override, adaptive to a divisor."""
    source = node.operands()[0]
    rank = 3 if "3d" in node.name else 2
    if view.kinds[source] is not Kind.LOCAL or not carries_axes(view, source, rank):
        return None
    if "adaptive" in node.name:
        geometry = _adaptive(node, view, source, rank)
        if geometry is None:
            return None
        rule = _AveragePooling(node, view, source, *geometry)
        rule.counts = [None] * rank
        return rule
    named = node.bound()
    kernel = _listed(named["kernel_size"], rank)
    stride = _listed(named["stride"] or kernel, rank)
    padding = _listed(named["padding"], rank)
    rule = _AveragePooling(node, view, source, kernel, stride, padding, [1] * rank)
    rule.divisor = named["divisor_override"]
    before, after = view.shape(source)[2:], view.shape(node.results[0])[2:]
    rule.counts = [None] * rank
    if rule.divisor is None:
        for i in range(rank):
            counts = _counts(
                before[i], after[i], kernel[i], stride[i], padding[i], named["count_include_pad"]
            )
            if (counts != kernel[i]).any():
                rule.counts[i] = counts
    untracked = [i for i in range(rank) if i + 2 not in rule.dims]
    plain = all(padding[i] == 0 and rule.counts[i] is None for i in untracked)
    if not plain or not _exact(before, after, kernel, stride, untracked):
        return None
    return rule


def _exact(
    before: tuple[int, ...],
    after: tuple[int, ...],
    spans: list[int],
    stride: list[int],
    dims: list[int],
) -> bool:
    """Whether no window along `dims`, of so many cells, sticks out of the input."""
    return all((after[i] - 1) * stride[i] + spans[i] <= before[i] for i in dims)


def _counts(
    before: int, after: int, kernel: int, stride: int, padding: int, include: bool
) -> np.ndarray[Any, Any]:
    """How many cells count along one dimension at each output, as ATen has it."""
    start = np.arange(after) * stride - padding
    stop = np.minimum(start + kernel, before + padding)
    if include:
        return stop - start
    return np.minimum(stop, before) - np.maximum(start, 0)


class _Unshuffle(WindowRule):
    def step(self, group: Group) -> Step:
        factor, block = self.kernel[0], self.block(group)
        return lambda frame: F.pixel_unshuffle(block(frame), factor)


def unshuffle(node: Node, view: View) -> Rule | None:
    """pixel_unshuffle: squares of cells become channels."""
    source = node.operands()[0]
    factor = node.args[1]
    if view.kinds[source] is not Kind.LOCAL or not carries_axes(view, source, 2):
        return None
    return _Unshuffle(node, view, source, [factor] * 2, [factor] * 2, [0, 0], [1, 1])
