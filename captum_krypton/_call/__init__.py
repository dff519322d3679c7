"""What is asked and what is answered.

In: Captum's arguments. Out: a checked `Call`, its windows; an `OcclusionMap` and its `Report`.

May use: operators.
"""

from .arguments import (
    PREDICTED,
    ArgumentError,
    Call,
    PatchMean,
    Predicted,
    make_call,
    signature,
)
from .display import row_table
from .features import Features, make_features, make_region_call
from .heatmap import OcclusionMap, averaged, map_of, mean_of
from .optional import new_figure, require
from .outcome import (
    Part,
    difference,
    distances,
    part_of,
    part_target,
    resolve_target,
    row_target,
    tolerance,
)
from .progress_bar import progress
from .report import ImageReport, Report
from .settings import Settings
from .windows import WindowGrid, Windows

__all__ = [
    "PREDICTED",
    "ArgumentError",
    "Call",
    "Features",
    "ImageReport",
    "OcclusionMap",
    "Part",
    "PatchMean",
    "Predicted",
    "Report",
    "Settings",
    "WindowGrid",
    "Windows",
    "averaged",
    "difference",
    "distances",
    "make_call",
    "make_features",
    "make_region_call",
    "map_of",
    "mean_of",
    "new_figure",
    "part_of",
    "part_target",
    "progress",
    "require",
    "resolve_target",
    "row_table",
    "row_target",
    "signature",
    "tolerance",
]
