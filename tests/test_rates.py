"""The machine's rates: what is measured, kept and read again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from captum_krypton import _rates
from captum_krypton._ops import backend_info, panel_size
from captum_krypton._rates import GUESSED, Rates, measure, rates_of

CPU = torch.device("cpu")
compiled = pytest.mark.skipif(panel_size() == 0, reason="needs the compiled kernels")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("KRYPTON_MEASURE", raising=False)
    _rates._of_this_machine.cache_clear()
    yield tmp_path / "captum_krypton"
    _rates._of_this_machine.cache_clear()


@compiled
def test_rates_are_of_a_plausible_size() -> None:
    found = asdict(measure())
    for name, guess in asdict(GUESSED).items():
        assert guess / 300 < found[name] < guess * 300, name


def test_a_disturbed_clock_makes_no_transform_free() -> None:
    """Two equations that only a negative rate solves, then two that their rates solve."""
    product, transform = _rates._two_rates((100.0, 1.0, 3e-9), (10.0, 5.0, 1e-10))
    assert product > 0
    assert transform / product == pytest.approx(GUESSED.transform / GUESSED.product)
    assert _rates._two_rates((100.0, 1.0, 102.0), (10.0, 5.0, 20.0)) == pytest.approx((1.0, 2.0))


def test_what_is_measured_of_a_gpu() -> None:
    rates = _rates.measure_gpu(CPU, 2, 1)  # here its operators run on the CPU
    assert all(0 < getattr(rates, field.name) < 1 for field in dataclasses.fields(Rates))
    for name in ("convolution", "grouped", "linear", "element", "call", "pooling", "kernel"):
        assert getattr(rates, name) != getattr(_rates.GUESSED_OF_GPUS, name)


@compiled
def test_a_machine_is_measured_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = rates_of(CPU)
    (path,) = cache.iterdir()
    assert Rates(**json.loads(path.read_text())) == first
    monkeypatch.setattr(_rates, "measure", lambda: pytest.fail("measured again"))
    _rates._of_this_machine.cache_clear()
    assert rates_of(CPU) == first


@compiled
def test_another_build_is_measured_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_rates, "measure", lambda: GUESSED)
    builds = [tmp_path / name for name in ("one", "other", "same as one", "gone")]
    for build, content in zip(builds, (b"1", b"2", b"1"), strict=False):
        build.write_bytes(content)
    for build, files in zip(builds, (1, 2, 2, 3), strict=True):
        info = dataclasses.replace(backend_info(), path=str(build))
        monkeypatch.setattr(_rates, "backend_info", lambda device, info=info: info)
        _rates._of_this_machine.cache_clear()
        assert rates_of(CPU) == GUESSED
        assert len(list(cache.iterdir())) == files


@compiled
@pytest.mark.parametrize("content", ["", "[]", "{", '{"call": 1.0}', "negative"])
def test_a_broken_file_is_measured_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(_rates, "measure", lambda: GUESSED)
    rates_of(CPU)
    (path,) = cache.iterdir()
    if content == "negative":
        content = json.dumps({**asdict(GUESSED), "call": -1.0})
    path.write_text(content)
    _rates._of_this_machine.cache_clear()
    assert rates_of(CPU) == GUESSED
    assert Rates(**json.loads(path.read_text())) == GUESSED


@compiled
def test_a_machine_without_room_for_a_file(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(_rates, "measure", lambda: GUESSED)
    assert rates_of(CPU) == GUESSED


def test_measuring_may_be_forbidden(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRYPTON_MEASURE", "0")
    monkeypatch.setattr(_rates, "measure", lambda: pytest.fail("measured"))
    assert rates_of(CPU) is GUESSED


def test_other_devices_are_not_measured(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rates, "measure", lambda: pytest.fail("measured"))
    assert rates_of(torch.device("meta")) is GUESSED
