"""How long each kind of work takes on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .convolve_patches import Patches, convolve_patches, pack_weight
from .gather_patches import gather_patches
from .pool_patches import pool_patches
from .rates import GUESSED, GUESSED_OF_GPUS, Rates

__all__ = ["Clock", "Gauge", "Sample", "gauge_of_cpu", "gauge_of_gpu"]

Clock = Callable[[], float]

_FEWEST, _MOST = 4, 30  # rounds
_SECONDS = 0.6  # after which there is no further round, but for the fewest
_TOO_LONG = 1.2  # seconds, after which not for these either
_AGREEING, _CLOSE = 3, 1.05  # as many of a kind's times within this factor of the least settle it
_CALLS = 20  # repetitions of a call in a round: it is short, and often disturbed
_SHORT = 4  # repetitions of what takes less than a millisecond
_SPREAD = 4.0  # of the ratio of two rates that are solved for


@dataclass(frozen=True)
class Sample:
    """Work that is timed.

    Attributes:
        run: does it once.
        work: how much of each rate's work that is.
        repeats: how often it is timed in a round; first with cold caches, so twice at least.
        times: how often it is done between two looks at the clock.
        wait: waits until it is done.
    """

    run: Callable[[], object]
    work: dict[str, float]
    repeats: int = 2
    times: int = 1
    wait: Callable[[], object] = lambda: None


@dataclass
class Gauge:
    """Takes the times of samples, and makes rates of the least.

    All samples are timed in turns: what slows the machine for a while slows some repetitions of
    every kind of work, and not all repetitions of one.

    Attributes:
        samples: each has work of one kind, or is one of two that share two kinds.
        others: the rates of what no sample has.
        clock: seconds from any moment.
        times: of every sample, the least times of a run so far, in order.
    """

    samples: Sequence[Sample]
    others: Rates
    clock: Clock = time.perf_counter
    settings: Callable[[], AbstractContextManager[object]] = torch.inference_mode
    times: list[list[float]] = field(default_factory=list)

    def run(self) -> Rates:
        """Times all samples, in about half a second; the rates by the least times of all runs."""
        with self.settings():
            if not self.times:  # a first call of anything takes longer
                self.times = [[] for _ in self.samples]
                for sample in self.samples:
                    sample.run()
                    sample.wait()
            started = self.clock()
            for done in range(1, _MOST + 1):
                for sample, times in zip(self.samples, self.times, strict=True):
                    times.extend(self._time(sample) for _ in range(sample.repeats))
                    times.sort()
                    del times[_AGREEING:]
                spent = self.clock() - started
                if spent > _TOO_LONG or done >= _FEWEST and (spent > _SECONDS or self._settled):
                    break
        return self._rates()

    def _time(self, sample: Sample) -> float:
        started = self.clock()
        for _ in range(sample.times):
            sample.run()
        sample.wait()
        spent = (self.clock() - started) / sample.times
        return spent if spent > 0 else math.inf  # the clock was set back

    @property
    def _settled(self) -> bool:
        """Whether several times of every sample agree with its least."""
        return all(times[-1] <= _CLOSE * times[0] for times in self.times)

    def _rates(self) -> Rates:
        found, pairs = {}, []
        for sample, times in zip(self.samples, self.times, strict=True):
            if len(sample.work) == 1:
                ((name, amount),) = sample.work.items()
                found[name] = times[0] / amount
            else:
                pairs.append((sample.work, times[0]))
        if pairs:
            (work, seconds), (others, other_seconds) = pairs
            found.update(_two_rates(work, seconds, others, other_seconds))
        return replace(self.others, **found)


def _two_rates(
    first: dict[str, float], of_first: float, second: dict[str, float], of_second: float
) -> dict[str, float]:
    """The rates of two kinds of work, by two samples that have both: `a x + b y = seconds`.

    A small error of a time is a larger one of the solution. So the ratio of the rates is not taken
    farther than `_SPREAD` times from the guessed one, and they are what solves both equations best.
    """
    one, two = first
    (a, b), (c, d) = first.values(), second.values()
    guessed = getattr(GUESSED, two) / getattr(GUESSED, one)
    if not (math.isfinite(of_first) and math.isfinite(of_second)):
        return {one: math.inf, two: math.inf}
    determinant = a * d - b * c
    x = (of_first * d - b * of_second) / determinant
    y = (a * of_second - of_first * c) / determinant
    if y <= 0 or x <= 0:
        ratio = guessed / _SPREAD if y <= 0 else guessed * _SPREAD
    else:
        ratio = min(max(y / x, guessed / _SPREAD), guessed * _SPREAD)
        if ratio == y / x:
            return {one: x, two: y}
    x = math.sqrt(of_first / (a + b * ratio) * of_second / (c + d * ratio))
    return {one: x, two: x * ratio}


def gauge_of_cpu(clock: Clock = time.perf_counter) -> Gauge:
    """The gauge of this machine's processor. Needs the compiled kernels.

    A sample of a kernel's work takes some hundred times as long as its call, which then need not be
    subtracted: a difference is as wrong as both of its parts.

    Args:
        clock: seconds from any moment.
    """

    def settings() -> ExitStack:
        return _settings("cpu")

    with settings():
        tiny = _convolution(1, 16, 16, 1, winograd=False)
        work = _convolution(16, 128, 128, 14, winograd=False)
        deep = _convolution(64, 128, 128, 14, winograd=False, depthwise=True)

        def pool() -> Tensor:
            return pool_patches(
                deep.source, deep.offset, (14, 14), (3, 3), stride=(1, 1), maximum=True
            )

        both = [
            _convolution(windows, channels, channels, size, winograd=True)
            for windows, channels, size in ((16, 256, 12), (32, 32, 24))
        ]
        samples = [
            # One by one: with two threads on a busy core, every few calls wait for a time slice.
            Sample(tiny.run, {"kernel": 1.0}, _CALLS),
            *_samples_of_torch(torch.ones, windows=16, width=1024),
            Sample(work.run, {"direct": work.macs}),
            *(Sample(s.run, {"product": s.products, "transform": s.numbers}) for s in both),
            Sample(deep.run, {"depthwise": deep.macs}, _SHORT),
            Sample(pool, {"pooling": 64.0 * 14 * 14 * 9 * 128}, _SHORT),
        ]
    return Gauge(samples, GUESSED, clock, settings)


def gauge_of_gpu(
    device: torch.device, windows: int = 256, times: int = 10, clock: Clock = time.perf_counter
) -> Gauge:
    """The gauge of a GPU; what only the CPU's kernels do is guessed.

    A call's time is that of its launches, which the host makes one by one: it is an upper bound
    where batches are replayed.

    Args:
        device: the GPU.
        windows: rows of a batch.
        times: runs between two waits for the device.
        clock: seconds from any moment.
    """
    last: Any = torch.channels_last

    def make(*shape: int) -> Tensor:
        tensor = torch.randn(*shape).to(device)
        return tensor.contiguous(memory_format=last) if len(shape) == 4 else tensor

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def settings() -> ExitStack:
        return _settings(device.type)

    with settings():
        of_torch = _samples_of_torch(make, windows=windows, width=4096)
        x, index = make(windows, 128, 28, 28), torch.zeros(windows, 2, dtype=torch.int64).to(device)

        def pool(rows: int, cells: int) -> Tensor:
            patch, offset = x[:rows, :, : cells + 2, : cells + 2], index[:rows]
            source, size = Patches(x[:1], patch, offset[:, 0], offset), (cells, cells)
            return pool_patches(source, offset, size, (3, 3), stride=(1, 1), maximum=True)

        samples = [
            Sample(lambda: pool(1, 1), {"kernel": 1.0}),
            *of_torch,
            Sample(lambda: pool(windows, 26), {"pooling": windows * 26.0 * 26 * 9 * 128}),
        ]
    samples = [replace(s, repeats=2, times=times, wait=wait) for s in samples]
    return Gauge(samples, GUESSED_OF_GPUS, clock, settings)


def _settings(device: str) -> ExitStack:
    """What is timed as maps run it, whatever the caller has set, and draws no number of its own."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        return stack.pop_all()


