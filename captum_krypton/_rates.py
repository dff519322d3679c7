"""What this machine's operations cost, in seconds: measured once, and kept in a file."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _replay
from ._ops import (
    Patches,
    backend_info,
    convolve_patches,
    gather_patches,
    pack_weight,
    panel_size,
    pool_patches,
)

__all__ = ["GUESSED", "GUESSED_OF_GPUS", "Rates", "measure", "measure_gpu", "rates_of"]


@dataclass(frozen=True)
class Rates:
    """Seconds for one of each, on all threads.

    Attributes:
        convolution: a multiply-accumulate of torch's convolution on blocks.
        grouped: the same, of a depthwise or narrow grouped one.
        linear: a multiply-accumulate of a linear layer or another matrix product.
        element: an element moved through memory by an operator of torch.
        call: a call of an operator of torch and its gathering, whatever their size.
        direct: a multiply-accumulate of the direct kernel.
        product: one of the products of Winograd's algorithm.
        transform: a number that its transforms make or read.
        depthwise: a multiply-accumulate of the depthwise kernel.
        pooling: a number that the pooling kernel reads.
        kernel: a call of a compiled kernel, whatever its size.
    """

    convolution: float
    grouped: float
    linear: float
    element: float
    call: float
    direct: float
    product: float
    transform: float
    depthwise: float
    pooling: float
    kernel: float

    def of_torch_convolution(self, groups: int, channels: int) -> float:
        """Seconds for a multiply-accumulate of torch's convolution.

        Args:
            groups: groups of channels that do not mix.
            channels: input channels of a group.
        """
        return self.grouped if groups > 1 and channels < _NARROW else self.convolution


# Their ratios are those of a desktop CPU; they rank plans where nothing is measured.
GUESSED = Rates(
    convolution=1.4e-11,
    grouped=1.1e-10,
    linear=1.4e-11,
    element=4e-10,
    call=2e-5,
    direct=1.4e-11,
    product=1.3e-11,
    transform=2.5e-10,
    depthwise=1e-10,
    pooling=1e-10,
    kernel=3e-5,
)
# Those of a data centre's GPU: convolutions in TF32, products in float32, launches from a graph.
GUESSED_OF_GPUS = Rates(
    convolution=7e-15,
    grouped=1e-12,
    linear=4e-14,
    element=2e-12,
    call=1e-5,
    direct=7e-15,
    product=7e-15,
    transform=2e-12,
    depthwise=1e-12,
    pooling=1e-12,
    kernel=5e-6,
)
_NARROW = 8  # input channels of a group
_FORMAT = 2  # of the file
_REPEATS = 5


def rates_of(device: torch.device) -> Rates:
    """The rates of a device: measured on GPUs and where the compiled kernels run, else guessed.

    `KRYPTON_MEASURE=0` has them guessed everywhere.
    """
    measured = os.environ.get("KRYPTON_MEASURE") != "0"
    if device.type == "cuda":
        return _of_this_gpu(device, _replay.precision()) if measured else GUESSED_OF_GPUS
    if device.type != "cpu" or panel_size() == 0 or not measured:
        return GUESSED
    return _of_this_machine(torch.get_num_threads(), os.environ.get("KRYPTON_KERNELS", ""))


@functools.cache
def _of_this_machine(threads: int, kernels: str) -> Rates:
    return _kept(_machine(threads, kernels), measure)


@functools.cache
def _of_this_gpu(device: torch.device, precision: tuple[Any, Any]) -> Rates:
    parts = (
        torch.cuda.get_device_name(device),
        *map(str, precision),
        _binary("cuda"),
        torch.__version__,
        str(_FORMAT),
    )
    try:
        return _kept(_digest(parts), lambda: measure_gpu(device))
    except torch.OutOfMemoryError:  # the card is full: this process does without
        return GUESSED_OF_GPUS


def _kept(name: str, measured: Callable[[], Rates]) -> Rates:
    """The rates in the file of this name, or `measured` ones, which are put there."""
    path = _directory() / f"rates-{name}.json"
    found = _load(path)
    if found is None:
        found = measured()
        _save(path, found)
    return found


def _directory() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "captum_krypton"


def _machine(threads: int, kernels: str) -> str:
    """A name for what the rates depend on."""
    parts = (
        _processor(),
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
        str(threads),
        kernels,
        _binary(),
        torch.__version__,
        str(_FORMAT),
    )
    return _digest(parts)


def _digest(parts: tuple[str, ...]) -> str:
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def _binary(device: str = "cpu") -> str:
    """Which build of the kernels runs: another one may have other rates."""
    path = backend_info(device).path
    try:
        return "" if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:  # gone since it was loaded
        return ""


def _processor() -> str:
    if sys.platform == "linux":
        try:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
        except OSError:
            lines = []
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _load(path: Path) -> Rates | None:
    try:
        read = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    names = {field.name for field in fields(Rates)}
    if not isinstance(read, dict) or set(read) != names:
        return None
    good = all(isinstance(v, float) and 0 < v < math.inf for v in read.values())
    return Rates(**read) if good else None


def _save(path: Path, rates: Rates) -> None:
    """Writes the file as a whole or not at all; a machine without room for it measures again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".json")
        with os.fdopen(handle, "w") as file:
            json.dump(asdict(rates), file, indent=1)
        os.replace(name, path)
    except OSError:
        pass


