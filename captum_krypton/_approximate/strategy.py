"""Approximate maps: fewer windows, smaller patches, and what that did to this map."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from .._call import ArgumentError, Call
from .._operators import Floats, Mask
from .._plan import Plan
from .._run import Base, Compiled, Execution, Selection, window_axes
from .drilldown import DrillDown, drill_down
from .refine import LEAST_WINDOWS, Budget, Growth, grow
from .tuning import Tuning, as_grids, torch_version

__all__ = ["Approximate", "Approximation", "Windows", "approximate", "growing"]


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
    """

    threshold: float = 1.0
    drill_down: DrillDown | None = None
    tuning: Tuning | None = None
    quality: float | None = None
    budget: Budget | None = None

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

    @property
    def grows(self) -> bool:
        """Whether windows are run until the map is good enough."""
        return self.quality is not None or self.budget is not None

    def is_enough(self, made: Approximate, seconds: float) -> bool:
        """Whether a growing map is as good as wanted, or has taken as long as it may."""
        (quality,) = made.quality or (0.0,)
        if self.quality is not None and quality >= self.quality:
            return True
        limit = None if self.budget is None else self.budget.seconds
        return limit is not None and seconds >= limit

    def check(self, call: Call) -> None:
        """Raises an `ArgumentError` where the windows of a call cannot be approximated so."""
        if self.drill_down is not None:
            for grid in call.grids:
                self.drill_down.coarse(grid.counts, window_axes(grid))
        if self.budget is not None and self.budget.windows is not None:
            for grid in call.grids:
                axes = window_axes(grid)
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

    def check_model(self, compiled: Compiled) -> None:
        """Raises an `ArgumentError` where the threshold was tuned for another model."""
        if self.tuning is not None and self.tuning.model != compiled.digest:
            raise ArgumentError(
                "tuning is for another model, other weights, inputs of another shape or another "
                f"PyTorch (then {self.tuning.torch}, now {torch_version()}): tune again"
            )

    @property
    def exact(self) -> bool:
        """Whether maps are exact."""
        return self.threshold == 1 and self.drill_down is None and not self.grows


@dataclass
class Windows:
    """The windows of some images, run on demand by any plan for them.

    Attributes:
        executions: a run of each plan, by its threshold.
        images: which images.
        advance: told the number of windows of every batch that has been run.
        runs: how many windows each plan has run.
    """

    executions: dict[float, Execution]
    images: slice
    advance: Callable[[int], None]
    runs: Counter[float] = field(default_factory=Counter)
    _bases: dict[int, Base] = field(default_factory=dict)

    def run(self, selected: Selection, threshold: float) -> Tensor:
        """Outcomes of the selected windows, (images, windows, outputs...)."""
        execution = self.executions[threshold]
        self.runs[threshold] += int(selected.sum())
        analysis = id(execution.plan.analysis)
        if analysis not in self._bases:
            self._bases[analysis] = execution.materialise(self.images)
        return execution.evaluate(self.images, self._bases[analysis], self.advance, selected)


@dataclass(frozen=True)
class Approximate:
    """Maps of some images.

    Attributes:
        scores: the outcomes of all windows, (images, windows, outputs...).
        known: which windows were run.
        exact: which of them were run without a threshold.
        quality: the structural similarity to the exact map that each image's is expected to have;
            None where nothing was estimated.
    """

    scores: Tensor
    known: Selection
    exact: Selection
    quality: tuple[float, ...] | None = None

    @classmethod
    def of_all(cls, parts: list[Approximate]) -> Approximate:
        """The maps of all images, from those of some at a time."""
        qualities = [part.quality for part in parts if part.quality is not None]
        return cls(
            torch.cat([part.scores for part in parts]),
            np.concatenate([part.known for part in parts]),
            np.concatenate([part.exact for part in parts]),
            sum(qualities, ()) if qualities else None,
        )


def approximate(
    approximation: Approximation, windows: Windows, plan: Plan, reference: Tensor
) -> Approximate:
    """The maps of some images.

    Args:
        approximation: how the map may differ from the exact one.
        windows: runs windows.
        plan: the plan for the approximation's threshold.
        reference: the outcome of the untouched images, (images, outputs...).
    """
    threshold = plan.threshold  # 1 where whole volumes cost less
    count, total = windows.images.stop - windows.images.start, plan.grid.total
    if approximation.grows:
        return _grown(approximation, windows, plan, reference)
    if approximation.drill_down is None:
        everything = np.ones((count, total), bool)
        exact = everything if threshold == 1 else ~everything
        return Approximate(windows.run(everything, threshold), everything, exact)
    coarse = approximation.drill_down.coarse(plan.grid.counts, plan.axes)
    scores, known = drill_down(
        approximation.drill_down,
        coarse,
        count,
        lambda selected: windows.run(selected, threshold),
        lambda outcomes: predicted_drop(outcomes, reference),
    )
    windows.advance(int((~known).sum()))
    return Approximate(scores, known, known if threshold == 1 else np.zeros_like(known))


