"""What is measured: the least of many repetitions, however the clock is disturbed."""

from __future__ import annotations

import math
import random
from dataclasses import asdict, fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from machine import TRUE, WORK, Lie, Machine

from captum_krypton._kernels import panel_size
from captum_krypton._kernels.measure import Gauge, Sample, gauge_of_cpu, gauge_of_gpu
from captum_krypton._kernels.rates import GUESSED, GUESSED_OF_GPUS, Rates

CPU = torch.device("cpu")
compiled = pytest.mark.skipif(panel_size() == 0, reason="needs the compiled kernels")


def assert_close(found: Rates, expected: Rates, within: float = 1.12) -> None:
    for name, rate in asdict(expected).items():
        assert 1 / within < getattr(found, name) / rate < within, name


def test_rates_of_a_quiet_machine() -> None:
    """The call of a kernel is not subtracted, and hardly matters."""
    assert_close(Machine().gauge().run(), TRUE)


def test_a_quiet_machine_is_measured_in_less_than_a_second() -> None:
    machine = Machine()
    machine.gauge().run()
    assert machine.now < 0.7


@given(st.integers(0, 2**32), st.floats(0, 0.5), st.floats(1, 1000))
def test_spikes_do_not_matter(seed: int, share: float, spike: float) -> None:
    """Half of all calls may be disturbed, however much."""
    drawn = random.Random(seed)
    found = Machine(lambda name, number: spike if drawn.random() < share else 1.0).gauge().run()
    assert (found.call, found.kernel) == pytest.approx((TRUE.call, TRUE.kernel))


@given(st.integers(1, 8), st.floats(1, 3))
def test_one_quiet_repetition_is_enough(quiet: int, spike: float) -> None:
    lie: Lie = lambda name, number: 1.0 if number == quiet else spike  # noqa: E731
    assert_close(Machine(lie).gauge().run(), TRUE)


@given(st.sampled_from(sorted(WORK)), st.floats(1, 1000))
def test_one_kind_does_not_spoil_the_others(kind: str, factor: float) -> None:
    """But for Winograd's two rates, which are one algorithm's."""
    found = Machine(lambda name, number: factor if name == kind else 1.0).gauge().run()
    spoiled = {"wide": ("product", "transform"), "narrow": ("product", "transform")}
    kept = {n: v for n, v in asdict(found).items() if n not in spoiled.get(kind, (kind,))}
    assert_close(replace(TRUE, **kept), TRUE)
    assert all(0 < v < math.inf for v in asdict(found).values())


@given(st.floats(1, 1.5), st.floats(1, 1.5))
def test_winograds_rates_stay_together(wide: float, narrow: float) -> None:
    """What its convolutions take is right within what the clock is wrong by, and little more."""
    factors = {"wide": wide, "narrow": narrow}
    found = Machine(lambda name, number: factors.get(name, 1.0)).gauge().run()
    assert 1 / 5 < (found.transform / found.product) / (GUESSED.transform / GUESSED.product) < 5
    for channels in (32, 64, 256, 512):
        took, takes = (
            channels * channels * rates.product + 2 * channels * rates.transform
            for rates in (found, TRUE)
        )
        assert 1 / 1.2 < took / takes < 1.9


def test_a_clock_that_is_set_back() -> None:
    def backwards(name: str, number: int) -> float:
        return -5.0 if number % 3 == 1 else 1.0

    assert_close(Machine(backwards).gauge().run(), TRUE)
    assert Machine(lambda name, number: -1.0).gauge().run().direct == math.inf


def test_another_run_adds_repetitions() -> None:
    """Rates are the least of all runs of a gauge."""
    lies: list[Lie] = [lambda name, number: 3.0, lambda name, number: 1.0]
    machine = Machine(lambda name, number: lies[0](name, number))
    gauge = machine.gauge()
    assert_close(gauge.run(), replace(TRUE, **{n: 3 * v for n, v in asdict(TRUE).items()}))
    lies.pop(0)
    assert_close(gauge.run(), TRUE)
    machine.lie = lambda name, number: 9.0
    assert_close(gauge.run(), TRUE)


@pytest.mark.parametrize(
    ("seconds", "factor", "rounds"),
    [
        (0.01, 1.0, 4),  # times agree
        (0.01, 0.94, 30),  # each takes less than the one before, so that none agree
        (0.1, 1.0, 4),
        (0.5, 1.0, 2),  # a busy machine
        (9.0, 1.0, 1),
    ],
)
def test_when_a_run_ends(seconds: float, factor: float, rounds: int) -> None:
    calls, now = 0, 0.0

    def count() -> None:
        nonlocal calls, now
        calls, now = calls + 1, now + seconds * factor**calls

    Gauge([Sample(count, {"call": 1.0})], GUESSED, lambda: now).run()
    assert calls == 1 + 2 * rounds


@compiled
def test_what_is_measured_of_a_cpu() -> None:
    """Every rate, from samples whose work is about that of the stand-in's."""
    gauge = gauge_of_cpu()
    assert [sample.work.keys() for sample in gauge.samples] == [w.keys() for w, _ in WORK.values()]
    for sample, (work, _) in zip(gauge.samples, WORK.values(), strict=True):
        assert sample.work == pytest.approx(work, rel=0.1)
    rates = gauge.run()
    assert all(0 < value < 1 for value in asdict(rates).values())
    assert {kind for sample in gauge.samples for kind in sample.work} == set(asdict(rates))


def test_what_is_measured_of_a_gpu() -> None:
    before = torch.random.get_rng_state()
    rates = gauge_of_gpu(CPU, 2, 1).run()  # here its operators run on the CPU
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(0 < getattr(rates, field.name) < 1 for field in fields(Rates))
    for name in ("convolution", "grouped", "linear", "element", "call", "pooling", "kernel"):
        assert getattr(rates, name) != getattr(GUESSED_OF_GPUS, name)
