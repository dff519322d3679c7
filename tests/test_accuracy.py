"""What "exact" means in float32: errors against float64 beside those of a plain forward pass."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
import torchvision.models
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from captum_krypton import KryptonOcclusion

SIDE, WINDOW = 128, 16
WINDOWS: dict[str, Any] = {
    "sliding_window_shapes": (3, WINDOW, WINDOW),
    "strides": (3, WINDOW, WINDOW),
}


def network(name: str) -> nn.Module:
    """Random weights, with batch norms that have seen activations: no layer is almost constant."""
    torch.manual_seed(0)
    if name.startswith("edgenext"):
        made = timm.create_model(name)
    elif name == "long kernels":
        made = long_kernels()
    else:
        made = torchvision.models.get_model(name, weights=None)
    norms = [module for module in made.modules() if isinstance(module, _BatchNorm)]
    if norms:
        for norm in norms:
            norm.momentum = None  # the mean of all passes
        with torch.no_grad():
            made.train()(torch.randn(8, 3, SIDE, SIDE))
    return made.eval()


def long_kernels() -> nn.Module:
    """Kernels of one axis, as Inception v3 has them: Winograd's algorithm groups them otherwise."""
    layers: list[nn.Module] = [nn.Conv2d(3, 128, 5, 4), nn.BatchNorm2d(128), nn.ReLU()]
    for kernel in ((1, 7), (7, 1), (1, 8), (4, 1), (1, 7), (7, 1)):
        layers += [nn.Conv2d(128, 128, kernel, padding="same", bias=False), nn.BatchNorm2d(128)]
        layers += [nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 100))


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor, windows: list[int], dtype: torch.dtype) -> Tensor:
    """A forward pass for each of some windows, (windows, outputs), float64."""
    rows = []
    for window in windows:
        top, left = (WINDOW * place for place in divmod(window, SIDE // WINDOW))
        occluded = x.to(dtype).clone()
        occluded[:, :, top : top + WINDOW, left : left + WINDOW] = 0
        rows.append(model(occluded)[0].double())
    return torch.stack(rows)


@pytest.mark.parametrize("winograd", [True, False])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(
    "name",
    ["vgg11", "resnet18", "squeezenet1_1", "densenet121", "edgenext_xx_small", "long kernels"],
)
def test_errors_are_at_most_twice_a_forward_passes(name: str, winograd: bool) -> None:
    """Root mean squares over all outputs, of windows all over the image."""
    model = network(name)
    x = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    windows = list(range(0, (SIDE // WINDOW) ** 2, 7))
    heat = KryptonOcclusion(model, winograd=winograd).heatmap(x, target=None, **WINDOWS)
    assert heat.report.path == "incremental"
    ours = heat.scores[0].flatten(1).T[windows].double()
    naive = outputs(model, x, windows, torch.float32)
    exact = outputs(copy.deepcopy(model).double(), x, windows, torch.float64)

    def error(computed: Tensor) -> float:
        return (computed - exact).square().mean().sqrt().item()

    assert 0 < error(naive) < 1e-5 * exact.abs().max().item()
    assert error(ours) <= 2 * error(naive)
