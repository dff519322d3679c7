"""Convolutions of whole volumes, one small volume among them, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

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


class _Ran(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
@pytest.mark.parametrize(
    ("rows", "expected"), [(1, "aten::mkldnn_convolution"), (2, "aten::convolution")]
)
def test_one_volume_takes_onednns_convolution(rows: int, expected: str) -> None:
    x, weight = torch.randn(rows, 2, 5, 5, 5), torch.randn(3, 2, 3, 3, 3)
    with _Ran() as ran:
        convolve(x, weight, None, [1] * 3, [0] * 3, [1] * 3, 1)
    assert ran.names == [expected]
