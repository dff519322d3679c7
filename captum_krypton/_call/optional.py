"""Libraries that a map can do without, imported where they are used."""

from __future__ import annotations

import importlib
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["new_figure", "picture_png", "require"]


def require(module: str, extra: str, used_by: str) -> Any:
    """A module of a library that is not installed with this package.

    Args:
        module: its name.
        extra: the extra of this package that installs it.
        used_by: what needs it, for the message.

    Raises:
        ImportError: where the library is not installed; it says how to install it. A library that
            is there and fails says so itself.
    """
    library = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != library:
            raise
        raise ImportError(
            f"{used_by} needs {library}, which is not installed: "
            f"pip install 'captum-krypton[{extra}]'"
        ) from error


def new_figure(width: float, height: float) -> Figure:
    """An empty matplotlib figure of so many inches.

    Raises:
        ImportError: without matplotlib (the extra `plot`).
    """
    library = require("matplotlib.figure", "plot", "plot")
    made: Figure = library.Figure(figsize=(width, height), layout="constrained")
    # Notebooks show it whether or not pyplot was imported before. Not in a subclass: Weights &
    # Biases takes figures by the module of their class.
    vars(made)["_repr_png_"] = partial(picture_png, made)
    return made


def picture_png(figure: Figure) -> bytes:
    """A figure as a PNG."""
    made = BytesIO()
    figure.savefig(made, format="png", dpi=110)
    return made.getvalue()
