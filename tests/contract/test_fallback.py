"""Forward functions that no graph can say: Captum answers, with a warning."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import Occlusion
from contract_network import QUESTION, Network, assert_same
from torch import Tensor, nn

from captum_krypton import KryptonFallbackWarning, KryptonOcclusion


def _looks_at_data(network: Network) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        return network(x) if x.mean() > 0.02 else network(-x)

    return forward


def _through_numpy(network: Network) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        return network(torch.from_numpy(np.sin(x.detach().numpy())))

    return forward


class RandomShift(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.roll(int(torch.randint(0, 3, ())), -1)


UNCAPTURABLE: dict[str, Callable[[Network], Callable[[Tensor], Tensor]]] = {
    "dropout that draws": lambda network: network.train(),
    "functional dropout": lambda network: lambda x: F.dropout(network(x), 0.5, True),
    "noise": lambda network: lambda x: network(x + torch.randn_like(x)),
    "random shift": lambda network: nn.Sequential(RandomShift(), network),
    "mean of the batch": lambda network: lambda x: network(x - x.mean(0)),
    "softmax over the batch": lambda network: lambda x: network(x).softmax(0),
    "cumulative sum over the batch": lambda network: lambda x: network(x.cumsum(0)),
    "neighbour in the batch": lambda network: lambda x: network(x) + network(x).roll(1, 0),
    "batch size as a number": lambda network: lambda x: network(x) * len(x) ** 2,
    "branch on the data": _looks_at_data,
    "number read out": lambda network: lambda x: network(x * x.abs().max().item()),
    "shape by the data": lambda network: lambda x: network(x) + x[x > 1].mean(),
    "numpy": _through_numpy,
}


@pytest.mark.parametrize("kind", UNCAPTURABLE)
@pytest.mark.parametrize("self_check", [True, False])
@pytest.mark.parametrize("examples", [1, 2])
def test_falls_back_to_captum_and_says_so(
    network: Network, images: Tensor, kind: str, self_check: bool, examples: int
) -> None:
    """Whether or not there is a check that might notice."""
    images, question = images[:examples], {**QUESTION, "perturbations_per_eval": 1}
    forward = UNCAPTURABLE[kind](network)
    twin = UNCAPTURABLE[kind](copy.deepcopy(network))
    explainer = KryptonOcclusion(forward, self_check=self_check)
    torch.manual_seed(5)
    with pytest.warns(KryptonFallbackWarning):
        actual = explainer.attribute(images, **question)
    torch.manual_seed(5)
    assert_same(actual, Occlusion(twin).attribute(images, **question))


def test_falls_back_where_a_batch_norm_trains(network: Network, images: Tensor) -> None:
    """And leaves its running statistics as Captum would: nothing runs twice."""
    network.norm.train()
    twin = copy.deepcopy(network)
    with pytest.warns(KryptonFallbackWarning):
        actual = KryptonOcclusion(network).attribute(images, perturbations_per_eval=1, **QUESTION)
    assert_same(actual, Occlusion(twin).attribute(images, perturbations_per_eval=1, **QUESTION))
    torch.testing.assert_close(network.norm.running_mean, twin.norm.running_mean)
    assert network.norm.num_batches_tracked == twin.norm.num_batches_tracked


def test_a_fallback_is_reported_and_warned_about_once(network: Network, images: Tensor) -> None:
    explainer = KryptonOcclusion(lambda x: network(x - x.mean(0)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        heat_map = explainer.heatmap(images, **QUESTION)
        explainer.attribute(images, **QUESTION)
        explainer.attribute(images, **QUESTION)
    assert [w.category for w in caught] == [KryptonFallbackWarning]
    assert issubclass(KryptonFallbackWarning, UserWarning)
    assert caught[0].filename == __file__
    assert heat_map.report.path == "captum"
    assert heat_map.report.reasons
    assert heat_map.scores.shape == (2, 5, 4)


@pytest.mark.filterwarnings("ignore::captum_krypton.KryptonFallbackWarning")
def test_an_error_in_the_forward_function_reaches_the_user(images: Tensor) -> None:
    def forward(x: Tensor) -> Tensor:
        raise KeyError("the user's own")

    with pytest.raises(KeyError, match="the user's own"):
        KryptonOcclusion(forward).attribute(images, **QUESTION)


@pytest.mark.filterwarnings("ignore::captum_krypton.KryptonFallbackWarning")
def test_an_error_for_some_windows_only_reaches_the_user(network: Network, images: Tensor) -> None:
    def forward(x: Tensor) -> Tensor:
        if (x[:, :, 4, 4] == 0.25).any():
            raise KeyError("the user's own")
        return network(x)

    with pytest.raises(KeyError, match="the user's own"):
        KryptonOcclusion(forward).attribute(images, **QUESTION)


@pytest.mark.filterwarnings("ignore::captum_krypton.KryptonFallbackWarning")
def test_an_argument_that_only_looks_batched(images: Tensor) -> None:
    """A matrix with as many rows as there are examples: only the forward function knows."""
    matrix = torch.tensor([[1.0, 2.0], [3.0, -4.0]])

    def forward(x: Tensor, matrix: Tensor) -> Tensor:
        return x.mean((2, 3))[:, :2] @ matrix

    explainer = KryptonOcclusion(forward)
    actual = explainer.attribute(images, additional_forward_args=matrix, **QUESTION)
    expected = Occlusion(forward).attribute(images, additional_forward_args=matrix, **QUESTION)
    assert_same(actual, expected)
