"""Two recordings of one function, with other contents and another number of rows, as one graph.

The recordings must be the same operators, connected in the same way. A size that differs between
them grows with the batch, and anything else that differs means that the function looks at its data
or at the batch, which no graph can say.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .graph import BatchInt, Graph, Node, Value, ValueId, grows
from .recorder import NotCapturable, Recording, trains

__all__ = ["pair", "refuse_mixing"]


def pair(few: Recording, many: Recording, rows: tuple[int, int]) -> Graph:
    """One graph from two recordings.

    Args:
        few: a call with few rows.
        many: a call with more rows, of other contents.
        rows: how many rows the two have.

    Returns:
        The graph; sizes that differ between the recordings grow with the batch in it.

    Raises:
        NotCapturable: where the two are not the same function; the message says why.
    """
    if len(few.nodes) != len(many.nodes):
        raise NotCapturable("the forward runs other operators for other inputs or batch sizes")
    to_many: dict[ValueId, ValueId] = dict(zip(few.inputs, many.inputs, strict=True))
    shapes: dict[ValueId, tuple[int | BatchInt, ...]] = {}

    def see(value: ValueId, other: ValueId) -> None:
        known = to_many.setdefault(value, other)
        if known != other:
            raise NotCapturable("the forward connects its operators in another way for other data")
        if few.dtypes[value] != many.dtypes[other]:
            raise NotCapturable("the forward's types depend on its data")
        shapes[value] = _affine_shape(few.shapes[value], many.shapes[other], rows)
        if value in few.leaves:
            _refuse_changed_leaf(few.leaves[value], many.leaves.get(other))

    def merge(a: Any, b: Any) -> Any:
        if isinstance(a, Value) and isinstance(b, Value):
            see(a.id, b.id)
            return a
        if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)) and len(a) == len(b):
            return type(a)(merge(x, y) for x, y in zip(a, b, strict=True))
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            return {k: merge(v, b[k]) for k, v in a.items()}
        if type(a) is int and type(b) is int:
            return _affine(a, b, rows)
        if _same(a, b):
            return a
        raise NotCapturable(f"a number in the forward depends on its data or batch: {a}, {b}")

    for value, other in to_many.items():
        shapes[value] = _affine_shape(few.shapes[value], many.shapes[other], rows)
    nodes = []
    for node, twin in zip(few.nodes, many.nodes, strict=True):
        if node.op is not twin.op or len(node.outputs) != len(twin.outputs):
            raise NotCapturable("the forward runs other operators for other inputs or batch sizes")
        args = merge(node.args, twin.args)
        kwargs = merge(node.kwargs, twin.kwargs)
        _refuse_numbers(node, args)
        for value, other in zip(node.outputs, twin.outputs, strict=True):
            if (value < 0) != (other < 0):
                raise NotCapturable("the forward runs other operators for other inputs")
            if value >= 0:
                see(value, other)
                _refuse_odd_size(node, shapes[value])
        nodes.append(Node(node.op, args, kwargs, node.outputs, node.several))
    see(few.output, many.output)
    for leaf, tensor in few.leaves.items():
        shapes.setdefault(leaf, tuple(tensor.shape))
    graph = Graph(nodes, few.inputs, few.output, shapes, dict(few.dtypes), dict(few.leaves))
    return graph.dead_code_eliminated()


def _refuse_numbers(node: Node, args: tuple[Any, ...]) -> None:
    """Refuses a number that grows with the batch where it is not a size, such as a factor."""
    for argument, declared in zip(args, node.op._schema.arguments, strict=False):  # type: ignore[attr-defined]
        if grows(argument) and "int" not in str(declared.type).lower():
            raise NotCapturable(f"the forward computes with the batch size ({node.op})")


def _refuse_odd_size(node: Node, shape: tuple[int | BatchInt, ...]) -> None:
    """Refuses a size that the data chose: what operators of others do to sizes is not known."""
    if node.name.startswith("aten."):
        return
    if any(isinstance(size, BatchInt) and size.intercept for size in shape):
        raise NotCapturable(f"a shape in the forward depends on the data ({node.op})")


def _same(a: Any, b: Any) -> bool:
    """Whether two arguments that are neither tensors nor numbers to pair are the same."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.ScriptObject):  # opaque, such as packed weights
        return a is b or hash(a) == hash(b)
    return a is b or bool(a == b) or bool(a != a and b != b)


