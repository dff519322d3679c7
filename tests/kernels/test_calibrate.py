"""Whether rates can be trusted: what a clock that lies does to them, and for how long."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from machine import TRUE, WORK, Lie, Machine, honest
from torch import Tensor, nn

from captum_krypton import Budget, KryptonOcclusion, _engine
from captum_krypton._kernels import backend_info, calibrate, panel_size
from captum_krypton._kernels.bounds import Bounds, bounds_of_cpu
from captum_krypton._kernels.calibrate import Calibration, Guess, calibration_of, rates_of
from captum_krypton._kernels.measure import Gauge
from captum_krypton._kernels.rates import GUESSED, GUESSED_OF_GPUS, Rates

CPU = torch.device("cpu")
ANY = bounds_of_cpu(1)
KNOWN = ANY.near(TRUE, "a known one")
WINDOWS = {"sliding_window_shapes": (3, 8, 8), "strides": (3, 8, 8), "target": 1}
compiled = pytest.mark.skipif(panel_size() == 0, reason="needs the compiled kernels")

# Measured while another process kept one of two cores busy: every call waited for a time slice.
# What its call had been subtracted from was free, as far as anyone could tell.
BUSY = replace(
    TRUE, kernel=7.8e-3, pooling=1e-13, depthwise=1e-13, direct=1.4e-14, transform=2.5e-13
)


def calibrated(
    folder: Path, machine: Machine, bounds: Bounds = ANY, patience: float = 5.0
) -> Calibration:
    """What another process of the machine would begin with."""
    guess = Guess(GUESSED, "guessed") if bounds is ANY else Guess(TRUE, "those of a known one")
    return Calibration(
        folder / "rates-1.json",
        guess,
        bounds,
        machine.gauge,
        patience=patience,
        now=lambda: datetime(2026, 1, 2, 3, machine.gauges),
    )


def assert_close(found: Rates, expected: Rates) -> None:
    for name, rate in asdict(expected).items():
        assert 1 / 1.12 < getattr(found, name) / rate < 1.12, name


def slow(factor: float, *kinds: str) -> Lie:
    return lambda name, number: factor if name in kinds or not kinds else 1.0


def makes_maps(calibration: Calibration, machine: Machine, count: int, wrong: float = 1.0) -> None:
    """Maps of five seconds, as they are on a quiet machine, times how wrong their plans are."""
    for _ in range(count):
        took = 5.0 * machine.lie("map", 0)
        planned = 5.0 * calibration.rates.direct / TRUE.direct
        calibration.observe(planned / wrong, took)


def test_a_machine_is_measured_once(tmp_path: Path) -> None:
    machine = Machine()
    first = calibrated(tmp_path, machine)
    assert_close(first.rates, TRUE)
    path = tmp_path / "rates-1.json"
    assert first.origin == f"measured on 2026-01-02T03:01, kept in {path}"
    again = calibrated(tmp_path, machine)
    assert again.rates == first.rates == first.rates
    assert again.origin == first.origin
    assert machine.gauges == 1


@given(st.sampled_from(sorted(WORK)), st.floats(600, 1e5))
def test_a_kind_that_is_slow_all_the_time(kind: str, factor: float) -> None:
    """It is noticed, nothing of it is kept, and the next process measures again."""
    with TemporaryDirectory() as folder:
        machine = Machine(slow(factor, kind))
        calibration = calibrated(Path(folder), machine)
        assert calibration.rates is GUESSED
        assert "guessed, not measured: " in calibration.origin
        assert "times as long as" in calibration.origin
        assert not list(Path(folder).glob("rates-*.json"))
        assert machine.gauges == 1
        machine.lie = honest
        assert calibration.rates is GUESSED  # no map waits for it
        assert_close(calibrated(Path(folder), machine).rates, TRUE)
        assert_close(calibration.rates, TRUE)  # another process has measured


@given(st.sampled_from(sorted(WORK)), st.floats(3, 1e5))
def test_a_known_processor_that_is_slow_in_one_kind(kind: str, factor: float) -> None:
    with TemporaryDirectory() as folder:
        calibration = calibrated(Path(folder), Machine(slow(factor, kind)), KNOWN)
        assert calibration.rates is TRUE
        assert "those of a known one, not measured: " in calibration.origin
        assert not list(Path(folder).glob("rates-*.json"))


def test_a_busy_moment(tmp_path: Path) -> None:
    """What is implausible is measured once more before it is given up."""
    machine = Machine()
    machine.lie = lambda name, number: 600.0 if name == "kernel" and machine.now < 0.7 else 1.0
    calibration = calibrated(tmp_path, machine)
    assert_close(calibration.rates, TRUE)
    assert machine.gauges == 1
    assert "kept in" in calibration.origin


def test_a_busy_machine_is_found_out_by_its_maps(tmp_path: Path) -> None:
    """Everything took three times as long: no ratio shows that, but later maps do."""
    machine = Machine(slow(3.0))
    calibration = calibrated(tmp_path, machine)
    assert_close(calibration.rates, Rates(**{n: 3 * v for n, v in asdict(TRUE).items()}))
    makes_maps(calibration, machine, 10)  # still busy, so it is as predicted
    assert machine.gauges == 1
    machine.lie = honest
    makes_maps(calibration, machine, 4)
    assert machine.gauges == 1  # not in the middle of a map
    assert_close(calibration.rates, TRUE)
    assert machine.gauges == 2
    assert "the least of 2 measurements since 2026-01-02T03:01" in calibration.origin
    assert_close(calibrated(tmp_path, machine).rates, TRUE)
    makes_maps(calibration, machine, 1000)
    assert machine.gauges == 2


def test_a_known_processor_that_is_busy(tmp_path: Path) -> None:
    assert calibrated(tmp_path, Machine(slow(3.0)), KNOWN).rates is TRUE
    assert not list(tmp_path.glob("rates-*.json"))


def test_a_quiet_machine_that_becomes_busy(tmp_path: Path) -> None:
    """Plans stay those of the quiet machine, for a while; they are not measured away."""
    machine = Machine()
    calibration = calibrated(tmp_path, machine)
    assert_close(calibration.rates, TRUE)
    machine.lie = slow(3.0)
    makes_maps(calibration, machine, 10)
    assert machine.gauges == 2
    assert_close(calibration.rates, TRUE)
    assert_close(calibrated(tmp_path, machine).rates, TRUE)


def test_a_machine_that_becomes_slower_for_good(tmp_path: Path) -> None:
    """The file's last measurements are all of the slower one in the end."""
    machine = Machine()
    assert_close(calibrated(tmp_path, machine).rates, TRUE)
    machine.lie = slow(3.0)
    for _ in range(3):
        makes_maps(calibrated(tmp_path, machine), machine, 300)
    found = calibrated(tmp_path, machine).rates
    assert_close(found, Rates(**{n: 3 * v for n, v in asdict(TRUE).items()}))


