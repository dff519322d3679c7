"""Inputs that are not finite, bad, or not as they lie in memory by default."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import Occlusion
from contract_network import IMAGE, QUESTION, WINDOWS, Network, assert_as_captum, assert_same
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion

# Not a number


def test_nan_where_no_window_and_no_outcome_sees_it(images: Tensor) -> None:
    """Windows over two of three channels never cover the last pixel's neighbours twice."""
    images[:, :, -1, -1] = math.nan
    conv = nn.Conv2d(3, 2, 3, padding=1)
    assert_as_captum(conv, images, target=(1, 3, 4), **WINDOWS)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_in_one_example(network: Network, images: Tensor, value: float) -> None:
    images[0, 1, 5, 5] = value
    ours = KryptonOcclusion(network).attribute(images, **QUESTION)
    theirs = Occlusion(network).attribute(images, **QUESTION)
    assert ours[0].isnan().all() and theirs[0].isnan().all()
    assert_same(ours[1:], theirs[1:])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_window_replaces_what_is_not_finite(
    network: Network, images: Tensor, value: float
) -> None:
    """Unlike Captum, whose product with a mask keeps a NaN in the window a NaN."""
    images[0, :, 5, 5] = value
    scores = KryptonOcclusion(network).heatmap(images, (3, 4, 4), (3, 4, 4), target=1).scores
    assert scores[0].isfinite().sum() == 1
    clean = images.clone()
    clean[0, :, 4:8, 4:8] = 0
    torch.testing.assert_close(scores[0, 1, 1], network(clean)[0, 1].to(scores))
    assert scores[1].isfinite().all()


def test_outcomes_that_are_infinite(images: Tensor) -> None:
    """Captum's sum of masks times differences makes a NaN outside a window of an infinite one."""

    def forward(x: Tensor) -> Tensor:
        return x[:, :, 4:6, 4:6].abs().sum((1, 2, 3)).log()

    assert_as_captum(forward, images, target=None, sliding_window_shapes=(3, 2, 2), strides=2)


# Bad input

_WINDOW = "sliding_window_shapes"
_AT_ONCE = "perturbations_per_eval"
# What is wrong, the argument at fault, and the arguments that differ from QUESTION.
BAD_SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "larger than the input": (_WINDOW, {_WINDOW: (3, 9, 3)}),
    "an axis too few": (_WINDOW, {_WINDOW: (3, 3)}),
    "an axis too many": (_WINDOW, {_WINDOW: (1, 3, 3, 3)}),
    "a list": (_WINDOW, {_WINDOW: [3, 3, 3]}),
    "empty": (_WINDOW, {_WINDOW: ()}),
    "two for one input": (_WINDOW, {_WINDOW: ((3, 3, 3), (3, 3, 3))}),
    "one for two inputs": (
        _WINDOW,
        {"inputs": (IMAGE, IMAGE), _WINDOW: ((3, 3, 3),), "strides": None},
    ),
    "zero": (_WINDOW, {_WINDOW: (3, 0, 3)}),
    "negative": (_WINDOW, {_WINDOW: (3, -2, 3)}),
    "fractional": (_WINDOW, {_WINDOW: (3, 2.5, 3)}),
    "over the window": ("stride", {"strides": (3, 4, 2)}),
    "over the window, all axes": ("stride", {"strides": 4}),
    "an axis too few for strides": ("stride", {"strides": (2, 2)}),
    "a list of strides": ("stride", {"strides": [3, 2, 2]}),
    "a fractional stride": ("stride", {"strides": 1.5}),
    "strides of two for one input": ("stride", {"strides": (2, 2), "inputs": (IMAGE,)}),
    "a stride of zero": ("stride", {"strides": (3, 0, 2)}),
    "strides of zero": ("stride", {"strides": 0}),
    "a negative stride": ("stride", {"strides": (3, -1, 2)}),
    "none at a time": (_AT_ONCE, {"perturbations_per_eval": 0}),
    "fewer than none at a time": (_AT_ONCE, {"perturbations_per_eval": -1}),
    "one and a half at a time": (_AT_ONCE, {"perturbations_per_eval": 1.5}),
    "a word at a time": (_AT_ONCE, {"perturbations_per_eval": "two"}),
    "a word": ("baseline", {"baselines": "grey"}),
    "a list of baselines": ("baseline", {"baselines": [0, 0, 0]}),
    "a list of inputs": ("input", {"inputs": [[1.0, 2.0]]}),
    "an array": ("input", {"inputs": IMAGE.numpy()}),
}


class Counted:
    """A forward function that counts how often it runs."""

    def __init__(self) -> None:
        self.network, self.calls = Network().eval(), 0

    def __call__(self, *inputs: Tensor) -> Tensor:
        self.calls += 1
        result: Tensor = self.network(sum(inputs))
        return result


