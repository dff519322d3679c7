"""Plans: every window once, in patches that hold what it changes, at the cost that they state."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from networks import Case, cases
from plans import FREE_CALLS, KERNELS, ROOM, TORCH, called, patched
from torch import nn

from captum_krypton._operators import Means
from captum_krypton._plan import plan as planning
from captum_krypton._plan.analysis import Analysis
from captum_krypton._plan.batch_size import Room
from captum_krypton._plan.plan import Plan
from captum_krypton._plan.segments import AxisSegmenter
from captum_krypton._plan.workload import Workload
from captum_krypton._run.captured_model import CapturedModel

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def plan_of(case: Case, means: Means = TORCH) -> Plan:
    call = called(case.inputs, case.sliding_window_shapes, case.strides)
    return patched(case.network, call, means=means)


def reaches(plan: Plan) -> dict[int, Any]:
    return plan.analysis.reaches(tuple(plan.grid.along(dim) for dim in plan.axes)).intervals


@pytest.mark.parametrize("rank", [1, 2, 3])
@given(data=st.data())
def test_every_position_is_in_one_group(rank: int, data: st.DataObject) -> None:
    plan = plan_of(data.draw(cases(rank)), FREE_CALLS)  # so that there are several groups
    seen = np.zeros([plan.grid.counts[dim] for dim in plan.axes], int)
    for group in plan.groups:
        seen[group.segments] += 1
    assert (seen[plan.reached] == 1).all()
    assert seen.sum() == seen[plan.reached].size
    assert plan.copies * int(seen.sum()) == plan.grid.total - plan.unreached == plan.runs.sum()


@pytest.mark.parametrize("rank", [1, 2, 3])
@given(data=st.data())
def test_patches_hold_what_their_windows_change(rank: int, data: st.DataObject) -> None:
    plan = plan_of(data.draw(cases(rank)), data.draw(st.sampled_from([TORCH, KERNELS, FREE_CALLS])))
    found = reaches(plan)
    for group in plan.groups:
        for value, boxes in group.boxes.items():
            for axis, (box, reach) in enumerate(zip(boxes, found[value], strict=True)):
                if box is None:
                    continue
                part = reach.segment(group.segments[axis])
                some = part.stop > part.start
                assert (box.offset <= part.start)[some].all()
                assert (box.offset + box.cells >= part.stop)[some].all()
                assert ((0 <= box.cells) & (box.cells <= box.size)).all()


@given(
    size=st.integers(6, 24),
    window=st.integers(1, 6),
    kernel=st.sampled_from([1, 3, 5]),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 4)),
)
def test_multiply_accumulates_of_a_convolution(
    size: int, window: int, kernel: int, channels: tuple[int, int]
) -> None:
    """Eq. 13 and 15, counted by hand, where every position is a group of its own or as if."""
    network = nn.Conv2d(*channels, kernel, padding=kernel // 2)
    call = called(torch.rand(1, channels[0], size, size), (channels[0], window, window), 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "_MAX_SEGMENTS", size)
        plans = patched(network, call, means=FREE_CALLS), patched(network, call, means=KERNELS)
    each = channels[0] * channels[1] * kernel**2
    reach = kernel // 2
    lengths = [
        min(size, p + window + reach) - max(0, p - reach)  # of the output that changes
        for p in range(size - window + 1)
    ]
    exact = each * np.outer(lengths, lengths).mean()
    for plan in plans:
        assert plan.macs_full == each * size**2
        assert plan.macs_incremental == pytest.approx(exact)
        assert plan.theoretical_speedup == pytest.approx(each * size**2 / exact)
    assert len(plans[1].groups) == 1


def test_one_segment_is_the_papers_plan() -> None:
    """All windows in one group have the interior's patch, also at the border (Eq. 40-41)."""
    network = nn.Conv2d(3, 8, 3, padding=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "_MAX_SEGMENTS", 1)
        plan = patched(network, called(torch.rand(1, 3, 32, 32), (3, 4, 4), (3, 4, 4)))
    (group,) = plan.groups
    boxes = group.boxes[plan.analysis.graph.nodes[0].outputs[0]]
    for box in boxes:
        assert box is not None
        assert box.size == 6
        assert box.offset.tolist() == [0, 3, 7, 11, 15, 19, 23, 26]


