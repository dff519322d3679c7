"""How fast approximate maps of the paper's three networks are, at the cost of a quality.

    python examples/benchmarks/approximate_speed.py --json docs/data/approximate_speed.json

Their weights are random here, so that a map of theirs says nothing about quality. What a quality
costs in windows is taken from photographs and a trained network instead (`approximate_quality.py`):
each network runs as many of its windows. Captum, the exact map and every approximation are timed in
one run.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _shared import (
    LEAST_SIDE,
    PAPER_NETWORKS,
    build_network,
    load_image,
    machine,
    square_windows,
    to_input,
)
from _tables.approximate import approximation_speed_table, approximations
from approximate_quality import captum, timed

from captum_krypton import Budget, KryptonOcclusion

QUALITIES = ("quality 0.8", "quality 0.9", "quality 0.95")


def shares(stride: int) -> dict[str, float]:
    """The median share of windows that each quality took with a stride, over what was measured."""
    found = [result for result in approximations() if result["stride"] == stride]
    rows = [row for result in found for row in result["rows"]]
    return {
        way: statistics.median(row["windows"] for row in rows if row["way"] == way)
        for way in QUALITIES
    }


def measure(name: str, side: int, options: argparse.Namespace) -> dict[str, Any]:
    """One network: Captum at its fastest batch, and maps in every way, the median of its turns."""
    network = build_network(name, side)
    x = to_input(load_image(None, side), network)
    asked = square_windows(options.window, options.stride)
    exact = KryptonOcclusion(network)
    heat = exact.heatmap(x, **asked)
    total = heat.report.windows
    ways = {"exact": exact}
    for tau in (0.8, 0.6, 0.4):
        ways[f"threshold {tau:g}"] = KryptonOcclusion(network, projective_field_threshold=tau)
    for way, share in shares(options.stride).items():
        budget = Budget(windows=max(round(share * total), 100))
        ways[f"{way}, {share:.0%} of the windows"] = KryptonOcclusion(network, budget=budget)
    rows = []
    for way, occlusion in ways.items():
        timed(occlusion, x, asked)  # captures, packs and checks
        turns = [timed(occlusion, x, asked) for _ in range(options.rounds)]
        rows.append(
            {
                "way": way,
                "seconds": statistics.median(seconds for seconds, _ in turns),
                "windows": turns[-1][1].report.windows_evaluated / total,
            }
        )
        print(f"{name:14} {way:36} {rows[-1]['seconds']:.2f} s", flush=True)
    found = captum(network, x, heat.target, asked, total)
    return {"model": name, "size": side, "windows": total, "captum": found, "rows": rows}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=PAPER_NETWORKS, default=PAPER_NETWORKS)
    parser.add_argument("--size", type=int, help="side of the images (default: the network's own)")
    parser.add_argument("--window", type=int, default=16, help="side of a window in pixels")
    parser.add_argument("--stride", type=int, default=8, help="in pixels")
    parser.add_argument("--rounds", type=int, default=1, help="turns of each way")
    parser.add_argument("--json", help="file to write the result to")
    options = parser.parse_args(arguments)
    with torch.no_grad():
        networks = [
            measure(name, options.size or LEAST_SIDE.get(name, 224), options)
            for name in options.networks
        ]
    result = {
        "window": options.window,
        "stride": options.stride,
        "machine": machine(),
        "networks": networks,
    }
    print("\n" + approximation_speed_table(result))
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
