"""`arena`: memory for large outputs that is used again from batch to batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from . import loader
from .library import library

__all__ = ["arena", "cat_in_arena"]

library.define("use_arena(int bytes) -> ()")
library.define("empty_block(SymInt[] shape, Tensor like) -> Tensor")

_LARGE = 1 << 18  # elements; smaller outputs do no harm where they are


@contextmanager
def arena(size: int) -> Iterator[None]:
    """Lets this thread's kernels on the CPU take their outputs from one piece of memory.

    The system hands out large tensors page by page, and takes them back when they are freed; freed
    small ones leave holes that fit no other. Within the block, outputs get the lowest place with
    room instead, the same ones in every batch. Outputs that live on keep the memory alive. Without
    compiled kernels nothing changes.

    Args:
        size: bytes. Those that are never needed are never touched; outputs that find no room are
            made as usual.
    """
    if not loader.has_kernels():
        yield
        return
    torch.ops.captum_krypton.use_arena.default(size)
    try:
        yield
    finally:
        torch.ops.captum_krypton.use_arena.default(0)


def cat_in_arena(tensors: list[Tensor], dim: int = 0) -> Tensor:
    """`torch.cat`, into the arena's memory where the result is large."""
    first = tensors[0]
    like = all(t.dtype == first.dtype and t.dim() == first.dim() for t in tensors)
    shape = list(first.shape)
    shape[dim] = sum(t.shape[dim] for t in tensors) if like else 0
    if math.prod(shape) < _LARGE or not first.is_cpu or not loader.has_kernels():
        return torch.cat(tensors, dim)
    out = torch.ops.captum_krypton.empty_block.default(shape, first)
    return torch.cat(tensors, dim, out=out)
