"""Windows one after another through the forward function itself, as Captum does it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from captum._utils.common import (
    _expand_additional_forward_args,
    _expand_target,
    _run_forward,
    _select_targets,
)
from torch import Tensor

from .._call import Call, OcclusionMap, Report, map_of, progress, resolve_target

__all__ = ["Fallback", "naive_maps", "naive_report", "naive_scores", "occluded_inputs"]


class Fallback(Exception):
    """The map cannot be made from a graph; the message says why.

    Args:
        reason: why.
        quiet: true where Captum's path is as fast as any.
    """

    def __init__(self, reason: str, *, quiet: bool = False) -> None:
        super().__init__(reason)
        self.quiet = quiet


def occluded_inputs(call: Call, position: int, windows: list[int], *, captum: bool) -> Tensor:
    """The input with each of some windows covered by the baseline, (windows * N, ...).

    Captum's formula keeps what is not finite inside the window; otherwise it is replaced.

    Args:
        call: the checked arguments.
        position: which input.
        windows: row-major numbers in the input's grid.
        captum: whether to use Captum's formula.
    """
    tensor, baseline, grid = call.inputs[position], call.baselines[position], call.grids[position]
    covered = grid.cells(windows, tensor.device)[:, None]
    if call.own_mean[position]:
        means = grid.means(tensor)[:, windows].to(tensor.dtype)  # (N, windows, channels)
        means = means.transpose(0, 1).reshape(
            len(windows), len(tensor), -1, *[1] * (tensor.dim() - 2)
        )
        return torch.where(covered, means, tensor).flatten(0, 1)
    if not captum:
        return torch.where(covered, baseline, tensor).flatten(0, 1)
    mask = covered.to(tensor.dtype)
    out: Tensor = tensor * (torch.ones_like(mask) - mask) + baseline * mask
    return out.flatten(0, 1)


def naive_scores(
    forward: Callable[..., Any],
    call: Call,
    position: int,
    target: Any,
    windows: list[int],
    advance: Callable[[int], None],
    *,
    captum: bool,
) -> Tensor:
    """Outcomes of some windows, (windows, *outcome of the untouched input).

    `captum` says whether windows are covered by Captum's formula (see `occluded_inputs`).
    """
    rows: list[Tensor] = []
    step = call.perturbations or 1
    for first in range(0, len(windows), step):
        part = windows[first : first + step]
        covered = occluded_inputs(call, position, part, captum=captum)
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
        outcome = _as_tensor(outcome)
        rows.append(
            outcome.detach().unflatten(0, (len(part), -1))
            if len(part) > 1
            else outcome.detach()[None]
        )
        advance(len(part) * call.examples)
    return torch.cat(rows)


def _as_tensor(output: Any) -> Tensor:
    """An outcome of the forward function: a tensor, or a number for the whole batch."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (int, float)):
        return torch.tensor(output)
    raise TypeError(
        f"forward_func must return a tensor or a number, not {type(output).__name__}: wrap it in a "
        "function that returns the tensor to explain"
    )


def naive_maps(
    forward: Callable[..., Any], call: Call, reason: str, show_progress: bool | None
) -> tuple[OcclusionMap, ...]:
    """The maps by running the forward function for every window, as Captum does."""
    output = _as_tensor(_run_forward(forward, call.inputs, None, call.extra or None))
    target = resolve_target(output, call.target)
    reference = _select_targets(output, target)
    maps = []
    for position, grid in enumerate(call.grids):
        started = time.perf_counter()
        with progress(call, show_progress, grid.total) as advance:
            scores = naive_scores(
                forward,
                call,
                position,
                target,
                list(range(grid.total)),
                advance,
                captum=True,
            )
        step = call.perturbations or 1
        report = naive_report("captum", reason, grid.total, step, call, started)
        rows = scores.movedim(0, 1) if scores.dim() > 1 else scores[None]
        maps.append(map_of(grid, rows, reference, target, report))
    return tuple(maps)


def naive_report(
    path: str, reason: str, windows: int, size: int, call: Call, started: float, setup: float = 0.0
) -> Report:
    """What is known of a map by the forward function.

    Args:
        path: `Report.path`.
        reason: why the forward function made it.
        windows: its windows.
        size: how many of them ran together.
        call: the checked arguments.
        started: when it was begun, by `time.perf_counter`.
        setup: seconds that were spent before.
    """
    return Report(
        path,
        (reason,),
        windows,
        1,
        math.ceil(windows / size),
        min(size, windows) * call.examples,
        setup + time.perf_counter() - started,
        setup,
        windows_evaluated=windows * call.examples,
        windows_exact=windows * call.examples,
        estimated_ssim=1.0,
    )
