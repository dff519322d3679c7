"""Runs a graph operator by operator on whole volumes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._capture import Graph, Node, ValueId, is_convolution, resolve
from .._kernels import convolve
from .layout import in_layout

__all__ = ["prepare_constants", "run_graph", "store"]


def prepare_constants(graph: Graph, channels_last: bool) -> dict[ValueId, Tensor]:
    """The graph's constants with convolution weights in the layout of the activations."""
    constants = dict(graph.constants)
    for node in graph.nodes:
        if is_convolution(node):
            weight = node.operands()[1]
            if weight in constants:
                constants[weight] = in_layout(constants[weight].detach(), channels_last)
    return constants


def run_graph(
    graph: Graph,
    constants: dict[ValueId, Tensor],
    inputs: tuple[Tensor, ...],
    keep: frozenset[ValueId],
) -> tuple[Tensor, dict[ValueId, Tensor]]:
    """Runs the whole graph on untouched inputs.

    Returns:
        The output and the values named in `keep`.
    """
    values = dict(zip(graph.inputs, inputs, strict=True))
    last_use = graph.last_uses()
    kept = {v: t for v, t in values.items() if v in keep}
    rows = inputs[0].shape[0]
    for i, node in enumerate(graph.nodes):
        args, kwargs = resolve(
            (node.args, node.kwargs), lambda v: constants[v] if v in constants else values[v], rows
        )
        if node.name == "aten.convolution" and not node.bound()["transposed"]:
            call = *args[:6], args[8]
            store(values, node, convolve(*call))
        else:
            store(values, node, node.op(*args, **kwargs))
        kept.update((v, values[v]) for v in node.outputs if v in keep)
        for value in {*node.operands(), *node.outputs}:
            if last_use.get(value, -1) <= i and value != graph.output:
                values.pop(value, None)
    output = constants[graph.output] if graph.output in constants else values[graph.output]
    return output, kept


def store(values: dict[ValueId, Tensor], node: Node, result: Any) -> None:
    """Puts an operator's results into `values`."""
    results = result if node.several else (result,)
    for value, tensor in zip(node.outputs, results, strict=False):
        if value >= 0 and tensor is not None:
            values[value] = tensor
