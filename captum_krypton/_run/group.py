"""The windows of one group: what their steps are, and the batches that they run in."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._capture import Node, ValueId
from .._kernels import PackedWeight, Patches, cuda_graph, gather_patches, pack_weight
from .._operators import (
    Algorithm,
    Box,
    Boxes,
    Dims,
    Frame,
    Kind,
    Step,
    along,
    same_boxes,
    whole_step,
)
from .._plan import GroupPlan, Plan
from .base import FILL, Base
from .head import Clock, frontier, run_tail, untimed
from .interpreter import store
from .layout import from_block, in_layout, to_block

__all__ = ["Batches", "GroupRun", "Material", "RunStatistics", "Selection"]

Selection = npt.NDArray[np.bool_]  # (images, windows), windows in row-major order
Batches = Iterator[tuple[int, Tensor, dict[ValueId, Tensor]]]  # rows, places, the tail's values


# A capture takes about as long as is saved by so many replays.
_MANY = 16


@dataclass
class RunStatistics:
    """What a run did.

    Attributes:
        batches: batches run.
        batch_size: the most rows in a batch at the end.
        spent: seconds of every operator on windows, by its first result.
        replayed: batches that were replayed from a CUDA graph.
        wait: waits for the device, where operators are to be timed one by one.
    """

    batches: int = 0
    batch_size: int = 0
    spent: dict[ValueId, float] = field(default_factory=dict)
    replayed: int = 0
    wait: Callable[[], None] = lambda: None

    @contextmanager
    def clock(self, node: Node) -> Iterator[None]:
        """Counts the time of the block as the operator's."""
        value = node.results[0]
        self.wait()
        started = time.perf_counter()
        yield
        self.wait()
        self.spent[value] = self.spent.get(value, 0.0) + time.perf_counter() - started


@dataclass(frozen=True)
class Material:
    """What the windows of a plan are computed from, whatever the images.

    Attributes:
        plan: the plan.
        constants: from `prepare_constants`.
        packs: weights in the kernels' order, by value and algorithm; missing ones are put there.
        fill: what the windows are filled with; None where the base has a tensor for that.
        last: whether activations are kept with channels last.
        compiles: whether torch.compile makes what follows a convolution of PyTorch's own.
    """

    plan: Plan
    constants: dict[ValueId, Tensor]
    packs: dict[tuple[ValueId, Algorithm], PackedWeight]
    fill: float | None
    last: bool
    compiles: bool = False

    @cached_property
    def frontier(self) -> tuple[ValueId, ...]:
        """The values that the tail reads from the batches."""
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


@dataclass
class _Batch:
    """Neighbouring rows of a group (see `captum_krypton._operators.Frame`)."""

    start: int
    rows: int
    values: dict[ValueId, Tensor] = field(default_factory=dict)

    def of(self, table: Tensor) -> Tensor:
        return table[self.start : self.start + self.rows]


class _Movable:
    """Rows of a group that a tensor names: a captured graph reads it anew at every replay.

    Args:
        numbers: the rows.
        tables: what `of` will be asked for, of one type and width: they are read together.
    """

    def __init__(self, numbers: Tensor, tables: list[Tensor]) -> None:
        self.rows, self.values, self.numbers = len(numbers), dict[ValueId, Tensor](), numbers
        self._first = torch.arange(self.rows, device=numbers.device)
        self._tables = tables
        self._together = torch.stack(tables) if tables else None
        self._taken: dict[int, tuple[Tensor, Tensor]] = {}  # with the table, so that no id repeats

    def take(self) -> None:
        """Reads the rows of the tables."""
        if self._together is not None:
            parts = self._together.index_select(1, self.numbers).unbind()
            self._taken = {id(t): (t, part) for t, part in zip(self._tables, parts, strict=True)}

    def move(self, start: int) -> None:
        """The rows from `start` on."""
        torch.add(self._first, start, out=self.numbers)

    def of(self, table: Tensor) -> Tensor:
        key = id(table)
        if key not in self._taken:
            self._taken[key] = table, table.index_select(0, self.numbers)
        return self._taken[key][1]


