"""Approximate maps: fewer windows, smaller patches, and what that did to this map."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from .._call import ImageReport, Report, WindowGrid
from .._operators import Floats, Mask
from .._plan import Plan
from .._run import Base, Execution, InputRun, Selection
from .approximation import Approximation
from .drilldown import drill_down
from .refine import Growth, grow

__all__ = ["Approximate", "Made", "Windows", "growing", "make_maps", "only"]


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

    @property
    def macs(self) -> float:
        """Multiply-accumulates of the windows that have been run (Eq. 15-16)."""
        counts = self.runs.items()
        return sum(n * self.executions[t].plan.macs_incremental for t, n in counts)


@dataclass(frozen=True)
class Approximate:
    """Maps of some images.

    Attributes:
        scores: the outcomes of all windows, (images, windows, outputs...).
        known: which windows were run, or need not be (see `settled`).
        exact: which of them were run without a threshold.
        quality: the structural similarity to the exact map that each image's is expected to have;
            None where nothing was estimated.
        seconds: what each image took by itself; none where images ran together.
    """

    scores: Tensor
    known: Selection
    exact: Selection
    quality: tuple[float, ...] | None = None
    seconds: tuple[float, ...] = ()

    @classmethod
    def of_all(cls, parts: list[Approximate]) -> Approximate:
        """The maps of all images, from those of some at a time."""
        qualities = [part.quality for part in parts if part.quality is not None]
        return cls(
            torch.cat([part.scores for part in parts]),
            np.concatenate([part.known for part in parts]),
            np.concatenate([part.exact for part in parts]),
            sum(qualities, ()) if qualities else None,
            sum((part.seconds for part in parts), ()),
        )

    def settled(self, plan: Plan, reference: Tensor) -> Approximate:
        """With the windows that change no outcome: theirs is known without a run.

        Args:
            plan: the plan.
            reference: the outcome of the untouched images, (images, outputs...).
        """
        if plan.runs.all():
            return self
        free = ~plan.runs
        place = torch.from_numpy(free).to(reference.device)
        scores = torch.where(
            place.reshape(-1, *[1] * (reference.dim() - 1)), reference[:, None], self.scores
        )
        return replace(self, scores=scores, known=self.known | free, exact=self.exact | free)

    @property
    def least_quality(self) -> float:
        """The lowest of the expected similarities; 0 where nothing was estimated."""
        return min(self.quality or (0.0,))

    def estimated_ssim(self, plan: Plan) -> float | None:
        """The similarity to the exact map that every image's is expected to have at least."""
        if self.quality is not None:
            return min(self.quality)
        return 1.0 if plan.threshold == 1 and self.known.all() else None

    def report(self, run: InputRun, execution: Execution, speedup: float) -> Report:
        """What is known of the maps, but for their times and the error of their check.

        Args:
            run: the windows of the input.
            execution: what ran them.
            speedup: the saving in multiply-accumulates (Eq. 17).
        """
        return replace(
            run.report(execution.statistics),
            theoretical_speedup=speedup,
            windows_evaluated=int(self.known.sum()),
            windows_exact=int(self.exact.sum()),
            estimated_ssim=self.estimated_ssim(run.plan),
            images=tuple(self._of_images(run.plan)),
        )

    def _of_images(self, plan: Plan) -> Iterator[ImageReport]:
        for image, known in enumerate(self.known):
            one = replace(
                self,
                known=known,
                quality=None if self.quality is None else self.quality[image : image + 1],
            )
            yield ImageReport(
                self.seconds[image] if self.seconds else 0.0,
                int(known.sum()),
                int(self.exact[image].sum()),
                one.estimated_ssim(plan),
            )


@dataclass(frozen=True)
class Made:
    """The maps of all images, and what is needed to check them.

    Attributes:
        maps: the maps.
        checked: the exact outcomes of the windows to check, (N, windows to check, outputs...).
        speedup: the saving in multiply-accumulates (Eq. 17).
        execution: what ran them.
    """

    maps: Approximate
    checked: Tensor
    speedup: float
    execution: Execution


def make_maps(approximation: Approximation, run: InputRun, advance: Callable[[int], None]) -> Made:
    """The maps of all images of an input.

    Args:
        approximation: how a map may differ from the exact one.
        run: the windows of the input.
        advance: told the number of windows of every batch that has been run.
    """
    plan, checking = run.plan, run.checking
    execution = run.execution(plan)
    if approximation.exact:
        scores = execution.run(advance, run.untouched.begun, checking)
        everything = np.ones(scores.shape[:2], bool)
        exact = Approximate(scores, everything, everything)
        return Made(exact, scores[:, checking], plan.theoretical_speedup, execution)
    executions = {plan.threshold: execution}
    if plan.threshold < 1 and (checking or approximation.grows):
        executions[1.0] = run.execution(run.exact_plan)
    maps, checked, macs = [], [], 0.0
    for images in execution.side_by_side():
        windows = Windows(executions, images, advance)
        reference = run.reference[images]
        made = approximate(approximation, windows, plan, reference)
        maps.append(made.settled(plan, reference))
        macs += windows.macs
        scores = maps[-1].scores
        if checking:
            windows.advance = lambda rows: None
            scores = windows.run(only(checking, maps[-1].known), 1.0)
        checked.append(scores[:, checking])
    every = Approximate.of_all(maps)
    speedup = plan.saving(every.known.size, macs)
    return Made(every, torch.cat(checked), speedup, execution)


def only(windows: list[int], like: Selection) -> Selection:
    """A selection of these windows of every image."""
    selected = np.zeros_like(like)
    selected[:, windows] = True
    return selected


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
                if approximation.is_enough(made.least_quality, time.perf_counter() - started):
                    break
        assert made is not None
        windows.advance(int((~made.known).sum()))
        maps.append(replace(made, seconds=(time.perf_counter() - started,)))
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
    assert isinstance(grid, WindowGrid)  # see `Approximation.check`
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
