"""The tables of what `gpu_check.py` measured on a card."""

from __future__ import annotations

import json
from typing import Any

from . import DATA, markdown_table

_GPU_KERNELS = {
    # Products in TF32 are those of convolutions: linear layers have float32 unless one asks.
    "convolutions": ("fprop", "convolve", "tf32", "tensorop", "nchwToNhwc", "convertTensor"),
    "linear": ("gemm", "gemv"),
    "gather": ("gather_kernel",),
    "pooling": ("pool",),
    "bias and clamp": ("finish_kernel",),
    "joining": ("CatArray",),
}


def gpu() -> dict[str, Any]:
    """What `gpu_check.py` measured."""
    found: dict[str, Any] = json.loads((DATA / "gpu.json").read_text())
    return found


def gpu_line(result: dict[str, Any]) -> str:
    """Maps on a GPU, in a sentence."""
    titles = {"vgg16": "VGG16", "resnet18": "ResNet18", "inception_v3": "Inception v3"}
    parts = []
    for compared in result["networks"]:
        sides = compared["sides"]
        ours, best, default = (
            f"{1e3 * sides[name]['seconds']:.0f}"
            for name in ("krypton", "captum", "captum_default")
        )
        name = titles.get(compared["model"], compared["model"])
        parts.append(f"{name} {ours} ms instead of {best} (by default {default})")
    where, first = result["machine"], result["networks"][0]
    return (
        f"Later maps on a GPU ({where['gpu']}), windows of {first['window']}, stride "
        f"{first['stride']}: {', '.join(parts)}. [GPUs](docs/guides/gpus.md) says more."
    )


def gpu_speed_table(result: dict[str, Any]) -> str:
    """Maps on a GPU: milliseconds, and Captum's over ours."""
    titles = {
        "network": "---",
        "times over best batch": "--:",
        "over default": "--:",
        "exact, ms": "--:",
        "first map, ms": "--:",
        "Captum at best batch, ms": "--:",
        "Captum by default, ms": "--:",
        "plain torch, ms": "--:",
        "no graphs, ms": "--:",
        "windows": "--:",
    }

    def cells(compared: dict[str, Any]) -> list[str]:
        sides, ratio = compared["sides"], compared["speedup"]

        def milliseconds(name: str) -> str:
            side = sides.get(name, {})
            return f"{1e3 * side['seconds']:.0f}" if "seconds" in side else "failed"

        return [
            compared["model"],
            f"{ratio['over_captum']:.1f}",
            f"{ratio['over_captum_default']:.0f}",
            milliseconds("krypton"),
            f"{1e3 * sides['krypton']['first_seconds']:.0f}",
            f"{milliseconds('captum')} ({sides['captum']['batch']})",
            milliseconds("captum_default"),
            milliseconds("reference"),
            milliseconds("launched"),
            str(compared["windows"]),
        ]

    return markdown_table(titles, [cells(compared) for compared in result["networks"]])


def gpu_few_table(result: dict[str, Any]) -> str:
    """Maps of few windows on a GPU, in milliseconds."""
    titles = {"network": "---", "windows": "--:", "Captum": "--:", "ours": "--:", "path": "---"}
    rows = [
        [
            row["model"],
            str(row["windows"]),
            f"{1e3 * row['captum']:.1f}",
            f"{1e3 * row['krypton']:.1f}",
            row["path"],
        ]
        for row in result["few_windows"]
    ]
    return markdown_table(titles, rows)


def gpu_profile_table(result: dict[str, Any]) -> str:
    """Which kernels the time of a later map goes to, in milliseconds."""
    titles = {"network": "---", "map": "--:", "kernels": "--:"}
    titles |= {name: "--:" for name in (*_GPU_KERNELS, "other kernels")}

    def cells(found: dict[str, Any]) -> list[str]:
        spent = dict.fromkeys((*_GPU_KERNELS, "other kernels"), 0.0)
        for kernel, seconds in found["kernels"].items():
            kinds = [k for k, parts in _GPU_KERNELS.items() if any(p in kernel for p in parts)]
            spent[kinds[0] if kinds else "other kernels"] += seconds
        total = sum(spent.values())
        columns = [f"{1e3 * seconds:.1f}" for seconds in spent.values()]
        return [found["model"], f"{1e3 * found['seconds']:.0f}", f"{1e3 * total:.1f}", *columns]

    return markdown_table(titles, [cells(found) for found in result["profiles"]])


def gpu_bandwidth_table(result: dict[str, Any]) -> str:
    """The gather beside a device copy of its output: GB written a second."""
    titles = {"blocks": "---", "channels": "---", "type": "---"}
    titles |= {"gather": "--:", "copy": "--:", "share": "--:"}
    rows = [
        [
            " x ".join(map(str, row["output"])),
            "last" if row["channels_last"] else "first",
            row["dtype"],
            f"{row['gather_gb_per_s']:.0f}",
            f"{row['copy_gb_per_s']:.0f}",
            f"{row['share']:.2f}",
        ]
        for row in result["bandwidth"]
    ]
    return markdown_table(titles, rows)


def host_cost() -> dict[str, Any]:
    """What `host_cost.py` measured, by revision."""
    found: dict[str, Any] = json.loads((DATA / "host_cost.json").read_text())
    return found


def host_cost_table(result: dict[str, Any]) -> str:
    """What maps cost the host of a GPU, before and now."""
    titles = {
        "network": "---",
        "revision": "---",
        "two passes, ms": "--:",
        "to the first batch, ms": "--:",
        "later map, ms": "--:",
        "operators": "--:",
        "replays": "--:",
    }
    rows = []
    for number, found in enumerate(result["now"]["networks"]):
        for revision, measured in result.items():
            network = measured["networks"][number]
            first, later = network["first"], network["later"]
            steps = first["captured_model"] + first["plan"]
            rows.append(
                [
                    found["model"],
                    revision,
                    f"{1e3 * first['two_passes']:.0f}",
                    f"{1e3 * steps:.0f}",
                    f"{later['microseconds'] / 1e3:.1f}",
                    str(later["operators"]),
                    str(later["replays"]),
                ]
            )
    return markdown_table(titles, rows)
