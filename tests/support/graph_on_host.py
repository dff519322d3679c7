"""A CUDA graph without a GPU: what the operators did, done again to the same memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

T = TypeVar("T")
aten = torch.ops.aten

# What waits for the device, or brings the host's data of this moment: a graph cannot.
FORBIDDEN = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.lift_fresh.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten._unique2.default,
}


class _Recorder(TorchDispatchMode):
    """Runs operators and writes down which, on what, and where their results went."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.made: set[int] = set()  # memory that did not come from without

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FORBIDDEN:
            raise RuntimeError(f"{func} cannot be captured")
        made = func(*args, **(kwargs or {}))
        outputs = [t for t in tree_flatten(made)[0] if isinstance(t, Tensor)]
        self.calls.append((func, args, kwargs or {}, outputs))
        read = {memory(t) for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)}
        self.made |= {memory(t) for t in outputs} - read
        return made


def memory(tensor: Tensor) -> int:
    """Where the tensor's memory begins."""
    return tensor.untyped_storage().data_ptr()


class HostPool:
    """Stands in for `captum_krypton._kernels.cuda_graph.GraphPool`: memory is the host's."""

    def __init__(self) -> None:
        self.usable = True


class HostGraph(Generic[T]):
    """Stands in for `captum_krypton._kernels.cuda_graph.CudaGraph`, with the same arguments.

    A replay runs every operator on the tensors of the capture, whatever they hold by now, and
    writes its result over the first one. Nothing of Python runs again.
    """

    def __init__(self, work: Callable[[], T], pool: Any, device: torch.device) -> None:
        recorder = _Recorder()
        with recorder:
            self.result = work()
        self.calls = recorder.calls
        for tensor in tree_flatten(self.result)[0]:
            if tensor.is_floating_point() and memory(tensor) in recorder.made:
                tensor.fill_(float("nan"))  # a capture does not run

    def replay(self) -> None:
        for func, args, kwargs, outputs in self.calls:
            made = func(*args, **kwargs)
            again = [t for t in tree_flatten(made)[0] if isinstance(t, Tensor)]
            for old, new in zip(outputs, again, strict=True):
                if old.data_ptr() != new.data_ptr():  # else a view, or written in place
                    old.copy_(new)
