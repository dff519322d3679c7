"""Intervals against what really changes when a cell of the input does."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from captum_krypton._operators.regions import (
    Box,
    Reach,
    align,
    exact,
    index_map_reach,
    same_boxes,
    union,
    window_reach,
    window_read,
)


def changed(before: torch.Tensor, after: torch.Tensor) -> tuple[int, int]:
    """The bounding interval of the cells that differ; (0, 0) where none does."""
    cells = (before != after).nonzero().flatten().tolist()
    return (cells[0], cells[-1] + 1) if cells else (0, 0)


@given(
    size=st.integers(1, 20),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 4),
    padding=st.integers(0, 4),
    dilation=st.integers(1, 3),
    start=st.integers(0, 19),
    length=st.integers(1, 20),
)
def test_window_reach_is_what_a_convolution_changes(
    size: int, kernel: int, stride: int, padding: int, dilation: int, start: int, length: int
) -> None:
    """Exact where every cell of the interval changes: no bound, as Eq. 20 is."""
    if size + 2 * padding < (kernel - 1) * dilation + 1 or start >= size:
        return
    stop = min(size, start + length)
    volume = torch.zeros(1, 1, size, dtype=torch.float64)
    other = volume.clone()
    other[..., start:stop] = 1
    weight = torch.ones(1, 1, kernel, dtype=torch.float64)
    out = [
        F.conv1d(v, weight, stride=stride, padding=padding, dilation=dilation).flatten()
        for v in (volume, other)
    ]
    reach = window_reach(
        Reach(np.array([start]), np.array([stop])),
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        size=len(out[0]),
    )
    expected = changed(*out)
    got = (int(reach.start[0]), int(reach.stop[0]))
    assert got[0] <= expected[0] or expected == (0, 0)
    assert got[1] >= expected[1]
    if dilation == 1 and stride <= kernel:
        assert expected == (got if got[0] < got[1] else (0, 0))


@given(
    offset=st.integers(0, 30),
    length=st.integers(1, 9),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 3),
)
def test_window_read_holds_every_tap(
    offset: int, length: int, kernel: int, stride: int, padding: int, dilation: int
) -> None:
    read = window_read(
        Box(np.array([offset]), length),
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
    )
    taps = {
        o * stride - padding + t * dilation
        for o in range(offset, offset + length)
        for t in range(kernel)
    }
    assert min(taps) == read.offset[0]
    assert max(taps) == read.offset[0] + read.size - 1


intervals = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 8)), min_size=1, max_size=5)


@given(intervals=intervals, size=st.integers(1, 24), modulus=st.integers(1, 4), data=st.data())
def test_a_box_holds_its_interval(
    intervals: list[tuple[int, int]], size: int, modulus: int, data: st.DataObject
) -> None:
    residue = data.draw(st.integers(0, modulus - 1))
    first = data.draw(st.integers(0, size - 1))
    start = np.array([s for s, _ in intervals])
    reach = Reach(start, start + np.array([n for _, n in intervals])).within((first, size))
    box = align(reach, (first, size), modulus, residue)
    full = reach.stop > reach.start
    assert (box.offset <= reach.start)[full].all()
    assert (box.offset + box.size >= reach.stop)[full].all()
    if modulus == 1:
        assert (box.offset >= first).all()
        assert (box.offset + box.size <= size).all()
    else:
        assert ((box.offset - residue) % modulus == 0).all()


@given(data=st.data(), size=st.integers(1, 12), out=st.integers(1, 12))
def test_index_map_reach_against_a_loop(data: st.DataObject, size: int, out: int) -> None:
    cell = st.integers(0, size - 1)
    taps = np.array(data.draw(st.lists(st.tuples(cell, cell), min_size=out, max_size=out)))
    start, stop = sorted(data.draw(st.tuples(cell, cell)))
    reach = index_map_reach(Reach(np.array([start]), np.array([stop])), taps, out)
    hit = [o for o in range(out) if any(start <= t < stop for t in taps[o])]
    got = (int(reach.start[0]), int(reach.stop[0]))
    assert got == (hit[0], hit[-1] + 1) if hit else got[0] == got[1]


def test_an_empty_interval_does_not_widen_a_union() -> None:
    empty, some = Reach(np.array([9]), np.array([9])), Reach(np.array([2]), np.array([4]))
    both = union([empty, some])
    assert (both.start[0], both.stop[0]) == (2, 4)


@given(
    start=st.lists(st.integers(0, 30), min_size=1, max_size=9),
    length=st.lists(st.integers(0, 9), min_size=9, max_size=9),
)
def test_exact_boxes_hold_their_own_intervals(start: list[int], length: list[int]) -> None:
    begin = np.array(start)
    reach = Reach(begin, begin + np.array(length[: len(start)]))
    box = exact(reach)
    assert (box.offset == reach.start).all()
    assert (box.offset + box.cells == reach.stop).all()
    assert box.size == reach.longest
    assert same_boxes((box, None), (exact(reach), None))
    assert not same_boxes((box, None), (Box(box.offset + 1, box.size, box.extent), None))
    assert not same_boxes((box,), (None,))
