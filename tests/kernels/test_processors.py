"""The kernels' tests again, as processors with fewer instructions would run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from captum_krypton._kernels import panel_size

FOLDER = Path(__file__).resolve().parents[1]
TESTS = (
    "kernels/test_activation.py",
    "kernels/test_convolve_patches.py",
    "kernels/test_pool_patches.py",
    "kernels/test_join_patches.py",
    "kernels/test_transposed_patches.py",
    "test_range.py",
    "test_accuracy.py",
)
# What PyTorch and oneDNN call what the kernels call so, and output channels in a panel there.
OTHERS = {"avx2": ("avx2", "AVX2", 16), "portable": ("default", "SSE41", 8)}


@pytest.mark.slow
@pytest.mark.parametrize("kernels", OTHERS)
def test_kernels_of_other_processors(kernels: str) -> None:
    """PyTorch's own code is that of such a processor too: it rounds otherwise."""
    aten, onednn, panel = OTHERS[kernels]
    if panel_size() <= panel:
        pytest.skip(f"{kernels} kernels are what the other tests run, or are not here")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *TESTS],
        env={
            **os.environ,
            "ATEN_CPU_CAPABILITY": aten,
            "KRYPTON_KERNELS": kernels,
            "ONEDNN_MAX_CPU_ISA": onednn,
            "PYTEST_ADDOPTS": "",
        },
        cwd=FOLDER,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
