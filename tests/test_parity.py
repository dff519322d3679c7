"""Attributions and heat maps against Captum's, and against a loop that knows neither."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from against_captum import (
    assert_close,
    captum,
    check,
    check_heat_map,
    check_precision,
    krypton,
    outcome_size,
)
from hypothesis import event, given
from hypothesis import strategies as st
from layers import ACTIVATIONS, Code
from networks import (
    Case,
    baselines,
    cases,
    geometries,
    image_shapes,
    networks,
    noise,
    small_cases,
)
from statements import CODES
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion

# Any other warning is an error (pyproject.toml): a network that cannot be captured fails its test
# with the reason in the traceback.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


@pytest.mark.parametrize("rank", [1, 2, 3])
@given(data=st.data())
def test_attributions_in_float64(rank: int, data: st.DataObject) -> None:
    case = data.draw(cases(rank))
    with krypton(data.draw, case.network) as explainer:
        check(case, explainer)


@pytest.mark.parametrize("rank", [1, 2, 3])
@given(data=st.data())
def test_every_output_of_small_networks(rank: int, data: st.DataObject) -> None:
    check_heat_map(data.draw, data.draw(small_cases(rank)))


@pytest.mark.parametrize("rank", [1, 2, 3])
@given(data=st.data())
def test_attributions_in_float32(rank: int, data: st.DataObject) -> None:
    case = data.draw(cases(rank))
    check_precision(data.draw, case, torch.float32, relative=1e-4, of_outcome=1e-6)


@pytest.mark.filterwarnings("ignore::captum_krypton.KryptonFallbackWarning")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@given(data=st.data())
def test_attributions_in_half_precision(dtype: torch.dtype, data: st.DataObject) -> None:
    case = data.draw(cases(data.draw(st.sampled_from([1, 2]))))
    check_precision(data.draw, case, dtype, relative=0.05, of_outcome=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("rank", [1, 2, 3])
@given(data=st.data())
def test_heat_maps_are_the_outcomes_of_occluded_inputs(rank: int, data: st.DataObject) -> None:
    check_heat_map(data.draw, data.draw(cases(rank)))


@pytest.mark.parametrize("code", CODES)
def test_every_line_of_code(code: str) -> None:
    check_layer(Code(code))


@pytest.mark.parametrize("make", ACTIVATIONS, ids=lambda make: repr(make(2)))
def test_every_activation(make: Callable[[int], nn.Module]) -> None:
    check_layer(make(2))


def check_layer(layer: nn.Module) -> None:
    """A layer between two convolutions, the second after padding so that the layer's size fits."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 2, 3, padding=1), layer, nn.AdaptiveMaxPool2d((7, 6)), nn.Flatten(1)
    )
    x = torch.randn(2, 3, 12, 9, dtype=torch.float64)
    network.append(nn.LazyLinear(3)).double().eval()(x)
    for window, strides in [
        ((3, 3, 3), (1, 2, 2)),
        ((2, 12, 2), (1, 20, 1)),
        ((3, 1, 1), (3, 1, 1)),
    ]:
        case = Case(network, x, window, strides, 0.5, [2, 0], None, (3,))
        check(case, KryptonOcclusion(network))


