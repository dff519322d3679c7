"""What `attribute` and `heatmap` take and give, and what they take by default."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import FeatureAblation, LayerFeatureAblation, NoiseTunnel, Occlusion
from contract_network import QUESTION, WINDOWS, Network, assert_as_captum, assert_same
from torch import Tensor

from captum_krypton import (
    KryptonFeatureAblation,
    KryptonLayerFeatureAblation,
    KryptonOcclusion,
)

# What kind of thing it is


def test_is_an_occlusion(network: Network) -> None:
    ours, theirs = KryptonOcclusion(network), Occlusion(network)
    assert isinstance(ours, Occlusion)
    assert "Occlusion" in ours.get_name()
    assert ours.multiplies_by_inputs == theirs.multiplies_by_inputs
    assert ours.has_convergence_delta() == theirs.has_convergence_delta()
    assert ours.forward_func is network
    with pytest.raises(NotImplementedError):
        ours.attribute_future()


def test_arguments_have_captums_names_and_order() -> None:
    ours = inspect.signature(KryptonOcclusion.attribute).parameters
    theirs = inspect.signature(Occlusion.attribute).parameters
    assert list(ours) == list(theirs)
    assert [p.kind for p in ours.values()] == [p.kind for p in theirs.values()]
    assert list(inspect.signature(KryptonOcclusion.heatmap).parameters) == [*theirs, "windows"]
    for ours_, theirs_ in (
        (KryptonFeatureAblation, FeatureAblation),
        (KryptonLayerFeatureAblation, LayerFeatureAblation),
    ):
        found = list(inspect.signature(ours_.attribute).parameters)
        assert found == [
            name for name in inspect.signature(theirs_.attribute).parameters if name != "kwargs"
        ]
    assert next(iter(inspect.signature(KryptonOcclusion).parameters)) == "forward_func"


def test_all_arguments_by_position(network: Network, images: Tensor) -> None:
    arguments = (images, (3, 3, 3), (3, 2, 2), 0.5, 1, None, 2, False)
    assert_same(
        KryptonOcclusion(network).attribute(*arguments), Occlusion(network).attribute(*arguments)
    )


def test_attributions_are_float32(network: Network, images: Tensor) -> None:
    attributions = assert_as_captum(network.double(), images.double(), **QUESTION)
    assert attributions.dtype == torch.float32


def test_a_tuple_gives_a_tuple(network: Network, images: Tensor) -> None:
    arguments = {"sliding_window_shapes": ((3, 3, 3),), "strides": ((3, 2, 2),), "target": 0}
    actual = KryptonOcclusion(network).attribute((images,), **arguments)
    assert isinstance(actual, tuple)
    assert_same(actual, Occlusion(network).attribute((images,), **arguments))
    heat_maps = KryptonOcclusion(network).heatmap((images,), **arguments)
    assert isinstance(heat_maps, tuple)
    assert len(heat_maps) == 1


@pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
@pytest.mark.parametrize("at_once", [None, 2])
@pytest.mark.parametrize(
    "target",
    [1, [0, 3], torch.tensor([2, 1]), [(1,), (2,)]],
    ids=["int", "list", "tensor", "tuples"],
)
def test_noise_tunnel(
    network: Network, images: Tensor, kind: str, at_once: int | None, target: Any
) -> None:
    results = []
    for method in (KryptonOcclusion, Occlusion):
        torch.manual_seed(3)
        tunnel = NoiseTunnel(method(network))
        results.append(
            tunnel.attribute(
                images,
                nt_type=kind,
                nt_samples=3,
                nt_samples_batch_size=at_once,
                stdevs=0.2,
                sliding_window_shapes=(3, 4, 3),
                strides=(3, 3, 3),
                target=target,
            )
        )
    assert_same(*results)


# Defaults of its own


def test_target_left_out_means_the_predicted_class(network: Network, images: Tensor) -> None:
    predicted = network(images).argmax(1)
    assert predicted.tolist() == [3, 2]
    expected = Occlusion(network).attribute(images, target=predicted, **WINDOWS)
    explainer = KryptonOcclusion(network)
    assert_same(explainer.attribute(images, **WINDOWS), expected)
    heat_map = explainer.heatmap(images, **WINDOWS)
    assert_same(heat_map.attribution(), expected)
    torch.testing.assert_close(
        heat_map.reference.float(), network(images).amax(1), rtol=1e-4, atol=1e-5
    )


def test_target_left_out_of_one_number_an_example(network: Network, images: Tensor) -> None:
    def forward(x: Tensor) -> Tensor:
        return network(x)[:, 2]

    expected = Occlusion(forward).attribute(images, **WINDOWS)
    assert_same(KryptonOcclusion(forward).attribute(images, **WINDOWS), expected)


def test_target_none_is_all_outputs_as_captum_has_it(network: Network, images: Tensor) -> None:
    attributions = assert_as_captum(network, images, target=None, **WINDOWS)
    assert attributions.shape == (2 * 4, 3, 11, 9)
    heat_map = KryptonOcclusion(network).heatmap(images, target=None, **WINDOWS)
    assert heat_map.scores.shape == (2, 4, 5, 4)
    assert heat_map.reference.shape == (2, 4)


def test_windows_left_out(network: Network) -> None:
    """A square of a fourteenth of the shorter side, through all channels; a quarter its stride."""
    x = torch.randn(1, 3, 56, 64)
    heat_map = KryptonOcclusion(network).heatmap(x, target=0)
    assert heat_map.scores.shape == (1, 53, 61)
    expected = KryptonOcclusion(network).heatmap(x, (3, 4, 4), 1, target=0)
    torch.testing.assert_close(heat_map.scores, expected.scores)


def test_windows_over_some_channels_keep_a_channel_axis(network: Network, images: Tensor) -> None:
    heat_map = KryptonOcclusion(network).heatmap(images, (2, 3, 3), (1, 2, 2), target=0)
    assert heat_map.scores.shape == (2, 2, 5, 4)


# One number for a whole batch

WHOLE_BATCH: dict[str, Callable[[Network], Callable[[Tensor], Any]]] = {
    "0-d tensor": lambda network: lambda x: network(x).sum(),
    "tensor of one": lambda network: lambda x: network(x).sum().view(1),
    "float": lambda network: lambda x: network(x).sum().item(),
}


@pytest.mark.filterwarnings("ignore::captum_krypton.KryptonFallbackWarning")
@pytest.mark.parametrize("kind", WHOLE_BATCH)
def test_one_number_for_the_whole_batch(network: Network, images: Tensor, kind: str) -> None:
    forward = WHOLE_BATCH[kind](network)
    attributions = assert_as_captum(forward, images, **WINDOWS)
    assert attributions.shape == (1, 3, 11, 9)
    explainer = KryptonOcclusion(forward)
    with pytest.raises(AssertionError):
        explainer.attribute(images, perturbations_per_eval=2, **WINDOWS)


@pytest.mark.filterwarnings("ignore::captum_krypton.KryptonFallbackWarning")
def test_one_number_for_a_batch_of_one(network: Network, images: Tensor) -> None:
    assert_as_captum(lambda x: network(x).sum(), images[:1], **WINDOWS)


def test_windows_do_not_cost_a_forward_each(network: Network, images: Tensor) -> None:
    calls = []
    network.register_forward_pre_hook(lambda module, arguments: calls.append(len(arguments[0])))
    explainer = KryptonOcclusion(network)
    explainer.attribute(images, (3, 2, 2), target=1)
    first = len(calls)
    explainer.attribute(images, (3, 2, 2), target=1)
    assert first <= 20 < math.prod((10, 8))
    assert len(calls) - first <= first


# How much at a time


def test_progress_counts_windows(
    network: Network, images: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    explainer = KryptonOcclusion(network)
    explainer.attribute(images, **QUESTION)
    assert capsys.readouterr() == ("", "")
    explainer.attribute(images, show_progress=True, **QUESTION)
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{5 * 4}/{5 * 4}" in err
    assert "Occlusion" in err


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_how_many_at_a_time_changes_nothing(network: Network, images: Tensor, at_once: int) -> None:
    explainer = KryptonOcclusion(network)
    actual = explainer.attribute(images, perturbations_per_eval=at_once, **QUESTION)
    assert_same(actual, explainer.attribute(images, **QUESTION))


@pytest.mark.filterwarnings("ignore::captum_krypton.KryptonFallbackWarning")
@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_a_forward_that_returns_no_tensor_is_named(kind: str) -> None:
    def forward(x: Tensor) -> Any:
        scores = x.mean((2, 3))
        return {"scores": scores} if kind == "dict" else (scores, scores)

    krypton = KryptonOcclusion(forward)
    with pytest.raises(TypeError, match=f"must return a tensor or a number, not {kind}"):
        krypton.heatmap(torch.rand(1, 3, 32, 32), (3, 4, 4), (3, 4, 4), target=0)
