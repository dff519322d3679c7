"""Kernels go on where a window has changed a whole volume: behind gates and attention."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from captum.attr import Occlusion
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion
from captum_krypton._kernels import panel_size
from captum_krypton._kernels.rates import GUESSED
from captum_krypton._run import captured_model


@pytest.fixture(autouse=True)
def free_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans patches, as for a large network."""
    rates = replace(GUESSED, call=0.0, kernel=0.0, element=0.0)
    monkeypatch.setattr(captured_model, "rates_of", lambda device: rates)


class GateFirst(nn.Module):
    """Squeeze-and-excite with the gate as the first factor, then convolutions and a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 16, 1), nn.Sigmoid())
        self.body = nn.Conv2d(16, 16, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = self.gate(x) * x
        x = x + self.body(x).relu()
        return self.head(self.pool(x).mean((2, 3)))


class Attention(GateFirst):
    """Every position attends to every other; the result is a volume again, added to."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        tokens = x.flatten(2)
        weights = (tokens.transpose(1, 2) @ tokens).softmax(-1)
        x = x + (tokens @ weights).unflatten(2, x.shape[2:])
        return self.head(self.pool(self.body(x)).mean((2, 3)))


class Broadcast(GateFirst):
    """What the whole volume gives is joined to the volume as more channels (ASPP)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(32, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        pooled = nn.functional.interpolate(self.gate(x), x.shape[2:], mode="nearest")
        return self.head(self.pool(self.body(torch.cat([x, pooled], 1))).mean((2, 3)))


@pytest.mark.parametrize("kind", [GateFirst, Attention, Broadcast])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stride", [2, 4])
def test_attributions_behind_a_whole_volume(
    kind: type[nn.Module], dtype: torch.dtype, stride: int
) -> None:
    torch.manual_seed(0)
    network, x = kind().double().eval(), torch.rand(2, 3, 28, 28, dtype=torch.float64)
    call = {"sliding_window_shapes": (3, 4, 4), "strides": (3, stride, stride), "target": 1}
    expected = Occlusion(network).attribute(x, **call)
    krypton = KryptonOcclusion(network.to(dtype))
    heat = krypton.heatmap(x.to(dtype), **call)
    assert heat.report.path == "incremental"
    tolerance = 1e-3 if dtype is torch.float32 else 1e-12  # outcomes are hundreds of times larger
    assert (heat.attribution() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.skipif(panel_size() == 0, reason="needs the compiled kernels")
@pytest.mark.parametrize("kind", [GateFirst, Attention, Broadcast])
def test_kernels_run_behind_a_whole_volume(kind: type[nn.Module]) -> None:
    krypton, x = KryptonOcclusion(kind().eval()), torch.rand(1, 3, 28, 28)
    ((rows, totals),) = krypton.explain(x, sliding_window_shapes=(3, 4, 4), target=1).plans
    body = next(row for row in reversed(rows) if row.output == (16, 28, 28) and row.macs_full)
    assert body.kind == "local" and body.patch == (28, 28) and body.algorithm == "Winograd"
    assert next(row for row in rows if "max_pool" in row.operator).algorithm == "pooling"
    global_rows = [row.operator for row in rows if row.kind == "global"]
    assert "aten.mean" in global_rows
    assert all(operator in totals for operator in global_rows)
