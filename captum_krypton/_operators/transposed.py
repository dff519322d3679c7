"""The rule for transposed convolutions, alone or with what follows them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .._capture import Node, ValueId
from .._kernels import pack_transposed, transposed_patches
from .convolution import in_panels
from .ending import Ending, has_constant_weight, kernels_read
from .regions import Box, Interval, Reach, bounded
from .rule import Algorithm, Boxes, Frame, Group, Means, Rule, Step, View
from .window import carries_axes

__all__ = ["transposed_convolution"]

aten = torch.ops.aten


class _TransposedRule(Rule):
    """By the compiled kernels, or by PyTorch's operator on patches that start where a kernel does.

    Those of PyTorch share one phase, so that one size of block and one cut fit all.
    """

    def __init__(self, node: Node, view: View) -> None:
        self.node, self.view = node, view
        self.named, self.ending = node.bound(), Ending(node)
        self.source: ValueId = self.named["input"].id
        self.weight: ValueId = self.named["weight"].id
        self.dims = view.dims[self.source]
        self.kernel = view.shape(self.weight)[2:]
        every = tuple(range(2, len(view.shape(self.source))))
        # Where these run, patches are ragged, which PyTorch's operator could not read.
        self.ragged = self.dims == every and kernels_read(view, self.source, self.weight)

    def _geometry(self, axis: int) -> tuple[int, int, int]:
        dim = self.dims[axis]
        assert dim is not None
        i = dim - 2
        span = (self.kernel[i] - 1) * self.named["dilation"][i]
        return self.named["stride"][i], self.named["padding"][i], span

    def reach(self, axis: int, operands: dict[ValueId, Reach]) -> Reach:
        stride, padding, span = self._geometry(axis)
        reach = operands[self.source]
        start = reach.start * stride - padding
        stop = (reach.stop - 1) * stride - padding + span + 1
        own = Reach(start, np.where(reach.stop > reach.start, stop, start))
        return self.ending.reach(own.clipped(self.size(axis)), operands)

    def demand(self, axis: int, wanted: Interval | None) -> dict[ValueId, Interval]:
        """The inputs of which a tap falls on one of the outputs."""
        dim = self.dims[axis]
        if wanted is None or dim is None:
            return {}
        stride, padding, span = self._geometry(axis)
        read = -((span - padding - wanted[0]) // stride), (wanted[1] - 1 + padding) // stride + 1
        own = {self.source: bounded(read, self.view.shape(self.source)[dim])}
        return self.ending.demand(own, wanted)

    def alignment(self, axis: int) -> tuple[int, int]:
        stride, padding, _ = self._geometry(axis)
        return stride, -padding % stride

    def _reads(self, boxes: Boxes) -> Boxes:
        """What outputs in `boxes` read, where these start with a kernel."""
        reads: list[Box | None] = []
        for axis, box in enumerate(boxes):
            if box is None:
                reads.append(None)
                continue
            stride, padding, span = self._geometry(axis)
            before = span // stride
            first = (box.offset + padding) // stride - before
            reads.append(Box(first, (box.size - 1) // stride + before + 1))
        return tuple(reads)

    def read_size(self, boxes: Boxes) -> tuple[int, ...]:
        return tuple(box.size for box in self._reads(boxes) if box is not None)

    def algorithm(self, boxes: Boxes, means: Means) -> tuple[Algorithm, float]:
        channels, out_channels = self.view.shape(self.weight)[:2]
        groups = self.named["groups"]
        weights = math.prod(self.view.shape(self.weight))
        if means.cpu_kernels and self.ragged:
            cells = math.prod(box.mean_cells for box in boxes if box is not None)
            macs = cells * weights / math.prod(self.named["stride"])  # a tap is of one phase
            if groups == channels > 1 and out_channels == 1:
                return Algorithm.DEPTHWISE, macs * means.rates.depthwise
            waste = in_panels(channels // groups, out_channels, groups)
            return Algorithm.DIRECT, macs * waste * means.rates.direct
        read = list(self.view.shape(self.source)[2:])
        for dim, box in zip(self.dims, self._reads(boxes), strict=True):
            if dim is not None and box is not None:
                read[dim - 2] = box.size
        cells = math.prod(read)
        rate = means.rates.of_torch_convolution(groups, channels // groups, out_channels)
        return Algorithm.TORCH, cells * (weights * rate + channels * means.rates.element)

    def step(self, group: Group) -> Step:
        if group.algorithm(self.outputs[0]) is Algorithm.TORCH:
            return self._torch_step(group)
        return self._kernel_step(group)

    def _kernel_step(self, group: Group) -> Step:
        named, boxes = self.named, group.boxes(self.outputs[0])
        stride, dilation, groups = named["stride"], named["dilation"], named["groups"]
        weight = group.packed(
            self.weight,
            ("transposed", *stride, *dilation),
            lambda tensor: pack_transposed(tensor, stride, dilation, groups),
        )
        size = [box.size for box in boxes if box is not None]
        source, output_offset = group.patches(self.source), group.offsets(boxes)
        ending = self.ending.by_kernel(group, boxes)

        def step(frame: Frame) -> Tensor:
            return transposed_patches(
                source(frame),
                frame.of(output_offset),
                weight,
                size=size,
                padding=named["padding"],
                **ending(frame),
            )

        return step

    def _torch_step(self, group: Group) -> Step:
        named, boxes = self.named, group.boxes(self.outputs[0])
        weight, residual = group.constant(self.weight), self.ending.residual
        dtype = self.view.graph.dtypes[self.source]
        added = None if residual is None else group.read(residual, boxes)
        bias, finished = self.ending.by_torch(group, weight, added)
        reads = self._reads(boxes)
        padding, extra = list(named["padding"]), list(named["output_padding"])
        crops = []
        for axis, (box, read_box) in enumerate(zip(boxes, reads, strict=True)):
            dim = self.dims[axis]
            if box is None or read_box is None or dim is None:
                continue
            stride, _, span = self._geometry(axis)
            skipped = span // stride * stride
            padding[dim - 2] = 0
            made = (read_box.size - 1) * stride + span + 1
            extra[dim - 2] = max(0, skipped + box.size - made)
            crops.append((dim, skipped, box.size))
        read = group.read(self.source, reads)

        def step(frame: Frame) -> Tensor:
            out: Tensor = aten.convolution.default(
                read(frame).to(weight.dtype),
                weight,
                bias,
                named["stride"],
                padding,
                named["dilation"],
                True,
                extra,
                named["groups"],
            )
            for dim, start, size in crops:
                out = out.narrow(dim, start, size)
            return finished(out, frame).to(dtype)

        return step


def transposed_convolution(node: Node, view: View) -> Rule | None:
    """Transposed convolution of one to three dimensions with constant weights."""
    named = node.bound()
    source = named["input"].id
    if not named["transposed"] or not has_constant_weight(node, view):
        return None
    return _TransposedRule(node, view) if carries_axes(view, source, len(named["stride"])) else None
