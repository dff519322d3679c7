"""Lets convolutions of one cell and average poolings change places where that makes less of them.

Both are sums with constant factors, one over channels and one over cells, so their order is free:
the mean of what a 1 x 1 convolution gives is what it gives for the mean. A pooling that leaves
fewer cells goes first (the transitions of a DenseNet), and so does a convolution that leaves fewer
channels (the pooled branches of an Inception block).

Sums that cancel lose other digits in another order. So both are done only to what has been
rectified, where no mean of cells cancels, and a pooling goes first only to what has been normalised
as well, where channels have no large offset in common.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .._kernels import join_block
from .graph import Graph, Node, Value, ValueId, is_convolution

__all__ = ["commute"]

aten = torch.ops.aten
_POOLS = {"aten.avg_pool2d": 4, "aten.avg_pool3d": 5}  # and dimensions of what they pool
_RECTIFIERS = ("aten.relu", "aten.relu6", "aten.sigmoid")


def commute(graph: Graph) -> None:
    """Reorders pairs of such operators of which nothing else reads what lies between."""
    while _commute_one(graph):
        continue


def _commute_one(graph: Graph) -> bool:
    """Reorders one pair; False where there is none. A reordered pair is none any more."""
    users, producers = graph.users(), graph.producers()
    for later in graph.nodes:
        if not (_is_pool(graph, later) or is_convolution(later)):
            continue
        earlier = producers.get(later.operands()[0])
        if earlier is None or not (_is_pool(graph, earlier) or is_convolution(earlier)):
            continue
        between = earlier.outputs[0]
        if between == graph.output or len(users.get(between, ())) != 1:
            continue
        source = earlier.operands()[0]
        if not _is_exact(graph, later) or not _is_rectified(producers, source):
            continue
        if _is_pool(graph, later) and (conv := _of_one_cell(graph, earlier)) is not None:
            same = conv.bias is None or _averages(later)
            same = same and _is_normalised(producers, conv.source)
            if same and _cells(graph, later.outputs[0]) < _cells(graph, conv.source):
                _pool_first(graph, conv, later)
                return True
        elif _is_pool(graph, earlier) and (conv := _of_one_cell(graph, later)) is not None:
            output = later.outputs[0]
            fewer = graph.size(output, 1)[1] < graph.size(source, 1)[1]
            if fewer and _cells(graph, output) == _cells(graph, source):
                _convolve_first(graph, earlier, conv)
                return True
    return False


@dataclass(frozen=True)
class _OneCell:
    """A convolution whose outputs each read one cell."""

    node: Node
    source: ValueId
    bias: ValueId | None


def _of_one_cell(graph: Graph, node: Node) -> _OneCell | None:
    if not is_convolution(node):
        return None
    call = node.bound()
    weight, bias = call["weight"], call["bias"]
    ones, zeros = ([1] * len(call["stride"]), [0] * len(call["stride"]))
    plain = (
        not call["transposed"]
        and weight.id in graph.constants
        and (bias is None or bias.id in graph.constants)
        and list(graph.shapes[weight.id][2:]) == ones
        and list(call["stride"]) == ones
        and list(call["padding"]) == zeros
    )
    source = call["input"].id
    return _OneCell(node, source, None if bias is None else bias.id) if plain else None


def _is_pool(graph: Graph, node: Node) -> bool:
    """Whether it is a pooling of cells: of a value without a batch it would be one of channels."""
    rank = _POOLS.get(node.name)
    return rank is not None and len(graph.shapes[node.operands()[0]]) == rank


def _is_rectified(producers: dict[ValueId, Node], value: ValueId) -> bool:
    """Whether a value is known to have no number below zero."""
    node = producers.get(value)
    if node is None:
        return False
    if node.name in _RECTIFIERS:
        return True
    if node.name in ("aten.clamp", "aten.clamp_min", "aten.hardtanh"):
        low = node.args[1] if len(node.args) > 1 else None
        return isinstance(low, (int, float)) and low >= 0
    if node.name == "aten.cat" or "max_pool" in node.name or node.name in _POOLS:
        return all(_is_rectified(producers, v) for v in node.operands())
    return False


def _is_normalised(producers: dict[ValueId, Node], value: ValueId) -> bool:
    """Whether a rectified value was made by a batch norm, but for the rectifier."""
    node = producers.get(value)
    before = None if node is None or not node.operands() else producers.get(node.operands()[0])
    return before is not None and before.op is join_block and before.args[1] is not None


def _is_exact(graph: Graph, node: Node) -> bool:
    """Whether what lies between is not rounded to 16 bits."""
    return graph.dtypes[node.outputs[0]] in (torch.float32, torch.float64)


def _averages(pool: Node) -> bool:
    """Whether the factors of every output's cells sum to one, so that a bias stays what it is."""
    named = pool.bound()
    padded = any(named["padding"]) and named["count_include_pad"]
    return not padded and named.get("divisor_override") is None


def _cells(graph: Graph, value: ValueId) -> int:
    return math.prod(graph.size(value, 1)[2:])


def _pool_first(graph: Graph, conv: _OneCell, pool: Node) -> None:
    """`conv` and then `pool` the other way round."""
    source, output = conv.source, pool.outputs[0]
    cells = graph.shapes[output][2:]
    between = graph.new_value((*graph.shapes[source][:2], *cells), graph.dtypes[source])
    pooled = Node(pool.op, (Value(source), *pool.args[1:]), pool.kwargs, (between,))
    call = (Value(between), *conv.node.args[1:])
    convolved = Node(conv.node.op, call, conv.node.kwargs, (output,))
    _put(graph, conv.node, pool, [pooled, convolved])


def _convolve_first(graph: Graph, pool: Node, conv: _OneCell) -> None:
    """`pool` and then `conv` the other way round, with the bias behind both: padding has none."""
    source, output = pool.operands()[0], conv.node.outputs[0]
    shape, dtype = graph.shapes[output], graph.dtypes[output]
    between = graph.new_value((*shape[:2], *graph.shapes[source][2:]), dtype)
    named = conv.node.bound()
    rest = [named[name] for name in ("stride", "padding", "dilation", "transposed")]
    rest += [named["output_padding"], named["groups"]]
    call = (Value(source), named["weight"], None, *rest)
    convolved = Node(conv.node.op, call, {}, (between,))
    pooled_value = output if conv.bias is None else graph.new_value(shape, dtype)
    pooled = Node(pool.op, (Value(between), *pool.args[1:]), pool.kwargs, (pooled_value,))
    made = [convolved, pooled]
    if conv.bias is not None:
        bias = graph.constants[conv.bias]
        one = graph.new_value(tuple(bias.shape), bias.dtype)
        graph.constants[one] = torch.ones_like(bias)
        joined = ([Value(pooled_value)], Value(one), Value(conv.bias), -math.inf, math.inf)
        made.append(Node(join_block, joined, {}, (output,)))
    _put(graph, pool, conv.node, made)


def _put(graph: Graph, earlier: Node, later: Node, made: list[Node]) -> None:
    """Puts nodes in the place of two others."""
    nodes = [node for node in graph.nodes if node is not earlier]
    place = next(i for i, node in enumerate(nodes) if node is later)
    nodes[place : place + 1] = made
    graph.nodes[:] = nodes
