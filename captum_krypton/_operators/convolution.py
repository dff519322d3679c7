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
    compiled_finish,
    convolve_patches,
    fastest_finish,
    panel_size,
    plain_finish,
    winograd_limit,
    winograd_sizes,
)
from .regions import Integers, Reach, union
from .rule import Algorithm, Boxes, Frame, Group, Kind, Means, Rule, Step, View
from .window import WindowRule, carries_axes

__all__ = ["convolution"]

aten = torch.ops.aten


class _Convolution(WindowRule):
    def __init__(self, node: Node, view: View) -> None:
        named = node.bound()
        self.weight: ValueId = named["weight"].id
        self.bias: ValueId | None = None if named["bias"] is None else named["bias"].id
        self.groups: int = named["groups"]
        added = named.get("residual")
        self.residual: ValueId | None = None if added is None else added.id
        self.low, self.high = named.get("low", -math.inf), named.get("high", math.inf)
        self.activation: str = named.get("activation", "none")
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
        own = super().reach(axis, operands)
        return own if self.residual is None else union([own, operands[self.residual]])

    def algorithm(self, boxes: Boxes, means: Means) -> tuple[Algorithm, float]:
        """CapturedModel kernels where there are, by Winograd's algorithm where that costs less."""
        if not self.can_have_kernel(means):
            return self._by_torch(boxes, means.rates)
        cells = [box.cells for box in boxes if box is not None]
        macs = self._macs(math.prod(float(n.mean()) for n in cells))
        if self._depthwise:
            return Algorithm.DEPTHWISE, macs * means.rates.depthwise
        # Counted in whole panels of output channels; a last one of half or less costs less.
        out_channels, panel = self.view.shape(self.weight)[0] // self.groups, panel_size()
        padded = math.ceil(out_channels / panel) * panel / out_channels * macs
        found = [(Algorithm.DIRECT, padded * means.rates.direct)]
        if self.groups > 1:
            found.append(self._by_torch(boxes, means.rates))
        elif means.winograd and allows_winograd(
            self.view.shape(self.weight), self.stride, self.dilation
        ):
            found.append(self._by_winograd(cells, means.rates))
        return min(found, key=lambda pair: pair[1])

    def _macs(self, outputs: float) -> float:
        """Multiply-accumulates of so many output cells."""
        return outputs * math.prod(self.view.shape(self.weight))

    def _by_torch(self, boxes: Boxes, rates: Rates) -> tuple[Algorithm, float]:
        """The block is made, then read."""
        channels = self.view.shape(self.weight)[1]
        macs = self._macs(math.prod(self._spread(boxes)))
        seconds = macs * rates.of_torch_convolution(self.groups, channels)
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
        boxes = group.boxes(self.outputs[0])
        added = None if self.residual is None else group.read(self.residual, boxes)
        return self._torch_step(group, self.block(group), self.own_padding(), added)

    def whole_step(self, group: Group) -> Step:
        """The kernel is as good for patches that are whole volumes."""
        if group.algorithm(self.outputs[0]) is not Algorithm.TORCH:
            return self._kernel_step(group)
        added = None if self.residual is None else group.whole(self.residual)
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
        bias = None if self.bias is None else group.constant(self.bias)
        stride, dilation, groups, none = self.stride, self.dilation, self.groups, [0] * len(padding)
        low, high, activation = self.low, self.high, self.activation
        # One of these is one pass anyway.
        passes = [bias is not None, added is not None, activation != "none"]
        passes.append((low, high) != (-math.inf, math.inf))
        finished = plain_finish(low, high, activation)
        within, after = bias, None
        if weight.is_cuda and any(passes) and not group.compiles:
            within, after = None, bias  # on a GPU, adding the bias is a pass of its own
            finished = fastest_finish(low, high, activation, weight.device)
        elif group.compiles and sum(passes) > 1:
            within, after = None, bias
            finished = compiled_finish(
                low,
                high,
                activation,
                bias=bias is not None,
                residual=added is not None,
                rank=weight.dim(),
                dtype=weight.dtype,
                device=weight.device,
            )

        def step(frame: Frame) -> Tensor:
            out: Tensor = aten.convolution.default(
                *(block(frame).to(weight.dtype), weight, within),
                *(stride, padding, dilation, False, none, groups),
            )
            return finished(out, after, None if added is None else added(frame)).to(dtype)

        return step

    @property
    def _depthwise(self) -> bool:
        channels = self.view.shape(self.source)[1]
        return self.groups > 1 and self.view.shape(self.weight)[:2] == (channels, 1)

    def _kernel_step(self, group: Group) -> Step:
        boxes = group.boxes(self.outputs[0])
        size = [box.size for box in boxes if box is not None]
        weight = group.packed(self.weight, group.algorithm(self.outputs[0]), self.groups)
        bias = None if self.bias is None else group.constant(self.bias)
        source, read_offset = group.patches(self.source), group.offsets(self.reads(boxes))
        added = None if self.residual is None else group.patches(self.residual)
        output_offset, output_extent = group.offsets(boxes), group.extents(boxes)
        limit, energy = None, weight.energy
        if energy is not None:
            level = f"level before {self.weight}"
            limit = group.derived(self.source, level, lambda base: winograd_limit(base, energy))

        def step(frame: Frame) -> Tensor:
            return convolve_patches(
                source(frame),
                frame.of(read_offset),
                weight,
                bias,
                size,
                stride=self.stride,
                dilation=self.dilation,
                residual=None if added is None else added(frame),
                output_offset=None if added is None else frame.of(output_offset),
                low=self.low,
                high=self.high,
                output_extent=None if output_extent is None else frame.of(output_extent),
                activation=self.activation,
                limit=limit,
            )

        return step


def convolution(node: Node, view: View) -> Rule | None:
    """Convolution of one to three dimensions with constant weights."""
    named = node.bound()
    if named.get("transposed"):
        return None
    source, added = named["input"].id, named.get("residual")
    constants = [named[name].id for name in ("weight", "bias") if named[name] is not None]
    if any(view.kinds[value] is not Kind.CONSTANT for value in constants):
        return None
    changed = [source] if added is None else [source, added.id]
    if any(view.kinds[value] is not Kind.LOCAL for value in changed):
        return None
    if not carries_axes(view, source, len(named["stride"])):
        return None
    return _Convolution(node, view)
