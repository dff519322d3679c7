"""Memory that kernels' outputs are cut out of."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from captum_krypton._kernels import arena, cat_in_arena, in_channels_last
from captum_krypton._kernels.formats import is_channels_last
from captum_krypton._kernels.loader import has_kernels

pytestmark = pytest.mark.skipif(not has_kernels(), reason="there are no compiled kernels")


def block(*shape: int, like: Tensor | None = None) -> Tensor:
    like = torch.empty([1] * len(shape)) if like is None else like
    made: Tensor = torch.ops.captum_krypton.empty_block.default(shape, like)
    return made


def test_freed_memory_is_used_again() -> None:
    with arena(1 << 20):
        first, second = block(1000), block(1000)
        places = first.data_ptr(), second.data_ptr()
        assert places[1] - places[0] == 4032  # 4000 bytes, in lines of 64
        del first
        again = block(500)
        assert again.data_ptr() == places[0]
        assert block(1000).data_ptr() > places[1]  # the rest of the first is too small
        del again, second
        assert block(1500).data_ptr() == places[0]  # neighbours that are free are one


def test_without_room_memory_is_made_as_usual() -> None:
    with arena(4096):
        inside, outside = block(1024), block(1024)
        assert inside.data_ptr() % (1 << 21) == 0
        inside.fill_(1)
        outside.fill_(2)
        assert inside.sum() == 1024


def test_outputs_outlive_the_arena() -> None:
    with arena(1 << 20):
        kept = block(1000).fill_(3)
        view = kept[10:]
    del kept
    with arena(1 << 20):
        block(1000).fill_(4)
    assert block(1000).data_ptr() != view.data_ptr() - 40
    assert (view == 3).all()


def test_an_arena_belongs_to_one_thread() -> None:
    places: list[int] = []
    with arena(1 << 20):
        ours = block(1000)
        worker = threading.Thread(target=lambda: places.append(block(1000).fill_(1).data_ptr()))
        worker.start()
        worker.join()
        assert abs(places[0] - ours.data_ptr()) > 1 << 12
        assert block(1000).data_ptr() - ours.data_ptr() == 4032


def test_an_arena_ends_with_an_error() -> None:
    with pytest.raises(ZeroDivisionError), arena(1 << 20):
        inside = block(1000)
        raise ZeroDivisionError
    assert block(1000).data_ptr() - inside.data_ptr() != 4032


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(RuntimeError, match="bytes is -1"), arena(-1):
        pass


@given(st.data())
def test_no_two_blocks_overlap(data: st.DataObject) -> None:
    live: dict[int, Tensor] = {}
    with arena(data.draw(st.sampled_from([1 << 12, 1 << 16, 1 << 22]))):
        for number in range(data.draw(st.integers(1, 40))):
            if live and data.draw(st.booleans()):
                del live[data.draw(st.sampled_from(sorted(live)))]
            shape = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=4))
            live[number] = block(*shape).fill_(number)
            for other, tensor in live.items():
                assert (tensor == other).all()


LAYOUTS = [
    torch.empty(2, 3, 4),
    torch.empty(2, 4, 3).transpose(1, 2),
    torch.empty(2, 3, 4, 5),
    torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last),
    torch.empty(2, 3, 4, 5, 6, dtype=torch.float64).to(memory_format=torch.channels_last_3d),
    torch.empty(2, 3, 4, 5, dtype=torch.bfloat16).to(memory_format=torch.channels_last),
]


@pytest.mark.parametrize("like", LAYOUTS)
@pytest.mark.parametrize("size", [0, 1 << 20])
def test_a_block_has_the_layout_of_its_like(like: Tensor, size: int) -> None:
    with arena(size):
        made = block(*like.shape, like=like)
        assert made.shape == like.shape
        assert made.dtype == like.dtype
        assert made.stride() == torch.empty_like(like).stride()


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("size", [(256,), (16, 16), (4, 8, 8)])
def test_join_is_cat(dim: int, last: bool, size: tuple[int, ...]) -> None:
    parts = [torch.randn(64, 32, *size) for _ in range(3)]
    if last:
        parts = [in_channels_last(part) for part in parts]
    with arena(1 << 26):
        joined = cat_in_arena(parts, dim)
        assert torch.equal(joined, torch.cat(parts, dim))
        assert is_channels_last(joined) == last
        small = [torch.ones(2), torch.ones(3, dtype=torch.float64)]
        assert torch.equal(cat_in_arena(small), torch.cat(small))
        assert torch.equal(cat_in_arena([parts[0], torch.empty(0)]), parts[0])  # as torch has it
