"""How alike two maps are, and how alike they may be expected to be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from captum_krypton import ssim
from captum_krypton._approximate.quality import expected_ssim


def test_ssim_is_scikit_images() -> None:
    exact, other = np.random.default_rng(0).normal(size=(2, 20, 17))
    expected = structural_similarity(exact, other, data_range=np.ptp(exact))
    assert ssim(exact, other) == pytest.approx(expected)
    assert ssim(torch.from_numpy(exact), exact) == 1
    assert ssim(exact[None], other[None]) == ssim(exact, other)


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    seed=st.integers(0, 99),
    noise=st.sampled_from([0.0, 0.01, 0.1, 1.0]),
)
def test_ssim_of_any_map(shape: list[int], seed: int, noise: float) -> None:
    generator = np.random.default_rng(seed)
    exact = generator.normal(size=shape)
    other = exact + noise * generator.normal(size=shape)
    quality = ssim(exact, other)
    assert -1 <= quality <= 1
    assert ssim(exact, exact) == 1
    assert ssim(3 * exact, 3 * other) == pytest.approx(quality)


def test_ssim_where_there_is_nothing_to_compare() -> None:
    flat = np.ones((9, 9))
    assert ssim(flat, flat) == 1
    assert ssim(flat, flat + 1e-9) == 0
    assert np.isnan(ssim(flat, np.where(np.eye(9) > 0, np.nan, flat)))
    with pytest.raises(ValueError, match=r"shape \(9, 9\), not \(9, 8\)"):
        ssim(flat, flat[:, 1:])


@pytest.mark.parametrize("noise", [0.03, 0.1, 0.15])
def test_the_expected_similarity_is_that_of_random_errors(noise: float) -> None:
    """Errors with mean zero, of a size that differs from place to place, and alike nearby."""
    generator = np.random.default_rng(0)
    plain = gaussian_filter(generator.normal(size=(40, 45)), 3)
    plain /= plain.std()
    size = noise * (1 + np.indices(plain.shape)[0] / 40)
    found = []
    for _ in range(20):
        wrong = gaussian_filter(generator.normal(size=plain.shape), 0.7)
        found.append(ssim(plain, plain + size * wrong / wrong.std()))
    assert expected_ssim(plain, size * size) == pytest.approx(np.mean(found), abs=0.04)
    assert expected_ssim(plain, 0 * size) == 1
