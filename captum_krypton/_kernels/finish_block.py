"""`finish_block`: the bias, sum, activation and clamp that follow a convolution, in one pass."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from types import FunctionType

import torch
from torch import Tensor

from . import loader
from .activation import ACTIVATIONS, activate
from .formats import in_channels_last, is_channels_last
from .library import library

__all__ = ["compiled_finish", "fastest_finish", "finish", "plain_finish"]

library.define(
    "finish_block(Tensor(a!) sums, Tensor? bias, Tensor? residual, float low, float high, "
    "int activation, Tensor? slope=None) -> Tensor(a!)"
)


def finish(
    out: Tensor,
    residual: Tensor | None,
    low: float,
    high: float,
    activation: str = "none",
    slope: Tensor | None = None,
) -> Tensor:
    """Adds the residual to `out`, activates and clamps; `out` may be overwritten."""
    if residual is not None:
        out.add_(residual)
    out = activate(out, activation, slope)
    if low > -math.inf or high < math.inf:
        out.clamp_(low, high)
    return out


Finish = Callable[[Tensor, Tensor | None, Tensor | None, Tensor | None], Tensor]


def plain_finish(low: float, high: float, activation: str) -> Finish:
    """A function that adds a bias and does the rest of `finish`, by PyTorch's operators.

    Its arguments are the sums, which it may overwrite, the bias of each channel, the residual and
    the slope of each channel.
    """

    def finished(
        out: Tensor, bias: Tensor | None, residual: Tensor | None, slope: Tensor | None
    ) -> Tensor:
        if bias is not None:
            out.add_(bias.reshape(-1, *[1] * (out.dim() - 2)))
        return finish(out, residual, low, high, activation, slope)

    return finished


def _finish_block(
    sums: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    low: float,
    high: float,
    activation: int,
    slope: Tensor | None = None,
) -> Tensor:
    """The reference of `captum_krypton::finish_block`."""
    made = plain_finish(low, high, ACTIVATIONS[activation])(sums, bias, residual, slope)
    return made if made is sums else sums.copy_(made)


def fastest_finish(low: float, high: float, activation: str, device: torch.device) -> Finish:
    """`plain_finish`, in one pass where a GPU's kernel is there."""
    plain = plain_finish(low, high, activation)
    if device.type != "cuda" or loader.load("cuda").path is None:
        return plain
    number = ACTIVATIONS.index(activation)

    def finished(
        sums: Tensor, bias: Tensor | None, residual: Tensor | None, slope: Tensor | None
    ) -> Tensor:
        if not (_is_packed(sums) and sums.is_floating_point()):
            return plain(sums, bias, residual, slope)
        made: Tensor = torch.ops.captum_krypton.finish_block.default(
            sums, bias, residual, low, high, number, slope
        )
        return made

    return finished


def _is_packed(tensor: Tensor) -> bool:
    """Whether the numbers lie side by side, channels first or last."""
    return tensor.is_contiguous() or is_channels_last(tensor)


@functools.cache
def compiled_finish(
    low: float,
    high: float,
    activation: str,
    *,
    bias: bool,
    residual: bool,
    rank: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Finish:
    """`plain_finish` in one pass, by torch.compile.

    It is compiled here, for small tensors with symbols for sizes. Where that fails, it is the plain
    one, with a warning.

    Args:
        low: the least value.
        high: the largest value.
        activation: one of `ACTIVATIONS`.
        bias: whether there is a bias.
        residual: whether there is a residual.
        rank: dimensions of the sums.
        dtype: their type.
        device: where they are.
    """
    plain = plain_finish(low, high, activation)
    # PyTorch limits the variants of a piece of code: each of these is a piece of its own.
    own = FunctionType(plain.__code__.replace(), globals(), closure=plain.__closure__)
    made: Finish = torch.compile(own, dynamic=True)
    sums = torch.zeros([2, 3, 5, 7, 11][:rank], dtype=dtype, device=device)
    if 3 <= rank <= 5:
        sums = in_channels_last(sums)
    try:
        of_channels = sums.new_zeros(3)
        made(
            sums,
            of_channels if bias else None,
            sums.clone() if residual else None,
            of_channels if activation == "prelu" else None,
        )
    except RuntimeError as error:
        warnings.warn(
            "torch.compile cannot make what follows a convolution, PyTorch's operators do it: "
            f"{type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return plain
    return made


library.impl("finish_block", _finish_block, "CompositeExplicitAutograd")
