"""Linear layers over channels: what becomes a convolution, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum.attr import Occlusion
from graphs import graph_of, names, run
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion
from captum_krypton._capture.graph import Graph
from captum_krypton._capture.simplify import simplified

torch.manual_seed(0)
CONV = nn.Conv2d(3, 8, 3, padding=1)
WIDE, NARROW, SQUARE = nn.Linear(8, 24), nn.Linear(24, 8, bias=False), nn.Linear(8, 8)
NORM = nn.LayerNorm(8)
SCALE = torch.rand(8) + 0.5


def image() -> Tensor:
    return torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(1))


def rewritten(forward: Callable[[Tensor], Tensor]) -> Graph:
    graph = simplified(graph_of(forward, image()))
    with torch.no_grad():
        torch.testing.assert_close(run(graph, image()), forward(image()), rtol=1e-5, atol=1e-5)
    return graph


def last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def block(x: Tensor) -> Tensor:
    """ConvNeXt's, with its scale on either side of the last permutation."""
    return x + SCALE[:, None, None] * first(NARROW(F.gelu(WIDE(NORM(last(x))))))


def early_scale(x: Tensor) -> Tensor:
    return x + first(SCALE * NARROW(F.gelu(WIDE(NORM(last(x))))))


CONVOLVED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "a block": (
        lambda x: block(CONV(x)),
        "convolution permute native_layer_norm permute convolution gelu convolution add",
    ),
    "a block with an early scale": (
        lambda x: early_scale(CONV(x)),
        "convolution permute native_layer_norm permute convolution gelu convolution add",
    ),
    "channels last to the end": (
        lambda x: SQUARE((y := last(CONV(x))).relu()) + y,
        "convolution relu convolution add permute",
    ),
    "what is added comes from elsewhere": (
        lambda x: NORM(y := last(CONV(x))) + SQUARE(y),
        "convolution permute native_layer_norm convolution permute add permute",
    ),
    "a layer after the input": (
        lambda x: nn.functional.linear(last(x), WIDE.weight[:, :3]),
        "convolution permute",
    ),
}


@pytest.mark.parametrize("what", CONVOLVED)
def test_convolved(what: str) -> None:
    forward, expected = CONVOLVED[what]
    found = [name for name in names(rewritten(forward)) if name != "getitem"]
    assert found == expected.split()


LEFT: dict[str, Callable[[Tensor], Tensor]] = {
    "three dimensions": lambda x: SQUARE(CONV(x).flatten(2).transpose(1, 2)),
    "one row of cells": lambda x: SQUARE(last(CONV(x)[:, :, :1])),
    "a vector": lambda x: SQUARE(CONV(x).mean((2, 3))),
}


@pytest.mark.parametrize("what", LEFT)
def test_left_alone(what: str) -> None:
    found = names(rewritten(LEFT[what]))
    assert found.count("convolution") == 1
    assert "linear" in found or "addmm" in found


def test_float64_is_left_alone() -> None:
    network = nn.Linear(3, 4).double()
    graph = simplified(graph_of(lambda x: network(last(x)), image().double()))
    assert "linear" in names(graph)


SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "another reader": lambda x: (y := first(SQUARE(last(x)))) * SCALE[:, None, None] + y.sin(),
    "a number for each cell": lambda x: first(SQUARE(last(x))) * torch.ones(8, 9, 7),
    "a number for each column": lambda x: first(SQUARE(last(x))) * (1 + torch.arange(7.0)),
    "what the input makes": lambda x: (y := first(SQUARE(last(x)))) * y.mean((2, 3), keepdim=True),
}


OTHER_TYPES: dict[str, Callable[[Tensor], Tensor]] = {
    "a scale": lambda x: (SQUARE(last(x)) * SCALE.double()).mean((1, 2)),
    "a scale of channels first": lambda x: first(SQUARE(last(x))) * SCALE.double()[:, None, None],
    "a bias": lambda x: F.linear(last(x), SQUARE.weight) + SCALE.double(),
}


@pytest.mark.parametrize("what", OTHER_TYPES)
def test_a_wider_constant_widens_the_result(what: str) -> None:
    rewritten(lambda x: OTHER_TYPES[what](CONV(x)))


def test_a_scale_of_depth_is_none_of_channels() -> None:
    spread = nn.Conv3d(1, 3, 3, padding=1)

    def forward(x: Tensor) -> Tensor:
        volume = first(F.linear(last(x), SQUARE.weight[:3, :3])).unsqueeze(1)
        return spread(volume) * torch.arange(1.0, 4)[:, None, None]

    assert "mul" in names(rewritten(forward))


def test_a_scale_that_spreads_one_channel_stays() -> None:
    network = nn.Linear(3, 1)
    assert "mul" in names(rewritten(lambda x: first(network(last(x))) * SCALE[:, None, None]))


@pytest.mark.parametrize("what", SCALES)
def test_products_that_are_no_scale_stay(what: str) -> None:
    assert "mul" in names(rewritten(lambda x: SCALES[what](CONV(x))))


class Mixer(nn.Module):
    """Channels last throughout, as Swin has them, then a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(2))
        self.wide = nn.ModuleList(nn.Linear(16, 48) for _ in range(2))
        self.narrow = nn.ModuleList(nn.Linear(48, 16) for _ in range(2))
        self.spread = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = last(self.stem(x))
        for norm, wide, narrow in zip(self.norms, self.wide, self.narrow, strict=True):
            x = x + last(self.spread(first(x)))
            x = x + narrow(F.gelu(wide(norm(x))))
        return self.head(x.mean((1, 2))).softmax(1)


@pytest.mark.parametrize("windows", [{"sliding_window_shapes": (3, 8, 8), "strides": (3, 4, 4)}])
def test_maps_are_captums(windows: dict[str, Any]) -> None:
    network = Mixer().eval()
    x = torch.randn(2, 3, 48, 40, generator=torch.Generator().manual_seed(2))
    krypton = KryptonOcclusion(network)
    expected = Occlusion(network).attribute(x, target=1, perturbations_per_eval=8, **windows)
    torch.testing.assert_close(krypton.attribute(x, target=1, **windows), expected)
    plan = str(krypton.explain(x, target=1, **windows))
    assert "convolution+gelu" in plan
    assert "convolution+add" in plan
    assert "linear" not in plan
