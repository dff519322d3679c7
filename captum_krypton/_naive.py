"""Windows one after another through the forward function itself, as Captum does it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from captum._utils.common import _expand_additional_forward_args, _expand_target, _run_forward
from torch import Tensor

from ._arguments import Call

__all__ = ["naive_scores", "occluded_input", "window_slices"]


def window_slices(call: Call, position: int, window: int) -> tuple[slice, ...]:
    """The cells that one window covers, by its row-major number in the grid."""
    grid = call.grids[position]
    index: list[int] = []
    for count in reversed(grid.counts):
        index.append(window % count)
        window //= count
    out = []
    for dim, i in enumerate(reversed(index)):
        reach = grid.along(dim)
        out.append(slice(int(reach.start[i]), int(reach.stop[i])))
    return tuple(out)


def occluded_input(call: Call, position: int, window: int, *, captum: bool) -> Tensor:
    """The input with one window covered by the baseline.

    Captum's formula keeps what is not finite inside the window; otherwise it is replaced.
    """
    tensor, baseline = call.inputs[position], call.baselines[position]
    mask = torch.zeros(tensor.shape[1:], dtype=tensor.dtype, device=tensor.device)
    mask[window_slices(call, position, window)] = 1
    if not captum:
        return torch.where(mask > 0, baseline, tensor)
    out: Tensor = tensor * (torch.ones_like(mask) - mask) + baseline * mask
    return out


def naive_scores(
    forward: Callable[..., Any],
    call: Call,
    position: int,
    target: Any,
    windows: list[int],
    progress: Callable[[int], None],
    *,
    captum: bool,
) -> Tensor:
    """Outcomes of some windows, (windows, *outcome of the untouched input).

    `captum` says whether windows are covered by Captum's formula (see `occluded_input`).
    """
    rows: list[Tensor] = []
    step = call.perturbations or 1
    for first in range(0, len(windows), step):
        part = windows[first : first + step]
        covered = torch.cat([occluded_input(call, position, w, captum=captum) for w in part])
        inputs = tuple(
            covered if i == position else torch.cat([t] * len(part))
            for i, t in enumerate(call.inputs)
        )
        extra = (
            _expand_additional_forward_args(call.extra, len(part))
            if len(part) > 1
            else (call.extra)
        )
        outcome = _run_forward(forward, inputs, _expand_target(target, len(part)), extra or None)
        if not isinstance(outcome, Tensor):
            outcome = torch.tensor(outcome)
        rows.append(
            outcome.detach().unflatten(0, (len(part), -1))
            if len(part) > 1
            else outcome.detach()[None]
        )
        progress(len(part) * call.examples)
    return torch.cat(rows)
