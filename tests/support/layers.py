"""Single layers, drawn by Hypothesis to fit the tensor that they are given.

All are continuous (no rounding, no argmax, no square root near zero), so that two ways of
computing the same network in float64 agree to about 1e-13 and a larger difference is a bug.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from statements import CHANNEL, GLOBAL, POINT, RESHAPE, SPATIAL, SPLICE
from torch import Tensor, nn

Draw = Callable[[st.SearchStrategy[Any]], Any]
Layer = Callable[[Draw, Tensor], "nn.Module | None"]


class Code(nn.Module):
    """A layer written in Python: statements that turn `x` (N, C, *space) into another `x`.

    Args:
        code: the statements; they may name torch, F, and the tensors given.
        tensors: parameters where floating-point, buffers where not or where named `buffer...`.
    """

    def __init__(self, code: str, **tensors: Tensor) -> None:
        super().__init__()
        self.code = code
        self._run = compile(code, code, "exec")
        for name, tensor in tensors.items():
            if name.startswith("buffer") or not tensor.is_floating_point():
                self.register_buffer(name, tensor)
            else:
                self.register_parameter(name, nn.Parameter(tensor))

    def forward(self, x: Tensor) -> Tensor:
        scope: dict[str, Any] = {"x": x, "torch": torch, "F": F}
        scope.update(self._parameters)
        scope.update(self._buffers)
        exec(self._run, scope)
        result: Tensor = scope["x"]
        return result

    def extra_repr(self) -> str:
        tensors = {**self._parameters, **self._buffers}
        return ", ".join([repr(self.code), *(f"{k}={tuple(t.shape)}" for k, t in tensors.items())])


class Dense(nn.Module):
    """A dense block: every layer sees the outputs of all before it."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)).relu())
        return torch.cat(features, 1)


class SqueezeExcite(nn.Module):
    """A gate per channel, from the mean over space."""

    def __init__(self, channels: int, rank: int, hard: bool) -> None:
        super().__init__()
        self.reduce = CONV[rank](channels, 2, 1)
        self.expand = CONV[rank](2, channels, 1)
        self.space = tuple(range(2, 2 + rank))
        self.gate: Callable[[Tensor], Tensor] = F.hardsigmoid if hard else torch.sigmoid

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean(self.space, keepdim=True)
        return x * self.gate(self.expand(F.relu(self.reduce(pooled), inplace=True)))


