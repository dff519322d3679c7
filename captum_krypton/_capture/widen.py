"""Gives convolutions in 16 bits, on the CPU, weights and sums in float32."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._kernels import convolution_block
from .graph import Graph, Node, Value, ValueId

__all__ = ["is_half", "widen_convolutions"]


def is_half(graph: Graph, value: ValueId, beside: ValueId) -> bool:
    """Whether a value has 16 bits, and lies on the CPU, as the constant `beside` does."""
    half = graph.dtypes[value] in (torch.float16, torch.bfloat16)
    return half and graph.constants[beside].is_cpu


def widen_convolutions(graph: Graph) -> None:
    """Makes blocks of such convolutions, whose outputs are rounded once, in place.

    What is folded into their weights loses nothing then, and the compiled kernels, which compute in
    float32, take the weights as they are.
    """
    wide: dict[ValueId, ValueId] = {}

    def widened(value: Value | None) -> Value | None:
        if value is None:
            return None
        if value.id not in wide:
            tensor: Tensor = graph.constants[value.id].detach().float()
            wide[value.id] = graph.new_value(tuple(tensor.shape), tensor.dtype)
            graph.constants[wide[value.id]] = tensor
        return Value(wide[value.id])

    for i, node in enumerate(graph.nodes):
        if node.name != "aten.convolution":
            continue
        source, *constants = node.operands()
        if any(v not in graph.constants for v in constants):
            continue
        if not is_half(graph, source, constants[0]):
            continue
        named = node.bound()
        named["weight"], named["bias"] = widened(named["weight"]), widened(named["bias"])
        call = (*named.values(), None, -math.inf, math.inf)
        graph.nodes[i] = Node(convolution_block, call, {}, node.outputs)
