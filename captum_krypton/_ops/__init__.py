"""Kernels: schemas, wrappers, plain-torch references and the loader of their binary."""

from captum_krypton._ops._activation import ACTIVATIONS, activate
from captum_krypton._ops._arena import arena, join
from captum_krypton._ops._block import (
    compiled_finish,
    convolution_block,
    fastest_finish,
    plain_finish,
)
from captum_krypton._ops._convolve import (
    PackedWeight,
    Patches,
    allows_winograd,
    convolve_patches,
    pack_weight,
    panel_size,
    winograd_limit,
    winograd_sizes,
)
from captum_krypton._ops._formats import CHANNELS_LAST
from captum_krypton._ops._gather import gather_patches
from captum_krypton._ops._join import join_block, join_patches
from captum_krypton._ops._loader import BackendInfo, KryptonBackendWarning, backend_info
from captum_krypton._ops._pool import POOLED_ON_GPUS, pool_patches

__all__ = [
    "ACTIVATIONS",
    "CHANNELS_LAST",
    "POOLED_ON_GPUS",
    "BackendInfo",
    "KryptonBackendWarning",
    "PackedWeight",
    "Patches",
    "activate",
    "allows_winograd",
    "arena",
    "backend_info",
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
    "winograd_limit",
    "winograd_sizes",
]
