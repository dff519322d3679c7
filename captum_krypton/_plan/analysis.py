"""Which values a window changes, where, and which operators can work on that part alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch.utils.flop_counter import flop_registry

from .._capture import BatchInt, Graph, Node, Value, ValueId
from .._operators import (
    Dims,
    Floats,
    Interval,
    Kind,
    Mask,
    Positions,
    Reach,
    Rule,
    View,
    batch_rows,
    crop,
    hull,
    read_by_kernels,
    rule_for,
    whole,
)

__all__ = ["Analysis", "Reaches", "analyse", "multiply_accumulates"]

Demand = tuple[Interval | None, ...]


@dataclass(frozen=True)
class Reaches:
    """How far windows reach.

    Attributes:
        intervals: for each local value and axis, the interval that each window position changes, of
            the cells that the outcome depends on.
        outcome: for each axis, the window positions that can change the outcome.
    """

    intervals: dict[ValueId, tuple[Reach | None, ...]]
    outcome: tuple[Mask, ...]

    def reached(self, paired: bool) -> tuple[Positions, ...]:
        """For each axis, the positions of windows that can change the outcome; of one at least.

        Args:
            paired: whether a window has the same position along all axes; else the positions of an
                axis are the shortest range that holds those that can.
        """
        if paired:
            both = np.logical_and.reduce(self.outcome)
            positions = np.flatnonzero(both) if both.any() else np.zeros(1, int)
            return (positions,) * len(self.outcome)
        found: list[Positions] = []
        for positions in self.outcome:
            numbers = np.flatnonzero(positions) if positions.any() else np.zeros(1, int)
            found.append(slice(int(numbers[0]), int(numbers[-1]) + 1))
        return tuple(found)


@dataclass(frozen=True)
class Analysis:
    """A graph seen from one occluded input.

    Attributes:
        graph: the forward function.
        occluded: the input that the windows cover.
        kinds: what each value depends on.
        dims: the dimensions of each local value that carry the window axes.
        rules: for each node by position, its rule; None for a global operator with a global output.
            An output that changes everywhere may have one, too: one that reads patches.
        kept: the values whose base is needed: those read in blocks, or whole.
        demands: for each local value and axis, the cells that the outcome depends on.
    """

    graph: Graph
    occluded: ValueId
    kinds: dict[ValueId, Kind]
    dims: dict[ValueId, Dims]
    rules: tuple[Rule | None, ...]
    kept: frozenset[ValueId]
    demands: dict[ValueId, Demand]

    @property
    def view(self) -> View:
        """The graph and what is known of its values, as rules see them."""
        return View(self.graph, self.kinds, self.dims)

    def full_size(self, value: ValueId, axis: int) -> int | None:
        """The value's size along a window axis; None where it has none."""
        dim = self.dims[value][axis]
        return None if dim is None else self.graph.size(value, 1)[dim]

    def _window_size(self, axis: int) -> int:
        """The size of the occluded input along a window axis."""
        size = self.full_size(self.occluded, axis)
        assert size is not None
        return size

    def reaches(self, windows: tuple[Reach, ...], threshold: float = 1.0) -> Reaches:
        """What each window position changes of every local value, along each axis.

        Args:
            windows: the interval that each window position covers, for each axis.
            threshold: the projective field threshold tau (Section 4.2): the largest share of a
                volume's side that an interval may have. What lies beyond counts as unchanged.
        """
        asked = self.demands[self.occluded]
        covered = tuple(
            window if cells is None else window.within(cells)
            for window, cells in zip(windows, asked, strict=True)
        )
        found: dict[ValueId, tuple[Reach | None, ...]] = {self.occluded: covered}
        changes = {self.occluded: tuple(reach.some for reach in covered)}
        middles = tuple((window.start + window.stop) / 2 for window in windows)
        centres: dict[ValueId, tuple[Floats | None, ...]] = {self.occluded: middles}
        everywhere = tuple(np.ones(len(window.start), bool) for window in windows)
        for node, rule in zip(self.graph.nodes, self.rules, strict=True):
            if all(self.kinds[v] is Kind.IMAGE for v in node.results):
                continue
            changed = self.view.changed(node)
            # What changes an operand. An output that is whole has intervals for all positions.
            reached = tuple(
                np.logical_or.reduce([changes[v][axis] for v in changed]) if changed else every
                for axis, every in enumerate(everywhere)
            )
            if rule is None:
                changes.update(dict.fromkeys(node.results, reached))
                continue
            asked = self.demands.get(rule.outputs[0], (None,) * len(windows))
            per_axis: list[Reach | None] = []
            places: list[Floats | None] = []
            for axis, (dim, cells) in enumerate(zip(rule.dims, asked, strict=True)):
                if dim is None or cells is None:
                    per_axis.append(None)
                    places.append(None)
                    continue
                operands: dict[ValueId, Reach] = {}
                for value in changed:  # one without the axis counts too: it changes all along it
                    own = found[value][axis] if value in found else None
                    operands[value] = windows[axis] if own is None else own
                reach = rule.reach(axis, operands)
                if rule.may_crop(axis):  # else all of it is computed, whoever asks
                    reach = reach.within(cells).where(reached[axis])
                if threshold < 1.0:
                    size = rule.size(axis)
                    known = {v: centres[v][axis] for v in changed if v in centres}
                    own_places = {v: place for v, place in known.items() if place is not None}
                    if own_places:
                        centre = rule.centre(axis, own_places)
                    else:
                        centre = middles[axis] * (size / self._window_size(axis))
                    if rule.may_crop(axis):
                        reach = crop(reach, max(1, math.floor(threshold * size + 0.5)), centre)
                    places.append(centre)
                per_axis.append(reach)
            some = tuple(
                every if reach is None else reach.some & every
                for every, reach in zip(reached, per_axis, strict=True)
            )
            for value in rule.outputs:
                found[value] = tuple(per_axis)
                centres[value] = tuple(places)
                changes[value] = some
        return Reaches(found, changes.get(self.graph.output, everywhere))


