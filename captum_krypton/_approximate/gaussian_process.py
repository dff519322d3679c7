"""A map from any of its windows: Gaussian process regression (kriging) over the grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .._operators import Floats, Integers, Mask
from .libraries import scipy

__all__ = ["Field", "likeliest"]

_TOGETHER = 1000  # positions that are predicted together, more or less
_REACH = 2.5  # in lengths: what is farther away does not count
_NUGGET = 1e-6  # of the variance, so that factors exist
_LENGTHS = (0.5, 0.75, 1.25, 2.0)


@dataclass(frozen=True)
class Field:
    """Values on a grid, with a Matern 3/2 covariance.

    Attributes:
        counts: the grid's positions along each axis.
        spacing: the distance of neighbours along each axis, in windows' sides.
        length: the distance, in the same unit, over which values are alike.
        step: no position is farther than this from a known one along any axis, in positions.
    """

    counts: tuple[int, ...]
    spacing: tuple[float, ...]
    length: float
    step: int = 1

    @cached_property
    def covariances(self) -> Floats:
        """The covariance of two positions, by how far apart they are along each axis."""
        apart = np.indices(self.counts).reshape(len(self.counts), -1).T
        far = np.sqrt(3) * np.linalg.norm(apart * np.asarray(self.spacing), axis=1) / self.length
        found: Floats = ((1 + far) * np.exp(-far)).reshape(self.counts)
        return found

    @cached_property
    def places(self) -> tuple[Integers, ...]:
        """Each position's place along each axis."""
        return np.unravel_index(np.arange(math.prod(self.counts)), self.counts)

    def predict(self, known: Mask, values: Floats) -> tuple[Floats, Floats]:
        """Every position from the known ones.

        Args:
            known: (positions,) which are known.
            values: (positions, outputs); those of the others are not read.

        Returns:
            The values, (positions, outputs), of known positions as they are; and the variance of
            each one's error as a share of the field's, (positions,), zero where known.
        """
        linalg = scipy("linalg")
        mean, variance = values.copy(), np.zeros(len(values))
        for block, around in self._blocks():
            near, asked = around[known[around]], block[~known[block]]
            if not len(asked):
                continue
            factor = linalg.cholesky(self._covariance(near, near), lower=True)
            between = self._covariance(near, asked, nugget=False)
            centre = values[near].mean(0)
            mean[asked] = centre + between.T @ linalg.cho_solve(
                (factor, True), values[near] - centre
            )
            part = linalg.solve_triangular(factor, between, lower=True)
            variance[asked] = np.maximum(1 - (part * part).sum(0), 0)
        return mean, variance

    def log_likelihood(self, known: Mask, values: Floats) -> float:
        """How likely the known values are, the field's own variance being what fits them best."""
        linalg, total = scipy("linalg"), 0.0
        for _, around in self._blocks():
            near = around[known[around]]
            factor = linalg.cholesky(self._covariance(near, near), lower=True)
            white = linalg.solve_triangular(factor, values[near] - values[near].mean(), lower=True)
            variance = max(float(white @ white) / len(near), 1e-300)
            total -= 0.5 * len(near) * math.log(variance) + float(np.log(np.diag(factor)).sum())
        return total

    def _covariance(self, a: Integers, b: Integers, *, nugget: bool = True) -> Floats:
        apart = tuple(np.abs(np.subtract.outer(place[a], place[b])) for place in self.places)
        found = self.covariances[apart]
        if nugget:
            found[np.diag_indices(len(a))] += _NUGGET
        return found

    def _blocks(self) -> Iterator[tuple[Integers, Integers]]:
        """Parts of the grid, each with the positions around that count for it."""
        numbers = np.arange(math.prod(self.counts)).reshape(self.counts)
        cuts = []
        side = round(_TOGETHER ** (1 / len(self.counts)))
        for count, spacing in zip(self.counts, self.spacing, strict=True):
            parts = math.ceil(count / side)
            edges = [count * i // parts for i in range(parts + 1)]
            margin = min(math.ceil(_REACH * self.length / spacing), side // 2)
            margin = max(margin, self.step + 1)  # else there may be nothing to go by
            cuts.append(
                [
                    (slice(a, b), slice(max(0, a - margin), b + margin))
                    for a, b in itertools.pairwise(edges)
                ]
            )
        for part in itertools.product(*cuts):
            own, around = zip(*part, strict=True)
            yield numbers[own].reshape(-1), numbers[around].reshape(-1)


def likeliest(
    counts: tuple[int, ...],
    spacing: tuple[float, ...],
    known: Mask,
    values: Floats,
    step: int,
) -> Field:
    """The field whose length the known values, (positions,), make likeliest."""
    fields = [Field(counts, spacing, length, step) for length in _LENGTHS]
    return max(fields, key=lambda field: field.log_likelihood(known, values))
