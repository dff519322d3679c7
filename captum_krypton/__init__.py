"""Occlusion attributions for Captum, many times sooner (KRYPTON, SIGMOD 2019)."""

from ._arguments import PREDICTED, ArgumentError
from ._explain import Explanation
from ._heatmap import OcclusionMap, Report
from ._occlusion import KryptonFallbackWarning, KryptonOcclusion
from ._ops import BackendInfo, KryptonBackendWarning, backend_info

__version__ = "0.1.0"

__all__ = [
    "PREDICTED",
    "ArgumentError",
    "BackendInfo",
    "Explanation",
    "KryptonBackendWarning",
    "KryptonFallbackWarning",
    "KryptonOcclusion",
    "OcclusionMap",
    "Report",
    "backend_info",
]
