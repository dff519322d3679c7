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

from .display import beside, fact_table, picture_tag
from .optional import picture_png, require
from .picture import Layer, Style, draw
from .record import Record, as_array, read_record, write_record
from .report import ImageReport, Report
from .windows import WindowGrid, Windows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["OcclusionMap", "averaged", "map_of", "mean_of"]


@dataclass(frozen=True, repr=False)
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

    @property
    def drop(self) -> Tensor:
        """By how much each window lowers the outcome: `reference - scores`, as `scores` in shape.

        Positive where the network relies on what the window covers. float32, or float64 for scores
        of that type: bytes would wrap around, and 16 bits lose digits.
        """
        windows = self.scores.dim() - self.reference.dim()
        reference = self.reference.reshape(*self.reference.shape, *[1] * windows)
        kind = torch.promote_types(self.scores.dtype, torch.float32)
        return (reference.double() - self.scores.double()).to(kind)

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
            first, last = self._edges(axis)
            edges.append((first * scale, last * scale))
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
        self,
        image: Any = None,
        *,
        example: int = 0,
        output: int | tuple[int, ...] | None = None,
        channel: int | None = None,
        label: str = "",
        unit: str = "",
        scale: str = "drop",
        cmap: Any = None,
        limits: tuple[float, float] | None = None,
        alpha: float = 0.85,
        contours: int = 0,
        ax: Axes | None = None,
    ) -> Figure:
        """Draws the map, and over an image, a volume or a signal where one is given.

        Colours stand for the drop of the outcome: red where covering lowers it, blue where it
        raises it, white for none, on a scale that is the same in both directions. Over an image,
        colours are as opaque as the effect is large. A map of regions is drawn as its attribution.

        - Over an image: the image, the map, and the map over the image, all on one geometry.
        - Through a volume: three slices through the largest change.
        - Along a signal: the trace over the map's colours, and the map under it.

        Args:
            image: what to draw under the map, an array or a tensor: (H, W), (H, W, 3) or
                (3, H, W); for a volume (D, H, W) or (C, D, H, W); for a signal (L,) or (C, L).
                Values are in 0..1 or 0..255, or normalised. It may have another size than the
                input. Left out: only the map.
            example: which example of the batch.
            output: which output, for a map of `target=None`.
            channel: which channel's windows, where there are some for each.
            label: what the outcome is, such as the class: the title, and part of the bar's text.
            unit: of the outcome, such as "probability".
            scale: "drop", or "paper": the outcome with the window covered, in jet_r from 0.75 p to
                min(1, 1.25 p), where p is that of the untouched input (p -+ 0.25 |p| where p is no
                probability).
            cmap: matplotlib's colour map instead of the scale's ("RdBu_r", "jet_r").
            limits: the values at the ends of the colours; what lies beyond is said by an arrow at
                the bar's end. Default: the largest change, in both directions.
            alpha: how opaque the strongest colour is over an image.
            contours: how many contour lines to draw.
            ax: axes to draw the last panel in, for maps along one or two axes.

        Returns:
            The matplotlib figure, which a notebook shows.

        Raises:
            ValueError: for several outputs without `output`, for windows of several channels
                without `channel`, and for arguments out of range.
            ImportError: without matplotlib (the extra `plot`).
        """
        style = Style(scale, cmap, limits, alpha, contours, label, unit)
        return draw(self._layer(example, output, channel), image, style, ax)

    def _layer(
        self, example: int, output: int | tuple[int, ...] | None, channel: int | None
    ) -> Layer:
        scores, reference = self.scores[example], self.reference[example]
        if output is not None:
            index = output if isinstance(output, tuple) else (output,)
            scores, reference = scores[index], reference[index]
        if reference.dim() > 0:
            raise ValueError(
                f"output must say which of the outputs {tuple(reference.shape)} to draw"
            )
        scores, base, grid = scores.double().cpu(), float(reference), self.grid
        sizes = tuple(grid.shape[axis] for axis in grid.axes)
        if not isinstance(grid, WindowGrid):
            cells = grid.spread(base - scores[None])[0]
            channels = tuple(range(len(grid.shape) - len(sizes)))
            drop = cells.nanmean(channels) if channels else cells
            return Layer((base - drop).numpy(), base, tuple((0.0, n) for n in sizes), sizes)
        counts = tuple(grid.counts[axis] for axis in grid.axes)
        groups = grid.total // math.prod(counts)
        if groups > 1 and channel is None:
            raise ValueError(f"channel must say which of {groups} channels' windows to draw")
        scores = scores.reshape(groups, *counts)[channel or 0]
        edges = tuple(self._edges(axis) for axis in grid.axes)
        return Layer(scores.numpy(), base, edges, sizes)

    def _edges(self, axis: int) -> tuple[float, float]:
        """Where a grid's map begins and ends along an axis, in cells."""
        grid = self._window_grid("plot")
        if grid.counts[axis] == 1:
            along = grid.along(axis)
            return float(along.start[0]), float(along.stop[0])
        first = (grid.window[axis] - grid.stride[axis]) / 2
        return first, first + grid.stride[axis] * grid.counts[axis]

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}: {value}" for name, value in self._facts().items())
        return f"<OcclusionMap {facts}>"

    def _repr_html_(self) -> str:
        """The map as a notebook shows it: its first image, and how it was made."""
        reference = self.reference[0].reshape(-1).double()
        index = np.unravel_index(int(reference.argmax()), tuple(self.reference.shape[1:]))
        facts = fact_table(self._facts())
        try:
            picture = self.plot(output=tuple(map(int, index)) or None)
        except (ImportError, ValueError):  # without matplotlib; of windows along other axes
            return facts
        return beside(facts, picture_tag(picture_png(picture), repr(self)))

    def _facts(self) -> dict[str, str]:
        grid, reference, drop = self.grid, self.reference, self.drop
        drop = drop[drop.isfinite()]
        facts = {
            "images": str(len(reference)),
            "windows": " x ".join(map(str, grid.counts)),
            "target": str(self.target),
            "outcome": f"{float(reference.flatten()[0]):.4g}" if reference.numel() == 1 else "",
            "largest drop": f"{float(drop.max()):.4g}" if drop.numel() else "",
            "path": self.report.path,
            "seconds": f"{self.report.seconds:.3g}",
        }
        if self.report.estimated_ssim not in (None, 1.0):
            facts["estimated SSIM"] = f"{self.report.estimated_ssim:.3f}"
        return {name: value for name, value in facts.items() if value}


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
