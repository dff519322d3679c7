"""Maps that grow until they are good enough: windows where they tell most, the rest by kriging.

The paper's drill-down looks closer where the outcome drops. This looks closer where the map is
least certain, and says how good the map is by now: a few windows that were run, but not told to the
map, are the judges of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .._call import ArgumentError
from .._operators import Floats, Integers, Mask
from .coarse import CoarseGrid
from .gaussian_process import Field, likeliest
from .libraries import scipy
from .quality import contrast, expected_ssim, sides_of

__all__ = ["LEAST_WINDOWS", "Budget", "Growth", "grow"]

Run = Callable[[Mask], Floats]

_FIRST_STEP = 4
LEAST_WINDOWS = 100  # a first grid and judges
_BATCH = 64  # windows a step at least: fewer would not fill a batch
_SHARE = 0.06  # of all windows, run in a step
_LEAST_SHARE, _MOST_SHARE = 0.03, 0.25  # where the step is chosen for a target
_BOLDNESS = 0.8  # of the way to the target
_JUDGES, _LEAST_JUDGES = 0.06, 24
_CAUTION = 4.0  # standard errors by which the error is thought to be larger than it looks
_FAVOUR = 2.0
_FAITH = 1e-4  # that where no window is near, errors are as everywhere
_NEIGHBOURS = 4.0  # windows over which errors are taken to be alike


@dataclass(frozen=True)
class Budget:
    """What the map of one image may cost at most: windows, or seconds, or either.

    A time budget is checked between steps, of which each runs windows and guesses the others: one
    that has begun is finished, and so are the untouched image's pass and the first coarse grid.
    Where outcomes are integers or not finite, nothing can be guessed: all windows are run then.

    Args:
        windows: how many windows may be run: at least 100, times the positions of the windows along
            dimensions such as channels, where they do not span those.
        seconds: how long an image may take, above 0.

    Raises:
        ValueError: (an `ArgumentError`) for numbers outside of these ranges, and where neither is
            given.
    """

    windows: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.windows is None and self.seconds is None:
            raise ArgumentError("budget must have windows or seconds, but has neither")
        if self.windows is not None and not (
            type(self.windows) is int and self.windows >= LEAST_WINDOWS
        ):
            raise ArgumentError(
                f"budget.windows must be an integer of at least {LEAST_WINDOWS}, "
                f"not {self.windows!r}"
            )
        if self.seconds is not None and not self.seconds > 0:
            raise ArgumentError(f"budget.seconds must be above 0, not {self.seconds}")


@dataclass(frozen=True)
class Growth:
    """A map at one moment.

    Attributes:
        values: (windows, outputs), those of windows that were run exact.
        known: which windows were run, (windows,).
        quality: the structural similarity to the exact map that is to be expected, on the side of
            caution; 1 where all windows were run.
    """

    values: Floats
    known: Mask
    quality: float


def grow(
    counts: tuple[int, ...],
    spacing: tuple[float, ...],
    run: Run,
    shown: tuple[int, ...] = (0,),
    limit: int | None = None,
    target: float | None = None,
    prior: Floats | None = None,
) -> Iterator[Growth]:
    """Ever better maps, until all windows were run, or as many as may be.

    Args:
        counts: the map's windows along each axis.
        spacing: the distance of neighbouring windows along each axis, in windows' sides.
        run: gives the outcomes of some windows, (windows, outputs); those of the others are not
            read.
        shown: the outputs whose maps are to be good.
        limit: how many windows may be run, where not all.
        target: the quality that is wanted, where one is: steps lead there, not beyond.
        prior: what all outcomes are about, where that is known: what is guessed is how far they
            are from it.
    """
    total = math.prod(counts)
    limit = total if limit is None else min(limit, total)
    known, step = _first_grid(counts, limit)
    judges = _judges(known, max(_LEAST_JUDGES, math.ceil(_JUDGES * limit)))
    if known.sum() + len(judges) + _BATCH >= total <= limit:
        everything = np.ones(total, bool)
        yield Growth(run(everything), everything, 1.0)
        return
    asked = known.copy()
    asked[judges] = True
    values = np.where(asked[:, None], run(asked), 0.0)  # what was not run may be any number
    if not np.isfinite(values[asked]).all():
        yield Growth(*_without_guesses(run, values, asked), 1.0)
        return
    about = np.zeros((total, 1)) if prior is None else prior
    favour = _favour(counts)
    history: list[tuple[int, float]] = []  # windows, and quality
    field: Field | None = None
    maps = [_Judged(counts, judges) for _ in shown]
    for stage in range(total):
        if field is None or stage == 2:
            # Half of the first grid is left out once.
            field = likeliest(counts, spacing, known, (values - about)[:, shown[0]], 2 * step)
        guess, variance = field.predict(known, values - about)
        guess += about
        guess[known] = values[known]
        filled = np.where(asked[:, None], values, guess)
        for output, judged in zip(shown, maps, strict=True):
            if stage == 0:
                judged.begin(field, known, (values - about)[:, output], filled[:, output])
            judged.judge(known, values[:, output], guess[:, output], variance)
        history.append((int(asked.sum()), min(judged.quality for judged in maps)))
        yield Growth(filled, asked.copy(), history[-1][1])
        count = min(_step(history, total, target), limit - history[-1][0])
        if count <= 0:
            return
        worth = np.sum([judged.worth for judged in maps], axis=0)
        chosen = _first(worth * favour, asked, count)
        mask = np.zeros(total, bool)
        mask[chosen] = True
        values = np.where(mask[:, None], run(mask), values)
        if not np.isfinite(values[mask]).all():
            yield Growth(*_without_guesses(run, values, asked | mask), 1.0)
            return
        for output, judged in zip(shown, maps, strict=True):
            judged.learn(chosen, values[chosen, output] - guess[chosen, output])
        known |= mask
        asked |= mask


class _Judged:
    """How wrong the guesses of one output's map are.

    Attributes:
        quality: the structural similarity to the exact map that is to be expected.
        worth: how much of what is missing there each window's error is to blame for.
    """

    quality: float
    worth: Floats

    def __init__(self, counts: tuple[int, ...], judges: Integers) -> None:
        self.counts, self.judges = counts, judges
        self.surprise = np.full(math.prod(counts), np.nan)
        self.expected = np.empty(0)

    def begin(self, field: Field, known: Mask, values: Floats, filled: Floats) -> None:
        """Learns from the first grid's windows, each guessed from others of them.

        Args:
            field: what guesses.
            known: the windows of the first grid.
            values: their outcomes, or how far those are from the prior.
            filled: the map.
        """
        scale = _scale(filled.reshape(self.counts))
        self.surprise[known] = _left_out(field, known, values, scale)

    def judge(self, known: Mask, values: Floats, guess: Floats, variance: Floats) -> None:
        """Finds quality and worth.

        Args:
            known: the windows that the guesses are made from.
            values: the outcomes, of these windows and of the judges.
            guess: the guesses.
            variance: that of each guess's error, as a share of the field's.
        """
        wrong = guess[self.judges] - values[self.judges]
        filled = guess.copy()
        filled[self.judges] = values[self.judges]
        plain = filled.reshape(self.counts)
        self.expected = np.maximum(variance * _scale(plain), 1e-300)
        # Nothing may have been surprising so far, and a judge be wrong all the same.
        surprise = np.maximum(_spread(self.surprise, self.counts), 1e-9 if wrong.any() else 0.0)
        error = np.where(known, 0.0, self.expected * surprise)
        weight = _weight(plain, error.reshape(self.counts)).reshape(-1)
        error *= _times_larger(wrong, error[self.judges], weight[self.judges])
        error[self.judges] = 0.0
        self.quality = expected_ssim(plain, error.reshape(self.counts))
        self.worth = error * weight

    def learn(self, chosen: Integers, wrong: Floats) -> None:
        """Learns how wrong the guesses of windows were that have been run since."""
        self.surprise[chosen] = wrong * wrong / self.expected[chosen]


def _step(history: list[tuple[int, float]], total: int, target: float | None) -> int:
    """How many windows to run next.

    What is missing in quality falls by the same factor with every so many windows, more or less:
    most of the way to the target is gone in one step.
    """
    share = _SHARE
    if target is not None and target < 1 and len(history) > 1:
        (before, low), (now, high) = history[-2:]
        if low < high < target:
            fall = math.log((1 - low) / (1 - high)) / (now - before)
            share = _BOLDNESS * math.log((1 - high) / (1 - target)) / fall / total
            share = min(max(share, _LEAST_SHARE), _MOST_SHARE)
    return max(_BATCH, math.ceil(share * total))


def _without_guesses(run: Run, values: Floats, asked: Mask) -> tuple[Floats, Mask]:
    """All windows run: where an outcome is not finite, no guess is possible."""
    if not asked.all():
        values = np.where(asked[:, None], values, run(~asked))
    return values, np.ones_like(asked)


def _first_grid(counts: tuple[int, ...], limit: int) -> tuple[Mask, int]:
    """The first windows, and their distance: 4 along each axis, or more for half the limit."""
    step = _FIRST_STEP
    while True:
        known = CoarseGrid(counts, tuple(range(len(counts))), step).windows
        if known.sum() <= limit // 2 or step >= max(counts):
            return np.array(known, bool), step
        step += 1


def _judges(known: Mask, count: int) -> Integers:
    """Windows that are run but not told to the map, spread over all that are not known."""
    rest = np.flatnonzero(~known)
    return np.random.default_rng(0).permutation(rest)[:count]


def _scale(plain: Floats) -> Floats:
    """How large errors may be: where a map hardly changes, they are small."""
    variance, small = contrast(plain)
    found: Floats = (variance + 1e-3 * small).reshape(-1)
    return found


def _left_out(field: Field, known: Mask, values: Floats, scale: Floats) -> Floats:
    """How wrong each known value's guess from the others is, in squares of what was expected."""
    found = np.empty(int(known.sum()))
    numbers = np.flatnonzero(known)
    half = np.arange(len(numbers)) % 2 == 0
    for part in (half, ~half):
        kept = known.copy()
        kept[numbers[part]] = False
        guess, variance = field.predict(kept, values[:, None])
        wrong = guess[numbers[part], 0] - values[numbers[part]]
        expected = variance[numbers[part]] * scale[numbers[part]]
        found[part] = wrong * wrong / np.maximum(expected, 1e-300)
    return found


