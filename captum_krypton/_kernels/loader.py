"""Finds the compiled kernels: prebuilt, else compiled on first use, else the references run.

Those for the CPU and those for CUDA are two binaries, found apart from each other: the second does
not load where torch has no CUDA. Nothing happens on import. The environment is read once for each,
on first use:

- `KRYPTON_BACKEND=reference` runs the references; `KRYPTON_BACKEND=cpp` raises where the
  references would have run.
- `KRYPTON_JIT=0` turns compiling on first use off.
- `TORCH_EXTENSIONS_DIR`, else `XDG_CACHE_HOME`, says where compiled kernels are kept.

The logger `captum_krypton` says at its level DEBUG what was chosen, and why nothing before it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import platform
import shlex
import shutil
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

__all__ = [
    "BackendInfo",
    "KryptonBackendWarning",
    "backend_info",
    "has_kernels",
    "load",
    "prepare",
    "ready",
]

ready: set[str] = set()
"""Where `load` has nothing left to do: kernels check it instead of calling `load` each time."""

_PACKAGE = Path(__file__).resolve().parent.parent
_FLAGS = ["/O2" if os.name == "nt" else "-O3", "-DTORCH_TARGET_VERSION=0x020b000000000000"]


@dataclass(frozen=True)
class _Binary:
    """The kernels for one kind of device: their names, their sources in csrc, their operators."""

    name: str
    module: str
    library: str
    sources: str
    headers: tuple[str, ...]
    operators: tuple[str, ...]
    key: str


_BINARIES = {
    "cpu": _Binary(
        "cpp",
        "_C",
        "captum_krypton_kernels",
        "cpu/**/*.cpp",
        ("*.h", "cpu/**/*.h"),
        (
            "gather_patches",
            "convolve_patches",
            "pool_patches",
            "join_patches",
            "transposed_patches",
            "empty_block",
        ),
        "CPU",
    ),
    "cuda": _Binary(
        "cuda",
        "_C_cuda",
        "captum_krypton_cuda_kernels",
        "cuda/*.cu",
        ("*.h", "cuda/*.h"),
        ("gather_patches", "pool_patches", "finish_block", "hash_tensors"),
        "CUDA",
    ),
}

_logger = logging.getLogger("captum_krypton")
_mutex = threading.Lock()


class KryptonBackendWarning(UserWarning):
    """A binary of the kernels should have loaded and did not; results stay the same."""


@dataclass(frozen=True)
class BackendInfo:
    """Which code runs the kernels on a kind of device, and why not a faster one.

    Attributes:
        name: "cpp" for the compiled kernels of the CPU, "cuda" for those of a GPU, "reference" for
            their plain-torch twins.
        path: The binary in use; None for the references.
        reasons: Why each binary that was looked for first is not in use.
        threads: Threads that a kernel may use, `torch.get_num_threads()`.
    """

    name: str
    path: str | None
    reasons: tuple[str, ...]
    threads: int


@dataclass
class _Search:
    path: Path | None = None
    reasons: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def fail(self, reason: str) -> None:
        self.reasons.append(reason)
        self.unexpected.append(reason)


_searches: dict[str, _Search] = {}


def backend_info(device: str = "cpu") -> BackendInfo:
    """Says which code runs the kernels, after loading (and maybe compiling) it.

    Args:
        device: "cpu" or "cuda".

    Returns:
        The backend in use, with the reasons why each one that was tried before it is not.

    Raises:
        RuntimeError: If `KRYPTON_BACKEND=cpp` and no binary could be loaded.
        ValueError: If `KRYPTON_BACKEND` is neither "cpp" nor "reference", or `device` is another.
    """
    if device not in _BINARIES:
        raise ValueError(f'device is {device!r}; expected "cpu" or "cuda"')
    search = load(device)
    path = None if search.path is None else str(search.path)
    name = "reference" if path is None else _BINARIES[device].name
    return BackendInfo(name, path, tuple(search.reasons), torch.get_num_threads())


def has_kernels() -> bool:
    """Whether compiled kernels run on the CPU, after loading them."""
    return load().path is not None


def prepare(device: str = "cpu") -> None:
    """`load`, where it has not been done: what every kernel's wrapper calls first."""
    if device not in ready:
        load(device)


