"""The table of volumes, videos and signals beside Captum."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import DATA, NOTHING, tables_by_machine

# Of these networks the README has the times.
_TOLD = {
    "r3d_18": "R3D-18",
    "monai_resnet50": "MONAI's 3-D ResNet50",
    "monai_densenet121": "3-D DenseNet121",
    "resnet_unet_one_pixel": "one pixel of a U-Net at 512 x 512",
    "ecg_resnet18": "an ECG by ResNet18",
}


def volume_results(folder: Path = DATA / "volumes") -> list[dict[str, Any]]:
    """What `volumes.py` wrote to a folder: those of three window axes first, each by name."""
    results = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    return sorted(results, key=lambda result: -len(result["window"]))


def volume_table(results: list[dict[str, Any]]) -> str:
    """The table of what `volumes.py` measured, one for each machine and number of threads."""
    titles = {
        "network": "---",
        "times over Captum": "--:",
        "later maps, s": "--:",
        "first map, s": "--:",
        "Captum, s (batch)": "--:",
        "times by operations": "--:",
        "path": "---",
        "input, cells": "---",
        "window/stride, cells": "--:",
        "windows": "--:",
        "peak (rise), MiB": "--:",
        "Captum's, MiB": "--:",
        "Captum's at this batch, MiB": "--:",
    }

    def cells(result: dict[str, Any]) -> list[str]:
        return [
            result["network"],
            f"{result['speedup']:.2f}",
            _seconds(result["seconds"]),
            _seconds(result["first_seconds"]),
            f"{_seconds(result['captum_seconds'])} ({result['captum_batch']})",
            f"{result['by_operations']:.2f}",
            result["path"],
            "x".join(map(str, result["shape"])),
            f"{_sizes(result['window'])}/{_sizes(result['stride'])}",
            str(result["windows"]),
            _memory(result, ""),
            _memory(result, "captum_"),
            _memory(result, "captum_same_batch_"),
        ]

    return tables_by_machine(titles, results, cells)


def volumes_section(results: list[dict[str, Any]]) -> str:
    """The measured part of the documentation's section on volumes, videos and signals."""
    if not results:
        return NOTHING
    worst = max(results, key=lambda result: result["largest_difference"])
    return (
        f"{volume_table(results)}\n\n"
        "Some windows of each map were compared with plain forward passes; the largest difference, "
        f"relative to the largest of their outcomes, is {worst['largest_difference']:.1e} "
        f"({worst['network']})."
    )


def volume_line(results: list[dict[str, Any]]) -> str:
    """What the README says of volumes, videos and signals: later maps beside Captum's."""
    found = {result["network"]: result for result in results}
    told = [
        f"{text} {_seconds(found[name]['seconds'])} s instead of "
        f"{_seconds(found[name]['captum_seconds'])}"
        for name, text in _TOLD.items()
        if name in found
    ]
    if not told:
        return NOTHING
    machine = next(found[name] for name in _TOLD if name in found)["machine"]
    return (
        f"Later maps of videos, volumes and signals ({machine['threads']} CPU threads, "
        f"{machine['vector instructions']}): {', '.join(told)}. "
        "[Networks](docs/networks.md) has more."
    )


def _sizes(sizes: list[int]) -> str:
    """One number where all are the same, as those of a cube are."""
    return str(sizes[0]) if len(set(sizes)) == 1 else "x".join(map(str, sizes))


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 100 else f"{seconds:.3g}"


def _memory(result: dict[str, Any], prefix: str) -> str:
    if f"{prefix}memory_peak_mib" not in result:
        return ""
    peak = result[f"{prefix}memory_peak_mib"]
    return f"{peak:.0f} ({peak - result[f'{prefix}memory_before_mib']:.0f})"
