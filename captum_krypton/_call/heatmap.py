"""Occlusion maps: the outcome at every window, and what is made of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .optional import new_figure, require
from .record import Record, as_array, read_record, write_record
from .report import ImageReport, Report
from .windows import WindowGrid, Windows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["OcclusionMap", "averaged", "map_of", "mean_of"]


@dataclass(frozen=True)
class OcclusionMap:
    """The outcome of a model at every window of one input.

    Attributes:
        scores: the paper's M (Eq. 6), the outcome with the window covered: (N, grid...) for one
            target an example, (N, outputs..., grid...) for `target=None`. The grid has one entry
            a window position along each dimension of the input; the channels are left out where
            the window spans them all.
        reference: the outcome of the untouched input, (N,) or (N, outputs...).
        grid: where the windows lie.
        target: the target that the outcome was selected with, as Captum takes it.
        report: how the map was made.
        spread: the standard deviation of the outcome over several baselines, of the shape of
            `scores`, which is their mean then; None for one baseline.
    """

    scores: Tensor
    reference: Tensor
    grid: Windows
    target: Any
    report: Report
    spread: Tensor | None = None

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the map into a file, whole or not at all: a compressed `.npz` of NumPy.

        It has the arrays `scores` and `reference`, `spread` where there is one (float32 for
        bfloat16, which NumPy lacks), and a text `map`, which is JSON: `format` ("captum-krypton
        map"), `version` (1), `dtype`, `target`, `grid` and `report`. In the target, a tuple is
        `{"tuple": [...]}`, and so are a `slice` and a `tensor` of integers. The grid has its
        `shape`, `window` and `stride`; a list of regions has its `shape` alone, and the arrays
        `boxes`, `layers` and `labels`, the last where regions are not whole boxes.

        Args:
            path: where to; an existing file is replaced. Nothing is added to its name.

        Raises:
            OSError: where it cannot be written; nothing is left behind then.
            TypeError: for a target that is none of these.
        """
        report = self.report.to_dict()
        write_record(
            path,
            Record(self.scores, self.reference, self.spread, self.grid, self.target, report),
        )

    @classmethod
    def load(cls, path: str | PathLike[str]) -> OcclusionMap:
        """The map that `save` wrote, on the CPU.

        Nothing in the file is run or unpickled, so it may come from anybody.

        Raises:
            OSError: where it cannot be read.
            ValueError: where it is no such file, not whole, or of a later version.
        """
        record = read_record(path)
        return cls(
            record.scores,
            record.reference,
            record.grid,
            record.target,
            Report.from_dict(record.report),
            record.spread,
        )

    def to_numpy(self) -> np.ndarray[Any, Any]:
        """The scores as an array on the host; float32 for bfloat16, which NumPy lacks."""
        return as_array(self.scores)

    def to_xarray(self) -> Any:
        """The map as an `xarray.Dataset`.

        Its variables are `scores`, `reference` and, where there is one, `spread`. Dimensions are
        `example`, `output` (`output_0`, `output_1` where an outcome has several dimensions), and
        those of the grid: `channel` where windows differ in it, `z`, `y` and `x`, or `region`. The
        coordinates of `z`, `y` and `x` are the middles of the windows, in cells of the input; the
        last one's is that of what it covers.

        Raises:
            ImportError: without xarray.
        """
        xarray = require("xarray", "xarray", "to_xarray")
        outputs = self.reference.dim() - 1
        names = ["output"] if outputs == 1 else [f"output_{i}" for i in range(outputs)]
        grid = self.scores.dim() - 1 - outputs
        places, coordinates = self._dimensions(grid)
        of_reference = ["example", *names]
        made = {
            "scores": ([*of_reference, *places], self.to_numpy()),
            "reference": (of_reference, as_array(self.reference)),
        }
        if self.spread is not None:
            made["spread"] = (made["scores"][0], as_array(self.spread))
        attributes = {"target": str(self.target), "path": self.report.path}
        return xarray.Dataset(made, coordinates, attributes)

    def _dimensions(self, count: int) -> tuple[list[str], dict[str, np.ndarray[Any, Any]]]:
        """The names of the last so many dimensions of `scores`, and where windows lie in them."""
        if self.grid.paired:
            return ["region"], {}
        sizes = len(self.grid.shape)
        axes = max(1, sizes - 1)
        names = ["channel"] if sizes > 1 else []
        names += [f"axis_{i}" for i in range(axes - 3)] + ["z", "y", "x"][-axes:]
        coordinates = {}
        for dim in range(sizes - count, sizes):
            along = self.grid.along(dim)
            coordinates[names[dim]] = (along.start + along.stop - 1) / 2
        return names[-count:], coordinates

    def attribution(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Captum's attribution of this map.

        The mean, over the windows that cover a cell, of the drop of the outcome.

        Args:
            dtype: what type it is to have.

        Returns:
            (outcomes, *input shape): one row an example for one target an example, one
            row an output of every example for `target=None`, as in `captum.attr.Occlusion`. Not a
            number in cells that no window covers, where windows are a list.
        """
        counts = self.grid.counts
        scores = self.scores.reshape(-1, *counts)
        reference = self.reference.reshape(-1, *([1] * len(counts)))
        shape = scores.shape[0], *self.grid.shape
        out = torch.empty(shape, dtype=dtype, device=scores.device)
        for row in range(scores.shape[0]):
            drop = reference[row].double() - scores[row].double()
            out[row] = self.grid.spread(drop[None])[0]
        return out

    def extent(self, size: tuple[int, int] | None = None) -> tuple[float, float, float, float]:
        """Where the map lies on its image, so that every number stands in the middle of its window.

        Args:
            size: height and width of the image as it is drawn; left out, those of the input.

        Returns:
            Left, right, bottom and top, in pixels: matplotlib's `extent`.

        Raises:
            ValueError: where the map does not have two window axes, or is of regions.
        """
        grid = self._window_grid("extent")
        axes = [d for d, count in enumerate(grid.counts) if count > 1]
        if len(axes) != 2:
            raise ValueError(f"a map with two window axes has an extent, not one of {grid.counts}")
        edges = []
        for axis, length in zip(axes, size or [grid.shape[d] for d in axes], strict=True):
            scale = length / grid.shape[axis]
            first = (grid.window[axis] - grid.stride[axis]) / 2
            edges.append((first * scale, (first + grid.stride[axis] * grid.counts[axis]) * scale))
        (top, bottom), (left, right) = edges
        return left, right, bottom, top

    def grid_affine(self) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        """Where the windows lie in the input, as an affine matrix.

        It takes the place of a window in the grid to the middle of the window in the input's cells,
        both counted from 0 at the middle of the first one, as NIfTI does:
        `grid_affine() @ (*place, 1)`, of n axes after the channels. For a volume with an affine
        of its own, `affine @ heat.grid_affine()` is that of `scores`.

        The last window along an axis is clipped at the border. Where `size - window` is no multiple
        of the stride, its middle is half of what was cut off nearer than the matrix says: less than
        half of a stride. `grid.along` has what every window covers.

        Returns:
            float64, (n + 1, n + 1).

        Raises:
            ValueError: where the map is of regions.
        """
        grid = self._window_grid("grid_affine")
        first = 1 if len(grid.shape) > 1 else 0
        window, stride = np.array(grid.window[first:]), grid.stride[first:]
        matrix = np.diag([*map(float, stride), 1.0])
        matrix[:-1, -1] = (window - 1) / 2
        return matrix

    def _window_grid(self, used_by: str) -> WindowGrid:
        if not isinstance(self.grid, WindowGrid):
            raise ValueError(f"{used_by} is for windows on a grid, not for {self.grid}")
        return self.grid

    def plot(
        self, image: Any = None, *, example: int = 0, output: int | tuple[int, ...] | None = None
    ) -> Figure:
        """Draws the image, the heat map and the map laid over the image.

        Colours are the paper's: jet_r from 0.75 p to min(1, 1.25 p), where p is the outcome of
        the untouched input. Where p is no probability the scale is p -+ 0.25 |p|.

        Args:
            image: what to draw under the map: (H, W), (H, W, 3) or (3, H, W), an array or a
                tensor, in 0..1 or 0..255. Left out: no picture, only the map.
            example: which example of the batch.
            output: which output, for a map of `target=None`.

        Returns:
            A matplotlib figure.

        Raises:
            ValueError: where the map does not have two window axes, is of regions, or has several
                outputs and `output` is not given.
            ImportError: without matplotlib (the extra `plot`).
        """
        scores = self.scores[example]
        reference = self.reference[example]
        if output is not None:
            index = output if isinstance(output, tuple) else (output,)
            scores, reference = scores[index], reference[index]
        if reference.dim() > 0:
            raise ValueError(
                f"output must say which of the outputs {tuple(reference.shape)} to draw"
            )
        self._window_grid("plot")
        scores = scores.squeeze()
        if scores.dim() != 2:
            raise ValueError(
                f"plot draws maps with two window axes, this one has {tuple(scores.shape)}"
            )
        heat, p = scores.float().cpu().numpy(), float(reference)
        low, high = colour_range(p)
        picture = None if image is None else as_picture(image)
        figure = new_figure(4.5 if picture is None else 12, 4)
        panels = figure.subplots(1, 1 if picture is None else 3, squeeze=False)[0]
        style = {"cmap": "jet_r", "vmin": low, "vmax": high, "interpolation": "nearest"}
        where = panels[0] if picture is None else panels[1]
        drawn = where.imshow(heat, **style)
        where.set_title("outcome with the window covered")
        if picture is not None:
            panels[0].imshow(picture, cmap="gray")
            panels[0].set_title(f"image, outcome {p:.3g}")
            height, width = picture.shape[:2]
            panels[2].imshow(picture, cmap="gray", extent=(0, width, height, 0))
            panels[2].imshow(heat, extent=self.extent((height, width)), alpha=0.5, **style)
            panels[2].set(xlim=(0, width), ylim=(height, 0))
            panels[2].set_title("overlay")
        for panel in panels:
            panel.set_axis_off()
        figure.colorbar(drawn, ax=panels[-1])
        return figure


def colour_range(p: float) -> tuple[float, float]:
    """The paper's colour scale for an outcome of `p`."""
    if 0 < p <= 1:
        return 0.75 * p, min(1.0, 1.25 * p)
    margin = 0.25 * abs(p) if p and math.isfinite(p) else 1.0
    centre = p if math.isfinite(p) else 0.0
    return centre - margin, centre + margin


def as_picture(image: Any) -> np.ndarray[Any, Any]:
    """An array that matplotlib draws: (H, W) or (H, W, 3), in 0..1."""
    array = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image)
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3):
        raise ValueError(f"image must be (H, W), (H, W, 3) or (3, H, W), not {tuple(array.shape)}")
    array = array.astype(np.float64)
    if array.min() < 0:  # a normalised tensor
        array = (array - array.min()) / max(float(np.ptp(array)), 1e-12)
    elif array.max() > 1:
        array = array / 255.0
    return np.clip(array, 0, 1)


