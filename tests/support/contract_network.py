"""A network and questions about it, answered by Captum too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import Occlusion
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion

WINDOWS: dict[str, Any] = {"sliding_window_shapes": (3, 3, 3), "strides": (3, 2, 2)}
QUESTION: dict[str, Any] = {**WINDOWS, "baselines": 0.25, "target": 1}
IMAGE = torch.randn(2, 3, 8, 9, generator=torch.Generator().manual_seed(2))


class Network(nn.Module):
    """Images (N, 3, H, W) to (N, 4), with all that a model may carry about with it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.drop = nn.Dropout(0.5)
        self.deep = nn.Conv2d(5, 6, 3, stride=2)
        self.head = nn.Linear(6, 4)
        self.scale = 1.0
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(F.relu(self.norm(self.conv(x))))
        x = F.silu(self.deep(x), inplace=True)
        result: Tensor = self.head(x.mean((2, 3))) * self.scale
        return result


def assert_same(actual: Any, expected: Any) -> None:
    """Equal to what float32 leaves of two orders of summing."""
    if isinstance(expected, tuple):
        assert isinstance(actual, tuple)
        for ours, theirs in zip(actual, expected, strict=True):
            assert_same(ours, theirs)
        return
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    size = expected.nan_to_num(0, 0, 0).abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * size + 1e-6, equal_nan=True)


def assert_as_captum(forward: Callable[..., Any], inputs: Any, **arguments: Any) -> Tensor:
    actual = KryptonOcclusion(forward).attribute(inputs, **arguments)
    expected = Occlusion(forward).attribute(
        inputs, **{**arguments, "perturbations_per_eval": arguments.get("at_once", 1)}
    )
    assert_same(actual, expected)
    return actual