def analyse(graph: Graph, occluded: ValueId, dims: Dims, *, incremental: bool = True) -> Analysis:
    """Gives every value a kind and every operator its rule.

    Args:
        graph: the forward function.
        occluded: the input that the windows cover.
        dims: the input's dimensions that carry the window axes.
        incremental: when false, no rule is given: every operator is global.
    """
    kinds: dict[ValueId, Kind] = dict.fromkeys(graph.constants, Kind.CONSTANT)
    kinds.update(dict.fromkeys(graph.inputs, Kind.IMAGE))
    kinds[occluded] = Kind.LOCAL
    known: dict[ValueId, Dims] = {occluded: dims}
    rules: list[Rule | None] = []
    wanted = read_by_kernels(graph.nodes) if incremental else frozenset()
    for node in graph.nodes:
        view = View(graph, kinds, known)
        kind, rule = _kind(node, view, incremental)
        if wanted.intersection(node.results) and kind is Kind.FULL:
            volume = whole(node, view, len(dims))
            rule, kind = (rule, kind) if volume is None else (volume, Kind.LOCAL)
        rules.append(rule)
        for value in node.outputs:
            if value >= 0:
                kinds[value] = kind
                if rule is not None:
                    known[value] = rule.dims
    kept = _kept(graph, kinds, tuple(rules))
    demands = _demands(graph, kinds, known, tuple(rules))
    return Analysis(graph, occluded, kinds, known, tuple(rules), kept, demands)


def _kind(node: Node, view: View, incremental: bool) -> tuple[Kind, Rule | None]:
    kinds = {view.kinds[v] for v in node.operands()}
    rows = all(_rows_or_unused(view, v) for v in node.outputs)
    if Kind.LOCAL in kinds:
        rule = rule_for(node, view) if incremental else None
        local = rule is not None and any(dim is not None for dim in rule.dims)
        return (Kind.LOCAL if local else Kind.FULL), rule
    if kinds and kinds <= {Kind.IMAGE, Kind.CONSTANT} and Kind.IMAGE in kinds and rows:
        return Kind.IMAGE, None
    return Kind.FULL, None


