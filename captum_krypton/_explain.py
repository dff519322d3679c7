"""The plan in words: one row an operator, and the totals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

from ._approximate import Approximation, DrillDown
from ._call import row_table
from ._capture import Node, ValueId
from ._kernels import convolution_block, join_block
from ._operators import Algorithm, Kind, Rule
from ._plan import Plan, analyse

__all__ = ["Explanation", "OperatorRow", "explain"]

_MOVES = {"aten.contiguous", "aten.reshape"}  # in front of an operator that is the reason
_HEAD = ["operator", "kind", "output", "patch", "read-in", "algorithm"]
_WORDS = len(_HEAD)  # the columns after these are numbers
_HEAD += ["MACs full", "MACs incremental", "ms predicted"]
_NOTEWORTHY = 0.2  # of the multiply-accumulates: a classifier's head has less


@dataclass(frozen=True)
class OperatorRow:
    """One operator of a plan.

    Attributes:
        operator: its ATen name; for a convolution that adds or activates as well, its parts' names.
        kind: "local", "global" or "shared" (it runs for the untouched input alone).
        output: the output's shape without the batch.
        patch: the largest patch, one size a window axis; empty for global operators.
        read: what it reads along the window axes: the patch and its context.
        macs_full: multiply-accumulates on whole volumes (Eq. 13).
        macs_incremental: mean multiply-accumulates of a window (Eq. 15).
        algorithm: "torch", or the compiled kernel's: "direct", "Winograd", "depthwise", "pooling".
        seconds: predicted time of all windows of one image; a shared operator's of the base.
        measured: seconds that it took, where the plan was run; else None.
    """

    operator: str
    kind: str
    output: tuple[int, ...]
    patch: tuple[int, ...]
    read: tuple[int, ...]
    macs_full: int
    macs_incremental: float
    algorithm: str
    seconds: float
    measured: float | None


@dataclass(frozen=True, repr=False)
class Explanation:
    """What `KryptonOcclusion.explain` returns; print it. A notebook shows it as a table.

    Attributes:
        plans: the rows of each input's plan with its totals.
        fallback: why the map is made by Captum's own path; empty where it is not.
    """

    plans: tuple[tuple[tuple[OperatorRow, ...], str], ...]
    fallback: str = ""

    def __str__(self) -> str:
        if self.fallback:
            return f"Captum's own path: {self.fallback}"
        return "\n\n".join(f"{_table(rows)}\n{totals}" for rows, totals in self.plans)

    def __repr__(self) -> str:
        what = ", ".join(f"{len(rows)} operators" for rows, _ in self.plans)
        return f"<Explanation: {self.fallback or what}; print it>"

    def _repr_html_(self) -> str:
        if self.fallback:
            return f"<p>{escape(str(self))}</p>"
        return "".join(
            row_table(names, lines) + f"<pre style='white-space:pre-wrap'>{escape(totals)}</pre>"
            for (names, *lines), totals in ((_cells(rows), totals) for rows, totals in self.plans)
        )


def explain(
    plans: tuple[Plan, ...],
    approximation: Approximation,
    origins: tuple[str, ...],
    spent: tuple[dict[ValueId, float], ...] | None = None,
) -> Explanation:
    """Describes the plans of all inputs.

    Args:
        plans: the plans.
        approximation: how the maps may differ from the exact ones.
        origins: for each plan, where the rates that it was made with come from.
        spent: for each plan, the seconds of every operator by its first result, where it was run.
    """
    clocks = [None] * len(plans) if spent is None else spent
    return Explanation(
        tuple(
            (tuple(_rows(plan, clock)), _totals(plan, approximation, origin))
            for plan, origin, clock in zip(plans, origins, clocks, strict=True)
        )
    )


def _rows(plan: Plan, clock: dict[ValueId, float] | None) -> list[OperatorRow]:
    analysis, graph = plan.analysis, plan.analysis.graph
    rows = []
    for number, (node, rule, cost) in enumerate(
        zip(graph.nodes, analysis.rules, plan.costs, strict=True)
    ):
        value = next(v for v in node.outputs if v >= 0)
        output = graph.size(value, 1)[1:]
        kind = "shared" if analysis.kinds[value] is Kind.IMAGE else "global"
        patch: tuple[int, ...] = ()
        read: tuple[int, ...] = ()
        if rule is not None:
            kind = "global" if _on_volumes(plan, rule) else "local"
            boxes = [group.boxes[value] for group in plan.groups]
            sizes = [tuple(b.size for b in box if b is not None) for box in boxes]
            patch = tuple(max(column) for column in zip(*sizes, strict=True))
            largest = sizes.index(max(sizes))
            read = rule.read_size(boxes[largest])
        algorithms = {g.algorithms.get(value, Algorithm.TORCH).value for g in plan.groups}
        rows.append(
            OperatorRow(
                _name(node),
                kind,
                output,
                patch,
                read,
                cost.macs,
                plan.operator_macs(number),
                ", ".join(sorted(algorithms)),
                cost.seconds if kind == "shared" else plan.operator_seconds(number),
                None if clock is None else clock.get(value, 0.0),
            )
        )
    return rows


def _on_volumes(plan: Plan, rule: Rule) -> bool:
    """Whether the operator of a rule needs whole volumes in every group."""
    return all(rule.on_volumes(group.boxes) for group in plan.groups)


def _name(node: Node) -> str:
    """The operator's name, a block's by its parts."""
    if node.op not in (convolution_block, join_block):
        return node.name
    named = node.bound()
    if node.op is join_block:
        parts = ["aten.cat"] if len(named["tensors"]) > 1 else []
        parts += ["batch_norm"] if named["scale"] is not None else []
        clamps = (named["low"], named["high"]) != (-math.inf, math.inf)
        return "+".join(parts + ["clamp"] * clamps)
    parts = ["aten.transposed_convolution" if named["transposed"] else "aten.convolution"]
    if named["residual"] is not None:
        parts.append("add")
    if (named["low"], named["high"]) != (-math.inf, math.inf):
        parts.append("clamp")
    if named["activation"] != "none":
        parts.append(named["activation"])
    return "+".join(parts)


def _totals(plan: Plan, approximation: Approximation, origin: str) -> str:
    global_rows = {
        node.name
        for node, rule in zip(plan.analysis.graph.nodes, plan.analysis.rules, strict=True)
        if rule is None or _on_volumes(plan, rule)
    }
    lines = [
        f"windows {plan.grid.total} ({' x '.join(str(c) for c in plan.grid.counts)}), "
        f"groups {len(plan.groups)}, batches of at most {plan.batch_size}",
        f"multiply-accumulates a window: full {plan.macs_full:,}, "
        f"incremental {plan.macs_incremental:,.0f}; "
        f"theoretical speed-up {plan.theoretical_speedup:.2f} (Eq. 17)",
        f"memory: {plan.memory / 2**20:,.0f} MiB for the base and one batch",
        f"predicted time: {plan.seconds:.3g} s an image",
        f"rates: {origin}",
    ]
    if plan.unreached:
        lines.append(
            f"{plan.unreached} of {plan.grid.total} windows cannot reach what the outcome reads: "
            "they are not run"
        )
    lines += list(plan.reasons)
    if plan.threshold < 1:
        lines.append(
            f"approximate: no change is followed over more than {plan.threshold:g} of a volume's "
            "side (Section 4.2)"
        )
    if approximation.drill_down is not None:
        lines.append(_drill_down(plan, approximation.drill_down))
    if approximation.quality is not None:
        lines.append(
            "approximate: windows are run until the map's estimated SSIM is "
            f"{approximation.quality:g}; the predicted time is that of all of them"
        )
    if approximation.budget is not None:
        lines.append(f"approximate: an image's windows are run within {approximation.budget}")
    if global_rows:
        lines.append(
            "global operators (they need the whole volume of every window): "
            + ", ".join(sorted(global_rows))
        )
    lines += _not_saved(plan)
    return "\n".join(lines)


def _not_saved(plan: Plan) -> list[str]:
    """What the first operator that changes whole volumes, such as a norm, leaves to be saved."""
    analysis, graph = plan.analysis, plan.analysis.graph
    if not plan.incremental:
        analysis = analyse(graph, analysis.occluded, analysis.dims[analysis.occluded])
    whole = [
        node
        for node, rule in zip(graph.nodes, analysis.rules, strict=True)
        if (rule is None or rule.is_global) and analysis.view.changed(node)
    ]
    named = [node.name for node in whole if node.name not in _MOVES]
    if not named:
        return []
    after = {whole[0].results[0]}
    macs = 0
    for node, cost in zip(graph.nodes, plan.costs, strict=True):
        if not after.isdisjoint(node.operands()):
            after.update(node.results)
            macs += cost.macs
    share = macs / max(plan.macs_full, 1)
    if share < _NOTEWORTHY:
        return []
    return [
        f"{named[0]} makes whole volumes of every window's change: {share:.0%} of the "
        "multiply-accumulates come after it, and are not saved"
    ]


def _drill_down(plan: Plan, settings: DrillDown) -> str:
    coarse = settings.coarse(plan.grid.counts, plan.axes)
    first, total = int(coarse.windows.sum()), plan.grid.total
    most = min(total, first + int(settings.fraction * total))
    return (
        f"approximate: drill-down runs {first} windows in stage one (one of {coarse.step} along "
        f"an axis, Eq. 38) and about {settings.fraction:g} of all in stage two: {most} at most, "
        f"{total / most:.3g} times fewer (Eq. 37)"
    )


def _cells(rows: tuple[OperatorRow, ...]) -> list[list[str]]:
    """The names of the columns, and a line for each operator."""
    timed = any(row.measured is not None for row in rows)
    lines = [_HEAD + ["ms measured"] * timed]
    for row in rows:
        lines.append(
            [
                row.operator.removeprefix("aten."),
                row.kind,
                _sizes(row.output),
                _sizes(row.patch),
                _sizes(row.read),
                row.algorithm,
                f"{row.macs_full:,}" if row.macs_full else "",
                f"{row.macs_incremental:,.0f}" if row.macs_full else "",
                f"{1e3 * row.seconds:.1f}",
                *([f"{1e3 * (row.measured or 0.0):.1f}"] if timed else []),
            ]
        )
    return lines


def _table(rows: tuple[OperatorRow, ...]) -> str:
    lines = _cells(rows)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i >= _WORDS else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _sizes(sizes: tuple[int, ...]) -> str:
    return "x".join(str(s) for s in sizes)
