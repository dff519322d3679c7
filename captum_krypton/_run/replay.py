"""A group's batches on a GPU: one is captured as a CUDA graph, the rest are replays of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._capture import ValueId
from .._kernels import CudaGraph, GraphPool, alike, capture_stream, operators_instead
from .batches import Batch, Batches, GroupRun, RunStatistics, out_of_memory
from .head import run_head

__all__ = ["ReplayedGroup"]

# A capture takes about as long as is saved by so many replays.
_MANY = 16


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
    graph: CudaGraph[dict[ValueId, Tensor]]

    def replay(self, start: int) -> dict[ValueId, Tensor]:
        """What the head reads for the rows from `start` on; the next replay overwrites it."""
        self.frame.move(start)
        self.graph.replay()
        return self.graph.result


class ReplayedGroup:
    """A group whose batches are replayed.

    Args:
        run: the group.
        pool: the memory of graphs.
    """

    def __init__(self, run: GroupRun, pool: GraphPool) -> None:
        self.run, self.pool = run, pool
        self._captured: _Captured | None = None

    def batches(self, statistics: RunStatistics, *, again: bool) -> Batches:
        """Runs the group like `GroupRun.batches`, in batches of one size.

        The last one begins early enough to be full; its first rows are then those of the one
        before, and give the same once more.

        Args:
            statistics: counts.
            again: whether the group is run once more, so that even one batch is worth a capture.
        """
        run, pool, total = self.run, self.pool, len(self.run.order)
        number = -(-total // min(statistics.batch_size, run.group.planned.rows))
        rows = -(-total // max(number, 1))
        done = 0
        for left in range(number, 0, -1):
            start = min(done, total - rows)
            try:
                worth = total > 1 and (again or (_MANY <= left < number))
                if worth and self._captured is None and pool.usable:
                    self._capture(start, rows)
                captured = self._captured if pool.usable else None
                if captured is not None and captured.frame.rows == rows:
                    values = captured.replay(start)
                    statistics.replayed += 1
                else:
                    values = run.values(Batch(start, rows), statistics.clock)
            except RuntimeError as error:
                if rows == 1 or not out_of_memory(error):
                    raise
                self._captured, pool.usable = None, False
                statistics.batch_size = rows // 2
                yield from run.batches(statistics, done)
                return
            statistics.batches += 1
            yield start + rows - done, run.order[start : start + rows], values
            done = start + rows

    def _capture(self, start: int, rows: int) -> None:
        """Captures a batch, and compares what a replay gives with the batch itself."""
        run, device = self.run, self.run.group.device
        with capture_stream(device):  # what is made on first use is made there, too
            expected = run.values(Batch(start, rows))
        # Other rows than those: work that runs at its capture gives itself away.
        others = (torch.arange(rows, device=device) + (start + 1)) % len(run.order)
        frame = _Movable(others, self._alike_tables())

        def work() -> dict[ValueId, Tensor]:
            frame.take()
            return run.values(frame)

        try:
            graph = CudaGraph(work, self.pool, device)
            captured = _Captured(frame, graph)
            found = captured.replay(start)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            self._refuse(f"{type(error).__name__}: {error}")
            return
        material = run.material
        outcomes = [run_head(material.plan, material.constants, v, rows) for v in (found, expected)]
        if alike(*outcomes):
            self._captured = captured
        else:
            self._refuse("a replay gives other values than the operators do")

    def _alike_tables(self) -> list[Tensor]:
        """The tables of offsets that are as wide as most of them."""
        tables = self.run.group.tables()
        widths = [table.shape[1] for table in tables]
        most = max(widths, key=widths.count, default=0)
        return [table for table in tables if table.shape[1] == most]

    def _refuse(self, reason: str) -> None:
        operators_instead(self.pool, "a batch cannot be replayed as a CUDA graph, its", reason)
