"""From a forward function to a graph that is valid for every batch size.

The function is recorded twice, with two and with three rows that differ. The two recordings
must be the same operators; a size that differs between them grows with the batch, and anything
else that differs means that the function looks at its data or at the batch, which no graph can
say.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from .eager import eagerly
from .fingerprint import fingerprints
from .graph import BatchInt, Graph, Node, resolve
from .pair import pair, refuse_mixing
from .probe import probe_rows
from .recorder import NotCapturable, Recorder, Recording

__all__ = [
    "Capture",
    "NotCapturable",
    "capture",
    "graph_of",
    "reachable_modules",
    "record",
    "refuse_training",
]

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


def capture(
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
    refuse_training(forward)
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
    _refuse_lists(forward)
    tensors = tuple(a for a, is_batched in zip(arguments, batched, strict=True) if is_batched)
    with eagerly:
        return Recorder(tensors).record(forward, arguments, profile=profile)


def current_state(forward: Callable[..., Any], leaves: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """A value that changes when a parameter, buffer, mode or hook of the model changes."""
    state: list[Any] = [torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")]
    for module in reachable_modules(forward):
        for part in module.modules():
            state.append((id(part), _training(part), *_hooks(part)))
        tensors: list[Tensor] = [*module.parameters(), *module.buffers()]
        state.extend((id(t), t.data_ptr(), t.dtype, t.device) for t in tensors)
    state.extend(fingerprints(leaves))
    return tuple(state)


def _refuse_lists(forward: Callable[..., Any]) -> None:
    """Refuses TorchScript that makes lists of tensors: no operator reads their memory there."""
    for thing in _reachable(forward):
        parts = thing.modules() if isinstance(thing, nn.Module) else (thing,)
        for part in parts:
            graph = getattr(part, "inlined_graph", None) if _is_script(part) else None
            if graph is not None and graph.findAllNodes("prim::tolist"):
                raise NotCapturable("the forward takes values out of a tensor (prim::tolist)")


def _is_script(thing: Any) -> bool:
    return isinstance(thing, (torch.jit.ScriptModule, torch.jit.ScriptFunction))


def reachable_modules(forward: Callable[..., Any]) -> tuple[nn.Module, ...]:
    """The modules that a callable holds: itself, its owner, its closure, its partial's parts."""
    return tuple(thing for thing in _reachable(forward) if isinstance(thing, nn.Module))


def _reachable(forward: Callable[..., Any]) -> tuple[Any, ...]:
    """The modules and scripted functions that a callable holds."""
    found: dict[int, Any] = {}
    seen: set[int] = set()

    def visit(thing: Any, depth: int) -> None:
        if id(thing) in seen or depth > 4:
            return
        seen.add(id(thing))
        if isinstance(thing, nn.Module) or _is_script(thing):
            found[id(thing)] = thing
        elif isinstance(thing, functools.partial):
            for part in (thing.func, *thing.args, *thing.keywords.values()):
                visit(part, depth + 1)
        elif isinstance(thing, (tuple, list)):
            for part in thing:
                visit(part, depth + 1)
        elif isinstance(thing, dict):
            for part in thing.values():
                visit(part, depth + 1)
        elif _has_code(thing):
            for cell in thing.__closure__ or ():
                try:
                    visit(cell.cell_contents, depth + 1)
                except ValueError:  # a cell that is still empty
                    continue
            for name in thing.__code__.co_names:
                part = thing.__globals__.get(name)
                if isinstance(part, nn.Module) or _has_code(part) or _is_script(part):
                    visit(part, depth + 1)
        elif hasattr(thing, "__self__"):
            visit(thing.__self__, depth + 1)
            visit(getattr(thing, "__func__", None), depth + 1)
        elif callable(thing) and hasattr(thing, "__dict__"):
            for part in vars(thing).values():
                visit(part, depth + 1)

    visit(forward, 0)
    visit(getattr(forward, "__self__", None), 0)
    visit(getattr(forward, "__wrapped__", None), 0)
    return tuple(found.values())


def _has_code(thing: Any) -> bool:
    """Whether something is a function of Python; the class of functions has `__code__`, too."""
    return isinstance(getattr(thing, "__code__", None), CodeType)


def _hooks(module: nn.Module) -> tuple[int, ...]:
    return (*module._forward_hooks.keys(), -1, *module._forward_pre_hooks.keys())


def _training(module: nn.Module) -> bool:
    """Whether a module is in training mode; a frozen TorchScript module has no mode."""
    return bool(getattr(module, "training", False))


def refuse_training(forward: Callable[..., Any]) -> None:
    """Raises NotCapturable where a module is in a mode that takes from or writes to its state."""
    for module in reachable_modules(forward):
        for name, part in module.named_modules():
            norm = isinstance(part, nn.modules.batchnorm._NormBase)
            if not _training(part) or not (norm or isinstance(part, nn.modules.dropout._DropoutNd)):
                continue
            if norm and not isinstance(part, nn.modules.batchnorm._BatchNorm):
                if not part.track_running_stats:
                    continue  # instance norm works row by row in either mode
            if getattr(part, "p", None) == 0:
                continue
            raise NotCapturable(f"module {name or type(part).__name__!r} is in training mode")


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
