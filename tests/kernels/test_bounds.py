"""Which rates are taken for a machine's."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machine import TRUE

from captum_krypton._kernels.bounds import bounds_of_cpu, bounds_of_gpus, least
from captum_krypton._kernels.rates import GUESSED, GUESSED_OF_GPUS, KNOWN, Rates

NAMES = sorted(asdict(TRUE))
# The same processor with what every processor of its kind has, where the kernels are told so.
PORTABLE = replace(TRUE, direct=4e-11, product=4e-11, transform=5e-10, depthwise=7e-11)


def scaled(rates: Rates, factor: float) -> Rates:
    return Rates(**{name: rate * factor for name, rate in asdict(rates).items()})


@pytest.mark.parametrize("rates", [TRUE, PORTABLE, GUESSED, *KNOWN.values()])
def test_machines_are_within(rates: Rates) -> None:
    bounds = bounds_of_cpu(1)
    assert bounds.doubts(rates) == ()
    assert bounds.doubts(scaled(rates, 20)) == ()  # a small machine's
    fast = replace(scaled(rates, 1 / 16), call=rates.call, kernel=rates.kernel)
    assert bounds_of_cpu(64).doubts(fast) == ()
    for known, of_known in KNOWN.items():
        near = bounds_of_cpu(known.threads).near(of_known, str(known))
        assert near.doubts(of_known) == near.doubts(scaled(of_known, 1.5)) == ()


def test_gpus_are_within() -> None:
    assert bounds_of_gpus().doubts(GUESSED_OF_GPUS) == ()
    small = {
        n: r if n in ("call", "kernel") else r * 100 for n, r in asdict(GUESSED_OF_GPUS).items()
    }
    assert bounds_of_gpus().doubts(Rates(**small)) == ()
    (doubt,) = bounds_of_gpus().doubts(replace(GUESSED_OF_GPUS, kernel=7.8e-3))
    assert doubt.startswith("kernel takes 7.8e+02 times as long as call")


@given(st.sampled_from(NAMES), st.floats(600, 1e6))
def test_one_rate_that_is_far_off(name: str, factor: float) -> None:
    """A rate 600 times too large or too small cannot be, whatever the processor."""
    bounds = bounds_of_cpu(1)
    for wrong in (getattr(TRUE, name) * factor, getattr(TRUE, name) / factor):
        assert any(name in doubt for doubt in bounds.doubts(replace(TRUE, **{name: wrong})))


@given(st.sampled_from(NAMES), st.floats(2.05, 1e6))
def test_a_known_processor_is_known_better(name: str, factor: float) -> None:
    bounds = bounds_of_cpu(1).near(TRUE, "this one")
    for wrong in (getattr(TRUE, name) * factor, getattr(TRUE, name) / factor):
        assert any(name in doubt for doubt in bounds.doubts(replace(TRUE, **{name: wrong})))
    assert "on this one" in bounds.doubts(replace(TRUE, **{name: getattr(TRUE, name) * 3}))[0]


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_rate(name: str, wrong: float) -> None:
    for bounds in (bounds_of_cpu(1), bounds_of_gpus()):
        assert any(name in doubt for doubt in bounds.doubts(replace(TRUE, **{name: wrong})))


def test_the_least_of_measurements() -> None:
    slow = replace(scaled(TRUE, 3), call=1e-6, product=8e-12, transform=1e-9)
    assert least([TRUE]) == TRUE
    assert least([slow, TRUE]) == replace(TRUE, call=1e-6)  # one pair, not the best of two
