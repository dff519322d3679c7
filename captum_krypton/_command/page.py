"""Many occlusion maps as one HTML file, to be looked through in a browser.

The file needs no network and no other file. A photograph of 224 x 224 pixels with 400 windows takes
about 20 kB of it, 500 of them 10 MB. A larger one is made smaller, to 640 pixels along its longer
side, and takes 60 to 100 kB. Browsers decode a picture, and the page colours a map, when it comes
into view.
"""

from __future__ import annotations

import hashlib
import html
import io
import math
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .files import replace_with

__all__ = ["PageEntry", "write_page"]

_LONGEST = 640  # pixels of a picture's longer side
_QUALITY = 85  # of a JPEG
_LEVELS = 127  # colours on each side of zero
_OPAQUE = 0.92  # at the ends of the scale
# The middle and the end of each side: red and blue of ColorBrewer's RdBu, which people with any
# kind of colour blindness tell apart.
_RISES = (103, 169, 207), (33, 102, 172)
_DROPS = (239, 138, 98), (178, 24, 43)
_NO_NUMBER = (128, 128, 128, 215)
_MARKER = re.compile(r"\{\{(\w+)\}\}")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]|[\ud800-\udfff]")
_Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class PageEntry:
    """One image and its occlusion map.

    Args:
        name: of the file, or its path.
        label: the class that the map explains.
        outcome: of the untouched image.
        drop: the largest drop of the outcome under a window.
        seconds: that the map took.
        picture: uint8, (H, W, 3).
        heat: the drop of the outcome with the window covered, float, (rows, columns). A window
            without a number has NaN.
        extent: left, right, bottom and top of the map in pixels of the picture, so that every
            number stands at the middle of its window, as in `OcclusionMap.extent`. The map may
            reach over the picture's edge.
        estimated_ssim: the estimated structural similarity to the exact map, None without one.

    Raises:
        ValueError: where `picture`, `heat` or `extent` is none of these.
    """

    name: str
    label: str
    outcome: float
    drop: float
    seconds: float
    picture: _Array
    heat: _Array
    extent: tuple[float, float, float, float]
    estimated_ssim: float | None = None

    def __post_init__(self) -> None:
        """Refuses what cannot be drawn."""
        picture, heat = self.picture, self.heat
        if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
            raise ValueError(
                f"picture of {self.name!r} must be (H, W, 3), not {picture.shape}: "
                "give a greyscale picture three equal channels"
            )
        if picture.dtype != np.uint8:
            raise ValueError(
                f"picture of {self.name!r} must be uint8, not {picture.dtype}: scale it to 0..255"
            )
        if heat.ndim != 2 or 0 in heat.shape or heat.dtype.kind != "f":
            raise ValueError(
                f"heat of {self.name!r} must be floats (rows, columns), not {heat.dtype} "
                f"{heat.shape}: give the map of one image and one outcome"
            )
        left, right, bottom, top = self.extent
        if not (all(map(math.isfinite, self.extent)) and left < right and top < bottom):
            raise ValueError(
                f"extent of {self.name!r} must be left < right and bottom > top in pixels, not "
                f"{self.extent}: give (left, right, bottom, top)"
            )

    @property
    def limit(self) -> float:
        """The largest size of a number of the map; 0 where there is none."""
        sizes = np.abs(self.heat[np.isfinite(self.heat)])
        return float(sizes.max()) if sizes.size else 0.0


def write_page(path: Path, entries: Sequence[PageEntry], title: str) -> None:
    """Writes a page that shows maps, sorts and filters them.

    It is written beside its place and moved there, so that no half of a page is ever seen.

    Args:
        path: the HTML file; one that is there is replaced.
        entries: what to show, in this order. None: the page says so.
        title: of the page.

    Raises:
        OSError: where the file cannot be written.
    """
    head, tail = _frame(entries, title)

    def write(place: Path) -> None:
        with place.open("xb") as file:
            file.write(head.encode())
            for entry in entries:
                file.write(_card(entry).encode())
            file.write(tail.encode())

    replace_with(path, write)


def _frame(entries: Sequence[PageEntry], title: str) -> tuple[str, str]:
    """The page in front of its cards, and what follows them."""
    template = resources.files(__package__).joinpath("page.html").read_text("utf-8")
    ramp = _png(colours()[None, :-1])
    template = _fill(template, {"ramp": ramp}, keep=True)
    policy = " ".join(
        [
            "default-src 'none'; img-src data:;",
            f"style-src '{_hash(template, 'style')}';",
            f"script-src '{_hash(template, 'script')}';",
            "base-uri 'none'; form-action 'none'",
        ]
    )
    labels = Counter(entry.label for entry in entries)
    missing = any(not np.isfinite(entry.heat).all() for entry in entries)
    head, tail = template.split("{{cards}}")
    values = {
        "title": _text(title),
        "policy": policy,
        "summary": _summary(entries, len(labels)),
        "colours": " ".join(map(str, colours().ravel().tolist())),
        "labels": "".join(
            f'<option value="{_text(label)}">{_text(label)} ({count})</option>'
            for label, count in sorted(labels.items(), key=lambda item: item[0].casefold())
        ),
        "gap": "" if missing else " hidden",
        "empty": " hidden" if entries else "",
        "full": "" if entries else " hidden",
    }
    return _fill(head, values), _fill(tail, values)


