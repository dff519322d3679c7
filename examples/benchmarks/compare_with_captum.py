"""One network, one image: Captum, a naive loop and captum-krypton, measured in one run.

    python examples/benchmarks/compare_with_captum.py --model vgg16 --json vgg16.json

Captum and the loops run a sample of the windows, and their times are scaled to all of them;
captum-krypton runs the whole map. Every side has a process of its own, and they take turns.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from _shared import build_network, fastest_batch, load_image, machine, to_input
from _sides import Process, SideFailedError, Task
from _tables.speed import INCREMENTAL

BATCHES, BATCHES_ON_GPUS = (1, 4, 8, 16, 32, 64), (16, 64, 128, 256, 512)
NAMES = {
    "captum": "Captum",
    "captum_default": "Captum, its default batch",
    "captum_kept": "Captum, allocator keeps its memory",
    "loop": "loop, channels-last",
    "compiled": "loop, channels-last, torch.compile",
    "krypton": "captum-krypton",
    "launched": "captum-krypton, no CUDA graphs",
    "fused": "captum-krypton, torch.compile",
    "reference": "incremental, plain torch",
}
ON_REQUEST = tuple(name for name in INCREMENTAL if name != "krypton")


def best_batch(process: Process, task: Task) -> int:
    """The side's fastest batch size."""
    windows = len(task.corners())
    batches = BATCHES_ON_GPUS if task.on_gpu else BATCHES
    candidates = tuple(batch for batch in batches if batch <= windows)

    def seconds_per_window(batch: int, batches: int) -> float:
        try:
            seconds: float = process.call("seconds_per_window", batch, batches)
        except SideFailedError as error:
            if "OutOfMemoryError" not in str(error):
                raise
            return math.inf
        return seconds

    return fastest_batch(seconds_per_window, candidates or (windows,), windows)


def captum_memory(process: Process, batch: int) -> float:
    """Captum's peak memory in MiB, running the map's first windows `batch` at a time."""
    process.call("start_memory")
    process.call("seconds_per_window", batch, 1)
    peak: float = process.call("peak_memory")
    return peak


@contextmanager
def trial(name: str, task: Task, started: dict[str, Process]) -> Iterator[Process]:
    """A process for what changes its memory: one of its own, or on a GPU that of the side."""
    if task.on_gpu:
        yield started[name]
        return
    process = Process(name, task)
    try:
        yield process
    finally:
        process.close()


def measure(
    task: Task, sample: int, rounds: int, names: Iterable[str], at_once: int | None
) -> dict[str, Any]:
    """Times of every side, `rounds` of each in turn, and captum-krypton's results."""
    windows = len(task.corners())
    sides: dict[str, dict[str, Any]] = {}
    processes: dict[str, Process] = {}
    if task.on_gpu:  # the host has time for all of them
        processes = {name: Process(name, task) for name in names}
    batch: dict[str, int] = {"captum_default": 1}
    for name, other in (("captum", "captum_kept"), ("loop", "compiled")):
        if at_once is not None:
            batch[name] = at_once
        else:
            with trial(name, task, processes) as process:
                batch[name] = best_batch(process, task)
        batch[other] = batch[name]
    batches = {name: math.ceil(min(sample, windows) / b) for name, b in batch.items()}
    for name in names:
        side: dict[str, Any] = {"batch": batch.get(name)}
        sides[name] = side
        try:
            if name not in processes:
                processes[name] = Process(name, task)
                processes[name].wait()
            if name == "compiled":  # compiles here, outside the times
                processes[name].call("seconds_per_window", batch[name], 1)
            side["memory_before_mib"] = processes[name].call("start_memory")
            if name in INCREMENTAL:
                side["first_seconds"] = processes[name].call("seconds")
                for _ in range(10):  # the first ones may run the forward function itself
                    if processes[name].call("report")["path"] != "naive":
                        break
                    side["capture_seconds"] = processes[name].call("seconds")
                if task.on_gpu:  # CUDA graphs are captured by the next one
                    side["graphs_seconds"] = processes[name].call("seconds")
        except SideFailedError as error:
            if name == "krypton":
                raise
            if name in processes:
                processes.pop(name).close()
            side["failed"] = str(error).strip().splitlines()[-1]
            print(f"{NAMES[name]}: left out, it failed with {side['failed']}")
            continue
        side["seconds_per_window"] = []
    for _ in range(rounds):
        for name, process in processes.items():
            if name in INCREMENTAL:
                seconds = process.call("seconds") / windows
            else:
                seconds = process.call("seconds_per_window", batch[name], batches[name])
            sides[name]["seconds_per_window"].append(seconds)
    for name, process in processes.items():
        side = sides[name]
        side["memory_peak_mib"] = process.call("peak_memory")
        side["seconds"] = statistics.median(side["seconds_per_window"]) * windows
        if name not in INCREMENTAL:
            side["windows_timed"] = min(batch[name] * batches[name], windows)
    for name in set(processes) & set(INCREMENTAL):
        sides[name]["report"] = processes[name].call("report")
    with trial("captum", task, processes) as process:
        at_our_batch = captum_memory(
            process, min(sides["krypton"]["report"]["batch_size"], windows)
        )
    sides["krypton"]["captum_memory_peak_mib"] = at_our_batch
    # After the peak is read: this makes a float64 copy of the network.
    equality = processes["krypton"].call("outcome_errors", 16)
    for process in processes.values():
        process.close()
    return {"windows": windows, "sides": sides, "equality": equality}


