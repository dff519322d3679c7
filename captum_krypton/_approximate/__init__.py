"""TODO."""

from .drilldown import DrillDown
from .quality import ssim
from .refine import Budget
from .strategy import Approximate, Approximation, Windows, approximate, growing
from .tuning import THRESHOLDS, Tuning, as_grids, sample, torch_version, tuned

__all__ = [
    "Approximate",
    "Approximation",
    "Budget",
    "DrillDown",
    "THRESHOLDS",
    "Tuning",
    "Windows",
    "approximate",
    "as_grids",
    "growing",
    "sample",
    "ssim",
    "torch_version",
    "tuned",
]
