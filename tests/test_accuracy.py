"""What "exact" means in float32: errors against float64 beside those of a plain forward pass."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import timm
import torch
import torchvision.models
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from captum_krypton import KryptonOcclusion


@dataclass(frozen=True)
class Case:
    """A network, its input, and windows side by side that cover all channels."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 128, 128)
    window: tuple[int, ...] = (16, 16)
    paths: tuple[str, ...] = ("incremental",)

    @property
    def windows(self) -> tuple[int, ...]:
        """Captum's window and stride."""
        return (self.shape[0], *self.window)

    def network(self) -> nn.Module:
        """Random weights, with batch norms that have seen activations: no layer is constant."""
        torch.manual_seed(0)
        made = self.build()
        norms = [module for module in made.modules() if isinstance(module, _BatchNorm)]
        for norm in norms:
            norm.momentum = None  # the mean of all passes
        if norms:
            with torch.no_grad():
                made.train()(torch.randn(8, *self.shape))
        return made.eval()

    @torch.no_grad()
    def outputs(self, model: nn.Module, x: Tensor, some: list[int], dtype: torch.dtype) -> Tensor:
        """Forward passes of some windows, two at a time, (windows, outputs), float64.

        PyTorch has a loop of its own for one volume, with other sums than for two.
        """
        counts = [math.ceil(n / w) for n, w in zip(self.shape[1:], self.window, strict=True)]
        rows = []
        for number in some:
            occluded = x.to(dtype).clone()
            places = zip(np.unravel_index(number, counts), self.window, strict=True)
            inside = [slice(int(i) * size, (int(i) + 1) * size) for i, size in places]
            occluded[(..., *inside)] = 0
            rows.append(occluded)
        rows += rows[: len(rows) % 2]
        made = [model(torch.cat(rows[i : i + 2])) for i in range(0, len(rows), 2)]
        return torch.cat(made)[: len(some)].double()


def torchvision_case(name: str) -> Case:
    return Case(lambda: torchvision.models.get_model(name, weights=None))


def video(name: str) -> Case:
    build = getattr(torchvision.models.video, name)
    return Case(lambda: build(num_classes=100), (3, 8, 48, 48), (4, 16, 16))


def long_kernels() -> nn.Module:
    """Kernels of one axis, as Inception v3 has them: Winograd's algorithm groups them otherwise."""
    layers: list[nn.Module] = [nn.Conv2d(3, 128, 5, 4), nn.BatchNorm2d(128), nn.ReLU()]
    for kernel in ((1, 7), (7, 1), (1, 8), (4, 1), (1, 7), (7, 1)):
        layers += [nn.Conv2d(128, 128, kernel, padding="same", bias=False), nn.BatchNorm2d(128)]
        layers += [nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 100))


def signal() -> nn.Module:
    """Residual blocks over one axis."""
    layers: list[nn.Module] = [nn.Conv1d(12, 64, 15, 4, 7), nn.BatchNorm1d(64), nn.ReLU()]
    for _ in range(6):
        layers += [nn.Conv1d(64, 64, 7, padding=3), nn.BatchNorm1d(64), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 100))


def normalised(norm: Callable[[], nn.Module]) -> nn.Module:
    """A volume under a norm that adds up whole channels of it, which are not around zero."""
    layers: list[nn.Module] = []
    for channels in (1, 16, 16):
        convolution = nn.Conv3d(channels, 16, 3, padding=1)
        nn.init.constant_(convolution.bias, 8.0)
        layers += [convolution, norm(), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveMaxPool3d(3), nn.Flatten(), nn.Linear(432, 100))


def under_norms(norm: Callable[[], nn.Module]) -> Case:
    """Everything changes; the kernels run it where Winograd's algorithm makes that pay."""
    return Case(lambda: normalised(norm), (1, *[48] * 3), (16,) * 3, ("incremental", "full"))


CASES = {
    **{name: torchvision_case(name) for name in ("vgg11", "resnet18", "squeezenet1_1")},
    "densenet121": torchvision_case("densenet121"),
    "edgenext": Case(lambda: timm.create_model("edgenext_xx_small")),
    "long kernels": Case(long_kernels),
    **{name: video(name) for name in ("r3d_18", "mc3_18", "r2plus1d_18")},
    "signal": Case(signal, (12, 2000), (64,)),
    "group norm": under_norms(lambda: nn.GroupNorm(4, 16)),
    "instance norm": under_norms(lambda: nn.InstanceNorm3d(16)),
}


@pytest.mark.parametrize("winograd", [True, False])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", CASES)
def test_errors_are_at_most_twice_a_forward_passes(name: str, winograd: bool) -> None:
    """Root mean squares over all outputs, of windows all over the input."""
    case = CASES[name]
    model = case.network()
    x = torch.randn(1, *case.shape, generator=torch.Generator().manual_seed(1))
    explainer = KryptonOcclusion(model, winograd=winograd)
    heat = explainer.heatmap(x, case.windows, strides=case.windows, target=None)
    assert heat.report.path in case.paths
    windows = list(range(0, heat.report.windows, 7))
    ours = heat.scores[0].flatten(1).T[windows].double()
    naive = case.outputs(model, x, windows, torch.float32)
    exact = case.outputs(copy.deepcopy(model).double(), x, windows, torch.float64)

    def error(computed: Tensor) -> float:
        return (computed - exact).square().mean().sqrt().item()

    assert 0 < error(naive) < 1e-5 * exact.abs().max().item()
    assert error(ours) <= 2 * error(naive)
