"""Hypothesis strategies that draw small networks, and occlusion questions to ask of them.

A network is drawn layer by layer, each fitting the output of the one before, so that nothing is
thrown away. Weights come from a drawn seed; the shape of a network shrinks, its numbers do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from layers import ADAPTIVE, COMMON, CONV, OTHERS, Code, Draw, ints
from torch import Tensor, nn

_MOST_CHANNELS = 12
_MOST_ELEMENTS = 6000


class Join(nn.Module):
    """Two branches and the statement that joins their outputs `a` and `b` into `x`."""

    def __init__(self, left: nn.Module, right: nn.Module, code: str) -> None:
        super().__init__()
        self.left, self.right, self.code = left, right, code

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.left(x), self.right(x)
        shared = a is not b and torch._C._is_alias_of(a, b)
        if shared and self.code in _IN_PLACE_JOINS:
            b = b.clone()  # what a += b means depends on ATen's order where b overlaps a
        scope: dict[str, Any] = {"torch": torch, "a": a, "b": b}
        exec(self.code, scope)
        result: Tensor = scope["x"]
        return result

    def extra_repr(self) -> str:
        return repr(self.code)


_IN_PLACE_JOINS = ["a += b; x = a", "x = a.add_(b, alpha=0.5)"]
_JOINS_SAME = """
x = a + b
x = a * b
x = a - b
x = torch.maximum(a, b)
x = torch.add(a, b, alpha=0.5)
x = torch.stack([a, b], 1).mean(1)
x = torch.stack([a, b]).sum(0)
x = torch.where(a > b, a, b)
x = a / (1 + b * b)
x = torch.relu_(a + b)
x = torch.lerp(a, b, 0.3)
x = torch.cat([a, b], -1)
x = torch.cat([a, b[..., :1], a], -1)
""".strip().splitlines()


def _join(draw: Draw, x: Tensor) -> nn.Module | None:
    left = nn.Identity() if draw(st.booleans()) else _chain(draw, x, 1, 2, nested=True)
    right = _chain(draw, x, 1, 3, nested=True)
    with torch.no_grad():
        a, b = _reset(left)(x.clone()), _reset(right)(x.clone())
    if a.dim() != b.dim():
        return right
    common = ", ".join(f":{min(p, q)}" for p, q in zip(a.shape[2:], b.shape[2:], strict=True))
    if a.shape == b.shape:
        pool = [
            *_JOINS_SAME,
            *_IN_PLACE_JOINS,
            "x = torch.cat([a, b], 1)",
            "x = torch.cat([b, a], 2)",
        ]
    elif a.shape[2:] == b.shape[2:]:
        pool = ["x = torch.cat([a, b], 1)", "x = torch.cat([b, a, b], 1)"]
        if 1 in (a.shape[1], b.shape[1]):
            pool += ["x = a * b", "x = a + b"]
    elif a.shape[1] == b.shape[1]:
        pool = [f"x = a[:, :, {common}] + b[:, :, {common}]"]
        if all(p == q or 1 in (p, q) for p, q in zip(a.shape[2:], b.shape[2:], strict=True)):
            pool += ["x = a * b", "x = a + b"]
        if a.shape[2:-1] == b.shape[2:-1]:
            pool += ["x = torch.cat([a, b], -1)"]
    else:
        pool = [f"x = torch.cat([a[:, :, {common}], b[:, :, {common}]], 1)"]
    return Join(left, right, draw(st.sampled_from(pool)))


def _chain(draw: Draw, x: Tensor, fewest: int, most: int, nested: bool = False) -> nn.Sequential:
    """Layers one after another, those left out that do not fit."""
    layers: list[nn.Module] = []
    x = x.clone()
    pools = [COMMON, OTHERS] if nested else [COMMON, OTHERS, [_join]]
    for _ in range(draw(ints(fewest, most))):
        layer = draw(st.sampled_from(draw(st.sampled_from(pools))))(draw, x)
        if layer is None:
            continue
        try:
            with torch.no_grad():
                out = _reset(layer)(x)  # x itself: in place fails where memory is shared
        except (RuntimeError, ValueError, IndexError, NotImplementedError):
            continue  # a kernel larger than its input and the like
        small = out.dim() in (3, 4, 5) and out.shape[1] <= _MOST_CHANNELS
        if not small or not 0 < out.numel() <= _MOST_ELEMENTS or not out.isfinite().all():
            continue
        if out.dtype != x.dtype:
            continue
        layers.append(layer)
        x = out
    return nn.Sequential(*layers)


def _head(draw: Draw, x: Tensor, classes: int) -> nn.Module:
    rank, channels = x.dim() - 2, x.shape[1]
    pooled = "x = x.{}(tuple(range(2, x.dim())))"
    heads: list[Callable[[], list[nn.Module]]] = [
        lambda: [nn.Flatten(), nn.Linear(x[0].numel(), classes)],
        lambda: [Code(pooled.format("mean")), nn.Linear(channels, classes)],
        lambda: [
            nn.Flatten(),
            nn.Linear(x[0].numel(), 5),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(5, classes),
        ],
        lambda: [ADAPTIVE[rank][0](1), nn.Flatten(), nn.Linear(channels, classes)],
        lambda: [Code(pooled.format("amax")), nn.Linear(channels, classes)],
        lambda: [ADAPTIVE[rank][1](1), Code("x = x.flatten(1)"), nn.Linear(channels, classes)],
        lambda: [Code("x = x.mean(-1).flatten(1)"), nn.LazyLinear(classes)],
        lambda: [
            Code("t = x.flatten(2); x = (t @ t.mT).flatten(1)"),
            nn.Linear(channels**2, classes),
        ],
    ]
    return nn.Sequential(*draw(st.sampled_from(heads))())


def _any_head(draw: Draw, x: Tensor) -> nn.Module:
    """A head of any output shape: (N,), (N, K), (N, tokens, K) or (N, K, *space)."""
    kind = draw(ints(0, 9))
    classes = draw(ints(1, 4))
    if kind <= 5:
        last = draw(
            st.sampled_from([nn.Identity(), nn.Softmax(-1), nn.LogSoftmax(1), nn.Sigmoid()])
        )
        return nn.Sequential(*_head(draw, x, classes), last)
    if kind == 6:
        return Code(draw(st.sampled_from(["x = x.flatten(1).mean(1)", "x = x.flatten(1)[:, 0]"])))
    if kind == 7:
        return nn.Sequential(
            Code("x = x.flatten(2).transpose(1, 2)"), nn.Linear(x.shape[1], classes)
        )
    dense = CONV[x.dim() - 2](x.shape[1], classes, 1)
    return nn.Sequential(dense, draw(st.sampled_from([nn.Identity(), nn.Softmax(1)])))


def _reset(network: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every parameter and buffer values that keep activations near one; eval mode."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        network.double().eval()
        for module in network.modules():
            for name, tensor in module.named_parameters(recurse=False):
                fan_in = max(1, tensor[0].numel()) if tensor.dim() > 1 else 1
                centre = 1.0 if name in ("weight", "w") and tensor.dim() == 1 else 0.0
                tensor.copy_(centre + normal(tensor) / (2 if tensor.dim() < 2 else fan_in**0.5))
            for name, tensor in module.named_buffers(recurse=False):
                if name == "running_var":
                    tensor.copy_(0.5 + normal(tensor).abs())
                elif tensor.is_floating_point():
                    tensor.copy_(normal(tensor) / 2)
    return network


@st.composite
def networks(
    draw: Draw, shape: tuple[int, ...], classes: int | None = None, most: int = 6
) -> nn.Module:
    """Networks in float64 and eval mode for inputs of shape (N, *shape).

    Args:
        draw: given by Hypothesis.
        shape: channels and sizes of an input, without the batch.
        classes: the number of outputs, to get (N, classes); 0 for the last layer's output,
            flattened; else an output of any shape.
        most: the most layers before the head.
    """
    seed = draw(st.integers(0, 2**16))
    probe = torch.randn((1, *shape), generator=torch.Generator().manual_seed(0)).double()
    body = _chain(draw, probe, 1, most)
    with torch.no_grad():
        untouched = probe.clone()
        features = _reset(body)(untouched)
    if not torch.equal(untouched, probe):  # the first layer works in place
        body.insert(0, Code("x = x.clone()"))
    head: nn.Module
    if classes is None:
        head = _any_head(draw, features)
    elif classes == 0:
        head = Code("x = x.flatten(1)")
    else:
        head = _head(draw, features, classes)
    network = nn.Sequential(*body, *(head if isinstance(head, nn.Sequential) else [head]))
    with torch.no_grad():
        network.double()(probe.clone())  # fills in lazy layers
    return _reset(network, seed)


@dataclass
class Case:
    """A network, inputs (N, C, *space), and the arguments of one occlusion question.

    Attributes:
        sizes: the shape of the network's output, without the batch.
    """

    network: nn.Module
    inputs: Tensor
    sliding_window_shapes: tuple[int, ...]
    strides: int | tuple[int, ...] | None
    baselines: Tensor | float | None
    target: Any
    perturbations_per_eval: int | None
    sizes: tuple[int, ...]

    def __repr__(self) -> str:
        baselines = self.baselines
        if isinstance(baselines, Tensor):
            baselines = f"tensor of {tuple(baselines.shape)}"  # type: ignore[assignment]
        return (
            f"Case(inputs of {tuple(self.inputs.shape)}, windows {self.sliding_window_shapes}, "
            f"strides {self.strides}, baselines {baselines}, target {self.target}, "
            f"perturbations_per_eval {self.perturbations_per_eval}, "
            f"output (N, {', '.join(map(str, self.sizes))}), network\n{self.network})"
        )

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def arguments(self, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
        """The keyword arguments of `attribute`, but for the inputs and how many at a time."""
        baselines = self.baselines
        if isinstance(baselines, Tensor):
            baselines = baselines.to(dtype)
        return {
            "sliding_window_shapes": self.sliding_window_shapes,
            "strides": self.strides,
            "baselines": baselines,
            "target": self.target,
        }


_SPACE = {1: (5, 24), 2: (5, 20), 3: (4, 7)}
_MOST_WINDOWS = 160


@st.composite
def image_shapes(draw: Draw, rank: int) -> tuple[int, ...]:
    """Channels and `rank` sizes, odd and oblong ones too."""
    low, high = _SPACE[rank]
    return (draw(ints(1, 4)), *(draw(ints(low, high)) for _ in range(rank)))


def window_counts(
    shape: tuple[int, ...], window: tuple[int, ...], strides: int | tuple[int, ...] | None
) -> tuple[int, ...]:
    """How many windows fit an axis, by Captum's rule: the last may be clipped."""
    steps = strides if isinstance(strides, tuple) else (strides or 1,) * len(shape)
    return tuple(
        math.ceil((s - w) / step) + 1 for s, w, step in zip(shape, window, steps, strict=True)
    )


