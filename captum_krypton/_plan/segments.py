"""Cuts windows into groups of similar geometry, by dynamic programming.

Where windows are all combinations of positions along the axes, each axis is cut into segments, and
every combination of segments is a group. Where they are a list, the list is cut, ordered by what
its windows cost.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from .._operators import Algorithm, Floats, Integers, Positions, Rule, exact, numbers
from .workload import Workload

__all__ = ["AxisSegmenter", "PairedSegmenter", "Segmenter"]

_MOST_STEPS = 64  # where a cut may lie


class Segmenter:
    """Groups of windows that are all combinations of positions along the axes.

    Args:
        work: what is to be planned.
        reached: the window positions along each axis that are to be run, neighbouring ones.
    """

    def __init__(self, work: Workload, reached: tuple[Positions, ...]) -> None:
        self._axes = [AxisSegmenter(work, axis, reached) for axis in range(len(reached))]

    @property
    def matters(self) -> bool:
        """Whether groups of windows cost less than all together."""
        return any(axis.matters for axis in self._axes)

    def cut(self, segments: int) -> list[tuple[Positions, ...]]:
        """The groups of the cheapest cut of every axis into at most so many segments."""
        return list(itertools.product(*(axis.cut(segments) for axis in self._axes)))


class PairedSegmenter:
    """Groups of windows that have one position each, the same along all axes.

    Besides the operators, the patches of the input count: they have one size in a group, too.

    Args:
        work: what is to be planned.
        reached: the windows that are to be run, once for each axis.
    """

    def __init__(self, work: Workload, reached: tuple[Positions, ...]) -> None:
        windows, analysis = numbers(reached[0]), work.analysis
        shares, weights = [self._lengths(work, analysis.occluded, windows)], [_input_seconds(work)]
        for rule, seconds in _in_segments(work):
            shares.append(self._lengths(work, rule.outputs[0], windows))
            weights.append(seconds)
        sizes, costs = np.array(shares), np.array(weights)  # (operators, axes, windows)
        order = np.argsort(costs @ sizes.prod(1), kind="stable")
        self._windows, self._axes = windows[order], len(reached)
        self.cuts = Cuts(sizes[:, :, order], costs, slice(0, len(windows)))
        self.matters = len(windows) > 1

    @staticmethod
    def _lengths(work: Workload, value: int, windows: Integers) -> Floats:
        """The share of a volume's side that the patch of each window has, (axes, windows)."""
        found = []
        for axis, reach in enumerate(work.reaches[value]):
            full = work.analysis.full_size(value, axis)
            if reach is None or full is None:
                found.append(np.ones(len(windows)))
                continue
            reach = reach.segment(windows)
            found.append(np.clip(reach.stop - reach.start, 1, full) / full)
        return np.array(found)

    def cut(self, segments: int) -> list[tuple[Positions, ...]]:
        """The groups of the cheapest cut of the list into at most so many segments."""
        return [(self._windows[cut],) * self._axes for cut in self.cuts.cheapest(segments)]


class AxisSegmenter:
    """Cuts one axis. Along the other axes, every operator has its mean patch.

    Args:
        work: what is to be planned.
        axis: the window axis.
        reached: the window positions along each axis that are to be run.
    """

    def __init__(self, work: Workload, axis: int, reached: tuple[Positions, ...]) -> None:
        sizes, weights = [], []
        analysis, reaches = work.analysis, work.reaches
        for rule, seconds in _in_segments(work):
            value = rule.outputs[0]
            share = 1.0
            for other, reach in enumerate(reaches[value]):
                full = analysis.full_size(value, other)
                if reach is None or full is None:
                    continue
                if other != axis:
                    reach = reach.segment(reached[other])
                length = np.clip(reach.stop - reach.start, 1, full)
                if other == axis:
                    sizes.append([length / full])
                else:
                    share *= float(length.mean()) / full
            if reaches[value][axis] is not None:
                weights.append(seconds * share)
        self.matters = any(weights)
        positions = numbers(reached[axis])
        within = slice(int(positions[0]), int(positions[-1]) + 1)
        self.cuts = Cuts(np.array(sizes), np.array(weights), within)

    def cut(self, segments: int) -> list[slice]:
        """The cheapest cut into at most `segments` segments."""
        return self.cuts.cheapest(segments)


def _in_segments(work: Workload) -> list[tuple[Rule, float]]:
    """The operators whose patches have one size in a group, and what they cost on whole volumes.

    Those that compute each window's own cells do not count.
    """
    found = []
    for operator in work.operators:
        rule = operator.rule
        if rule is None:
            continue
        if work.is_ragged(rule):
            reaches = work.reaches[rule.outputs[0]]
            boxes = tuple(None if r is None else exact(r) for r in reaches)
            if rule.algorithm(boxes, work.means)[0] is not Algorithm.TORCH:
                continue
        found.append((rule, operator.cost.seconds))
    return found


def _input_seconds(work: Workload) -> float:
    """What making the whole occluded input costs."""
    size = work.analysis.graph.size(work.analysis.occluded, 1)
    return math.prod(size) * work.means.rates.element


class Cuts:
    """Cuts positions in a row, by what their largest patch in every operator costs.

    The cost of a segment is its number of positions times the sum over operators of cost and
    largest patch.

    Args:
        sizes: (operators, axes, positions), the share of a volume's side that each patch has.
        weights: (operators,), the cost of an operator on whole volumes.
        within: the positions to cut.
    """

    def __init__(self, sizes: Floats, weights: Floats, within: slice) -> None:
        stride = max(1, math.ceil((within.stop - within.start) / _MOST_STEPS))
        self._steps = [*range(within.start, within.stop, stride), within.stop]
        self.cost = self._segment_costs(sizes, weights)

    def _segment_costs(self, sizes: Floats, weights: Floats) -> Floats:
        steps, count = self._steps, len(self._steps)
        cost = np.full((count, count), np.inf)
        for i in range(count - 1):
            largest = np.zeros(sizes.shape[:2])
            for j in range(i + 1, count):
                if len(weights):
                    block = sizes[:, :, steps[j - 1] : steps[j]].max(2)
                    largest = np.maximum(largest, block)
                each = float(largest.prod(1) @ weights) if len(weights) else 0.0
                cost[i, j] = (steps[j] - steps[i]) * each
        return cost

    def cheapest(self, segments: int) -> list[slice]:
        """The cheapest cut into at most `segments` segments."""
        steps, count = self._steps, len(self._steps)
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
            cuts.append(slice(steps[start], steps[end]))
            end = start
        return cuts[::-1]
