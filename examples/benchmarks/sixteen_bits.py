"""Maps in bfloat16 and float16 beside the same in float32: times, and what rounding leaves of them.

    python examples/benchmarks/sixteen_bits.py --networks resnet18 mobilenet_v2
    python examples/benchmarks/sixteen_bits.py --json docs/data/sixteen_bits.json

The types take turns. Errors are those of the drop of the outcome (root mean square over some
windows) against float64, of a plain forward pass in the type and of the map, both over the root
mean square of the drops themselves.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _shared import (
    build_network,
    machine,
    make_comparable,
    occluded,
    sampled_windows,
    square_windows,
    window_corners,
)
from torch import Tensor

from captum_krypton import KryptonOcclusion

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SIZE, WINDOW, STRIDE, TARGET = 224, 16, 8, 1


@torch.no_grad()
def compare(name: str, rounds: int, sample: int) -> dict[str, Any]:
    """Times and errors of a network's maps in each type.

    Args:
        name: a network that `benchmark.py` knows.
        rounds: later maps of each type.
        sample: windows whose drops are compared.
    """
    torch.manual_seed(0)
    network = build_network(name, SIZE)
    make_comparable(network, SIZE)
    network.eval()
    x = torch.randn(1, 3, SIZE, SIZE)
    windows = square_windows(WINDOW, STRIDE)
    corners = window_corners(x, WINDOW, STRIDE)
    some = sampled_windows(len(corners), sample)
    images = [x, *(occluded(x, [corners[number]], WINDOW) for number in some)]

    def drops(dtype: torch.dtype) -> Tensor:
        model = copy.deepcopy(network).to(dtype)
        rows = torch.stack([model(image.to(dtype))[0, TARGET].double() for image in images])
        return rows[0] - rows[1:]

    exact = drops(torch.float64)
    scale = exact.square().mean().sqrt()
    occlusions = {
        kind: KryptonOcclusion(copy.deepcopy(network).to(dtype)) for kind, dtype in DTYPES.items()
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in DTYPES}
    errors: dict[str, dict[str, float]] = {}
    for turn in range(rounds + 1):
        for kind, dtype in DTYPES.items():
            started = time.perf_counter()
            heat = occlusions[kind].heatmap(x.to(dtype), target=TARGET, **windows)
            if turn:
                seconds[kind].append(time.perf_counter() - started)
                continue
            ours = (heat.reference - heat.scores.flatten(1))[0, some].double()
            errors[kind] = {
                "krypton": float((ours - exact).square().mean().sqrt() / scale),
                "naive": float((drops(dtype) - exact).square().mean().sqrt() / scale),
            }
    return {
        "network": name,
        "windows": len(corners),
        "seconds": {kind: statistics.median(times) for kind, times in seconds.items()},
        "all_seconds": seconds,
        "errors": errors,
        "machine": machine(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for each network and type."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["resnet18", "mobilenet_v2"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sample", type=int, default=48)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    results = []
    for name in options.networks:
        made = compare(name, options.rounds, options.sample)
        results.append(made)
        for kind, seconds in made["seconds"].items():
            error = made["errors"][kind]
            print(
                f"{name:16} {kind:9} {seconds:.2f} s "
                f"({seconds / made['seconds']['float32']:.2f} of float32); errors of the drop: "
                f"{error['krypton']:.1e}, of a forward pass's {error['naive']:.1e}",
                flush=True,
            )
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
