"""What operators cost on whole volumes (Eq. 13), by the rates of a machine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .._capture import Node, is_convolution, resolve
from .._kernels import Rates
from .._operators import Kind
from .analysis import Analysis, multiply_accumulates

__all__ = ["NodeCost", "is_shared", "node_costs"]


@dataclass(frozen=True)
class NodeCost:
    """What one operator of torch costs a row on whole volumes.

    Attributes:
        macs: multiply-accumulates (Eq. 13).
        elements: elements that it writes.
        seconds: predicted time.
    """

    macs: int
    elements: int
    seconds: float


def node_costs(analysis: Analysis, rates: Rates) -> tuple[NodeCost, ...]:
    """What every operator costs a row on whole volumes."""
    graph = analysis.graph
    costs = []
    for node in graph.nodes:
        elements = sum(math.prod(graph.size(v, 1)) for v in node.outputs if v >= 0)
        macs = 0 if is_shared(analysis, node) else multiply_accumulates(graph, node)
        rate = rates.linear
        if is_convolution(node):
            named = node.bound()
            groups = resolve(named["groups"], graph.constants.__getitem__, 1)
            channels, inner = graph.size(named["weight"].id, 1)[:2]
            each = channels // groups
            inner, outer = (each, inner) if named["transposed"] else (inner, each)
            rate = rates.of_torch_convolution(groups, inner, outer)
        costs.append(NodeCost(macs, elements, macs * rate + elements * rates.element))
    return tuple(costs)


def is_shared(analysis: Analysis, node: Node) -> bool:
    """Whether the operator runs in the base alone."""
    return all(v < 0 or analysis.kinds[v] is Kind.IMAGE for v in node.outputs)
