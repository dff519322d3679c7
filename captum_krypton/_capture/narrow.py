"""A graph of which only a part of the output is computed."""

from __future__ import annotations

from dataclasses import replace

import torch

from .graph import Graph, Node, Value

__all__ = ["narrowed"]

aten = torch.ops.aten


def narrowed(graph: Graph, part: tuple[tuple[int, int], ...]) -> Graph:
    """The same operators, and slices of their output behind them.

    Args:
        graph: the graph.
        part: of the output's dimensions behind the batch, the first cell and where the cells end.
    """
    nodes, output = list(graph.nodes), graph.output
    made = replace(
        graph,
        nodes=nodes,
        shapes=dict(graph.shapes),
        dtypes=dict(graph.dtypes),
        constants=dict(graph.constants),  # new values of this graph have numbers of their own
    )
    for dim, (start, stop) in enumerate(part, 1):
        shape = made.shapes[output]
        if (start, stop) == (0, shape[dim]):
            continue
        sliced = made.new_value(
            (*shape[:dim], stop - start, *shape[dim + 1 :]), made.dtypes[output]
        )
        nodes.append(Node(aten.slice.Tensor, (Value(output), dim, start, stop), {}, (sliced,)))
        output = sliced
    made.output = output
    return made
