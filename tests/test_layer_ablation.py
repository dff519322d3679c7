"""Ablation of a layer's values, beside Captum's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captum.attr import LayerFeatureAblation
from torch import Tensor, nn

from captum_krypton import KryptonLayerFeatureAblation


class Network(nn.Module):
    """Images (N, 3, H, W) to (N, 4), with an activation in place and two values from one layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 4)
        self.first.weight.data.mul_(3)

    def forward(self, x: Tensor, scale: Any = 1.0) -> Tensor:
        x = self.relu(self.first(x))
        out: Tensor = self.head(self.second(x).relu().mean((2, 3))) * scale
        return out


IMAGES = torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(1))
QUESTIONS: dict[str, dict[str, Any]] = {
    "every value": {"target": 1},
    "channels": {"target": 2, "layer_mask": torch.arange(6).reshape(1, 6, 1, 1)},
    "places": {"target": 0, "layer_mask": torch.arange(12).reshape(1, 1, 12, 1) // 3},
    "baseline": {"target": 1, "layer_baselines": 0.5},
    "argument": {"target": 1, "additional_forward_args": 2.0},
}


@pytest.mark.parametrize("kind", QUESTIONS)
@pytest.mark.parametrize("of_input", [False, True])
def test_attributions_are_captums(kind: str, of_input: bool) -> None:
    model = Network().eval()
    layer = model.second if of_input else model.first
    arguments = {"attribute_to_layer_input": of_input, **QUESTIONS[kind]}
    ours = KryptonLayerFeatureAblation(model, layer).attribute(IMAGES, **arguments)
    theirs = LayerFeatureAblation(model, layer).attribute(IMAGES, **arguments)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_later_maps_run_the_model_twice() -> None:
    """For the layer's values, and for the untouched outcome; what comes after runs by the graph."""
    model, runs = Network().eval(), []

    def forward(x: Tensor) -> Tensor:
        runs.append(len(x))
        out: Tensor = model(x)
        return out

    ablation = KryptonLayerFeatureAblation(forward, model.first)
    ablation.attribute(IMAGES, target=1)  # with the graph, and a check
    runs.clear()
    ablation.attribute(IMAGES, target=1)
    assert runs == [2, 2]


def test_the_model_may_change_between_calls() -> None:
    model = Network().eval()
    ablation = KryptonLayerFeatureAblation(model, model.first)
    channels = torch.arange(6).reshape(1, 6, 1, 1)
    for _ in range(3):
        ablation.attribute(IMAGES, target=1, layer_mask=channels)
    with torch.no_grad():
        model.second.weight.mul_(-1)
    ours = ablation.attribute(IMAGES, target=1, layer_mask=channels)
    theirs = LayerFeatureAblation(model, model.first).attribute(
        IMAGES, target=1, layer_mask=channels
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
