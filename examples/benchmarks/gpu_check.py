"""Everything that needs a GPU, in one command: tests, bandwidth of the kernel, speed of maps.

    python examples/benchmarks/gpu_check.py --json docs/data/gpu.json

Runs the tests that are skipped without a card, the kernel under compute-sanitizer where that is
installed, the kernel's bandwidth beside a device copy's, and `compare_with_captum.py` for the
paper's three networks, windows of 16 pixels and a stride of 4 (`--stride`), with CUDA graphs and
without, and without compiled kernels; and for 16 windows in all. A profile says which kernels a
map's time goes to. The exit status is 0 where every test passed. `--device cpu` rehearses the
measurements without a card.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
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
from captum.attr import Occlusion
from compare_with_captum import compare, print_table
from compare_with_captum import parse as parse_comparison
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from captum_krypton import KryptonOcclusion, backend_info
from captum_krypton._kernels import gather_patches

ROOT = Path(__file__).resolve().parents[2]
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Channels, side of the volume, side of the patches and of the read-in blocks, windows in a batch.
# What is moved is more than the card's caches hold.
VOLUMES = ((64, 224, 20, 22, 2048), (256, 56, 10, 12, 2048), (512, 14, 7, 9, 2048))
SANITIZED = "test_large_batches or test_volumes or current_stream or pooling or finish or hashes"


def run_tests() -> dict[str, Any]:
    """The GPU tests, and some of them under compute-sanitizer."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
    pytest += ["tests/test_gpu.py"]
    plain = subprocess.run(pytest, cwd=ROOT, capture_output=True, text=True)
    result = {"passed": plain.returncode == 0, "summary": last_line(plain.stdout)}
    if plain.returncode:
        print(plain.stdout)
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        return {**result, "compute_sanitizer": "not installed"}
    command = [sanitizer, "--error-exitcode", "9", *pytest, "-k", SANITIZED]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    result["passed"] = result["passed"] and checked.returncode == 0
    return {**result, "compute_sanitizer": last_line(checked.stdout)}


def last_line(text: str) -> str:
    """The last line that says something."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def seconds_of(work: Callable[[], object], device: str, repeats: int = 20) -> float:
    """Median seconds of one run of `work`, after two that do not count.

    On a GPU a graph of several runs is timed by the device: what the host does is not counted.
    """
    times = []
    work()
    if device == "cuda":
        graph, begin, end = torch.cuda.CUDAGraph(), *(torch.cuda.Event(True) for _ in range(2))
        with torch.cuda.graph(graph):
            for _ in range(repeats):
                work()
        for _ in range(7):
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3 / repeats)
        return statistics.median(times[2:])
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def bandwidth(device: str) -> list[dict[str, Any]]:
    """Bytes a second that the gather and a copy write, for the same output."""
    rows = []
    for channels, side, patch_side, read_side, most in VOLUMES:
        windows = most if device == "cuda" else 8
        offset = torch.randint(-1, side - read_side + 2, (windows, 2), device=device)
        image = torch.zeros(windows, dtype=torch.int64, device=device)
        for dtype in DTYPES:
            for layout in (torch.channels_last, torch.contiguous_format):
                base = torch.randn(1, channels, side, side, device=device).to(dtype)
                patch = torch.randn(windows, channels, patch_side, patch_side, device=device)
                base = base.contiguous(memory_format=layout)
                patch = patch.to(dtype).contiguous(memory_format=layout)
                arguments = (base, patch, image, offset + 1, offset, (read_side, read_side))
                block = gather_patches(*arguments)
                source = block.clone()
                gathered = seconds_of(lambda a=arguments: gather_patches(*a), device)
                copied = seconds_of(lambda b=block, s=source: b.copy_(s), device)
                moved = block.numel() * block.element_size() / 1e9
                rows.append(
                    {
                        "output": list(block.shape),
                        "dtype": str(dtype).removeprefix("torch."),
                        "channels_last": layout is torch.channels_last,
                        "gather_gb_per_s": moved / gathered,
                        "copy_gb_per_s": moved / copied,
                        "share": copied / gathered,
                    }
                )
    return rows


def profile(name: str, size: int, stride: int, device: str) -> dict[str, Any]:
    """Where the time of a later map goes: its kernels, and how much of it the device works."""
    network = build_network(name, size).to(device)
    x = to_input(load_image(None, size), network).to(device)
    occlusion = KryptonOcclusion(network)
    asked = square_windows(16, stride)
    for _ in range(8):  # the first ones make what later ones keep
        occlusion.heatmap(x, **asked)
    kinds = [ProfilerActivity.CPU]
    kinds += [ProfilerActivity.CUDA] if device == "cuda" else []
    started = time.perf_counter()
    with torch.profiler.profile(activities=kinds) as profiled:
        occlusion.heatmap(x, **asked)
        if device == "cuda":
            torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    for _ in range(3):  # the profiler's own time is not the map's
        started = time.perf_counter()
        occlusion.heatmap(x, **asked).attribution().cpu()
        seconds = min(seconds, time.perf_counter() - started)
    field = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    kind = DeviceType.CUDA if device == "cuda" else DeviceType.CPU  # else launches count, too
    rows = [row for row in profiled.key_averages() if row.device_type == kind]
    spent = {row.key: getattr(row, field) / 1e6 for row in rows}
    ranked = sorted(spent.items(), key=lambda pair: -pair[1])
    return {
        "model": name,
        "seconds": seconds,
        "busy": sum(spent.values()) / seconds,
        "kernels": dict(ranked),
    }


def few_windows(name: str, size: int, device: str) -> dict[str, Any]:
    """Seconds of maps of 16 windows: medians, without each side's first map."""
    network = build_network(name, size).to(device)
    x = to_input(load_image(None, size), network).to(device)
    asked = {**square_windows(math.ceil(size / 4), math.ceil(size / 4)), "target": 0}
    captum, krypton = Occlusion(network), KryptonOcclusion(network)
    sides: dict[str, Callable[[], Any]] = {
        "captum": lambda: captum.attribute(x, perturbations_per_eval=16, **asked),
        "krypton": lambda: krypton.attribute(x, **asked),
    }
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(12):
        for side, work in sides.items():
            started = time.perf_counter()
            work().cpu()
            times[side].append(time.perf_counter() - started)
    report = krypton.heatmap(x, **asked).report
    medians = {side: statistics.median(seconds[1:]) for side, seconds in times.items()}
    return {"model": name, "windows": report.windows, "path": report.path, **medians}


