"""Cuts a window axis into segments of similar geometry, by dynamic programming."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .._operators import Algorithm, exact
from .workload import Workload

__all__ = ["Segmenter"]


class Segmenter:
    """Cuts one axis into segments of similar geometry, by dynamic programming over their cost.

    The cost of a segment is its number of positions times the sum over operators of cost and
    largest patch; along the other axes, every operator has its mean patch. Operators that compute
    each window's own cells do not count.

    Args:
        work: what is to be planned.
        axis: the window axis.
        reached: the window positions along each axis that are to be run.
    """

    def __init__(self, work: Workload, axis: int, reached: tuple[slice, ...]) -> None:
        sizes, weights = [], []
        analysis, reaches, means = work.analysis, work.reaches, work.means
        for _, rule, cost in work.operators():
            if rule is None:
                continue
            value = rule.outputs[0]
            if work.is_ragged(rule):
                boxes = tuple(None if r is None else exact(r) for r in reaches[value])
                if rule.algorithm(boxes, means)[0] is not Algorithm.TORCH:
                    continue
            share = 1.0
            for other, reach in enumerate(reaches[value]):
                full = analysis.full_size(value, other)
                if reach is None or full is None:
                    continue
                if other != axis:
                    reach = reach.segment(reached[other])
                length = np.clip(reach.stop - reach.start, 1, full)
                if other == axis:
                    sizes.append(length / full)
                else:
                    share *= float(length.mean()) / full
            if reaches[value][axis] is not None:
                weights.append(cost.seconds * share)
        self.matters = any(weights)
        self.steps = self._boundaries(reached[axis])
        self.cost = self._segment_costs(np.array(sizes), np.array(weights))

    @staticmethod
    def _boundaries(positions: slice) -> list[int]:
        stride = max(1, math.ceil((positions.stop - positions.start) / 64))
        return [*range(positions.start, positions.stop, stride), positions.stop]

    def _segment_costs(
        self, sizes: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        steps, count = self.steps, len(self.steps)
        cost = np.full((count, count), np.inf)
        for i in range(count - 1):
            largest = np.zeros(len(weights))
            for j in range(i + 1, count):
                if len(weights):
                    block = sizes[:, steps[j - 1] : steps[j]].max(1)
                    largest = np.maximum(largest, block)
                cost[i, j] = (steps[j] - steps[i]) * float(largest @ weights)
        return cost

    def cut(self, segments: int) -> list[slice]:
        """The cheapest cut into at most `segments` segments."""
        count = len(self.steps)
        segments = min(segments, count - 1)
        best = np.full((segments + 1, count), np.inf)
        best[0, 0] = 0.0
        last = np.zeros((segments + 1, count), int)
        for k in range(1, segments + 1):
            total = best[k - 1][:, None] + self.cost
            last[k] = total.argmin(0)
            best[k] = total.min(0)
        end, cuts = count - 1, []
        for k in range(segments, 0, -1):
            start = int(last[k, end])
            cuts.append(slice(self.steps[start], self.steps[end]))
            end = start
        return cuts[::-1]