def measure() -> Rates:
    """Measures the rates, in less than a second. Needs the compiled kernels."""
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        return _measure()


def _measure() -> Rates:
    tiny = _convolution(1, 16, 16, 1, winograd=False)
    kernel = _seconds(tiny.run, 20)
    of_torch = _rates_of_torch(_seconds, torch.ones, windows=16, width=1024)

    work = _convolution(16, 128, 128, 14, winograd=False)
    direct = (_seconds(work.run) - kernel) / work.macs
    wide, narrow = (
        _convolution(16, channels, channels, size, winograd=True)
        for channels, size in ((256, 12), (32, 24))
    )
    of_wide, of_narrow = _seconds_each([wide.run, narrow.run])
    product, transform = _two_rates(
        (wide.products, wide.numbers, of_wide - kernel),
        (narrow.products, narrow.numbers, of_narrow - kernel),
    )
    deep = _convolution(16, 128, 128, 14, winograd=False, depthwise=True)
    depthwise = (_seconds(deep.run) - kernel) / deep.macs

    def pool() -> Tensor:
        return pool_patches(deep.source, deep.offset, (14, 14), (3, 3), stride=(1, 1), maximum=True)

    pooling = (_seconds(pool) - kernel) / (16 * 14 * 14 * 9 * 128)
    found = dict(
        **of_torch,
        direct=direct,
        product=product,
        transform=transform,
        depthwise=depthwise,
        pooling=pooling,
        kernel=kernel,
    )
    # A clock that was interrupted at the wrong moment must not make an operation free.
    return Rates(**{n: max(v, getattr(GUESSED, n) / 1e3) for n, v in found.items()})


def _rates_of_torch(
    seconds: Callable[..., float], make: Callable[..., Tensor], *, windows: int, width: int
) -> dict[str, float]:
    """The rates of torch's operators, and of a call of one.

    Args:
        seconds: takes the time of a function, and may be told how many calls to time at once.
        make: makes a tensor of a shape.
        windows: rows of a batch of blocks.
        width: features of a linear layer.
    """
    x = make(windows, 128, 28, 28).contiguous(memory_format=torch.channels_last)
    full, alone = make(128, 128, 3, 3), make(128, 1, 3, 3)
    cells = windows * 26 * 26
    rows, weight = make(256, width), make(width, width)
    cell, index = make(1, 1, 1, 1), torch.zeros(1, 2, dtype=torch.int64, device=x.device)

    def step() -> Tensor:  # an operator of torch and the gathering of what it reads
        return gather_patches(cell, cell, index[:, 0], index, index, (1, 1)) + 1

    return {
        "convolution": seconds(lambda: F.conv2d(x, full)) / (cells * full.numel()),
        "grouped": seconds(lambda: F.conv2d(x, alone, groups=128)) / (cells * alone.numel()),
        "linear": seconds(lambda: F.linear(rows, weight)) / (256 * weight.numel()),
        "element": seconds(lambda: x + 1) / x.numel(),
        "call": seconds(step, 20),
    }


