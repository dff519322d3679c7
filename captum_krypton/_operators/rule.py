"""What a rule is: how one operator behaves when only a part of its input has changed.

A value that a window changes only in part is *local*: along each window axis that it still has,
it is known by a patch and an offset. `dims` says which dimension of a value carries which axis
(None where the axis is gone).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, TypeVar

from torch import Tensor

from .._capture import BatchInt, Graph, Node, Value, ValueId, resolve
from .._kernels import Patches, Rates
from .regions import Box, Floats, Interval, Reach, everywhere, union

__all__ = [
    "Algorithm",
    "Boxes",
    "Dims",
    "Frame",
    "Group",
    "Kind",
    "Means",
    "PatchRule",
    "Rule",
    "Step",
    "View",
]

Dims = tuple[int | None, ...]
Boxes = tuple[Box | None, ...]
Packed = TypeVar("Packed")


class Kind(Enum):
    """What a value depends on."""

    CONSTANT = "constant"  # on parameters only
    IMAGE = "image"  # on inputs that are not occluded: one row an image
    LOCAL = "local"  # on the window, within its reach
    FULL = "full"  # on the window, everywhere


@dataclass(frozen=True)
class View:
    """What is known when rules are chosen: the graph, and the operands' kinds and axes."""

    graph: Graph
    kinds: dict[ValueId, Kind]
    dims: dict[ValueId, Dims]

    @property
    def constants(self) -> dict[ValueId, Tensor]:
        """The graph's constants."""
        return self.graph.constants

    def shape(self, value: ValueId) -> tuple[int, ...]:
        """The value's shape for a batch of one."""
        return self.graph.size(value, 1)

    def only_first_varies(self, node: Node) -> bool:
        """Whether the first operand is local and the others, such as weights, are constants."""
        first, *others = node.operands()
        local = self.kinds[first] is Kind.LOCAL
        return local and all(self.kinds[v] is Kind.CONSTANT for v in others)

    def locals(self, node: Node) -> list[ValueId]:
        """The operator's local operands, each once."""
        return [v for v in dict.fromkeys(node.operands()) if self.kinds[v] is Kind.LOCAL]

    def changed(self, node: Node) -> list[ValueId]:
        """The operands that a window changes, in part or everywhere, each once."""
        kinds = (Kind.LOCAL, Kind.FULL)
        return [v for v in dict.fromkeys(node.operands()) if self.kinds[v] in kinds]


class Algorithm(Enum):
    """How an operator computes the patches of its output."""

    TORCH = "torch"  # the operator itself, on blocks that are gathered first
    DIRECT = "direct"  # compiled kernels, which read base and patches where they lie
    WINOGRAD = "Winograd"
    DEPTHWISE = "depthwise"
    POOLING = "pooling"
    JOINING = "joining"


@dataclass(frozen=True)
class Means:
    """What a plan may use, and what that costs.

    Attributes:
        rates: seconds for the machine's operations.
        cpu_kernels: whether patches have the layout and the device of the compiled kernels.
        winograd: whether convolutions may run by Winograd's algorithm.
        gpu_pooling: whether patches have the layout and the device of a GPU's kernel for pooling.
    """

    rates: Rates
    cpu_kernels: bool
    winograd: bool
    gpu_pooling: bool = False


class Frame(Protocol):
    """One batch while it runs: rows of a group, and the values computed so far."""

    rows: int
    values: dict[ValueId, Tensor]

    def of(self, table: Tensor) -> Tensor:
        """This batch's rows of a table that has one row a window of the group."""


Step = Callable[[Frame], Any]


class Group(Protocol):
    """Windows of equal geometry, while their steps are prepared.

    Attributes:
        compiles: whether torch.compile makes what follows a convolution of PyTorch's own.
    """

    @property
    def compiles(self) -> bool: ...

    def algorithm(self, value: ValueId) -> Algorithm:
        """How the operator that defines a local value computes its patches."""

    def boxes(self, value: ValueId) -> Boxes:
        """Where the value's patches lie."""

    def patches(self, value: ValueId) -> Callable[[Frame], Patches]:
        """A function that gives a local value's base and patches."""

    def offsets(self, boxes: Boxes) -> Tensor:
        """The first cell of every window's box, (windows, axes)."""

    def extents(self, boxes: Boxes) -> Tensor | None:
        """How many cells of every window's box count, (windows, axes); None where all do."""

    def derived(self, value: ValueId, name: str, make: Callable[[Tensor], Tensor]) -> Tensor:
        """What `make` gives for a value of the untouched images, made once under this name."""

    def packed(self, value: ValueId, order: Hashable, make: Callable[[Tensor], Packed]) -> Packed:
        """What `make` gives for a constant weight, made once for this order of its numbers."""

    def read(self, value: ValueId, boxes: Boxes, fill: float = 0.0) -> Callable[[Frame], Tensor]:
        """A function that gives the block `boxes` of a local value, outside filled."""

    def cut(self, value: ValueId, dims: Dims, boxes: Boxes, rank: int) -> Callable[[Frame], Tensor]:
        """A function that gives the block `boxes` of a value that no window changes.

        `dims` are those of the value once it has `rank` dimensions, new ones put first.
        """

    def per_row(self, axis: int, table: Tensor) -> Tensor:
        """A table with one row a position along `axis`, spread to one row a window."""

    def positions(self, axis: int) -> int:
        """How many window positions the group has along `axis`."""

    def whole(self, value: ValueId) -> Callable[[Frame], Tensor]:
        """A function that gives the whole volume of any value, one row a window."""

    def constant(self, value: ValueId) -> Tensor:
        """A constant's tensor."""

    def sole(self, value: ValueId, boxes: Boxes) -> bool:
        """Whether the block `boxes` of a local value is this step's alone to overwrite."""


