"""`finish_block`: a GPU's kernel, compiled for the host, against plain torch in float64."""

from __future__ import annotations

import math
from typing import Any

import cuda_on_host
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from captum_krypton._kernels import ACTIVATIONS, in_channels_last, plain_finish

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def finish_block(*arguments: Any) -> Tensor:
    if not cuda_on_host.load():
        pytest.skip("needs a C++ compiler")
    made: Tensor = torch.ops.captum_krypton_on_host.finish_block(*arguments)
    return made


@given(data=st.data())
def test_equals_one_operator_after_another(data: st.DataObject) -> None:
    noise = torch.Generator().manual_seed(data.draw(st.integers(0, 2**16)))
    dtype, rank = data.draw(st.sampled_from(DTYPES)), data.draw(st.integers(2, 5))
    channels = data.draw(st.sampled_from([1, 2, 3, 4, 8, 11, 16]))
    axes = data.draw(st.lists(st.integers(0, 5), min_size=rank - 2, max_size=rank - 2))
    shape = (data.draw(st.integers(0, 4)), channels, *axes)
    last = rank > 2 and data.draw(st.booleans())

    def numbers(*shape: int) -> Tensor:
        return (3 * torch.randn(*shape, generator=noise, dtype=torch.float64)).to(dtype)

    sums = numbers(*shape)
    sums = in_channels_last(sums) if last else sums
    bias = numbers(channels) if data.draw(st.booleans()) else None
    residual = numbers(*shape) if data.draw(st.booleans()) else None
    activation = data.draw(st.sampled_from(ACTIVATIONS))
    low, high = data.draw(st.sampled_from([(-math.inf, math.inf), (0.0, math.inf), (0.0, 6.0)]))
    slope = numbers(channels) if activation == "prelu" else None
    wide = [None if t is None else t.double() for t in (bias, residual, slope)]
    expected = plain_finish(low, high, activation)(sums.double().clone(), *wide)
    strides = sums.stride()
    made = finish_block(sums, bias, residual, low, high, ACTIVATIONS.index(activation), slope)
    assert made.data_ptr() == sums.data_ptr() and sums.stride() == strides
    error = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(sums.double(), expected, rtol=error, atol=4 * error)


@pytest.mark.parametrize("activation", range(len(ACTIVATIONS)))
def test_not_a_number_stays(activation: int) -> None:
    sums = torch.tensor([[1.0, math.nan, -1.0, 0.0]])
    slope = torch.ones(4) if ACTIVATIONS[activation] == "prelu" else None
    made = finish_block(sums, None, None, 0.0, 6.0, activation, slope)
    assert made.isnan().tolist() == [[False, True, False, False]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sums": torch.zeros(2, 3, 8)[..., ::2]}, "gaps"),
        ({"sums": torch.zeros(2, 3, dtype=torch.int32)}, "float64, float32"),
        ({"bias": torch.zeros(4)}, "one number for each channel"),
        ({"bias": torch.zeros(3, dtype=torch.float64)}, "one number for each channel"),
        ({"residual": torch.zeros(2, 4)}, "residual"),
        ({"activation": 9}, "activation is 9"),
        ({"slope": torch.ones(3)}, "slope comes with PReLU"),
        ({"slope": torch.ones(4), "activation": 4}, "slope is not one number for each channel"),
    ],
)
def test_says_what_is_wrong(changed: dict[str, Any], message: str) -> None:
    named = {"sums": torch.zeros(2, 3), "bias": None, "residual": None, "low": 0.0, "high": 1.0}
    with pytest.raises(RuntimeError, match=message):
        finish_block(*({**named, "activation": 0, "slope": None, **changed}).values())


def test_the_reference_of_prelu_overwrites_too() -> None:
    sums, slope = torch.randn(2, 3, 4, 4), torch.tensor([0.5, -1.0, 2.0])
    expected = F.prelu(sums, slope)
    number = ACTIVATIONS.index("prelu")
    calls = (sums, None, None, -math.inf, math.inf, number, slope)
    made = torch.ops.captum_krypton.finish_block(*calls)
    assert made.data_ptr() == sums.data_ptr()
    torch.testing.assert_close(sums, expected, rtol=0, atol=0)


def test_the_reference_is_the_operators() -> None:
    sums, bias, residual = torch.randn(2, 3, 4, 4), torch.randn(3), torch.randn(2, 3, 4, 4)
    expected = (sums + bias.reshape(3, 1, 1) + residual).clamp(0, 2)
    made = torch.ops.captum_krypton.finish_block(sums, bias, residual, 0.0, 2.0, 0)
    assert made is sums or made.data_ptr() == sums.data_ptr()
    torch.testing.assert_close(sums, expected)
