"""From a forward function to a graph that is valid for every batch size.

The function is recorded twice, with two and with three rows that differ. The two recordings
must be the same operators; a size that differs between them grows with the batch, and anything
else that differs means that the function looks at its data or at the batch, which no graph can
say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .eager import eagerly
from .graph import BatchInt, Graph, Node, resolve
from .pair import pair, refuse_mixing
from .probe import probe_rows
from .recorder import Recorder, Recording
from .state import current_state, refuse_modules

__all__ = ["Capture", "captured", "graph_of", "record"]

_FEW, _MANY = 2, 3  # rows of the two recordings


@dataclass(frozen=True)
class Capture:
    """A graph and the state of the world that it is true for.

    Attributes:
        graph: the forward function, constants folded, dead code gone.
        leaves: the parameters, buffers and constants that the function read.
        state: what `current_state` said when the function was recorded.
    """

    graph: Graph
    leaves: tuple[Tensor, ...]
    state: tuple[Any, ...]

    def says_the_same_as(self, other: Capture) -> bool:
        """Whether both captures have the same operators with the same arguments."""
        ours, theirs = self.graph.nodes, other.graph.nodes
        return len(ours) == len(theirs) and all(
            (a.op, a.args, a.kwargs) == (b.op, b.args, b.kwargs)
            for a, b in zip(ours, theirs, strict=True)
        )

    def is_current(self, forward: Callable[..., Any]) -> bool:
        """Whether nothing that the graph depends on has changed since it was recorded."""
        return current_state(forward, self.leaves) == self.state


def captured(
    forward: Callable[..., Any],
    arguments: tuple[Any, ...],
    batched: tuple[bool, ...],
    baselines: tuple[Any, ...] = (),
) -> Capture:
    """Records `forward(*arguments)` as a graph over a batch of any size.

    Args:
        forward: the user's forward function.
        arguments: all its positional arguments; tensors have shape (N, ...).
        batched: for every argument, whether it is a tensor with one row an example.
        baselines: what windows of the first arguments are filled with.

    Returns:
        The graph; its inputs are the batched arguments in order.

    Raises:
        NotCapturable: where the function cannot be written as such a graph.
    """
    refuse_modules(forward)
    fills = (*baselines, *[None] * (len(arguments) - len(baselines)))

    def recorded(first: int, rows: int) -> Recording:
        with torch.inference_mode(False), torch.no_grad():
            prepared = tuple(
                probe_rows(argument, fill, first, rows) if is_batched else argument
                for argument, fill, is_batched in zip(arguments, fills, batched, strict=True)
            )
        return record(forward, prepared, batched, profile=first == 0)

    few = recorded(0, _FEW)
    many = recorded(_FEW, _MANY)
    graph = graph_of(few, many, (_FEW, _MANY))
    leaves = tuple(few.leaves.values())
    return Capture(graph, leaves, current_state(forward, leaves))


def graph_of(few: Recording, many: Recording, rows: tuple[int, int]) -> Graph:
    """The function that two recordings with so many rows show, constants folded.

    Raises:
        NotCapturable: where they are not one function, or where it mixes the rows of a batch.
    """
    graph = _fold_constants(pair(few, many, rows), few)
    refuse_mixing(graph)
    return graph


def record(
    forward: Callable[..., Any],
    arguments: tuple[Any, ...],
    batched: tuple[bool, ...],
    *,
    profile: bool = True,
) -> Recording:
    """What `forward(*arguments)` does, as operators; its inputs are the batched arguments.

    `profile` says whether doors of C are watched; see `Recorder.record`.

    Raises:
        NotCapturable: where that cannot be said as a graph.
    """
    tensors = tuple(a for a, is_batched in zip(arguments, batched, strict=True) if is_batched)
    with eagerly:
        return Recorder(tensors).record(forward, arguments, profile=profile)


# Operators that take no more than the kind, and some the shape, of their operand.
_READS_NO_DATA = {
    f"aten.{name}"
    for name in ("new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like")
}


def _fold_constants(graph: Graph, recorded: Recording) -> Graph:
    """Runs the operators that depend on neither the inputs nor the batch size, once."""
    constants = dict(graph.constants)
    nodes: list[Node] = []
    with torch.no_grad():
        for node in graph.nodes:
            constant = node.name in _READS_NO_DATA or all(v in constants for v in node.operands())
            if not constant or _grows(graph, node):
                nodes.append(node)
                continue
            known = {v: constants.get(v) for v in node.operands()}
            tensors = {v: recorded.stand_in(v) if t is None else t for v, t in known.items()}
            arguments = resolve((node.args, node.kwargs), tensors.__getitem__, 0)
            result = node.op(*arguments[0], **arguments[1])
            results = result if node.several else (result,)
            constants.update((v, r) for v, r in zip(node.outputs, results, strict=True) if v >= 0)
    folded = Graph(nodes, graph.inputs, graph.output, graph.shapes, graph.dtypes, constants)
    return folded.dead_code_eliminated()


def _grows(graph: Graph, node: Node) -> bool:
    sizes = (s for v in node.outputs if v >= 0 for s in graph.shapes[v])
    return node.grows or any(isinstance(size, BatchInt) for size in sizes)