@st.composite
def geometries(
    draw: Draw, shape: tuple[int, ...]
) -> tuple[tuple[int, ...], int | tuple[int, ...] | None]:
    """A window shape and its strides for inputs (N, *shape), of at most some 160 windows."""
    some_channels = draw(st.sampled_from([False, False, False, True]))
    window = [draw(ints(1, shape[0])) if some_channels else shape[0]]
    window += [draw(ints(1, size)) for size in shape[1:]]
    while math.prod(s // w for s, w in zip(shape, window, strict=True)) > _MOST_WINDOWS:
        window = [min(2 * w, s) for w, s in zip(window, shape, strict=True)]
    kind = draw(st.sampled_from(["none", "int", "tuple", "tuple"]))
    narrow = [w for w, s in zip(window, shape, strict=True) if w < s]
    strides: int | tuple[int, ...] | None = None
    if kind == "int":
        strides = draw(ints(1, min(narrow, default=5)))
    elif kind == "tuple":
        strides = tuple(
            draw(ints(1, w if w < s else s + 2)) for w, s in zip(window, shape, strict=True)
        )
    if math.prod(window_counts(shape, tuple(window), strides)) > _MOST_WINDOWS:
        strides = tuple(window)
    return tuple(window), strides


@st.composite
def targets(draw: Draw, batch: int, sizes: tuple[int, ...], most: int) -> Any:
    """A target that fits outputs (batch, *sizes) and selects at most `most` numbers each."""
    if not sizes:
        return None

    def index(axes: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(-size, size - 1)) for size in sizes[:axes])

    full = len(sizes)
    kinds = ["tuple", "tuples"]
    if full == 1:
        kinds = ["int", "int", "tuple", "tuples", "list", "tensor", "tensor of one", "0-d tensor"]
    if math.prod(sizes) * batch <= most:
        kinds.append("none")
        if full > 1:
            kinds += ["partial", "slice"]
    kind = draw(st.sampled_from(kinds))
    positive = [draw(ints(0, sizes[0] - 1)) for _ in range(batch)]
    if kind == "none":
        return None
    if kind == "int":
        return index(1)[0]
    if kind == "tuple":
        return index(full)
    if kind == "partial":
        return draw(st.sampled_from([index(1)[0], index(full - 1)]))
    if kind == "slice":
        return (*index(full - 1), slice(0, 2))
    if kind == "tuples":
        return [index(full) for _ in range(batch)]
    if kind == "list":
        return positive
    if kind == "tensor":
        return torch.tensor(positive)
    return torch.tensor(positive[:1] if kind == "tensor of one" else positive[0])


