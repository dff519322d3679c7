"""Joins operators into blocks.

A convolution takes the sum and the activation that follow it, a concatenation of channels the batch
norm and the clamp.

One pass over memory instead of three, and no base for the values between. What may be joined
depends on what the window changes, so it follows an analysis, and another one follows it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._capture import Graph, Node, Value, ValueId, is_convolution
from .._kernels import ACTIVATIONS, convolution_block, join_block
from .._operators import Kind
from .analysis import Analysis, multiply_accumulates

__all__ = ["fused"]


def fused(analysis: Analysis) -> Graph:
    """An equivalent graph in which blocks stand for several operators where that can be."""
    graph = analysis.graph
    local = [
        node for node, rule in zip(graph.nodes, analysis.rules, strict=True) if rule is not None
    ]
    convolutions = [node for node in local if is_convolution(node)]
    # The dearer of two that are added gets the sum.
    convolutions.sort(key=lambda node: -multiply_accumulates(graph, node))
    users = graph.users()
    blocks: dict[int, Node] = {}  # by the last of the nodes that a block stands for
    gone: set[int] = set()
    for make, nodes in ((_convolution, convolutions), (_join, local)):
        for node in nodes:
            found = make(analysis, users, node)
            if found is None:
                continue
            block, chain = found
            if len(chain) > 1 and gone.isdisjoint(map(id, chain)):
                gone.update(map(id, chain))
                blocks[id(chain[-1])] = block
    left = [
        blocks.get(id(node), node)
        for node in graph.nodes
        if id(node) in blocks or id(node) not in gone
    ]
    return Graph(left, graph.inputs, graph.output, graph.shapes, graph.dtypes, graph.constants)


def _convolution(
    analysis: Analysis, users: dict[ValueId, list[Node]], node: Node
) -> tuple[Node, list[Node]]:
    """The block that starts with a convolution, and the nodes that it stands for."""
    graph = analysis.graph
    residual: ValueId | None = None
    low, high, activation = -math.inf, math.inf, "none"
    slope: Value | None = None
    chain = [node]
    user = _sole_user(graph, users, chain[-1])
    if user is not None:
        residual = _added(analysis, chain[-1].outputs[0], user)
        if residual is not None:
            chain.append(user)
            user = _sole_user(graph, users, user)
    if user is not None and (bounds := _bounds(user)) is not None:
        low, high = bounds
        chain.append(user)
    elif user is not None and (named := _activation(user)) is not None:
        activation = named
        chain.append(user)
    elif user is not None and (slopes := _slopes(graph, node, user)) is not None:
        activation = "prelu"
        slope = Value(graph.new_value(tuple(slopes.shape), slopes.dtype))
        graph.constants[slope.id] = slopes
        chain.append(user)
    added = None if residual is None else Value(residual)
    call = list(node.bound().values())[:9]  # those of `aten::convolution`, of a block, too
    arguments = (*call, added, low, high, activation, slope)
    return Node(convolution_block, arguments, {}, chain[-1].outputs), chain


def _join(
    analysis: Analysis, users: dict[ValueId, list[Node]], node: Node
) -> tuple[Node, list[Node]] | None:
    """The block that starts with a concatenation of channels, or with a norm alone."""
    graph = analysis.graph
    scale: Value | None = None
    shift: Value | None = None
    low, high = -math.inf, math.inf
    chain = [node]
    if node.op is join_block:
        tensors, scale, shift, low, high = node.args
    elif node.name == "aten.cat" and _along_channels(analysis, node):
        tensors = node.args[0]
        user = _sole_user(graph, users, node)
        if user is not None and user.op is join_block and len(user.args[0]) == 1:
            _, scale, shift, low, high = user.args
            chain.append(user)
    else:
        return None
    user = _sole_user(graph, users, chain[-1])
    if user is not None and (bounds := _bounds(user)) is not None:
        low, high = bounds
        chain.append(user)
    arguments = (list(tensors), scale, shift, low, high)
    return Node(join_block, arguments, {}, chain[-1].outputs), chain


def _along_channels(analysis: Analysis, node: Node) -> bool:
    """Whether a concatenation is one of channels, of local values of one floating-point type."""
    graph = analysis.graph
    dim = node.args[1] if len(node.args) > 1 else 0
    if dim % len(graph.shapes[node.outputs[0]]) != 1:
        return False
    types = {graph.dtypes[value] for value in node.operands()}
    return (
        len(types) == 1
        and types.pop().is_floating_point
        and all(analysis.kinds[value] is Kind.LOCAL for value in node.operands())
        and all(1 not in analysis.dims[value] for value in node.operands())
    )


def _sole_user(graph: Graph, users: dict[ValueId, list[Node]], node: Node) -> Node | None:
    """The one operator that reads the node's output, where there is one and nothing else does."""
    value = node.outputs[0]
    readers = users.get(value, [])
    return readers[0] if len(readers) == 1 and value != graph.output else None


def _added(analysis: Analysis, value: ValueId, node: Node) -> ValueId | None:
    """What `node` adds to `value`: another local value of its shape."""
    if node.name != "aten.add" or node.kwargs or len(node.args) != 2:
        return None
    operands = [argument.id for argument in node.args if isinstance(argument, Value)]
    others = [operand for operand in operands if operand != value]
    if len(operands) != 2 or len(others) != 1:
        return None
    (other,) = others
    graph = analysis.graph
    alike = (
        analysis.kinds[other] is Kind.LOCAL
        and analysis.dims[other] == analysis.dims[value]
        and graph.shapes[other] == graph.shapes[value]
        and graph.dtypes[other] == graph.dtypes[value]
    )
    return other if alike else None


def _activation(node: Node) -> str | None:
    """The activation of a convolution's kernel that an operator is; None for any other operator."""
    name = node.name.removeprefix("aten.")
    if name not in ACTIVATIONS or node.bound().get("approximate", "none") != "none":
        return None
    return name


def _slopes(graph: Graph, convolution: Node, node: Node) -> Tensor | None:
    """The slope of each channel of a PReLU that follows a convolution; None for others."""
    if node.name not in ("aten.leaky_relu", "aten._prelu_kernel"):
        return None
    like = graph.constants[convolution.bound()["weight"].id]
    channels = graph.size(node.outputs[0], 1)[1]
    if node.name == "aten.leaky_relu":
        exact = like.dtype in (torch.float32, torch.float64)  # other types round the slope
        return like.new_full((channels,), node.bound()["negative_slope"]) if exact else None
    slope = graph.constants.get(node.operands()[1])
    if slope is None or slope.numel() not in (1, channels):
        return None
    if torch.promote_types(slope.dtype, like.dtype) is not like.dtype:
        return None
    if slope.numel() > 1 and slope.shape[1] != channels:
        return None
    return slope.detach().to(like.dtype).reshape(-1).expand(channels).contiguous()


def _bounds(node: Node) -> tuple[float, float] | None:
    """The range that an activation clamps to; None for any other operator."""
    if node.name == "aten.relu":
        return 0.0, math.inf
    if node.name not in ("aten.hardtanh", "aten.clamp", "aten.clamp_min", "aten.clamp_max"):
        return None
    named = node.bound()
    low = named.get("min_val", named.get("min"))
    high = named.get("max_val", named.get("max"))
    low = -math.inf if low is None else low
    high = math.inf if high is None else high
    if not all(isinstance(bound, (int, float)) for bound in (low, high)):
        return None
    return float(low), float(high)
