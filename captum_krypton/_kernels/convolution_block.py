"""`convolution_block`: a convolution and the sum, activation and clamp that follow it, in one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from .finish_block import finish
from .library import library

__all__ = ["convolution_block"]

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
        input.to(weight.dtype), weight, bias, stride, padding, dilation, False, none, groups
    )
    return finish(out, residual, low, high, activation).to(input.dtype)


library.impl("convolution_block", _convolution_block, "CompositeExplicitAutograd")
convolution_block = torch.ops.captum_krypton.convolution_block.default
"""Clamp(activation(convolution(input) + residual)), on whole volumes.

The input may have fewer bits than the weight: all is computed in the type of the weight, and
rounded once.
"""


@register_flop_formula(torch.ops.captum_krypton.convolution_block)
def _convolution_block_flops(
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    *rest: object,
    out_shape: Sequence[int],
    **named: object,
) -> int:
    return conv_flop_count(list(input_shape), list(weight_shape), list(out_shape))
