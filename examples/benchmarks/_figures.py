"""The look of the figures: readable on a phone, and on a light page as on a dark one."""

from __future__ import annotations

from matplotlib.figure import Figure

WIDTH = 5.2  # inches: a phone shows the letters at about their size
OURS, THEIRS = "#e8720c", "#3b8bd0"
_GREY = "#7d8288"  # stands out from white and from the dark page alike

STYLE = {
    "font.size": 11,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.facecolor": "none",
    "legend.edgecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": _GREY,
    "grid.alpha": 0.35,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _GREY
    ),
}


def save(figure: Figure, output: str) -> None:
    """Writes a figure without a background, so that the page's own shows."""
    figure.savefig(output, dpi=140, transparent=True)
