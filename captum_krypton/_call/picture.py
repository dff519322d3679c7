"""Pictures of maps: along one axis, over an image, through a volume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from .optional import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Layer", "Style", "draw"]

Array = np.ndarray[Any, Any]
Edges = tuple[float, float]

_MAPS = {"drop": "RdBu_r", "paper": "jet_r"}  # of colours, by scale
_ROUNDING = 1e-6  # of an outcome: a smaller change is none
_FAINT = 0.5  # how opaque an overlay in the paper's colours is


@dataclass(frozen=True)
class Layer:
    """What of a map is drawn: one image's outcomes, where they lie, and what they are of.

    Attributes:
        scores: along one, two or three axes of the input; not a number where there is none.
        reference: the outcome of the untouched input.
        edges: for each axis where the first of them begins and the last ends, in cells.
        sizes: the input's cells along each axis.
    """

    scores: Array
    reference: float
    edges: tuple[Edges, ...]
    sizes: tuple[int, ...]

    @cached_property
    def drop(self) -> Array:
        """How far the outcome falls below that of the untouched input."""
        found: Array = self.reference - self.scores
        return found

    @cached_property
    def largest(self) -> float:
        """The largest change in either direction; 1 where nothing changes but by rounding."""
        sizes = np.abs(self.drop[np.isfinite(self.drop)])
        found = float(sizes.max(initial=0.0))
        return found if found > _ROUNDING * abs(self.reference) else 1.0

    def scaled(self, axis: int, size: int) -> Edges:
        """The edges along an axis of a picture of another size."""
        first, last = self.edges[axis]
        return first * size / self.sizes[axis], last * size / self.sizes[axis]

    def centres(self, axis: int, size: int) -> Array:
        """The middle of each score along an axis of a picture of a size."""
        first, last = self.scaled(axis, size)
        count = self.scores.shape[axis]
        found: Array = first + (np.arange(count) + 0.5) * (last - first) / count
        return found


@dataclass(frozen=True)
class Style:
    """How a map is drawn; see `OcclusionMap.plot`."""

    scale: str = "drop"
    cmap: Any = None
    limits: tuple[float, float] | None = None
    alpha: float = 0.85
    contours: int = 0
    label: str = ""
    unit: str = ""

    def __post_init__(self) -> None:
        if self.scale not in _MAPS:
            raise ValueError(f"scale must be one of {sorted(_MAPS)}, not {self.scale!r}")
        if self.limits is not None and not self.limits[0] < self.limits[1]:
            raise ValueError(f"limits must be (low, high) with low < high, not {self.limits}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be in 0..1, not {self.alpha}")

    @property
    def colours(self) -> Any:
        """The colour map."""
        return _MAPS[self.scale] if self.cmap is None else self.cmap

    def values(self, layer: Layer) -> Array:
        """What the colours stand for."""
        return layer.drop if self.scale == "drop" else layer.scores

    def range(self, layer: Layer) -> tuple[float, float]:
        """The values at the ends of the colours."""
        if self.limits is not None:
            return self.limits
        if self.scale == "paper":
            return paper_range(layer.reference)
        return -layer.largest, layer.largest

    def opacity(self, layer: Layer) -> Array:
        """How opaque each value is over an image: it follows the effect."""
        there = np.isfinite(layer.drop)
        if self.scale == "paper":
            return _FAINT * there
        low, high = self.range(layer)
        most = max(abs(low), abs(high)) or 1.0
        return self.alpha * np.clip(np.abs(np.where(there, layer.drop, 0)) / most, 0, 1)

    def bar(self, layer: Layer) -> str:
        """What the bar of colours says."""
        what = self.label or "the outcome"
        unit = f" ({self.unit})" if self.unit else ""
        if self.scale == "drop":
            return f"drop of {what}{unit}"
        return f"{what} with the window covered{unit}"

    def title(self, layer: Layer) -> str:
        """The class and its outcome."""
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.label or 'outcome'}: {layer.reference:.3g}{unit}"


def paper_range(p: float) -> tuple[float, float]:
    """The paper's colour scale for an outcome of `p`: 0.75 p to min(1, 1.25 p)."""
    if 0 < p <= 1:
        return 0.75 * p, min(1.0, 1.25 * p)
    margin = 0.25 * abs(p) if p and math.isfinite(p) else 1.0
    centre = p if math.isfinite(p) else 0.0
    return centre - margin, centre + margin