def _spread(surprise: Floats, counts: tuple[int, ...]) -> Floats:
    """The mean surprise about every window; where there is none near, that of all."""
    seen = ~np.isnan(surprise)
    mean = float(surprise[seen].mean())
    gaussian_filter = scipy("ndimage").gaussian_filter
    near = gaussian_filter(np.where(seen, surprise, 0).reshape(counts), _NEIGHBOURS)
    share = gaussian_filter(seen.astype(float).reshape(counts), _NEIGHBOURS)
    found: Floats = ((near + _FAITH * mean) / (share + _FAITH)).reshape(-1)
    return found


def _weight(plain: Floats, error: Floats) -> Floats:
    """By how much the error of each window lowers the expected similarity."""
    sides = sides_of(plain.shape)
    variance, small = contrast(plain)
    uniform_filter = scipy("ndimage").uniform_filter
    whole = np.maximum(2 * variance + uniform_filter(error, sides) + small, 1e-300)
    slope = (2 * variance + small) / whole / whole
    found: Floats = uniform_filter(slope, sides)
    return found


def _times_larger(wrong: Floats, expected: Floats, weight: Floats) -> float:
    """How many times larger errors are than expected, from the judges, on the side of caution."""
    found, thought = wrong * wrong * weight, expected * weight
    if thought.sum() == 0:
        return 1.0
    draws = np.random.default_rng(0).integers(0, len(wrong), (100, len(wrong)))
    ratios = found[draws].sum(1) / np.maximum(thought[draws].sum(1), 1e-300)
    return float(found.sum() / thought.sum() + _CAUTION * ratios.std())


def _favour(counts: tuple[int, ...]) -> Floats:
    """More for windows of the next coarser grids: a lattice tells more than as many at random.

    The cells' centres of the first grid, then every second window, then the centres of those.
    """
    place = np.indices(counts)
    level = np.full(counts, 3)
    level[(place % 2 == 1).all(0)] = 2
    level[(place % 2 == 0).all(0)] = 1
    level[(place % 4 == 2).all(0)] = 0
    found: Floats = _FAVOUR ** -level.reshape(-1).astype(float)
    return found


def _first(worth: Floats, asked: Mask, count: int) -> Integers:
    """The windows of most worth that were not asked for yet."""
    order = np.argsort(-worth, kind="stable")
    return order[~asked[order]][:count]
