"""Records the ATen operators of one call of a forward function.

The forward function runs for real, on real tensors, under a dispatch mode: hooks see ordinary
tensors, Python control flow takes the branch it always takes, and the parameters that occur are
the user's own. What is recorded is functional: in-place operators are written as their
out-of-place twins, and views of a changed tensor are taken again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ._graph import Node, Value, ValueId, walk

__all__ = ["NotCapturable", "Recorder", "Recording", "Watch", "trains"]

aten = torch.ops.aten


class NotCapturable(Exception):
    """The forward function does something that a graph cannot say; the message says what."""


@dataclass
class Recording:
    """What one call did: nodes over values, and the tensors that came from outside."""

    nodes: list[Node]
    tensors: dict[ValueId, Tensor]
    shapes: dict[ValueId, tuple[int, ...]]
    dtypes: dict[ValueId, torch.dtype]
    leaves: list[ValueId]
    inputs: tuple[ValueId, ...]
    output: ValueId


# In-place operators whose functional twin is not the same name without the underscore.
_FUNCTIONAL = {
    "aten::copy_": aten.copy.default,
    "aten::fill_.Scalar": aten.fill.Scalar,
    "aten::fill_.Tensor": aten.fill.Tensor,
    "aten::zero_": aten.zero.default,
    "aten::index_put_": aten.index_put.default,
}
_SAME_TENSOR = {aten.detach.default, aten.alias.default, aten.lift_fresh.default}


class Recorder(TorchDispatchMode):
    """A dispatch mode that writes down every operator it sees.

    Args:
        inputs: the tensors that the recorded call will be given.
    """

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nodes: list[Node] = []
        self.tensors: dict[ValueId, Tensor] = {}
        self.shapes: dict[ValueId, tuple[int, ...]] = {}
        self.dtypes: dict[ValueId, torch.dtype] = {}
        self.leaves: list[ValueId] = []
        self._value_of: dict[int, ValueId] = {}  # id(tensor) -> its present value
        self._kept: dict[int, Tensor] = {}  # so that no id is used twice
        self._aliases: dict[int, list[Tensor]] = {}  # storage -> tensors on it, oldest first
        self._origin: dict[int, tuple[Tensor, Node, int]] = {}  # id(view) -> base, op, position
        self.inputs = tuple(self._define(t) for t in inputs)

    def record(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Recording:
        """Calls `function(*arguments)` and returns what it did.

        Raises:
            NotCapturable: where the call cannot be written as a graph.
        """
        with torch.inference_mode(False), torch.no_grad(), self:
            result = function(*arguments)
        if not isinstance(result, Tensor):
            raise NotCapturable(f"the forward returns {type(result).__name__}, not a tensor")
        output = self._value(result)
        leaves = set(self.leaves)
        tensors = {v: t if v in leaves else _shape_of(t) for v, t in self.tensors.items()}
        # torch keeps modes in reference cycles: what they hold stays until the next collection.
        for held in (self.tensors, self._kept, self._aliases, self._origin, self._value_of):
            held.clear()
        return Recording(
            self.nodes, tensors, self.shapes, self.dtypes, self.leaves, self.inputs, output
        )

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if _is_composite(func):  # seen here for tensors made in inference mode only
            with self:
                return func.decompose(*args, **kwargs)
        func, args = _deterministic(func, args, kwargs)
        _refuse_before(func, args, kwargs)
        read = self._to_values((args, kwargs))
        result = func(*args, **kwargs)
        written = _written(func, args, kwargs)
        if func in (aten.as_strided_.default, aten.set_.source_Tensor, aten.resize_.default):
            if func is aten.as_strided_.default and tuple(args[1]) == self.shapes[read[0][0].id]:
                return result  # only the strides of dimensions of size one change
            raise NotCapturable(f"{func} changes the shape of a tensor in place")
        if written:
            self._record_mutation(func, read, written, args)
        else:
            self._record_call(func, read, result, args)
        return result

    def _record_call(self, func: Any, read: Any, result: Any, args: tuple[Any, ...]) -> None:
        several = isinstance(result, (tuple, list))
        outputs = tuple(result) if several else (result,)
        if func in _SAME_TENSOR and result is not args[0]:
            self._define(result, read[0][0].id)
            self._origin[id(result)] = (args[0], Node(func, read[0], read[1], ()), 0)
            return
        node = Node(func, read[0], read[1], (), several)
        ids = []
        for position, tensor in enumerate(outputs):
            if not isinstance(tensor, Tensor):
                ids.append(-1)
                continue
            base = self._base(tensor, args)
            if base is tensor:  # such as an operator that returns its argument
                ids.append(-1)
                continue
            ids.append(self._define(tensor))
            if base is not None:
                self._origin[id(tensor)] = (base, node, position)
        node.outputs = tuple(ids)
        self.nodes.append(node)

    def _record_mutation(
        self, func: Any, read: Any, written: list[Tensor], args: tuple[Any, ...]
    ) -> None:
        if len(written) > 1 or written[0] is not args[0]:
            raise NotCapturable(f"{func} writes into one of its arguments")
        target = written[0]
        if self._value_of[id(target)] in self.leaves:
            raise NotCapturable(f"the forward changes a parameter, buffer or constant ({func})")
        twin = _functional(func)
        value = self._new(target.shape, target.dtype)
        self.nodes.append(Node(twin, read[0], read[1], (value,)))
        self._assign(target, value)

    def _assign(self, target: Tensor, value: ValueId) -> None:
        """Makes `value` the content of `target` and of every tensor that shares its memory."""
        path = [target]
        self._value_of[id(target)] = value
        while id(path[-1]) in self._origin:
            view = path[-1]
            base, node, position = self._origin[id(view)]
            value = self._undo_view(node, position, base, view, value)
            self._value_of[id(base)] = value
            if value in self.leaves:
                raise NotCapturable("the forward changes a parameter, buffer or constant")
            path.append(base)
        if self._value_of[id(path[-1])] in self.leaves:
            raise NotCapturable("the forward changes a parameter, buffer or constant")
        done = {id(t) for t in path}
        for alias in self._aliases[_storage(target)]:
            if id(alias) in done:
                continue
            if id(alias) not in self._origin:
                raise NotCapturable("the forward changes memory that several tensors share")
            base, node, position = self._origin[id(alias)]
            self._value_of[id(alias)] = self._redo_view(node, position, base, alias)

    def _undo_view(
        self, node: Node, position: int, base: Tensor, view: Tensor, value: ValueId
    ) -> ValueId:
        """The base's new value, given the new value of one of its views."""
        old, new = Value(self._value_of[id(base)]), Value(value)
        args = node.args
        name = node.name
        if node.op in _SAME_TENSOR:
            return value
        if name == "aten.slice":
            call: tuple[Any, tuple[Any, ...]] = (aten.slice_scatter.default, (old, new, *args[1:]))
        elif name == "aten.select":
            call = (aten.select_scatter.default, (old, new, *args[1:]))
        elif name in ("aten.split", "aten.split_with_sizes", "aten.chunk"):
            dim = args[2] if len(args) > 2 else 0
            start = view.storage_offset() - base.storage_offset()
            start //= base.stride(dim)
            stop = start + view.shape[dim]
            call = (aten.slice_scatter.default, (old, new, dim, start, stop))
        elif name == "aten.unbind":
            call = (aten.select_scatter.default, (old, new, *(args[1:] or (0,)), position))
        elif name in ("aten.view", "aten._unsafe_view", "aten.unsqueeze", "aten.squeeze"):
            call = (aten.view.default, (new, list(base.shape)))
        elif name == "aten.permute":
            dims = [d % base.dim() for d in args[1]]
            call = (aten.permute.default, (new, [dims.index(d) for d in range(len(dims))]))
        elif name in ("aten.transpose", "aten.t"):
            call = (node.op, (new, *args[1:]))
        else:
            raise NotCapturable(f"the forward changes a view made by {node.op} in place")
        result = self._new(base.shape, base.dtype)
        self.nodes.append(Node(call[0], call[1], {}, (result,)))
        return result

    def _redo_view(self, node: Node, position: int, base: Tensor, view: Tensor) -> ValueId:
        source = Value(self._value_of[id(base)])
        if node.op in _SAME_TENSOR:
            return source.id
        ids = [-1] * max(len(node.outputs), 1)
        ids[position] = self._new(view.shape, view.dtype)
        again = Node(node.op, (source, *node.args[1:]), node.kwargs, tuple(ids), node.several)
        self.nodes.append(again)
        return ids[position]

    def _new(self, shape: torch.Size, dtype: torch.dtype) -> ValueId:
        value = len(self.shapes)
        self.shapes[value] = tuple(shape)
        self.dtypes[value] = dtype
        return value

    def _define(self, tensor: Tensor, value: ValueId | None = None) -> ValueId:
        if value is None:
            value = self._new(tensor.shape, tensor.dtype)
            self.tensors[value] = tensor
        self._value_of[id(tensor)] = value
        self._kept[id(tensor)] = tensor
        self._aliases.setdefault(_storage(tensor), []).append(tensor)
        return value

    def _value(self, tensor: Tensor) -> ValueId:
        value = self._value_of.get(id(tensor))
        if value is not None:
            return value
        for alias in self._aliases.get(_storage(tensor), []):  # x.data makes such a tensor
            same = alias.shape == tensor.shape and alias.stride() == tensor.stride()
            if same and alias.storage_offset() == tensor.storage_offset():
                self._origin[id(tensor)] = (alias, Node(aten.alias.default, (), {}, ()), 0)
                return self._define(tensor, self._value_of[id(alias)])
        value = self._define(tensor)
        self.leaves.append(value)
        return value

    def _to_values(self, arguments: Any) -> Any:
        if isinstance(arguments, Tensor):
            return Value(self._value(arguments))
        if isinstance(arguments, (tuple, list)):
            return type(arguments)(self._to_values(a) for a in arguments)
        if isinstance(arguments, dict):
            return {k: self._to_values(v) for k, v in arguments.items()}
        return arguments

    def _base(self, tensor: Tensor, args: tuple[Any, ...]) -> Tensor | None:
        """The argument whose memory `tensor` shares, if any."""
        storage = _storage(tensor)
        for argument in walk(args):
            if isinstance(argument, Tensor) and _storage(argument) == storage:
                return argument
        return None