def write(file: str | None, result: dict[str, Any]) -> None:
    """Writes what there is so far: a long run that is stopped keeps it."""
    if file:
        Path(file).write_text(json.dumps(result, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything; 0 where all tests passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a rehearsal")
    parser.add_argument("--size", type=int, help="side of the input (default: the network's own)")
    parser.add_argument("--stride", type=int, default=4, help="pixels between windows")
    parser.add_argument("--sample", type=int, default=512, help="windows that naive sides run")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--only", nargs="+", default=PAPER_NETWORKS, help="these networks")
    parser.add_argument(
        "--no-compile",
        nargs="*",
        metavar="NETWORK",
        help="leave torch.compile out, for these networks or for all: it can take minutes",
    )
    parser.add_argument("--json", help="write everything measured to this file")
    options = parser.parse_args(arguments)
    backend = backend_info(options.device)
    result: dict[str, Any] = {
        "machine": machine(options.device),
        "backend": {"name": backend.name, "reasons": backend.reasons},
        "tests": run_tests() if options.device == "cuda" else "rehearsal",
        "bandwidth": bandwidth(options.device),
        "networks": [],
        "few_windows": [],
        "profiles": [],
    }
    print(result["backend"], result["tests"], sep="\n")
    for row in result["bandwidth"]:
        print(
            f"{row['output']!s:<24}{row['dtype']:<10}{'last' if row['channels_last'] else 'first'} "
            f"{row['gather_gb_per_s']:8.1f} GB/s, {row['share']:.2f} of a copy"
        )
    write(options.json, result)
    for name in options.only:
        size = options.size or LEAST_SIDE.get(name, 224)
        asked = [f"--model={name}", f"--size={size}", f"--stride={options.stride}"]
        asked += [f"--sample={options.sample}", f"--rounds={options.rounds}"]
        asked += [f"--device={options.device}"]
        if options.no_compile is not None and name in (options.no_compile or [name]):
            asked += ["--no-compile"]
        asked += ["--also", "reference"]
        asked += ["launched", "fused"] if options.device == "cuda" else []
        compared = compare(parse_comparison(asked))
        print_table(compared)
        for side in ("krypton", "fused"):
            report = compared["sides"].get(side, {}).get("report", {})
            if options.device == "cuda" and report.get("batches_replayed") == 0:
                print(f"{name}, {side}: no batch was replayed")
                result["tests"]["passed"] = False
        result["networks"].append(compared)
        few = few_windows(name, size, options.device)
        result["few_windows"].append(few)
        print("{model}, {windows} windows: Captum {captum:.4f} s, {krypton:.4f} s".format(**few))
        found = profile(name, size, options.stride, options.device)
        print(f"{name}: the device works {found['busy']:.0%} of a map's {found['seconds']:.2f} s")
        for kernel, seconds in list(found["kernels"].items())[:8]:
            print(f"  {seconds / found['seconds']:6.1%}  {kernel[:90]}")
        result["profiles"].append(found)
        write(options.json, result)
    return 0 if options.device != "cuda" or result["tests"]["passed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
