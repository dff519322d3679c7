"""Maps by Captum's own path where there is no other, and what is said then."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

from ._approximate import Approximation
from ._call import Call, OcclusionMap, averaged
from ._engine import Engine
from ._run import Fallback, naive_maps

__all__ = ["FallbackWarnings", "KryptonFallbackWarning", "averaged_maps"]


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


def averaged_maps(
    engine: Engine,
    warn: FallbackWarnings,
    calls: Sequence[Call],
    show_progress: bool | None,
    approximation: Approximation,
) -> tuple[OcclusionMap, ...]:
    """The map of each input, averaged over calls that differ in their baselines alone.

    Args:
        engine: makes the maps.
        warn: told why it does not.
        calls: the checked arguments.
        show_progress: whether to show a progress bar over the windows of each; None for late ones.
        approximation: how the maps may differ from the exact ones.
    """
    try:
        sampled = engine.samples(calls, show_progress, approximation)
    except Fallback as fallback:
        warn(fallback)
        forward, reason = engine.forward, str(fallback)
        sampled = [naive_maps(forward, call, reason, show_progress) for call in calls]
    return tuple(map(averaged, zip(*sampled, strict=True)))


def _callers_level() -> int:
    """The stack level of the first caller outside this package, Captum and torch."""
    inside = ("captum_krypton.", "captum.", "torch.")
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and f"{frame.f_globals.get('__name__')}.".startswith(inside):
        level, frame = level + 1, frame.f_back
    return level