@given(st.one_of(st.floats(0.01, 0.6), st.floats(2.1, 100)))
def test_maps_that_are_mispredicted_for_ever(wrong: float) -> None:
    """Measuring takes ever less of their time, also of later processes'."""
    with TemporaryDirectory() as folder:
        machine = Machine()
        calibration = calibrated(Path(folder), machine)
        makes_maps(calibration, machine, 4, wrong)
        _ = calibration.rates
        assert machine.gauges == 2
        makes_maps(calibration, machine, 5000, wrong)
        assert machine.gauges == 5
        makes_maps(calibrated(Path(folder), machine), machine, 100, wrong)
        assert machine.gauges == 5


@given(st.lists(st.floats(0.67, 1.99)))
def test_maps_that_are_predicted_well_enough(ratios: list[float]) -> None:
    with TemporaryDirectory() as folder:
        calibration = calibrated(Path(folder), Machine())
        assert_close(calibration.rates, TRUE)
        for ratio in ratios:
            calibration.observe(100.0, 100.0 * ratio)
        assert not calibration._due


@pytest.mark.parametrize(
    ("maps", "at_most", "due"),
    [
        ([(9.0, 3.0)] * 4, False, True),
        ([(9.0, 3.0)] * 3, False, False),  # too few
        ([(3.0, 1.0)] * 9, False, False),  # in too short a time
        ([(3.0, 1.0)] * 10, False, True),
        ([(9.0, 3.0)] * 3 + [(3.0, 3.0)] + [(9.0, 3.0)] * 3, False, False),  # not in a row
        ([(9.0, 3.0), (3.0, 9.0)] * 9, False, False),  # not to the same side
        ([(0.019, 0.001)] * 99999, False, False),  # Python's time
        ([(9.0, 3.0)] * 99, True, False),  # the prediction is an upper bound
        ([(3.0, 9.0)] * 4, True, True),
    ],
)
def test_which_maps_have_rates_measured_again(
    tmp_path: Path, maps: list[tuple[float, float]], at_most: bool, due: bool
) -> None:
    machine = Machine()
    calibration = calibrated(tmp_path, machine)
    assert_close(calibration.rates, TRUE)
    for predicted, seconds in maps:
        calibration.observe(predicted, seconds, at_most=at_most)
    _ = calibration.rates
    assert machine.gauges == 1 + due


