"""Rows to record a forward function with: they differ from each other in every statistic.

What a function makes of its data (a largest value, a norm, a count, an order) must not be the same
in two recordings by chance: it would pass for a constant.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["probe_rows"]

# Of every row: how far its values move, and to which place between the least and the largest one.
# The rows of a second recording (from number 2 on) are faint, so that a function which compares a
# statistic with a bound is likely to decide otherwise for them.
_MOVES = ((0.0, 0.0), (0.22, 0.31), (0.93, 0.09), (0.88, 0.14), (0.96, 0.03))


def probe_rows(tensor: Tensor, baseline: Any, first: int, rows: int) -> Tensor:
    """Rows like a batch's first example, within the range of what the function will be given.

    Args:
        tensor: the argument, (N, ...).
        baseline: what windows are filled with: a number, a tensor, or None where there are none.
        first: the number of the first row; row 0 is the example itself.
        rows: how many rows; no two numbers give rows of the same statistics.
    """
    example = tensor.detach()[:1]
    out = example.repeat(rows, *([1] * (tensor.dim() - 1)))
    if tensor.dim() == 1 or tensor.numel() == 0:
        return out
    known = example.flatten()
    if baseline is not None:
        filled = torch.as_tensor(baseline, device=tensor.device).detach().flatten()
        known = torch.cat([known, filled.to(known.dtype)])
    for row, number in enumerate(range(first, first + rows)):
        if number == 0:
            continue
        share, place = _MOVES[number % len(_MOVES)]
        flat = out[row].view(-1)
        flat.copy_(_moved(flat, known, share, place, number))
        _reorder(flat, number)
    return out


def _moved(flat: Tensor, known: Tensor, share: float, place: float, number: int) -> Tensor:
    """The values drawn together, so that extremes, moments and histogram change."""
    if flat.is_complex():
        return flat * (1 - share)
    if not flat.is_floating_point():
        values, ranks = torch.unique(known, return_inverse=True)
        ranks, most = ranks[: flat.numel()], len(values) - 1
        first, last = (number + 1) // 2, most - number // 2  # the extremes go, one after another
        if first > last:
            first = last = number % (most + 1)
        chosen: Tensor = values[ranks.clamp(first, last)]
        return chosen
    finite = known[known.isfinite()].double()
    low, high = (finite.min(), finite.max()) if finite.numel() else (finite.new_zeros(()),) * 2
    if low == high:
        high = low + 1
    centre = low + place * (high - low)
    moved = flat.double() + share * (centre - flat.double())
    return torch.where(flat.isfinite(), moved, flat.double()).to(flat.dtype)


def _reorder(flat: Tensor, number: int) -> None:
    """Turns one part round and makes a smaller one of one value."""
    count = flat.numel()
    start, part = count * number // 6, max(1, count // 6)
    flat[start : start + part] = flat[start : start + part].flip(0)
    repeated = max(1, count // (16 + 8 * number))
    flat[:repeated] = flat[count // 2].clone()
