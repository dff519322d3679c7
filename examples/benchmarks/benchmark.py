"""Many networks, sides and windows: `compare_with_captum.py` for each, and one table of all.

    python examples/benchmarks/benchmark.py --networks vgg16 resnet18 --json-folder results
    python examples/benchmarks/benchmark.py --profile resnet50 vgg16
    python examples/benchmarks/benchmark.py --accuracy resnet18 vgg16

Each comparison is a file of its own, and one that is there is not run again: a run that was cut off
goes on where it stopped. Without arguments it takes the better part of a day on two CPU cores.
`--profile` says where the time of a network's map goes, operator by operator, and how far that is
from all multiply-accumulates at the machine's peak. `--accuracy` says how far outcomes are from
float64, beside plain forward passes in float32.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from _shared import (
    LEAST_SIDE,
    build_network,
    load_image,
    machine,
    occluded,
    sampled_windows,
    square_windows,
    to_input,
    window_corners,
)
from _tables.speed import accuracy_table, profile_table, speed_table
from compare_with_captum import compare, parse, print_table
from torch import Tensor

from captum_krypton import KryptonOcclusion

NETWORKS = (
    "vgg16",
    "resnet18",
    "inception_v3",
    "resnet50",
    "mobilenet_v2",
    "squeezenet1_1",
    "densenet121",
    "tf_efficientnet_lite0",
    "convnext_tiny",
)


def questions(options: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """A name, and the arguments of `compare_with_captum.py`, for every comparison."""
    workloads = [("windows", *pair.split("/")) for pair in options.windows]
    workloads += [("total", str(total), "") for total in options.windows_total]
    for threads, size, (kind, first, second), network in itertools.product(
        options.threads, options.sizes, workloads, options.networks
    ):
        side = max(size, LEAST_SIDE.get(network, 0))
        asked = [f"--model={network}", f"--size={side}", f"--threads={threads}"]
        if kind == "windows":
            asked += [f"--window={first}", f"--stride={second}"]
            label = f"{first}-{second}"
        else:
            asked += [f"--windows-total={first}"]
            label = f"total-{first}"
        asked += [f"--sample={options.sample}", f"--rounds={options.rounds}"]
        asked += [] if options.compile else ["--no-compile"]
        yield f"{network}_{side}_{label}_threads-{threads}", asked


def benchmark(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs what is missing; all results."""
    folder = Path(options.json_folder)
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    for name, arguments in questions(options):
        file = folder / f"{name}.json"
        if not file.exists():
            print(f"\n{name}", flush=True)
            result = compare(parse(arguments))
            print_table(result)
            file.write_text(json.dumps(result, indent=1) + "\n")
        results.append(json.loads(file.read_text()))
    return results


def peak_rate() -> float:
    """Multiply-accumulates a second of a large matrix product in float32: the machine's peak."""
    a, b = torch.ones(2048, 2048), torch.ones(2048, 2048)
    best = math.inf
    for _ in range(5):
        started = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - started)
    return 2048**3 / best


def profile(name: str, size: int, window: int, stride: int) -> dict[str, Any]:
    """Where the time of a network's map goes, operator by operator."""
    network = build_network(name, size)
    x = to_input(load_image(None, size), network)
    occlusion = KryptonOcclusion(network)
    asked = square_windows(window, stride)
    occlusion.heatmap(x, **asked)  # set-up and first use
    plan = occlusion.explain(x, run=True, **asked)
    print(plan)
    report = occlusion.heatmap(x, **asked).report
    return {
        "model": name,
        "size": size,
        "window": window,
        "stride": stride,
        "windows": report.windows,
        "seconds": report.seconds,
        "predicted_seconds": report.predicted_seconds,
        "peak": peak_rate(),
        "machine": machine(),
        "operators": [dataclasses.asdict(row) for row in plan.plans[0][0]],
    }


def accuracy(name: str, size: int, window: int, count: int) -> dict[str, Any]:
    """Root mean square errors against float64, over all outputs for some windows of a network.

    The plain forward passes are those of contiguous tensors and of channels last: PyTorch has other
    code for each, and rounds otherwise.
    """
    network = build_network(name, size)
    x = to_input(load_image(None, size), network)
    corners = window_corners(x, window, window)
    indices = sampled_windows(len(corners), count)
    images = occluded(x, [corners[index] for index in indices], window)

    @torch.no_grad()
    def outputs(dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
        model = copy.deepcopy(network).to(dtype=dtype, memory_format=layout)
        each = [image.to(dtype).contiguous(memory_format=layout) for image in images.split(1)]
        return torch.cat([model(image).double() for image in each])

    exact = outputs(torch.float64, torch.contiguous_format)

    def error(computed: Tensor) -> float:
        return (computed - exact).square().mean().sqrt().item()

    def ours(winograd: bool) -> float:
        occlusion = KryptonOcclusion(network, winograd=winograd)
        heat = occlusion.heatmap(x, target=None, **square_windows(window, window))
        return error(heat.scores[0].flatten(1).T[indices].double())

    return {
        "model": name,
        "size": size,
        "window": window,
        "windows": len(indices),
        "rms": {
            "contiguous": error(outputs(torch.float32, torch.contiguous_format)),
            "channels last": error(outputs(torch.float32, torch.channels_last)),
            "captum-krypton": ours(True),
            "without Winograd": ours(False),
        },
        "largest_output": exact.abs().max().item(),
        "machine": machine(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparisons, or one profile."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="torchvision or timm names")
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 448], help="in pixels")
    parser.add_argument(
        "--windows", nargs="*", default=["16/8", "32/8"], help="window/stride in pixels"
    )
    parser.add_argument(
        "--windows-total", nargs="*", type=int, default=[16], help="windows for about so many"
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="CPU threads")
    parser.add_argument("--sample", type=int, default=128, help="windows that naive sides run")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--json-folder", default="benchmark", help="one file a comparison")
    parser.add_argument("--profile", nargs="+", metavar="NETWORK", help="where their time goes")
    parser.add_argument("--accuracy", nargs="+", metavar="NETWORK", help="their rounding errors")
    options = parser.parse_args(arguments)
    torch.set_num_threads(max(options.threads))
    if not options.profile and not options.accuracy:
        print("\n" + speed_table(benchmark(options)))
        return
    folder = Path(options.json_folder)
    folder.mkdir(parents=True, exist_ok=True)
    (size, *_), (windows, *_) = options.sizes, options.windows
    window, stride = map(int, windows.split("/"))
    for name in options.profile or options.accuracy:
        side = max(size, LEAST_SIDE.get(name, 0))
        if options.profile:
            result = profile(name, side, window, stride)
            table = profile_table([result])
        else:
            result = accuracy(name, side, window, options.sample)
            table = accuracy_table([result])
        (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        print(f"\n{table}\n", flush=True)


if __name__ == "__main__":
    main()
