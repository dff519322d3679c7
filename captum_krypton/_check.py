"""What a captured graph is checked with: the untouched outcome, and a few windows."""

from __future__ import annotations

import math

from torch import Tensor

from ._outcome import difference, tolerance

__all__ = ["LOOSE", "Noise", "Stale", "checked_windows"]

# How much farther from the forward function than on checked windows the graph may be on the
# untouched input.
LOOSE = 100.0


class Stale(Exception):
    """The graph and the forward function give different outcomes for the untouched input."""


class Noise:
    """Compares the graph's outcome for the untouched input with the forward function's."""

    def __init__(self, output: Tensor) -> None:
        self.output = output
        self.error = 0.0

    def see(self, images: slice, output: Tensor) -> None:
        """Takes the graph's output for some of the images."""
        expected = self.output[images]
        if output.shape != expected.shape or output.dtype != expected.dtype:
            raise Stale("the graph's output has another shape or type than the forward's")
        error = difference(output, expected)
        allowed = tolerance(expected) * LOOSE
        if not error <= allowed:
            raise Stale(
                f"the captured graph gives an outcome that differs by {error:.3g} from the "
                f"forward function's (allowed: {allowed:.3g})"
            )
        self.error = max(self.error, error)


def checked_windows(counts: tuple[int, ...]) -> list[int]:
    """The middle one of the windows, a corner, the last and an edge, by row-major number.

    One of 256, but one at least and four at most: a check must not cost what it checks.
    """
    places = [
        tuple(c // 2 for c in counts),
        tuple(0 for _ in counts),
        tuple(c - 1 for c in counts),
        tuple(c // 2 if i == len(counts) - 1 else c - 1 for i, c in enumerate(counts)),
    ]
    numbers = set()
    for place in places[: max(1, math.prod(counts) // 256)]:
        number = 0
        for index, count in zip(place, counts, strict=True):
            number = number * count + index
        numbers.add(number)
    return sorted(numbers)
