"""The rule for convolutions, alone or with the sum and the activation that follow them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .._capture import Node, ValueId
from .._kernels import (
    Rates,
    allows_winograd,
    convolve_patches,
    is_narrow,
    pack_weight,
    panel_size,
    winograd_limit,
    winograd_sizes,
)
from .ending import Ending, has_constant_weight, kernels_read
from .regions import Integers, Interval, Reach
from .rule import Algorithm, Boxes, Frame, Group, Means, Rule, Step, View
from .window import WindowRule, carries_axes

__all__ = ["convolution", "in_panels"]

aten = torch.ops.aten

# What narrow convolutions take, in panels: for every cell of a tap, and for an output's products.
_FINDING, _SIDE_BY_SIDE = 8, 0.75


class _Convolution(WindowRule):
    def __init__(self, node: Node, view: View) -> None:
        named = node.bound()
        self.weight: ValueId = named["weight"].id
        self.groups: int = named["groups"]
        self.ending = Ending(node)
        kernel = view.shape(self.weight)[2:]
        super().__init__(
            node,
            view,
            named["input"].id,
            kernel,
            named["stride"],
            named["padding"],
            named["dilation"],
        )

    def reach(self, axis: int, operands: dict[ValueId, Reach]) -> Reach:
        return self.ending.reach(super().reach(axis, operands), operands)

    def demand(self, axis: int, wanted: Interval | None) -> dict[ValueId, Interval]:
        return self.ending.demand(super().demand(axis, wanted), wanted)

    def can_have_kernel(self, means: Means) -> bool:
        read = kernels_read(self.view, self.source, self.weight)
        return read and super().can_have_kernel(means)

    def algorithm(self, boxes: Boxes, means: Means) -> tuple[Algorithm, float]:
        """CapturedModel kernels where there are, by Winograd's algorithm where that costs less."""
        if not self.can_have_kernel(means):
            return self._by_torch(boxes, means.rates)
        present = [box for box in boxes if box is not None]
        macs = self._macs(math.prod(box.mean_cells for box in present))
        if self._depthwise:
            return Algorithm.DEPTHWISE, macs * means.rates.depthwise
        out_channels, channels = self.view.shape(self.weight)[:2]
        waste = in_panels(channels, out_channels // self.groups, self.groups)
        found = [(Algorithm.DIRECT, macs * waste * means.rates.direct)]
        if self.groups > 1:
            found.append(self._by_torch(boxes, means.rates))
        elif means.winograd and allows_winograd(
            self.view.shape(self.weight), self.stride, self.dilation
        ):
            found.append(self._by_winograd([box.cells for box in present], means.rates))
        return min(found, key=lambda pair: pair[1])

    def _macs(self, outputs: float) -> float:
        """Multiply-accumulates of so many output cells."""
        return outputs * math.prod(self.view.shape(self.weight))

    def _by_torch(self, boxes: Boxes, rates: Rates) -> tuple[Algorithm, float]:
        """The block is made, then read."""
        out_channels, channels = self.view.shape(self.weight)[:2]
        macs = self._macs(math.prod(self._spread(boxes)))
        seconds = macs * rates.of_torch_convolution(
            self.groups, channels, out_channels // self.groups
        )
        moved = math.prod(self.read_size(boxes)) * channels * self.groups
        return Algorithm.TORCH, seconds + moved * rates.element

    def _by_winograd(self, cells: list[Integers], rates: Rates) -> tuple[Algorithm, float]:
        out_channels, channels = self.view.shape(self.weight)[:2]
        points, groups = winograd_sizes(self.kernel, cells)
        depth = groups * channels
        seconds = points * depth * out_channels * rates.product
        return Algorithm.WINOGRAD, seconds + points * (depth + out_channels) * rates.transform

    def _spread(self, boxes: Boxes) -> list[int]:
        """The output's size along its trailing dimensions, for patches in `boxes`."""
        size = list(self.view.shape(self.outputs[0])[self.lead :])
        for dim, box in zip(self.dims, boxes, strict=True):
            if dim is not None and box is not None:
                size[dim - self.lead] = box.size
        return size

    def step(self, group: Group) -> Step:
        if group.algorithm(self.outputs[0]) is not Algorithm.TORCH:
            return self._kernel_step(group)
        residual, boxes = self.ending.residual, group.boxes(self.outputs[0])
        added = None if residual is None else group.read(residual, boxes)
        return self._torch_step(group, self.block(group), self.own_padding(), added)

    def whole_step(self, group: Group) -> Step:
        """The kernel is as good for patches that are whole volumes."""
        if group.algorithm(self.outputs[0]) is not Algorithm.TORCH:
            return self._kernel_step(group)
        residual = self.ending.residual
        added = None if residual is None else group.whole(residual)
        return self._torch_step(group, group.whole(self.source), self.padding, added)

    def _torch_step(
        self,
        group: Group,
        block: Callable[[Frame], Tensor],
        padding: list[int],
        added: Callable[[Frame], Tensor] | None,
    ) -> Step:
        """PyTorch's own convolution of blocks, and what follows it."""
        weight, dtype = group.constant(self.weight), self.view.graph.dtypes[self.source]
        bias, finished = self.ending.by_torch(group, weight, added)
        stride, dilation, groups, none = self.stride, self.dilation, self.groups, [0] * len(padding)

        def step(frame: Frame) -> Tensor:
            out: Tensor = aten.convolution.default(
                *(block(frame).to(weight.dtype), weight, bias),
                *(stride, padding, dilation, False, none, groups),
            )
            return finished(out, frame).to(dtype)

        return step

    @property
    def _depthwise(self) -> bool:
        channels = self.view.shape(self.source)[1]
        return self.groups > 1 and self.view.shape(self.weight)[:2] == (channels, 1)

    def _kernel_step(self, group: Group) -> Step:
        boxes = group.boxes(self.outputs[0])
        size = [box.size for box in boxes if box is not None]
        algorithm = group.algorithm(self.outputs[0])
        winograd = algorithm is Algorithm.WINOGRAD
        weight = group.packed(
            self.weight, algorithm, lambda tensor: pack_weight(tensor, winograd, groups=self.groups)
        )
        source, read_offset = group.patches(self.source), group.offsets(self.reads(boxes))
        ending, output_offset = self.ending.by_kernel(group, boxes), group.offsets(boxes)
        limit, energy = None, weight.energy
        if energy is not None:
            level = f"level before {self.weight}"
            limit = group.derived(self.source, level, lambda base: winograd_limit(base, energy))

        def step(frame: Frame) -> Tensor:
            return convolve_patches(
                source(frame),
                frame.of(read_offset),
                weight,
                size=size,
                stride=self.stride,
                dilation=self.dilation,
                output_offset=frame.of(output_offset),
                limit=limit,
                **ending(frame),
            )

        return step


def in_panels(channels: int, out_channels: int, groups: int) -> float:
    """How many times longer the direct kernel takes than its rate says, by a group's channels.

    Output channels are counted in whole panels; a last one of half or less costs less. Where they
    are few, lanes hold input channels instead, if there are enough: then finding a cell takes as
    long as so many products. Otherwise they hold outputs side by side.
    """
    panel = panel_size()
    if not is_narrow(groups, out_channels, panel):
        return math.ceil(out_channels / panel) * panel / out_channels
    if 2 * channels >= panel:
        return 1 + _FINDING * panel / (channels * out_channels)
    return _SIDE_BY_SIDE * panel / out_channels


def convolution(node: Node, view: View) -> Rule | None:
    """Convolution of one to three dimensions with constant weights."""
    named = node.bound()
    source = named["input"].id
    if named["transposed"] or not has_constant_weight(node, view):
        return None
    return _Convolution(node, view) if carries_axes(view, source, len(named["stride"])) else None
