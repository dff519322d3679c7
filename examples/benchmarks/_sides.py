"""The contestants of `compare_with_captum.py`, each in a process of its own.

A process for each side keeps them apart: allocator settings, thread pools and peak memory are its
own, and the caller can still take turns between them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import multiprocessing
import os
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from _shared import (
    captum_seconds_per_window,
    occluded,
    outcome_errors,
    sampled_windows,
    square_windows,
    window_corners,
)
from captum.attr import Occlusion
from torch import Tensor, nn

# glibc returns freed blocks to the system and page-faults them in again for every batch. These
# make it keep them; a user can set them too.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
    "MALLOC_TOP_PAD_": "67108864",
}


@dataclasses.dataclass(frozen=True)
class Task:
    """What every side is given.

    Attributes:
        network_file: the network, as `torch.save` wrote it.
        x: input, (1, 3, H, W).
        target: class index.
        window: side of a window in pixels.
        stride: pixels between windows.
        device: where it runs.
        threads: CPU threads.
    """

    network_file: str
    x: Tensor
    target: int
    window: int
    stride: int
    device: str
    threads: int

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU."""
        return self.device.startswith("cuda")

    def windows(self) -> dict[str, tuple[int, int, int]]:
        """Captum's arguments."""
        return square_windows(self.window, self.stride)

    def corners(self) -> list[tuple[int, int]]:
        """Top left corner of every window."""
        return window_corners(self.x, self.window, self.stride)

    def network(self) -> nn.Module:
        """The network, ready to run."""
        network: nn.Module = torch.load(self.network_file, weights_only=False)
        return network.to(self.device)


class Side:
    """One contestant; every public method can be called from the other process."""

    def __init__(self, task: Task) -> None:
        self.task = task
        torch.set_num_threads(task.threads)
        self.network: Any = task.network()
        self.x = task.x.to(task.device)

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.task.on_gpu:
            torch.cuda.synchronize()

    def start_memory(self) -> float:
        """Forget the peak so far; MiB in use now."""
        if self.task.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated() / 2**20
        if sys.platform.startswith("linux"):
            Path("/proc/self/clear_refs").write_text("5")
            return _status("VmRSS")
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

    def peak_memory(self) -> float:
        """Largest MiB in use since `start_memory`."""
        if self.task.on_gpu:
            return torch.cuda.max_memory_allocated() / 2**20
        if sys.platform.startswith("linux"):
            # Not ru_maxrss: a child starts with its parent's there.
            return _status("VmHWM")
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


class CaptumSide(Side):
    """Captum as its users run it: NCHW, eager."""

    def seconds_per_window(self, batch: int, batches: int) -> float:
        """Seconds for each window; of the whole map where it has hardly more batches."""
        task = self.task
        windows = len(task.corners())
        if batch * (batches + 2) > windows:  # too few left for a partial run
            self.synchronise()
            started = time.perf_counter()
            Occlusion(self.network).attribute(
                self.x, target=task.target, perturbations_per_eval=batch, **task.windows()
            )
            self.synchronise()
            return (time.perf_counter() - started) / windows
        return captum_seconds_per_window(
            self.network, self.x, task.target, batch, batches, self.synchronise, **task.windows()
        )


class DefaultCaptumSide(CaptumSide):
    """Captum as it runs where nothing is said of batches: one window at a time."""

    def seconds_per_window(self, batch: int, batches: int) -> float:
        return super().seconds_per_window(1, batch * batches)


class LoopSide(Side):
    """A loop over batches of occluded images, channels-last."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.network = self.network.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def seconds_per_window(self, batch: int, batches: int) -> float:
        """Seconds for each window, from the first windows of the map."""
        corners = self.task.corners()
        batches = min(batches, math.ceil(len(corners) / batch))
        # A last batch that is short repeats windows: one shape, so nothing compiles twice.
        corners = list(itertools.islice(itertools.cycle(corners), batch * (batches + 1)))
        started = 0.0
        for number in range(batches + 1):
            if number == 1:  # the first warms up
                self.synchronise()
                started = time.perf_counter()
            chunk = corners[number * batch : (number + 1) * batch]
            images = occluded(self.x, chunk, self.task.window)
            images = images.contiguous(memory_format=torch.channels_last)
            self.network(images)[:, self.task.target].cpu()
        seconds = time.perf_counter() - started
        return seconds / (batch * batches)


class CompiledSide(LoopSide):
    """The same loop through torch.compile with frozen weights, which folds batch norms."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        import torch._inductor.config

        torch._inductor.config.freezing = True
        self.network = torch.compile(self.network)


