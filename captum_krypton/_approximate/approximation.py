"""How a map may differ from the exact one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .._call import ArgumentError, Call
from .._run import CapturedModel
from .drilldown import DrillDown
from .libraries import check_libraries
from .refine import LEAST_WINDOWS, Budget
from .tuning import Tuning, as_grids, torch_version

__all__ = ["Approximation"]


@dataclass(frozen=True)
class Approximation:
    """How a map may differ from the exact one; by default not at all.

    Attributes:
        threshold: the projective field threshold tau, in (0, 1]; 1 is exact.
        drill_down: which windows are run; None for all.
        tuning: where the threshold is from; None where the user gave it.
        quality: the structural similarity that a map is to have by its own estimate: that of the
            predicted outcome, where an image has several.
        budget: what a map may cost.

    Raises:
        ValueError: (an `ArgumentError`) for a threshold outside of its range.
        ImportError: where windows are guessed, without SciPy (the extra `approximate`).
    """

    threshold: float = 1.0
    drill_down: DrillDown | None = None
    tuning: Tuning | None = None
    quality: float | None = None
    budget: Budget | None = None

    @classmethod
    def of(
        cls,
        threshold: float,
        drill_down: DrillDown | None,
        tuning: Tuning | None,
        quality: float | None,
        budget: Budget | None,
    ) -> Approximation:
        """What a user's settings ask for; the threshold of a tuning is taken."""
        if tuning is None:
            return cls(threshold, drill_down, None, quality, budget)
        if not isinstance(tuning, Tuning):
            raise TypeError(f"tuning must be a Tuning or None, not {type(tuning).__name__}")
        if threshold != 1:
            raise ArgumentError(
                "projective_field_threshold and tuning exclude each other: the tuning has one"
            )
        return cls(tuning.threshold, drill_down, tuning, quality, budget)

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ArgumentError(
                f"projective_field_threshold must be above 0 and at most 1, not {self.threshold}"
            )
        if self.drill_down is not None and not isinstance(self.drill_down, DrillDown):
            raise TypeError(
                f"drill_down must be a DrillDown or None, not {type(self.drill_down).__name__}"
            )
        if self.quality is not None and not 0 < self.quality <= 1:
            raise ArgumentError(f"quality must be above 0 and at most 1, not {self.quality}")
        if self.budget is not None and not isinstance(self.budget, Budget):
            raise TypeError(f"budget must be a Budget or None, not {type(self.budget).__name__}")
        if self.grows and self.drill_down is not None:
            raise ArgumentError(
                "quality and budget choose the windows of a map themselves: they exclude drill_down"
            )
        if self.grows or self.drill_down is not None:
            check_libraries("a map with drill_down, quality or budget")

    @property
    def grows(self) -> bool:
        """Whether windows are run until the map is good enough."""
        return self.quality is not None or self.budget is not None

    def is_enough(self, quality: float, seconds: float) -> bool:
        """Whether a growing map of this expected quality is as good as wanted or has to end."""
        if self.quality is not None and quality >= self.quality:
            return True
        limit = None if self.budget is None else self.budget.seconds
        return limit is not None and seconds >= limit

    def check(self, call: Call) -> None:
        """Raises an `ArgumentError` where the windows of a call cannot be approximated so."""
        if not self.exact and any(grid.paired for grid in call.grids):
            raise ArgumentError(
                "windows must lie on a grid for an approximate map: with a list of regions leave "
                "out projective_field_threshold, drill_down, tuning, quality and budget"
            )
        if self.drill_down is not None:
            for grid in call.grids:
                self.drill_down.coarse(grid.counts, grid.axes)
        if self.budget is not None and self.budget.windows is not None:
            for grid in call.grids:
                axes = grid.axes
                rest = (n for dim, n in enumerate(grid.counts) if dim not in axes)
                least = LEAST_WINDOWS * math.prod(rest)
                if self.budget.windows < least:
                    raise ArgumentError(
                        f"budget.windows must be at least {least} for windows at "
                        f"{' x '.join(map(str, grid.counts))} positions, not {self.budget.windows}"
                    )
        tuning = self.tuning
        if tuning is not None and tuning.grids != (asked := as_grids(call)):
            raise ArgumentError(f"tuning is for windows {tuning.grids}, not for {asked}")

    def check_model(self, model: CapturedModel) -> None:
        """Raises an `ArgumentError` where the threshold was tuned for another model."""
        if self.tuning is not None and self.tuning.model != model.digest:
            raise ArgumentError(
                "tuning is for another model, other weights, inputs of another shape or another "
                f"PyTorch (then {self.tuning.torch}, now {torch_version()}): tune again"
            )

    @property
    def exact(self) -> bool:
        """Whether maps are exact."""
        return self.threshold == 1 and self.drill_down is None and not self.grows
