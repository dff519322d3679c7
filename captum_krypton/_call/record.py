"""A map as a file: arrays and JSON, nothing that a reader would have to run."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from .region_list import RegionList
from .windows import WindowGrid, Windows

__all__ = ["Record", "as_array", "read_record", "write_record"]

FORMAT, VERSION = "captum-krypton map", 1
_Arrays = dict[str, np.ndarray[Any, Any]]
_TYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64)
    + (torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
}


@dataclass(frozen=True)
class Record:
    """What a file of a map holds; see `OcclusionMap.save`."""

    scores: Tensor
    reference: Tensor
    spread: Tensor | None
    grid: Windows
    target: Any
    report: Mapping[str, Any]


def as_array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A tensor as an array on the host; float32 for bfloat16, which NumPy lacks."""
    tensor = tensor.detach().cpu()
    array: np.ndarray[Any, Any] = (
        tensor.float() if tensor.dtype is torch.bfloat16 else tensor
    ).numpy()
    return array


def write_record(path: str | PathLike[str], record: Record) -> None:
    """Writes a file, whole or not at all."""
    arrays: _Arrays = {"scores": as_array(record.scores), "reference": as_array(record.reference)}
    if record.spread is not None:
        arrays["spread"] = as_array(record.spread)
    grid, shapes = _written_grid(record.grid)
    text = {
        "format": FORMAT,
        "version": VERSION,
        "dtype": str(record.scores.dtype).removeprefix("torch."),
        "target": _written_target(record.target),
        "grid": grid,
        "report": record.report,
    }
    arrays |= {**shapes, "map": np.array(json.dumps(text))}
    place = Path(path)
    temporary = place.with_name(f".{uuid4().hex}.part")
    try:
        with open(temporary, "xb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, place)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_record(path: str | PathLike[str]) -> Record:
    """Reads a file.

    Raises:
        OSError: where it cannot be read.
        ValueError: where it is no such file, not whole, or of a later version.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return _record_of(arrays)
    except OSError:
        raise
    except (zipfile.BadZipFile, EOFError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{os.fspath(path)} is no map that OcclusionMap.save wrote, or not whole: {error}"
        ) from error


def _record_of(arrays: _Arrays) -> Record:
    text = json.loads(str(arrays["map"][()]))
    if text["format"] != FORMAT:
        raise ValueError(f"its format is {text['format']!r}, not {FORMAT!r}")
    if not text["version"] <= VERSION:
        raise ValueError(f"it is of version {text['version']}, and this release reads {VERSION}")
    if not isinstance(text["report"], dict) or "path" not in text["report"]:
        raise ValueError(f"its report is {text['report']!r}")
    dtype = _TYPES[text["dtype"]]
    spread = arrays.get("spread")
    record = Record(
        torch.from_numpy(arrays["scores"]).to(dtype),
        torch.from_numpy(arrays["reference"]).to(dtype),
        None if spread is None else torch.from_numpy(spread).to(dtype),
        _read_grid(text["grid"], arrays),
        _read_target(text["target"]),
        text["report"],
    )
    of_grid = record.scores.shape[record.reference.dim() :]
    if record.scores.shape[: record.reference.dim()] != record.reference.shape or (
        of_grid.numel() != record.grid.total
    ):
        raise ValueError(
            f"scores of {tuple(record.scores.shape)} are no map of {record.grid} for outcomes of "
            f"{tuple(record.reference.shape)}"
        )
    return record


def _written_grid(grid: Windows) -> tuple[dict[str, Any], _Arrays]:
    if isinstance(grid, WindowGrid):
        return {"shape": grid.shape, "window": grid.window, "stride": grid.stride}, {}
    assert isinstance(grid, RegionList)
    arrays = {"boxes": grid.boxes, "layers": grid.layers}
    if grid.labels is not None:
        arrays["labels"] = as_array(grid.labels)
    return {"shape": grid.shape}, arrays


def _read_grid(made: Mapping[str, Any], arrays: _Arrays) -> Windows:
    shape = tuple(made["shape"])
    if "window" in made:
        return WindowGrid(shape, tuple(made["window"]), tuple(made["stride"]))
    labels = arrays.get("labels")
    return RegionList(
        shape,
        arrays["boxes"],
        None if labels is None else torch.from_numpy(labels),
        arrays["layers"],
    )


def _written_target(target: Any) -> Any:
    """A target as JSON has it."""
    if target is None or isinstance(target, (bool, int)):
        return target
    if isinstance(target, tuple):
        return {"tuple": [_written_target(entry) for entry in target]}
    if isinstance(target, list):
        return [_written_target(entry) for entry in target]
    if isinstance(target, slice):
        return {"slice": [target.start, target.stop, target.step]}
    if isinstance(target, (Tensor, np.ndarray)):
        return {"tensor": torch.as_tensor(target).tolist()}
    if isinstance(target, np.integer):
        return int(target)
    raise TypeError(
        f"target must be integers, slices, tensors, or tuples and lists of them to be saved, not "
        f"{type(target).__name__}"
    )


def _read_target(made: Any) -> Any:
    if isinstance(made, list):
        return [_read_target(entry) for entry in made]
    if not isinstance(made, dict):
        return made
    ((kind, value),) = made.items()
    if kind == "tuple":
        return tuple(_read_target(entry) for entry in value)
    if kind == "slice":
        return slice(*value)
    if kind == "tensor":
        return torch.tensor(value)
    raise ValueError(f"its target has {kind!r}")
