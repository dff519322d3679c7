"""Gradients, other modes and wrappers; and that nothing of the user's changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from captum.attr import Occlusion
from contract_network import QUESTION, WINDOWS, Network, assert_as_captum, assert_same
from torch import Tensor

from captum_krypton import KryptonOcclusion

# Gradients and other modes


def test_inputs_that_require_a_gradient(network: Network, images: Tensor) -> None:
    images.requires_grad_()
    attributions = assert_as_captum(network, images, **QUESTION)
    assert not attributions.requires_grad
    assert attributions.grad_fn is None
    assert images.grad is None
    heat_map = KryptonOcclusion(network).heatmap(images, **QUESTION)
    assert not heat_map.scores.requires_grad
    assert not heat_map.reference.requires_grad
    assert torch.is_grad_enabled()


def test_baselines_and_arguments_that_require_a_gradient(network: Network, images: Tensor) -> None:
    baselines = torch.zeros(1, 3, 11, 9, requires_grad=True)
    extra = torch.ones(2, 1, requires_grad=True)
    question = {**QUESTION, "baselines": baselines, "additional_forward_args": extra}
    attributions = assert_as_captum(lambda x, y: network(x) * y, images, **question)
    assert not attributions.requires_grad


def test_inference_mode(network: Network, images: Tensor) -> None:
    expected = Occlusion(network).attribute(images, **QUESTION)
    explainer = KryptonOcclusion(network)
    with torch.inference_mode():
        assert_same(explainer.attribute(images, **QUESTION), expected)
        inside = images.clone()
        assert_same(explainer.attribute(inside, **QUESTION), expected)
    assert_same(explainer.attribute(images, **QUESTION), expected)
    assert_same(explainer.attribute(inside, **QUESTION), expected)
    assert not torch.is_inference_mode_enabled()


def test_a_model_made_in_inference_mode(images: Tensor) -> None:
    with torch.inference_mode():
        network = Network().eval()
    assert_as_captum(network, images, **QUESTION)


def test_without_and_with_gradients_around(network: Network, images: Tensor) -> None:
    for mode in (torch.no_grad(), torch.enable_grad()):
        with mode:
            assert_as_captum(network, images, **QUESTION)


@pytest.mark.filterwarnings("ignore::captum_krypton.KryptonFallbackWarning")
def test_autocast_is_noticed(network: Network, images: Tensor) -> None:
    explainer = KryptonOcclusion(network)
    explainer.attribute(images, **QUESTION)
    with torch.autocast("cpu", torch.bfloat16):
        actual = explainer.attribute(images, **QUESTION)
        expected = Occlusion(network).attribute(images, **QUESTION)
    size = network(images).abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=0.02 * size)
    assert_same(
        explainer.attribute(images, **QUESTION), Occlusion(network).attribute(images, **QUESTION)
    )


# Nothing of the user's changes


def test_model_inputs_and_random_numbers_are_left_alone(network: Network, images: Tensor) -> None:
    network.conv.train()  # a flag without a meaning, but the user's
    network.head.bias.requires_grad_(False)
    kept, untouched = copy.deepcopy(network), images.clone()
    identities = {k: (id(v), v.data_ptr()) for k, v in network.state_dict(keep_vars=True).items()}
    attributes = {name: set(vars(part)) for name, part in network.named_modules()}
    random = torch.random.get_rng_state()
    baselines = torch.randn(1, 3, 11, 9, generator=torch.Generator().manual_seed(0))
    baselines_untouched = baselines.clone()
    explainer = KryptonOcclusion(network)
    explainer.attribute(images, target=1, baselines=baselines, **WINDOWS)
    explainer.heatmap(images, target=1, baselines=baselines, **WINDOWS)
    assert torch.equal(images, untouched)
    assert torch.equal(baselines, baselines_untouched)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.is_grad_enabled()
    for (name, part), (_, twin) in zip(network.named_modules(), kept.named_modules(), strict=True):
        assert part.training == twin.training, name
        assert not part._forward_hooks and not part._forward_pre_hooks, name
        assert set(vars(part)) == attributes[name]
    state = network.state_dict(keep_vars=True)
    assert {k: (id(v), v.data_ptr()) for k, v in state.items()} == identities
    for (name, tensor), twin in zip(
        state.items(), kept.state_dict(keep_vars=True).values(), strict=True
    ):
        assert torch.equal(tensor, twin), name
        assert tensor.requires_grad == twin.requires_grad, name
        assert tensor.grad is None, name


def test_attributions_are_the_users_to_change(network: Network, images: Tensor) -> None:
    explainer = KryptonOcclusion(network)
    first = explainer.attribute(images, **QUESTION)
    kept = first.clone()
    first.zero_()
    assert_same(explainer.attribute(images, **QUESTION), kept)
    heat_map = explainer.heatmap(images, **QUESTION)
    heat_map.attribution().zero_()
    assert_same(heat_map.attribution(), kept)


# Wrappers


@pytest.mark.filterwarnings("ignore::captum_krypton.KryptonFallbackWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
@pytest.mark.parametrize("wrapper", ["trace", "compile"])
def test_compiled_models(network: Network, images: Tensor, wrapper: str) -> None:
    expected = Occlusion(network).attribute(images, **QUESTION)
    if wrapper == "trace":
        forward: Any = torch.jit.trace(network, images)
    else:
        forward = torch.compile(network, backend="eager")
    assert_same(KryptonOcclusion(forward).attribute(images, **QUESTION), expected)
