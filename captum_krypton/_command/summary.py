"""What a run found: a row an image, for people and for tables."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from .. import OcclusionMap
from .failure import CommandError

__all__ = ["Row", "check_format", "drops", "row_of", "table", "words"]

DONE, FAILED = "done", "failed"


@dataclass(frozen=True)
class Row:
    """One image of a summary.

    Attributes:
        image: its name.
        status: "done" or "failed".
        reason: why it failed.
        target: the class's number.
        label: the class's name.
        outcome: of the untouched image.
        largest_drop: of the outcome, of all windows.
        top: where the window of that drop begins, in pixels of the model's input.
        left: the same along the width.
        bottom: where it ends; the row is the first that it does not cover.
        right: the same along the width.
        seconds: that the map took.
        windows: of the map.
        windows_evaluated: of these, those that were run.
        estimated_ssim: to the exact map, by its own estimate; 1 for an exact one.
        path: how the map was made, as `Report.path` says it.
    """

    image: str
    status: str = DONE
    reason: str | None = None
    target: int | None = None
    label: str | None = None
    outcome: float | None = None
    largest_drop: float | None = None
    top: int | None = None
    left: int | None = None
    bottom: int | None = None
    right: int | None = None
    seconds: float | None = None
    windows: int | None = None
    windows_evaluated: int | None = None
    estimated_ssim: float | None = None
    path: str | None = None


def drops(heat: OcclusionMap) -> np.ndarray[Any, np.dtype[np.float32]]:
    """By how much each window lowers the outcome, (rows, columns)."""
    return heat.drop.reshape(heat.scores.shape[-2:]).float().cpu().numpy()


def row_of(image: str, heat: OcclusionMap, label: str) -> Row:
    """The row of an image's map."""
    dropped = drops(heat)
    finite = np.where(np.isfinite(dropped), dropped, -np.inf)
    row, column = (int(index) for index in np.unravel_index(finite.argmax(), finite.shape))
    rows, columns = heat.grid.along(1), heat.grid.along(2)
    report = heat.report
    return Row(
        image=image,
        target=int(heat.target),
        label=label,
        outcome=float(heat.reference.reshape(())),
        largest_drop=float(dropped[row, column]),
        top=int(rows.start[row]),
        left=int(columns.start[column]),
        bottom=int(rows.stop[row]),
        right=int(columns.stop[column]),
        seconds=report.seconds,
        windows=report.windows,
        windows_evaluated=report.windows_evaluated,
        estimated_ssim=report.estimated_ssim,
        path=report.path,
    )


def words(row: Row, outcome: str) -> str:
    """A row for a reader, over several lines.

    Args:
        row: of an image that did not fail.
        outcome: what the outcome is, such as "probability".
    """
    ssim = "none" if row.estimated_ssim is None else f"{row.estimated_ssim:.3f}"
    ssim = "1 (exact)" if row.estimated_ssim == 1 else ssim
    lines = [
        ("class", f"{row.target} ({row.label})"),
        (outcome, f"{row.outcome:.4g}"),
        ("largest drop", f"{row.largest_drop:.4g}"),
        ("  at", f"rows {row.top} to {row.bottom}, columns {row.left} to {row.right}"),
        ("windows", f"{row.windows}, of which {row.windows_evaluated} were run"),
        ("estimated SSIM", ssim),
        ("seconds", f"{row.seconds:.2f}"),
    ]
    return "\n".join([row.image, *(f"  {name:<16}{value}" for name, value in lines)])


def check_format(kind: str) -> None:
    """Raises a `CommandError` where a summary of this kind could not be written."""
    if kind == "parquet":
        _pyarrow()


def table(rows: Iterable[Row], kind: str) -> bytes:
    """The summary as a file.

    Args:
        rows: in their order.
        kind: "csv" or "parquet".
    """
    named = [{**asdict(row), "image": _text(row.image)} for row in rows]
    if kind == "csv":
        file = io.StringIO(newline="")
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(named)
        return file.getvalue().encode()
    return _parquet(named)


def _text(name: str) -> str:
    """A file's name, which need not be text, as text."""
    return os.fsencode(name).decode("utf-8", "replace")


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise CommandError("--summary parquet needs pyarrow: pip install pyarrow") from error
    return pyarrow


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    arrow = _pyarrow()
    kinds = {"str": arrow.string(), "int": arrow.int64(), "float": arrow.float64()}
    columns = [(field.name, kinds[str(field.type).split(" ")[0]]) for field in fields(Row)]
    sink = io.BytesIO()
    arrow.parquet.write_table(arrow.Table.from_pylist(rows, arrow.schema(columns)), sink)
    return sink.getvalue()
