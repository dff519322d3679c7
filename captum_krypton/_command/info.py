"""What runs here."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from .. import backend_info

__all__ = ["print_info", "versions"]

_PACKAGES = (
    "captum-krypton",
    "torch",
    "captum",
    "numpy",
    "pillow",
    "torchvision",
    "timm",
    "transformers",
    "safetensors",
    "matplotlib",
    "scipy",
    "scikit-image",
)


def versions(packages: tuple[str, ...] = _PACKAGES) -> dict[str, str]:
    """The versions of some packages; "not installed" for those that are not."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def print_info() -> None:
    """Print versions, kernels and threads; kernels are compiled where they are not yet."""
    rows = {"Python": platform.python_version(), **versions()}
    cuda = torch.cuda.is_available()
    for device in ("cpu", "cuda") if cuda else ("cpu",):
        info = backend_info(device)
        rows[f"kernels ({device})"] = f"{info.name} {info.path or ''}".strip()
        for number, reason in enumerate(info.reasons):
            rows[f"  not before {number + 1}"] = reason
    rows["threads"] = str(torch.get_num_threads())
    rows["CUDA"] = torch.cuda.get_device_name() if cuda else "no device"
    for name, value in rows.items():
        print(f"{name:<18}{value}")