def map_of(
    grid: Windows, scores: Tensor, reference: Tensor, target: Any, report: Report
) -> OcclusionMap:
    """The map of a grid's windows, from their outcomes (N, windows, outputs...)."""
    counts = grid.counts
    if not grid.paired and len(counts) > 1 and counts[0] == 1:
        counts = counts[1:]
    ordered = scores.movedim(1, -1)
    ordered = ordered.reshape(*ordered.shape[:-1], *counts)
    return OcclusionMap(ordered, reference, grid, target, report.shared(len(ordered)))


def averaged(maps: Sequence[OcclusionMap]) -> OcclusionMap:
    """The mean of maps that differ in their baseline; one map as it is."""
    first, *others = maps
    if not others:
        return first
    scores = torch.stack([heat.scores for heat in maps])
    reports = [heat.report for heat in maps]

    def total(name: str) -> Any:
        return sum(getattr(report, name) for report in reports)

    counted = [
        "seconds",
        "setup_seconds",
        "batches",
        "predicted_seconds",
        "checked_windows",
        "windows_evaluated",
        "windows_exact",
        "batches_replayed",
    ]
    largest = max(report.largest_check_error for report in reports)
    sums = {name: total(name) for name in counted}
    images = tuple(map(_sum_of, zip(*(report.images for report in reports), strict=True)))
    report = replace(reports[-1], largest_check_error=largest, images=images, **sums)
    spread = scores.double().std(0, correction=0).to(scores.dtype)
    mean = mean_of([heat.scores for heat in maps])
    return replace(first, scores=mean, report=report, spread=spread)


def _sum_of(reports: Sequence[ImageReport]) -> ImageReport:
    """The report of one image over several maps of it."""
    return replace(
        reports[-1],
        seconds=sum(report.seconds for report in reports),
        windows_evaluated=sum(report.windows_evaluated for report in reports),
        windows_exact=sum(report.windows_exact for report in reports),
    )


def mean_of(tensors: Sequence[Tensor]) -> Tensor:
    """The mean of tensors of one shape and type, summed in float64; one tensor as it is."""
    first, *others = tensors
    if not others:
        return first
    return torch.stack(list(tensors)).double().mean(0).to(first.dtype)
