"""A Gaussian process over windows, against ordinary regression."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from captum_krypton._approximate.coarse import Floats
from captum_krypton._approximate.gaussian_process import Field, likeliest
from captum_krypton._operators.regions import Mask


def textbook(field: Field, known: Mask, values: Floats) -> tuple[Floats, Floats]:
    """Ordinary regression with all known values at once, by an inverse."""
    place = np.indices(field.counts).reshape(len(field.counts), -1).T * np.array(field.spacing)
    far = np.sqrt(((place[:, None] - place[None]) ** 2).sum(-1)) * math.sqrt(3) / field.length
    matrix = (1 + far) * np.exp(-far)
    inverse = np.linalg.inv(matrix[np.ix_(known, known)] + 1e-6 * np.eye(known.sum()))
    mean = values[known].mean(0)
    guess = mean + matrix[:, known] @ inverse @ (values[known] - mean)
    variance = 1 - np.einsum("ij,jk,ik->i", matrix[:, known], inverse, matrix[:, known])
    guess[known], variance[known] = values[known], 0
    return guess, np.maximum(variance, 0)


@given(
    counts=st.lists(st.integers(2, 7), min_size=1, max_size=3),
    length=st.sampled_from([0.5, 1.0, 2.0]),
    share=st.floats(0.2, 0.9),
    seed=st.integers(0, 99),
)
def test_a_field_is_the_textbooks(
    counts: list[int], length: float, share: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    field = Field(tuple(counts), (0.5,) * len(counts), length)
    total = math.prod(counts)
    known = generator.random(total) < share
    known[0] = True
    values = generator.normal(size=(total, 2))
    guess, variance = field.predict(known, np.where(known[:, None], values, np.nan))
    expected = textbook(field, known, values)
    np.testing.assert_allclose(guess, expected[0], atol=1e-6)
    np.testing.assert_allclose(variance, expected[1], atol=1e-6)


def test_a_field_of_many_blocks_is_that_of_one() -> None:
    counts, generator = (70, 40), np.random.default_rng(0)
    field = Field(counts, (0.25, 0.25), 0.5)
    known = generator.random(math.prod(counts)) < 0.3
    values = gaussian_filter(generator.normal(size=counts), 2).reshape(-1, 1)
    guess, variance = field.predict(known, values)
    expected = textbook(field, known, values)
    apart, wrong = guess - expected[0], expected[0] - values
    assert np.square(apart).mean() < 0.02 * np.square(wrong).mean()
    np.testing.assert_allclose(variance, expected[1], atol=5e-3)


def test_the_length_is_found() -> None:
    counts, spacing = (24, 24), (0.25, 0.25)
    generator = np.random.default_rng(0)
    for length in (0.5, 2.0):
        place = np.indices(counts).reshape(2, -1).T * np.array(spacing)
        far = np.sqrt(((place[:, None] - place[None]) ** 2).sum(-1)) * math.sqrt(3) / length
        factor = np.linalg.cholesky((1 + far) * np.exp(-far) + 1e-6 * np.eye(len(place)))
        values = factor @ generator.normal(size=len(place))
        known = generator.random(len(place)) < 0.5
        assert likeliest(counts, spacing, known, values, 2).length == length
