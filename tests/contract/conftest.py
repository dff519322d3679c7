"""The network and the images of all of these tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from contract_network import Network
from replayed_maps import maps_as_on_a_gpu
from torch import Tensor


@pytest.fixture
def network() -> Network:
    return Network().eval()


@pytest.fixture
def images() -> Tensor:
    """Two images that the network takes for different classes."""
    images = torch.randn(2, 3, 11, 9, generator=torch.Generator().manual_seed(1))
    return images * torch.tensor([1.0, 8.0]).view(2, 1, 1, 1)


@pytest.fixture(params=["operators", "replays"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """By which maps are made: on a GPU, later ones are replayed before the model is asked."""
    if request.param == "operators":
        yield request.param
        return
    with maps_as_on_a_gpu():
        yield request.param