def draw(layer: Layer, image: Any, style: Style, axes: Axes | None) -> Figure:
    """Draws a map, in panels of a new figure, or the overlay alone in axes that are given."""
    drawing = {1: _signal, 2: _image, 3: _volume}[layer.scores.ndim]
    return drawing(layer, image, style, axes)


def _image(layer: Layer, image: Any, style: Style, axes: Axes | None) -> Figure:
    picture = None if image is None else as_picture(image)
    size = layer.sizes if picture is None else picture.shape[:2]
    if axes is not None or picture is None:
        panels = [new_figure(5, 4).subplots() if axes is None else axes]
    else:
        panels = list(new_figure(12, 4).subplots(1, 3))
        _show_picture(panels[0], picture)
        panels[0].set_title("image")
        _show_map(panels[1], layer, style, size, over=False)
        panels[1].set_title(style.bar(layer))
    if picture is not None:
        _show_picture(panels[-1], picture)
    drawn = _show_map(panels[-1], layer, style, size, over=picture is not None)
    panels[-1].set_title(style.title(layer))
    return _finished(panels, drawn, layer, style)


def _volume(layer: Layer, image: Any, style: Style, axes: Axes | None) -> Figure:
    """Three slices through the largest change."""
    if axes is not None:
        raise ValueError("ax is for maps along one or two axes: a volume has three panels")
    volume = None if image is None else as_volume(image)
    size = layer.sizes if volume is None else volume.shape
    changes = np.where(np.isfinite(layer.drop), np.abs(layer.drop), -1)
    place = np.unravel_index(int(changes.argmax()), layer.scores.shape)
    panels = list(new_figure(12, 4.2).subplots(1, 3))
    shown = replace(style, limits=style.range(layer))  # colours mean the same in every panel
    for normal, panel in enumerate(panels):
        across = tuple(axis for axis in range(3) if axis != normal)
        cell = int(layer.centres(normal, size[normal])[place[normal]])
        cell = min(max(cell, 0), size[normal] - 1)
        flat = Layer(
            layer.scores.take(place[normal], normal),
            layer.reference,
            tuple(layer.edges[axis] for axis in across),
            tuple(layer.sizes[axis] for axis in across),
        )
        if volume is not None:
            _show_picture(panel, volume.take(cell, normal))
        sizes = tuple(size[axis] for axis in across)
        drawn = _show_map(panel, flat, shown, sizes, over=volume is not None)
        panel.set_title(f"{'zyx'[normal]} = {cell}")
    panels[0].figure.suptitle(style.title(layer))
    return _finished(panels, drawn, layer, style)


def _signal(layer: Layer, image: Any, style: Style, axes: Axes | None) -> Figure:
    """The trace over the map's colours, and the map under it."""
    trace = None if image is None else as_trace(image)
    length = layer.sizes[0] if trace is None else trace.shape[0]
    if axes is not None or trace is None:
        panels = [new_figure(9, 2.5).subplots() if axes is None else axes]
    else:
        heights = {"height_ratios": [3, 1]}
        panels = list(new_figure(9, 4).subplots(2, 1, sharex=True, gridspec_kw=heights))
    low, high = style.range(layer)
    values, (first, last) = style.values(layer), layer.scaled(0, length)
    colours = {"cmap": style.colours, "vmin": low, "vmax": high, "aspect": "auto"}
    strip = {**colours, "interpolation": "nearest"}
    if trace is not None:
        panel = panels[0]
        margin = 0.05 * float(np.ptp(trace)) or 1.0
        bottom, top = float(trace.min()) - margin, float(trace.max()) + margin
        opacity = style.opacity(layer)[None]
        drawn = panel.imshow(
            values[None], alpha=opacity, extent=(first, last, bottom, top), zorder=0, **strip
        )
        panel.plot(np.arange(length) + 0.5, trace, color="0.1", linewidth=0.8)
        panel.set(ylim=(bottom, top))
    if trace is None or axes is None:
        drawn = panels[-1].imshow(values[None], extent=(first, last, 0, 1), **strip)
        panels[-1].set_yticks([])
    panels[-1].set(xlim=(0, length), xlabel="cell")
    panels[0].set_title(style.title(layer))
    return _finished(panels, drawn, layer, style, framed=True)


