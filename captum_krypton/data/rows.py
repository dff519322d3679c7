"""One row of a batch: from what its columns hold to what is added for it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "Broken",
    "Explained",
    "RowError",
    "checked",
    "default_transform",
    "name_of",
    "target_of",
]

Target = int | tuple[int, ...] | None


class RowError(ValueError):
    """A row of a batch cannot be explained; the message names it and says why."""


@dataclass(frozen=True)
class Explained:
    """What is added for one row.

    Attributes:
        scores: the outcome with each window covered, of the grid's shape.
        reference: the outcome of the untouched image.
        target: which output that is; None where the model has one alone.
        estimated_ssim: the map's own estimate of its similarity to the exact one; not a number
            where nothing was estimated.
        seconds: what the map took.
        path: how it was made, see `Report.path`.
    """

    scores: NDArray[Any]
    reference: float
    target: Target
    estimated_ssim: float
    seconds: float
    path: str


@dataclass(frozen=True)
class Broken:
    """Why a row has no map."""

    reason: str


def default_transform(value: Any) -> Tensor:
    """An image as an input (C, H, W).

    Args:
        value: uint8 (H, W, C) or (H, W), which become float32 in 0..1; or an array of floats,
            which is taken as it is.

    Raises:
        TypeError: for anything else.
    """
    array = value if isinstance(value, Tensor) else torch.from_numpy(_array(value))
    if array.is_floating_point():
        return array
    if array.dtype == torch.uint8 and array.dim() in (2, 3):
        channels_last = array if array.dim() == 3 else array[..., None]
        return channels_last.permute(2, 0, 1).contiguous().float() / 255
    raise TypeError(
        f"an image of type {array.dtype} and shape {tuple(array.shape)}: without `transform`, it "
        "must be uint8 (H, W, C) or (H, W), or floats (C, H, W)"
    )


def _array(value: Any) -> NDArray[Any]:
    if isinstance(value, (bytes, str, dict)) or value is None:
        raise TypeError(
            f"an image of type {type(value).__name__}: pass a `transform` that decodes it into a "
            "tensor (C, H, W)"
        )
    array = np.array(value)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"an image of type {array.dtype}, expected uint8 or floats")
    return array


def checked(value: Any, transform: Callable[[Any], Any] | None) -> Tensor:
    """The input that `transform` makes of a row's image.

    Raises:
        TypeError: where it is no tensor of floats.
        ValueError: where it holds values that are not finite, or nothing.
    """
    if isinstance(value, np.ndarray):
        value = value.copy()  # frameworks hand out arrays that cannot be written to
    made = (transform or default_transform)(value)
    if not isinstance(made, Tensor):
        raise TypeError(f"transform must return a tensor (C, H, W), not {type(made).__name__}")
    if not made.is_floating_point():
        raise TypeError(f"transform must return a tensor of floats, not of {made.dtype}")
    if made.dim() < 2 or made.numel() == 0:
        raise ValueError(f"an input is (C, H, W), not {tuple(made.shape)}")
    if not bool(made.isfinite().all()):
        raise ValueError("the image has values that are not finite")
    return made.detach()


def target_of(value: Any) -> Target:
    """The target that a row's cell holds: an integer, or several for an output of many dimensions.

    Raises:
        TypeError: for anything else.
    """
    try:
        if isinstance(value, (tuple, list)) or getattr(value, "ndim", 0) == 1:
            return tuple(operator.index(one) for one in value)
        return operator.index(value)
    except TypeError:
        raise TypeError(
            f"a target is an integer or a tuple of integers, not {value!r} ({type(value).__name__})"
        ) from None


def name_of(columns: Mapping[str, Any], row: int, rows: int) -> str:
    """How a row is named in a message: its place in the batch, and the text that it has."""
    texts = [
        f"{name}={value!r}"
        for name, column in columns.items()
        if isinstance(value := column[row], str) and len(value) <= 200
    ]
    return f"row {row} of {rows}" + (f" ({', '.join(texts)})" if texts else "")