class Fused(nn.Module):
    """The sum of one network an input, then whatever the additional arguments say."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, *arguments: Any) -> Tensor:
        images, extras = arguments[: len(self.parts)], arguments[len(self.parts) :]
        out: Tensor = sum(part(x) for part, x in zip(self.parts, images, strict=True))
        for extra in extras:
            if isinstance(extra, str):
                out = getattr(out, extra)()
            elif isinstance(extra, Tensor) and extra.dim() == 3:
                out = out @ extra[0]
            else:
                out = out * extra
        return out.softmax(-1)


EXTRAS: dict[str, Callable[[int], Any]] = {
    "none": lambda n: None,
    "number": lambda n: 0.5,
    "0-d tensor": lambda n: torch.tensor(0.5).double(),
    "row an example": lambda n: torch.linspace(-1, 1, 3 * n).double().view(n, 3),
    "several": lambda n: ("tanh", torch.linspace(1, 2, n).double().view(n, 1), 2, "relu"),
    "matrix": lambda n: torch.linspace(-1, 1, 27).double().view(3, 3, 3),
}


@given(data=st.data())
def test_several_inputs_and_additional_arguments(data: st.DataObject) -> None:
    draw = data.draw
    batch = draw(st.integers(1, 2))
    inputs, parts, windows, strides, bases = [], [], [], [], []
    for rank in draw(st.lists(st.sampled_from([0, 1, 2, 2, 3]), min_size=1, max_size=3)):
        shape = draw(image_shapes(rank)) if rank else (draw(st.integers(1, 6)),)
        if rank:
            parts.append(draw(networks(shape, classes=3, most=3)))
        else:
            parts.append(nn.Sequential(nn.Linear(shape[0], 3), nn.Tanh()).double())
        window, stride = draw(geometries(shape))
        inputs.append(noise(draw, (batch, *shape)))
        windows.append(window)
        strides.append(1 if stride is None else stride)
        baseline = draw(baselines(batch, shape))
        bases.append(0 if baseline is None else baseline)
    kind = draw(st.sampled_from(sorted(EXTRAS)))
    model, at_once = Fused(parts).eval(), 1 if kind == "matrix" else draw(st.sampled_from([2, 7]))
    arguments = {
        "sliding_window_shapes": tuple(windows),
        "strides": tuple(strides),
        "baselines": draw(st.sampled_from([tuple(bases), None])),
        "target": draw(st.sampled_from([0, 2, [1] * batch, torch.arange(batch), None])),
        "additional_forward_args": EXTRAS[kind](batch),
    }
    event(f"additional arguments: {kind}")
    at_once_ours = draw(st.sampled_from([None, 1, at_once]))
    with krypton(draw, model) as explainer:
        images = tuple(inputs)
        actual = explainer.attribute(images, perturbations_per_eval=at_once_ours, **arguments)
        maps = explainer.heatmap(images, **arguments)
    expected = captum(model, images, at_once, **arguments)
    assert isinstance(actual, tuple)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(ours, theirs, 2.0)
    assert isinstance(maps, tuple)
    for heat_map, theirs in zip(maps, expected, strict=True):
        assert heat_map.report.path != "captum", heat_map.report.reasons
        assert_close(heat_map.attribution(), theirs, 2.0)


class Reader(nn.Module):
    """Tokens (N, T), integers, to (N, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(32, 4)
        self.conv = nn.Conv1d(4, 5, 3, padding=1)
        self.head = nn.Linear(5, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.relu(self.conv(self.words(tokens).transpose(1, 2)))
        result: Tensor = self.head(x.amax(-1))
        return result


class Encoder(nn.Module):
    """Sequences (N, T, 4), channels last, to (N, 2): attention over time, then the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.block(x).mean(1))
        return result


def without_channels() -> nn.Module:
    """Images (N, H, W) to (N, 2)."""
    return nn.Sequential(
        nn.Unflatten(1, (1, -1)),
        nn.Conv2d(1, 3, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 2),
    )


def channels_last() -> nn.Module:
    """Images (N, H, W, 3) to (N, 2)."""
    return nn.Sequential(
        Code("x = x.permute(0, 3, 1, 2)"),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(4, 4, 2, 2),
        nn.Flatten(),
        nn.LazyLinear(2),
    )


def grey_and_casts() -> nn.Module:
    """Bytes (N, 3, H, W) to (N, 2), normalised inside."""
    return nn.Sequential(
        Code("x = (x.to(torch.float64) / 255 - 0.45) / 0.22"),
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        Code("x = x.mean((2, 3))"),
        nn.Linear(4, 2),
    )


LAYOUTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], torch.dtype]] = {
    "tokens": (Reader, (9,), torch.int64),
    "bytes": (grey_and_casts, (3, 8, 7), torch.uint8),
    "table": (lambda: nn.Sequential(nn.Linear(7, 4), nn.Tanh(), nn.Linear(4, 2)), (7,), None),
    "sequence": (Encoder, (6, 4), None),
    "no channels": (without_channels, (9, 8), None),
    "channels last": (channels_last, (8, 10, 3), None),
    "four axes": (
        lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(2, 2, 3), nn.Flatten(), nn.LazyLinear(2)),
        (2, 3, 2, 4, 3),
        None,
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
def test_inputs_that_are_not_images(layout: str, data: st.DataObject) -> None:
    make, shape, dtype = LAYOUTS[layout]
    torch.manual_seed(1)
    model = make().double().eval()
    draw = data.draw
    batch = draw(st.integers(1, 3))
    inputs = noise(draw, (batch, *shape))
    base: Any = draw(baselines(batch, shape))
    if dtype is not None:
        inputs = (inputs.abs() * 4).to(dtype)
        base = draw(st.sampled_from([None, 0, 3, (noise(draw, (1, *shape)).abs() * 4).to(dtype)]))
    with torch.no_grad():
        model(inputs)
    window, strides = draw(geometries(shape))
    case = Case(model, inputs, window, strides, base, draw(st.sampled_from([0, None])), None, (2,))
    arguments = {**case.arguments(inputs.dtype), "target": case.target}
    with krypton(draw, model) as explainer:
        actual = explainer.attribute(inputs, **arguments)
    assert_close(actual, captum(model, inputs, None, **arguments), outcome_size(model, inputs))


@pytest.mark.filterwarnings("ignore::captum_krypton.KryptonFallbackWarning")
def test_one_number_an_example() -> None:
    """Inputs (N,) have an empty window, and its occlusion is the whole example."""

    def forward(x: Tensor) -> Tensor:
        return torch.stack([x * 2, x.exp()], 1)

    x = torch.linspace(-1, 1, 4).double()
    arguments = {"sliding_window_shapes": ((),), "target": 1, "baselines": 0.5}
    actual = KryptonOcclusion(forward).attribute(x, **arguments)
    assert_close(actual, captum(forward, x, 1, **arguments), 4.0)


class Owner:
    """Holds a network and gives it away in the ways that people do."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def method(self, x: Tensor) -> Tensor:
        return self.network(x) * 2

    def __call__(self, x: Tensor) -> Tensor:
        return self.network(x) + 1

    def closure(self) -> Callable[[Tensor], Tensor]:
        network, scale = self.network, 0.5

        def forward(x: Tensor) -> Tensor:
            return network(x) * scale

        return forward


def scaled(network: nn.Module, x: Tensor, scale: float = 1.0) -> Tensor:
    return network(x) * scale


FORWARDS: dict[str, Callable[[nn.Module], Callable[..., Tensor]]] = {
    "module": lambda network: network,
    "lambda": lambda network: lambda x: network(x).softmax(-1),
    "closure": lambda network: Owner(network).closure(),
    "bound method": lambda network: Owner(network).method,
    "bound forward": lambda network: network.forward,
    "callable object": lambda network: Owner(network),
    "partial": lambda network: functools.partial(scaled, network, scale=-1.5),
    "partial of a method": lambda network: functools.partial(Owner(network).method),
    "wrapped": lambda network: functools.wraps(scaled)(lambda x: network(x)),
    "one number": lambda network: lambda x: network(x)[:, 0],
}


@pytest.mark.parametrize("kind", FORWARDS)
def test_forward_functions_of_every_kind(kind: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(2)
    ).double()
    x = torch.randn(2, 2, 8, 10, dtype=torch.float64)
    network.eval()(x)
    forward = FORWARDS[kind](network)
    arguments = {
        "sliding_window_shapes": (2, 3, 3),
        "strides": (2, 2, 1),
        "target": None if kind == "one number" else 1,
    }
    explainer = KryptonOcclusion(forward)
    actual = explainer.attribute(x, **arguments)
    if kind == "wrapped":  # its signature lies, which only Captum minds
        forward = network
    assert_close(actual, captum(forward, x, None, **arguments), outcome_size(forward, x))
    assert explainer.heatmap(x, **arguments).report.path != "captum"
