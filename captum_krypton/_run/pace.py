"""Which is faster for the windows of a plan: the plan, or the forward function itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Pace", "in_best_batches"]

# Maps by a plan until its time counts: the first one finds memory and caches cold.
_MAPS = 2
# Seconds of a map that nobody waits for: another path would change its rounding for nothing.
_SHORT = 0.1
# What a window in a batch is taken to need of one alone, until it has been seen. One volume alone
# may take PyTorch's slower loop; where a batch gains more than this, a slower plan is kept.
_GAIN_OF_COMPANY = 0.6
# A larger batch has to be faster by this, or it is noise.
_FASTER = 0.95


@dataclass
class Pace:
    """What a window of a plan has taken so far.

    Predictions may be wrong, so that the times of maps decide whether a plan pays.

    Attributes:
        maps: maps that the plan has made.
        by_plan: seconds for a window by the plan, the least of its maps.
        alone: the same by the forward function, one window at a time.
        together: the same in the batches that suit it best, the least of its maps.
    """

    maps: int = 0
    by_plan: float = math.inf
    alone: float = math.inf
    together: float = math.inf

    def saw_plan(self, seconds: float, windows: int) -> None:
        """Notes a map by the plan, and how long it took."""
        if seconds >= _SHORT:
            self.maps += 1
            self.by_plan = min(self.by_plan, seconds / windows)

    @property
    def leaves_plan(self) -> bool:
        """Whether the next map is to be made by the forward function itself."""
        if self.maps < _MAPS:
            return False
        if self.together < math.inf:
            return self.together < self.by_plan
        return _GAIN_OF_COMPANY * self.alone < self.by_plan


def in_best_batches(
    run: Callable[[list[int]], Tensor],
    total: int,
    most: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Tensor, int]:
    """Runs windows in batches that grow as long as that makes a window faster.

    Args:
        run: from windows to their outcomes, (windows, ...).
        total: how many windows there are.
        most: the most windows in a batch.
        clock: the time in seconds.

    Returns:
        The outcomes of all windows, and the size of most batches.
    """
    outcomes: list[Tensor] = []
    size, kept, least, first = 1, 1, math.inf, 0
    while first < total:
        windows = list(range(first, min(first + size, total)))
        started = clock()
        outcomes.append(run(windows))
        seconds = (clock() - started) / len(windows)
        first += len(windows)
        if size <= kept and least < math.inf:
            continue  # the size is settled
        if seconds < _FASTER * least:
            kept, least = size, seconds
            size = min(2 * size, most)
        else:
            size = kept
    return torch.cat(outcomes), kept
