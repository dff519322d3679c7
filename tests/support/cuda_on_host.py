"""The kernels for CUDA, compiled for the host: threads and blocks run one after another."""

from __future__ import annotations

import functools
import hashlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import torch
from filelock import FileLock

CSRC = Path(__file__).resolve().parents[2] / "csrc"
SOURCES = sorted((CSRC / "cuda").glob("*.cu"))


@functools.cache
def load() -> bool:
    """Compiles and loads them, as `torch.ops.captum_krypton_on_host`; False without a compiler."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(compiler[0]) is None or os.name == "nt":
        return False
    from torch.utils.cpp_extension import include_paths, library_paths

    digest = hashlib.sha256(f"{compiler} {torch.__version__}".encode())
    for source in sorted((*CSRC.glob("*.h"), *CSRC.glob("cuda/*"))):
        digest.update(source.read_bytes())
    cache = os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache"
    folder = Path(cache) / "captum_krypton" / f"cuda_on_host-{digest.hexdigest()[:16]}"
    library = folder / "cuda_on_host.so"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not library.exists():
            command = [
                *compiler,
                "-std=c++20",
                "-O2",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-fPIC",
                "-shared",
                # A device has no types of memory: units are moved whatever they hold.
                "-fno-strict-aliasing",
                "-DTORCH_TARGET_VERSION=0x020b000000000000",
                *(f"-isystem{path}" for path in include_paths()),
                "-xc++",
                *map(str, SOURCES),
                "-xnone",
                *(f"-L{path}" for path in library_paths()),
                "-ltorch_cpu",
                "-lc10",
                f"-o{folder / 'new.so'}",
            ]
            subprocess.run(command, check=True)
            os.replace(folder / "new.so", library)
    torch.ops.load_library(str(library))
    return True
