"""The projective field threshold that meets a target quality on a sample (Section 4.4)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from .._call import ArgumentError, Call, WindowGrid, new_figure
from .._operators import Floats
from .libraries import metrics
from .quality import ssim

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["THRESHOLDS", "Tuning", "as_grids", "sample", "torch_version", "tuned"]

THRESHOLDS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
_FORMAT = 1


@dataclass(frozen=True)
class Tuning:
    """What `KryptonOcclusion.tune` found (Section 4.4).

    Attributes:
        target_ssim: the quality asked for.
        threshold: the smallest projective field threshold tau whose fitted quality meets it.
        thresholds: the thresholds that were tried.
        ssim: the quality that each gave, one row an image.
        at_threshold: the quality of each of these images at `threshold`.
        held_out: that of images which had no part in the fit.
        grids: for each input, its shape, the window's and the strides, without the batch.
        model: a digest of the captured graph and its weights, for inputs of one shape.
        torch: the version of PyTorch.
    """

    target_ssim: float
    threshold: float
    thresholds: tuple[float, ...]
    ssim: tuple[tuple[float, ...], ...]
    at_threshold: tuple[float, ...]
    held_out: tuple[float, ...]
    grids: tuple[Any, ...]
    model: str
    torch: str

    def predicted(self, threshold: float) -> float:
        """The quality that the second degree curve has at a threshold."""
        return float(_fit(self.thresholds, self.ssim)(threshold))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it as JSON."""
        Path(path).write_text(json.dumps({"format": _FORMAT, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tuning:
        """Reads what `save` wrote.

        Raises:
            ValueError: where the file holds something else.
        """
        try:
            found = json.loads(Path(path).read_text())
            if found.pop("format") != _FORMAT:
                raise ValueError("another format")
            names = {field.name for field in fields(cls)}
            if set(found) != names:
                raise ValueError(f"entries {sorted(set(found) ^ names)} missing or unknown")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"path {os.fspath(path)!r} holds no tuning: {error}") from None
        return cls(**{name: _as_tuple(value) for name, value in found.items()})

    def plot(self) -> Figure:
        """Draws the paper's figure 10: quality by threshold with its fit, and the deviations.

        Returns:
            A matplotlib figure. Right: of how many images the quality at `threshold` is within so
            much of the target, for the sample and for held-out images.

        Raises:
            ImportError: without matplotlib (the extra `plot`).
        """
        figure = new_figure(10, 4)
        left, right = figure.subplots(1, 2)
        for row in self.ssim:
            left.plot(self.thresholds, row, ".", color="grey", alpha=0.4)
        along = np.linspace(min(self.thresholds), max(self.thresholds), 101)
        left.plot(along, _fit(self.thresholds, self.ssim)(along), label="second degree fit")
        left.axhline(self.target_ssim, linestyle=":", color="black", label="target")
        left.axvline(self.threshold, linestyle="--", color="black", label="chosen")
        left.set_xlabel("projective field threshold")
        left.set_ylabel("SSIM")
        left.legend()
        for name, values in (("sample", self.at_threshold), ("held out", self.held_out)):
            if values:
                deviation = np.sort(np.asarray(values) - self.target_ssim)
                share = 100 * np.arange(1, len(deviation) + 1) / len(deviation)
                right.step(deviation, share, where="post", label=f"{name} ({len(deviation)})")
        right.axvline(0, linestyle=":", color="black")
        right.set_xlabel("SSIM above target")
        right.set_ylabel("cumulative share of images, %")
        right.legend()
        return figure


def as_grids(call: Call) -> tuple[Any, ...]:
    """A call's windows as a `Tuning` has them."""
    grids = [grid for grid in call.grids if isinstance(grid, WindowGrid)]
    return tuple((grid.shape, grid.window, grid.stride) for grid in grids)


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def sample(images: Tensor | Iterable[Any], limit: int) -> Iterator[Tensor]:
    """The first images of a source, each (1, ...).

    Args:
        images: a tensor (N, ...), or an iterable of such tensors or of single images: tensors of
            three dimensions in an iterable are images (C, H, W). Of tuples and lists, such as a
            DataLoader's, the first entry.
        limit: how many at most.

    Raises:
        TypeError: for anything else.
    """
    given = 0
    for item in [images] if isinstance(images, Tensor) else images:
        batch = item[0] if isinstance(item, (tuple, list)) and item else item
        if not isinstance(batch, Tensor):
            raise TypeError(
                "images must be a tensor or an iterable of tensors (or of tuples that start with "
                f"one), but holds {type(batch).__name__}"
            )
        if batch.dim() == 3 and batch is not images:
            batch = batch[None]
        for row in batch:
            if given == limit:
                return
            given += 1
            yield row[None]


def tuned(
    maps: Callable[[Tensor, float], Tensor],
    images: list[Tensor],
    held_out: list[Tensor],
    target_ssim: float,
    thresholds: tuple[float, ...],
    done: Callable[[], Any],
) -> tuple[float, list[list[float]], list[float], list[float]]:
    """Tries thresholds on a sample and chooses one: where the fitted curve meets the target.

    Where the sample's mean misses it there, the next larger threshold tried whose mean does not.

    Args:
        maps: gives the heat map of an image at a threshold.
        images: the sample.
        held_out: images that are only measured.
        target_ssim: the quality asked for.
        thresholds: the thresholds to try.
        done: told of every image.

    Returns:
        The chosen threshold; the quality of every image at every threshold; that of the sample
        and of the held-out images at the chosen one.
    """
    if not 0 < target_ssim <= 1:
        raise ArgumentError(f"target_ssim must be above 0 and at most 1, not {target_ssim}")
    if len(set(thresholds)) < 3 or not all(0 < t <= 1 for t in thresholds):
        raise ArgumentError(
            f"thresholds must be three or more numbers above 0 and at most 1, not {thresholds}"
        )
    if not images:
        raise ArgumentError("images must hold one image at least, but is empty")
    metrics()  # missing, it is said before any map is made
    exact: list[Tensor] = []
    table: list[list[float]] = []
    for image in images:
        exact.append(maps(image, 1.0))
        table.append([_ssim(exact[-1], maps(image, threshold)) for threshold in thresholds])
        done()
    threshold = chosen(thresholds, table, target_ssim)
    own = [_ssim(t, maps(image, threshold)) for image, t in zip(images, exact, strict=True)]
    # Quality falls in steps, as patches are cropped to whole cells, and the curve runs above some.
    columns = {
        **dict(zip(thresholds, zip(*table, strict=True), strict=True)),
        1.0: [1.0] * len(own),
    }
    for tried, column in sorted(columns.items()):
        if float(np.nanmean(own)) >= target_ssim - 1e-9:
            break
        if tried > threshold:
            threshold, own = tried, list(column)
    others: list[float] = []
    for image in held_out:
        others.append(_ssim(maps(image, 1.0), maps(image, threshold)))
        done()
    return threshold, table, own, others


def _ssim(exact: Tensor, approximate: Tensor) -> float:
    return ssim(exact.double().cpu().numpy(), approximate.double().cpu().numpy())


def chosen(thresholds: Iterable[float], table: Any, target_ssim: float) -> float:
    """The smallest threshold, to a hundredth, from which on the fitted quality meets the target."""
    thresholds = tuple(thresholds)
    fit = _fit(thresholds, table)
    steps = np.arange(100, round(100 * min(thresholds)) - 1, -1) / 100
    missed = np.flatnonzero(fit(steps[1:]) < target_ssim - 1e-9)  # up to rounding
    return float(steps[missed[0] if len(missed) else -1])


def _fit(thresholds: Iterable[float], table: Any) -> Callable[[Any], Floats]:
    """The second degree curve through all points, never above 1."""
    rows = np.asarray(table, dtype=np.float64)
    x = np.broadcast_to(tuple(thresholds), rows.shape).reshape(-1)
    y = rows.reshape(-1)
    finite = np.isfinite(y)
    if np.unique(x[finite]).size < 3:
        raise ArgumentError("images must have finite outcomes, at three thresholds at least")
    curve = Polynomial.fit(x[finite], y[finite], 2)
    return lambda at: np.minimum(curve(np.asarray(at, dtype=np.float64)), 1.0)


def torch_version() -> str:
    """The version of PyTorch without its build."""
    return str(torch.__version__).partition("+")[0]
