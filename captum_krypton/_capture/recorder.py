"""Records the ATen operators of one call of a forward function.

The forward function runs for real, on real tensors, under a dispatch mode: hooks see ordinary
tensors, Python control flow takes the branch it always takes, and the parameters that occur are
the user's own. What is recorded is functional: in-place operators are written as their
out-of-place twins, and views of a changed tensor are taken again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .doors import Doors
from .graph import Node, Value, ValueId, walk
from .mode import Mode, collecting_later, traits

__all__ = ["NotCapturable", "Recorder", "Recording", "trains"]

aten = torch.ops.aten


class NotCapturable(Exception):
    """The forward function does something that a graph cannot say; the message says what."""


@dataclass
class Recording:
    """What one call did.

    Attributes:
        nodes: the operators, in the order in which they ran.
        shapes: the shape of every value.
        dtypes: the element type of every value.
        devices: where every value was.
        leaves: the tensors that came from outside: parameters, buffers, constants.
        inputs: the values of the call's tensors.
        output: the value that the call returned.
        result: its tensor.
    """

    nodes: list[Node]
    shapes: dict[ValueId, tuple[int, ...]]
    dtypes: dict[ValueId, torch.dtype]
    devices: dict[ValueId, torch.device]
    leaves: dict[ValueId, Tensor]
    inputs: tuple[ValueId, ...]
    output: ValueId
    result: Tensor

    def stand_in(self, value: ValueId) -> Tensor:
        """A tensor of the value's kind and shape, of one element and no defined content."""
        shape = self.shapes[value]
        one = torch.empty([1] * len(shape), dtype=self.dtypes[value], device=self.devices[value])
        return one.expand(shape)


# In-place operators whose functional twin is not the same name without the underscore.
_FUNCTIONAL = {
    "aten::transpose_": aten.transpose.int,
    "aten::copy_": aten.copy.default,
    "aten::fill_.Scalar": aten.fill.Scalar,
    "aten::fill_.Tensor": aten.fill.Tensor,
    "aten::zero_": aten.zero.default,
    "aten::index_put_": aten.index_put.default,
}
_TURNS = {"transpose_", "t_", "squeeze_", "unsqueeze_", "swapaxes_", "swapdims_"}
# Operators whose output has a known shape where their indices are no masks.
_INDEXED = {"aten.index", "aten.index_put", "aten.index_put_", "aten._unsafe_index"}
_SPLITS = {
    f"aten.{name}"
    for name in (
        "split",
        "split_with_sizes",
        "chunk",
        "unsafe_split",
        "unsafe_split_with_sizes",
        "unsafe_chunk",
    )
}
_RESHAPES = {aten.as_strided_.default, aten.set_.source_Tensor, aten.resize_.default}
_SAME_TENSOR = {aten.detach.default, aten.alias.default, aten.lift_fresh.default}