class Watch(TorchDispatchMode):
    """Notes which operators a call runs and on what, holding none of its tensors.

    Two calls with the same notes did the same: it is how a change that no parameter shows, such
    as another value of a Python attribute, is noticed.

    Args:
        leaves: tensors that are told apart where they are read.
    """

    def __init__(self, leaves: tuple[Tensor, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.notes: list[Any] = []
        self._leaves = {id(leaf): number for number, leaf in enumerate(leaves)}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        noted: list[Any] = [str(func)]
        for argument in walk((args, kwargs)):
            if isinstance(argument, Tensor):
                leaf = self._leaves.get(id(argument))
                noted.append((tuple(argument.shape), argument.dtype, leaf))
            else:
                noted.append(repr(argument))
        self.notes.append(tuple(noted))
        return func(*args, **kwargs)


def _shape_of(tensor: Tensor) -> Tensor:
    """A tensor of the same kind and shape, of one element in memory and no defined content."""
    return tensor.new_empty([1] * tensor.dim()).expand(tensor.shape)


def _storage(tensor: Tensor) -> int:
    if tensor.layout is not torch.strided:
        raise NotCapturable(f"the forward uses a tensor of layout {tensor.layout}")
    return int(tensor.untyped_storage()._cdata)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    written = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        if isinstance(value, Tensor) and not _is_batch_norm(func):
            written.append(value)
    return written


def _functional(func: Any) -> Any:
    name = func._schema.name
    overload = func._schema.overload_name
    known = _FUNCTIONAL.get(f"{name}.{overload}" if overload else name)
    if known is not None:
        return known
    namespace, _, short = name.partition("::")
    packet = getattr(getattr(torch.ops, namespace), short[:-1], None) if short[-1] == "_" else None
    twin = getattr(packet, overload or "default", None) if packet is not None else None
    if twin is None:
        raise NotCapturable(f"{func} has no functional twin")
    return twin


def _deterministic(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """A leaky ReLU for a randomised one in evaluation mode: its slope is the mean of the bounds."""
    plain = {
        aten.rrelu_with_noise.default: aten.leaky_relu.default,
        aten.rrelu_with_noise_.default: aten.leaky_relu_.default,
    }.get(func)
    if plain is None:
        return func, args
    named = Node(func, args, kwargs, ()).bound()
    if named["training"]:
        return func, args
    kwargs.clear()
    return plain, (args[0], (named["lower"] + named["upper"]) / 2)


def _is_composite(func: Any) -> bool:
    """Whether an operator is defined by other operators, which are the ones to record."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return bool(has(func.name(), "CompositeImplicitAutograd"))


def _is_batch_norm(func: Any) -> bool:
    return "batch_norm" in func._schema.name


def _refuse_before(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Stops before an operator runs that would change the user's state or draw numbers."""
    if torch.Tag.nondeterministic_seeded in func.tags and not _draws_nothing(func, args, kwargs):
        raise NotCapturable(f"the forward draws random numbers ({func})")
    if _is_batch_norm(func):
        node = Node(func, args, kwargs, ())
        named = node.bound()
        if trains(named) and named.get("running_mean") is not None:
            raise NotCapturable("a batch norm is in training mode")


def _draws_nothing(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operator that may draw random numbers is asked not to."""
    named = Node(func, args, kwargs, ()).bound()
    return named.get("dropout_p") == 0 or named.get("p") == 0 or named.get("train") is False


def trains(batch_norm: dict[str, Any]) -> bool:
    """Whether a batch norm, given its named arguments, uses the statistics of its input."""
    return any(batch_norm.get(name) for name in ("training", "train", "use_input_stats"))
