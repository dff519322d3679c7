"""The benchmarks of volumes and of 16 bits: the scripts with small settings, and their tables."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.mark.slow
def test_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, benchmarks: None) -> None:
    import volumes

    small = replace(volumes.QUESTIONS["m5"], shape=(1, 9000))
    monkeypatch.setitem(volumes.QUESTIONS, "m5", small)
    arguments = ["--networks", "m5", "--rounds=1", "--sample=2", f"--json-folder={tmp_path}"]
    volumes.main(arguments)
    (file,) = tmp_path.iterdir()
    made = json.loads(file.read_text())
    assert made["windows"] == 87 and made["path"] == "incremental"
    assert made["largest_difference"] < 1e-4
    assert made["seconds"] > 0 < made["captum_seconds"]
    assert made["memory_peak_mib"] > made["memory_before_mib"] > 0
    assert made["captum_memory_peak_mib"] > made["captum_memory_before_mib"] > 0
    written = file.stat().st_mtime_ns
    volumes.main(arguments)
    assert file.stat().st_mtime_ns == written


@pytest.mark.slow
def test_sixteen_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, benchmarks: None) -> None:
    import sixteen_bits
    from _tables import NOTHING
    from _tables.sixteen_bits import sixteen_bit_table

    monkeypatch.setattr(sixteen_bits, "SIZE", 64)
    file = tmp_path / "made.json"
    sixteen_bits.main(["--networks", "resnet18", "--rounds=1", "--sample=2", f"--json={file}"])
    (made,) = json.loads(file.read_text())
    assert made["windows"] == 49
    for kind in ("float32", "bfloat16", "float16"):
        assert made["seconds"][kind] > 0 and made["errors"][kind]["krypton"] > 0
    assert made["errors"]["float32"]["krypton"] < 1e-3 < made["errors"]["bfloat16"]["naive"]
    lines = sixteen_bit_table(file).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:5]] == ["float32", "bfloat16", "float16"]
    assert sixteen_bit_table(tmp_path / "missing") == NOTHING


def volume_result(name: str, window: list[int], threads: int = 1) -> dict[str, Any]:
    """Invented, in the form that `volumes.py` writes."""
    return {
        "network": name,
        "shape": [1, *[2 * size for size in window]],
        "window": window,
        "stride": [8] * len(window),
        "windows": 27,
        "captum_batch": 4,
        "captum_seconds": 1234.4,
        "first_seconds": 2.5,
        "seconds": 1.25,
        "speedup": 9.872,
        "by_operations": 20.0,
        "path": "incremental",
        "largest_difference": 2e-7 if name == "m5" else 1e-7,
        "memory_before_mib": 300.0,
        "memory_peak_mib": 400.4,
        "captum_memory_before_mib": 310.0,
        "captum_memory_peak_mib": 900.6,
        "machine": {
            "processor": "Abacus",
            "threads": threads,
            "vector instructions": "none",
            "gpu": None,
            "system": "Wood",
            "python": "3.10",
            "versions": {"monai": "1.0", "timm": "not installed"},
            "date": "2026-01-02",
        },
    }


def test_table_of_volumes(tmp_path: Path, benchmarks: None) -> None:
    from _tables import NOTHING
    from _tables.volumes import volume_results, volumes_section

    assert volumes_section(volume_results(tmp_path / "missing")) == NOTHING
    for number, made in enumerate(
        (
            volume_result("m5", [400]),
            volume_result("r3d_18", [4, 16, 16]),
            volume_result("cube", [16, 16, 16], threads=2),
        )
    ):
        (tmp_path / f"{number}.json").write_text(json.dumps(made))
    first, second = volumes_section(volume_results(tmp_path)).split("Measured on: ")[:2]
    assert first.splitlines()[2:4] == [
        "| r3d_18 | 9.87 | 1.25 | 2.5 | 1234 (4) | 20.00 | incremental | 1x8x32x32 | 4x16x16/8 "
        "| 27 | 400 (100) | 901 (591) |  |",
        "| m5 | 9.87 | 1.25 | 2.5 | 1234 (4) | 20.00 | incremental | 1x800 | 400/8 "
        "| 27 | 400 (100) | 901 (591) |  |",
    ]
    assert second.startswith("Abacus (none), 1 CPU threads, Wood, Python 3.10, monai 1.0; 2026-01-")
    assert "| cube | 9.87 |" in second and "| 1x32x32x32 | 16/8 | 27 |" in second
    assert volumes_section(volume_results(tmp_path)).endswith("is 2.0e-07 (m5).")


def test_networks_of_monai_need_their_extra(
    monkeypatch: pytest.MonkeyPatch, benchmarks: None
) -> None:
    import volumes

    # The last of them alone decides where another test has imported MONAI before.
    for name in ("monai", "monai.networks", "monai.networks.nets"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"UNet needs monai, .*captum-krypton\[monai\]"):
        volumes.unet(3)


@pytest.mark.parametrize("size", [(20,), (12, 9), (9, 7, 12)])
def test_windows_of_a_task_of_volumes_are_the_maps(size: tuple[int, ...], benchmarks: None) -> None:
    from volumes import VolumeTask

    from captum_krypton._call import WindowGrid

    window, stride = (5, 4, 6)[: len(size)], (3, 4, 2)[: len(size)]
    task = VolumeTask("", torch.zeros(1, 2, *size), 0, window, stride, "cpu", 1)
    grid = WindowGrid((2, *size), *task.windows().values())
    starts = [grid.along(axis + 1).start.tolist() for axis in range(len(size))]
    assert task.corners() == list(itertools.product(*starts))
