"""The search for the compiled kernels, asked of fresh processes with a copy of the package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest
import torch

import captum_krypton._kernels as ops
from captum_krypton._kernels import loader

CHECKOUT = Path(__file__).resolve().parents[2]
LIBRARY = "captum_krypton_kernels.so"

PROBE = """
import json, warnings
import torch
import captum_krypton._kernels as ops

answer = {"loaded_on_import": sorted(torch.ops.loaded_libraries), "warnings": [], "error": None}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
        for _ in range(2):
            index = torch.zeros(1, 1, dtype=torch.int64)
            result = ops.gather_patches(
                torch.arange(4.0).view(1, 1, 4), torch.full((1, 1, 1), 9.0),
                torch.zeros(1, dtype=torch.int64), index + 1, index - 1, (4,), 0.0,
            )
        answer["result"] = result.flatten().tolist()
        info = ops.backend_info()
        answer.update(
            name=info.name, path=info.path, reasons=info.reasons, threads=info.threads
        )
    except Exception as error:
        answer["error"] = f"{type(error).__name__}: {error}"
answer["warnings"] = [
    str(warning.message) for warning in caught
    if issubclass(warning.category, ops.KryptonBackendWarning)
]
print(json.dumps(answer))
"""

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")


@dataclass
class Install:
    """A copy of the kernels' package, as if installed, with a cache and a compiler of its own."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def package(self) -> Path:
        return self.root / "site" / "captum_krypton"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def start(self, **environment: str) -> subprocess.Popen[str]:
        variables = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("KRYPTON_") and name not in ("CXX", "PYTHONWARNINGS")
        }
        variables |= {
            "PYTHONPATH": str(self.root / "site"),
            "TORCH_EXTENSIONS_DIR": str(self.cache),
            "CXX": str(self.root / "quick"),
            **environment,
        }
        return subprocess.Popen(
            [sys.executable, "-c", PROBE],
            env=variables,
            cwd=self.root,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def ask(self, **environment: str) -> dict[str, Any]:
        return answer_of(self.start(**environment))


def answer_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    try:
        out, err = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 0, err
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert answer["loaded_on_import"] == []
    if answer["error"] is None:
        assert answer["result"] == [0.0, 0.0, 9.0, 2.0]
    return answer


def fresh(root: Path) -> Install:
    install = Install(root)
    (root / "empty").mkdir()
    shutil.copytree(CHECKOUT / "captum_krypton" / "_kernels", install.package / "_kernels")
    shutil.copytree(CHECKOUT / "csrc", install.package / "csrc")
    (install.package / "__init__.py").touch()
    quick = root / "quick"  # the last option counts: an optimised build takes minutes
    quick.write_text('#!/bin/sh\nexec c++ "$@" -O0\n')
    quick.chmod(0o755)
    return install


@pytest.fixture
def install(tmp_path: Path) -> Install:
    return fresh(tmp_path)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Install, list[dict[str, Any]]]:
    """An install whose kernels two processes compiled at once, and what the two said."""
    install = fresh(tmp_path_factory.mktemp("compiled"))
    together = [install.start(KRYPTON_BACKEND="cpp") for _ in range(2)]
    return install, [answer_of(process) for process in together]


@pytest.fixture
def cached(install: Install, compiled: tuple[Install, list[dict[str, Any]]]) -> Path:
    """The binary that is in the cache of `install`."""
    shutil.copytree(compiled[0].cache, install.cache)
    (binary,) = install.cache.rglob("*.so")
    return binary


def test_reference_on_request(install: Install) -> None:
    answer = install.ask(KRYPTON_BACKEND="reference")
    assert (answer["name"], answer["path"]) == ("reference", None)
    assert answer["reasons"] == ["KRYPTON_BACKEND=reference asks for the references"]
    assert answer["threads"] >= 1 and answer["warnings"] == []


def test_no_compiling_when_turned_off(install: Install) -> None:
    answer = install.ask(KRYPTON_JIT="0")
    assert answer["name"] == "reference" and answer["warnings"] == []
    assert "no prebuilt binary" in answer["reasons"][0]
    assert answer["reasons"][1] == "KRYPTON_JIT=0 turns compiling off"


def test_cpp_on_request_raises_where_there_is_none(install: Install) -> None:
    answer = install.ask(KRYPTON_BACKEND="cpp", KRYPTON_JIT="0")
    assert answer["error"].startswith("RuntimeError: KRYPTON_BACKEND=cpp, and no binary")
    assert "KRYPTON_JIT=0" in answer["error"]


def test_unknown_backend(install: Install) -> None:
    answer = install.ask(KRYPTON_BACKEND="cuda")
    assert answer["error"] == (
        'ValueError: KRYPTON_BACKEND is \'cuda\'; expected "cpp" or "reference"'
    )


def test_no_compiler_is_no_cause_for_a_warning(install: Install) -> None:
    answer = install.ask(PATH=str(install.root / "empty"), CXX="")
    assert answer["name"] == "reference" and answer["warnings"] == []
    assert "no C++ compiler (c++)" in answer["reasons"][1]


def test_no_sources(install: Install) -> None:
    shutil.rmtree(install.package / "csrc")
    answer = install.ask()
    assert answer["name"] == "reference" and answer["warnings"] == []
    assert "no kernel sources" in answer["reasons"][1]