def test_implausible_rates_of_a_second_measure_change_nothing(tmp_path: Path) -> None:
    machine = Machine()
    calibration = calibrated(tmp_path, machine)
    before = calibration.rates
    machine.lie = slow(600.0, "kernel")
    calibration.observe(1.0, 100.0)
    for _ in range(3):
        calibration.observe(1.0, 100.0)
    assert calibration.rates == before
    assert machine.gauges == 2
    assert "measuring again failed: kernel takes" in calibration.origin
    assert calibrated(tmp_path, machine).rates == before


def kept(*measured: Rates, again: object = 0, **others: object) -> str:
    entries = [{"on": f"2025-01-0{i + 1}", "rates": asdict(r)} for i, r in enumerate(measured)]
    return json.dumps({"format": 3, "again": again, "measured": entries, **others})


@pytest.mark.parametrize(
    "content",
    [
        kept(BUSY),
        json.dumps(asdict(BUSY)),  # as files once were
        json.dumps(asdict(TRUE)),
        kept(TRUE, format=4),
        kept(replace(TRUE, call=-1.0)),
        kept(replace(TRUE, call=float("nan"))),
        kept(TRUE).replace("8e-06", "null"),
        kept(TRUE).replace("8e-06", '"8e-06"'),
        kept(TRUE, again=None),
        kept(TRUE, measured=None),
        kept(TRUE, measured=[{}]),
        kept(),
        "",
        "[]",
        "{",
        '{"call": 1.0}',
    ],
)
def test_a_file_that_cannot_be_does_not_last(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rates-1.json"
    path.write_text(content)
    machine = Machine(rates=replace(TRUE, call=7e-6))
    assert_close(calibrated(tmp_path, machine).rates, machine.rates)
    assert machine.gauges == 1
    written = json.loads(path.read_text())
    assert [Rates(**m["rates"]).call for m in written["measured"]] == pytest.approx([7e-6])


def test_of_a_file_what_can_be_is_used(tmp_path: Path) -> None:
    (tmp_path / "rates-1.json").write_text(kept(BUSY, TRUE))
    machine = Machine()
    calibration = calibrated(tmp_path, machine)
    assert calibration.rates == TRUE
    assert calibration.origin.startswith("measured on 2025-01-02, kept in ")
    assert machine.gauges == 0


def test_one_process_measures_at_a_time(tmp_path: Path) -> None:
    """Another one has the first guess meanwhile, and then what was measured."""
    machine = Machine()
    other = calibrated(tmp_path, machine, patience=0.0)
    meanwhile: list[object] = []

    def gauge() -> Gauge:
        thread = threading.Thread(target=lambda: meanwhile.extend((other.rates, other.origin)))
        thread.start()
        thread.join()
        return machine.gauge()

    first = calibrated(tmp_path, machine)
    first.gauge = gauge
    assert_close(first.rates, TRUE)
    assert meanwhile == [GUESSED, "guessed, not measured: another process is measuring them"]
    assert other.rates == first.rates
    assert machine.gauges == 1


def test_a_process_that_waited_does_not_measure(tmp_path: Path) -> None:
    machine = Machine()
    waits = threading.Event()
    other = calibrated(tmp_path, machine, patience=600.0)
    thread = threading.Thread(target=lambda: (waits.set(), other.rates))

    def gauge() -> Gauge:
        thread.start()
        waits.wait()
        return machine.gauge()

    first = calibrated(tmp_path, machine)
    first.gauge = gauge
    assert_close(first.rates, TRUE)
    thread.join()
    assert other.rates == first.rates
    assert machine.gauges == 1


def test_a_lock_that_was_left_behind(tmp_path: Path) -> None:
    """The system has released it with its holder; one that hangs is not waited for."""
    (tmp_path / "rates.lock").write_text("12345")
    machine = Machine()
    assert_close(calibrated(tmp_path, machine, patience=0.0).rates, TRUE)
    (tmp_path / "rates-1.json").unlink()
    with FileLock(tmp_path / "rates.lock"):
        found: list[Rates] = []
        calibration = calibrated(tmp_path, machine, patience=0.0)
        thread = threading.Thread(target=lambda: found.append(calibration.rates))
        thread.start()
        thread.join()
        assert found == [GUESSED]
    assert machine.gauges == 1


def test_a_machine_without_room_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    machine = Machine()
    calibration = calibrated(tmp_path / "file", machine)
    assert_close(calibration.rates, TRUE)
    assert "; not kept: " in calibration.origin
    makes_maps(calibration, machine, 100)
    assert machine.gauges == 1


def test_a_full_card(tmp_path: Path) -> None:
    def gauge() -> Gauge:
        raise torch.OutOfMemoryError("full")

    calibration = calibrated(tmp_path, Machine())
    calibration.gauge = gauge
    assert calibration.rates is GUESSED
    assert calibration.origin == "guessed, not measured: no memory is left on the device"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("KRYPTON_MEASURE", raising=False)
    monkeypatch.setattr(calibrate, "gauge_of_cpu", Machine().gauge)
    monkeypatch.setattr(calibrate, "KNOWN", {})
    calibrate._of_this_machine.cache_clear()
    yield tmp_path / "captum_krypton"
    calibrate._of_this_machine.cache_clear()


@compiled
def test_rates_of_this_machine(cache: Path) -> None:
    assert_close(rates_of(CPU), TRUE)
    (path,) = cache.glob("rates-*.json")
    calibration = calibration_of(CPU)
    assert str(path) in calibration.origin
    assert calibration_of(CPU) is calibration


@compiled
def test_a_known_processor(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is this machine's, with as many threads, whatever it is."""
    kernels = os.environ.get("KRYPTON_KERNELS", "")
    this = calibrate.processor(torch.get_num_threads(), kernels)
    monkeypatch.setattr(calibrate, "KNOWN", {this: TRUE, replace(this, threads=77): GUESSED})
    monkeypatch.setattr(calibrate, "gauge_of_cpu", Machine(slow(3.0)).gauge)
    assert rates_of(CPU) is TRUE
    assert calibration_of(CPU).origin.startswith(f"those of {this}, not measured: ")
    assert calibrate.processor(1, "avx2") != calibrate.processor(1)


@compiled
def test_another_build_is_measured_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    builds = [tmp_path / name for name in ("one", "other", "same as one", "gone")]
    for build, content in zip(builds, (b"1", b"2", b"1"), strict=False):
        build.write_bytes(content)
    for build, files in zip(builds, (1, 2, 2, 3), strict=True):
        info = dataclasses.replace(backend_info(), path=str(build))
        monkeypatch.setattr(calibrate, "backend_info", lambda device, info=info: info)
        calibrate._of_this_machine.cache_clear()
        assert_close(rates_of(CPU), TRUE)
        assert len(list(cache.glob("rates-*.json"))) == files


def test_measuring_may_be_forbidden(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRYPTON_MEASURE", "0")
    assert rates_of(CPU) is GUESSED
    assert rates_of(torch.device("cuda")) is GUESSED_OF_GPUS
    assert calibration_of(CPU).origin == "guessed (KRYPTON_MEASURE=0)"
    calibration_of(CPU).observe(1.0, 100.0)
    assert not cache.exists()


def test_other_devices_are_not_measured(cache: Path) -> None:
    assert rates_of(torch.device("meta")) is GUESSED
    assert not cache.exists()


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu()).mean((2, 3))


@compiled
def test_plans_follow_the_rates_and_maps_stay(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Winograd's algorithm is dear at first, then cheap; both make the same map."""
    machine = Machine(slow(4.0, "wide", "narrow"))
    monkeypatch.setattr(calibrate, "gauge_of_cpu", machine.gauge)
    occlusion, x = KryptonOcclusion(Small()), torch.rand(1, 3, 48, 48)

    def algorithms() -> list[str]:
        ((rows, totals),) = occlusion.explain(x, **WINDOWS).plans
        assert "rates: measured on 20" in totals
        return [row.algorithm for row in rows[:2]]

    before = occlusion.heatmap(x, **WINDOWS).scores
    assert algorithms() == ["direct", "direct"]
    machine.lie = honest
    for _ in range(4):
        calibration_of(CPU).observe(9.0, 3.0)
    assert algorithms()[1] == "Winograd"
    assert machine.gauges == 2
    after = occlusion.heatmap(x, **WINDOWS).scores
    assert (after - before).abs().max() < 1e-5 * before.abs().max()


def test_what_maps_tell_of_the_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact maps without their set-up; no map that is not all of its plan."""
    told: list[tuple[float, float, bool]] = []

    class Rates:
        def observe(self, predicted: float, seconds: float, *, at_most: bool) -> None:
            told.append((predicted, seconds, at_most))

    monkeypatch.setattr(_engine, "calibration_of", lambda device: Rates())
    occlusion, x = KryptonOcclusion(Small()), torch.rand(2, 3, 24, 24)
    for _ in range(2):
        report = occlusion.heatmap(x, **WINDOWS).report
        expected = (report.predicted_seconds, report.seconds - report.setup_seconds, False)
        assert told.pop() == expected
    occlusion.explain(x, **WINDOWS, run=True)
    windows = {**WINDOWS, "strides": (3, 1, 1)}
    KryptonOcclusion(Small(), budget=Budget(windows=100)).heatmap(x, **windows)
    assert told == []
