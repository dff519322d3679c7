"""Activations of the convolution kernels and of `convolution_block`, by their formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from patches import EPSILON, endings, numbers
from torch import Tensor

from captum_krypton._kernels import (
    ACTIVATIONS,
    Patches,
    convolution_block,
    convolve_patches,
    pack_weight,
    panel_size,
)

# By their formulas, number by number: what PyTorch's vectors make of infinity, and how exact they
# are, depends on the processor.
FORMULAS: dict[str, Callable[[float], float]] = {
    "none": lambda x: x,
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "silu": lambda x: x / (1 + (math.exp(-x) if x > -700 else math.inf)),
    "hardswish": lambda x: x * min(max(x + 3, 0.0), 6.0) / 6,
}


def by_formula(activation: str, x: Tensor, slope: Tensor | None) -> Tensor:
    """The activation of every number of (N, C, ...), float64."""
    if slope is not None:
        slopes = slope.double().reshape(-1, *[1] * (x.dim() - 2))
        return torch.where(x > 0, x.double(), slopes * x.double())
    made = [FORMULAS[activation](number) for number in x.double().flatten().tolist()]
    return torch.tensor(made, dtype=torch.float64).reshape(x.shape)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_exact(activation: str) -> None:
    """Of numbers of every size, with their sign and of both ways to compute a lane."""
    noise = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-6, 2, 4096).repeat(19, 1).reshape(1, 19, 64, 64)
    x = (sizes * torch.randn(sizes.shape, generator=noise)).float()
    source = Patches(x, x, torch.zeros(1, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64))
    one = pack_weight(torch.eye(19)[:, :, None, None])
    slope = torch.randn(19, generator=noise) if activation == "prelu" else None
    named: dict[str, Any] = {"activation": activation, "slope": slope}
    made = convolve_patches(source, source.patch_offset, one, None, (64, 64), **named)
    off = ((made - by_formula(activation, x, slope)) / x.abs().clamp_min(1e-3)).abs().max()
    assert off <= 4 * EPSILON
    values = [torch.nan, -torch.inf, -1e38, -100.0]
    if panel_size():  # what the references make of infinity is PyTorch's affair
        values.append(torch.inf)
    odd = torch.tensor(values).repeat(1, 19, 1, 1)
    source, size = source._replace(base=odd, patch=odd), (1, len(values))
    each = pack_weight(torch.ones(19, 1, 1, 1), groups=19)
    made = convolve_patches(source, source.patch_offset, each, None, size, **named)
    expected = by_formula(activation, odd, slope).float()
    torch.testing.assert_close(made, expected, equal_nan=True)


def test_prelu_is_pytorchs_where_numbers_are_odd() -> None:
    """Bit for bit: infinities, zeros of both signs, what is not a number, and such slopes."""
    values = torch.tensor([torch.nan, -torch.inf, torch.inf, 0.0, -0.0, -1e-38, -3.4e38, 2.0, -2.0])
    slope = torch.tensor([0.25, 0.0, -0.0, -1.5, torch.inf, -torch.inf, torch.nan, 1.0]).repeat(3)
    x = values.repeat(1, len(slope), 1)
    zeros = torch.zeros(1, 1, dtype=torch.int64)
    source = Patches(x, x, zeros[0], zeros)
    each = pack_weight(torch.ones(len(slope), 1, 1), groups=len(slope))
    named: dict[str, Any] = {"activation": "prelu", "slope": slope}
    made = convolve_patches(source, zeros, each, None, values.shape, **named)
    expected = F.prelu(x + 0.0, slope)  # a sum of products has no zero below 0
    assert torch.equal(made.isnan(), expected.isnan())
    finite = made.nan_to_num(7.0), expected.nan_to_num(7.0)
    assert torch.equal(*finite)
    assert torch.equal(made.signbit() & ~made.isnan(), expected.signbit() & ~expected.isnan())


@given(data=st.data())
def test_a_block_is_its_parts(data: st.DataObject) -> None:
    noise = numbers(data.draw)
    x = torch.randn(2, 4, 7, 6, generator=noise).double()
    weight = torch.randn(6, 2, 3, 3, generator=noise).double()
    out = F.conv2d(x, weight, None, 1, 1, 1, 2)
    residual = torch.randn(out.shape, generator=noise).double()
    added = residual if data.draw(st.booleans()) else None
    low, high = data.draw(st.sampled_from([(-torch.inf, torch.inf), (0.0, 6.0)]))
    activation, slope = data.draw(endings(noise, 6))
    slope = None if slope is None else slope.double()
    summed = out if added is None else out + added
    expected = by_formula(activation, summed, slope).clamp(low, high)
    before = residual.clone()
    call = (x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 2)
    actual = convolution_block(*call, added, low, high, activation, slope)
    torch.testing.assert_close(actual, expected)
    assert torch.equal(residual, before)
