"""What is said where a map is made by Captum's own path."""

from __future__ import annotations

import sys
import warnings

from ._run import Fallback

__all__ = ["FallbackWarnings", "KryptonFallbackWarning"]


class KryptonFallbackWarning(UserWarning):
    """A map was made by Captum's own path; the message says why."""


class FallbackWarnings:
    """Says once for each reason that a map is made by Captum's path."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, fallback: Fallback) -> None:
        reason = str(fallback)
        if fallback.quiet or reason in self._said:
            return
        self._said.add(reason)
        warnings.warn(
            f"this map is made by Captum's own path, at its speed: {reason}",
            KryptonFallbackWarning,
            stacklevel=_callers_level(),
        )


def _callers_level() -> int:
    """The stack level of the first caller outside this package, Captum and torch."""
    inside = ("captum_krypton.", "captum.", "torch.")
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and f"{frame.f_globals.get('__name__')}.".startswith(inside):
        level, frame = level + 1, frame.f_back
    return level
