"""Plans that have patches, whether or not whole volumes would cost less."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from captum_krypton._call.arguments import Call, make_call
from captum_krypton._capture import captured
from captum_krypton._capture.simplify import simplified
from captum_krypton._kernels.rates import GUESSED
from captum_krypton._operators import Means
from captum_krypton._plan.analysis import analyse
from captum_krypton._plan.batch_size import Room
from captum_krypton._plan.fuse import fused
from captum_krypton._plan.plan import Plan, make_plan

ROOM = 1 << 30


def called(inputs: Tensor, window: Any, strides: Any, baselines: Any = 0) -> Call:
    return make_call(inputs, window, strides, baselines, 0, None, None)


TORCH = Means(GUESSED, cpu_kernels=False, winograd=False)
KERNELS = Means(GUESSED, cpu_kernels=True, winograd=True)
FREE_CALLS = Means(replace(GUESSED, call=0.0, kernel=0.0), cpu_kernels=False, winograd=False)


def patched(
    network: nn.Module,
    call: Call,
    *,
    budget: int = ROOM,
    most: int = 64,
    images: int = 1,
    means: Means = TORCH,
    threshold: float = 1.0,
    fuse: bool = False,
) -> Plan:
    """The plan with patches, whether or not whole volumes would cost less."""
    graph = simplified(captured(network, call.arguments, call.batched).graph)
    (grid,) = call.grids
    axes = grid.axes
    dims = tuple(axis + 1 for axis in axes)
    analysis = analyse(graph, graph.inputs[0], dims)
    if fuse:
        analysis = analyse(fused(analysis), graph.inputs[0], dims)
    return make_plan(
        analysis,
        grid,
        axes,
        means=means,
        room=Room(budget, None, most),
        images=images,
        element_bytes=call.inputs[0].element_size(),
        threshold=threshold,
    )
