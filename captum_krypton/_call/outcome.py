"""Outcomes: which of a forward function's outputs are meant, and when two of them are the same."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._operators import Interval
from .arguments import Predicted

__all__ = [
    "Part",
    "difference",
    "distances",
    "part_of",
    "part_target",
    "resolve_target",
    "row_target",
    "tolerance",
]

Part = tuple[Interval, ...]  # cells of an output's dimensions behind the batch, of the first few

# How far two computations of one outcome may be apart, relative to the largest outcome.
_TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def resolve_target(output: Tensor, target: Any) -> Any:
    """Captum's target; for the default, the largest output of each example."""
    if not isinstance(target, Predicted):
        return target
    if output.dim() < 2 or output.numel() == 0:
        return None
    best = output.reshape(output.shape[0], -1).argmax(1)
    if output.dim() == 2:
        return int(best) if len(best) == 1 else best
    index = torch.unravel_index(best, output.shape[1:])
    return [tuple(int(i[n]) for i in index) for n in range(output.shape[0])]


def row_target(target: Any, image: Tensor) -> Any:
    """The target for rows that belong to the given images."""
    if isinstance(target, list):
        return [target[i] for i in image.tolist()]
    if isinstance(target, Tensor) and target.numel() > 1:
        return target.to(image.device)[image]
    return target


def part_of(target: Any, shape: tuple[int, ...]) -> Part | None:
    """The smallest part of an output (N, *shape) that holds what a target names.

    Where examples have targets of their own it holds those of all. None where a target names none
    of the dimensions, or in a way that is left to PyTorch.
    """
    if isinstance(target, Tensor) and target.dim() == 1 and target.numel() > 1:
        target = target.tolist()
    each = [_indices(one) for one in (target if isinstance(target, list) else [target])]
    if not each or not each[0] or len(each[0]) > len(shape):
        return None
    if any(len(indices) != len(each[0]) for indices in each):
        return None
    part: list[Interval] = []
    for size, *indices in zip(shape, *each, strict=False):
        cells = [_cells(index, size) for index in indices]
        found = [pair for pair in cells if pair is not None]
        if len(found) < len(cells):
            return None
        part.append((min(start for start, _ in found), max(stop for _, stop in found)))
    return tuple(part)


def part_target(target: Any, part: Part, shape: tuple[int, ...]) -> Any:
    """What a target of an output (N, *shape) is in the part that `part_of` gives for it."""
    if isinstance(target, list):
        return [part_target(one, part, shape) for one in target]
    if isinstance(target, Tensor) and target.dim() == 1 and target.numel() > 1:
        return target - part[0][0]
    moved: list[int | slice] = []
    for index, (first, _), size in zip(_indices(target), part, shape, strict=False):
        cells = _cells(index, size)
        assert cells is not None
        start, stop = cells[0] - first, cells[1] - first
        moved.append(slice(start, stop, index.step) if isinstance(index, slice) else start)
    return tuple(moved) if isinstance(target, tuple) else moved[0]


def _indices(target: Any) -> tuple[Any, ...]:
    """The indices that a target names, one a dimension."""
    if isinstance(target, Tensor):
        return tuple(target.reshape(-1).tolist()) if target.numel() == 1 else ()
    return target if isinstance(target, tuple) else (target,)


def _cells(index: Any, size: int) -> Interval | None:
    """The first cell that an index names, and where those that it names end; None for none."""
    if isinstance(index, slice):
        try:
            cells = range(*index.indices(size))
        except (TypeError, ValueError):
            return None
        return (cells[0], cells[-1] + 1) if cells and cells.step > 0 else None
    if type(index) is not int or not -size <= index < size:
        return None
    return index % size, index % size + 1


def tolerance(*outcomes: Tensor) -> float:
    """How far apart two computations of such outcomes may be: rounding, and no more."""
    dtype = outcomes[0].dtype
    if dtype not in _TOLERANCE:
        return 0.0
    scale = max(float(_largest(outcome)) for outcome in outcomes)
    return _TOLERANCE[dtype] * scale + 4 * torch.finfo(dtype).eps


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference; infinite where one is finite and the other is not."""
    return float(distances(a, b).max()) if a.numel() else 0.0


def distances(a: Tensor, b: Tensor) -> Tensor:
    """How far apart two tensors are, cell by cell, float64; see `difference`."""
    a, b = a.double(), b.double()
    gap = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())
    return gap.nan_to_num(nan=math.inf, posinf=math.inf)


def _largest(tensor: Tensor) -> Tensor:
    finite = tensor.double().abs()
    finite = torch.where(finite.isfinite(), finite, 0.0)
    return finite.max() if finite.numel() else finite.sum()