@pytest.fixture(scope="module")
def deep() -> tuple[nn.Module, Analysis, Any]:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for width in (3, 8, 8, 8):
        layers += [nn.Conv2d(width, 8, 3, padding=1), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    call = called(torch.rand(1, 3, 40, 28), (3, 4, 4), (3, 2, 2))
    plan = patched(network, call)
    return network, plan.analysis, plan


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("segments", [1, 2, 3])
def test_no_cut_is_cheaper(deep: tuple[nn.Module, Analysis, Any], axis: int, segments: int) -> None:
    """The dynamic programme against every cut there is."""
    _, analysis, plan = deep
    positions = plan.grid.counts[plan.axes[axis]]
    work = Workload(analysis, reaches(plan), plan.costs, TORCH)
    segmenter = AxisSegmenter(work, axis, plan.reached)

    def cost(bounds: tuple[int, ...]) -> float:
        return sum(segmenter.cuts.cost[i, j] for i, j in itertools.pairwise(bounds))

    every = [
        (0, *inner, positions)
        for inner in itertools.combinations(range(1, positions), segments - 1)
    ]
    cut = segmenter.cut(segments)
    chosen = (*[s.start for s in cut], cut[-1].stop)
    assert chosen[0] == 0
    assert cost(chosen) == pytest.approx(min(map(cost, every)))


def test_more_segments_than_positions(deep: tuple[nn.Module, Analysis, Any]) -> None:
    network, _, _ = deep
    plan = patched(network, called(torch.rand(1, 3, 40, 28), (3, 20, 28), (3, 20, 28)))
    assert sum(group.positions for group in plan.groups) == 2


def test_a_batch_fits_the_budget(deep: tuple[nn.Module, Analysis, Any]) -> None:
    network, _, _ = deep
    call = called(torch.rand(1, 3, 40, 28), (3, 4, 4), (3, 2, 2))
    roomy = patched(network, call, most=1 << 20)
    tight = patched(network, call, most=1 << 20, budget=roomy.memory // 4)
    assert tight.batch_size < roomy.batch_size
    for plan in (roomy, tight):
        assert 1 <= plan.batch_size
    assert tight.memory <= roomy.memory // 4
    assert patched(network, call, most=5).batch_size == 5
    assert patched(network, call, budget=1).batch_size == 1


def test_images_side_by_side_fit_the_budget(deep: tuple[nn.Module, Analysis, Any]) -> None:
    network, _, _ = deep
    call = called(torch.rand(5, 3, 40, 28), (3, 4, 4), (3, 2, 2))
    assert patched(network, call, images=5).images == 5
    assert patched(network, call, images=5, budget=1000).images == 1


@pytest.mark.parametrize(("window", "incremental"), [(2, True), (19, False)])
def test_whole_volumes_where_patches_would_cost_more(window: int, incremental: bool) -> None:
    """Patches of a strided transposed convolution start at multiples, so they stick out."""
    network = nn.Sequential(
        nn.ConvTranspose2d(3, 8, 5, stride=3, padding=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    call = called(torch.rand(1, 3, 20, 20), (3, window, window), (3, window, window))
    plan = CapturedModel(network, call).plan(call, 0, room=Room(ROOM, 1 << 26, 64), winograd=True)
    assert plan.incremental is incremental
    assert bool(plan.reasons) is not incremental


@given(data=st.data())
def test_a_plan_is_no_dearer_than_one_group(data: st.DataObject) -> None:
    case = data.draw(cases(2))
    chosen = plan_of(case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "_MAX_SEGMENTS", 1)
        single = plan_of(case)
    assume(math.isfinite(single.seconds))
    assert chosen.seconds <= single.seconds * (1 + 1e-9)
