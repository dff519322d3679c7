"""Libraries that exact maps do without; what needs one that is missing says so."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from captum_krypton import Budget, DrillDown, KryptonOcclusion, Tuning, ssim
from captum_krypton._call import require
from captum_krypton._kernels import loader

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
WINDOWS = {"sliding_window_shapes": (3, 4, 4), "strides": (3, 2, 2)}

EXACT = """
import sys

hidden = ("scipy", "skimage")
sys.modules.update(dict.fromkeys(hidden))
import torch
from captum.attr import Occlusion
from captum_krypton import KryptonOcclusion

torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(2)
)
x = torch.rand(1, 3, 24, 24)
windows = {"sliding_window_shapes": (3, 4, 4), "strides": (3, 2, 2), "target": 1}
want = Occlusion(model).attribute(x, **windows)
heat = KryptonOcclusion(model).heatmap(x, **windows)
assert heat.report.path == "incremental", heat.report
torch.testing.assert_close(heat.attribution(), want)
assert not any(name.partition(".")[0] in hidden for name in sys.modules if sys.modules[name])
"""


def test_an_exact_map_asks_for_none() -> None:
    done = subprocess.run([sys.executable, "-c", EXACT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def hide(library: str) -> None:
        for name in [library, *(n for n in sys.modules if n.startswith(f"{library}."))]:
            monkeypatch.setitem(sys.modules, name, None)

    yield hide


TUNING = Tuning(0.9, 0.5, (0.5, 0.7, 1.0), ((0.9, 0.95, 1.0),), (0.9,), (), (), "", "")
ASKS: dict[str, tuple[str, str, Callable[[nn.Module, Tensor], object]]] = {
    "quality": ("scipy", "approximate", lambda model, x: KryptonOcclusion(model, quality=0.9)),
    "budget": (
        "scipy",
        "approximate",
        lambda model, x: KryptonOcclusion(model, budget=Budget(windows=100)),
    ),
    "drill-down": (
        "scipy",
        "approximate",
        lambda model, x: KryptonOcclusion(model, drill_down=DrillDown()),
    ),
    "growing": ("scipy", "approximate", lambda model, x: KryptonOcclusion(model).growing(x)),
    "tune": ("skimage", "approximate", lambda model, x: KryptonOcclusion(model).tune(x)),
    "ssim": ("skimage", "approximate", lambda model, x: ssim(x[0, 0], x[0, 1])),
    "plot": (
        "matplotlib",
        "plot",
        lambda model, x: KryptonOcclusion(model).heatmap(x, **WINDOWS, target=0).plot(),
    ),
    "a tuning's plot": (
        "matplotlib",
        "plot",
        lambda model, x: TUNING.plot(),
    ),
}


@pytest.mark.parametrize("use", ASKS)
def test_what_is_missing_is_said_with_its_extra(
    use: str, network: nn.Module, images: Tensor, without: Callable[[str], None]
) -> None:
    library, extra, ask = ASKS[use]
    ask(network, images[:1])
    without(library)
    message = f"needs {library}, which is not installed: pip install 'captum-krypton\\[{extra}\\]'"
    with pytest.raises(ImportError, match=message):
        ask(network, images[:1])


@pytest.mark.parametrize("extra", sorted({extra for _, extra, _ in ASKS.values()}))
def test_the_extras_exist_and_have_the_libraries(extra: str) -> None:
    listed = re.search(rf"^{extra} = \[(.*?)^\]", PROJECT.read_text(), re.M | re.S)
    assert listed is not None
    packages = {"skimage": "scikit-image"}
    for library in {library for library, named, _ in ASKS.values() if named == extra}:
        assert f'"{packages.get(library, library)}"' in listed[1]


def test_a_library_that_is_there_and_fails_says_so_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_library.py").write_text("import not_there_either\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="No module named 'not_there_either'"):
        require("broken_library", "plot", "plot")
    assert isinstance(require("json", "plot", "plot"), ModuleType)


def test_without_ninja_nothing_is_compiled_and_the_reason_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = loader._Search()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "ninja" else f"/bin/{name}")
    made = loader._compile(tmp_path, tmp_path / "made.so", search, loader._BINARIES["cpu"])
    assert not made and not search.unexpected
    assert "pip install ninja" in search.reasons[0]


def test_growing_says_so_before_anything_runs(without: Callable[[str], None]) -> None:
    def forward(x: Tensor) -> Tensor:
        raise AssertionError("the forward function has run")

    without("scipy")
    with pytest.raises(ImportError, match="a growing map needs scipy"):
        KryptonOcclusion(forward).growing(torch.rand(1, 3, 8, 8))