class Rule(ABC):
    """How one operator passes on a local change.

    Attributes:
        node: the operator.
        view: the graph and what is known of the operands.
        dims: the outputs' dimensions that carry the window axes.
    """

    node: Node
    view: View
    dims: Dims
    fresh = True  # whether the output is memory of its own, not a view of an operand
    ragged = False  # whether every window's patch may lie at its own cells, see `regions.exact`
    is_global = False  # whether it needs the whole volume of every window

    @abstractmethod
    def reach(self, axis: int, operands: dict[ValueId, Reach]) -> Reach:
        """The outputs' changed interval along `axis`, given that of every operand that changes.

        An operand without the axis, and one that changes everywhere, has the window's.
        """

    def demand(self, axis: int, wanted: Interval | None) -> dict[ValueId, Interval]:
        """Which cells of the local operands along `axis` some cells of the outputs depend on.

        Args:
            axis: the window axis.
            wanted: cells of the outputs along it, one at least; None where they have no such axis.

        Returns:
            The cells of local operands that have the axis; of one that is left out, all.
        """
        return {}

    def inherits(self) -> ValueId | None:
        """The local operand whose cells the output's are, where it is the only one that changes."""
        return None

    def may_crop(self, axis: int) -> bool:
        """Whether a part of the output's changed interval along `axis` can be computed alone."""
        return not self.is_global

    def centre(self, axis: int, operands: dict[ValueId, Floats]) -> Floats:
        """Where the middle of each window lies in the output along `axis`.

        Args:
            axis: the window axis.
            operands: where it lies in those operands that have the axis; one at least.
        """
        value, centre = next(iter(operands.items()))
        dim = self.view.dims[value][axis]
        assert dim is not None
        return centre * (self.size(axis) / self.view.shape(value)[dim])

    def on_volumes(self, boxes: dict[ValueId, Boxes]) -> bool:
        """Whether it runs on whole volumes where the operands' patches lie in `boxes`."""
        return self.is_global

    def alignment(self, axis: int) -> tuple[int, int]:
        """(modulus, residue) that the offsets of the output's patches must have."""
        return 1, 0

    def read_size(self, boxes: Boxes) -> tuple[int, ...]:
        """The size of the block read for output patches in `boxes`, along the window axes."""
        return tuple(box.size for box in boxes if box is not None)

    def algorithm(self, boxes: Boxes, means: Means) -> tuple[Algorithm, float | None]:
        """The cheapest way to compute output patches in `boxes`, and its seconds for a window.

        For an operator of torch, seconds do not count its writing; None stands for its share of
        the whole volume's.
        """
        return Algorithm.TORCH, None

    @abstractmethod
    def step(self, group: Group) -> Step:
        """The function that computes the output patches of one batch."""

    def whole_step(self, group: Group) -> Step:
        """The operator itself on whole volumes."""
        return whole_step(self.node, group)

    def size(self, axis: int) -> int:
        """The output's size along `axis`."""
        dim = self.dims[axis]
        assert dim is not None
        return self.view.shape(self.outputs[0])[dim]

    @property
    def outputs(self) -> list[ValueId]:
        """The values that the operator defines."""
        return self.node.results


def whole_step(node: Node, group: Group) -> Step:
    """Runs an operator on whole volumes: what a global operator does."""
    readers = {v: group.whole(v) for v in dict.fromkeys(node.operands())}

    def step(frame: Frame) -> Any:
        args, kwargs = resolve((node.args, node.kwargs), lambda v: readers[v](frame), frame.rows)
        return node.op(*args, **kwargs)

    return step