def speedups(sides: dict[str, dict[str, Any]], windows: int) -> dict[str, float]:
    """Captum's time and the fastest naive time over ours, first map and later ones.

    A naive side that ran the whole map has a first map of its process too.
    """
    ours, default = sides["krypton"], sides.get("captum_default", {})
    naive = {name: s for name, s in sides.items() if name not in INCREMENTAL and "seconds" in s}
    later = {name: side["seconds"] for name, side in naive.items()}
    first = dict(later)
    for name, side in naive.items():
        if side["windows_timed"] == windows:
            first[name] = side["seconds_per_window"][0] * windows
    found = {}
    if "seconds" in default:
        found["over_captum_default"] = default["seconds"] / ours["seconds"]
    return {
        **found,
        "over_captum_first": first["captum"] / ours["first_seconds"],
        "over_captum": later["captum"] / ours["seconds"],
        "over_fastest_naive_first": min(first.values()) / ours["first_seconds"],
        "over_fastest_naive": min(later.values()) / ours["seconds"],
    }


def print_table(result: dict[str, Any]) -> None:
    """The result for a reader."""
    sides, equality, windows = result["sides"], result["equality"], result["windows"]
    report = sides["krypton"]["report"]
    where = result["machine"]
    print(
        f"{result['model']} ({result['weights']} weights), {result['size']} x {result['size']}, "
        f"windows of {result['window']}, stride {result['stride']}: {windows} windows\n"
        f"{where['gpu'] or where['processor']}, {where['threads']} CPU threads, "
        f"median of {result['rounds']} rounds"
    )
    print(f"{'':<38}{'batch':>6}{'windows run':>13}{'map, s':>10}{'peak MiB':>10}{'rise MiB':>10}")
    for name, side in sides.items():
        if "seconds" not in side:
            continue
        peak = side["memory_peak_mib"]
        # What the compiler freed stays with the process, so a rise would not show there.
        rise = "-" if name == "compiled" else f"{peak - side['memory_before_mib']:.0f}"
        tail = f"{peak:>10.0f}{rise:>10}"
        if name in INCREMENTAL:
            first = f"{NAMES[name]}, first map"
            print(f"{first:<38}{'':>6}{windows:>13}{side['first_seconds']:>10.2f}{tail}")
            if "capture_seconds" in side:
                second = f"{NAMES[name]}, second map"
                print(f"{second:<38}{'':>6}{windows:>13}{side['capture_seconds']:>10.2f}{tail}")
            later = f"{NAMES[name]}, later maps"
            print(f"{later:<38}{'':>6}{windows:>13}{side['seconds']:>10.2f}{tail}")
        else:
            timed = side["windows_timed"]
            print(f"{NAMES[name]:<38}{side['batch']:>6}{timed:>13}{side['seconds']:>10.2f}{tail}")
    print(
        "Where fewer windows were run than the map has, the map's time is scaled from them.\n"
        "Peak is the memory of the side's process, rise the part above the loaded network.\n"
        f"At captum-krypton's batch of {report['batch_size']}, Captum's peak is "
        f"{sides['krypton']['captum_memory_peak_mib']:.0f} MiB."
    )
    ratio = result["speedup"]
    print(
        f"speed-up over Captum: {ratio['over_captum_first']:.2f} first map, "
        f"{ratio['over_captum']:.2f} later\n"
        f"speed-up over the fastest naive side: {ratio['over_fastest_naive_first']:.2f} first map, "
        f"{ratio['over_fastest_naive']:.2f} later\n"
        f"speed-up by operations alone (Eq. 17): {report['theoretical_speedup']:.2f}\n"
        f"path: {report['path']} {' '.join(report['reasons'])}\n"
        f"outcomes of {equality['windows']} windows against one forward pass each: largest "
        f"difference {equality['largest_difference']:.2e}, "
        f"relative {equality['largest_relative_difference']:.2e};\n"
        f"  largest change by any of them {equality['largest_change']:.2e}; error against float64: "
        f"naive {equality['naive_error']:.2e}, captum-krypton {equality['krypton_error']:.2e};\n"
        f"  of all outputs, root mean square: naive {equality['naive_rms']:.2e}, captum-krypton "
        f"{equality['krypton_rms']:.2e}"
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vgg16", help="any torchvision or timm name")
    parser.add_argument("--weights", help="such as DEFAULT (downloads); random without it")
    parser.add_argument("--image", help="a file (default: a photograph of scikit-image)")
    parser.add_argument("--size", type=int, default=224, help="side of the input in pixels")
    parser.add_argument("--window", type=int, default=16, help="side of a window in pixels")
    parser.add_argument("--stride", type=int, default=8, help="pixels between windows")
    parser.add_argument("--windows-total", type=int, metavar="N", help="window for about N windows")
    parser.add_argument("--sample", type=int, default=128, help="windows that naive sides run")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--batch", type=int, help="naive sides' batch size (default: the fastest)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--no-compile", dest="compile", action="store_false", help="leave torch.compile out"
    )
    parser.add_argument(
        "--also",
        nargs="*",
        default=[],
        choices=ON_REQUEST,
        help="sides that are else left out: without CUDA graphs, fused, without kernels",
    )
    parser.add_argument("--json", help="write everything measured to this file")
    options = parser.parse_args(arguments)
    if options.windows_total is not None:
        # Windows side by side: Captum allows no stride larger than the window.
        axis = max(1, round(math.sqrt(options.windows_total)))
        options.window = options.stride = math.ceil(options.size / axis)
    return options


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is measured of one network and image."""
    torch.set_num_threads(options.threads)
    network = build_network(options.model, options.size, options.weights)
    x = to_input(load_image(options.image, options.size), network)
    with torch.no_grad():
        target = int(network(x).argmax())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.pt"
        torch.save(network, file)
        del network
        task = Task(
            network_file=str(file),
            x=x,
            target=target,
            window=options.window,
            stride=options.stride,
            device=options.device,
            threads=options.threads,
        )
        left_out = set(ON_REQUEST) - set(options.also)
        left_out |= set() if options.compile else {"compiled"}
        left_out |= {"captum_kept" if task.on_gpu else "captum_default"}
        names = [name for name in NAMES if name not in left_out]
        measured = measure(task, options.sample, options.rounds, names, options.batch)
    return {
        "model": options.model,
        "weights": options.weights or "random",
        "size": options.size,
        "window": options.window,
        "stride": options.stride,
        "rounds": options.rounds,
        "device": options.device,
        "machine": machine(options.device),
        **measured,
        "speedup": speedups(measured["sides"], measured["windows"]),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison."""
    options = parse(arguments)
    result = compare(options)
    print_table(result)
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
