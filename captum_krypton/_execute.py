"""Runs a plan: materialises the base, then gathers, applies and projects, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ._graph import Node, ValueId
from ._interpret import run_graph, store
from ._layout import from_block, in_layout, to_block
from ._memory import trim
from ._operators import Algorithm, Boxes, Dims, Frame, Kind, Step, along, whole_step
from ._ops import PackedWeight, Patches, arena, gather_patches, pack_weight
from ._plan import GroupPlan, Plan
from ._regions import Box, same_boxes
from ._tail import Tail, frontier

__all__ = ["Base", "Execution", "RunStatistics", "Selection"]

Selection = npt.NDArray[np.bool_]  # (images, windows), windows in row-major order
Outcome = Callable[[Tensor, Tensor], Tensor]

# Room for the outputs of kernels, in batches: holes lie between them, and the tail's wait there.
# What is not needed is not touched.
_ARENA = 4


@dataclass
class RunStatistics:
    """What a run did.

    Attributes:
        batches: batches run.
        batch_size: the most rows in a batch at the end.
        spent: seconds of every operator on windows, by its first result.
    """

    batches: int = 0
    batch_size: int = 0
    spent: dict[ValueId, float] = field(default_factory=dict)

    @contextmanager
    def clock(self, node: Node) -> Iterator[None]:
        """Counts the time of the block as the operator's."""
        value = node.results[0]
        started = time.perf_counter()
        yield
        self.spent[value] = self.spent.get(value, 0.0) + time.perf_counter() - started


@dataclass
class _Batch:
    """The frame of one batch (see `captum_krypton._operators.Frame`)."""

    start: int
    rows: int
    values: dict[ValueId, Tensor] = field(default_factory=dict)

    def of(self, table: Tensor) -> Tensor:
        return table[self.start : self.start + self.rows]


class Execution:
    """Runs of a plan over some images: all windows at once, or some of them at a time.

    Args:
        plan: the plan.
        constants: from `prepare_constants`.
        inputs: the batched inputs, each (N, ...).
        baseline: what the windows are filled with: a number, or a tensor of shape (1, ...) or
            (N, ...) that has the occluded input's shape otherwise.
        outcome: from output rows and their image numbers to the outcome rows that are kept.
        last: whether activations are kept with channels last.
        packs: weights in the kernels' order, by value and algorithm; missing ones are put there.
        on_base: told the graph's output for the untouched images, before any window is run.
    """

    def __init__(
        self,
        plan: Plan,
        constants: dict[ValueId, Tensor],
        inputs: tuple[Tensor, ...],
        baseline: Tensor | float,
        outcome: Outcome,
        *,
        last: bool,
        packs: dict[tuple[ValueId, Algorithm], PackedWeight] | None = None,
        on_base: Callable[[slice, Tensor], None] = lambda images, output: None,
    ) -> None:
        self.plan, self.constants, self.inputs = plan, constants, inputs
        self.baseline, self.outcome, self.last = baseline, outcome, last
        self.packs = {} if packs is None else packs
        self.on_base = on_base
        self.graph = plan.analysis.graph
        self.statistics = RunStatistics(batch_size=plan.batch_size)
        self.images = inputs[0].shape[0]
        self.frontier = frontier(plan)
        self.owned = self._owned()
        self._memory_held = False

    def _owned(self) -> frozenset[ValueId]:
        """Values whose patches have memory of their own and one reader."""
        users = self.graph.users()
        return frozenset(
            v
            for rule in self.plan.analysis.rules
            if rule is not None and rule.fresh
            for v in rule.outputs
            if len(users.get(v, ())) == 1 and v != self.graph.output
        )

    def run(self, progress: Callable[[int], None]) -> Tensor:
        """Outcomes of all windows, (N, windows, ...), windows in row-major order."""
        return torch.cat(
            [
                self.evaluate(images, self.materialise(images), progress)
                for images in self.side_by_side()
            ]
        )

    def side_by_side(self) -> Iterator[slice]:
        """The images in parts whose bases fit in memory together."""
        for first in range(0, self.images, self.plan.images):
            yield slice(first, min(first + self.plan.images, self.images))

    @contextmanager
    def memory(self) -> Iterator[None]:
        """Keeps the memory of batches from one `evaluate` to the next."""
        room = _ARENA * self.plan.batch_bytes if self.inputs[0].is_cpu else 0
        with arena(room):
            self._memory_held = True
            try:
                yield
            finally:
                self._memory_held = False

    def materialise(self, images: slice) -> Base:
        """The base of some images, for this plan and others of its analysis."""
        inputs = tuple(in_layout(t[images], self.last) for t in self.inputs)
        output, kept = run_graph(self.graph, self.constants, inputs, self.plan.analysis.kept)
        self.on_base(images, output)
        occluded = self.graph.inputs.index(self.plan.analysis.occluded)
        kept[self.plan.analysis.occluded] = inputs[occluded]
        return Base(kept, self.last)

    def evaluate(
        self,
        images: slice,
        base: Base,
        progress: Callable[[int], None],
        selected: Selection | None = None,
    ) -> Tensor:
        """Outcomes of the windows of some images, (images, windows, ...).

        Args:
            images: which images.
            base: from `materialise` for these images.
            progress: told the number of windows of every batch that has been run.
            selected: which windows to run; the others' outcomes hold anything.
        """
        collected = _Collected(images.stop - images.start, self.plan.grid.total)
        tail = Tail(
            self.plan, self.constants, self._finish(images, collected), self.statistics.clock
        )
        with nullcontext() if self._memory_held else self.memory():
            for number, group in enumerate(self.plan.groups):
                if number:
                    trim()  # patches of another size follow
                prepared = GroupRun(self, group, base, images, selected)
                for rows, order, values in prepared.batches(self.statistics):
                    tail.add(values, order)
                    progress(rows)
                del prepared
            tail.flush()
        return collected.result()

    def _finish(self, images: slice, collected: _Collected) -> Callable[[Tensor, Tensor], None]:
        def finish(output: Tensor, order: Tensor) -> None:
            image = torch.div(order, self.plan.grid.total, rounding_mode="floor")
            collected.put(order, self.outcome(output, image + images.start))

        return finish