def _affine(a: int, b: int, rows: tuple[int, int]) -> int | BatchInt:
    if a == b:
        return a
    slope, rest = divmod(b - a, rows[1] - rows[0])
    if rest:
        raise NotCapturable(f"a size in the forward is not affine in the batch: {a}, {b}")
    return BatchInt(slope, a - slope * rows[0])


def _affine_shape(
    a: tuple[int, ...], b: tuple[int, ...], rows: tuple[int, int]
) -> tuple[int | BatchInt, ...]:
    if len(a) != len(b):
        raise NotCapturable("the forward's shapes depend on its data or batch")
    return tuple(_affine(x, y, rows) for x, y in zip(a, b, strict=True))


def _refuse_changed_leaf(a: Tensor, b: Tensor | None) -> None:
    if b is None:
        raise NotCapturable("the forward reads other tensors for other inputs")
    same = a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
    if a is not b and not (same and bool(((a == b) | ((a != a) & (b != b))).all())):
        raise NotCapturable("a tensor made inside the forward depends on its data or batch")


# What may read memory that nothing has been written to: it is overwritten, whole or in part. Any
# other reader means that code outside torch's operators has filled it.
_OVERWRITES = {
    f"aten.{name}"
    for name in (
        "fill",
        "zero",
        "copy",
        "slice",
        "select",
        "view",
        "slice_scatter",
        "select_scatter",
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
    )
}


def refuse_mixing(graph: Graph) -> None:
    """Refuses a graph whose rows are not each a function of their own example.

    Raises:
        NotCapturable: where the batch would change what an example gives.
    """
    if graph.output in graph.constants:
        raise NotCapturable("the outcome does not depend on the inputs")
    users = graph.users()
    for node in graph.nodes:
        if "batch_norm" in node.name and trains(node.bound()) and not _by_instance(graph, node):
            raise NotCapturable("a batch norm takes its statistics from the batch")
        _refuse_mixing(graph, node)
        if node.name.split(".")[-1].startswith(("empty", "new_empty")):
            readers = {user.name for v in node.outputs for user in users.get(v, [])}
            if readers - _OVERWRITES:
                raise NotCapturable(f"the forward reads memory written outside torch ({node.op})")
        for value in node.results:
            if value in users or value == graph.output:
                if not any(isinstance(s, BatchInt) for s in graph.shapes[value]):
                    raise NotCapturable(f"the forward mixes the rows of a batch ({node.op})")
    shape = graph.shapes[graph.output]
    if not shape or shape[0] != BatchInt(1, 0):
        raise NotCapturable("the outcome does not have one row an example")


# Operators that leave every row alone even where the dimension they name is the batch's.
_MOVES_ROWS = {
    f"aten.{name}" for name in ("cat", "stack", "split", "split_with_sizes", "chunk", "unbind")
}
_MOVES_ROWS |= {"aten.unsqueeze", "aten.squeeze", "aten.transpose", "aten.permute"}


def _refuse_mixing(graph: Graph, node: Node) -> None:
    """Refuses operators along the batch, such as a softmax over it."""
    named = node.bound()
    given = named.get("dim", named.get("dims"))
    if given is None or node.name in _MOVES_ROWS or not node.operands():
        return
    shape = graph.shapes[node.operands()[0]]
    for dim in given if isinstance(given, (list, tuple)) else (given,):
        if isinstance(dim, int) and -len(shape) <= dim < len(shape):
            if isinstance(shape[dim], BatchInt):
                raise NotCapturable(f"the forward mixes the rows of a batch ({node.op})")


def _by_instance(graph: Graph, node: Node) -> bool:
    """Whether a batch norm is an instance norm: the rows of the batch are its channels."""
    return isinstance(graph.shapes[node.operands()[0]][1], BatchInt)
