"""Contents of tensors as short values that change when any byte does.

On the CPU that is XXH3 (128 bits) at the speed of memory. On other devices it is a universal hash
(Carter and Wegman 1979) with a key that the process draws: the sum over all words of a mixing
function of the word, its place and the key, so that no structure in what changed can cancel. It
stays on the device until all tensors are read with one wait.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import torch
import xxhash
from torch import Tensor

__all__ = ["fingerprint", "fingerprints"]

_SMALL = 1 << 14  # bytes of a tensor that is looked at with others, on a GPU
_CHUNK = 1 << 22  # words that are mixed at once
_KEY = secrets.randbits(62) | 1
# Factors of the finaliser of SplitMix64 (Steele, Lea and Flood 2014), as signed numbers.
_GOLDEN, _FIRST, _SECOND = (
    n - (1 << 64) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def fingerprint(tensor: Tensor) -> Any:
    """The content of one tensor: equal for equal contents of one type, shape and place."""
    return next(iter(fingerprints((tensor,))))[-1]


def fingerprints(tensors: tuple[Tensor, ...]) -> Iterator[tuple[Any, ...]]:
    """One value a tensor: where it lies, of what kind it is, and what it holds.

    They change when the content does, also where autograd's version counter does not.

    Args:
        tensors: tensors on any devices. A device is waited for once.
    """
    waiting: dict[torch.device, list[Tensor]] = {}
    small: dict[torch.device, list[Tensor]] = {}
    found: list[list[Any]] = []
    for tensor in tensors:
        kind = [tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device]
        found.append([*kind, tensor.data_ptr()])
        memory = _bytes(tensor)
        if on_host(tensor):
            found[-1].append(xxhash.xxh3_128_intdigest(memory.numpy().data))
            continue
        if memory.numel() <= _SMALL:  # a model has many, and each launches kernels
            small.setdefault(tensor.device, []).append(memory)
        else:
            waiting.setdefault(tensor.device, []).append(_mixed(memory))
        found[-1].append(memory.numel())
    for device, parts in small.items():
        waiting.setdefault(device, []).append(_mixed(torch.cat(parts)))
    for device in waiting:
        together = tuple(torch.stack(waiting[device]).tolist())
        for entry in found:
            if entry[3] == device:
                entry.append(together)
    yield from map(tuple, found)


def on_host(tensor: Tensor) -> bool:
    """Whether the host can read the tensor where it lies."""
    return tensor.device.type == "cpu"


def _bytes(tensor: Tensor) -> Tensor:
    """The tensor's bytes in the order in which they lie in memory, where they lie densely."""
    with torch.no_grad():
        data = tensor.detach().resolve_conj().resolve_neg()
        if data.is_quantized:
            data = data.int_repr()
        if data.is_complex():
            data = torch.view_as_real(data)
        order = sorted(range(data.dim()), key=data.stride, reverse=True)
        return data.permute(order).contiguous().reshape(-1).view(torch.uint8)


def _mixed(memory: Tensor) -> Tensor:
    """The keyed sum of a tensor's bytes, on their device."""
    rest = memory.numel() % 8
    if rest or memory.data_ptr() % 8:  # a word must start on a word's boundary
        memory = torch.cat([memory, memory.new_zeros(-memory.numel() % 8)])
    words = memory.view(torch.int64)
    total = words.new_full((), words.numel() * 8 - (8 - rest) % 8)
    keys = _keys(min(words.numel(), _CHUNK), words.device)
    for first in range(0, words.numel(), _CHUNK):
        part = words[first : first + _CHUNK] ^ keys[: words.numel() - first]
        if first:
            part = part + _finalised(total.new_full((), first))
        total = total + _finalised(part).sum()
    return total


_kept: dict[torch.device, Tensor] = {}


def _keys(count: int, device: torch.device) -> Tensor:
    """A random word for every place, made once a device: each launch counts on a GPU."""
    keys = _kept.get(device)
    if keys is None or len(keys) < count:
        places = torch.arange(1 << (count - 1).bit_length(), device=device)
        keys = _kept[device] = _finalised(places * _GOLDEN + _KEY)
    return keys[:count]


def _finalised(words: Tensor) -> Tensor:
    """SplitMix64's finaliser: every bit of a word moves every bit of the result."""
    words = (words ^ _shifted(words, 30)) * _FIRST
    words = (words ^ _shifted(words, 27)) * _SECOND
    return words ^ _shifted(words, 31)


def _shifted(words: Tensor, bits: int) -> Tensor:
    """To the right, with zeros coming in on the left."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)
