"""Attributions and heat maps against Captum's, and against a loop that knows neither.

How close is close. Attributions are float32, and of a network in float64 both libraries round a
sum in float64 to it: they may differ by one unit in the last place of an element, and by 1e-9 of
the largest attribution. Where a map is all but zero, that is a difference of outcomes that
rounding alone makes, so 1e-12 of the outcomes' size (and of one, the size of activations) is
allowed on top. In float32 and below, the truth is Captum's result for the same network in
float64; allowed is 1e-4 of the largest attribution, 1e-6 of the outcomes, and four times the
error that Captum itself makes in that precision.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum.attr import Occlusion
from hypothesis import assume, event, given
from hypothesis import strategies as st
from layers import ACTIVATIONS, Code, Draw
from networks import (
    Case,
    baselines,
    cases,
    geometries,
    image_shapes,
    networks,
    noise,
    small_cases,
    window_counts,
)
from statements import CODES
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion
from captum_krypton._kernels.rates import GUESSED
from captum_krypton._run import compiled

# Any other warning is an error (pyproject.toml): a network that cannot be captured fails its test
# with the reason in the traceback.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

AT_ONCE = 32  # windows at a time for Captum, where the question leaves it open


def captum(forward: Callable[..., Any], inputs: Any, at_once: int | None, **arguments: Any) -> Any:
    return Occlusion(forward).attribute(
        inputs, perturbations_per_eval=at_once or AT_ONCE, **arguments
    )


@contextmanager
def krypton(draw: Draw, forward: Callable[..., Any]) -> Iterator[KryptonOcclusion]:
    """An explainer of drawn options, planning as if the network were large, or as it is.

    What an operator's call costs would else leave so small a network few groups of windows, and
    what transforms cost would leave it none that runs by Winograd's algorithm.
    """
    calls_free = replace(GUESSED, call=0.0, kernel=0.0)
    winograd_free = replace(GUESSED, product=1e-15, transform=1e-15)
    rates = draw(st.sampled_from([GUESSED, calls_free, winograd_free]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "rates_of", lambda device: rates)
        yield KryptonOcclusion(
            forward,
            memory_budget=draw(st.sampled_from([None, 10_000, 300_000])),
            self_check=draw(st.booleans()),
        )


def outcome_size(forward: Callable[..., Any], *arguments: Any) -> float:
    with torch.no_grad():
        return 1 + float(forward(*arguments).abs().amax())


def assert_close(actual: Tensor, expected: Tensor, size: float, relative: float = 1e-9) -> None:
    """Within `relative` of the largest element, and of the outcomes' `size` a thousandth of that.

    A unit in the last place of float32 is allowed to float32 elements.
    """
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert actual.device == expected.device
    actual, expected, unit = actual.double(), expected.double(), torch.finfo(expected.dtype).eps
    limit = relative * expected.abs().max() + relative * 1e-3 * size + unit * expected.abs()
    excess = ((actual - expected).abs() / limit).max()
    assert excess <= 1, f"largest difference {(actual - expected).abs().max():.3g}, {excess:.3g} x"


def check(case: Case, explainer: KryptonOcclusion) -> None:
    """Attributions in float64 equal Captum's, and not because Captum made them."""
    arguments, at_once = case.arguments(), case.perturbations_per_eval
    actual = explainer.attribute(case.inputs, perturbations_per_eval=at_once, **arguments)
    expected = captum(case.network, case.inputs, at_once, **arguments)
    assert_close(actual, expected, outcome_size(case.network, case.inputs))


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


