"""Occlusion attributions for Captum, many times sooner (KRYPTON, SIGMOD 2019)."""

from . import fills
from ._ablation import (
    KryptonDataLoaderAttribution,
    KryptonFeatureAblation,
    KryptonLayerFeatureAblation,
)
from ._approximate import Budget, DrillDown, Tuning, ssim
from ._call import PREDICTED, ArgumentError, ImageReport, OcclusionMap, Report
from ._explain import Explanation
from ._fallback import KryptonFallbackWarning
from ._kernels import BackendInfo, KryptonBackendWarning, backend_info
from ._occlusion import KryptonOcclusion

__version__ = "0.2.0"

__all__ = [
    "PREDICTED",
    "ArgumentError",
    "BackendInfo",
    "Budget",
    "DrillDown",
    "Explanation",
    "ImageReport",
    "KryptonBackendWarning",
    "KryptonDataLoaderAttribution",
    "KryptonFallbackWarning",
    "KryptonFeatureAblation",
    "KryptonLayerFeatureAblation",
    "KryptonOcclusion",
    "OcclusionMap",
    "Report",
    "Tuning",
    "backend_info",
    "fills",
    "ssim",
]
