"""What a captured graph is checked with: the untouched outcome, and a few windows."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .._call import difference, distances, tolerance
from .._operators import Mask

__all__ = ["LOOSE", "Noise", "Stale", "checked_windows", "rounding_of"]

# How much farther from the forward function than on checked windows the graph may be on the
# untouched input. What 16 bits leave is coarse as it is.
LOOSE = 100.0
_LOOSE_OF = {torch.float16: 1.0, torch.bfloat16: 1.0}
# The same, in units of what rounding the inputs does to the outcome, and how often that is tried.
_ROUNDINGS, _TRIES = 30.0, 3


class Stale(Exception):
    """The graph and the forward function give different outcomes for the untouched input."""


class Noise:
    """Compares the graph's outcome for the untouched input with the forward function's.

    Each outcome of the map is held to its own size: a large output says nothing of a small one.
    Where that is not enough, as for an outcome near zero, it is held to what rounding does to it.

    Args:
        output: the forward function's output for the untouched inputs.
        select: from rows of the output and their images to the outcomes that the map shows.
        rounding: how far rounding moves each outcome, of the output's outcomes' shape; called where
            it is needed.
    """

    def __init__(
        self,
        output: Tensor,
        select: Callable[[Tensor, slice], Tensor],
        rounding: Callable[[], Tensor],
    ) -> None:
        self.output, self._select, self._rounding = output, select, rounding
        self.error = 0.0

    def see(self, images: slice, output: Tensor) -> Tensor:
        """Takes the graph's output for some of the images, and gives its outcomes."""
        expected = self.output[images]
        if output.shape != expected.shape or output.dtype != expected.dtype:
            raise Stale("the graph's output has another shape or type than the forward's")
        ours, theirs = self._select(output, images), self._select(expected, images)
        off = distances(ours, theirs)
        allowed = theirs.double().abs().nan_to_num(0.0, 0.0, 0.0) * (
            tolerance(torch.ones_like(theirs)) * _LOOSE_OF.get(theirs.dtype, LOOSE)
        )
        if not bool((off <= allowed).all()):
            moved = self._rounding()[images].reshape(off.shape)
            allowed = allowed.maximum(moved * _ROUNDINGS)
        beyond = off - allowed
        if not bool((beyond <= 0).all()):
            worst = beyond.argmax()
            raise Stale(
                f"the captured graph gives an outcome that differs by {off.flatten()[worst]:.3g} "
                f"from the forward function's (allowed: {allowed.flatten()[worst]:.3g})"
            )
        self.error = max(self.error, difference(ours, theirs))
        return ours


def rounding_of(
    forward: Callable[[tuple[Tensor, ...]], Tensor], inputs: tuple[Tensor, ...], outcome: Tensor
) -> Tensor:
    """How far rounding its inputs moves each outcome: the largest of a few tries, float64.

    Args:
        forward: from inputs to outcomes.
        inputs: the untouched inputs.
        outcome: their outcomes.
    """
    most = torch.zeros(outcome.shape, dtype=torch.float64, device=outcome.device)
    noise = torch.Generator().manual_seed(0)
    for _ in range(_TRIES):
        moved = []
        for tensor in inputs:
            if tensor.is_floating_point():
                up = torch.randint(0, 2, tensor.shape, generator=noise).to(tensor.device) * 2 - 1
                eps = torch.finfo(tensor.dtype).eps
                if outcome.is_floating_point():  # under autocast it has fewer bits
                    eps = max(eps, torch.finfo(outcome.dtype).eps)
                tensor = tensor + tensor * up * eps
            moved.append(tensor)
        most = most.maximum(distances(forward(tuple(moved)), outcome))
    return most


def checked_windows(counts: tuple[int, ...], runs: Mask) -> list[int]:
    """The middle one of the windows that are run, a corner, the last and an edge.

    Where some are not run, one beside the corner that is not comes second. One of 256, but one at
    least and four at most: a check must not cost what it checks.

    Args:
        counts: the windows along each dimension.
        runs: which windows are run, (windows,), a box of them; row-major numbers come back.
    """
    numbers = np.arange(math.prod(counts)).reshape(counts)
    inside = np.argwhere(runs.reshape(counts))
    first, last = inside[0], inside[-1]
    middle = (first + last + 1) // 2
    places = [middle, first, last, np.append(last[:-1], middle[-1:])]
    for dim, count in enumerate(counts):
        for outside in (last[dim] + 1, first[dim] - 1):
            if 0 <= outside < count and len(places) == 4:
                places.insert(1, np.where(np.arange(len(counts)) == dim, outside, middle))
    most = min(4, max(1, len(runs) // 256))
    return sorted({int(numbers[tuple(place)]) for place in places[:most]})
