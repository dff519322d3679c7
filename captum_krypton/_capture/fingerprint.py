"""Contents of tensors as short values that change when any byte does.

On the CPU that is XXH3 (128 bits) at the speed of memory. On other devices it is a universal hash
with a key that the process draws (see `hash_tensors`). It stays on the device until all tensors are
read with one wait.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import torch
import xxhash
from torch import Tensor

from .._kernels import dense_bytes, hash_tensors

__all__ = ["fingerprint", "fingerprints"]

_KEY = secrets.randbits(62) | 1


def fingerprint(tensor: Tensor) -> Any:
    """The content of one tensor: equal for equal contents of one type, shape and place."""
    return next(iter(fingerprints((tensor,))))[-1]


def fingerprints(tensors: tuple[Tensor, ...]) -> Iterator[tuple[Any, ...]]:
    """One value a tensor: where it lies, of what kind it is, and what it holds.

    They change when the content does, also where autograd's version counter does not.

    Args:
        tensors: tensors on any devices. A device is waited for once.
    """
    waiting: dict[torch.device, list[int]] = {}
    found: list[tuple[Any, ...]] = []
    for number, tensor in enumerate(tensors):
        kind = (tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.data_ptr())
        if on_host(tensor):
            found.append((*kind, xxhash.xxh3_128_intdigest(dense_bytes(tensor).numpy().data)))
        else:
            waiting.setdefault(tensor.device, []).append(number)
            found.append(kind)
    for numbers in waiting.values():
        contents = hash_tensors([tensors[number] for number in numbers], _KEY).tolist()
        for number, content in zip(numbers, contents, strict=True):
            found[number] = (*found[number], content)
    yield from found


def on_host(tensor: Tensor) -> bool:
    """Whether the host can read the tensor where it lies."""
    return tensor.device.type == "cpu"
