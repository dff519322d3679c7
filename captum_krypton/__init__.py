"""Occlusion attributions for Captum, many times sooner (KRYPTON, SIGMOD 2019)."""

from ._arguments import PREDICTED, ArgumentError
from ._drilldown import DrillDown
from ._explain import Explanation
from ._heatmap import OcclusionMap, Report
from ._occlusion import KryptonFallbackWarning, KryptonOcclusion
from ._ops import BackendInfo, KryptonBackendWarning, backend_info
from ._quality import ssim
from ._refine import Budget
from ._tuning import Tuning

__version__ = "0.1.0"

__all__ = [
    "PREDICTED",
    "ArgumentError",
    "BackendInfo",
    "Budget",
    "DrillDown",
    "Explanation",
    "KryptonBackendWarning",
    "KryptonFallbackWarning",
    "KryptonOcclusion",
    "OcclusionMap",
    "Report",
    "Tuning",
    "backend_info",
    "ssim",
]
