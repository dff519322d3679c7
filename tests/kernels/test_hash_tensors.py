"""`hash_tensors`: a GPU's kernel, compiled for the host, against plain torch and its definition."""

from __future__ import annotations

import cuda_on_host
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from captum_krypton._kernels import hash_tensors

KEY = 0x123456789ABCDEF1
TYPES = (torch.uint8, torch.float16, torch.float32, torch.float64, torch.complex64, torch.bool)


def on_device(tensors: list[Tensor], key: int = KEY) -> list[int]:
    if not cuda_on_host.load():
        pytest.skip("needs a C++ compiler")
    sums: Tensor = torch.ops.captum_krypton_on_host.hash_tensors(tensors, key)
    made: list[int] = sums.sum(1).tolist()
    return made


def finalised(word: int) -> int:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        word = (word ^ (word >> shift)) * factor % 2**64
    return word ^ (word >> 31)


def by_definition(memory: bytes, key: int) -> int:
    """The hash as the module's docstring has it, in Python's integers; of less than a chunk."""
    total = 0
    for place in range(0, len(memory), 8):
        word = int.from_bytes(memory[place : place + 8], "little")
        total += finalised(word ^ finalised((place // 8 * 0x9E3779B97F4A7C15 + key) % 2**64))
    total %= 2**64
    return total - 2**64 if total >= 2**63 else total


@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=6),
    start=st.integers(0, 9),
    seed=st.integers(0, 2**16),
)
def test_equals_its_definition(sizes: list[int], start: int, seed: int) -> None:
    """Bytes may begin and end anywhere."""
    noise = torch.Generator().manual_seed(seed)
    every = torch.randint(0, 256, (start + sum(sizes),), generator=noise, dtype=torch.uint8)
    tensors = list(every[start:].split(sizes))
    expected = [by_definition(bytes(t.tolist()), KEY) for t in tensors]
    assert hash_tensors(tensors, KEY).tolist() == expected
    assert on_device(tensors) == expected


@pytest.mark.parametrize("dtype", TYPES)
def test_equals_the_reference(dtype: torch.dtype) -> None:
    tensors = [torch.randn(n, 3, 5).to(dtype) for n in range(300)]  # more than one launch has
    tensors.append((torch.randn(90_001) > 0).to(dtype))  # and more than one block
    assert on_device(tensors) == hash_tensors(tensors, KEY).tolist()


def test_places_beyond_a_chunk_count() -> None:
    many = torch.arange(2**22 + 9)
    (before,) = on_device([many])
    assert [before] == hash_tensors([many], KEY).tolist()
    many[[0, 2**22]] = many[[2**22, 0]]
    assert on_device([many]) != [before]


def test_how_the_elements_lie_counts_and_not_where() -> None:
    tensor = torch.randn(3, 4, 5, 6)
    last = tensor.contiguous(memory_format=torch.channels_last)
    one, other, turned = hash_tensors([tensor, last, last.permute(0, 2, 3, 1)], KEY).tolist()
    assert one != other == turned
    assert hash_tensors([tensor.clone()], KEY).tolist() == [one]
    assert hash_tensors([tensor], KEY + 2).tolist() != [one]
    gaps = torch.stack([tensor, tensor], -1)[..., 0]
    assert hash_tensors([gaps], KEY).tolist() == [one]
