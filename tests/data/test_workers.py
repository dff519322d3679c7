"""What Ray and Spark say of a worker's share, as they say it: stand-ins for their modules."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mapped import WINDOWS, load_model, some_images

from captum_krypton.data import OcclusionMapper
from captum_krypton.data.workers import assigned_cores, assigned_device


@pytest.fixture(autouse=True)
def no_frameworks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ray", "pyspark"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def ray_with(resources: dict[str, float], mode: int = 1, initialized: bool = True) -> Any:
    def assigned() -> dict[str, float]:
        assert mode == 1, "only available when the process is a worker"
        return resources

    context = SimpleNamespace(worker=SimpleNamespace(mode=mode), get_assigned_resources=assigned)
    return SimpleNamespace(
        WORKER_MODE=1, is_initialized=lambda: initialized, get_runtime_context=lambda: context
    )


def spark_with(cpus: int, resources: dict[str, Any]) -> Any:
    task = SimpleNamespace(cpus=lambda: cpus, resources=lambda: resources)
    return SimpleNamespace(TaskContext=SimpleNamespace(get=lambda: task))


GPU = {"gpu": SimpleNamespace(addresses=["2"])}
NO_TASK = SimpleNamespace(TaskContext=SimpleNamespace(get=lambda: None))


@pytest.mark.parametrize(
    ("name", "module", "cores"),
    [
        ("ray", ray_with({"CPU": 4.0}), 4),
        ("ray", ray_with({"CPU": 2.5}), 2),
        ("ray", ray_with({"CPU": 0.5}), 1),
        ("ray", ray_with({}), None),
        ("ray", ray_with({"CPU": 4.0}, mode=0), None),  # the driver
        ("ray", ray_with({"CPU": 4.0}, initialized=False), None),
        ("pyspark", spark_with(3, {}), 3),
        ("pyspark", NO_TASK, None),
        ("json", None, None),
    ],
)
def test_cores(name: str, module: Any, cores: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, module)
    assert assigned_cores() == cores


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize(
    ("name", "module", "device"),
    [
        ("ray", ray_with({"CPU": 1.0}), "cpu"),
        ("ray", ray_with({"GPU": 1.0}), "cuda"),
        ("ray", ray_with({}, mode=0), None),
        ("pyspark", spark_with(1, GPU), "cuda:2"),
        ("pyspark", spark_with(1, {}), None),
        ("pyspark", NO_TASK, None),
    ],
)
def test_devices(
    name: str, module: Any, device: str | None, seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None: where no framework says, what PyTorch sees."""
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen)
    if device == "cuda" and not seen:
        with pytest.raises(RuntimeError, match="Ray assigns a GPU .* pass device='cpu'"):
            assigned_device()
        return
    assert assigned_device() == torch.device(device or ("cuda" if seen else "cpu"))


@pytest.mark.parametrize(("threads", "expected"), [(None, 3), (2, 2)])
def test_a_worker_has_its_share(
    threads: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", ray_with({"CPU": 3.0}))
    before = torch.get_num_threads()
    try:
        OcclusionMapper(load_model, threads=threads, **WINDOWS)({"image": some_images(1)})
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
