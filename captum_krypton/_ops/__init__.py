"""Kernels: schemas, wrappers, plain-torch references and the loader of their binary."""

from captum_krypton._ops._gather import gather_patches
from captum_krypton._ops._loader import BackendInfo, KryptonBackendWarning, backend_info

__all__ = ["BackendInfo", "KryptonBackendWarning", "backend_info", "gather_patches"]
