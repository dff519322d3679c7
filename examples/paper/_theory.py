"""The paper's equations as they are written, for an occlusion patch at the centre of the image.

Nothing of captum-krypton is used here: what it counts can be held against this. The network is
traced and run without data, so that every layer's output size is PyTorch's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

_POOLS = (nn.MaxPool2d, nn.AvgPool2d)


@dataclass(frozen=True)
class Span:
    """A patch along one axis."""

    start: float
    size: int

    def filtered(
        self, kernel: int, stride: int, padding: int, whole: int, threshold: float
    ) -> Span:
        """The output's patch of a convolution or pooling (Eq. 18-21, 30-36, 40-41)."""
        size = min(math.ceil((self.size + kernel - 1) / stride), whole)
        start, most = self.start, max(1, round(threshold * whole))
        if size > most:
            size = most
            start += (self.size - (size * stride - kernel + 1)) / 2
        out = max(math.ceil((padding + start - kernel + 1) / stride), 0)
        return Span(min(out, whole - size), size)

    def joined(self, other: Span) -> Span:
        """The bounding box of two patches (Eq. 26-29)."""
        start = min(self.start, other.start)
        return Span(start, int(max(self.start + self.size, other.start + other.size) - start))


class _Walk(fx.Interpreter):
    """Follows a patch through a network and counts multiply-accumulates."""

    def __init__(self, network: nn.Module, patch: int, threshold: float) -> None:
        super().__init__(fx.symbolic_trace(network))
        self.patch, self.threshold = patch, threshold
        self.full, self.incremental = 0, 0.0
        self.spans: dict[fx.Node, tuple[Span, Span] | None] = {}

    def run_node(self, n: fx.Node) -> Any:
        """One layer: its output (without data), and the patch of it."""
        out = super().run_node(n)
        inputs = [self.spans[node] for node in n.all_input_nodes]
        self.spans[n] = self._patch(n, out, [found for found in inputs if found is not None])
        return out

    def _patch(self, n: fx.Node, out: Any, inputs: list[Any]) -> tuple[Span, Span] | None:
        if not isinstance(out, Tensor) or out.dim() != 4:
            return None
        if n.op == "placeholder":
            start = (out.shape[2] - self.patch) // 2
            return Span(start, self.patch), Span(start, self.patch)
        if not inputs:
            return None
        layer = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        if isinstance(layer, nn.Conv2d):
            patch = self._filtered(
                inputs[0], layer.kernel_size, layer.stride, layer.padding, out, layer.dilation
            )
            macs = out[0].numel() * layer.weight[0].numel()  # Eq. 13
            self.full += macs
            share = math.prod(s.size for s in patch) / math.prod(out.shape[2:])
            self.incremental += macs * share  # Eq. 15
            return patch
        if isinstance(layer, _POOLS):
            return self._filtered(inputs[0], layer.kernel_size, layer.stride, layer.padding, out)
        if n.target in (F.max_pool2d, F.avg_pool2d):
            given = dict(zip(("kernel_size", "stride", "padding"), n.args[1:], strict=False))
            given |= n.kwargs
            kernel = given["kernel_size"]
            stride, padding = given.get("stride") or kernel, given.get("padding", 0)
            return self._filtered(inputs[0], kernel, stride, padding, out)
        before = self.env[n.all_input_nodes[0]]
        if before.shape[2:] != out.shape[2:]:
            return None  # a global context transformation
        patch = inputs[0]
        for other in inputs[1:]:
            patch = patch[0].joined(other[0]), patch[1].joined(other[1])
        return patch

    def _filtered(
        self, patch: Any, kernel: Any, stride: Any, padding: Any, out: Tensor, dilation: Any = 1
    ) -> tuple[Span, Span]:
        found = [
            span.filtered((k - 1) * d + 1, s, p, whole, self.threshold)
            for span, k, s, p, d, whole in zip(
                patch,
                _pair(kernel),
                _pair(stride),
                _pair(padding),
                _pair(dilation),
                out.shape[2:],
                strict=True,
            )
        ]
        return found[0], found[1]


def _pair(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def theoretical_speedup(name: str, side: int, patch: int, threshold: float = 1.0) -> float:
    """R (Eq. 17) of a torchvision network's convolutions.

    Args:
        name: the network.
        side: side of the image in pixels.
        patch: side of the occlusion patch in pixels.
        threshold: the projective field threshold tau.
    """
    import torchvision

    extra = {"aux_logits": False, "init_weights": False} if name == "inception_v3" else {}
    with torch.device("meta"):
        network = torchvision.models.get_model(name, **extra).eval()
        walk = _Walk(network, patch, threshold)
        walk.run(torch.empty(1, 3, side, side))
    return walk.full / walk.incremental
