"""The rates that are guessed or known."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from captum_krypton._kernels.rates import GUESSED, KNOWN, Processor


def test_which_rate_a_convolution_has() -> None:
    assert GUESSED.of_torch_convolution(1, 3, 64) == GUESSED.convolution
    assert GUESSED.of_torch_convolution(64, 1, 1) == GUESSED.grouped
    assert GUESSED.of_torch_convolution(2, 64, 32) == GUESSED.convolution
    assert GUESSED.of_torch_convolution(1, 64, 2) == 8 * GUESSED.convolution


@pytest.mark.parametrize("processor", KNOWN, ids=str)
def test_known_processors_are_near_what_is_guessed(processor: Processor) -> None:
    for name, guess in asdict(GUESSED).items():
        assert 1 / 30 < processor.threads**0.5 * asdict(KNOWN[processor])[name] / guess < 3, name


def test_a_processor_in_words() -> None:
    assert str(Processor("One", "AVX2", 1)) == "One, AVX2, 1 thread"
    assert str(Processor("One", "AVX2", 8)) == "One, AVX2, 8 threads"
