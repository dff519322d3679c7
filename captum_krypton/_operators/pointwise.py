"""Rules for operators that act on points, or across dimensions that carry no window axis."""

from __future__ import annotations

from typing import Any

import torch

from .._capture import Node, Value, ValueId, is_pointwise
from .regions import Interval
from .rule import Dims, Kind, PatchRule, Rule, View, batch_rows

__all__ = ["across_dims", "batch_norm", "layer_norm", "linear", "pointwise"]

aten = torch.ops.aten

_IN_PLACE = {
    "aten.relu": aten.relu_.default,
    "aten.silu": aten.silu_.default,
    "aten.hardswish": aten.hardswish_.default,
    "aten.hardsigmoid": aten.hardsigmoid_.default,
    "aten.hardtanh": aten.hardtanh_.default,
    "aten.leaky_relu": aten.leaky_relu_.default,
    "aten.sigmoid": aten.sigmoid_.default,
    "aten.add": aten.add_.Tensor,
    "aten.mul": aten.mul_.Tensor,
    "aten.sub": aten.sub_.Tensor,
}


def pointwise(node: Node, view: View) -> Rule | None:
    """Element-wise operators with broadcasting: activations, arithmetic, comparisons, casts."""
    if not is_pointwise(node):
        return None
    output = node.results[0]
    if not batch_rows(view, output):
        return None
    rank = len(view.graph.shapes[output])
    dims = _broadcast_dims(node, view, rank)
    if dims is None:
        return None
    node = _larger_first(node, view)
    in_place = _IN_PLACE.get(node.name)
    if in_place is not None:
        first = node.operands()[0]
        same = view.graph.shapes[first] == view.graph.shapes[output]
        if not same or view.graph.dtypes[first] != view.graph.dtypes[output]:
            in_place = None
    rule = _ChoiceRule if node.name in _CHOICES else PatchRule
    return rule(node, view, dims, aligned=True, in_place=in_place)


_CHOICES = {"aten.where", "aten.masked_fill"}


class _ChoiceRule(PatchRule):
    """Cells of one operand or of another: by a constant condition, some of neither are read.

    A product with a mask is another thing: zero times infinity is not zero, so it reads all.
    """

    def demand(self, axis: int, wanted: Interval | None) -> dict[ValueId, Interval]:
        found = super().demand(axis, wanted)
        named, operands, dim = self.node.bound(), self.node.operands(), self.dims[axis]
        given = named["mask" if "mask" in named else "condition"]
        if wanted is None or dim is None or given.id not in self.view.constants:
            return found
        first = self.view.constants[given.id].bool()
        first = ~first if "mask" in named else first
        shape = self.view.shape(self.outputs[0])
        for operand, chosen in ((named["self"], first), (named.get("other"), ~first)):
            if isinstance(operand, Value) and operands.count(operand.id) == 1:
                rows = chosen.expand(shape).movedim(dim, 0).flatten(1).any(1)
                cells = rows[slice(*wanted)].nonzero().flatten().tolist() or [0, -1]
                found[operand.id] = wanted[0] + cells[0], wanted[0] + cells[-1] + 1
        return found


def _larger_first(node: Node, view: View) -> Node:
    """The same operator with an operand of the output's shape first, which it may overwrite."""
    if node.name != "aten.mul" or node.kwargs or len(node.operands()) != 2:
        return node
    shape = view.graph.shapes[node.results[0]]
    first, second = (view.graph.shapes[v] for v in node.operands())
    if first == shape or second != shape:
        return node
    return Node(node.op, node.args[::-1], {}, node.outputs)


def _broadcast_dims(node: Node, view: View, rank: int) -> Dims | None:
    """Where the axes are in the output; None where local operands disagree."""
    axes = len(next(iter(view.dims[v] for v in view.locals(node))))
    dims: list[int | None] = [None] * axes
    for value in dict.fromkeys(node.operands()):
        shape = view.graph.shapes[value]
        lead = rank - len(shape)
        own_rows = not lead and batch_rows(view, value)
        if view.kinds[value] in (Kind.IMAGE, Kind.FULL) and not own_rows:
            return None
        if view.kinds[value] is not Kind.LOCAL:
            continue
        if lead:
            return None
        for axis, dim in enumerate(view.dims[value]):
            if dim is None:
                continue
            if dims[axis] not in (None, dim) or dim in dims[:axis] + dims[axis + 1 :]:
                return None
            dims[axis] = dim
    for value in view.locals(node):  # a local operand must not be repeated along its own axis
        out = view.shape(node.results[0])
        for dim in view.dims[value]:
            if dim is not None and view.shape(value)[dim] != out[dim]:
                return None
    return tuple(dims)


def across_dims(node: Node, view: View) -> Rule | None:
    """Operators along given dimensions, such as softmax or a mean over channels."""
    named = node.bound()
    source = node.operands()[0] if node.operands() else None
    if source is None or view.kinds[source] is not Kind.LOCAL or len(view.locals(node)) != 1:
        return None
    if not all(batch_rows(view, v) for v in node.results):
        return None
    rank = len(view.graph.shapes[source])
    dims = acted_on(named, rank)
    if dims is None or 0 in dims or any(d in dims for d in view.dims[source]):
        return None
    out_rank = len(view.graph.shapes[node.results[0]])
    if out_rank == rank:
        out = view.dims[source]
    elif out_rank == rank - len(dims):
        out = tuple(
            None if d is None else d - sum(gone < d for gone in dims) for d in view.dims[source]
        )
    else:
        return None
    return PatchRule(node, view, out)


def acted_on(named: dict[str, Any], rank: int) -> set[int] | None:
    """The dimensions that an operator's `dim` or `dims` names; None where it names none."""
    given = named.get("dim", named.get("dims"))
    if given is None:
        return None
    listed = given if isinstance(given, (list, tuple)) else [given]
    if not listed or not all(isinstance(d, int) for d in listed):
        return None
    return {d % rank for d in listed}


ACROSS_DIMS = {
    f"aten.{name}"
    for name in (
        "_softmax",
        "_log_softmax",
        "softmax",
        "log_softmax",
        "cumsum",
        "cumprod",
        "logcumsumexp",
        "glu",
        "mean",
        "sum",
        "amax",
        "amin",
        "max",
        "min",
        "var",
        "std",
        "var_mean",
        "std_mean",
        "logsumexp",
        "prod",
        "any",
        "all",
        "argmax",
        "argmin",
        "linalg_vector_norm",
        "norm",
        "sort",
        "topk",
        "flip",
        "argsort",
    )
}


def linear(node: Node, view: View) -> Rule | None:
    """A linear layer over the last dimension."""
    source = node.operands()[0]
    rank = len(view.graph.shapes[source])
    dims = view.dims.get(source)
    if not view.only_first_varies(node) or dims is None or rank - 1 in dims:
        return None
    return PatchRule(node, view, dims)


def batch_norm(node: Node, view: View) -> Rule | None:
    """Batch norm with running statistics: a scale and a shift a channel."""
    source = node.operands()[0]
    if not view.only_first_varies(node) or 1 in view.dims[source]:
        return None
    return PatchRule(node, view, view.dims[source])


def layer_norm(node: Node, view: View) -> Rule | None:
    """Layer norm over trailing dimensions that carry no window axis."""
    source = node.operands()[0]
    rank = len(view.graph.shapes[source])
    normalised = len(node.bound()["normalized_shape"])
    dims = view.dims.get(source)
    if not view.only_first_varies(node) or dims is None or normalised >= rank:
        return None
    if any(d is not None and d >= rank - normalised for d in dims):
        return None
    return PatchRule(node, view, dims)
