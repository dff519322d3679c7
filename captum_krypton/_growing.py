"""Maps of one image that get better while the caller looks at them."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import replace

import numpy as np

from ._approximate import Approximation, Windows, growing, only
from ._call import OcclusionMap
from ._run import InputRun

__all__ = ["growing_maps"]


def growing_maps(
    approximation: Approximation, run: InputRun, started: float
) -> Generator[OcclusionMap, None, None]:
    """Ever better maps of the one image of a call.

    The time that the caller takes between two maps is not counted.

    Args:
        approximation: what the maps begin with and where they end.
        run: the windows of the image.
        started: when the call began, by `time.perf_counter`.
    """
    plan, checking = run.plan, run.checking
    executions = {p.threshold: run.execution(p) for p in (plan, run.exact_plan)}
    windows = Windows(executions, slice(0, 1), lambda rows: None)
    setup, error = time.perf_counter() - started, 0.0
    if checking:
        check = time.perf_counter()
        selected = only(checking, np.zeros((1, plan.grid.total), bool))
        error = run.check(windows.run(selected, 1.0)[:, checking])
        windows.runs.clear()
        setup += time.perf_counter() - check
    spent, resumed = 0.0, time.perf_counter()
    reference = run.reference
    for found in growing(approximation, windows, plan, reference, 0):
        made = found.settled(plan, reference)
        spent += time.perf_counter() - resumed
        speedup = plan.saving(plan.grid.total, windows.macs)
        report = replace(
            made.report(run, executions[plan.threshold], speedup),
            seconds=setup + spent,
            setup_seconds=setup,
            largest_check_error=error,
        )
        yield run.map(made.scores, report)
        if approximation.is_enough(made.least_quality, spent):
            return
        resumed = time.perf_counter()
