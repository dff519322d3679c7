"""A figure that a notebook shows."""

from __future__ import annotations

from matplotlib.figure import Figure

from .optional import picture_png

__all__ = ["ShownFigure"]


class ShownFigure(Figure):
    """A figure that a notebook shows as a picture, whether or not pyplot was imported before."""

    def _repr_png_(self) -> bytes:
        return picture_png(self)
