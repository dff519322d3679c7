"""Kernels and the machine that they run on.

In: tensors, windows' offsets and extents. Out: patches; what operations cost here.
One operator a module, named as its file in csrc: the schema, the wrapper and a twin in plain torch,
which is in `reference` for operators that read patches. `rates`, `bounds`, `measure` and
`calibrate` say what a machine's operations cost; `cuda_graph`, `arena` and `memory` drive a device.

May use: no other wing.
"""

from .activation import ACTIVATIONS
from .arena import arena, cat_in_arena
from .calibrate import calibration_of, rates_of
from .convolution_block import convolution_block, convolve
from .convolve_patches import (
    Patches,
    allows_winograd,
    convolve_patches,
    is_narrow,
    pack_weight,
    panel_size,
    winograd_limit,
    winograd_sizes,
)
from .cuda_graph import (
    CudaGraph,
    GraphPool,
    alike,
    capture_stream,
    graph_settings,
    operators_instead,
)
from .finish_block import compiled_finish, fastest_finish, plain_finish
from .formats import PATCH_TYPES, in_channels_last
from .gather_patches import gather_patches
from .hash_tensors import dense_bytes, hash_tensors
from .join_block import join_block
from .join_patches import join_patches
from .loader import BackendInfo, KryptonBackendWarning, backend_info
from .memory import trim
from .pool_patches import pool_patches
from .rates import Rates
from .transposed_patches import pack_transposed, transposed_patches

__all__ = [
    "ACTIVATIONS",
    "PATCH_TYPES",
    "BackendInfo",
    "CudaGraph",
    "GraphPool",
    "KryptonBackendWarning",
    "Patches",
    "Rates",
    "alike",
    "allows_winograd",
    "arena",
    "backend_info",
    "calibration_of",
    "capture_stream",
    "cat_in_arena",
    "compiled_finish",
    "convolution_block",
    "convolve",
    "convolve_patches",
    "dense_bytes",
    "fastest_finish",
    "gather_patches",
    "graph_settings",
    "hash_tensors",
    "in_channels_last",
    "is_narrow",
    "join_block",
    "join_patches",
    "operators_instead",
    "pack_transposed",
    "pack_weight",
    "panel_size",
    "plain_finish",
    "pool_patches",
    "rates_of",
    "transposed_patches",
    "trim",
    "winograd_limit",
    "winograd_sizes",
]