@needs_compiler
def test_a_compiler_error_warns_once(install: Install) -> None:
    source = install.package / "csrc" / "cpu" / "gather_patches.cpp"
    source.write_text("#error on purpose\n")
    answer = install.ask()
    assert answer["name"] == "reference"
    assert "compiling the kernels failed" in answer["reasons"][1]
    (warning,) = answer["warnings"]
    assert "compiling the kernels failed" in warning
    assert "instead: the plain-torch references" in warning


@needs_compiler
def test_a_source_without_the_kernel_is_noticed(install: Install) -> None:
    source = install.package / "csrc" / "cpu" / "gather_patches.cpp"
    source.write_text("int nothing() { return 0; }\n")
    answer = install.ask()
    assert answer["name"] == "reference"
    assert "lacks kernels" in answer["reasons"][1] and len(answer["warnings"]) == 1


def test_a_corrupt_prebuilt_binary(install: Install) -> None:
    (install.package / "_C.abi3.so").write_bytes(b"not a library")
    answer = install.ask(KRYPTON_JIT="0")
    assert answer["name"] == "reference"
    assert "_C.abi3.so does not load" in answer["reasons"][0]
    assert len(answer["warnings"]) == 1


@needs_compiler
def test_two_processes_share_one_build(compiled: tuple[Install, list[dict[str, Any]]]) -> None:
    install, answers = compiled
    (binary,) = install.cache.rglob("*.so")
    for answer in answers:
        assert (answer["name"], answer["path"], answer["warnings"]) == ("cpp", str(binary), [])
    assert not (binary.parent / "build").exists()


@needs_compiler
def test_a_cached_binary_needs_no_compiler(install: Install, cached: Path) -> None:
    answer = install.ask(PATH=str(install.root / "empty"), CXX="")
    assert (answer["name"], answer["path"], answer["warnings"]) == ("cpp", str(cached), [])


@needs_compiler
def test_a_prebuilt_binary_comes_first(install: Install, cached: Path) -> None:
    prebuilt = install.package / "_C.abi3.so"
    shutil.copy(cached, prebuilt)
    answer = install.ask()
    assert (answer["path"], answer["reasons"]) == (str(prebuilt), [])


@needs_compiler
def test_a_corrupt_prebuilt_binary_is_passed_over(install: Install, cached: Path) -> None:
    prebuilt = install.package / "_C.abi3.so"
    prebuilt.write_bytes(b"not a library")
    answer = install.ask()
    assert answer["path"] == str(cached)
    (warning,) = answer["warnings"]
    assert str(prebuilt) in warning and f"instead: {cached}" in warning


@needs_compiler
def test_a_killed_build_blocks_no_one(install: Install, cached: Path) -> None:
    cached.write_bytes(b"")
    (cached.parent / "build").mkdir()
    for stale in ("lock", "build/lock", "build/.ninja_lock", f"build/{LIBRARY}"):
        (cached.parent / stale).write_text("")
    answer = install.ask()
    assert (answer["name"], answer["path"]) == ("cpp", str(cached))
    (warning,) = answer["warnings"]
    assert "does not load" in warning


@needs_compiler
@pytest.mark.parametrize("name", ["patch_index.h", "cpu/arena.h", "cpu/kernels/vector.h"])
def test_changed_sources_are_compiled_again(install: Install, cached: Path, name: str) -> None:
    with (install.package / "csrc" / name).open("a") as header:
        header.write("\n")
    answer = install.ask(PATH=str(install.root / "empty"), CXX="")
    assert answer["name"] == "reference"


def test_backend_info_is_frozen() -> None:
    info = ops.backend_info()
    assert info.name in ("cpp", "reference")
    assert (info.path is None) == (info.name == "reference")
    with pytest.raises(AttributeError):
        info.name = "other"  # type: ignore[misc]


def test_a_broken_binary_for_cuda_leaves_those_for_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ops.backend_info()
    (tmp_path / f"_C_cuda{EXTENSION_SUFFIXES[-1]}").write_bytes(b"no library")
    monkeypatch.delenv("KRYPTON_BACKEND", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(loader, "_PACKAGE", tmp_path)
    monkeypatch.setattr(loader, "_searches", {"cpu": loader.load()})
    monkeypatch.setattr(loader, "ready", {"cpu"})
    monkeypatch.setattr(loader, "_registered", lambda wanted: False)
    with pytest.warns(ops.KryptonBackendWarning, match="does not load"):
        info = ops.backend_info("cuda")
    assert (info.name, info.path) == ("reference", None)
    assert ops.backend_info() == before


def test_a_torch_without_cuda_has_no_kernels_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KRYPTON_BACKEND", raising=False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(loader, "_searches", {})
    monkeypatch.setattr(loader, "ready", set())
    info = ops.backend_info("cuda")
    assert (info.name, info.reasons) == ("reference", ("torch has no CUDA",))


def test_backends_are_of_known_devices() -> None:
    with pytest.raises(ValueError, match="device is 'mps'; expected"):
        ops.backend_info("mps")


def test_the_choice_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loader, "_searches", {})
    monkeypatch.setattr(loader, "ready", set())
    monkeypatch.setenv("KRYPTON_BACKEND", "reference")
    with caplog.at_level("DEBUG", "captum_krypton"):
        loader.load()
        loader.load()
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == (
        "kernels for cpu: the plain-torch references "
        "(not: KRYPTON_BACKEND=reference asks for the references)"
    )
