"""`hash_tensors`: what tensors hold, as a number each, in one pass over a GPU's memory.

It is a universal hash (Carter and Wegman 1979): the sum over all words of a mixing function of the
word, its place and a key, so that no structure in what changed can cancel. The function is
SplitMix64's finaliser (Steele, Lea and Flood 2014).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import loader
from .library import library

__all__ = ["dense_bytes", "hash_tensors"]

library.define("hash_tensors(Tensor[] tensors, int key) -> Tensor")

_CHUNK = 1 << 22  # words that are mixed at once; behind them keys start anew
_GOLDEN, _FIRST, _SECOND = (
    n - (1 << 64) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)  # as signed numbers


def hash_tensors(tensors: Sequence[Tensor], key: int) -> Tensor:
    """Hashes of tensors' bytes, in the order in which they lie in memory: int64, (tensors,).

    Args:
        tensors: one or more of one device, of any shapes and types.
        key: a secret of the process, in 64 bits with a sign.
    """
    dense = [tensor if _is_dense(tensor) else dense_bytes(tensor) for tensor in tensors]
    if dense[0].is_cuda:
        loader.prepare("cuda")
    sums: Tensor = torch.ops.captum_krypton.hash_tensors.default(dense, key)
    return sums.sum(1)


def _is_dense(tensor: Tensor) -> bool:
    """Whether memory from the first element on holds the elements, all and nothing else."""
    if tensor.is_conj() or tensor.is_neg() or tensor.is_quantized:
        return False
    if tensor.is_contiguous():
        return True
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def dense_bytes(tensor: Tensor) -> Tensor:
    """The tensor's bytes in the order in which they lie in memory, where they lie densely."""
    with torch.no_grad():
        data = tensor.detach().resolve_conj().resolve_neg()
        if data.is_quantized:
            data = data.int_repr()
        if data.is_complex():
            data = torch.view_as_real(data)
        order = sorted(range(data.dim()), key=data.stride, reverse=True)
        return data.permute(order).contiguous().reshape(-1).view(torch.uint8)


def _hash_tensors(tensors: list[Tensor], key: int) -> Tensor:
    """The reference of `captum_krypton::hash_tensors`."""
    return torch.stack([_mixed(dense_bytes(tensor), key) for tensor in tensors])[:, None]


def _mixed(memory: Tensor, key: int) -> Tensor:
    """The keyed sum of a tensor's bytes, on their device."""
    # A word must start on a word's boundary.
    if memory.numel() % 8 or memory.data_ptr() % 8 or memory.storage_offset() % 8:
        memory = torch.cat([memory, memory.new_zeros(-memory.numel() % 8)])
    words = memory.view(torch.int64)
    total = words.new_zeros(())
    keys = _keys(min(words.numel(), _CHUNK), words.device, key)
    for first in range(0, words.numel(), _CHUNK):
        part = words[first : first + _CHUNK] ^ keys[: words.numel() - first]
        if first:
            part = part + _finalised(total.new_full((), first))
        total = total + _finalised(part).sum()
    return total


_kept: dict[tuple[torch.device, int], Tensor] = {}


def _keys(count: int, device: torch.device, key: int) -> Tensor:
    """A random word for every place, made once a device: each launch counts on a GPU."""
    keys = _kept.get((device, key))
    if keys is None or len(keys) < count:
        places = torch.arange(1 << max(count - 1, 0).bit_length(), device=device)
        keys = _kept[device, key] = _finalised(places * _GOLDEN + key)
    return keys[:count]


def _finalised(words: Tensor) -> Tensor:
    """SplitMix64's finaliser: every bit of a word moves every bit of the result."""
    words = (words ^ _shifted(words, 30)) * _FIRST
    words = (words ^ _shifted(words, 27)) * _SECOND
    return words ^ _shifted(words, 31)


def _shifted(words: Tensor, bits: int) -> Tensor:
    """To the right, with zeros coming in on the left."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


library.impl("hash_tensors", _hash_tensors, "CompositeExplicitAutograd")