def captums_error(forward: Callable[..., Any], arguments: dict[str, Any]) -> type[Exception]:
    """What Captum raises; AssertionError where it raises nothing, or numpy's warning."""
    try:
        Occlusion(forward).attribute(**{"perturbations_per_eval": 1, **arguments})
    except RuntimeWarning:
        return AssertionError
    except Exception as error:  # noqa: BLE001
        return type(error)
    return AssertionError


@pytest.mark.parametrize("what", BAD_SHAPES)
def test_bad_shapes_are_refused_before_the_forward_runs(what: str) -> None:
    """With Captum's type, or an AssertionError that names the argument."""
    argument, changes = BAD_SHAPES[what]
    arguments = {"inputs": IMAGE, **QUESTION, **changes}
    forward = Counted()
    theirs = captums_error(forward, arguments)
    forward.calls = 0
    for method in (KryptonOcclusion(forward).attribute, KryptonOcclusion(forward).heatmap):
        with pytest.raises((theirs, AssertionError)) as ours:
            method(**arguments)
        if theirs is not AssertionError and not ours.errisinstance(theirs):
            assert argument in str(ours.value)
    assert forward.calls == 0


BAD_VALUES: dict[str, dict[str, Any]] = {
    "target beyond the classes": {"target": 4},
    "target before the classes": {"target": -5},
    "target with an axis too many": {"target": (1, 2)},
    "targets too few": {"target": [1]},
    "targets too many": {"target": torch.tensor([1, 2, 3])},
    "target of a word": {"target": "cat"},
    "target of a fraction": {"target": 1.5},
    "targets of words": {"target": ["cat", "dog"]},
    "list with a target beyond": {"target": [0, 4]},
    "tensor with a target beyond": {"target": torch.tensor([0, 4])},
    "tuples with a target beyond": {"target": [(0,), (4,)]},
    "matrix of targets": {"target": torch.zeros(2, 2, dtype=torch.long)},
    "baseline with other channels": {"baselines": torch.zeros(1, 4, 8, 9)},
    "baseline of another size": {"baselines": torch.zeros(2, 3, 7, 9)},
    "baseline of another batch": {"baselines": torch.zeros(3, 3, 8, 9)},
}


@pytest.mark.filterwarnings("ignore::captum_krypton.KryptonFallbackWarning")
@pytest.mark.parametrize("what", BAD_VALUES)
def test_bad_values_raise_as_captum_does(what: str) -> None:
    """With Captum's type, or an AssertionError that names the argument."""
    arguments = {"inputs": IMAGE, **QUESTION, **BAD_VALUES[what]}
    forward = Counted()
    theirs = captums_error(forward, arguments)
    (argument,) = BAD_VALUES[what]
    for method in (KryptonOcclusion(forward).attribute, KryptonOcclusion(forward).heatmap):
        with pytest.raises((theirs, AssertionError)) as ours:
            method(**arguments)
        if theirs is not AssertionError and not ours.errisinstance(theirs):
            assert argument in str(ours.value)


def test_a_target_for_one_number_an_example_is_refused(network: Network, images: Tensor) -> None:
    with pytest.raises(AssertionError):
        KryptonOcclusion(lambda x: network(x)[:, 0]).attribute(images, **QUESTION)


@pytest.mark.parametrize(
    "shape",
    [(), (1,), (9,), (8, 9), (3, 1, 1), (1, 3, 1, 1), (1, 1, 8, 9), (2, 1, 1, 1), (2, 3, 8, 1)],
)
def test_baselines_may_be_anything_that_broadcasts(shape: tuple[int, ...]) -> None:
    network = Network().eval()
    baselines = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    assert_as_captum(network, IMAGE, baselines=baselines, target=[1, 2], **WINDOWS)


@pytest.mark.filterwarnings("ignore::captum_krypton.KryptonFallbackWarning")
def test_a_batch_of_nothing(network: Network) -> None:
    empty = torch.zeros(0, 3, 8, 9)
    actual = KryptonOcclusion(network).attribute(empty, **QUESTION)
    assert_same(actual, Occlusion(network).attribute(empty, **QUESTION))
    assert actual.shape == empty.shape


# Memory formats


@pytest.mark.parametrize("model_too", [False, True])
def test_channels_last(network: Network, images: Tensor, model_too: bool) -> None:
    expected = Occlusion(network).attribute(images, **QUESTION)
    if model_too:
        network = network.to(memory_format=torch.channels_last)
    actual = KryptonOcclusion(network).attribute(
        images.to(memory_format=torch.channels_last), **QUESTION
    )
    assert_same(actual, expected)


STRIDED: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "sliced": lambda x: torch.cat([x, x], 3)[..., ::2],
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
    "one row for all": lambda x: x[:, :, :1].expand(-1, -1, 11, -1),
    "offset": lambda x: torch.cat([x, x])[1:3],
}


@pytest.mark.parametrize("kind", STRIDED)
def test_inputs_that_are_not_contiguous(network: Network, images: Tensor, kind: str) -> None:
    assert_as_captum(network, STRIDED[kind](images), **QUESTION)