def _grown(
    approximation: Approximation, windows: Windows, plan: Plan, reference: Tensor
) -> Approximate:
    """Maps of which one image after another grows until it is good enough."""
    maps = []
    for image in range(windows.images.stop - windows.images.start):
        started, made = time.perf_counter(), None
        memory = windows.executions[1.0].memory
        stages = growing(approximation, windows, plan, reference, image, memory)
        with closing(stages):
            for made in stages:
                if approximation.is_enough(made, time.perf_counter() - started):
                    break
        assert made is not None
        windows.advance(int((~made.known).sum()))
        maps.append(made)
    return Approximate.of_all(maps)


def growing(
    approximation: Approximation,
    windows: Windows,
    plan: Plan,
    reference: Tensor,
    image: int,
    memory: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Generator[Approximate, None, None]:
    """Ever better maps of one of the images.

    With a threshold, the thresholded map comes first, and windows that are run exactly correct it.
    Windows that differ along other dimensions than the window axes, such as channels, are run
    together.

    Args:
        approximation: how the map may differ from the exact one.
        windows: runs windows.
        plan: the plan for the approximation's threshold.
        reference: the outcome of the untouched images, (images, outputs...).
        image: which of the images.
        memory: keeps the memory of batches while windows are run exactly; not for a caller who
            does other things in between.
    """
    grid, images = plan.grid, windows.images.stop - windows.images.start
    axes = tuple(axis for axis in plan.axes if grid.counts[axis] > 1)
    others = tuple(dim for dim in range(len(grid.counts)) if dim not in axes)
    counts = tuple(grid.counts[axis] for axis in axes)
    copies = math.prod(grid.counts[dim] for dim in others)
    order = np.arange(grid.total).reshape(grid.counts).transpose(*axes, *others)
    order = order.reshape(-1, copies)  # windows at each position
    outputs = reference[image].numel()
    best = int(reference[image].reshape(-1).double().argmax())
    shown = tuple(copy * outputs + best for copy in range(copies))
    like: Tensor | None = None
    everything = np.ones(len(order), bool)

    def run(mask: Mask, threshold: float = 1.0) -> Floats:
        nonlocal like
        selected = np.zeros((images, grid.total), bool)
        selected[image, order[mask].reshape(-1)] = True
        like = windows.run(selected, threshold)[image]
        rows = like.reshape(grid.total, -1).double().cpu().numpy()
        found: Floats = rows[order].reshape(len(order), -1)
        return found

    def told(growth: Growth) -> Approximate:
        assert like is not None
        rows = np.empty((grid.total, growth.values.shape[1] // copies))
        rows[order] = growth.values.reshape(*order.shape, -1)
        scores = torch.from_numpy(rows).to(like.device, like.dtype).reshape(1, *like.shape)
        exact = np.zeros((1, grid.total), bool)
        exact[0, order[growth.known].reshape(-1)] = True
        known = exact if prior is None else np.ones_like(exact)
        return Approximate(scores, known, exact, (growth.quality,))

    prior = None
    if not axes or not reference.is_floating_point():
        yield told(Growth(run(everything), everything, 1.0))
        return
    if plan.threshold < 1:
        prior = run(everything, plan.threshold)
        windows = replace(windows, advance=lambda rows: None)  # all windows are counted
        prior = prior if np.isfinite(prior).all() else None
    spacing = tuple(grid.stride[axis] / grid.window[axis] for axis in axes)
    limit = None if approximation.budget is None else approximation.budget.windows
    limit = None if limit is None else limit // copies
    found = grow(counts, spacing, run, shown, limit, approximation.quality, prior)
    with memory():  # after the threshold's run, which has its own
        yield from map(told, found)


def predicted_drop(scores: Tensor, reference: Tensor) -> Floats:
    """How far the predicted outcome drops, (images, windows).

    Where an image has several outcomes, the predicted one is the largest of the untouched image.
    """
    flat = reference.reshape(reference.shape[0], -1).double()
    best = flat.argmax(1)
    rows = scores.reshape(*scores.shape[:2], -1).double()
    index = best.reshape(-1, 1, 1).expand(-1, rows.shape[1], 1)
    drop: Floats = (flat.gather(1, best[:, None]) - rows.gather(2, index)[..., 0]).cpu().numpy()
    return drop
