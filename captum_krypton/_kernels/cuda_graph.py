"""Work on a GPU that is captured once as a CUDA graph: a replay launches all of it at once."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

__all__ = [
    "CudaGraph",
    "GraphPool",
    "alike",
    "capture_stream",
    "graph_settings",
    "operators_instead",
    "precision",
]

T = TypeVar("T")


class CudaGraph(Generic[T]):
    """Work that is captured, not run; `replay` runs it.

    It reads the tensors that the work read, at their addresses, and writes its result again. The
    caller keeps what is read alive.

    Args:
        work: launches kernels, without waiting for them or for data of the host.
        pool: memory that graphs share which never run at the same time.
        device: the GPU.

    Raises:
        RuntimeError: where the work cannot be captured.
    """

    def __init__(self, work: Callable[[], T], pool: GraphPool, device: torch.device) -> None:
        self._graph = torch.cuda.CUDAGraph()
        with _CAPTURES, capture_stream(device):
            torch.cuda.synchronize(device)
            # Other threads, such as a loader's, may go on with their own work.
            self._graph.capture_begin(pool.handle, capture_error_mode="thread_local")
            try:
                self.result = work()
            except BaseException:
                with suppress(RuntimeError):  # of the same cause, and less clear
                    self._graph.capture_end()
                raise
            self._graph.capture_end()

    def replay(self) -> None:
        """Runs the work on the current stream."""
        self._graph.replay()


class GraphPool:
    """Memory of graphs that never run at the same time.

    Attributes:
        usable: false once a capture has failed: what is left of it there is unknown.
    """

    def __init__(self) -> None:
        self.handle = torch.cuda.graph_pool_handle()
        self.usable = True


def operators_instead(pool: GraphPool, what: str, reason: str) -> None:
    """Gives a pool up, and warns that `what` operators are launched one by one, and why."""
    pool.usable = False
    warnings.warn(
        f"{what} operators are launched one by one: {reason}", RuntimeWarning, stacklevel=3
    )


_CAPTURES = threading.Lock()  # one at a time in a process


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of all captures of a device: graphs that share memory must share it, too."""
    return torch.cuda.Stream(device)


@contextmanager
def capture_stream(device: torch.device) -> Iterator[None]:
    """Work runs on the stream of captures, after what came before and before what follows."""
    if device.type != "cuda":
        yield
        return
    stream, current = _stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.device(device), torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


def precision() -> tuple[Any, Any]:
    """In what precision a GPU multiplies float32: in matrix products and in convolutions."""
    backends, products = torch.backends, torch.backends.cuda.matmul
    if hasattr(backends.cudnn, "conv"):  # since PyTorch 2.9, which forbids to mix both ways
        return products.fp32_precision, backends.cudnn.conv.fp32_precision
    return products.allow_tf32, backends.cudnn.allow_tf32


def graph_settings(device: torch.device) -> tuple[Any, ...]:
    """What a graph holds on to besides its tensors: PyTorch's settings, and the stream."""
    backends, products = torch.backends, torch.backends.cuda.matmul
    return (
        *precision(),
        products.allow_fp16_reduced_precision_reduction,
        products.allow_bf16_reduced_precision_reduction,
        backends.cuda.flash_sdp_enabled(),
        backends.cuda.mem_efficient_sdp_enabled(),
        backends.cuda.cudnn_sdp_enabled(),
        backends.cuda.math_sdp_enabled(),
        backends.cudnn.enabled,
        backends.cudnn.benchmark,
        backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_autocast_enabled(device.type),
        torch.get_autocast_dtype(device.type),
        torch.is_inference_mode_enabled(),
        torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0,
    )


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether two runs of the same operators agree: all but the order of sums is the same."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    loose = torch.finfo(a.dtype).eps ** 0.5
    size = float(b.abs().nan_to_num(0, 0, 0).max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=loose, atol=loose * size, equal_nan=True)