def _samples_of_torch(make: Callable[..., Tensor], *, windows: int, width: int) -> list[Sample]:
    """Work of torch's operators, and a call of one.

    Args:
        make: makes a tensor of a shape.
        windows: rows of a batch of blocks.
        width: features of a linear layer.
    """
    x = make(windows, 128, 28, 28).contiguous(memory_format=torch.channels_last)
    full, alone = make(128, 128, 3, 3), make(128, 1, 3, 3)
    cells = windows * 26.0 * 26
    rows, weight = make(256, width), make(width, width)
    cell, index = make(1, 1, 1, 1), torch.zeros(1, 2, dtype=torch.int64, device=x.device)

    def step() -> Tensor:  # an operator of torch and the gathering of what it reads
        return gather_patches(cell, cell, index[:, 0], index, index, (1, 1)) + 1

    return [
        Sample(lambda: F.conv2d(x, full), {"convolution": cells * full.numel()}),
        Sample(lambda: F.conv2d(x, alone, groups=128), {"grouped": cells * alone.numel()}, _SHORT),
        Sample(lambda: F.linear(rows, weight), {"linear": 256.0 * weight.numel()}),
        Sample(lambda: x + 1, {"element": float(x.numel())}, _SHORT),
        Sample(step, {"call": 1.0}, _CALLS),
    ]


@dataclass(frozen=True)
class _Convolution:
    """A convolution of patches that fill half of each side of their volume."""

    source: Patches
    offset: Tensor
    run: Callable[[], Tensor]
    macs: float
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
) -> _Convolution:
    last: Any = torch.channels_last
    base = torch.ones(1, channels, 2 * size, 2 * size).contiguous(memory_format=last)
    patch = torch.ones(windows, channels, size, size).contiguous(memory_format=last)
    offset = torch.full((windows, 2), size // 2, dtype=torch.int64)
    source = Patches(base, patch, torch.zeros(windows, dtype=torch.int64), offset)
    weight = torch.ones(out_channels, 1 if depthwise else channels, 3, 3)
    packed = pack_weight(weight, winograd, groups=channels if depthwise else 1)
    points = windows * (size + 2 * math.ceil(size / 4)) ** 2
    return _Convolution(
        source,
        offset,
        lambda: convolve_patches(source, offset - 1, packed, None, (size, size)),
        float(windows * size * size * weight.numel()),
        float(points * channels * out_channels),
        float(points * (channels + out_channels)),
    )
