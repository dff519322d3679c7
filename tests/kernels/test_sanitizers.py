"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX", "c++")
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -g1 -O1"
TESTS = (
    "kernels/test_arena.py",
    "kernels/test_activation.py",
    "kernels/test_convolve_patches.py",
    "kernels/test_transposed_patches.py",
    "test_range.py",
    "kernels/test_join_patches.py",
    "kernels/test_pool_patches.py",
    "kernels/test_gather_patches.py",
    "kernels/test_hash_tensors.py",
)


def libraries() -> list[str]:
    """What must be loaded before everything else; empty where there is no AddressSanitizer."""
    if not sys.platform.startswith("linux") or shutil.which(COMPILER) is None:
        return []
    paths = []
    for name in ("libasan.so", "libstdc++.so"):
        command = [COMPILER, f"-print-file-name={name}"]
        paths.append(subprocess.run(command, capture_output=True, text=True).stdout.strip())
    return paths if all(map(os.path.isabs, paths)) else []


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["portable", "avx2", "avx512"])
def test_no_sanitizer_complains(tmp_path: Path, kernels: str) -> None:
    preloaded = libraries()
    if not preloaded:
        pytest.skip("this machine's compiler has no AddressSanitizer")
    package = tmp_path / "package"
    # Without the binary of the installed package: the kernels compile anew.
    shutil.copytree(
        ROOT / "captum_krypton", package / "captum_krypton", ignore=shutil.ignore_patterns("*.so")
    )
    shutil.copytree(ROOT / "csrc", package / "csrc")
    # Binaries are kept by their compiler's name: one for all tests of this process.
    compiler = tmp_path.parent / "sanitized-c++"
    compiler.write_text(f'#!/bin/sh\nunset LD_PRELOAD\nexec {COMPILER} "$@" {FLAGS}\n')  # last
    compiler.chmod(0o755)
    built = tmp_path.parent / "sanitized"
    environment = {
        **os.environ,
        # The interpreter's and torch's own are no matter of ours.
        "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0:alloc_dealloc_mismatch=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "CXX": str(compiler),
        "KRYPTON_BACKEND": "cpp",
        "KRYPTON_KERNELS": kernels,
        "LD_PRELOAD": " ".join(preloaded),
        "PYTEST_ADDOPTS": "",
        "PYTHONPATH": str(package),
        "TORCH_EXTENSIONS_DIR": str(built),
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-x"),
            *("-k", "equals or arena or digits", *TESTS),
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
    kernels_and_those_for_cuda = list(built.rglob("*.so"))
    assert len(kernels_and_those_for_cuda) == 2
    for binary in kernels_and_those_for_cuda:
        assert b"__asan_report" in binary.read_bytes()