class KryptonSide(Side):
    """captum-krypton, exact."""

    cuda_graphs, compile_pointwise = True, False

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        from captum_krypton import KryptonOcclusion, backend_info

        started = time.perf_counter()
        info = backend_info("cuda" if task.on_gpu else "cpu")
        file = None if info.path is None else Path(info.path).name  # results name no folder
        self.backend = str(dataclasses.replace(info, path=file))
        self.load_seconds = time.perf_counter() - started
        self.occlusion = KryptonOcclusion(
            self.network,
            cuda_graphs=self.cuda_graphs,
            compile_pointwise=self.compile_pointwise,
        )
        self.heat: Any = None

    def seconds(self) -> float:
        """Seconds of the whole map."""
        self.synchronise()
        started = time.perf_counter()
        self.heat = self.occlusion.heatmap(self.x, target=self.task.target, **self.task.windows())
        self.heat.attribution()
        self.synchronise()
        return time.perf_counter() - started

    def report(self) -> dict[str, Any]:
        """What the last map's report says."""
        found = dataclasses.asdict(self.heat.report)
        return {**found, "backend_info": self.backend, "load_seconds": self.load_seconds}

    def outcome_errors(self, count: int) -> dict[str, float]:
        """How far about `count` outcomes of the last map are from forward passes."""
        task, corners = self.task, self.task.corners()
        indices = sampled_windows(len(corners), count)
        every = self.occlusion.heatmap(self.x, target=None, **task.windows()).scores
        return outcome_errors(
            self.network,
            self.x,
            task.target,
            [corners[index] for index in indices],
            task.window,
            self.heat.scores.flatten()[indices],
            every[0].flatten(1).T[indices],
        )


class LaunchedSide(KryptonSide):
    """The same, whose operators are launched one by one, not replayed from CUDA graphs."""

    cuda_graphs = False


class FusedSide(KryptonSide):
    """The same, where torch.compile makes what follows a convolution; it fails where that does."""

    compile_pointwise = True

    def __init__(self, task: Task) -> None:
        warnings.filterwarnings("error", message="torch.compile cannot make")
        super().__init__(task)


class ReferenceSide(KryptonSide):
    """captum-krypton without compiled kernels: incremental inference in plain PyTorch.

    Capture and plan are made here. There is nothing to pack, so the first map is like later ones.
    """

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        from captum_krypton import KryptonOcclusion

        self.occlusion = KryptonOcclusion(self.network, self_check=False, cuda_graphs=False)
        self.occlusion.explain(self.x, target=task.target, **task.windows())


SIDES: dict[str, tuple[type[Side], dict[str, str]]] = {
    "captum": (CaptumSide, {}),
    "captum_default": (DefaultCaptumSide, {}),
    "captum_kept": (CaptumSide, KEEP_MEMORY),
    "loop": (LoopSide, KEEP_MEMORY),
    "compiled": (CompiledSide, KEEP_MEMORY),
    "krypton": (KryptonSide, {}),
    "launched": (LaunchedSide, {}),
    "fused": (FusedSide, {}),
    "reference": (ReferenceSide, {"KRYPTON_BACKEND": "reference"}),
}


class SideFailedError(RuntimeError):
    """A side raised; the text is its traceback."""


class Process:
    """A side in a process of its own, which starts at once; `call` runs one of its methods there.

    A side that cannot be made says so at the first call.
    """

    def __init__(self, name: str, task: Task) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        _, environment = SIDES[name]
        before = {key: os.environ.get(key) for key in environment}
        os.environ.update(environment)
        try:
            self._process = context.Process(target=_serve, args=(theirs, name, task), daemon=True)
            self._process.start()
        finally:
            for key, value in before.items():
                os.environ.pop(key) if value is None else os.environ.update({key: value})
        theirs.close()
        self._made = False

    def wait(self) -> None:
        """Wait until the side is made."""
        if not self._made:
            self._answer()
            self._made = True

    def call(self, method: str, *arguments: Any) -> Any:
        """Run `method` in the process and return its result."""
        self.wait()
        self._pipe.send((method, arguments))
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(30)

    def _answer(self) -> Any:
        try:
            ok, value = self._pipe.recv()
        except EOFError:
            raise SideFailedError("the process died without an answer") from None
        if not ok:
            raise SideFailedError(value)
        return value


def _serve(pipe: Connection, name: str, task: Task) -> None:
    kind, _ = SIDES[name]
    side: list[Side] = []
    _reply(pipe, lambda: side.append(kind(task)))
    while side:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        _reply(pipe, functools.partial(getattr(side[0], method), *arguments))


def _reply(pipe: Connection, work: Callable[[], Any]) -> None:
    try:
        pipe.send((True, work()))
    except Exception:
        pipe.send((False, traceback.format_exc()))


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 2**10
    raise RuntimeError(f"/proc/self/status has no {field}")
