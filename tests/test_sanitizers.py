"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMPILER = os.environ.get("CXX", "c++")
TESTS = ("test_convolve.py", "test_pool.py", "test_gather.py")


def runtime() -> str | None:
    """AddressSanitizer's library, which must be loaded before everything else."""
    if not sys.platform.startswith("linux") or shutil.which(COMPILER) is None:
        return None
    done = subprocess.run(
        [COMPILER, "-print-file-name=libasan.so"], capture_output=True, text=True
    )
    path = done.stdout.strip()
    return path if done.returncode == 0 and os.path.isabs(path) else None


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["portable", "avx2", "avx512"])
def test_no_sanitizer_complains(tmp_path: Path, kernels: str) -> None:
    library = runtime()
    if library is None:
        pytest.skip("this machine's compiler has no AddressSanitizer")
    package = tmp_path / "package"
    # Without the binary of the installed package: the kernels compile anew.
    shutil.copytree(
        ROOT / "captum_krypton", package / "captum_krypton", ignore=shutil.ignore_patterns("*.so")
    )
    shutil.copytree(ROOT / "csrc", package / "csrc")
    environment = {
        **os.environ,
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "CXX": f"{COMPILER} -fsanitize=address,undefined -fno-sanitize-recover=all -g1 -O1",
        "KRYPTON_BACKEND": "cpp",
        "KRYPTON_KERNELS": kernels,
        "LD_PRELOAD": library,
        "PYTEST_ADDOPTS": "",
        "PYTHONPATH": str(package),
        "TORCH_EXTENSIONS_DIR": str(tmp_path.parent / "sanitized"),
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-x"),
            *("-k", "equals", *TESTS),
        ],
        cwd=ROOT / "tests",
        env=environment,
        capture_output=True,
        text=True,
    )
    output = done.stdout + done.stderr
    if "which this processor or this build does not have" in output:
        pytest.skip(f"this processor has no {kernels} kernels")
    assert done.returncode == 0, output[-6000:]
    assert " passed" in done.stdout
