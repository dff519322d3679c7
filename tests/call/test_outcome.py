"""Targets, in an output and in the part of it that they name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captum._utils.common import _select_targets
from hypothesis import event, given
from hypothesis import strategies as st
from networks import targets

from captum_krypton._call.outcome import part_of, part_target


@given(data=st.data())
def test_a_target_names_the_same_in_its_part(data: st.DataObject) -> None:
    batch = data.draw(st.integers(1, 3))
    sizes = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    output = torch.arange(batch * torch.Size(sizes).numel()).reshape(batch, *sizes)
    target = data.draw(targets(batch, sizes, 10**6))
    part = part_of(target, sizes)
    event(f"target {type(target).__name__}, {'a part' if part else 'all'}")
    if part is None:
        assert target is None
        return
    cut = output
    for dim, (start, stop) in enumerate(part, 1):
        cut = cut.narrow(dim, start, stop - start)
    expected = _select_targets(output, target)
    assert torch.equal(_select_targets(cut, part_target(target, part, sizes)), expected)
    if batch == 1:
        assert all(stop - start <= 2 for start, stop in part)  # no slice is longer


@pytest.mark.parametrize(
    "target",
    [None, True, 6, -7, (0, 9), (0, 0, 0), "a", 1.5, (slice(4, 2), 0), (slice(None, None, -1),)],
)
def test_what_is_left_to_pytorch(target: Any) -> None:
    assert part_of(target, (6, 3)) is None


def test_examples_with_targets_of_their_own() -> None:
    assert part_of([(1, 5), (0, -2)], (2, 8)) == ((0, 2), (5, 7))
    assert part_target([(1, 5), (0, -2)], ((0, 2), (5, 7)), (2, 8)) == [(1, 0), (0, 1)]
    assert part_of([(1, 5), (0,)], (2, 8)) is None