class _Collected:
    """Outcome rows put in order as they arrive."""

    def __init__(self, images: int, windows: int) -> None:
        self.images, self.windows = images, windows
        self.rows: Tensor | None = None

    def put(self, order: Tensor, outcome: Tensor) -> None:
        if self.rows is None:
            self.rows = outcome.new_empty((self.images * self.windows, *outcome.shape[1:]))
        self.rows.index_copy_(0, order, outcome)

    def result(self) -> Tensor:
        assert self.rows is not None
        return self.rows.reshape(self.images, self.windows, *self.rows.shape[1:])


class Base:
    """The values of the untouched images that windows read around their patches."""

    def __init__(self, kept: dict[ValueId, Tensor], last: bool) -> None:
        self.kept, self.last = kept, last
        self._blocks: dict[tuple[ValueId, Dims], Tensor] = {}

    def block(self, value: ValueId, dims: Dims, tensor: Tensor) -> Tensor:
        """`tensor`, the value's base, as (N, channels, *axes), in the layout of the kernels."""
        key = (value, dims)
        if key not in self._blocks:
            self._blocks[key] = in_layout(to_block(tensor, dims), self.last)
        return self._blocks[key]


class GroupRun:
    """A group's windows, all or those that are selected, and the steps that compute them."""

    def __init__(
        self,
        run: Execution,
        group: GroupPlan,
        base: Base,
        images: slice,
        selected: Selection | None,
    ) -> None:
        self.run, self.group, self.base = run, group, base
        self.plan, self.analysis = run.plan, run.plan.analysis
        self.device = run.inputs[0].device
        self._index(images.stop - images.start, selected)
        self._tables: dict[bytes, Tensor] = {}
        self.steps: list[tuple[Node, Step, tuple[ValueId, ...]]] = []
        if len(self.order):
            self.image_rows = self._to_device(self.image)
            self._prepare_input(images)
            self.steps = list(self._steps())

    def _to_device(self, array: Any) -> Tensor:
        return torch.as_tensor(array).to(self.device)

    def _index(self, images: int, selected: Selection | None) -> None:
        """For every row: its image, its position along each axis, and its place in the result."""
        plan = self.plan
        counts = plan.grid.counts
        ranges: list[Any] = [np.arange(images)]
        ranges += [np.arange(counts[d]) for d in plan.others]
        ranges += [np.arange(s.start, s.stop) for s in self.group.segments]
        mesh = [m.reshape(-1) for m in np.meshgrid(*ranges, indexing="ij")]
        where = dict(zip((*plan.others, *plan.axes), mesh[1:], strict=True))
        order = mesh[0]
        for dim, count in enumerate(counts):
            order = order * count + where[dim]
        self.image = mesh[0]
        if selected is not None:
            rows = selected.reshape(-1)[order]
            self.image, order = self.image[rows], order[rows]
            where = {dim: positions[rows] for dim, positions in where.items()}
        self.order = self._to_device(order)
        self.other = {d: where[d] for d in plan.others}
        self.position = [
            where[dim] - segment.start
            for dim, segment in zip(plan.axes, self.group.segments, strict=True)
        ]

    # --- what rules ask for (see captum_krypton._operators.Group)

    def boxes(self, value: ValueId) -> Boxes:
        return self.group.boxes[value]

    def algorithm(self, value: ValueId) -> Algorithm:
        return self.group.algorithms[value]

    def positions(self, axis: int) -> int:
        segment = self.group.segments[axis]
        return int(segment.stop) - int(segment.start)

    def per_row(self, axis: int, table: Tensor) -> Tensor:
        return table[torch.from_numpy(self.position[axis])].to(self.device)

    def constant(self, value: ValueId) -> Tensor:
        return self.run.constants[value]

    def sole(self, value: ValueId, boxes: Boxes) -> bool:
        gathered = not same_boxes(self.boxes(value), boxes)
        return gathered or value in self.run.owned

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

    def packed(self, value: ValueId, algorithm: Algorithm, groups: int) -> PackedWeight:
        key = (value, algorithm)
        if key not in self.run.packs:
            self.run.packs[key] = pack_weight(
                self.run.constants[value],
                algorithm is Algorithm.WINOGRAD,
                groups=groups,
            )
        return self.run.packs[key]

    def read(self, value: ValueId, boxes: Boxes, fill: float = 0.0) -> Callable[[Frame], Tensor]:
        own, dims = self.boxes(value), self.analysis.dims[value]
        if same_boxes(own, boxes):
            return lambda frame: frame.values[value]
        size = [box.size for box in boxes if box is not None]
        shape = self.run.graph.size(value, 1)
        patches, read_offset = self.patches(value), self.offsets(boxes)

        def read(frame: Frame) -> Tensor:
            base, patch, image, offset, extent = patches(frame)
            block = gather_patches(
                base, patch, image, offset, frame.of(read_offset), size, fill, extent
            )
            return from_block(block, dims, shape)

        return read

    def cut(self, value: ValueId, dims: Dims, boxes: Boxes, rank: int) -> Callable[[Frame], Tensor]:
        constant = self.run.constants.get(value)
        if constant is None:
            shape = self.run.graph.size(value, 1)
            return self._cut(self.base.kept[value], value, dims, boxes, shape, shared=False)
        shape = (1,) * (rank - constant.dim()) + tuple(constant.shape)
        return self._cut(constant.reshape(shape), value, dims, boxes, shape, shared=True)

    def _cut(
        self,
        tensor: Tensor,
        value: ValueId,
        dims: Dims,
        boxes: Boxes,
        shape: tuple[int, ...],
        *,
        shared: bool,
    ) -> Callable[[Frame], Tensor]:
        base = self.base.block(value, dims, tensor)
        wanted = tuple(None if d is None else b for d, b in zip(dims, boxes, strict=True))
        read_offset = self.offsets(wanted)
        size = [box.size for box in wanted if box is not None]
        image = torch.zeros_like(self.image_rows) if shared else self.image_rows
        none = base.new_empty((self.plan.batch_size, base.shape[1], *([0] * len(size))))

        def cut(frame: Frame) -> Tensor:
            offset = frame.of(read_offset)
            block = gather_patches(
                base, none[: frame.rows], frame.of(image), offset, offset, size, 0.0
            )
            return from_block(block, dims, shape)

        return cut

    def whole(self, value: ValueId) -> Callable[[Frame], Tensor]:
        kind = self.analysis.kinds[value]
        if kind is Kind.CONSTANT:
            tensor = self.run.constants[value]
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
            self._tables[key] = self._to_device(np.stack(spread, 1).astype(np.int64))
        return self._tables[key]

    def _steps(self) -> Iterator[tuple[Node, Step, tuple[ValueId, ...]]]:
        graph = self.run.graph
        nodes = graph.nodes[: len(graph.nodes) - self.plan.tail]
        needed = self.run.frontier
        last_use = graph.last_uses()
        for i, node in enumerate(nodes):
            outputs = [v for v in node.outputs if v >= 0]
            if all(self.analysis.kinds[v] is Kind.IMAGE for v in outputs):
                continue
            rule = self.analysis.rules[i]
            if rule is None:
                step = whole_step(node, self)
            elif self._is_whole(node, outputs):
                step = rule.whole_step(self)
            else:
                step = rule.step(self)
            values = {*node.operands(), *outputs}
            gone = tuple(v for v in values if last_use.get(v, -1) <= i and v not in needed)
            yield node, step, gone

    def _is_whole(self, node: Node, outputs: list[ValueId]) -> bool:
        """Whether the operator's local operands and outputs are whole volumes in this group."""
        local = [v for v in (*node.operands(), *outputs) if self.analysis.kinds[v] is Kind.LOCAL]
        return all(same_boxes(self.boxes(v), self.whole_boxes(v)) for v in local)

    def batches(
        self, statistics: RunStatistics
    ) -> Iterator[tuple[int, Tensor, dict[ValueId, Tensor]]]:
        """Runs the group; gives rows, their places in the result and the tail's values."""
        total = len(self.order)
        rest = -(-total // statistics.batch_size)
        readers = {v: self.whole(v) for v in self.run.frontier} if total else {}
        start = 0
        while start < total:
            rows = min(statistics.batch_size, -(-(total - start) // max(rest, 1)))
            batch = _Batch(start, rows)
            try:
                self._run(batch)
                values = {v: read(batch) for v, read in readers.items()}
            except RuntimeError as error:
                if rows == 1 or not out_of_memory(error):
                    raise
                statistics.batch_size = rows // 2
                continue
            statistics.batches += 1
            rest -= 1
            yield rows, batch.of(self.order), values
            start += rows

    def _run(self, batch: _Batch) -> None:
        batch.values[self.analysis.occluded] = self._occluded(batch)
        for node, step, gone in self.steps:
            with self.run.statistics.clock(node):
                store(batch.values, node, step(batch))
            for value in gone:
                batch.values.pop(value, None)

    # --- the occluded input

    def _prepare_input(self, images: slice) -> None:
        """What a batch's occluded patches are made of: baseline, image and masks."""
        baseline = self.run.baseline
        value, dims = self.analysis.occluded, self.analysis.dims[self.analysis.occluded]
        boxes = self.boxes(value)
        shape = self.run.graph.size(value, 1)
        if isinstance(baseline, Tensor):
            own = baseline[images] if baseline.shape[0] > 1 else baseline
            self.fill = self._cut(own, -1, dims, boxes, shape, shared=baseline.shape[0] == 1)
        self.original = self._cut(self.base.kept[value], value, dims, boxes, shape, shared=False)
        self.masks = list(self._masks())

    def _masks(self) -> Iterator[tuple[int, Tensor]]:
        """For each dimension that a window does not cover all of in its patch: where it does."""
        plan = self.plan
        for axis, (dim, box) in enumerate(
            zip(plan.axes, self.boxes(self.analysis.occluded), strict=True)
        ):
            assert box is not None
            window = plan.grid.along(dim).segment(self.group.segments[axis])
            cell = box.offset[:, None] + np.arange(box.size)
            inside = (cell >= window.start[:, None]) & (cell < window.stop[:, None])
            if not inside.all():
                yield dim + 1, self._to_device(inside[self.position[axis]])
        for dim in plan.others:
            inside = plan.grid.cover(dim).T > 0
            if not inside.all():
                yield dim + 1, self._to_device(inside[self.other[dim]])

    def _occluded(self, batch: _Batch) -> Tensor:
        """The patches of the input: the baseline inside the window, the image around it."""
        baseline = self.run.baseline
        if isinstance(baseline, Tensor):
            fill = self.fill(batch)
        else:
            sizes = list(self.run.graph.size(self.analysis.occluded, 1))
            for dim, box in zip(self.plan.axes, self.boxes(self.analysis.occluded), strict=True):
                assert box is not None
                sizes[dim + 1] = box.size
            like = self.base.kept[self.analysis.occluded]
            fill = torch.full(
                (batch.rows, *sizes[1:]), baseline, dtype=like.dtype, device=like.device
            )
            fill = in_layout(fill, self.run.last)
        if not self.masks:
            return fill
        mask: Tensor | None = None
        for dim, table in self.masks:
            part = along(batch.of(table), dim, fill.dim())
            mask = part if mask is None else mask & part
        assert mask is not None
        return in_layout(torch.where(mask, fill, self.original(batch)), self.run.last)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocation failed, on any device."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text
