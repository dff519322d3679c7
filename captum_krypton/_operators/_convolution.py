"""The rule for convolutions, alone or with the sum and the clamp that follow them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._graph import Node, ValueId
from .._ops import convolve_patches, finish
from .._regions import Reach, union
from ._rule import Frame, Group, Kind, Rule, Step, View
from ._window import WindowRule, carries_axes

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

    def step(self, group: Group) -> Step:
        if self.has_kernel(group):
            return self._kernel_step(group)
        weight = group.constant(self.weight)
        bias = None if self.bias is None else group.constant(self.bias)
        op, stride, padding, dilation = (
            aten.convolution.default,
            self.stride,
            self.own_padding(),
            self.dilation,
        )
        groups, none = self.groups, [0] * len(padding)
        block, boxes = self.block(group), group.boxes(self.outputs[0])
        added = None if self.residual is None else group.read(self.residual, boxes)
        low, high = self.low, self.high

        def step(frame: Frame) -> Tensor:
            out: Tensor = op(
                block(frame), weight, bias, stride, padding, dilation, False, none, groups
            )
            return finish(out, None if added is None else added(frame), low, high)

        return step

    def whole_step(self, group: Group) -> Step:
        """The kernel is as good for patches that are whole volumes."""
        return self._kernel_step(group) if self.has_kernel(group) else super().whole_step(group)

    def has_kernel(self, group: Group) -> bool:
        return super().has_kernel(group) and (self.groups == 1 or self._depthwise)

    @property
    def _depthwise(self) -> bool:
        channels = self.view.shape(self.source)[1]
        return self.groups > 1 and self.view.shape(self.weight)[:2] == (channels, 1)

    def _kernel_step(self, group: Group) -> Step:
        boxes = group.boxes(self.outputs[0])
        size = [box.size for box in boxes if box is not None]
        tile = self._tile(size) if group.winograd else 0
        weight = group.packed(self.weight, tile, depthwise=self._depthwise)
        bias = None if self.bias is None else group.constant(self.bias)
        source, read_offset = group.patches(self.source), group.offsets(self.reads(boxes))
        added = None if self.residual is None else group.patches(self.residual)
        output_offset = group.offsets(boxes)

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
            )

        return step

    def _tile(self, size: list[int]) -> int:
        """The cheapest way to compute patches of `size`: 0 direct, else Winograd's tile."""
        if self.groups != 1 or self.kernel != [3, 3] or self.stride != [1, 1]:
            return 0
        if self.dilation != [1, 1]:
            return 0
        out_channels, channels = self.view.shape(self.weight)[:2]

        def cost(tile: int) -> float:
            if tile == 0:
                return math.prod(size) * 9.0 * channels * out_channels
            tiles = math.prod(-(-n // tile) for n in size)
            points = (tile + 2) ** 2
            transforms = _TRANSFORM * (channels + out_channels)
            return tiles * points * (channels * out_channels + transforms)

        # One transform for all but the smallest patches: each is a copy of the weights.
        return min((0, 2 if max(size) <= 2 else 4), key=cost)


_TRANSFORM = 20.0  # multiply-accumulates that a point's transforms cost a channel


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
