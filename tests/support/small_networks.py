"""Small networks for what needs one and no more."""

from __future__ import annotations

import torch
from torch import nn


def small_network() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels in (3, 8, 8, 8):
        layers += [nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()


POOLINGS = (
    nn.MaxPool2d(3, 2, 1),
    nn.MaxPool2d(2, dilation=2),
    nn.MaxPool2d(3, 2, ceil_mode=True),
    nn.AvgPool2d(3, 1, 1),
    nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    nn.AvgPool2d(3, 2, ceil_mode=True),
    nn.AvgPool2d(2, divisor_override=3),
    nn.AdaptiveMaxPool2d(4),
    nn.AdaptiveAvgPool2d(4),
)


def pooling_network(pooling: nn.Module) -> nn.Module:
    """A network for images of 16 pixels."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), pooling, nn.Conv2d(8, 4, 2), nn.Flatten())
    model = nn.Sequential(*layers, nn.LazyLinear(5)).eval()
    model(torch.zeros(1, 3, 16, 16))
    return model
