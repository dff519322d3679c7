"""From a forward function to a graph that is valid for every batch size.

The function is recorded twice, with two and with three rows that differ. The two recordings
must be the same operators; a size that differs between them grows with the batch, and anything
else that differs means that the function looks at its data or at the batch, which no graph can
say.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ._graph import BatchInt, Graph, Node, Value, ValueId, resolve, walk
from ._recorder import NotCapturable, Recorder, Recording, Watch, trains

__all__ = ["Capture", "NotCapturable", "capture", "reachable_modules", "refuse_training", "watched"]

_FEW, _MANY = 2, 3


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
    forward: Callable[..., Any], arguments: tuple[Any, ...], batched: tuple[bool, ...]
) -> Capture:
    """Records `forward(*arguments)` as a graph over a batch of any size.

    The caller keeps the state of random number generators: a forward that draws is run in part.

    Args:
        forward: the user's forward function.
        arguments: all its positional arguments; tensors have shape (N, ...).
        batched: for every argument, whether it is a tensor with one row an example.

    Returns:
        The graph; its inputs are the batched arguments in order.

    Raises:
        NotCapturable: where the function cannot be written as such a graph.
    """
    refuse_training(forward)
    with _eagerly:
        few, few_leaves = _record(forward, arguments, batched, _FEW)
        many, many_leaves = _record(forward, arguments, batched, _MANY)
    graph = _pair(few, many, few_leaves, many_leaves)
    leaves = tuple(few_leaves.values())
    graph = _fold_constants(graph, few.tensors)
    _refuse(graph)
    return Capture(graph, leaves, current_state(forward, leaves))


def watched(
    forward: Callable[..., Any], arguments: tuple[Any, ...], leaves: tuple[Tensor, ...]
) -> tuple[Any, list[Any]]:
    """Calls `forward(*arguments)`; its result, and the operators that it ran."""
    watch = Watch(leaves)
    with _eagerly, torch.no_grad(), watch:
        result = forward(*arguments)
    return result, watch.notes


def current_state(forward: Callable[..., Any], leaves: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """A value that changes when a parameter, buffer, mode or hook of the model changes."""
    state: list[Any] = [torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")]
    for module in reachable_modules(forward):
        for part in module.modules():
            state.append((id(part), part.training, *_hooks(part)))
        tensors: list[Tensor] = [*module.parameters(), *module.buffers()]
        state.extend((id(t), t.data_ptr(), t.dtype, t.device) for t in tensors)
    state.extend(_fingerprints(leaves))
    return tuple(state)


def reachable_modules(forward: Callable[..., Any]) -> tuple[nn.Module, ...]:
    """The modules that a callable holds: itself, its owner, its closure, its partial's parts."""
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()

    def visit(thing: Any, depth: int) -> None:
        if id(thing) in seen or depth > 4:
            return
        seen.add(id(thing))
        if isinstance(thing, nn.Module):
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
        elif hasattr(thing, "__code__"):
            for cell in thing.__closure__ or ():
                try:
                    visit(cell.cell_contents, depth + 1)
                except ValueError:  # a cell that is still empty
                    continue
            for name in thing.__code__.co_names:
                part = thing.__globals__.get(name)
                if isinstance(part, nn.Module) or hasattr(part, "__code__"):
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


def _hooks(module: nn.Module) -> tuple[int, ...]:
    return (*module._forward_hooks.keys(), -1, *module._forward_pre_hooks.keys())


def refuse_training(forward: Callable[..., Any]) -> None:
    """Raises NotCapturable where a module is in a mode that takes from or writes to its state."""
    for module in reachable_modules(forward):
        for name, part in module.named_modules():
            norm = isinstance(part, nn.modules.batchnorm._NormBase)
            if not part.training or not (norm or isinstance(part, nn.modules.dropout._DropoutNd)):
                continue
            if norm and not isinstance(part, nn.modules.batchnorm._BatchNorm):
                if not part.track_running_stats:
                    continue  # instance norm works row by row in either mode
            if getattr(part, "p", None) == 0:
                continue
            raise NotCapturable(f"module {name or type(part).__name__!r} is in training mode")


class _Eager:
    """Compiled code runs eagerly while any thread is within, so that its operators are seen.

    The stance is the process's. Threads that each set and restored it would leave it as whoever
    came last had found it.
    """

    def __init__(self) -> None:
        self._lock, self._within = threading.Lock(), 0
        self._stance = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._within == 0 and "torch._dynamo" in sys.modules:
                self._stance.enter_context(torch.compiler.set_stance("force_eager"))
            self._within += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._within -= 1
            if self._within == 0:
                self._stance.close()


_eagerly = _Eager()


