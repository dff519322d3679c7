"""Maps made on the CPU as on a GPU: batches and bases are replayed, by stand-ins for its graphs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from graph_on_host import HostGraph, HostPool

from captum_krypton import _engine
from captum_krypton._plan import Plan
from captum_krypton._run import replay, replay_cache, replayed_base
from captum_krypton._run.execution import Execution
from captum_krypton._run.input_run import InputRun

__all__ = ["graphs_on_the_host", "maps_as_on_a_gpu"]


def graphs_on_the_host(patch: pytest.MonkeyPatch) -> None:
    """What is captured and replayed is the host's work."""
    for module in (replay, replayed_base):
        patch.setattr(module, "CudaGraph", HostGraph)
    for module in (replay_cache, replayed_base):
        patch.setattr(module, "GraphPool", HostPool)


@contextmanager
def maps_as_on_a_gpu() -> Iterator[None]:
    """Every map is replayed that a GPU would replay."""
    made = InputRun.execution

    def replayed(run: InputRun, plan: Plan) -> Execution:
        execution = made(run, plan)
        if run.settings.cuda_graphs and not run.timed:
            execution.replays = run.model.replays
        return execution

    with pytest.MonkeyPatch.context() as patch:
        graphs_on_the_host(patch)
        patch.setattr(InputRun, "execution", replayed)
        patch.setattr(_engine, "_replays", lambda call: True)
        patch.setattr(_engine, "_observe", lambda device, report: None)
        yield
