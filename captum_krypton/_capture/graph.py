"""The captured forward function: a list of ATen operators over numbered values.

A graph is valid for any batch size. Every size that grows with the batch is a `BatchInt`;
everything else is what it was when the forward function was recorded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "BatchInt",
    "Graph",
    "Node",
    "Value",
    "ValueId",
    "is_convolution",
    "is_pointwise",
    "map_arguments",
    "resolve",
]

ValueId = int

# Point operators that torch does not tag as such.
_POINT = {
    f"aten.{name}"
    for name in (
        "_to_copy",
        "clone",
        "copy",
        "fill",
        "zero",
        "zeros_like",
        "ones_like",
        "full_like",
        "celu",
        "elu",
        "gelu",
        "hardsigmoid",
        "hardswish",
        "hardtanh",
        "leaky_relu",
        "log_sigmoid_forward",
        "mish",
        "nan_to_num",
        "_prelu_kernel",
        "relu",
        "relu6",
        "selu",
        "silu",
        "softplus",
        "softshrink",
        "hardshrink",
        "threshold",
        "clamp",
        "where",
        "masked_fill",
        "addcmul",
        "addcdiv",
        "lerp",
        "erf",
        "isnan",
    )
}


@dataclass(frozen=True)
class BatchInt:
    """An integer that is affine in the batch size: `slope * batch + intercept`."""

    slope: int
    intercept: int

    def at(self, batch: int) -> int:
        """The integer for a batch of `batch` rows."""
        return self.slope * batch + self.intercept


@dataclass(frozen=True)
class Value:
    """A placeholder for a tensor in an operator's arguments."""

    id: ValueId


@dataclass
class Node:
    """One operator call.

    `outputs` are the values it defines, one for an operator that returns a tensor, several for
    one that returns a tuple or a list (`several` is then true). An output that is no tensor, or
    that nothing reads, has id -1.
    """

    op: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[ValueId, ...]
    several: bool = False
    # What `operands` found, and the arguments that it looked at: a plan asks thousands of times.
    _read: tuple[Any, Any, tuple[ValueId, ...]] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    @property
    def name(self) -> str:
        """The operator's qualified name without its overload, such as `aten.convolution`."""
        if isinstance(self.op, torch._ops.OpOverload):
            return str(self.op.overloadpacket)
        return getattr(self.op, "__name__", str(self.op))

    @property
    def results(self) -> list[ValueId]:
        """The outputs that something reads."""
        return [value for value in self.outputs if value >= 0]

    def operands(self) -> list[ValueId]:
        """The values read, in argument order, repeats included."""
        read = self._read
        if read is None or read[0] is not self.args or read[1] is not self.kwargs:
            found: list[ValueId] = []
            _find_values(self.args, found)
            _find_values(tuple(self.kwargs.values()), found)
            self._read = read = self.args, self.kwargs, tuple(found)
        return list(read[2])

    @property
    def grows(self) -> bool:
        """Whether an argument grows with the batch."""
        return grows((self.args, self.kwargs))

    def bound(self) -> dict[str, Any]:
        """Arguments by the names of the operator's schema, defaults filled in."""
        schema = self.op._schema  # type: ignore[attr-defined]
        named: dict[str, Any] = {}
        for position, argument in enumerate(schema.arguments):
            if position < len(self.args):
                named[argument.name] = self.args[position]
            elif argument.name in self.kwargs:
                named[argument.name] = self.kwargs[argument.name]
            elif argument.has_default_value():
                named[argument.name] = argument.default_value
        return named


def is_convolution(node: Node) -> bool:
    """Whether it is a convolution, transposed or not, or a block that starts with one."""
    return node.name in ("aten.convolution", "captum_krypton.convolution_block")


def is_pointwise(node: Node) -> bool:
    """Whether every output cell depends on the operand cells that broadcast to it alone."""
    tags = getattr(node.op, "tags", ())
    return torch.Tag.pointwise in tags or node.name in _POINT


