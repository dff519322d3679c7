"""How alike two heat maps are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._operators import Floats
from .libraries import metrics, scipy

__all__ = ["contrast", "expected_ssim", "sides_of", "ssim"]

_WINDOW = 7  # scikit-image's


def ssim(exact: Any, approximate: Any) -> float:
    """The structural similarity of a heat map and the exact one, as the paper measures quality.

    scikit-image's `structural_similarity` with its own constants: a uniform window of 7 an axis
    (less where the map is smaller), and for the data range that of the exact map.

    Args:
        exact: the exact map, a number for each window; axes of one window are left out.
        approximate: the other map, of the same shape.

    Returns:
        1 for equal maps. Where the exact map has one value all over: 1 if the other is equal to
        it, else 0. NaN where a map is not finite.

    Raises:
        ValueError: for maps of different shapes.
        ImportError: without scikit-image (the extra `approximate`).
    """
    a, b = (np.squeeze(np.asarray(m, dtype=np.float64)) for m in (exact, approximate))
    if a.shape != b.shape:
        raise ValueError(f"approximate must have the exact map's shape {a.shape}, not {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("nan")
    if np.array_equal(a, b):
        return 1.0
    spread = float(np.ptp(a))
    if spread == 0:
        return 0.0
    side = min(sides_of(a.shape))
    if side < 3:  # too small for a local window: the map is one
        return _global(a, b, spread)
    return float(metrics().structural_similarity(a, b, win_size=side, data_range=spread))


def sides_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The sides of the local windows of a map: 7, or the largest odd number that fits."""
    return tuple(min(_WINDOW, n - 1 + n % 2) for n in shape)


def contrast(plain: Floats) -> tuple[Floats, float]:
    """The variance in the local window about every cell, and what counts as none (SSIM's C2)."""
    sides = sides_of(plain.shape)
    uniform_filter = scipy("ndimage").uniform_filter
    mean = uniform_filter(plain, sides)
    count = math.prod(sides)
    variance = (uniform_filter(plain * plain, sides) - mean * mean) * count / max(count - 1, 1)
    return np.maximum(variance, 0.0), (0.03 * float(np.ptp(plain))) ** 2


def expected_ssim(plain: Floats, error: Floats) -> float:
    """The structural similarity to an exact map from which a map errs by chance.

    Errors are taken to have mean zero and nothing to do with the map.

    Args:
        plain: the map.
        error: the expected square of every cell's error.
    """
    if not error.any():
        return 1.0
    sides = sides_of(plain.shape)
    variance, small = contrast(plain)
    spread = scipy("ndimage").uniform_filter(error, sides)
    similar = (2 * variance + small) / (2 * variance + spread + small)
    inner = tuple(slice(s // 2, n - s // 2) for s, n in zip(sides, plain.shape, strict=True))
    return float(similar[inner].mean())


def _global(a: Any, b: Any, spread: float) -> float:
    """The formula of SSIM, with one window for the whole map."""
    c1, c2 = (0.01 * spread) ** 2, (0.03 * spread) ** 2
    covariance = float(((a - a.mean()) * (b - b.mean())).mean())
    light = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
    shape = (2 * covariance + c2) / (a.var() + b.var() + c2)
    return float(light * shape)