def _show_picture(panel: Axes, picture: Array) -> None:
    height, width = picture.shape[:2]
    panel.imshow(picture, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))


def _show_map(
    panel: Axes,
    layer: Layer,
    style: Style,
    size: Sequence[int],
    *,
    over: bool,
) -> Any:
    """Draws a map in pixels of a picture of a size; `over` it where there is one."""
    (top, bottom), (left, right) = (layer.scaled(axis, size[axis]) for axis in (0, 1))
    low, high = style.range(layer)
    values = np.ma.masked_invalid(style.values(layer))
    drawn = panel.imshow(
        values,
        cmap=style.colours,
        vmin=low,
        vmax=high,
        alpha=style.opacity(layer) if over else None,
        extent=(left, right, bottom, top),
        interpolation="nearest",
    )
    if style.contours and min(layer.scores.shape) > 1:
        centres = [layer.centres(axis, size[axis]) for axis in (1, 0)]
        panel.contour(*centres, values, style.contours, colors="0.2", linewidths=0.7)
    panel.set(xlim=(0, size[1]), ylim=(size[0], 0))
    return drawn


def _finished(
    panels: list[Any], drawn: Any, layer: Layer, style: Style, *, framed: bool = False
) -> Figure:
    """With the bar of colours, whose ends say whether values lie beyond them."""
    if not framed:
        for panel in panels:
            panel.set_axis_off()
    low, high = style.range(layer)
    values = style.values(layer)
    beyond = (bool((values < low).any()), bool((values > high).any()))
    ends = {(False, False): "neither", (True, False): "min", (False, True): "max"}
    figure: Figure = panels[0].figure
    figure.colorbar(
        _opaque(drawn), ax=panels, label=style.bar(layer), extend=ends.get(beyond, "both")
    )
    return figure


def _opaque(drawn: Any) -> Any:
    """What a bar is made from: the colours without the opacity of the overlay."""
    from matplotlib.cm import ScalarMappable

    return ScalarMappable(drawn.norm, drawn.cmap)


def _array(image: Any) -> Array:
    found: Array = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image)
    return found.astype(np.float64)


def _in_range(array: Array) -> Array:
    """Values in 0..1: as they are, of 0..255, or stretched where some are negative."""
    if array.min() < 0:  # normalised
        return _stretched(array)
    if array.max() > 1:
        array = array / max(255.0, float(array.max()))
    return np.clip(array, 0, 1)


def _stretched(array: Array) -> Array:
    found: Array = (array - array.min()) / max(float(np.ptp(array)), 1e-12)
    return found


def as_picture(image: Any) -> Array:
    """An array that matplotlib draws: (H, W) or (H, W, 3), in 0..1."""
    array = _array(image)
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ValueError(f"image must be (H, W), (H, W, 3) or (3, H, W), not {tuple(array.shape)}")
    return _in_range(array)


def as_volume(image: Any) -> Array:
    """A volume (D, H, W), stretched to 0..1; the mean of its channels where there are some."""
    array = _array(image)
    while array.ndim > 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 4:
        array = array.mean(0)
    if array.ndim != 3:
        raise ValueError(f"image must be (D, H, W) or (C, D, H, W), not {tuple(array.shape)}")
    return _stretched(array)


def as_trace(image: Any) -> Array:
    """A signal (L, C), from (L,), (C, L) or (1, C, L)."""
    array = _array(image)
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim not in (1, 2):
        raise ValueError(f"image must be (L,) or (C, L) for a signal, not {tuple(array.shape)}")
    return array[:, None] if array.ndim == 1 else array.T
