"""The parts of `gpu_check.py`: each measures one thing, and returns what JSON can hold."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _shared import (
    LEAST_SIDE,
    build_network,
    load_image,
    square_windows,
    to_input,
)
from captum.attr import Occlusion
from compare_with_captum import compare
from compare_with_captum import parse as parse_comparison
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from captum_krypton import KryptonOcclusion
from captum_krypton._kernels import gather_patches

__all__ = ["FIRST_STRIDES", "PARTS", "VOLUMES_OF_CARDS", "Run"]

ROOT = Path(__file__).resolve().parents[2]
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Channels, side of the volume, side of the patches and of the read-in blocks, windows in a batch.
# What is moved is more than the card's caches hold.
VOLUMES = ((64, 224, 20, 22, 2048), (256, 56, 10, 12, 2048), (512, 14, 7, 9, 2048))
SANITIZED = "test_large_batches or test_volumes or current_stream or pooling or finish or hashes"
FIRST_STRIDES = (4, 8, 12)  # 2809, 729 and 361 windows of 16 pixels on 224
BATCHES = (16, 64, 128, 256, 512)
VOLUMES_OF_CARDS = ("r3d_18", "monai_resnet18", "monai_densenet121", "monai_unet")


class Run(argparse.Namespace):
    """What the command line asks for.

    Attributes:
        device: cuda, or cpu for a rehearsal.
        size: side of the input; None for the network's own.
        stride: pixels between windows.
        sample: windows that naive sides run.
        rounds: turns of each side.
    """

    device: str
    size: int | None
    stride: int
    sample: int
    rounds: int

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU."""
        return self.device == "cuda"

    def side(self, name: str) -> int:
        """The side of a network's input."""
        return self.size or LEAST_SIDE.get(name, 224)

    def prepared(self, name: str) -> tuple[nn.Module, Tensor]:
        """A network and an image on the device."""
        size = self.side(name)
        network = build_network(name, size).to(self.device)
        return network, to_input(load_image(None, size), network).to(self.device)


def seconds_of_map(work: Callable[[], Tensor]) -> float:
    """Seconds until a map is on the host."""
    started = time.perf_counter()
    work().cpu()
    return time.perf_counter() - started


def later_seconds(work: Callable[[], Tensor], maps: int, warm: int) -> float:
    """Median seconds of a map, after some that do not count."""
    return statistics.median([seconds_of_map(work) for _ in range(warm + maps)][warm:])


def pytest_command() -> list[str]:
    """What runs the GPU's tests."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
    return [*command, "tests/test_gpu.py"]


def run_tests(run: Run) -> dict[str, Any]:
    """The tests that are skipped without a card."""
    if not run.on_gpu:
        return {"passed": True, "summary": "rehearsal"}
    plain = subprocess.run(pytest_command(), cwd=ROOT, capture_output=True, text=True)
    if plain.returncode:
        print(plain.stdout)
    return {"passed": plain.returncode == 0, "summary": last_line(plain.stdout)}


def run_sanitizer(run: Run) -> dict[str, Any]:
    """Some of them under compute-sanitizer, where that is installed."""
    sanitizer = shutil.which("compute-sanitizer") if run.on_gpu else None
    if sanitizer is None:
        return {"passed": True, "summary": "not installed" if run.on_gpu else "rehearsal"}
    command = [sanitizer, "--error-exitcode", "9", *pytest_command(), "-k", SANITIZED]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if checked.returncode:
        print(checked.stdout[-6000:])
    return {"passed": checked.returncode == 0, "summary": last_line(checked.stdout)}


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


def bandwidth(run: Run) -> list[dict[str, Any]]:
    """Bytes a second that the gather and a copy write, for the same output."""
    rows, device = [], run.device
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


def compared(run: Run, name: str) -> dict[str, Any]:
    """A network's maps beside Captum's, in processes of their own that take turns."""
    also = ["reference", *(["launched", "fused"] if run.on_gpu else [])]
    return _compared(run, name, "--no-compile", "--also", *also)


def compiled(run: Run, name: str) -> dict[str, Any]:
    """The same beside an expert's loop: channels-last, torch.compile with frozen weights."""
    return _compared(run, name)