def _rows_or_unused(view: View, value: ValueId) -> bool:
    return value < 0 or batch_rows(view, value)


def _kept(
    graph: Graph, kinds: dict[ValueId, Kind], rules: tuple[Rule | None, ...]
) -> frozenset[ValueId]:
    kept: set[ValueId] = set()
    for node, rule in zip(graph.nodes, rules, strict=True):
        outputs = [v for v in node.results]
        if all(kinds[v] is Kind.IMAGE for v in outputs):
            continue
        operands = list(dict.fromkeys(node.operands()))
        kept.update(v for v in operands if kinds[v] is Kind.IMAGE)
        local = [v for v in operands if kinds[v] is Kind.LOCAL]
        if rule is None or rule.inherits() is None:
            kept.update(local)
    if kinds[graph.output] is Kind.LOCAL:
        kept.add(graph.output)
    return frozenset(kept)


def _demands(
    graph: Graph,
    kinds: dict[ValueId, Kind],
    dims: dict[ValueId, Dims],
    rules: tuple[Rule | None, ...],
) -> dict[ValueId, Demand]:
    """For each local value and axis, the cells that the outcome depends on.

    All operators that read a value ask for some; what is asked for is the hull.
    """
    sizes: dict[ValueId, list[int | None]] = {}
    found: dict[ValueId, list[Interval | None]] = {}
    for value, own in dims.items():
        if kinds[value] is Kind.LOCAL:
            shape = graph.size(value, 1)
            sizes[value] = [None if dim is None else shape[dim] for dim in own]
            found[value] = [None if size is None else (0, 0) for size in sizes[value]]
    if graph.output in found:
        found[graph.output] = [None if n is None else (0, n) for n in sizes[graph.output]]
    for node, rule in zip(reversed(graph.nodes), reversed(rules), strict=True):
        local = [v for v in dict.fromkeys(node.operands()) if v in found]
        for axis in range(len(found[local[0]])) if local else ():
            wanted: Interval | None = None
            for value in [] if rule is None else rule.outputs:
                cells = found[value][axis] if value in found else None
                wanted = cells if wanted is None or cells is None else hull(wanted, cells)
            for value in [] if rule is None else rule.outputs:
                if value in found:
                    found[value][axis] = wanted  # one interval for all outputs
            if wanted is not None and wanted[0] == wanted[1]:
                continue
            read = {} if rule is None else rule.demand(axis, wanted)
            for value in local:
                before, size = found[value][axis], sizes[value][axis]
                if before is not None and size is not None:
                    found[value][axis] = hull(before, read.get(value, (0, size)))
    return {value: tuple(cells) for value, cells in found.items()}


def multiply_accumulates(graph: Graph, node: Node) -> int:
    """Multiply-accumulates of an operator on one row's whole volumes (Eq. 13)."""
    if node.name == "aten.linear":
        weight = graph.size(node.operands()[1], 1)
        rows = 1
        for size in graph.size(node.results[0], 1)[1:-1]:
            rows *= size
        return rows * weight[0] * weight[1]
    formula = flop_registry.get(getattr(node.op, "overloadpacket", None))
    if formula is None:
        return 0

    def shape(argument: object) -> object:
        if isinstance(argument, Value):
            return graph.size(argument.id, 1)
        if isinstance(argument, BatchInt):
            return argument.at(1)
        if isinstance(argument, (tuple, list)):
            return type(argument)(shape(a) for a in argument)
        return argument

    args = [shape(a) for a in node.args]
    kwargs = {k: shape(v) for k, v in node.kwargs.items()}
    return int(formula(*args, **kwargs, out_val=graph.size(node.results[0], 1))) // 2