def _record(
    forward: Callable[..., Any],
    arguments: tuple[Any, ...],
    batched: tuple[bool, ...],
    rows: int,
) -> tuple[Recording, dict[ValueId, Tensor]]:
    with torch.inference_mode(False), torch.no_grad():
        prepared = tuple(
            _rows(argument, rows) if is_batched else argument
            for argument, is_batched in zip(arguments, batched, strict=True)
        )
    tensors = tuple(p for p, is_batched in zip(prepared, batched, strict=True) if is_batched)
    recorder = Recorder(tensors)
    recording = recorder.record(forward, prepared)
    return recording, {leaf: recording.tensors[leaf] for leaf in recording.leaves}


def _rows(tensor: Tensor, rows: int) -> Tensor:
    """`rows` different rows: the first example, and the same with a part of it at its mean."""
    example = tensor.detach()[:1]
    out = example.repeat(rows, *([1] * (tensor.dim() - 1)))
    if tensor.dim() == 1 or tensor.numel() == 0 or not tensor.is_floating_point():
        return out
    flat = out.view(rows, -1)
    for row in range(rows):
        if row == rows - 2:
            continue  # the untouched example stands first of two and second of three
        start = flat.shape[1] * row // (rows + 1)
        part = flat[row, start : start + max(1, flat.shape[1] // (rows + 1))]
        part.copy_(part.flip(0))
    return out


def _pair(
    few: Recording,
    many: Recording,
    few_leaves: dict[ValueId, Tensor],
    many_leaves: dict[ValueId, Tensor],
) -> Graph:
    """One graph from two recordings, or a reason why they are not the same function."""
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
        shapes[value] = _affine_shape(few.shapes[value], many.shapes[other])
        if value in few_leaves:
            _refuse_changed_leaf(few_leaves[value], many_leaves.get(other))

    def merge(a: Any, b: Any) -> Any:
        if isinstance(a, Value) and isinstance(b, Value):
            see(a.id, b.id)
            return a
        if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)) and len(a) == len(b):
            return type(a)(merge(x, y) for x, y in zip(a, b, strict=True))
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            return {k: merge(v, b[k]) for k, v in a.items()}
        if type(a) is int and type(b) is int:
            return _affine(a, b)
        if type(a) is type(b) and (a is b or a == b or (a != a and b != b)):
            return a
        raise NotCapturable(f"a number in the forward depends on its data or batch: {a}, {b}")

    for value, other in to_many.items():
        shapes[value] = _affine_shape(few.shapes[value], many.shapes[other])
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
        nodes.append(Node(node.op, args, kwargs, node.outputs, node.several))
    see(few.output, many.output)
    for leaf, tensor in few_leaves.items():
        shapes.setdefault(leaf, tuple(tensor.shape))
    graph = Graph(nodes, few.inputs, few.output, shapes, dict(few.dtypes), dict(few_leaves))
    _refuse_reading(graph)
    return graph.dead_code_eliminated()


def _refuse_numbers(node: Node, args: tuple[Any, ...]) -> None:
    """Refuses a number that grows with the batch where it is not a size, such as a factor."""
    for argument, declared in zip(args, node.op._schema.arguments, strict=False):  # type: ignore[attr-defined]
        grows = any(isinstance(a, BatchInt) for a in walk(argument))
        if grows and "int" not in str(declared.type).lower():
            raise NotCapturable(f"the forward computes with the batch size ({node.op})")


def _refuse_reading(graph: Graph) -> None:
    """Refuses what brings a value that depends on the inputs out of its tensor."""
    varying = set(graph.inputs)
    for node in graph.nodes:
        if not varying.intersection(node.operands()):
            continue
        varying.update(node.results)
        if torch.Tag.data_dependent_output in node.op.tags:  # type: ignore[attr-defined]
            raise NotCapturable(f"the forward reads a value out of a tensor ({node.op})")


def _affine(a: int, b: int) -> int | BatchInt:
    if a == b:
        return a
    slope, rest = divmod(b - a, _MANY - _FEW)
    if rest:
        raise NotCapturable(f"a size in the forward is not affine in the batch: {a}, {b}")
    return BatchInt(slope, a - slope * _FEW)


def _affine_shape(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int | BatchInt, ...]:
    if len(a) != len(b):
        raise NotCapturable("the forward's shapes depend on its data or batch")
    return tuple(_affine(x, y) for x, y in zip(a, b, strict=True))


def _refuse_changed_leaf(a: Tensor, b: Tensor | None) -> None:
    if b is None or a is b:
        if b is None:
            raise NotCapturable("the forward reads other tensors for other inputs")
        return
    same = a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
    if not same or not torch.equal(
        a.nan_to_num() if a.is_floating_point() else a,
        b.nan_to_num() if b.is_floating_point() else b,
    ):
        raise NotCapturable("a tensor made inside the forward depends on its data or batch")


