"""Convolutions of whole volumes, one small volume among them, against float64."""

from __future__ import annotations

import pytest
import torch

from captum_krypton._kernels import convolve


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"), [(1, 1, 1, 1), (2, 0, 1, 2), (1, 2, 2, 4)]
)
def test_convolve(
    rows: int,
    axes: int,
    dtype: torch.dtype,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
) -> None:
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 4, *[9] * axes, generator=noise).to(dtype)
    weight = torch.randn(8, 4 // groups, *[3] * axes, generator=noise).to(dtype)
    bias = torch.randn(8, generator=noise).to(dtype)
    listed = [stride] * axes, [padding] * axes, [dilation] * axes
    expected = torch.ops.aten.convolution(
        x.double(), weight.double(), bias.double(), *listed, False, [0] * axes, groups
    )
    for last in (False, True):
        if last and axes == 3:
            x = x.contiguous(memory_format=torch.channels_last_3d)
        found = convolve(x, weight, bias, *listed, groups)
        assert found.dtype is dtype
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)
