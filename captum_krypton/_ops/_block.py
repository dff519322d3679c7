"""`convolution_block`: a convolution and the sum, activation and clamp that follow it, in one."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from types import FunctionType

import torch
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from captum_krypton._ops._activation import activate
from captum_krypton._ops._library import library

__all__ = ["compiled_finish", "convolution_block", "finish"]

library.define(
    "convolution_block(Tensor input, Tensor weight, Tensor? bias, int[] stride, "
    "int[] padding, int[] dilation, int groups, Tensor? residual, float low, float high, "
    "str activation='none') -> Tensor"
)


def _convolution_block(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    residual: Tensor | None,
    low: float,
    high: float,
    activation: str = "none",
) -> Tensor:
    none = [0] * len(stride)
    out: Tensor = torch.ops.aten.convolution.default(
        input, weight, bias, stride, padding, dilation, False, none, groups
    )
    return finish(out, residual, low, high, activation)


def finish(
    out: Tensor, residual: Tensor | None, low: float, high: float, activation: str = "none"
) -> Tensor:
    """Adds the residual to `out`, activates and clamps, in place."""
    if residual is not None:
        out.add_(residual)
    activate(out, activation)
    if low > -math.inf or high < math.inf:
        out.clamp_(low, high)
    return out


Finish = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]


@functools.cache
def compiled_finish(low: float, high: float, activation: str) -> Finish:
    """A function that adds a bias and does the rest of `finish`, in one pass by torch.compile.

    Its arguments are the sums, which it overwrites, the bias of each channel and the residual. It
    is compiled on first use.
    """

    def finished(out: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        if bias is not None:
            out.add_(bias.reshape(-1, *[1] * (out.dim() - 2)))
        return finish(out, residual, low, high, activation)

    # PyTorch limits the variants of a piece of code: each of these is a piece of its own.
    own = FunctionType(finished.__code__.replace(), globals(), closure=finished.__closure__)
    made: Finish = torch.compile(own, dynamic=True)
    return made


library.impl("convolution_block", _convolution_block, "CompositeExplicitAutograd")
convolution_block = torch.ops.captum_krypton.convolution_block.default
"""Clamp(activation(convolution(input) + residual)), on whole volumes."""


@register_flop_formula(torch.ops.captum_krypton.convolution_block)
def _convolution_block_flops(
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    *rest: object,
    out_shape: Sequence[int],
    **named: object,
) -> int:
    return conv_flop_count(list(input_shape), list(weight_shape), list(out_shape))
