"""Whose rates a GPU's plans are made with, and when they are measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from machine import Machine

from captum_krypton._kernels import backend_info, calibrate
from captum_krypton._kernels.rates import GUESSED_OF_GPUS, KNOWN_GPUS


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("KRYPTON_MEASURE", raising=False)
    return tmp_path / "captum_krypton"


@pytest.fixture
def fast_card(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """They may stand in for a GPU's operators."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    fast = Machine(rates=replace(GUESSED_OF_GPUS, linear=3e-14))
    monkeypatch.setattr(calibrate, "gauge_of_gpu", lambda device: fast.gauge())
    monkeypatch.setattr(calibrate, "backend_info", lambda device: backend_info())
    return fast


def test_which_gpu(cache: Path, fast_card: Machine) -> None:
    """A file for each card and precision; the first plan is made with guessed rates."""
    for precision in (("ieee", "tf32"), ("tf32", "tf32")):
        calibration = calibrate._of_this_gpu.__wrapped__(torch.device("cuda"), precision)
        for _ in range(3):  # of a first map of several inputs, or of a plan that is looked at
            assert calibration.rates is GUESSED_OF_GPUS
            assert "a first map does not wait" in calibration.origin
        calibration.observe(0.001, 0.001)
        assert calibration.rates.linear == pytest.approx(3e-14)
        assert "measured on" in calibration.origin
        again = calibrate._of_this_gpu.__wrapped__(torch.device("cuda"), precision)
        assert again.rates.linear == pytest.approx(3e-14)  # the first plan, too: there is a file
    assert len(list(cache.glob("rates-*.json"))) == 2


@pytest.mark.parametrize(
    ("precision", "known"),
    [((False, True), True), (("none", "tf32"), True), (("tf32", "tf32"), False)],
)
def test_a_known_card_is_not_measured_until_maps_ask_for_it(
    cache: Path,
    fast_card: Machine,
    monkeypatch: pytest.MonkeyPatch,
    precision: tuple[object, object],
    known: bool,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    calibration = calibrate._of_this_gpu.__wrapped__(torch.device("cuda"), precision)
    for _ in range(5):
        rates = calibration.rates
        calibration.observe(0.001, 0.001)
    assert (rates is KNOWN_GPUS["NVIDIA H200"]) is known
    assert ("those of NVIDIA H200" in calibration.origin) is known
    for _ in range(4):
        calibration.observe(1.0, 10.0)
    assert calibration.rates.linear == pytest.approx(3e-14)