class SpatialGate(nn.Module):
    """A gate per position, from the mean and the maximum over channels (CBAM)."""

    def __init__(self, rank: int, kernel: int) -> None:
        super().__init__()
        self.conv = CONV[rank](2, 1, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        summary = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * self.conv(summary).sigmoid()


CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, Any] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
_MAX_POOL: dict[int, Any] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
_AVG_POOL: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
_LP_POOL: dict[int, Any] = {1: nn.LPPool1d, 2: nn.LPPool2d, 3: nn.LPPool3d}
ADAPTIVE: dict[int, tuple[Any, Any]] = {
    1: (nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d),
    2: (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    3: (nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d),
}
_BATCH_NORM: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INSTANCE_NORM: dict[int, Any] = {
    1: nn.InstanceNorm1d,
    2: nn.InstanceNorm2d,
    3: nn.InstanceNorm3d,
}
EPS = 1e-3  # keeps a norm over nearly constant values from magnifying rounding errors


def ints(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, max(low, high))


def _per_axis(draw: Draw, x: Tensor, low: int, high: int | Tensor) -> tuple[int, ...]:
    return tuple(draw(ints(low, int(high))) for _ in range(x.dim() - 2))


def _divisor(draw: Draw, number: int) -> int:
    return int(draw(st.sampled_from([d for d in range(1, number + 1) if number % d == 0])))


def _convolution(draw: Draw, x: Tensor) -> nn.Module | None:
    rank, channels = x.dim() - 2, x.shape[1]
    groups = draw(st.sampled_from([1, 1, channels, _divisor(draw, channels)]))
    out = groups * draw(ints(1, max(1, 6 // groups)))
    kernel = draw(st.sampled_from([(1,) * rank, (3,) * rank, None])) or _per_axis(draw, x, 1, 5)
    stride = draw(st.sampled_from([(1,) * rank, None])) or _per_axis(draw, x, 1, 3)
    dilation = draw(st.sampled_from([(1,) * rank, None])) or _per_axis(draw, x, 1, 3)
    mode = draw(st.sampled_from(["zeros", "zeros", "zeros", "reflect", "replicate", "circular"]))
    padding: Any = tuple(draw(ints(0, k)) for k in kernel)
    if draw(st.booleans()):
        padding = tuple((k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True))
    if mode in ("reflect", "circular"):
        padding = tuple(min(p, s - 1) for p, s in zip(padding, x.shape[2:], strict=True))
    if stride == (1,) * rank and mode != "reflect" and draw(st.booleans()):
        padding = "same"
    return CONV[rank](
        channels, out, kernel, stride, padding, dilation, groups, draw(st.booleans()), mode
    )


def _same_strided_convolution(draw: Draw, x: Tensor) -> nn.Module | None:
    """Padding more on the right, as networks ported from TensorFlow have it."""
    rank, channels = x.dim() - 2, x.shape[1]
    kernel, stride = draw(ints(1, 5)), draw(ints(1, 3))
    pads: list[int] = []
    for size in reversed(x.shape[2:]):
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    value = draw(st.sampled_from(["", ", value=0.5", ", value=-float('inf')"]))
    if "inf" in value:
        pool = _MAX_POOL[rank](kernel, stride)
    else:
        pool = CONV[rank](channels, draw(ints(1, 4)), kernel, stride)
    return nn.Sequential(Code(f"x = F.pad(x, {pads}{value})"), pool)


def _transposed_convolution(draw: Draw, x: Tensor) -> nn.Module | None:
    rank, channels = x.dim() - 2, x.shape[1]
    groups = _divisor(draw, channels)
    kernel, stride = _per_axis(draw, x, 1, 4), _per_axis(draw, x, 1, 3)
    dilation = draw(st.sampled_from([(1,) * rank, (2,) * rank]))
    padding = tuple(draw(ints(0, k - 1)) for k in kernel)
    extra = tuple(draw(ints(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    out = groups * draw(ints(1, max(1, 4 // groups)))
    return _TRANSPOSED[rank](
        channels, out, kernel, stride, padding, extra, groups, draw(st.booleans()), dilation
    )


def _max_pool(draw: Draw, x: Tensor) -> nn.Module | None:
    kernel = draw(st.sampled_from([(2,) * (x.dim() - 2), None])) or _per_axis(draw, x, 1, 4)
    stride = draw(st.sampled_from([None, 1, 2, 3]))
    padding = tuple(draw(ints(0, k // 2)) for k in kernel)
    dilation = draw(st.sampled_from([1, 1, 2]))
    return _MAX_POOL[x.dim() - 2](kernel, stride, padding, dilation, ceil_mode=draw(st.booleans()))


def _avg_pool(draw: Draw, x: Tensor) -> nn.Module | None:
    rank = x.dim() - 2
    kernel = draw(st.sampled_from([(2,) * rank, None])) or _per_axis(draw, x, 1, 4)
    arguments: dict[str, Any] = {
        "stride": draw(st.sampled_from([None, 1, 2, 3])),
        "padding": tuple(draw(ints(0, k // 2)) for k in kernel),
        "ceil_mode": draw(st.booleans()),
        "count_include_pad": draw(st.booleans()),
    }
    if rank > 1:
        arguments["divisor_override"] = draw(st.sampled_from([None, None, 3]))
    return _AVG_POOL[rank](kernel, **arguments)


def _lp_pool(draw: Draw, x: Tensor) -> nn.Module | None:
    norm, kernel = draw(st.sampled_from([1, 2])), draw(ints(1, 3))
    stride = draw(st.sampled_from([None, 1, 2]))
    return _LP_POOL[x.dim() - 2](norm, kernel, stride, ceil_mode=draw(st.booleans()))


def _adaptive_pool(draw: Draw, x: Tensor) -> nn.Module | None:
    sizes = []
    for size in x.shape[2:]:
        sizes.append(draw(st.sampled_from([1, 2, _divisor(draw, size), min(size, 3), size, 7])))
    kind = draw(st.sampled_from([0, 0, 1]))
    return ADAPTIVE[x.dim() - 2][kind](tuple(sizes) if len(sizes) > 1 else sizes[0])


def _batch_norm(draw: Draw, x: Tensor) -> nn.Module | None:
    return _BATCH_NORM[x.dim() - 2](x.shape[1], affine=draw(st.booleans()))


def _norm(draw: Draw, x: Tensor) -> nn.Module | None:
    rank, channels = x.dim() - 2, x.shape[1]
    affine = draw(st.booleans())
    kind = draw(st.sampled_from(["group", "instance", "channels", "response", "all", "rms"]))
    if kind == "group":
        return nn.GroupNorm(_divisor(draw, channels), channels, EPS, affine)
    if kind == "instance":
        tracked = draw(st.booleans())
        return _INSTANCE_NORM[rank](channels, EPS, affine=affine, track_running_stats=tracked)
    if kind == "response":
        return nn.LocalResponseNorm(draw(ints(1, channels)), 0.1, 0.75, 1.0)
    if kind == "all":
        return nn.LayerNorm(tuple(x.shape[1:]), EPS, affine)
    if kind == "rms":
        return Code("x = x / (x.square().mean(1, keepdim=True) + 0.1).sqrt()")
    to_last = (0, *range(2, 2 + rank), 1)
    to_first = (0, 1 + rank, *range(1, 1 + rank))
    return Code(
        f"x = F.layer_norm(x.permute{to_last}, ({channels},), w, b, {EPS}).permute{to_first}",
        w=torch.ones(channels),
        b=torch.zeros(channels),
    )


ACTIVATIONS: list[Callable[[int], nn.Module]] = [
    lambda c: nn.ReLU(),
    lambda c: nn.ReLU(inplace=True),
    lambda c: nn.ReLU6(inplace=True),
    lambda c: nn.SiLU(),
    lambda c: nn.SiLU(inplace=True),
    lambda c: nn.GELU(),
    lambda c: nn.GELU(approximate="tanh"),
    lambda c: nn.Hardswish(inplace=True),
    lambda c: nn.Hardsigmoid(),
    lambda c: nn.LeakyReLU(0.2),
    lambda c: nn.PReLU(c),
    lambda c: nn.PReLU(),
    lambda c: nn.ELU(),
    lambda c: nn.SELU(inplace=True),
    lambda c: nn.CELU(),
    lambda c: nn.Sigmoid(),
    lambda c: nn.Tanh(),
    lambda c: nn.Softplus(),
    lambda c: nn.Softsign(),
    lambda c: nn.Softshrink(0.2),
    lambda c: nn.Hardtanh(-1.0, 0.5),
    lambda c: nn.Mish(),
    lambda c: nn.RReLU(),
    lambda c: nn.Dropout(0.5),
    lambda c: nn.LogSigmoid(),
    lambda c: nn.Threshold(0.0, 0.0),
]


def _activation(draw: Draw, x: Tensor) -> nn.Module | None:
    return draw(st.sampled_from(ACTIVATIONS))(x.shape[1])


def _code(*pool: str) -> Layer:
    def layer(draw: Draw, x: Tensor) -> nn.Module | None:
        return Code(draw(st.sampled_from(pool)))

    return layer


def _reshape(draw: Draw, x: Tensor) -> nn.Module | None:
    return Code(draw(st.sampled_from(RESHAPE[x.dim() - 2])))


def _channel_split(draw: Draw, x: Tensor) -> nn.Module | None:
    groups = _divisor(draw, x.shape[1])
    return Code(
        draw(
            st.sampled_from(
                [
                    f"s = x.shape; x = x.view(s[0], {groups}, s[1] // {groups}, *s[2:])"
                    ".transpose(1, 2).reshape(s)",
                    f"x = x.unflatten(1, ({groups}, -1)).sum(2)",
                    f"x = torch.cat(x.chunk({groups}, 1)[::-1], 1)",
                ]
            )
        )
    )


def _pixel_shuffle(draw: Draw, x: Tensor) -> nn.Module | None:
    if x.dim() != 4:
        return None
    channels, height, width = x.shape[1:]
    if draw(st.booleans()) and channels % 4 == 0:
        return nn.PixelShuffle(2)
    if height % 2 == 0 and width % 2 == 0:
        return nn.PixelUnshuffle(2)
    return Code("x = F.pixel_shuffle(torch.cat([x, x + 1, -x, x * x], 1), 2)")


_MODES = {1: ["linear"], 2: ["bilinear", "bicubic"], 3: ["trilinear"]}


def _interpolate(draw: Draw, x: Tensor) -> nn.Module | None:
    rank = x.dim() - 2
    mode = draw(st.sampled_from(["nearest", "nearest-exact", "area", *_MODES[rank] * 2]))
    arguments = [f"mode={mode!r}"]
    if draw(st.booleans()):
        arguments.append(f"scale_factor={draw(st.sampled_from([2, 1.5, 0.5, 0.7]))}")
        arguments.append(draw(st.sampled_from(["", "recompute_scale_factor=True"])))
    else:
        arguments.append(f"size={tuple(draw(ints(1, 12)) for _ in range(rank))}")
    if mode in _MODES[rank]:
        arguments.append(f"align_corners={draw(st.booleans())}")
        if rank == 2 and draw(ints(0, 4)) == 4:
            arguments.append("antialias=True")
    return Code(f"x = F.interpolate(x, {', '.join(a for a in arguments if a)})")


def _padding(draw: Draw, x: Tensor) -> nn.Module | None:
    mode = draw(st.sampled_from(["constant", "reflect", "replicate", "circular"]))
    pads: list[int] = []
    for size in reversed(x.shape[2:]):
        if mode == "constant":
            low = -1 if size > 3 else 0
            pads += [draw(ints(low, 3)), draw(ints(low, 3))]
        else:
            most = min(3, size - 1)
            pads += [draw(ints(0, most)), draw(ints(0, most))]
    value = draw(st.sampled_from([0.0, 1.0])) if mode == "constant" else None
    return Code(f"x = F.pad(x, {pads}, {mode!r}, {value})")


def _positional(draw: Draw, x: Tensor) -> nn.Module | None:
    shapes = [(1, *x.shape[1:]), (x.shape[1], *[1] * (x.dim() - 2)), tuple(x.shape[-1:]), ()]
    shape = draw(st.sampled_from(shapes))
    name = draw(st.sampled_from(["p", "buffer"]))
    code = draw(st.sampled_from(["x = x + {}", "x = x * {}", "x = {} - x", "x = x + {} * x"]))
    return Code(code.format(name), **{name: torch.zeros(shape)})


def _linear_over_channels(draw: Draw, x: Tensor) -> nn.Module | None:
    rank, out = x.dim() - 2, draw(ints(1, 4))
    to_last = (0, *range(2, 2 + rank), 1)
    to_first = (0, 1 + rank, *range(1, 1 + rank))
    return Code(
        f"x = F.gelu(F.linear(x.permute{to_last}, w, b)).permute{to_first}",
        w=torch.zeros(out, x.shape[1]),
        b=torch.zeros(out),
    )


def _linear_over_space(draw: Draw, x: Tensor) -> nn.Module | None:
    return Code("x = x @ w", w=torch.zeros(x.shape[-1], draw(ints(1, 6))))


def _grid_sample(draw: Draw, x: Tensor) -> nn.Module | None:
    if x.dim() != 4:
        return None
    return Code(
        "x = F.grid_sample(x, buffer.expand(x.shape[0], -1, -1, -1), align_corners=False)",
        buffer=torch.zeros(1, 4, 5, 2),
    )


def _channels_last(draw: Draw, x: Tensor) -> nn.Module | None:
    if x.dim() != 4:
        return None
    return Code("x = x.contiguous(memory_format=torch.channels_last)")


def _gate(draw: Draw, x: Tensor) -> nn.Module | None:
    if draw(st.booleans()):
        return SqueezeExcite(x.shape[1], x.dim() - 2, draw(st.booleans()))
    return SpatialGate(x.dim() - 2, draw(st.sampled_from([1, 3, 5])))


def _dense_block(draw: Draw, x: Tensor) -> nn.Module | None:
    layers: list[nn.Module] = []
    for step in range(draw(ints(1, 3))):
        layers.append(CONV[x.dim() - 2](x.shape[1] + 2 * step, 2, 3, padding=1))
    return Dense(layers)


# The layers that make up most of all networks come first and often.
COMMON: list[Layer] = [_convolution] * 5 + [_activation] * 3 + [_max_pool, _avg_pool, _batch_norm]
OTHERS: list[Layer] = [
    _same_strided_convolution,
    _transposed_convolution,
    _lp_pool,
    _adaptive_pool,
    _norm,
    _norm,
    _code(*POINT),
    _code(*CHANNEL),
    _code(*SPATIAL),
    _code(*SPATIAL),
    _code(*SPLICE),
    _code(*SPLICE),
    _code(*GLOBAL),
    _channel_split,
    _pixel_shuffle,
    _interpolate,
    _interpolate,
    _padding,
    _positional,
    _linear_over_channels,
    _linear_over_space,
    _grid_sample,
    _channels_last,
    _gate,
    _dense_block,
    _reshape,
]