def _compared(run: Run, name: str, *more: str) -> dict[str, Any]:
    asked = [f"--model={name}", f"--size={run.side(name)}", f"--stride={run.stride}"]
    asked += [f"--sample={run.sample}", f"--rounds={run.rounds}", f"--device={run.device}"]
    found = compare(parse_comparison([*asked, *more]))
    report = found["sides"]["krypton"]["report"]
    if run.on_gpu and report["batches_replayed"] == 0:
        raise RuntimeError("no batch was replayed")
    return found


_FIRST = """
import json, sys, time
import torch
from captum.attr import Occlusion
from captum_krypton import KryptonOcclusion
side, file, image, device, stride, batch = sys.argv[1:]
network, x = torch.load(file, weights_only=False), torch.load(image)
asked = {"sliding_window_shapes": (3, 16, 16), "strides": (3, int(stride), int(stride))}
asked["target"] = 0
started = time.perf_counter()
network, x = network.to(device), x.to(device)
with torch.no_grad():
    if side == "captum":
        Occlusion(network).attribute(x, perturbations_per_eval=int(batch), **asked).cpu()
        report = {}
    else:
        heat = KryptonOcclusion(network).heatmap(x, **asked)
        heat.attribution().cpu()
        report = {"path": heat.report.path, "setup_seconds": heat.report.setup_seconds}
        report |= {"windows": heat.report.windows, "batches": heat.report.batches}
print(json.dumps({"seconds": time.perf_counter() - started, **report}))
"""


def first_maps(run: Run, name: str) -> list[dict[str, Any]]:
    """The only map of a new process: from host memory to a map in host memory.

    The device's context, libraries, first batches, the kernels' load and a capture count; Python's
    imports do not. Captum runs the batch size that suits it best, of those that its map has windows
    for. Nothing is known of the machine: rates are in an empty folder.
    """
    network, x = run.prepared(name)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        kept = os.environ.get("TORCH_EXTENSIONS_DIR") or os.environ.get("XDG_CACHE_HOME")
        place = {"TORCH_EXTENSIONS_DIR": kept or str(Path.home() / ".cache")}  # compiled kernels
        torch.save(network.cpu(), f"{folder}/network.pt")
        torch.save(x.cpu(), f"{folder}/image.pt")
        network = network.to(run.device)

        def seconds(side: str, stride: int, batch: int) -> dict[str, Any]:
            cache = tempfile.mkdtemp(dir=folder)
            path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
            done = subprocess.run(
                [sys.executable, "-c", _FIRST, side, f"{folder}/network.pt", f"{folder}/image.pt"]
                + [run.device, str(stride), str(batch)],
                capture_output=True,
                text=True,
                env={**os.environ, **place, "XDG_CACHE_HOME": cache, "PYTHONPATH": path},
            )
            if done.returncode:
                raise RuntimeError(done.stderr[-2000:])
            found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
            return found

        for stride in FIRST_STRIDES if run.on_gpu else (run.stride,):
            asked = {**square_windows(16, stride), "target": 0}
            windows = math.prod(math.ceil((n - 16) / stride) + 1 for n in x.shape[2:])
            batch = best_batch(network, x, asked, [b for b in BATCHES if b <= windows])
            turns: dict[str, list[dict[str, Any]]] = {"captum": [], "krypton": []}
            for _ in range(run.rounds):
                for side, found in turns.items():
                    found.append(seconds(side, stride, batch))
            rows.append({"model": name, "stride": stride, "windows": windows, "batch": batch})
            for side, found in turns.items():
                rows[-1][side] = statistics.median(turn["seconds"] for turn in found)
            rows[-1]["report"] = turns["krypton"][-1]
            rows[-1]["ratio"] = rows[-1]["captum"] / rows[-1]["krypton"]
    return rows


def best_batch(network: nn.Module, x: Tensor, asked: dict[str, Any], batches: list[int]) -> int:
    """The batch size at which Captum's map takes least, after a first map that does not count."""
    captum, found = Occlusion(network), dict[int, float]()
    for batch in batches or [1]:

        def work(batch: int = batch) -> Tensor:
            made: Tensor = captum.attribute(x, perturbations_per_eval=batch, **asked)
            return made

        try:
            found[batch] = min(seconds_of_map(work) for _ in range(2))
        except torch.OutOfMemoryError:
            break
    return min(found, key=found.__getitem__)


