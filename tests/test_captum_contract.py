"""What a user of Captum's Occlusion relies on, besides the numbers."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import NoiseTunnel, Occlusion
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn.utils import parametrizations

from captum_krypton import KryptonFallbackWarning, KryptonOcclusion

WINDOWS: dict[str, Any] = {"sliding_window_shapes": (3, 3, 3), "strides": (3, 2, 2)}
QUESTION: dict[str, Any] = {**WINDOWS, "baselines": 0.25, "target": 1}


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


@pytest.fixture
def network() -> Network:
    return Network().eval()


@pytest.fixture
def images() -> Tensor:
    """Two images that the network takes for different classes."""
    images = torch.randn(2, 3, 11, 9, generator=torch.Generator().manual_seed(1))
    return images * torch.tensor([1.0, 8.0]).view(2, 1, 1, 1)


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
    assert list(inspect.signature(KryptonOcclusion.heatmap).parameters) == list(theirs)
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


# Forward functions that no graph can say


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


def test_windows_do_not_cost_a_forward_each(network: Network, images: Tensor) -> None:
    calls = []
    network.register_forward_pre_hook(lambda module, arguments: calls.append(len(arguments[0])))
    explainer = KryptonOcclusion(network)
    explainer.attribute(images, (3, 2, 2), target=1)
    first = len(calls)
    explainer.attribute(images, (3, 2, 2), target=1)
    assert first <= 20 < math.prod((10, 8))
    assert len(calls) - first <= first


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

IMAGE = torch.randn(2, 3, 8, 9, generator=torch.Generator().manual_seed(2))
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


# Models that change between calls


def _optimise(network: Network) -> None:
    network(IMAGE).square().sum().backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()


def _load(network: Network) -> None:
    network.load_state_dict({k: v * 2 for k, v in network.state_dict().items()})


def _load_and_assign(network: Network) -> None:
    network.load_state_dict({k: v * 2 for k, v in network.state_dict().items()}, assign=True)


def _swap_filters(network: Network) -> None:
    network.conv.weight.data[[0, 1]] = network.conv.weight.data[[1, 0]]


def _move_weight(network: Network) -> None:
    """The sum of the weights stays, so does the sum of their sizes."""
    flat = network.deep.weight.data.view(-1)
    flat[3], flat[40] = flat[40].item(), flat[3].item()


def _in_place(network: Network) -> None:
    with torch.no_grad():
        network.deep.weight.mul_(-1)


def _write_numpy(network: Network) -> None:
    network.deep.weight.detach().numpy()[0, 0] += 0.5


def _replace_data(network: Network) -> None:
    network.head.weight.data = network.head.weight.data.flip(1).contiguous()


def _replace_layer(network: Network) -> None:
    network.deep = nn.Conv2d(5, 6, 3, stride=1).eval()


def _replace_forward(network: Network) -> None:
    network.forward = lambda x: Network.forward(network, x.flip(-1))  # type: ignore[method-assign]


def _reset_statistics(network: Network) -> None:
    network.norm.running_mean.add_(1)


CHANGES: dict[str, Callable[[Network], Any]] = {
    "optimiser step": _optimise,
    "load_state_dict": _load,
    "load_state_dict, assigned": _load_and_assign,
    "filters swapped through .data": _swap_filters,
    "two weights swapped through .data": _move_weight,
    "in place": _in_place,
    "written by numpy": _write_numpy,
    ".data replaced": _replace_data,
    "one small weight": lambda network: network.deep.weight.data[0, 0, 0, 0].add_(0.05),
    "running mean": _reset_statistics,
    "epsilon": lambda network: setattr(network.norm, "eps", 2.0),
    "stride of a layer": lambda network: setattr(network.deep, "stride", (1, 1)),
    "layer replaced": _replace_layer,
    "python attribute": lambda network: setattr(network, "scale", -3.0),
    "forward replaced": _replace_forward,
    "new parameter": lambda network: setattr(network.head, "bias", nn.Parameter(torch.ones(4) * 2)),
    "forward hook": lambda network: network.deep.register_forward_hook(
        lambda module, inputs, output: output * 2
    ),
    "forward pre-hook": lambda network: network.deep.register_forward_pre_hook(
        lambda module, inputs: (inputs[0].flip(-1) * 3,)
    ),
    "weight norm": lambda network: parametrizations.weight_norm(network.deep).weight,
    "moved to bfloat16 and back": lambda network: network.bfloat16().float(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("held", ["module", "lambda"])
def test_changes_to_the_model_are_noticed(
    network: Network, images: Tensor, change: str, held: str
) -> None:
    forward: Callable[[Tensor], Tensor] = network if held == "module" else lambda x: network(x)
    # A class that no parameter but every weight matters to.
    question = {**QUESTION, "target": [1, 3]}
    explainer = KryptonOcclusion(forward)
    before = explainer.attribute(images, **question)
    assert_same(explainer.attribute(images, **question), before)
    CHANGES[change](network)
    expected = Occlusion(forward).attribute(images, **question)
    if change not in ("weight norm", "moved to bfloat16 and back", "new parameter"):
        assert not torch.allclose(before, expected, rtol=1e-3, atol=1e-4)
    assert_same(explainer.attribute(images, **question), expected)
    assert_same(explainer.heatmap(images, **question).attribution(), expected)


def test_a_weight_norm_that_changes_is_noticed(network: Network, images: Tensor) -> None:
    parametrizations.weight_norm(network.deep)
    explainer = KryptonOcclusion(network)
    explainer.attribute(images, **QUESTION)
    network.deep.parametrizations.weight.original0.data.mul_(3)
    expected = Occlusion(network).attribute(images, **QUESTION)
    assert_same(explainer.attribute(images, **QUESTION), expected)


def test_a_change_of_dtype_is_noticed(network: Network, images: Tensor) -> None:
    explainer = KryptonOcclusion(network)
    explainer.attribute(images, **QUESTION)
    network.double()
    expected = Occlusion(network).attribute(images.double(), **QUESTION)
    actual = explainer.attribute(images.double(), **QUESTION)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)


def test_training_mode_is_noticed(network: Network, images: Tensor) -> None:
    explainer = KryptonOcclusion(network)
    explainer.attribute(images, **QUESTION)
    network.drop.train()
    torch.manual_seed(6)
    with pytest.warns(KryptonFallbackWarning):
        actual = explainer.attribute(images, perturbations_per_eval=1, **QUESTION)
    torch.manual_seed(6)
    assert_same(actual, Occlusion(network).attribute(images, **QUESTION))
    network.eval()
    assert_same(
        explainer.attribute(images, **QUESTION), Occlusion(network).attribute(images, **QUESTION)
    )


def test_training_mode_that_changes_nothing_is_no_reason_to_fall_back(images: Tensor) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    network(images)
    assert network.training
    heat_map = KryptonOcclusion(network).heatmap(images, **QUESTION)
    assert heat_map.report.path != "captum"
    assert network.training


GLOBAL_SCALE = [1.0]
GLOBAL_WEIGHT = torch.ones(4)


def _with_globals(x: Tensor) -> Tensor:
    return x.mean((2, 3)).repeat(1, 2)[:, :4].exp() * GLOBAL_SCALE[0] * GLOBAL_WEIGHT


def test_changes_outside_of_any_module_are_noticed(images: Tensor) -> None:
    explainer = KryptonOcclusion(_with_globals)
    explainer.attribute(images, **QUESTION)
    try:
        GLOBAL_WEIGHT.mul_(2)
        expected = Occlusion(_with_globals).attribute(images, **QUESTION)
        assert_same(explainer.attribute(images, **QUESTION), expected)
        GLOBAL_SCALE[0] = -2.0
        expected = Occlusion(_with_globals).attribute(images, **QUESTION)
        assert_same(explainer.attribute(images, **QUESTION), expected)
    finally:
        GLOBAL_SCALE[0] = 1.0
        GLOBAL_WEIGHT.fill_(1)


def test_a_change_that_this_input_does_not_show_is_noticed(images: Tensor) -> None:
    """The untouched outcome stays the same, the occluded ones do not."""

    class Ratio(nn.Module):
        power = 1.0

        def forward(self, x: Tensor) -> Tensor:
            deviation = x.mean((1, 2, 3)) / centre
            return torch.stack([deviation.abs() ** self.power] * 2, 1)

    centre = images.mean((1, 2, 3))
    network, images = Ratio(), images[:1]
    centre = centre[0]
    explainer = KryptonOcclusion(network)
    explainer.attribute(images, **QUESTION)
    network.power = 3.0
    expected = Occlusion(network).attribute(images, **QUESTION)
    assert_same(explainer.attribute(images, **QUESTION), expected)


def test_another_argument_value_is_noticed(network: Network, images: Tensor) -> None:
    def forward(x: Tensor, scale: float, how: str) -> Tensor:
        return getattr(network(x) * scale, how)()

    explainer = KryptonOcclusion(forward)
    for extra in [(1.0, "tanh"), (2.0, "tanh"), (2.0, "sigmoid"), (torch.tensor(0.5), "relu")]:
        expected = Occlusion(forward).attribute(images, additional_forward_args=extra, **QUESTION)
        actual = explainer.attribute(images, additional_forward_args=extra, **QUESTION)
        assert_same(actual, expected)


def test_one_explainer_for_inputs_of_many_kinds(network: Network, images: Tensor) -> None:
    explainer = KryptonOcclusion(network)
    for x in [
        images,
        images[:1],
        images.repeat(2, 1, 1, 1),
        torch.randn(1, 3, 20, 7),
        images * 3,
        torch.randn(3, 3, 11, 9),
        images,
    ]:
        for target in (0, [3] * len(x)):
            question = {**QUESTION, "target": target}
            expected = Occlusion(network).attribute(x, **question)
            assert_same(explainer.attribute(x, **question), expected)


# Hooks


def test_hooks_are_honoured_and_keep_no_fake_tensor(network: Network, images: Tensor) -> None:
    kept: list[Any] = []

    def double(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        kept.extend([*inputs, output])
        return output * 2

    def shift(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        kept.extend(inputs)
        return (inputs[0] + 0.5,)

    network.deep.register_forward_hook(double)
    network.norm.register_forward_pre_hook(shift)
    network.register_forward_hook(lambda module, inputs, output: kept.append(output))
    assert_as_captum(network, images, **QUESTION)
    assert kept
    for tensor in kept:
        assert not isinstance(tensor, FakeTensor)
        assert type(tensor) is Tensor
        assert tensor.device.type == "cpu"
        tensor.sum().item()


def test_a_hook_that_is_removed_is_noticed(network: Network, images: Tensor) -> None:
    hook = network.deep.register_forward_hook(lambda module, inputs, output: output * 2)
    explainer = KryptonOcclusion(network)
    explainer.attribute(images, **QUESTION)
    hook.remove()
    expected = Occlusion(network).attribute(images, **QUESTION)
    assert_same(explainer.attribute(images, **QUESTION), expected)


def test_a_hook_on_all_modules_is_noticed(network: Network, images: Tensor) -> None:
    explainer = KryptonOcclusion(network)
    explainer.attribute(images, **QUESTION)
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: output * 2 if isinstance(module, nn.Conv2d) else None
    )
    try:
        expected = Occlusion(network).attribute(images, **QUESTION)
        assert_same(explainer.attribute(images, **QUESTION), expected)
    finally:
        hook.remove()


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


# Memory formats and wrappers


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
