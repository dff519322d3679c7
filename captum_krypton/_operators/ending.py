"""What follows a convolution's sums: a bias, another value, an activation and a clamp."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._capture import Node, Value, ValueId
from .._kernels import PATCH_TYPES, compiled_finish, fastest_finish, plain_finish
from .regions import Interval, Reach, hull, union
from .rule import Boxes, Frame, Group, Kind, View

__all__ = ["Ending", "has_constant_weight", "kernels_read"]


class Ending:
    """The ending of a convolution or of a block that starts with one, transposed or not.

    Attributes:
        bias: a number for each channel; None for none.
        residual: what is added then; None for nothing.
        activation: one of `ACTIVATIONS`.
        slope: that of PReLU, a number for each channel; None for other activations.
        low: the least value.
        high: the largest value.
    """

    def __init__(self, node: Node) -> None:
        named = node.bound()

        def value(name: str) -> ValueId | None:
            argument = named.get(name)
            return argument.id if isinstance(argument, Value) else None

        self.bias, self.residual, self.slope = value("bias"), value("residual"), value("slope")
        self.low, self.high = named.get("low", -math.inf), named.get("high", math.inf)
        self.activation: str = named.get("activation", "none")

    def reach(self, own: Reach, operands: dict[ValueId, Reach]) -> Reach:
        """The interval that changes, where that of the sums is `own`."""
        return own if self.residual is None else union([own, operands[self.residual]])

    def demand(
        self, own: dict[ValueId, Interval], wanted: Interval | None
    ) -> dict[ValueId, Interval]:
        """What is read of the operands, where `own` is read of the convolution's."""
        if self.residual is not None and wanted is not None:
            own[self.residual] = hull(wanted, own.get(self.residual, wanted))
        return own

    def by_kernel(self, group: Group, boxes: Boxes) -> Callable[[Frame], dict[str, Any]]:
        """A function that gives a compiled kernel's arguments, for output patches in `boxes`."""
        added = None if self.residual is None else group.patches(self.residual)
        output_extent = group.extents(boxes)
        always = {
            "bias": _constant(group, self.bias),
            "low": self.low,
            "high": self.high,
            "activation": self.activation,
            "slope": _constant(group, self.slope),
        }

        def arguments(frame: Frame) -> dict[str, Any]:
            return {
                **always,
                "residual": None if added is None else added(frame),
                "output_extent": None if output_extent is None else frame.of(output_extent),
            }

        return arguments

    def by_torch(
        self, group: Group, weight: Tensor, added: Callable[[Frame], Tensor] | None
    ) -> tuple[Tensor | None, Callable[[Tensor, Frame], Tensor]]:
        """The bias that PyTorch's own convolution is to add, and what does the rest.

        Args:
            group: the windows.
            weight: the convolution's.
            added: gives the block of the residual; None where there is none.
        """
        bias, slope = _constant(group, self.bias), _constant(group, self.slope)
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

        def rest(out: Tensor, frame: Frame) -> Tensor:
            return finished(out, after, None if added is None else added(frame), slope)

        return within, rest


def has_constant_weight(node: Node, view: View) -> bool:
    """Whether a convolution's input and residual are local, and its other operands constants."""
    named = node.bound()
    for name in ("input", "residual", "weight", "bias", "slope"):
        if named.get(name) is not None:
            wanted = Kind.LOCAL if name in ("input", "residual") else Kind.CONSTANT
            if view.kinds[named[name].id] is not wanted:
                return False
    return True


def kernels_read(view: View, source: ValueId, weight: ValueId) -> bool:
    """Whether compiled kernels take a convolution's input and its weight, by their types."""
    dtypes = view.graph.dtypes
    return dtypes[source] in PATCH_TYPES and dtypes[weight] is torch.float32


def _constant(group: Group, value: ValueId | None) -> Tensor | None:
    return None if value is None else group.constant(value)
