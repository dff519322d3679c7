"""The base on a GPU: its operators are captured as a CUDA graph, and made again by one launch."""

from __future__ import annotations

import torch
from torch import Tensor

from .._kernels import CudaGraph, GraphPool, alike, capture_stream, operators_instead
from .base import FILL, Base
from .group import Material

__all__ = ["ReplayedBase"]


class ReplayedBase:
    """Makes the base of one call's images after another, in the same memory.

    Args:
        material: what windows are computed from.
        base: where it is made.
    """

    def __init__(self, material: Material, base: Base) -> None:
        self.material, self.base, self._pool = material, base, GraphPool()
        self._inputs: tuple[Tensor, ...] = ()  # those that the graph reads
        self._graph: CudaGraph[Tensor] | None = None

    def make(self, inputs: tuple[Tensor, ...], fill: Tensor | None) -> Tensor:
        """Makes the base of some images; the graph's output for them, until the next are made.

        Args:
            inputs: the batched inputs, in the layout of activations.
            fill: what windows are filled with, where it is a tensor.
        """
        if fill is not None:
            self.base.kept[FILL].copy_(fill)
        if self._graph is not None:
            for own, given in zip(self._inputs, inputs, strict=True):
                own.copy_(given)
            self._graph.replay()
            output = self._graph.result
        else:
            output = self._captured(inputs) if self._pool.usable else self._made(inputs)
        self.base.renew()  # by its operators: some bring data of the host
        return output

    def _made(self, inputs: tuple[Tensor, ...]) -> Tensor:
        output, made = self.material.untouched(inputs)
        for value, tensor in made.items():
            self.base.kept[value].copy_(tensor)
        return output

    def _captured(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """The base by its operators, and the graph, which is held against it.

        It is captured for other inputs than it is then replayed for: work that runs at its capture
        gives itself away.
        """
        device = inputs[0].device
        with capture_stream(device):  # what is made on first use is made there, too
            expected = self._made(inputs).clone()
        before = {value: tensor.clone() for value, tensor in self.base.kept.items()}
        own = tuple(torch.zeros_like(tensor) for tensor in inputs)
        try:
            graph = CudaGraph(lambda: self._made(own), self._pool, device)
            for mine, given in zip(own, inputs, strict=True):
                mine.copy_(given)
            graph.replay()
        except RuntimeError as error:
            self._refuse(f"{type(error).__name__}: {error}")
            return self._made(inputs)
        pairs = [(graph.result, expected), *((self.base.kept[v], t) for v, t in before.items())]
        if not all(alike(found, wanted) for found, wanted in pairs):
            self._refuse("a replay gives other values than the operators do")
            return self._made(inputs)
        self._inputs, self._graph = own, graph
        return expected

    def _refuse(self, reason: str) -> None:
        what = "the untouched inputs cannot be replayed as a CUDA graph, their"
        operators_instead(self._pool, what, reason)
