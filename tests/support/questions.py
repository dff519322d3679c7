"""A question, and its answer by one forward pass a window."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from captum_krypton._call.arguments import Call, make_call
from captum_krypton._run.naive import naive_scores

WINDOWS = {"sliding_window_shapes": (3, 4, 4), "strides": (3, 3, 3)}


def question(images: Tensor, **changes: Any) -> Call:
    arguments = {**WINDOWS, "baselines": 0, "target": None, **changes}
    return make_call(
        images,
        arguments["sliding_window_shapes"],
        arguments["strides"],
        arguments["baselines"],
        arguments["target"],
        None,
        None,
    )


def expected(network: nn.Module, call: Call) -> Tensor:
    """(N, windows, outputs), one forward pass a window."""
    with torch.no_grad():
        scores = naive_scores(
            network,
            call,
            0,
            None,
            list(range(call.grids[0].total)),
            lambda rows: None,
            captum=False,
        )
    return scores.movedim(0, 1)
