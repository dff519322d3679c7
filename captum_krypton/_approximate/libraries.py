"""SciPy and scikit-image, which only approximate maps need."""

from __future__ import annotations

from typing import Any

from .._call import require

__all__ = ["check_libraries", "metrics", "scipy"]


def scipy(part: str, used_by: str = "an approximate map") -> Any:
    """A part of SciPy, such as `ndimage`.

    Raises:
        ImportError: where SciPy is not installed.
    """
    return require(f"scipy.{part}", "approximate", used_by)


def metrics() -> Any:
    """scikit-image's metrics.

    Raises:
        ImportError: where scikit-image is not installed.
    """
    return require("skimage.metrics", "approximate", "the structural similarity of maps")


def check_libraries(used_by: str) -> None:
    """Raises ImportError where a library is missing, before any window is run."""
    scipy("ndimage", used_by)
