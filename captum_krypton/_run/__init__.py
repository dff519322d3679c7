"""TODO."""

from .base import Base
from .check import Noise, Stale, checked_windows, rounding_of
from .compiled import CompileCache, Compiled, default_memory_budget, signature, window_axes
from .execution import Execution
from .group import RunStatistics, Selection
from .naive import FewWindows, naive_maps, naive_scores

__all__ = [
    "Base",
    "CompileCache",
    "Compiled",
    "Execution",
    "FewWindows",
    "Noise",
    "RunStatistics",
    "Selection",
    "Stale",
    "checked_windows",
    "default_memory_budget",
    "naive_maps",
    "naive_scores",
    "rounding_of",
    "signature",
    "window_axes",
]
