"""From rows to columns whose types do not change from batch to batch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .rows import Broken, Explained, Target

__all__ = ["ADDED", "Form", "columns_of", "flat", "form_of", "kept"]

ADDED = ("scores", "reference", "target", "estimated_ssim", "seconds", "path")
NO_TARGET = -1


@dataclass(frozen=True)
class Form:
    """What the cells of a row look like, for rows that have none of their own.

    Attributes:
        shape: of the scores.
        dtype: of scores and reference.
        text: whether targets are text.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    text: bool


def form_of(row: Explained) -> Form:
    """The form that an explained row has."""
    return Form(row.scores.shape, row.scores.dtype, isinstance(row.target, tuple))


def columns_of(rows: Sequence[Explained | Broken], form: Form) -> dict[str, NDArray[Any]]:
    """A column for each name of `ADDED`, and `error`.

    Args:
        rows: the rows of a batch.
        form: what broken rows look like in a batch without others.

    Returns:
        `scores` is (N, *grid) where all that there are have one shape, and an object array of
        arrays elsewhere. Rows that are broken have not a number, -1 (for a target) or empty text.
    """
    good = [row for row in rows if isinstance(row, Explained)]
    forms = list(dict.fromkeys(map(form_of, good))) or [form]
    text = any(found.text for found in forms)
    dtype = np.result_type(*(found.dtype for found in forms))
    return {
        "scores": _scores(rows, [found.shape for found in forms], dtype),
        "reference": _numbers(rows, "reference").astype(dtype),
        "target": _targets(rows, text),
        "estimated_ssim": _numbers(rows, "estimated_ssim"),
        "seconds": _numbers(rows, "seconds"),
        "path": _texts([row.path if isinstance(row, Explained) else "" for row in rows]),
        "error": _texts([row.reason if isinstance(row, Broken) else "" for row in rows]),
    }


def _scores(
    rows: Sequence[Explained | Broken], shapes: list[tuple[int, ...]], dtype: np.dtype[Any]
) -> NDArray[Any]:
    first, *others = dict.fromkeys(shapes)
    if not others:
        out = np.full((len(rows), *first), math.nan, dtype)
        for cell, row in zip(out, rows, strict=True):
            if isinstance(row, Explained):
                cell[...] = row.scores
        return out
    ragged = np.empty(len(rows), object)
    for place, row in enumerate(rows):
        empty = np.zeros((0,) * len(first), dtype)
        ragged[place] = row.scores.astype(dtype) if isinstance(row, Explained) else empty
    return ragged


def _numbers(rows: Sequence[Explained | Broken], name: str) -> NDArray[np.float64]:
    values = [getattr(row, name) if isinstance(row, Explained) else math.nan for row in rows]
    return np.array(values, np.float64)


def _targets(rows: Sequence[Explained | Broken], text: bool) -> NDArray[Any]:
    targets = [row.target if isinstance(row, Explained) else None for row in rows]
    if text:
        return _texts(["" if target is None else json.dumps(target) for target in targets])
    return np.array([_number(target) for target in targets], np.int64)


def _number(target: Target) -> int:
    return target if isinstance(target, int) else NO_TARGET


def _texts(texts: Sequence[str]) -> NDArray[Any]:
    return np.array(texts, np.str_)


def kept(column: Any, places: Sequence[int]) -> Any:
    """Some rows of a column, as the kind of column that it is."""
    if isinstance(column, (list, tuple)):
        return type(column)(column[place] for place in places)
    return column[np.array(places, np.int64)]


def flat(columns: dict[str, NDArray[Any]], scores: str, grid: str) -> list[dict[str, Any]]:
    """Columns as rows, for a framework without tensors: `scores` as a list, its shape in `grid`."""
    rows = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    return [
        {**row, scores: row[scores].reshape(-1), grid: np.array(row[scores].shape, np.int32)}
        for row in rows
    ]
