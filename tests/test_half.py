"""Maps in bfloat16 and float16: what they differ by from float64 maps is rounding, and not more."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision.models
from captum.attr import Occlusion
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from captum_krypton import KryptonOcclusion
from captum_krypton._kernels import panel_size

HALVES = (torch.bfloat16, torch.float16)
SIDE, WINDOW = 64, 8


def image_network(name: str) -> nn.Module:
    if name == "unet":
        return UNet()
    if name.startswith(("edgenext", "convnext")):
        return timm.create_model(name, num_classes=10)
    return torchvision.models.get_model(name, weights=None, num_classes=10)


def other_axes(axes: int) -> nn.Module:
    """Signals or volumes, with a mean over all axes."""
    conv = {1: nn.Conv1d, 3: nn.Conv3d}[axes]
    norm = {1: nn.BatchNorm1d, 3: nn.BatchNorm3d}[axes]
    pool = {1: nn.MaxPool1d, 3: nn.MaxPool3d}[axes]  # PyTorch has no mean of volumes in float16
    return nn.Sequential(
        *(conv(2, 24, 3, padding=1), norm(24), nn.ReLU(), pool(2)),
        *(conv(24, 32, 3, padding=1), norm(32), nn.SiLU(), pool(3, 2, 1)),
        *(conv(32, 32, 3, padding=1, groups=32), nn.ReLU(), nn.Flatten(2)),
        nn.AdaptiveAvgPool1d(1),
        *(nn.Flatten(), nn.Linear(32, 10)),
    )


class UNet(nn.Module):
    """Transposed convolutions, activations with slopes, and few channels at last."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.PReLU(24))
        self.inner = nn.Sequential(nn.Conv2d(24, 24, 3, padding=1), nn.PReLU())
        up = nn.ConvTranspose2d(24, 16, 3, 2, 1, 1)
        self.up = nn.Sequential(up, nn.BatchNorm2d(16), nn.LeakyReLU(0.2))
        self.head = nn.Conv2d(19, 2, 3, padding=1)

    def dense(self, x: Tensor) -> Tensor:
        made = self.up(self.inner(self.down(x)))
        return self.head(torch.cat([x, made], 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.dense(x), 8).flatten(1)


def trained(model: nn.Module, *size: int) -> nn.Module:
    """Batch norms that have seen activations: no layer is almost constant."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.momentum = None
    if norms:
        with torch.no_grad():
            model.train()(torch.randn(16, *size))
    return model.eval()


def error(made: Tensor, exact: Tensor) -> float:
    return (made.double() - exact).square().mean().sqrt().item()


def check(model: nn.Module, x: Tensor, **windows: Any) -> None:
    """The maps of all outputs, against the same 16-bit numbers in float64."""
    exact = KryptonOcclusion(copy.deepcopy(model).double())
    expected = exact.attribute(x.double(), target=None, **windows).double()
    heat = KryptonOcclusion(model).heatmap(x, target=None, **windows)
    assert heat.report.path == "incremental"
    assert heat.scores.dtype == x.dtype
    naive = Occlusion(model).attribute(x, target=None, **windows)
    assert error(heat.attribution(), expected) <= 1.5 * error(naive, expected)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "squeezenet1_1",
        "densenet121",
        "mobilenet_v3_small",
        "edgenext_xx_small",
        "unet",
    ],
)
def test_maps_are_as_exact_as_captums(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = trained(image_network(name), 3, SIDE, SIDE).to(dtype)
    x = torch.randn(1, 3, SIDE, SIDE).to(dtype)
    check(model, x, sliding_window_shapes=(3, WINDOW, WINDOW), strides=(3, WINDOW, WINDOW))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("axes", [1, 3])
def test_maps_over_one_and_three_axes(axes: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    size = (2, *{1: (96,), 3: (12, 12, 12)}[axes])
    model = trained(other_axes(axes), *size).to(dtype)
    side = {1: 8, 3: 4}[axes]
    x = torch.randn(1, *size).to(dtype)
    check(model, x, sliding_window_shapes=(2, *[side] * axes), strides=(2, *[side // 2] * axes))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("pixel", [(20, 30), (0, 0)])
def test_windows_that_reach_nothing_change_nothing(
    pixel: tuple[int, int], dtype: torch.dtype
) -> None:
    """They have the outcome that drops are taken from, which is not the forward function's."""
    torch.manual_seed(0)
    model = UNet()
    trained(model, 3, SIDE, SIDE).to(dtype)
    x = torch.randn(2, 3, SIDE, SIDE).to(dtype)
    windows: Any = {"sliding_window_shapes": (3, 8, 8), "strides": (3, 4, 4), "target": (1, *pixel)}
    wide = copy.deepcopy(model).double()
    expected = KryptonOcclusion(wide.dense).attribute(x.double(), **windows).double()
    heat = KryptonOcclusion(model.dense).heatmap(x, **windows)
    assert heat.report.windows_unreached > 200
    made = heat.attribution()
    assert (expected == 0).any()
    assert (made[expected == 0] == 0).all()
    naive = Occlusion(model.dense).attribute(x, **windows)
    assert error(made, expected) <= 1.5 * error(naive, expected)


def test_means_do_not_overflow() -> None:
    """Sums of nine such numbers are infinite in float16."""
    mean = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    model = nn.Sequential(nn.MaxPool2d(2), mean, nn.MaxPool2d(2), nn.Flatten())
    x = (30000 * torch.rand(1, 16, 24, 24) + 20000).half()
    heat = KryptonOcclusion(model).heatmap(
        x, sliding_window_shapes=(16, 6, 6), strides=(16, 3, 3), target=7
    )
    assert heat.report.path == "incremental"
    naive = Occlusion(model).attribute(
        x, sliding_window_shapes=(16, 6, 6), strides=(16, 3, 3), target=7
    )
    torch.testing.assert_close(heat.attribution(), naive.float(), rtol=0, atol=100.0)


@pytest.mark.skipif(panel_size() == 0, reason="needs the compiled kernels")
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "convnext_atto", "unet"])
def test_the_plan_is_float32s(name: str, dtype: torch.dtype) -> None:
    """The same kernels run the same operators; a DenseNet's transitions keep their own order."""
    torch.manual_seed(0)
    model = image_network(name).eval()
    x = torch.randn(1, 3, SIDE, SIDE)
    windows = {"sliding_window_shapes": (3, 16, 16), "strides": (3, 8, 8), "target": 1}

    def algorithms(model: nn.Module, x: Tensor) -> list[str]:
        lines = str(KryptonOcclusion(model).explain(x, **windows)).splitlines()
        kinds = ("Winograd", "direct", "depthwise", "pooling", "joining", "prelu")
        return sorted(kind for line in lines for kind in kinds if kind in line)

    expected = algorithms(model, x)
    assert len(expected) >= (8 if name == "unet" else 11)
    assert algorithms(model.to(dtype), x.to(dtype)) == expected


def test_under_autocast() -> None:
    """Weights are float32 parameters, cast in the call."""
    torch.manual_seed(0)
    model = trained(image_network("resnet18"), 3, SIDE, SIDE)

    def forward(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x)

    x = torch.randn(1, 3, SIDE, SIDE)
    windows: Any = {"sliding_window_shapes": (3, 16, 16), "strides": (3, 8, 8), "target": 1}
    exact = KryptonOcclusion(copy.deepcopy(model).double()).attribute(x.double(), **windows)
    heat = KryptonOcclusion(forward).heatmap(x, **windows)
    assert heat.report.path == "incremental"
    naive = Occlusion(forward).attribute(x, **windows)
    assert error(heat.attribution(), exact) <= 1.5 * error(naive, exact)