def _fill(template: str, values: dict[str, str], keep: bool = False) -> str:
    """The template with a value for each marker; with `keep`, others stay."""

    def value(marker: re.Match[str]) -> str:
        return values.get(marker[1], marker[0]) if keep else values[marker[1]]

    return _MARKER.sub(value, template)


def _hash(page: str, element: str) -> str:
    """What a content security policy calls the text of the one element of a kind."""
    found = re.findall(rf"<{element}>(.*?)</{element}>", page, re.S)
    (content,) = found
    return f"sha256-{b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _summary(entries: Sequence[PageEntry], labels: int) -> str:
    seconds = sum(entry.seconds for entry in entries)
    images = "1 image" if len(entries) == 1 else f"{len(entries)} images"
    classes = "1 class" if labels == 1 else f"{labels} classes"
    return f"{images}, {classes}, {number(seconds)} s in all" if entries else "No images"


def _card(entry: PageEntry) -> str:
    """An image with its map and its numbers; the numbers are attributes for the script, too."""
    height, width = entry.picture.shape[:2]
    left, right, bottom, top = entry.extent
    data = {
        "outcome": entry.outcome,
        "drop": entry.drop,
        "seconds": entry.seconds,
        "limit": entry.limit,
        "size": f"{width} {height}",
        "shape": "{} {}".format(*entry.heat.shape),
        "extent": " ".join(f"{edge:.6g}" for edge in entry.extent),
        "heat": b64encode(entry.heat.astype("<f4").tobytes()).decode(),
    }
    attributes = " ".join(f'data-{key}="{value}"' for key, value in data.items())
    shown = {
        "Outcome": number(entry.outcome),
        "Largest drop": number(entry.drop),
        "Time": f"{number(entry.seconds)} s",
    }
    if entry.estimated_ssim is not None:
        shown["Estimated SSIM"] = number(entry.estimated_ssim)
    facts = "".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in shown.items())
    name, label, limit = _text(entry.name), _text(entry.label), number(entry.limit)
    return f"""<li class="card" {attributes}>
<div class="frame"><img src="{_jpeg(entry.picture)}" alt="{name}" width="{width}" \
height="{height}" loading="lazy" decoding="async"><svg class="map" viewBox="0 0 {width} {height}" \
aria-hidden="true"><svg width="{width}" height="{height}"><image href="{_map(entry)}" \
x="{left:.6g}" y="{top:.6g}" width="{right - left:.6g}" height="{bottom - top:.6g}" \
preserveAspectRatio="none"/></svg></svg></div>
<div class="scale"><span class="low">{number(-entry.limit)}</span><span class="ramp"></span>\
<span class="high">{limit}</span></div>
<h2 class="name"><bdi>{_path(entry.name)}</bdi></h2>
<p class="label"><bdi>{label}</bdi></p>
<dl>{facts}</dl>
</li>
"""


def colours() -> _Array:
    """The scale from the largest rise to the largest drop, and last what has no number.

    Opacity follows the size of the effect, so that zero shows the picture alone.

    Returns:
        Red, green, blue and opacity, uint8, (256, 4).
    """
    place = np.linspace(-1, 1, 2 * _LEVELS + 1)
    size = np.abs(place)[:, None]
    middle, end = (
        np.where(place[:, None] < 0, rises, drops)
        for rises, drops in zip(_RISES, _DROPS, strict=True)
    )
    opacity = 255 * _OPAQUE * size
    scale = np.concatenate([middle + (end - middle) * size, opacity], axis=1)
    return np.concatenate([np.rint(scale), [_NO_NUMBER]]).astype(np.uint8)


def _map(entry: PageEntry) -> str:
    """The map on its own scale, a pixel a window."""
    place = entry.heat.astype(np.float64) / (entry.limit or 1.0)
    known = np.isfinite(place)
    level = np.rint((np.where(known, place, 0.0) + 1) * _LEVELS).astype(int)
    return _png(colours()[np.where(known, level, 2 * _LEVELS + 1)])


def _png(pixels: _Array) -> str:
    return _data("png", Image.fromarray(pixels), optimize=True)


def _jpeg(picture: _Array) -> str:
    image = Image.fromarray(np.ascontiguousarray(picture))
    image.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
    return _data("jpeg", image, quality=_QUALITY, optimize=True)


def _data(kind: str, image: Image.Image, **options: Any) -> str:
    """An image as an address of its own content."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind};base64,{b64encode(file.getvalue()).decode()}"


def _text(text: str) -> str:
    """A text of whatever characters as HTML; quotes are escaped, too."""
    return html.escape(_CONTROL.sub("\ufffd", text))


def _path(name: str) -> str:
    """A name with its folders on a line of their own."""
    folder, slash, file = name.rpartition("/")
    return f"<span>{_text(folder + slash)}</span>{_text(file)}" if slash and file else _text(name)


def number(value: float) -> str:
    """Three digits that count, with a minus sign; the page's script does the same."""
    if not math.isfinite(value):
        return "no number"
    value += 0.0  # no minus zero
    shown = f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
    digits, _, exponent = shown.partition("e")
    shown = f"{digits}e{int(exponent)}" if exponent else digits
    return shown.replace("-", "\N{MINUS SIGN}")
