"""Uses the installed package where nothing can be compiled: fails unless its own kernels run.

    KRYPTON_JIT=0 PYTHON -I .ci/use_wheel.py

The map of a small network is held against Captum's, and once more in a process for each lesser
instruction set that the kernels are compiled for.
"""

import os
import subprocess
import sys
from pathlib import Path

import torch
from captum.attr import Occlusion
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion, backend_info

WINDOWS = {"sliding_window_shapes": (3, 8, 8), "strides": (3, 4, 4), "target": 1}
# What the kernels have below the best of a processor, which is named as PyTorch names it.
LESSER = {"AVX512": ["avx2", "portable"], "AVX2": ["portable"]}


class Network(nn.Module):
    """A layer for each of the kernels."""

    def __init__(self) -> None:
        """Random weights."""
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.wide = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pool = nn.MaxPool2d(2)
        self.norm = nn.BatchNorm2d(32)
        self.up = nn.ConvTranspose2d(32, 8, 2, stride=2)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, 5) of images (N, 3, H, W)."""
        x = torch.relu(self.first(x))
        x = self.pool(torch.cat([x, self.wide(x)], 1))
        return self.last(torch.relu(self.up(torch.relu(self.norm(x)))).mean((2, 3)))


def main() -> None:
    """Make a map by the compiled kernels, and compare it."""
    assert os.environ.get("KRYPTON_JIT") == "0", "KRYPTON_JIT=0 keeps this from compiling kernels"
    info = backend_info()
    kernels = os.environ.get("KRYPTON_KERNELS", "its best kernels")
    print(
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {kernels}: {info}"
    )
    assert info.name == "cpp" and not info.reasons and info.path is not None
    assert Path(info.path).is_relative_to(Path(sys.prefix).resolve())

    torch.manual_seed(0)
    network, x = Network().eval(), torch.rand(1, 3, 48, 48)
    want = Occlusion(network).attribute(x, **WINDOWS)
    heat = KryptonOcclusion(network).heatmap(x, **WINDOWS)
    assert heat.report.path == "incremental" and heat.report.backend == "cpp", heat.report
    worst = ((heat.attribution() - want).abs().max() / want.abs().max()).item()
    print(f"largest difference from Captum's map, relative to its largest value: {worst:.1e}")
    assert worst < 1e-3


if __name__ == "__main__":
    main()
    if "KRYPTON_KERNELS" not in os.environ:
        for name in LESSER.get(torch.backends.cpu.get_cpu_capability(), []):
            sys.stdout.flush()
            environment = {**os.environ, "KRYPTON_KERNELS": name, "KRYPTON_MEASURE": "0"}
            subprocess.run([sys.executable, "-I", __file__], env=environment, check=True)
