"""`convolution_block`: a convolution and the sum, activation and clamp that follow it, in one.

Its first arguments are those of `aten::convolution`: it may be a transposed one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from .finish_block import finish
from .library import library

__all__ = ["convolution_block", "convolve"]

library.define(
    "convolution_block(Tensor input, Tensor weight, Tensor? bias, int[] stride, "
    "int[] padding, int[] dilation, bool transposed, int[] output_padding, int groups, "
    "Tensor? residual, float low, float high, str activation='none', Tensor? slope=None) -> Tensor"
)


def convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """PyTorch's convolution of whole volumes, (N, C, *S).

    Where a batch is one small volume, PyTorch takes a loop that is several times slower than
    oneDNN, which it takes for two.
    """
    single = input.dim() == 5 and len(input) == 1 and input.is_cpu
    if single and input.dtype is weight.dtype is torch.float32 and _has_onednn():
        made: Tensor = torch.ops.aten.mkldnn_convolution.default(
            input, weight, bias, padding, stride, dilation, groups
        )
        return made
    none = [0] * len(stride)
    made = torch.ops.aten.convolution.default(
        input, weight, bias, stride, padding, dilation, False, none, groups
    )
    return made


def _has_onednn() -> bool:
    """Whether oneDNN is there, and the user has not turned it off."""
    return torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()


def _convolution_block(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    residual: Tensor | None,
    low: float,
    high: float,
    activation: str = "none",
    slope: Tensor | None = None,
) -> Tensor:
    wide = input.to(weight.dtype)
    if transposed:
        out: Tensor = torch.ops.aten.convolution.default(
            wide, weight, bias, stride, padding, dilation, True, output_padding, groups
        )
    else:
        out = convolve(wide, weight, bias, stride, padding, dilation, groups)
    return finish(out, residual, low, high, activation, slope).to(input.dtype)


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
    bias: object,
    stride: object,
    padding: object,
    dilation: object,
    transposed: bool,
    *rest: object,
    out_shape: Sequence[int],
    **named: object,
) -> int:
    shapes = (list(input_shape), list(weight_shape), list(out_shape))
    return conv_flop_count(*shapes, transposed=transposed)