@st.composite
def baselines(draw: Draw, batch: int, shape: tuple[int, ...]) -> Tensor | float | None:
    """None, a number, or a tensor (1, *shape) or (batch, *shape)."""
    kind = draw(st.sampled_from(["none", "int", "float", "one", "each"]))
    if kind == "none":
        return None
    if kind == "int":
        return draw(st.integers(-1, 2))
    if kind == "float":
        return draw(st.sampled_from([0.0, 0.25, -1.5]))
    return noise(draw, (1 if kind == "one" else batch, *shape))


def noise(draw: Draw, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers in float64 from a drawn seed."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@st.composite
def small_cases(draw: Draw, rank: int) -> Case:
    """Few layers on a few cells, asked for every output: a wrong cell cannot hide behind a head."""
    shape = (draw(ints(1, 2)), *(draw(ints(3, 8 if rank < 3 else 4)) for _ in range(rank)))
    network = draw(networks(shape, classes=0, most=4))
    inputs = noise(draw, (1, *shape))
    with torch.no_grad():
        sizes = tuple(network(inputs.clone()).shape[1:])
    window, strides = draw(geometries(shape))
    return Case(network, inputs, window, strides, draw(baselines(1, shape)), None, None, sizes)


@st.composite
def cases(draw: Draw, rank: int) -> Case:
    """Networks over `rank` spatial axes, with inputs and a question that fits them."""
    shape = draw(image_shapes(rank))
    network = draw(networks(shape))
    batch = draw(ints(1, 3))
    inputs = noise(draw, (batch, *shape))
    with torch.no_grad():
        sizes = tuple(network(inputs.clone()).shape[1:])
    window, strides = draw(geometries(shape))
    return Case(
        network,
        inputs,
        window,
        strides,
        draw(baselines(batch, shape)),
        draw(targets(batch, sizes, 200_000 // inputs.numel())),
        draw(st.sampled_from([None, None, 1, 2, 3, 5, 7])),
        sizes,
    )
