"""Windows that the forward function has run before a plan takes over: part of the map's answer."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Begun"]


class Begun:
    """A map's windows in some order, of which the forward function runs the first ones.

    Args:
        run: from the numbers of windows to their outcomes by the forward function, (windows, N,
            outputs...).
        order: the numbers of all windows, in the order in which they are run.
        step: how many run together.

    Attributes:
        step: how many of the next windows run together.
        of_window: seconds that a window takes, as far as it is known.
    """

    def __init__(self, run: Callable[[list[int]], Tensor], order: list[int], step: int) -> None:
        self._run, self._order, self.step = run, order, step
        self._scores: list[Tensor] = []
        self._place: dict[int, int] = {}  # of a window among the outcomes
        self._batch: dict[int, tuple[int, int]] = {}  # its place in its batch, and the batch's size
        self.of_window = math.inf

    @property
    def windows(self) -> list[int]:
        """The windows that have been run."""
        return list(self._place)

    @property
    def left(self) -> int:
        """How many windows have not been run."""
        return len(self._order) - len(self._place)

    def run_batch(self) -> int:
        """Runs the next batch; how many windows it had."""
        done = len(self._place)
        part = self._order[done : done + self.step]
        self._scores.append(self._run(part))
        for i, window in enumerate(part):
            self._place[window], self._batch[window] = done + i, (i, len(part))
        return len(part)

    def place(self, window: int) -> tuple[int, int]:
        """The place of a window in the batch that it was in, and how many were in it."""
        return self._batch[window]

    def go_on(self, seconds: float) -> None:
        """Has the device run windows for about so long, without waiting for it.

        What fails here is left to the plan.
        """
        batches = math.floor(seconds / (self.of_window * self.step))
        try:
            for _ in range(min(batches, math.ceil(self.left / self.step))):
                self.run_batch()
        except Exception:  # such as a lack of memory
            return

    def scores(self, windows: list[int]) -> Tensor:
        """Outcomes of some windows that have been run, (windows, N, outputs...)."""
        every = torch.cat(self._scores)
        return every[[self._place[window] for window in windows]]