def measure_gpu(device: torch.device, windows: int = 256, times: int = 10) -> Rates:
    """Measures the rates of a GPU, in about a second; those of the CPU's kernels are guessed.

    A call's time is that of its launches, which the host makes one by one: it is an upper bound
    where batches are replayed.

    Args:
        device: the GPU.
        windows: rows of a batch.
        times: runs between two waits for the device.
    """
    last: Any = torch.channels_last

    def make(*shape: int) -> Tensor:
        tensor = torch.randn(*shape).to(device)
        return tensor.contiguous(memory_format=last) if len(shape) == 4 else tensor

    def seconds(run: Callable[[], object], times: int = times) -> float:
        def several() -> None:
            for _ in range(times):
                run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return _seconds(several) / times

    off = torch.autocast(device.type, enabled=False)
    with torch.inference_mode(), torch.random.fork_rng(devices=[]), off:
        of_torch = _rates_of_torch(seconds, make, windows=windows, width=4096)
        x, index = make(windows, 128, 28, 28), torch.zeros(windows, 2, dtype=torch.int64).to(device)

        def pool(rows: int, cells: int) -> Tensor:
            patch, offset = x[:rows, :, : cells + 2, : cells + 2], index[:rows]
            source, size = Patches(x[:1], patch, offset[:, 0], offset), (cells, cells)
            return pool_patches(source, offset, size, (3, 3), stride=(1, 1), maximum=True)

        kernel = seconds(lambda: pool(1, 1), 20)
        pooling = seconds(lambda: pool(windows, 26)) / (windows * 26 * 26 * 9 * 128)
    return replace(GUESSED_OF_GPUS, **of_torch, pooling=pooling, kernel=kernel)


def _two_rates(
    first: tuple[float, float, float], second: tuple[float, float, float]
) -> tuple[float, float]:
    """The rates of a product and of a transformed number: `a x + b y = seconds` for both.

    Where the clock was disturbed so much that one would be negative, they have the guessed ratio.
    """
    (a, b, s), (c, d, t) = first, second
    determinant = a * d - b * c
    x, y = (s * d - b * t) / determinant, (a * t - s * c) / determinant
    if min(x, y) > 0:
        return x, y
    x, y = GUESSED.product, GUESSED.transform
    slower = (s + t) / ((a + c) * x + (b + d) * y)
    return slower * x, slower * y


@dataclass(frozen=True)
class _Sample:
    """A convolution of patches that fill half of each side of their volume."""

    source: Patches
    offset: Tensor
    run: Callable[[], Tensor]
    macs: int
    products: float
    numbers: float


def _convolution(
    windows: int,
    channels: int,
    out_channels: int,
    size: int,
    *,
    winograd: bool,
    depthwise: bool = False,
) -> _Sample:
    last: Any = torch.channels_last
    base = torch.ones(1, channels, 2 * size, 2 * size).contiguous(memory_format=last)
    patch = torch.ones(windows, channels, size, size).contiguous(memory_format=last)
    offset = torch.full((windows, 2), size // 2, dtype=torch.int64)
    source = Patches(base, patch, torch.zeros(windows, dtype=torch.int64), offset)
    weight = torch.ones(out_channels, 1 if depthwise else channels, 3, 3)
    packed = pack_weight(weight, winograd, groups=channels if depthwise else 1)
    points = windows * (size + 2 * math.ceil(size / 4)) ** 2
    return _Sample(
        source,
        offset,
        lambda: convolve_patches(source, offset - 1, packed, None, (size, size)),
        windows * size * size * weight.numel(),
        float(points * channels * out_channels),
        float(points * (channels + out_channels)),
    )


def _seconds(run: Callable[[], object], times: int = 1) -> float:
    """The shortest time of a call, in `_REPEATS` tries after a first one."""
    return _seconds_each([run], times)[0]


def _seconds_each(runs: list[Callable[[], object]], times: int = 1) -> list[float]:
    """`_seconds` of several, tried in turns: what slows the machine for a while slows all."""
    best = [math.inf] * len(runs)
    for run in runs:
        run()
    for _ in range(_REPEATS):
        for number, run in enumerate(runs):
            started = time.perf_counter()
            for _ in range(times):
                run()
            best[number] = min(best[number], (time.perf_counter() - started) / times)
    return best
