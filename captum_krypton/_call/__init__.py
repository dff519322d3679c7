"""TODO."""

from .arguments import PREDICTED, ArgumentError, Call, Predicted, make_call
from .heatmap import OcclusionMap, Report, map_of
from .outcome import difference, distances, resolve_target, row_target, tolerance
from .progress_bar import progress
from .windows import WindowGrid

__all__ = [
    "ArgumentError",
    "Call",
    "OcclusionMap",
    "PREDICTED",
    "Predicted",
    "Report",
    "WindowGrid",
    "difference",
    "distances",
    "make_call",
    "map_of",
    "progress",
    "resolve_target",
    "row_target",
    "tolerance",
]
