"""Outcomes: which of a forward function's outputs are meant, and when two of them are the same."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .arguments import Predicted

__all__ = ["difference", "distances", "resolve_target", "row_target", "tolerance"]

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