@dataclass
class Graph:
    """Operators in order, with what is known of every value.

    Attributes:
        nodes: the operators, in an order in which they can run.
        inputs: the values of the batched tensor arguments, in argument order.
        output: the value that the forward function returns.
        shapes: the shape of every value, sizes that grow with the batch as `BatchInt`.
        dtypes: the element type of every value.
        constants: values that do not depend on the inputs or on the batch size.
    """

    nodes: list[Node]
    inputs: tuple[ValueId, ...]
    output: ValueId
    shapes: dict[ValueId, tuple[int | BatchInt, ...]]
    dtypes: dict[ValueId, torch.dtype]
    constants: dict[ValueId, Tensor]
    _next: int = field(default=0)
    # By value: the shape, the batch size and the numbers that `size` made of them last.
    _sizes: dict[ValueId, tuple[Any, int, tuple[int, ...]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def digest(self) -> str:
        """A digest of operators, shapes and constants: of equal graphs it is equal."""
        found = hashlib.sha256()
        for node in self.nodes:
            text = (str(node.op), node.args, sorted(node.kwargs.items()), node.outputs)
            found.update(repr(text).encode())
        found.update(repr((self.inputs, self.output, sorted(self.shapes.items()))).encode())
        for value, tensor in sorted(self.constants.items()):
            found.update(repr((value, tuple(tensor.shape), tensor.dtype)).encode())
            plain = tensor.detach().cpu().contiguous()
            found.update(plain.reshape(-1).view(torch.uint8).numpy().data)
        return found.hexdigest()

    def new_value(self, shape: tuple[int | BatchInt, ...], dtype: torch.dtype) -> ValueId:
        """A fresh value."""
        self._next = max(self._next, max(self.shapes, default=-1) + 1)
        self.shapes[self._next] = shape
        self.dtypes[self._next] = dtype
        return self._next

    def users(self) -> dict[ValueId, list[Node]]:
        """The nodes that read each value; the graph's output counts as no node."""
        users: dict[ValueId, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.operands()):
                users.setdefault(value, []).append(node)
        return users

    def last_uses(self) -> dict[ValueId, int]:
        """The position of the last node that reads each value."""
        return {v: i for i, node in enumerate(self.nodes) for v in node.operands()}

    def producers(self) -> dict[ValueId, Node]:
        """The node that defines each value."""
        return {value: node for node in self.nodes for value in node.outputs}

    def size(self, value: ValueId, batch: int) -> tuple[int, ...]:
        """The value's shape for a batch of `batch` rows."""
        shape, known = self.shapes[value], self._sizes.get(value)
        if known is None or known[0] is not shape or known[1] != batch:
            size = tuple(s.at(batch) if isinstance(s, BatchInt) else s for s in shape)
            known = self._sizes[value] = shape, batch, size
        return known[2]

    def dead_code_eliminated(self) -> Graph:
        """The graph without operators and constants that the output does not need."""
        needed = {self.output}
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                read = tuple(v if v in needed else -1 for v in node.outputs)
                kept.append(replace(node, outputs=read))
                needed.update(node.operands())
        kept.reverse()
        constants = {value: t for value, t in self.constants.items() if value in needed}
        return Graph(kept, self.inputs, self.output, self.shapes, self.dtypes, constants)


def map_arguments(arguments: Any, on_value: Callable[[Value], Any]) -> Any:
    """`arguments` (nested tuples, lists, dicts) with every `Value` replaced."""
    if isinstance(arguments, Value):
        return on_value(arguments)
    if isinstance(arguments, (tuple, list)):
        return type(arguments)(map_arguments(a, on_value) for a in arguments)
    if isinstance(arguments, dict):
        return {k: map_arguments(v, on_value) for k, v in arguments.items()}
    return arguments


def resolve(arguments: Any, tensors: Callable[[ValueId], Tensor], batch: int) -> Any:
    """`arguments` ready for a call: values by `tensors`, batch sizes for `batch` rows."""
    if isinstance(arguments, Value):
        return tensors(arguments.id)
    if isinstance(arguments, BatchInt):
        return arguments.at(batch)
    if isinstance(arguments, (tuple, list)):
        return type(arguments)(resolve(a, tensors, batch) for a in arguments)
    if isinstance(arguments, dict):
        return {k: resolve(v, tensors, batch) for k, v in arguments.items()}
    return arguments


def _find_values(arguments: tuple[Any, ...] | list[Any], found: list[ValueId]) -> None:
    """Adds the values in nested tuples and lists, as `walk` finds them: a plain loop is faster."""
    for argument in arguments:
        kind = type(argument)
        if kind is Value:
            found.append(argument.id)
        elif kind is tuple or kind is list:
            _find_values(argument, found)
        elif isinstance(argument, (tuple, list, dict)):
            found.extend(a.id for a in walk(argument) if isinstance(a, Value))


def grows(arguments: Any) -> bool:
    """Whether one of nested arguments grows with the batch."""
    if isinstance(arguments, (tuple, list)):
        return any(grows(a) for a in arguments if type(a) is not Value)
    if isinstance(arguments, dict):
        return any(grows(a) for a in arguments.values())
    return isinstance(arguments, BatchInt)


def walk(arguments: Any) -> Iterator[Any]:
    """Every leaf of nested tuples, lists and dicts."""
    if isinstance(arguments, (tuple, list)):
        for a in arguments:
            yield from walk(a)
    elif isinstance(arguments, dict):
        yield from walk(tuple(arguments.values()))
    else:
        yield arguments