# Operators that take no more than the kind, and some the shape, of their operand.
_READS_NO_DATA = {
    f"aten.{name}"
    for name in ("new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like")
}


def _fold_constants(graph: Graph, recorded: dict[ValueId, Tensor]) -> Graph:
    """Runs the operators that depend on neither the inputs nor the batch size, once."""
    constants = dict(graph.constants)
    nodes: list[Node] = []
    with torch.no_grad():
        for node in graph.nodes:
            constant = node.name in _READS_NO_DATA or all(v in constants for v in node.operands())
            if not constant or _grows(graph, node):
                nodes.append(node)
                continue
            tensors = recorded | constants
            arguments = resolve((node.args, node.kwargs), tensors.__getitem__, 0)
            result = node.op(*arguments[0], **arguments[1])
            results = result if node.several else (result,)
            constants.update((v, r) for v, r in zip(node.outputs, results, strict=True) if v >= 0)
    folded = Graph(nodes, graph.inputs, graph.output, graph.shapes, graph.dtypes, constants)
    return folded.dead_code_eliminated()


def _grows(graph: Graph, node: Node) -> bool:
    sizes = (s for v in node.outputs if v >= 0 for s in graph.shapes[v])
    return any(isinstance(a, BatchInt) for a in (*sizes, *walk((node.args, node.kwargs))))


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


def _refuse(graph: Graph) -> None:
    """Refuses what the batch would change: data-dependent, random or mixing operators."""
    if graph.output in graph.constants:
        raise NotCapturable("the outcome does not depend on the inputs")
    users = graph.users()
    for node in graph.nodes:
        tags = node.op.tags  # type: ignore[attr-defined]
        if "batch_norm" in node.name and trains(node.bound()) and not _by_instance(graph, node):
            raise NotCapturable("a batch norm takes its statistics from the batch")
        _refuse_mixing(graph, node)
        if torch.Tag.dynamic_output_shape in tags and not _indexed_by_integers(graph, node):
            raise NotCapturable(f"a shape in the forward depends on the data ({node.op})")
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


def _indexed_by_integers(graph: Graph, node: Node) -> bool:
    """Whether an index operator's shape is known: its indices are numbers, not masks."""
    if node.name not in ("aten.index", "aten.index_put", "aten._unsafe_index"):
        return False
    dtypes = {graph.dtypes[v.id] for v in walk(node.args[1]) if isinstance(v, Value)}
    return not dtypes & {torch.bool, torch.uint8}


_SMALL = 1 << 14  # bytes of a tensor that is looked at with others


def _fingerprints(tensors: tuple[Tensor, ...]) -> Iterator[tuple[Any, ...]]:
    """Change when a tensor's content does, also where autograd's version counter does not."""
    small: dict[torch.device, list[Tensor]] = {}
    sums: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        device = tensor.device
        yield tuple(tensor.shape), tensor.stride(), tensor.dtype, device, tensor.data_ptr()
        memory = _bytes_of(tensor)
        if memory.numel() <= _SMALL:
            small.setdefault(device, []).append(memory)
        else:
            sums.setdefault(device, []).append(_content(memory))
    for device, parts in small.items():  # a model has many, and each launches kernels on a GPU
        sums.setdefault(device, []).append(_content(torch.cat(parts), by_rows=False))
    for device in sums:  # a device is waited for once
        yield tuple(torch.stack(sums[device]).tolist())


def _bytes_of(tensor: Tensor) -> Tensor:
    with torch.no_grad():
        data = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
        return data.contiguous().reshape(-1).view(torch.uint8)


def _content(memory: Tensor, *, by_rows: bool = True) -> Tensor:
    """A number that changes with any byte, and with the order of what is counted by its place.

    It stays on the bytes' device.

    Args:
        memory: the bytes.
        by_rows: whether bytes count by the place of their row, of about as many words as there are
            rows; else by the place of their word.
    """
    if memory.data_ptr() % 8:  # a word must start on a word's boundary
        memory = memory.clone()
    words = memory[: memory.numel() // 8 * 8].view(torch.int64)
    side = 1 << (words.numel().bit_length() // 2) if by_rows else 1
    rows = words[: words.numel() // side * side].view(-1, side)
    rows = rows.sum(1) if side > 1 else rows.squeeze(1)
    weights = torch.arange(1, 2 * rows.numel() + 1, 2, device=rows.device)
    upper = (rows >> 31) & ((1 << 33) - 1)  # without the sign: else 0 and -1 were alike
    found = ((rows ^ upper) * weights).sum()
    for rest in (words[rows.numel() * side :], memory[words.numel() * 8 :]):
        if rest.numel():
            found = found + (rest * (torch.arange(len(rest), device=rest.device) + 1)).sum()
    return found
