"""Contents of tensors: any change of a byte is a change of the fingerprint."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layers import Draw
from torch import Tensor

from captum_krypton._capture import fingerprint as hashes
from captum_krypton._capture.fingerprint import fingerprint, fingerprints
from captum_krypton._kernels import hash_tensors

Hash = Callable[[Tensor], object]


def of_gpus(tensor: Tensor) -> object:
    """What stands for the content on a GPU; here it is computed on the CPU."""
    return int(hash_tensors([tensor], hashes._KEY))


HASHES: dict[str, Hash] = {"cpu": fingerprint, "gpu": of_gpus}
pytestmark = pytest.mark.parametrize("kind", HASHES)


@pytest.mark.parametrize("numbers", [1, 7, 8, 9, 4096, 4097])
@pytest.mark.parametrize(("before", "after"), [(0, 255), (1, 2), (255, 0)])
def test_a_change_of_any_byte_is_noticed(kind: str, numbers: int, before: int, after: int) -> None:
    tensor, hashed = torch.full((numbers,), before, dtype=torch.uint8), HASHES[kind]
    untouched = hashed(tensor)
    for places in (0, len(tensor) // 2, -1, slice(None)):
        tensor[places] = after
        assert hashed(tensor) != untouched
        tensor[places] = before
    assert hashed(tensor) == untouched


def negated(draw: Draw, tensor: Tensor) -> Tensor:
    """Every so many-th number has the other sign: top bits of words and of half words change."""
    step = draw(st.sampled_from([1, 2, 3, 4, 8]))
    start = draw(st.integers(0, step - 1))
    out = tensor.clone().flatten()
    out[start::step] = -out[start::step]
    return out.reshape(tensor.shape)


def swapped(draw: Draw, tensor: Tensor) -> Tensor:
    dim = draw(st.integers(0, tensor.dim() - 1))
    return tensor.flip(dim)


def rolled(draw: Draw, tensor: Tensor) -> Tensor:
    return tensor.flatten().roll(draw(st.integers(1, tensor.numel() - 1))).reshape(tensor.shape)


def of_another_sign(draw: Draw, tensor: Tensor) -> Tensor:
    """A pair of numbers whose bits change by the same: their sum stays."""
    out = tensor.clone().flatten()
    first, second = draw(st.permutations(range(len(out))))[:2]
    out[first], out[second] = out[first] + 1, out[second] - 1
    return out.reshape(tensor.shape)


CHANGES = [negated, swapped, rolled, of_another_sign]


@given(data=st.data())
def test_structured_changes_are_noticed(kind: str, data: st.DataObject) -> None:
    """Changes that keep sums, sums of squares, and sums weighted by a place."""
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.float16, torch.int64]))
    shape = data.draw(st.tuples(*[st.integers(2, 9)] * 3))
    noise = torch.Generator().manual_seed(data.draw(st.integers(0, 2**16)))
    tensor = (torch.randn(shape, generator=noise) * 8).to(dtype)
    changed = data.draw(st.sampled_from(CHANGES))(data.draw, tensor)
    same = torch.equal(changed, tensor) and torch.equal(changed.signbit(), tensor.signbit())
    assert (HASHES[kind](changed) == HASHES[kind](tensor)) == same


@pytest.mark.parametrize(
    "make", [lambda t: t.t(), lambda t: t[:, ::2], lambda t: t.expand(3, 4, 6)]
)
def test_tensors_that_do_not_lie_densely(kind: str, make: Callable[[Tensor], Tensor]) -> None:
    tensor = torch.arange(24.0).reshape(4, 6)
    before = HASHES[kind](make(tensor))
    assert HASHES[kind](make(tensor.clone())) == before
    tensor[2, 4] += 1
    assert HASHES[kind](make(tensor)) != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64, torch.bool, torch.float64])
def test_types(kind: str, dtype: torch.dtype) -> None:
    tensor = torch.tensor([1.0, 0.0, 1.0]).to(dtype).requires_grad_(dtype.is_floating_point)
    before = HASHES[kind](tensor)
    tensor.data[1] = 1
    assert HASHES[kind](tensor) != before


def test_a_chunk_after_the_first(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("captum_krypton._kernels.hash_tensors")
    monkeypatch.setattr(module, "_CHUNK", 8)
    tensor = torch.arange(100)
    before = HASHES[kind](tensor)
    assert HASHES[kind](tensor.roll(8)) != before
    tensor[99] = 0
    assert HASHES[kind](tensor) != before


def test_what_lies_elsewhere_is_another_tensor(kind: str) -> None:
    tensor = torch.arange(4.0)
    (one,), (other,) = fingerprints((tensor,)), fingerprints((tensor.clone(),))
    assert one != other
    assert one[-1] == other[-1]
