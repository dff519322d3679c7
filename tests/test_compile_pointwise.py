"""What torch.compile makes of what follows a convolution: the same numbers, in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import Occlusion
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion
from captum_krypton._operators import _convolution
from captum_krypton._ops import ACTIVATIONS, compiled_finish, finish

INFINITE = float("inf")


class Residual(nn.Module):
    """Convolutions with every tail that is fused: sums, clamps, activations, and none."""

    def __init__(self, convolution: Callable[..., nn.Module], pool: nn.Module) -> None:
        super().__init__()
        self.stem = convolution(2, 6, 3, stride=2, padding=1)
        self.left = convolution(6, 6, 3, padding=1, bias=False)
        self.right = convolution(6, 6, 1)
        self.last = convolution(6, 5, 3)
        self.pool, self.linear = pool, nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = nn.functional.relu6(self.left(x) + x)
        x = nn.functional.silu(self.right(x))
        made: Tensor = self.linear(self.pool(self.last(x)).flatten(1))
        return made


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The compiled functions that steps ask for."""
    made: list[tuple[Any, ...]] = []

    def counted(*arguments: Any) -> Any:
        made.append(arguments)
        return compiled_finish(*arguments)

    monkeypatch.setattr(_convolution, "compiled_finish", counted)
    return made


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("most", [1, 64])
def test_maps_are_the_same(dimensions: int, most: int, calls: list[tuple[Any, ...]]) -> None:
    torch.manual_seed(dimensions)
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dimensions - 1]
    model = Residual(convolution, pool(1)).double().eval()
    x = torch.randn(2, 2, *[15] * dimensions, dtype=torch.float64)
    windows = {
        "sliding_window_shapes": (2, *[4] * dimensions),
        "strides": (2, *[3] * dimensions),
        "target": 1,
        "perturbations_per_eval": most,
    }
    expected = Occlusion(model).attribute(x, **windows)
    plain = KryptonOcclusion(model).heatmap(x, **windows)
    assert not calls
    heat = KryptonOcclusion(model, compile_pointwise=True).heatmap(x, **windows)
    assert heat.report.path == "incremental"
    assert {(0.0, INFINITE, "none"), (0.0, 6.0, "none"), (-INFINITE, INFINITE, "silu")} < set(calls)
    torch.testing.assert_close(heat.scores, plain.scores, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(heat.attribution(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_one_pass(
    dtype: torch.dtype, activation: str, with_bias: bool, with_residual: bool
) -> None:
    clamps = activation == "none"
    low, high = (0.0, 1.5) if clamps else (-INFINITE, INFINITE)
    generator = torch.Generator().manual_seed(3)
    for rows, side in ((5, 7), (1, 1), (4, 3)):
        shape = (rows, 6, side, side)
        sums, residual = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        bias = torch.randn(6, generator=generator, dtype=torch.float64)
        exact = sums + bias.reshape(-1, 1, 1) if with_bias else sums.clone()
        expected = finish(exact, residual if with_residual else None, low, high, activation)
        with torch.no_grad():
            found = compiled_finish(low, high, activation)(
                sums.to(dtype).contiguous(memory_format=torch.channels_last),
                bias.to(dtype) if with_bias else None,
                residual.to(dtype) if with_residual else None,
            )
        assert found.dtype is dtype
        loose = {torch.bfloat16: 5e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
        torch.testing.assert_close(found.double(), expected, rtol=loose, atol=loose)