class Recorder(Mode):
    """A dispatch mode that writes down every operator it sees.

    It holds none of the tensors that the call makes: they are freed when the call frees them.

    Args:
        inputs: the tensors that the recorded call will be given.
    """

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.shapes: dict[ValueId, tuple[int, ...]] = {}
        self.dtypes: dict[ValueId, torch.dtype] = {}
        self.devices: dict[ValueId, torch.device] = {}
        self.leaves: dict[ValueId, Tensor] = {}
        # By id: the tensor, and its present value. Gone with the tensor, since ids are used again.
        self._values: dict[int, tuple[weakref.ref[Tensor], ValueId]] = {}
        self._origin: dict[int, tuple[Tensor, Node, int]] = {}  # of a view: base, op, position
        self._aliases: dict[int, list[weakref.ref[Tensor]]] = {}  # by storage, oldest first
        self._turned = set[int]()  # storages of which a tensor was turned in place
        self.inputs = tuple(self._define(t) for t in inputs)
        self._varying = set(self.inputs)  # the values that depend on the inputs

    def record(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], *, profile: bool = True
    ) -> Recording:
        """Calls `function(*arguments)` and returns what it did.

        Args:
            function: the function.
            arguments: its arguments.
            profile: whether doors of C are watched, too; once for a function is enough.

        Raises:
            NotCapturable: where the call cannot be written as a graph.
        """
        doors = Doors(self._leaves_torch, profile=profile)
        with torch.inference_mode(False), torch.no_grad(), collecting_later(), doors, self:
            result = function(*arguments)
        if not isinstance(result, Tensor):
            raise NotCapturable(f"the forward returns {type(result).__name__}, not a tensor")
        output = self._value(result)
        # torch keeps modes in reference cycles: what they hold stays until the next collection.
        leaves = self.leaves
        self.leaves, self._origin, self._values, self._aliases = {}, {}, {}, {}
        return Recording(
            self.nodes,
            self.shapes,
            self.dtypes,
            self.devices,
            leaves,
            self.inputs,
            output,
            result.detach(),
        )

    def _leaves_torch(self, door: str, tensor: Tensor | None) -> None:
        """Refuses a value that leaves torch's operators, where it depends on the inputs."""
        if tensor is None or self._value(tensor) in self._varying:
            raise NotCapturable(f"the forward takes values out of a tensor ({door})")

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func.namespace == "profiler":
            return func(*args, **kwargs)
        known = traits(func)
        if known.composite:  # seen here for tensors made in inference mode only
            with self:
                return func.decompose(*args, **kwargs)
        func, args = _deterministic(func, args, kwargs)
        _refuse_before(func, args, kwargs)
        read = self._to_values((args, kwargs))
        self._refuse_reading(func, read)
        result = func(*args, **kwargs)
        written = _written(func, args, kwargs)
        if func in _RESHAPES:
            if func is aten.as_strided_.default and tuple(args[1]) == tuple(args[0].shape):
                return result  # only the strides of dimensions of size one change
            raise NotCapturable(f"{func} changes the shape of a tensor in place")
        if known.turns:
            self._record_turn(func, read, args)
        elif written:
            self._record_mutation(func, read, written, args)
        else:
            self._record_call(func, read, result, args)
        return result

    def _refuse_reading(self, func: Any, read: Any) -> None:
        """Refuses what brings a value that depends on the inputs out of its tensor.

        The size of a tensor counts as well, whether or not anything reads the tensor.
        """
        known = traits(func)
        if not known.reads_data and not known.shape_by_data:
            return
        if self._varying.isdisjoint(a.id for a in walk(read) if isinstance(a, Value)):
            return
        if known.reads_data:
            raise NotCapturable(f"the forward reads a value out of a tensor ({func})")
        if not self._indexes_by_integers(func, read):
            raise NotCapturable(f"a shape in the forward depends on the data ({func})")

    def _indexes_by_integers(self, func: Any, read: Any) -> bool:
        """Whether an index operator's shape is known: its indices are numbers or fixed masks."""
        if str(func.overloadpacket) not in _INDEXED:
            return False
        indices = {v.id for v in walk(read[0][1]) if isinstance(v, Value)} & self._varying
        return not {torch.bool, torch.uint8}.intersection(self.dtypes[v] for v in indices)

    def _add(self, node: Node) -> None:
        self.nodes.append(node)
        if not self._varying.isdisjoint(node.operands()):
            self._varying.update(node.results)

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
                self._origin[id(tensor)] = self._shortened(base, node, position)
        node.outputs = tuple(ids)
        self._add(node)

    def _shortened(self, base: Tensor, node: Node, position: int) -> tuple[Tensor, Node, int]:
        """The origin of a view: one of an expanded dimension is one of what was expanded."""
        if node.name == "aten.select" and id(base) in self._origin:
            below, expanded, _ = self._origin[id(base)]
            dim, size = node.args[1] % base.dim(), tuple(below.shape)
            own = dim - (base.dim() - below.dim())
            rest = base.shape[:dim] + base.shape[dim + 1 :]
            if expanded.name == "aten.expand":
                source = Value(self._values[id(below)][1])
                if own < 0 and rest == size:
                    return below, Node(aten.alias.default, (source,), {}, ()), 0
                if own >= 0 and size[own] == 1 and size[:own] + size[own + 1 :] == rest:
                    return below, Node(aten.select.int, (source, own, 0), {}, ()), 0
        return base, node, position

    def _record_mutation(
        self, func: Any, read: Any, written: list[Tensor], args: tuple[Any, ...]
    ) -> None:
        if len(written) > 1 or written[0] is not args[0]:
            raise NotCapturable(f"{func} writes into one of its arguments")
        target = written[0]
        if self._value(target) in self.leaves:
            raise NotCapturable(f"the forward changes a parameter, buffer or constant ({func})")
        twin = _functional(func)
        value = self._new(target)
        self._add(Node(twin, read[0], read[1], (value,)))
        self._assign(target, value)

    def _record_turn(self, func: Any, read: Any, args: tuple[Any, ...]) -> None:
        """Records an operator that turns its argument into a view of itself, as `transpose_`."""
        target = args[0]
        if func.name().split("::")[-1].split(".")[0] not in _TURNS:
            raise NotCapturable(f"{func} changes the shape of a tensor in place")
        if self._value(target) in self.leaves:
            raise NotCapturable(f"the forward changes a parameter, buffer or constant ({func})")
        value = self._new(target)
        self._add(Node(_functional(func), read[0], read[1], (value,)))
        self._set(target, value)
        self._origin.pop(id(target), None)
        self._turned.add(_storage(target))

    def _assign(self, target: Tensor, value: ValueId) -> None:
        """Makes `value` the content of `target` and of every tensor that shares its memory."""
        if _storage(target) in self._turned and len(list(self._sharing(_storage(target)))) > 1:
            raise NotCapturable("the forward changes memory that several tensors share")
        path = [target]
        self._set(target, value)
        while id(path[-1]) in self._origin:
            view = path[-1]
            base, node, position = self._origin[id(view)]
            value = self._undo_view(node, position, base, view, value)
            self._set(base, value)
            if value in self.leaves:
                raise NotCapturable("the forward changes a parameter, buffer or constant")
            path.append(base)
        if self._value(path[-1]) in self.leaves:
            raise NotCapturable("the forward changes a parameter, buffer or constant")
        done = {id(t) for t in path}
        for alias in self._sharing(_storage(target)):
            if id(alias) in done:
                continue
            if id(alias) not in self._origin:
                raise NotCapturable("the forward changes memory that several tensors share")
            base, node, position = self._origin[id(alias)]
            self._set(alias, self._redo_view(node, position, base, alias))

    def _undo_view(
        self, node: Node, position: int, base: Tensor, view: Tensor, value: ValueId
    ) -> ValueId:
        """The base's new value, given the new value of one of its views."""
        old, new = Value(self._value(base)), Value(value)
        args = node.args
        name = node.name
        if node.op in _SAME_TENSOR:
            return value
        if name == "aten.slice":
            call: tuple[Any, tuple[Any, ...]] = (aten.slice_scatter.default, (old, new, *args[1:]))
        elif name == "aten.select":
            call = (aten.select_scatter.default, (old, new, *args[1:]))
        elif name in _SPLITS:
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
        result = self._new(base)
        self._add(Node(call[0], call[1], {}, (result,)))
        return result

    def _redo_view(self, node: Node, position: int, base: Tensor, view: Tensor) -> ValueId:
        source = Value(self._value(base))
        if node.op in _SAME_TENSOR:
            return source.id
        ids = [-1] * max(len(node.outputs), 1)
        ids[position] = self._new(view)
        self._add(Node(node.op, (source, *node.args[1:]), node.kwargs, tuple(ids), node.several))
        return ids[position]

    def _new(self, like: Tensor) -> ValueId:
        value = len(self.shapes)
        self.shapes[value] = tuple(like.shape)
        self.dtypes[value] = like.dtype
        self.devices[value] = like.device
        return value

    def _set(self, tensor: Tensor, value: ValueId) -> None:
        self._values[id(tensor)] = self._values[id(tensor)][0], value

    def _define(self, tensor: Tensor, value: ValueId | None = None) -> ValueId:
        if value is None:
            value = self._new(tensor)
        number = id(tensor)

        def forget(gone: weakref.ref[Tensor]) -> None:
            if self._values.get(number, (None,))[0] is gone:
                del self._values[number]
                self._origin.pop(number, None)

        self._origin.pop(number, None)
        reference = weakref.ref(tensor, forget)
        self._values[number] = reference, value
        self._aliases.setdefault(_storage(tensor), []).append(reference)
        return value

    def _sharing(self, storage: int) -> Iterator[Tensor]:
        """The tensors of a storage that are still there."""
        for reference in list(self._aliases.get(storage, ())):
            tensor = reference()
            if tensor is not None and _storage(tensor) == storage:
                yield tensor

    def _value(self, tensor: Tensor) -> ValueId:
        known = self._values.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        for alias in self._sharing(_storage(tensor)):
            same = alias.shape == tensor.shape and alias.stride() == tensor.stride()
            if same and alias.storage_offset() == tensor.storage_offset():
                value = self._define(tensor, self._values[id(alias)][1])
                self._origin[id(tensor)] = (alias, Node(aten.alias.default, (), {}, ()), 0)
                return value
        value = self._define(tensor)
        self.leaves[value] = tensor
        return value

    def _to_values(self, arguments: Any) -> Any:
        if isinstance(arguments, Tensor):
            return Value(self._value(arguments))
        if isinstance(arguments, (tuple, list)):
            return type(arguments)([self._to_values(a) for a in arguments])
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


