"""What torch.compile makes of what follows a convolution: the same numbers, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from captum.attr import Occlusion
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion
from captum_krypton._kernels import ACTIVATIONS, compiled_finish
from captum_krypton._kernels.finish_block import finish

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


@pytest.fixture(autouse=True)
def graphs() -> Iterator[Callable[[], int]]:
    """Nothing is compiled yet; a function that counts what has been. No variant may be left out."""
    compiled_finish.cache_clear()
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    before = counters["stats"]["unique_graphs"]
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield lambda: counters["stats"]["unique_graphs"] - before
    compiled_finish.cache_clear()


def windows_of(dimensions: int, most: int) -> dict[str, Any]:
    return {
        "sliding_window_shapes": (2, *[4] * dimensions),
        "strides": (2, *[3] * dimensions),
        "target": 1,
        "perturbations_per_eval": most,
    }


def residual_network(dimensions: int) -> nn.Module:
    torch.manual_seed(dimensions)
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dimensions - 1]
    return Residual(convolution, pool(1)).double().eval()


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("most", [1, 64])
def test_maps_are_the_same(dimensions: int, most: int, graphs: Callable[[], int]) -> None:
    model = residual_network(dimensions)
    x = torch.randn(2, 2, *[15] * dimensions, dtype=torch.float64)
    windows = windows_of(dimensions, most)
    expected = Occlusion(model).attribute(x, **windows)
    plain = KryptonOcclusion(model).heatmap(x, **windows)
    assert graphs() == 0
    heat = KryptonOcclusion(model, compile_pointwise=True).heatmap(x, **windows)
    assert heat.report.path == "incremental"
    assert graphs() >= 3  # bias and ReLU, residual and ReLU6, bias and SiLU; not a bias alone
    assert compiled_finish.cache_info().currsize == 3
    torch.testing.assert_close(heat.scores, plain.scores, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(heat.attribution(), expected, rtol=0, atol=1e-9)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(function: Any, **options: Any) -> Any:
        def call(*arguments: Any) -> Any:
            raise RuntimeError("there is no compiler")

        return call

    monkeypatch.setattr(torch, "compile", failing)
    model, x = residual_network(3), torch.randn(1, 2, 15, 15, 15, dtype=torch.float64)
    krypton = KryptonOcclusion(model, compile_pointwise=True)
    with pytest.warns(RuntimeWarning, match="PyTorch's operators do it.*there is no compiler"):
        heat = krypton.heatmap(x, **windows_of(3, 64))
    assert heat.report.path == "incremental"
    plain = KryptonOcclusion(model).heatmap(x, **windows_of(3, 64))
    torch.testing.assert_close(heat.scores, plain.scores, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_residual", [False, True])
def test_one_pass(
    dtype: torch.dtype, activation: str, with_residual: bool, graphs: Callable[[], int]
) -> None:
    low, high = (0.0, 1.5) if activation == "none" else (-INFINITE, INFINITE)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        finished = compiled_finish(
            low,
            high,
            activation,
            bias=True,
            residual=with_residual,
            rank=4,
            dtype=dtype,
            device=torch.device("cpu"),
        )
    before = graphs()
    assert before == 1
    for rows, side in ((5, 7), (4, 3), (1, 1)):
        shape = (rows, 6, side, side)
        sums, residual = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        bias = torch.randn(6, generator=generator, dtype=torch.float64)
        slope = bias.flip(0) if activation == "prelu" else None
        exact = sums + bias.reshape(-1, 1, 1)
        added = residual if with_residual else None
        expected = finish(exact, added, low, high, activation, slope)
        last = torch.channels_last
        with torch.no_grad():
            found = finished(
                sums.to(dtype).contiguous(memory_format=last),
                bias.to(dtype),
                residual.to(dtype).contiguous(memory_format=last) if with_residual else None,
                None if slope is None else slope.to(dtype),
            )
        assert found.dtype is dtype
        loose = {torch.bfloat16: 5e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
        torch.testing.assert_close(found.double(), expected, rtol=loose, atol=loose)