@dataclass(frozen=True)
class _Captured:
    """A batch as a graph, and the rows that it is of."""

    frame: _Movable
    graph: cuda_graph.Graph[dict[ValueId, Tensor]]

    def replay(self, start: int) -> dict[ValueId, Tensor]:
        """What the tail reads for the rows from `start` on; the next replay overwrites it."""
        self.frame.move(start)
        self.graph.replay()
        return self.graph.result


class GroupRun:
    """A group's windows, all or those that are selected, and the steps that compute them."""

    def __init__(
        self,
        material: Material,
        group: GroupPlan,
        base: Base,
        selected: Selection | None = None,
    ) -> None:
        self.material, self.group, self.base = material, group, base
        self.plan, self.analysis = material.plan, material.plan.analysis
        self.graph = self.analysis.graph
        original = base.kept[self.analysis.occluded]
        self.device = original.device
        self.compiles = material.compiles
        self._index(original.shape[0], selected)
        self._tables: dict[bytes, Tensor] = {}
        self.steps: list[tuple[Node, Step, tuple[ValueId, ...]]] = []
        self.readers: dict[ValueId, Callable[[Frame], Tensor]] = {}
        self._captured: _Captured | None = None
        if len(self.order):
            self.image_rows = self._to_device(self.image)
            self._prepare_input()
            self.steps = list(self._steps())
            self.readers = {v: self.whole(v) for v in material.frontier}

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

    def packed(self, value: ValueId, algorithm: Algorithm, groups: int) -> PackedWeight:
        key = (value, algorithm)
        if key not in self.material.packs:
            self.material.packs[key] = pack_weight(
                self.material.constants[value],
                algorithm is Algorithm.WINOGRAD,
                groups=groups,
            )
        return self.material.packs[key]

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
            self._tables[key] = self._to_device(np.stack(spread, 1).astype(np.int64))
        return self._tables[key]

    def _steps(self) -> Iterator[tuple[Node, Step, tuple[ValueId, ...]]]:
        graph = self.graph
        nodes = graph.nodes[: len(graph.nodes) - self.plan.tail]
        needed = self.material.frontier
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

    def batches(self, statistics: RunStatistics, start: int = 0) -> Batches:
        """Runs the group from a row on."""
        total = len(self.order)
        rest = -(-(total - start) // statistics.batch_size)
        while start < total:
            rows = min(statistics.batch_size, -(-(total - start) // max(rest, 1)))
            try:
                values = self._values(_Batch(start, rows), statistics.clock)
            except RuntimeError as error:
                if rows == 1 or not out_of_memory(error):
                    raise
                statistics.batch_size = rows // 2
                continue
            statistics.batches += 1
            rest -= 1
            yield rows, self.order[start : start + rows], values
            start += rows

    def replayed(self, statistics: RunStatistics, pool: cuda_graph.Pool, *, again: bool) -> Batches:
        """Runs the group like `batches`, in batches of one size: one captured, the rest replayed.

        The last one begins early enough to be full; its first rows are then those of the one
        before, and give the same once more.

        Args:
            statistics: counts.
            pool: the memory of graphs.
            again: whether the group is run once more, so that even one batch is worth a capture.
        """
        total = len(self.order)
        number = -(-total // statistics.batch_size)
        rows = -(-total // max(number, 1))
        done = 0
        for left in range(number, 0, -1):
            start = min(done, total - rows)
            try:
                worth = total > 1 and (again or (_MANY <= left < number))
                if worth and self._captured is None and pool.usable:
                    self._capture(start, rows, pool)
                captured = self._captured if pool.usable else None
                if captured is not None and captured.frame.rows == rows:
                    values = captured.replay(start)
                    statistics.replayed += 1
                else:
                    values = self._values(_Batch(start, rows), statistics.clock)
            except RuntimeError as error:
                if rows == 1 or not out_of_memory(error):
                    raise
                self._captured, pool.usable = None, False
                statistics.batch_size = rows // 2
                yield from self.batches(statistics, done)
                return
            statistics.batches += 1
            yield start + rows - done, self.order[start : start + rows], values
            done = start + rows

    def _capture(self, start: int, rows: int, pool: cuda_graph.Pool) -> None:
        """Captures a batch, and compares what a replay gives with the batch itself."""
        with cuda_graph.capture_stream(self.device):  # what is made on first use is made there, too
            expected = self._values(_Batch(start, rows))
        # Other rows than those: work that runs at its capture gives itself away.
        others = (torch.arange(rows, device=self.device) + (start + 1)) % len(self.order)
        frame = _Movable(others, self._alike_tables())

        def work() -> dict[ValueId, Tensor]:
            frame.take()
            return self._values(frame)

        try:
            graph = cuda_graph.Graph(work, pool, self.device)
            captured = _Captured(frame, graph)
            found = captured.replay(start)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            self._refuse(pool, f"{type(error).__name__}: {error}")
            return
        material = self.material
        outcomes = [run_tail(self.plan, material.constants, v, rows) for v in (found, expected)]
        if cuda_graph.alike(*outcomes):
            self._captured = captured
        else:
            self._refuse(pool, "a replay gives other values than the operators do")

    def _alike_tables(self) -> list[Tensor]:
        """The tables of offsets that are as wide as most of them."""
        widths = [table.shape[1] for table in self._tables.values()]
        most = max(widths, key=widths.count, default=0)
        return [table for table in self._tables.values() if table.shape[1] == most]

    def _refuse(self, pool: cuda_graph.Pool, reason: str) -> None:
        pool.usable = False
        warnings.warn(
            f"a batch cannot be replayed as a CUDA graph, its operators are launched one by one: "
            f"{reason}",
            RuntimeWarning,
            stacklevel=2,
        )

    def _values(self, frame: _Batch | _Movable, clock: Clock = untimed) -> dict[ValueId, Tensor]:
        """Runs the rows of a frame; what the tail reads."""
        frame.values[self.analysis.occluded] = self._occluded(frame)
        for node, step, gone in self.steps:
            with clock(node):
                store(frame.values, node, step(frame))
            for value in gone:
                frame.values.pop(value, None)
        return {v: read(frame) for v, read in self.readers.items()}

    # --- the occluded input

    def _prepare_input(self) -> None:
        """What a batch's occluded patches are made of: baseline, image and masks."""
        value, dims = self.analysis.occluded, self.analysis.dims[self.analysis.occluded]
        boxes = self.boxes(value)
        shape = self.graph.size(value, 1)
        if FILL in self.base.kept:
            fill = self.base.kept[FILL]
            self.fill = self._cut(fill, FILL, dims, boxes, shape, shared=fill.shape[0] == 1)
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

    def _occluded(self, batch: Frame) -> Tensor:
        """The patches of the input: the baseline inside the window, the image around it."""
        number = self.material.fill
        if number is None:
            fill = self.fill(batch)
        else:
            sizes = list(self.graph.size(self.analysis.occluded, 1))
            for dim, box in zip(self.plan.axes, self.boxes(self.analysis.occluded), strict=True):
                assert box is not None
                sizes[dim + 1] = box.size
            like = self.base.kept[self.analysis.occluded]
            fill = torch.full(
                (batch.rows, *sizes[1:]), number, dtype=like.dtype, device=like.device
            )
            fill = in_layout(fill, self.material.last)
        if not self.masks:
            return fill
        mask: Tensor | None = None
        for dim, table in self.masks:
            part = along(batch.of(table), dim, fill.dim())
            mask = part if mask is None else mask & part
        assert mask is not None
        return in_layout(torch.where(mask, fill, self.original(batch)), self.material.last)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocation failed, on any device."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text