def load(device: str = "cpu") -> _Search:
    """Looks for a binary of the kernels, once in a process, and loads it.

    A search that fails leaves the references in place; it warns where a binary was there, or
    could have been compiled, and is broken.

    Args:
        device: "cpu" or "cuda".

    Returns:
        What was found.

    Raises:
        RuntimeError: If `KRYPTON_BACKEND=cpp` and no binary could be loaded.
        ValueError: If `KRYPTON_BACKEND` is neither "cpp" nor "reference".
    """
    choice = os.environ.get("KRYPTON_BACKEND", "")
    with _mutex:
        first = device not in _searches
        search = _searches.get(device) or _find(choice, _BINARIES[device])
        _searches[device] = search
    if search.path is None and choice == "cpp":
        raise RuntimeError(
            f"KRYPTON_BACKEND=cpp, and no binary of the kernels for {device} could be loaded: "
            + "; ".join(search.reasons)
        )
    ready.add(device)
    instead = search.path or "the plain-torch references"
    if first:
        before = f" (not: {'; '.join(search.reasons)})" if search.reasons else ""
        _logger.debug("kernels for %s: %s%s", device, instead, before)
    if first and search.unexpected:
        warnings.warn(
            f"a binary of the kernels could not be used ({'; '.join(search.unexpected)}); "
            f"instead: {instead}",
            KryptonBackendWarning,
            stacklevel=3,
        )
    return search


def _find(choice: str, wanted: _Binary) -> _Search:
    search = _Search()
    if choice not in ("", "cpp", "reference"):
        raise ValueError(f'KRYPTON_BACKEND is {choice!r}; expected "cpp" or "reference"')
    if choice == "reference":
        search.reasons.append("KRYPTON_BACKEND=reference asks for the references")
    elif wanted.key == "CUDA" and torch.version.cuda is None:
        search.reasons.append("torch has no CUDA")
    elif not _find_prebuilt(search, wanted):
        _find_compiled(search, wanted)
    return search


def _find_prebuilt(search: _Search, wanted: _Binary) -> bool:
    for path in (_PACKAGE / f"{wanted.module}{suffix}" for suffix in EXTENSION_SUFFIXES):
        if path.exists():
            return _open(path, search, wanted)
    search.reasons.append(f"no prebuilt binary in {_PACKAGE}")
    return False


def _find_compiled(search: _Search, wanted: _Binary) -> None:
    """Takes the cached binary of these very sources, or compiles it."""
    if os.environ.get("KRYPTON_JIT") == "0":
        search.reasons.append("KRYPTON_JIT=0 turns compiling off")
        return
    roots = [root for root in (_PACKAGE / "csrc", _PACKAGE.parent / "csrc") if root.is_dir()]
    if not roots:
        search.reasons.append(f"no kernel sources (csrc) in or beside {_PACKAGE}")
        return
    try:
        folder = _cache_folder(roots[0], wanted)
        cached = folder / f"{wanted.library}{EXTENSION_SUFFIXES[-1]}"
        if cached.exists():
            if _open(cached, search, wanted):
                return
            cached.unlink()
        if _compile(roots[0], cached, search, wanted):
            _open(cached, search, wanted)
    except Exception as error:  # whatever fails here, the references give the same results
        search.fail(f"compiling the kernels failed: {error}")


