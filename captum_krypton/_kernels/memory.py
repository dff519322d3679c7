"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable

__all__ = ["trim"]


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """The C library's own function; only glibc has it."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None
    return found


def trim() -> None:
    """Gives memory that was freed back to the system, where the C library can.

    It keeps freed blocks of up to 32 MiB, and blocks that still live lie between them. What was
    freed for one size of patches is then of little use for another, and the process grows.
    """
    function = _malloc_trim()
    if function is not None:
        function(0)
