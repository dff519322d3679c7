"""TODO."""

from .activation import ACTIVATIONS
from .arena import arena, join
from .calibrate import calibration_of, rates_of
from .convolve_patches import (
    PackedWeight,
    Patches,
    allows_winograd,
    convolve_patches,
    pack_weight,
    panel_size,
    winograd_limit,
    winograd_sizes,
)
from .finish_block import compiled_finish, convolution_block, fastest_finish, plain_finish
from .formats import CHANNELS_LAST
from .gather_patches import gather_patches
from .join_patches import join_block, join_patches
from .loader import BackendInfo, KryptonBackendWarning, backend_info
from .memory import trim
from .pool_patches import POOLED_ON_GPUS, pool_patches
from .rates import Rates

__all__ = [
    "ACTIVATIONS",
    "BackendInfo",
    "CHANNELS_LAST",
    "KryptonBackendWarning",
    "POOLED_ON_GPUS",
    "PackedWeight",
    "Patches",
    "Rates",
    "allows_winograd",
    "arena",
    "backend_info",
    "calibration_of",
    "compiled_finish",
    "convolution_block",
    "convolve_patches",
    "fastest_finish",
    "gather_patches",
    "join",
    "join_block",
    "join_patches",
    "pack_weight",
    "panel_size",
    "plain_finish",
    "pool_patches",
    "rates_of",
    "trim",
    "winograd_limit",
    "winograd_sizes",
]