def _cache_folder(root: Path, wanted: _Binary) -> Path:
    base = os.environ.get("TORCH_EXTENSIONS_DIR") or os.environ.get("XDG_CACHE_HOME")
    digest = hashlib.sha256(" ".join(_FLAGS).encode())
    patterns = (*wanted.headers, wanted.sources)
    for source in sorted(path for pattern in patterns for path in root.glob(pattern)):
        digest.update(source.read_bytes())
    name = f"torch{torch.__version__}-{platform.machine()}-{digest.hexdigest()[:16]}"
    return (Path(base) if base else Path.home() / ".cache") / "captum_krypton" / name


def _compile(root: Path, binary: Path, search: _Search, wanted: _Binary) -> bool:
    compiler = shlex.split(os.environ.get("CXX", "") or ("cl" if os.name == "nt" else "c++"))[0]
    if shutil.which(compiler) is None:
        search.reasons.append(f"no C++ compiler ({compiler}) to compile the kernels with")
        return False
    # Imported here: together they take longer than loading a cached binary.
    from filelock import FileLock

    with _without_advice():
        from torch.utils import cpp_extension

    if importlib.util.find_spec("ninja") is None and shutil.which("ninja") is None:
        search.reasons.append("no ninja to compile the kernels with: pip install ninja")
        return False
    if wanted.key == "CUDA":
        # nvcc may be a wrapper that lies outside its toolkit, which is where torch looks then.
        homes = (os.environ.get("CUDA_HOME"), cpp_extension.CUDA_HOME, "/usr/local/cuda")
        found = [h for h in homes if h and (Path(h) / "include" / "cuda_runtime.h").is_file()]
        if not found:
            search.reasons.append("no CUDA toolkit to compile the kernels with")
            return False
        cpp_extension.CUDA_HOME = found[0]
    binary.parent.mkdir(parents=True, exist_ok=True)
    # The operating system releases this lock when its holder dies, so a killed build blocks no one.
    with FileLock(binary.parent / "lock"), _ninja_on_path():
        if binary.exists():  # compiled by another process, while this one waited
            return True
        build = binary.parent / "build"
        shutil.rmtree(build, ignore_errors=True)  # of a killed build, its own lock file included
        build.mkdir()
        _logger.warning(
            "compiling the kernels, once for this machine; this can take minutes. They are kept as "
            "%s; a wheel with kernels, or a build with them, compiles nothing",
            binary,
        )
        cpp_extension.load(
            wanted.library,
            [str(source) for source in sorted(root.glob(wanted.sources))],
            extra_cflags=_FLAGS,
            extra_cuda_cflags=["-O3", "-DUSE_CUDA", _FLAGS[1]],
            build_directory=str(build),
            is_python_module=False,
        )
        # Whole or not at all: others may be looking for it without the lock.
        os.replace(build / binary.name, binary)
        shutil.rmtree(build, ignore_errors=True)
    return True


@contextmanager
def _without_advice() -> Iterator[None]:
    """Hides what torch says on import where there is a CUDA toolkit and no card."""
    advising = logging.getLogger("torch.utils.cpp_extension")
    before = advising.disabled
    advising.disabled = True
    try:
        yield
    finally:
        advising.disabled = before


@contextmanager
def _ninja_on_path() -> Iterator[None]:
    """Lets torch find the ninja wheel of an environment that is not activated."""
    path = os.environ.get("PATH", "")
    try:
        if importlib.util.find_spec("ninja") is not None:
            import ninja

            os.environ["PATH"] = os.pathsep.join((path, ninja.BIN_DIR))
        yield
    finally:
        os.environ["PATH"] = path


def _open(path: Path, search: _Search, wanted: _Binary) -> bool:
    """Loads a binary; one that has just been compiled is in the process already."""
    try:
        if not _registered(wanted):
            torch.ops.load_library(str(path))
    except Exception as error:
        search.fail(f"{path} does not load: {error}")
        return False
    if not _registered(wanted):
        search.fail(f"{path} lacks kernels of this version")
        return False
    search.path = path
    return True


def _registered(wanted: _Binary) -> bool:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return all(has_kernel(f"captum_krypton::{name}", wanted.key) for name in wanted.operators)
