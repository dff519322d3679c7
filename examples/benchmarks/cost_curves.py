"""What a window costs: against the number of windows, the image's side and the window's side.

    python examples/benchmarks/cost_curves.py --json curves.json --output curves.png

captum-krypton runs whole maps. Captum runs one batch of the same windows, at its fastest batch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from _figures import OURS, STYLE, THEIRS, WIDTH, save
from _shared import (
    build_network,
    captum_seconds_per_window,
    fastest_batch,
    load_image,
    machine,
    square_windows,
    to_input,
)
from matplotlib.figure import Figure

from captum_krypton import KryptonOcclusion

BATCHES = (1, 4, 16)
_LABELS = {
    "windows": "windows of the map",
    "image side": "image side, pixels",
    "window side": "window side, pixels",
}


def point(model: str, side: int, window: int, stride: int, rounds: int) -> dict[str, Any]:
    """Seconds for a window, ours and Captum's."""
    network = build_network(model, side)
    x = to_input(load_image(None, side), network)
    with torch.no_grad():
        target = int(network(x).argmax())
    windows = square_windows(window, stride)
    occlusion = KryptonOcclusion(network)
    total = occlusion.heatmap(x, target=target, **windows).report.windows  # set-up besides
    batches = tuple(batch for batch in BATCHES if 3 * batch <= total) or (1,)

    def captum(batch: int, times: int) -> float:
        return captum_seconds_per_window(network, x, target, batch, times, **windows)

    batch = fastest_batch(captum, batches, min(total, 32))
    ours, theirs = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        occlusion.heatmap(x, target=target, **windows)
        ours.append((time.perf_counter() - started) / total)
        theirs.append(captum(batch, max(1, 16 // batch)))
    return {
        "side": side,
        "window": window,
        "stride": stride,
        "windows": total,
        "seconds": statistics.median(ours),
        "captum_seconds": statistics.median(theirs),
    }


def measure(model: str, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """The three curves; the others' settings are side 224, window 16 and stride 16."""
    curves = {
        "windows": [(224, 16, stride) for stride in (16, 12, 8, 6, 4)],
        "image side": [(side, 16, 16) for side in (128, 224, 320, 448)],
        "window side": [(224, window, 16) for window in (16, 32, 64, 112)],
    }
    return {
        name: [point(model, *settings, rounds) for settings in points]
        for name, points in curves.items()
    }


def draw(result: dict[str, Any], output: str) -> None:
    """The curves as a picture, one below the other."""
    keys = {"windows": "windows", "image side": "side", "window side": "window"}
    where = result["machine"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 8.4), layout="constrained")
        axes = figure.subplots(3, 1)
        for ax, (name, points) in zip(axes, result["curves"].items(), strict=True):
            at = [p[keys[name]] for p in points]
            theirs = [1e3 * p["captum_seconds"] for p in points]
            ax.plot(at, theirs, "o--", color=THEIRS, label="Captum")
            ax.plot(
                at, [1e3 * p["seconds"] for p in points], "o-", color=OURS, label="captum-krypton"
            )
            ax.set(xlabel=_LABELS[name], ylabel="ms a window", ylim=(0, 1.15 * max(theirs)))
            ax.set_xticks(at, [str(x) for x in at])
            ax.tick_params("x", labelrotation=45 if name == "windows" else 0)
            ax.grid()
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
        title = f"{result['model']}, {where['processor']}, {where['threads']} threads"
        axes[0].set_title(title, fontsize=11)
        save(figure, output)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet18", help="any torchvision or timm name")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--json", help="write everything measured to this file")
    parser.add_argument("--output", help="the picture's file")
    parser.add_argument("--from-json", help="draw what this file holds, without measuring")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.from_json:
        result = json.loads(Path(options.from_json).read_text())
    else:
        result = {
            "model": options.model,
            "machine": machine("cpu"),
            "curves": measure(options.model, options.rounds),
        }
    for name, points in result["curves"].items():
        print(f"against {name}:")
        for p in points:
            ratio = p["captum_seconds"] / p["seconds"]
            print(
                f"  side {p['side']}, window {p['window']}, stride {p['stride']}, "
                f"{p['windows']} windows: {1e3 * p['seconds']:.2f} ms a window, "
                f"Captum {1e3 * p['captum_seconds']:.2f} ms, {ratio:.1f} x"
            )
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    if options.output:
        draw(result, options.output)


if __name__ == "__main__":
    main()
