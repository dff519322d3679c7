"""A group of windows as rules see it: where its patches lie, and what its steps read."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._capture import ValueId
from .._kernels import Patches, gather_patches
from .._operators import Algorithm, Box, Boxes, Dims, Frame, Integers, Kind, numbers, same_boxes
from .._plan import GroupPlan, Plan
from .base import Base
from .head import frontier
from .interpreter import run_graph
from .layout import from_block, to_block

__all__ = ["Material", "Selection", "WindowGroup"]

Packed = TypeVar("Packed")
Selection = npt.NDArray[np.bool_]  # (images, windows), windows in row-major order

# Each row's image, its place in the result, and its position along the other dimensions and axes.
_Rows = tuple[Integers, Integers, dict[int, Integers], list[Integers]]


@dataclass(frozen=True)
class Material:
    """What the windows of a plan are computed from, whatever the images.

    Attributes:
        plan: the plan.
        constants: from `prepare_constants`.
        packs: weights in an order of the kernels, by value and order; missing ones are put there.
        fill: what the windows are filled with; None where the base has a tensor for that.
        channels_last: whether activations are kept with channels last.
        own_mean: whether windows are filled with their own mean instead.
        compiles: whether torch.compile makes what follows a convolution of PyTorch's own.
    """

    plan: Plan
    constants: dict[ValueId, Tensor]
    packs: dict[tuple[ValueId, Hashable], Any]
    fill: float | None
    channels_last: bool
    own_mean: bool = False
    compiles: bool = False

    def untouched(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, dict[ValueId, Tensor]]:
        """The graph's output for untouched inputs, and the values that windows read.

        Args:
            inputs: the batched inputs, in the layout of activations.
        """
        analysis = self.plan.analysis
        output, kept = run_graph(analysis.graph, self.constants, inputs, analysis.kept)
        kept[analysis.occluded] = inputs[analysis.graph.inputs.index(analysis.occluded)]
        return output, kept

    @cached_property
    def frontier(self) -> tuple[ValueId, ...]:
        """The values that the head reads from the batches."""
        return frontier(self.plan)

    @cached_property
    def owned(self) -> frozenset[ValueId]:
        """Values whose patches have memory of their own and one reader."""
        graph = self.plan.analysis.graph
        users = graph.users()
        return frozenset(
            v
            for rule in self.plan.analysis.rules
            if rule is not None and rule.fresh
            for v in rule.outputs
            if len(users.get(v, ())) == 1 and v != graph.output
        )


class WindowGroup:
    """A group's windows, all or those that are selected (see `captum_krypton._operators.Group`).

    Args:
        material: what the windows are computed from.
        planned: the plan of the group.
        base: the base of the images.
        selected: which of the windows; None for all.
    """

    def __init__(
        self,
        material: Material,
        planned: GroupPlan,
        base: Base,
        selected: Selection | None = None,
    ) -> None:
        self.material, self.planned, self.base = material, planned, base
        self.plan, self.analysis = material.plan, material.plan.analysis
        self.graph = self.analysis.graph
        original = base.kept[self.analysis.occluded]
        self.device = original.device
        self.compiles = material.compiles
        self._index(original.shape[0], selected)
        self._tables: dict[bytes, Tensor] = {}
        if len(self.order):
            self.image_rows = self.to_device(self.image)

    def to_device(self, array: Any) -> Tensor:
        """The numbers, where the windows run."""
        return torch.as_tensor(array).to(self.device)

    def tables(self) -> list[Tensor]:
        """The tables of offsets and extents made so far, each with a row for each window."""
        return list(self._tables.values())

    def _index(self, images: int, selected: Selection | None) -> None:
        """For every row: its image, its position along each axis, and its place in the result."""
        plan = self.plan
        indexed = self._paired(images) if plan.grid.paired else self._combined(images)
        self.image, order, self.other, self.position = indexed
        if selected is not None:
            rows = selected.reshape(-1)[order]
            self.image, order = self.image[rows], order[rows]
            self.other = {dim: positions[rows] for dim, positions in self.other.items()}
            self.position = [positions[rows] for positions in self.position]
        self.order = self.to_device(order)

    def _combined(self, images: int) -> _Rows:
        """A row for every combination of an image and a position along each dimension."""
        plan, segments = self.plan, [numbers(s) for s in self.planned.segments]
        counts = plan.grid.counts
        ranges = [np.arange(images), *(np.arange(counts[d]) for d in plan.others)]
        ranges += [np.arange(len(segment)) for segment in segments]
        image, *mesh = [m.reshape(-1) for m in np.meshgrid(*ranges, indexing="ij")]
        others = dict(zip(plan.others, mesh, strict=False))
        position = mesh[len(others) :]
        along = zip(plan.axes, segments, position, strict=True)
        where = others | {dim: segment[own] for dim, segment, own in along}
        order = image
        for dim, count in enumerate(counts):
            order = order * count + where[dim]
        return image, order, others, position

    def _paired(self, images: int) -> _Rows:
        """A row for every image and window, which has one position along all dimensions."""
        windows = numbers(self.planned.segments[0])
        ranges = np.arange(images), np.arange(len(windows))
        image, position = (m.reshape(-1) for m in np.meshgrid(*ranges, indexing="ij"))
        window, plan = windows[position], self.plan
        others = dict.fromkeys(plan.others, window)
        return image, image * plan.grid.total + window, others, [position] * len(plan.axes)

    # --- what rules ask for
    def boxes(self, value: ValueId) -> Boxes:
        return self.planned.boxes[value]

    def algorithm(self, value: ValueId) -> Algorithm:
        return self.planned.algorithms[value]

    def positions(self, axis: int) -> int:
        return len(numbers(self.planned.segments[axis]))

    def per_row(self, axis: int, table: Tensor) -> Tensor:
        return table[torch.from_numpy(self.position[axis])].to(self.device)

    def constant(self, value: ValueId) -> Tensor:
        return self.material.constants[value]

    def sole(self, value: ValueId, boxes: Boxes) -> bool:
        gathered = not same_boxes(self.boxes(value), boxes)
        return gathered or value in self.material.owned

    def patches(self, value: ValueId) -> Callable[[Frame], Patches]:
        dims = self.analysis.dims[value]
        base = self.base.block(value, dims, self.base.kept[value])
        image, boxes = self.image_rows, self.boxes(value)
        offset, extent = self.offsets(boxes), self.extents(boxes)

        def patches(frame: Frame) -> Patches:
            patch = to_block(frame.values[value], dims)
            own = None if extent is None else frame.of(extent)
            return Patches(base, patch, frame.of(image), frame.of(offset), own)

        return patches

    def derived(self, value: ValueId, name: str, make: Callable[[Tensor], Tensor]) -> Tensor:
        return self.base.derived((value, name), lambda: make(self.base.kept[value]))

    def packed(self, value: ValueId, order: Hashable, make: Callable[[Tensor], Packed]) -> Packed:
        key = (value, order)
        if key not in self.material.packs:
            self.material.packs[key] = make(self.material.constants[value])
        made: Packed = self.material.packs[key]
        return made

    def read(self, value: ValueId, boxes: Boxes, fill: float = 0.0) -> Callable[[Frame], Tensor]:
        own, dims = self.boxes(value), self.analysis.dims[value]
        if same_boxes(own, boxes):
            return lambda frame: frame.values[value]
        size = [box.size for box in boxes if box is not None]
        shape = self.graph.size(value, 1)
        patches, read_offset = self.patches(value), self.offsets(boxes)

        def read(frame: Frame) -> Tensor:
            base, patch, image, offset, extent = patches(frame)
            block = gather_patches(
                base, patch, image, offset, frame.of(read_offset), size, fill, extent
            )
            return from_block(block, dims, shape)

        return read

    def cut(self, value: ValueId, dims: Dims, boxes: Boxes, rank: int) -> Callable[[Frame], Tensor]:
        constant = self.material.constants.get(value)
        if constant is None:
            shape = self.graph.size(value, 1)
            return self.cut_from(self.base.kept[value], value, dims, boxes, shape)
        shape = (1,) * (rank - constant.dim()) + tuple(constant.shape)
        first = torch.zeros_like(self.image_rows)
        return self.cut_from(constant.reshape(shape), value, dims, boxes, shape, first)

    def cut_from(
        self,
        tensor: Tensor,
        value: ValueId,
        dims: Dims,
        boxes: Boxes,
        shape: tuple[int, ...],
        image: Tensor | None = None,
    ) -> Callable[[Frame], Tensor]:
        """A function that gives blocks of a tensor, each from the row that `image` names.

        Left out, each window reads the row of its own image.
        """
        base = self.base.block(value, dims, tensor)
        wanted = tuple(None if d is None else b for d, b in zip(dims, boxes, strict=True))
        read_offset = self.offsets(wanted)
        size = [box.size for box in wanted if box is not None]
        rows = self.image_rows if image is None else image
        none = base.new_empty((self.plan.batch_size, base.shape[1], *([0] * len(size))))

        def cut(frame: Frame) -> Tensor:
            offset = frame.of(read_offset)
            block = gather_patches(
                base, none[: frame.rows], frame.of(rows), offset, offset, size, 0.0
            )
            return from_block(block, dims, shape)

        return cut

    def whole(self, value: ValueId) -> Callable[[Frame], Tensor]:
        kind = self.analysis.kinds[value]
        if kind is Kind.CONSTANT:
            tensor = self.material.constants[value]
            return lambda frame: tensor
        if kind is Kind.FULL:
            return lambda frame: frame.values[value]
        if kind is Kind.IMAGE:
            kept, image = self.base.kept[value], self.image_rows
            return lambda frame: kept.index_select(0, frame.of(image))
        return self.read(value, self.whole_boxes(value))

    def whole_boxes(self, value: ValueId) -> Boxes:
        """The boxes that are the whole volume of a local value."""
        made: list[Box | None] = []
        for axis, box in enumerate(self.boxes(value)):
            full = self.analysis.full_size(value, axis)
            made.append(None if box is None or full is None else Box(box.offset * 0, full))
        return tuple(made)

    # --- steps

    def offsets(self, boxes: Boxes) -> Tensor:
        return self._table(tuple(None if box is None else box.offset for box in boxes))

    def extents(self, boxes: Boxes) -> Tensor | None:
        if all(box is None or box.extent is None for box in boxes):
            return None
        return self._table(tuple(None if box is None else box.cells for box in boxes))

    def _table(self, columns: tuple[Any, ...]) -> Tensor:
        """(windows, axes), from one number a position along each axis."""
        present = [(axis, column) for axis, column in enumerate(columns) if column is not None]
        key = b"|".join(bytes([axis]) + column.tobytes() for axis, column in present)
        if key not in self._tables:
            spread = [column[self.position[axis]] for axis, column in present]
            self._tables[key] = self.to_device(np.stack(spread, 1).astype(np.int64))
        return self._tables[key]
