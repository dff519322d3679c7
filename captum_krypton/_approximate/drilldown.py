"""Adaptive drill-down: a coarse map first, then its interesting regions in detail (Section 4.3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .._call import ArgumentError
from .._operators import Floats
from .._run import Selection
from .coarse import CoarseGrid

__all__ = ["DrillDown", "drill_down"]

Evaluate = Callable[[Selection], Tensor]
Drop = Callable[[Tensor], Floats]


@dataclass(frozen=True)
class DrillDown:
    """Adaptive drill-down in two stages (Section 4.3).

    Stage one runs the windows of a coarse grid. The cells of that grid where the predicted outcome
    drops most are then run at the user's stride, and the rest of the map is filled from the coarse
    one. Defaults are the paper's.

    Args:
        fraction: r_drill-down, the share of the map's windows that stage two runs, in (0, 1).
        speedup: how many times fewer windows are to be run (Eq. 37); above 1, and below
            1 / fraction.

    Raises:
        ValueError: (an `ArgumentError`) for numbers outside of these ranges.
    """

    fraction: float = 0.25
    speedup: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ArgumentError(f"fraction must be between 0 and 1, not {self.fraction}")
        if not self.speedup > 1:
            raise ArgumentError(f"speedup must be above 1, not {self.speedup}")
        if self.fraction * self.speedup >= 1:
            raise ArgumentError(
                f"speedup must be below {1 / self.fraction:.4g} where fraction is "
                f"{self.fraction} (Eq. 38), not {self.speedup}"
            )

    def coarse(self, counts: tuple[int, ...], axes: tuple[int, ...]) -> CoarseGrid:
        """Stage one's grid for a map of `counts` windows along each dimension.

        Its stride is S1 (Eq. 38) in units of S2, the map's own, rounded up so that no more windows
        are run than asked for.

        Raises:
            ValueError: (an `ArgumentError`) where S1 would exceed the map (Eq. 39).
        """
        axes = tuple(axis for axis in axes if counts[axis] > 1)
        if not axes:
            return CoarseGrid(counts, axes, 1)
        rank, most = len(axes), min(counts[axis] for axis in axes)
        step = (self.speedup / (1 - self.fraction * self.speedup)) ** (1 / rank)
        if step > most:
            largest = most**rank / (1 + self.fraction * most**rank)  # Eq. 37
            raise ArgumentError(
                f"speedup must be at most {largest:.4g} for a map of "
                f"{' x '.join(str(counts[axis]) for axis in axes)} windows where fraction is "
                f"{self.fraction} (Eq. 39), not {self.speedup}"
            )
        return CoarseGrid(counts, axes, math.ceil(step - 1e-9))


def drill_down(
    settings: DrillDown, coarse: CoarseGrid, images: int, evaluate: Evaluate, drop: Drop
) -> tuple[Tensor, Selection]:
    """Both stages, and the map filled from them.

    Args:
        settings: the share of the windows that stage two runs.
        coarse: stage one's grid.
        images: how many images the map has.
        evaluate: gives the outcomes of the selected windows, (images, windows, outputs...).
        drop: from such outcomes, how far the predicted one has dropped, (images, windows).

    Returns:
        The outcomes of all windows, and which of them were run.
    """
    first = np.tile(coarse.windows, (images, 1))
    scores = evaluate(first)
    second = np.stack([interesting(coarse, d, settings.fraction) for d in drop(scores)]) & ~first
    if second.any():
        scores = torch.where(_like(second, scores), evaluate(second), scores)
    known = first | second
    return torch.where(_like(known, scores), scores, _filled(coarse, scores, second)), known


def interesting(coarse: CoarseGrid, drop: Floats, fraction: float) -> Selection:
    """The windows of the cells with the largest drop, (windows,): at most a share of all.

    Cells need not touch each other. One is taken at least.
    """
    nodes = np.flatnonzero(coarse.windows)
    drops = np.where(np.isfinite(drop[nodes]), drop[nodes], np.inf)
    ranked = nodes[np.argsort(-drops, kind="stable")]
    size = np.bincount(coarse.cells, minlength=len(drop))
    total = np.cumsum(size[ranked])
    taken = ranked[: max(1, np.searchsorted(total, fraction * len(drop), side="right"))]
    found: Selection = np.isin(coarse.cells, taken)
    return found


def _filled(coarse: CoarseGrid, scores: Tensor, held_out: Selection) -> Tensor:
    """All windows from those of the coarse grid: by spline where that is better than repeating.

    What is better for an image, its `held_out` windows tell: they have been run, and are not of
    the grid.
    """
    repeated = coarse.repeated(scores)
    if not scores.is_floating_point():
        return repeated
    spline = coarse.spline(scores)
    error = [_error(filled, scores, held_out) for filled in (spline, repeated)]
    better = ((error[0] <= error[1]) & error[0].isfinite()).reshape(-1, *[1] * (scores.dim() - 1))
    return torch.where(better, spline, repeated)


def _error(filled: Tensor, scores: Tensor, held_out: Selection) -> Tensor:
    """The sum of squares of each image's errors; NaN counts as no better than anything."""
    wrong = torch.where(_like(held_out, scores), filled.double() - scores.double(), 0.0)
    return wrong.square().flatten(1).sum(1)


def _like(selected: Selection, scores: Tensor) -> Tensor:
    """A selection shaped to broadcast over outcomes."""
    mask = torch.from_numpy(selected).to(scores.device)
    return mask.reshape(*mask.shape, *[1] * (scores.dim() - 2))
