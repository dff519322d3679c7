"""Hypothesis profiles, and one thread for each test process. Plans do not depend on the machine.

Small maps take the graph's path as large ones do; tests/run/test_few_windows.py tests the other.

`HYPOTHESIS_PROFILE=thorough` draws afresh on every run, ten thousand networks and more;
the default, `ci`, always draws the same.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from scripts import BENCHMARKS
from torch import Tensor, nn

from captum_krypton._run import few_windows

pytest.register_assert_rewrite("against_captum", "contract_network", "machine")

# Drawing a network runs it, so drawing is slow and large by nature.
_COMMON = settings(
    deadline=None,
    print_blob=True,
    report_multiple_bugs=False,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.large_base_example,
        HealthCheck.filter_too_much,
    ],
)
settings.register_profile("ci", _COMMON, max_examples=40, derandomize=True)
settings.register_profile("thorough", _COMMON, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

torch.set_num_threads(1)
os.environ["KRYPTON_MEASURE"] = "0"
# Inductor takes code from its cache that it compiled for another ATEN_CPU_CAPABILITY.
_CAPABILITY = torch.backends.cpu.get_cpu_capability()
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir(), f"krypton-inductor-{_CAPABILITY}"))
)
few_windows._SETUP_ROWS = 0
few_windows._SETUP_SECONDS = few_windows._LEAST_SECONDS = 0.0


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks' modules can be imported, as they import each other."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 5),
    ).double()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 25, 19, generator=torch.Generator().manual_seed(1)).double()