def check_precision(
    draw: Draw, case: Case, dtype: torch.dtype, relative: float, of_outcome: float
) -> None:
    network = copy.deepcopy(case.network).to(dtype)
    inputs, arguments = case.inputs.to(dtype), case.arguments(dtype)
    at_once = case.perturbations_per_eval
    # Rounded to `dtype` first, so that all three answer one question.
    exact_network = copy.deepcopy(network).double()
    exact_arguments = {
        k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in arguments.items()
    }
    truth = captum(exact_network, inputs.double(), at_once, **exact_arguments).double()
    try:
        theirs = captum(network, inputs, at_once, **arguments)
    except (RuntimeError, NotImplementedError):
        if dtype == torch.float32:
            raise
        assume(False)  # torch has not every operator in half precision
    assume(bool(theirs.isfinite().all()))
    with krypton(draw, network) as explainer:
        ours = explainer.attribute(inputs, perturbations_per_eval=at_once, **arguments)
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    size = outcome_size(exact_network, inputs.double())
    limit = 4 * (theirs.double() - truth).abs().max()
    limit = limit + relative * truth.abs().max() + of_outcome * size
    error = (ours.double() - truth).abs().max()
    assert error <= limit, f"error {error:.3g}, allowed {limit:.3g}"


def naive_scores(case: Case) -> Tensor:
    """Outcomes (N, outputs..., grid...) by the definition: occlude, ask, write down."""
    x, window = case.inputs, case.sliding_window_shapes
    counts = window_counts(tuple(x.shape[1:]), window, case.strides)
    strides = (
        case.strides if isinstance(case.strides, tuple) else (case.strides or 1,) * len(counts)
    )
    baseline = torch.as_tensor(0 if case.baselines is None else case.baselines, dtype=x.dtype)
    outcomes = []
    for position in itertools.product(*map(range, counts)):
        starts = [p * s for p, s in zip(position, strides, strict=True)]
        spans = (slice(a, a + w) for a, w in zip(starts, window, strict=True))
        inside = (slice(None), *spans)
        occluded = x.clone()
        occluded[inside] = baseline.expand_as(x)[inside]
        with torch.no_grad():
            outcomes.append(select(case.network(occluded), case.target))
    scores = torch.stack(outcomes, -1).unflatten(-1, counts)
    return scores.squeeze(-len(counts)) if window[0] == x.shape[1] else scores


def select(outcome: Tensor, target: Any) -> Tensor:
    """The outcomes that a target names, row by row."""
    if target is None:
        return outcome
    if isinstance(target, Tensor):
        target = target.tolist()
        target = target[0] if isinstance(target, list) and len(target) == 1 else target
    each = target if isinstance(target, list) else [target] * len(outcome)
    indices = [t if isinstance(t, tuple) else (t,) for t in each]
    return torch.stack([row[i] for row, i in zip(outcome, indices, strict=True)])


@pytest.mark.parametrize("rank", [1, 2, 3])
@given(data=st.data())
def test_heat_maps_are_the_outcomes_of_occluded_inputs(rank: int, data: st.DataObject) -> None:
    check_heat_map(data.draw, data.draw(cases(rank)))


def check_heat_map(draw: Draw, case: Case) -> None:
    arguments, at_once = case.arguments(), case.perturbations_per_eval
    with krypton(draw, case.network) as explainer:
        heat_map = explainer.heatmap(case.inputs, perturbations_per_eval=at_once, **arguments)
    expected = naive_scores(case)
    size = outcome_size(case.network, case.inputs)
    assert heat_map.scores.shape == expected.shape
    assert (heat_map.scores.double() - expected).abs().max() <= 1e-9 * size
    with torch.no_grad():
        reference = select(case.network(case.inputs), case.target)
    assert heat_map.reference.shape == reference.shape
    assert (heat_map.reference.double() - reference).abs().max() <= 1e-12 * size
    event(f"path {heat_map.report.path}, {heat_map.report.groups} groups")
    assert heat_map.report.path in ("incremental", "full"), heat_map.report.reasons
    assert heat_map.report.windows == expected[(0,) * reference.dim()].numel()
    attributions = captum(case.network, case.inputs, None, **arguments)
    assert_close(heat_map.attribution(), attributions, size)


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
