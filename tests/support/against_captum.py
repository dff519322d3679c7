"""Attributions and heat maps beside Captum's, and beside a loop that knows neither library.

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
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import pytest
import torch
from captum.attr import Occlusion
from hypothesis import assume, event
from hypothesis import strategies as st
from layers import Draw
from networks import Case, window_counts
from torch import Tensor

from captum_krypton import KryptonOcclusion
from captum_krypton._kernels.rates import GUESSED
from captum_krypton._run import captured_model

Explainer = TypeVar("Explainer")

AT_ONCE = 32  # windows at a time for Captum, where the question leaves it open


def captum(forward: Callable[..., Any], inputs: Any, at_once: int | None, **arguments: Any) -> Any:
    return Occlusion(forward).attribute(
        inputs, perturbations_per_eval=at_once or AT_ONCE, **arguments
    )


def krypton(draw: Draw, forward: Callable[..., Any]) -> AbstractContextManager[KryptonOcclusion]:
    """An explainer of occlusion; see `krypton_like`."""
    return krypton_like(draw, KryptonOcclusion, forward)


@contextmanager
def krypton_like(
    draw: Draw, kind: Callable[..., Explainer], forward: Callable[..., Any]
) -> Iterator[Explainer]:
    """An explainer of drawn options, planning as if the network were large, or as it is.

    What an operator's call costs would else leave so small a network few groups of windows, and
    what transforms cost would leave it none that runs by Winograd's algorithm.
    """
    calls_free = replace(GUESSED, call=0.0, kernel=0.0)
    winograd_free = replace(GUESSED, product=1e-15, transform=1e-15)
    rates = draw(st.sampled_from([GUESSED, calls_free, winograd_free]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captured_model, "rates_of", lambda device: rates)
        yield kind(
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