def _storage(tensor: Tensor) -> int:
    if tensor.layout is not torch.strided:
        raise NotCapturable(f"the forward uses a tensor of layout {tensor.layout}")
    return int(tensor.untyped_storage()._cdata)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    known = traits(func)
    if known.is_batch_norm or not known.written:
        return []
    places = known.written
    values = (args[i] if i < len(args) else kwargs.get(name) for i, name in places)
    return [value for value in values if isinstance(value, Tensor)]


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


_WITHOUT_NOISE = {
    aten.rrelu_with_noise.default: aten.leaky_relu.default,
    aten.rrelu_with_noise_.default: aten.leaky_relu_.default,
}


def _deterministic(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """A leaky ReLU for a randomised one in evaluation mode: its slope is the mean of the bounds."""
    plain = _WITHOUT_NOISE.get(func)
    if plain is None:
        return func, args
    named = Node(func, args, kwargs, ()).bound()
    if named["training"]:
        return func, args
    kwargs.clear()
    return plain, (args[0], (named["lower"] + named["upper"]) / 2)


def _refuse_before(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Stops before an operator runs that would change the user's state or draw numbers."""
    if traits(func).draws and not _draws_nothing(func, args, kwargs):
        raise NotCapturable(f"the forward draws random numbers ({func})")
    if traits(func).is_batch_norm:
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
