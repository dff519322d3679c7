"""Work on a GPU that is captured once as a CUDA graph: a replay launches all of it at once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["Graph", "alike", "new_pool", "settings"]

T = TypeVar("T")


class Graph(Generic[T]):
    """Work that is captured, not run; `replay` runs it.

    It reads the tensors that the work read, at their addresses, and writes its result again. The
    caller keeps what is read alive.

    Args:
        work: launches kernels, without waiting for them or for data of the host.
        pool: from `new_pool`: memory that graphs share which never run at the same time.
        device: the GPU.

    Raises:
        RuntimeError: where the work cannot be captured.
    """

    def __init__(self, work: Callable[[], T], pool: Any, device: torch.device) -> None:
        self._graph = torch.cuda.CUDAGraph()
        # PyTorch's own stream for captures is of one device alone, and another's work would pass it
        # by. Other threads, such as a loader's, may go on with theirs.
        stream = _stream(device)
        kept = torch.cuda.graph(self._graph, pool, stream, capture_error_mode="thread_local")
        with torch.cuda.device(device), kept:
            self.result = work()

    def replay(self) -> None:
        """Runs the work on the current stream."""
        self._graph.replay()


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of all captures of a device: graphs that share memory must share it, too."""
    return torch.cuda.Stream(device)


def new_pool() -> Any:
    """Memory for graphs that never run at the same time."""
    return torch.cuda.graph_pool_handle()


def settings(device: torch.device) -> tuple[Any, ...]:
    """What a graph holds on to besides its tensors: PyTorch's settings, and the stream."""
    backends = torch.backends
    if hasattr(backends.cudnn, "conv"):  # since PyTorch 2.9, which forbids to mix both ways
        precision = (backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision)
    else:
        precision = (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32)
    return (
        *precision,
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