class PatchRule(Rule):
    """An operator that treats all cells along the window axes alike and apart from each other.

    It runs unchanged on the patches. Local operands are brought to the same cells first; operands
    that no window changes are cut to them where they have an extent along a window axis.

    Args:
        node: the operator.
        view: the graph and what is known of the operands.
        dims: the output's dimensions that carry the axes.
        aligned: dimensions of the operands line up with the output's from the right, as
            broadcasting has it; otherwise each operand keeps its own `dims`.
        rewrite: gives the arguments for patches of the given sizes an axis.
        in_place: the operator's in-place twin, where it has one.
    """

    ragged = True

    def __init__(
        self,
        node: Node,
        view: View,
        dims: Dims,
        *,
        aligned: bool = False,
        rewrite: Callable[[tuple[int | None, ...]], tuple[Any, dict[str, Any]]] | None = None,
        in_place: Callable[..., Any] | None = None,
        fresh: bool = True,
    ) -> None:
        self.node, self.view, self.dims = node, view, dims
        self.aligned, self.rewrite, self.in_place, self.fresh = aligned, rewrite, in_place, fresh

    def reach(self, axis: int, operands: dict[ValueId, Reach]) -> Reach:
        if any(self._covers(v, axis) for v in operands):
            return everywhere(next(iter(operands.values())), self.size(axis))
        return union(list(operands.values()))

    def demand(self, axis: int, wanted: Interval | None) -> dict[ValueId, Interval]:
        return {} if wanted is None else dict.fromkeys(self.view.locals(self.node), wanted)

    def _covers(self, value: ValueId, axis: int) -> bool:
        """Whether an operand that changes does so all along `axis` of the output."""
        return self.view.kinds[value] is Kind.FULL or self.view.dims[value][axis] is None

    def may_crop(self, axis: int) -> bool:
        """Not where an operand that changes all along the axis extends along it: it is read whole.

        A gate does not extend, so that its product can be cropped.
        """
        dim = self.dims[axis]
        if dim is None:
            return False
        from_right = dim - len(self.view.shape(self.outputs[0]))
        whole = [v for v in self.view.changed(self.node) if self._covers(v, axis)]
        shapes = [self.view.shape(v) for v in whole]
        return all(len(s) < -from_right or s[from_right] == 1 for s in shapes)

    def inherits(self) -> ValueId | None:
        changed = self.view.changed(self.node)
        return changed[0] if len(changed) == 1 else None

    def step(self, group: Group) -> Step:
        boxes = group.boxes(self.outputs[0])
        readers = {v: self._reader(group, v, boxes) for v in dict.fromkeys(self.node.operands())}
        call = (self.node.args, self.node.kwargs)
        if self.rewrite is not None:
            call = self.rewrite(tuple(None if b is None else b.size for b in boxes))
        op: Callable[..., Any] = self.node.op
        first = call[0][0] if call[0] else None
        if (
            self.in_place is not None
            and isinstance(first, Value)
            and self._may_overwrite(group, first.id, boxes)
        ):
            op = self.in_place
        plain = [a.id if isinstance(a, Value) else None for a in call[0]]
        if not call[1] and len(plain) == 1 and plain[0] is not None:
            read = readers[plain[0]]
            return lambda frame: op(read(frame))

        def step(frame: Frame) -> Any:
            args, kwargs = resolve(call, lambda v: readers[v](frame), frame.rows)
            return op(*args, **kwargs)

        return step

    def whole_step(self, group: Group) -> Step:
        """The same as `step`: patches that are whole volumes are still patches."""
        return self.step(group)

    def _of_axes(self, value: ValueId, boxes: Boxes) -> Boxes:
        """`boxes` along the axes that a local operand has."""
        own = self.view.dims[value]
        return tuple(None if d is None else b for d, b in zip(own, boxes, strict=True))

    def _may_overwrite(self, group: Group, value: ValueId, boxes: Boxes) -> bool:
        local = self.view.kinds[value] is Kind.LOCAL
        return local and group.sole(value, self._of_axes(value, boxes))

    def _reader(self, group: Group, value: ValueId, boxes: Boxes) -> Callable[[Frame], Tensor]:
        kind = self.view.kinds[value]
        if kind is Kind.LOCAL:
            return group.read(value, self._of_axes(value, boxes))
        if kind is Kind.FULL:  # then the patches are whole volumes
            return group.whole(value)
        shape = self.view.shape(value)
        rank = len(shape)
        if self.aligned:
            rank = len(self.view.shape(self.outputs[0]))
            full = (1,) * (rank - len(shape)) + shape
            dims = tuple(None if d is None or full[d] == 1 else d for d in self.dims)
        else:
            dims = self.view.dims.get(value, (None,) * len(self.dims))
        if all(d is None for d in dims):
            return group.whole(value)
        return group.cut(value, dims, boxes, rank)


def batch_rows(view: View, value: ValueId) -> bool:
    """Whether the value's first dimension is the batch, one row a window."""
    shape = view.graph.shapes[value]
    first = bool(shape) and shape[0] == BatchInt(1, 0)
    return first and not any(isinstance(s, BatchInt) for s in shape[1:])


def along(table: Tensor, dim: int, rank: int) -> Tensor:
    """A (rows, size) table shaped to broadcast over tensors of `rank` dimensions along `dim`."""
    shape = [1] * rank
    shape[0], shape[dim] = table.shape
    return table.reshape(shape)