def few_windows(run: Run, name: str) -> dict[str, Any]:
    """Seconds of maps of 16 windows: medians, without each side's first map."""
    network, x = run.prepared(name)
    size = run.side(name)
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


def profile(run: Run, name: str) -> dict[str, Any]:
    """Where the time of a later map goes: its kernels, and how much of it the device works."""
    network, x = run.prepared(name)
    device = run.device
    occlusion = KryptonOcclusion(network)
    asked = square_windows(16, run.stride)
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


def in_sixteen_bits(run: Run, name: str) -> dict[str, Any]:
    """Later maps under autocast to bfloat16 beside float32's, and Captum's beside each."""
    network, x = run.prepared(name)
    asked = {**square_windows(16, run.stride), "target": 0}

    def half(images: Tensor) -> Tensor:
        with torch.autocast(run.device, dtype=torch.bfloat16):
            made: Tensor = network(images)
        return made

    found: dict[str, Any] = {"model": name, "stride": run.stride}
    batch = 256 if run.on_gpu else 4
    for title, forward in (("float32", network), ("bfloat16", half)):
        krypton, captum = KryptonOcclusion(forward), Occlusion(forward)
        found[title] = later_seconds(lambda k=krypton: k.attribute(x, **asked), run.rounds, 4)
        found[f"captum_{title}"] = later_seconds(
            lambda c=captum: c.attribute(x, perturbations_per_eval=batch, **asked), 1, 1
        )
    found["gain"] = found["float32"] / found["bfloat16"]
    return found


def volume(run: Run, name: str) -> dict[str, Any]:
    """A video's or a volume's later maps beside Captum's at its best batch."""
    from volumes import QUESTIONS

    torch.manual_seed(0)
    question = QUESTIONS[name]
    network = question.build().eval().to(run.device)
    x = torch.randn(1, *question.shape).to(run.device)
    asked = {**question.windows, "target": 0}
    krypton = KryptonOcclusion(network)
    first = seconds_of_map(lambda: krypton.attribute(x, **asked))
    later = later_seconds(lambda: krypton.attribute(x, **asked), run.rounds, 3)
    report = krypton.heatmap(x, **asked).report
    batch = best_batch(network, x, asked, [b for b in (4, 16, 64, 256) if b <= report.windows])
    captum = Occlusion(network)
    theirs = later_seconds(lambda: captum.attribute(x, perturbations_per_eval=batch, **asked), 2, 0)
    return {
        "model": name,
        "windows": report.windows,
        "path": report.path,
        "first_seconds": first,
        "krypton": later,
        "captum": theirs,
        "batch": batch,
        "ratio": theirs / later,
    }


def approximate(run: Run, name: str) -> dict[str, Any]:
    """What approximate maps gain over the exact one: later maps, median seconds."""
    network, x = run.prepared(name)
    asked = {**square_windows(16, run.stride), "target": 0}
    ways: dict[str, dict[str, Any]] = {"exact": {}}
    ways |= {f"threshold {t:g}": {"projective_field_threshold": t} for t in (0.8, 0.6, 0.4)}
    ways |= {"quality 0.9": {"quality": 0.9}}
    found = {}
    for way, arguments in ways.items():
        occlusion = KryptonOcclusion(network, **arguments)
        found[way] = later_seconds(lambda o=occlusion: o.attribute(x, **asked), run.rounds, 4)
    return {"model": name, "stride": run.stride, "seconds": found}


# By name: where results go in the file, and whether there is one for each network.
PARTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "tests": ("tests", run_tests),
    "sanitizer": ("sanitizer", run_sanitizer),
    "bandwidth": ("bandwidth", bandwidth),
    "first": ("first_maps", first_maps),
    "maps": ("networks", compared),
    "few": ("few_windows", few_windows),
    "profile": ("profiles", profile),
    "compiled": ("compiled", compiled),
    "bfloat16": ("bfloat16", in_sixteen_bits),
    "approximate": ("approximate", approximate),
    "volume": ("volumes", volume),
}
