"""The table of feature ablation beside Captum's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import DATA, NOTHING, machine_line, tables_by_machine


def superpixel_table(folder: Path = DATA / "superpixels") -> str:
    """The table of what `superpixels.py` wrote to a folder, small images first."""
    results = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    results.sort(key=lambda result: (_pixels(result), result["network"], result["features"]))
    titles = {
        "network": "---",
        "times over Captum": "--:",
        "later maps, s": "--:",
        "first map, s": "--:",
        "Captum, s (batch)": "--:",
        "times by operations": "--:",
        "image, px": "---",
        "superpixels": "--:",
    }

    def cells(result: dict[str, Any]) -> list[str]:
        return [
            result["network"],
            f"{result['speedup']:.1f}",
            f"{result['seconds']:.3g}",
            f"{result['first_seconds']:.3g}",
            f"{result['captum_seconds']:.3g} ({result['captum_batch']})",
            f"{result['by_operations']:.1f}",
            result["size"],
            str(result["features"]),
        ]

    return tables_by_machine(titles, results, cells)


def _pixels(result: dict[str, Any]) -> int:
    height, width = map(int, result["size"].split("x"))
    return height * width


def layer_line(file: Path = DATA / "layer_ablation.json") -> str:
    """What `layer_ablation.py` measured, in words."""
    if not file.exists():
        return NOTHING
    made = json.loads(file.read_text())
    return (
        f"Ablation of the {made['features']} channels of VGG16's last convolution (Ablation-CAM), "
        f"224 pixels: {made['seconds']:.3g} s, the first time {made['first_seconds']:.3g} s; "
        f"`captum.attr.LayerFeatureAblation` {made['captum_seconds']:.0f} s in batches of "
        f"{made['captum_batch']}, {made['speedup']:.0f} times as long. "
        f"Measured on: {machine_line(made)}."
    )
