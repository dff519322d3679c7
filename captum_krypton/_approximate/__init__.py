"""Which windows to run, and what the others are.

In: something that runs windows, and the quality that is wanted. Out: maps, exact or not, and how
good they are expected to be.

May use: run, plan, call, operators.
"""

from .approximation import Approximation
from .drilldown import DrillDown
from .libraries import check_libraries
from .quality import ssim
from .refine import Budget
from .strategy import Windows, growing, make_maps, only
from .tuning import THRESHOLDS, Tuning, as_grids, sample, torch_version, tuned

__all__ = [
    "THRESHOLDS",
    "Approximation",
    "Budget",
    "DrillDown",
    "Tuning",
    "Windows",
    "as_grids",
    "check_libraries",
    "growing",
    "make_maps",
    "only",
    "sample",
    "ssim",
    "torch_version",
    "tuned",
]
