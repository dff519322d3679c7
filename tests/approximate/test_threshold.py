"""Projective field thresholds (Section 4.2), against whole volumes whose changes are cropped."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import Case, cases
from plans import KERNELS, TORCH, called, patched
from readings import read_cases
from small_networks import small_network
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion
from captum_krypton._capture.graph import ValueId, resolve
from captum_krypton._kernels import panel_size
from captum_krypton._operators import Kind, Means
from captum_krypton._operators.regions import Reach, crop, window_reach
from captum_krypton._plan.plan import Plan
from captum_krypton._run.execution import Execution
from captum_krypton._run.group import Material
from captum_krypton._run.interpreter import prepare_constants, run_graph, store
from captum_krypton._run.layout import prefers_channels_last
from captum_krypton._run.naive import occluded_inputs

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

THRESHOLDS = st.sampled_from([0.1, 0.3, 0.4, 0.5, 0.6, 0.8, 0.9])


def inside(plan: Plan, value: ValueId, positions: list[int], shape: tuple[int, ...]) -> Tensor:
    """Which cells of a local value the plan computes again, for a window at these positions."""
    (group,) = [
        group
        for group in plan.groups
        if all(s.start <= p < s.stop for s, p in zip(group.segments, positions, strict=True))
    ]
    mask = torch.ones(shape, dtype=torch.bool)
    for axis, (dim, box) in enumerate(
        zip(plan.analysis.dims[value], group.boxes[value], strict=True)
    ):
        if dim is None or box is None:
            continue
        place = positions[axis] - group.segments[axis].start
        cells = torch.arange(shape[dim])
        start = int(box.offset[place])
        along = (cells >= start) & (cells < start + int(box.cells[place]))
        mask &= along.reshape([-1 if d == dim else 1 for d in range(len(shape))])
    return mask


def cropped(plan: Plan, constants: dict[ValueId, Tensor], image: Tensor, covered: Tensor) -> Any:
    """A function of positions: the output where, after every operator, the rest is the base's."""
    graph = plan.analysis.graph
    everything = frozenset(range(1 + max(graph.shapes)))
    _, base = run_graph(graph, constants, (image,), everything)

    def output(positions: list[int]) -> Tensor:
        values = {graph.inputs[0]: covered}
        for node in graph.nodes:
            args, kwargs = resolve(
                (node.args, node.kwargs),
                lambda v: constants[v] if v in constants else values[v],
                1,
            )
            store(values, node, node.op(*args, **kwargs))
            for value in node.results:
                if plan.analysis.kinds[value] is Kind.LOCAL:
                    tensor = values[value]
                    mask = inside(plan, value, positions, tuple(tensor.shape))
                    values[value] = torch.where(mask, tensor, base[value])
        return values[graph.output]

    return output


def compare(case: Case, threshold: float, means: Means, dtype: torch.dtype, error: float) -> None:
    image = case.inputs[:1].to(dtype)
    network = case.network.to(dtype)
    call = called(image, case.sliding_window_shapes, case.strides)
    with torch.no_grad():
        plan = patched(network, call, means=means, threshold=threshold, fuse=means is KERNELS)
        last = prefers_channels_last(image)
        constants = prepare_constants(plan.analysis.graph, last)
        material = Material(plan, constants, {}, 0.0, last)
        untouched, _ = run_graph(plan.analysis.graph, constants, (image,), frozenset())
        run = Execution(material, (image,), 0.0, lambda rows, _: rows, lambda: untouched)
        scores = run.run(lambda rows: None)[0]
        for number in {0, plan.grid.total // 3, plan.grid.total // 2, plan.grid.total - 1}:
            index = np.unravel_index(number, plan.grid.counts)
            covered = occluded_inputs(call, 0, [number], captum=False)
            output = cropped(plan, constants, image, covered)
            reached = bool(plan.runs[number])
            expected = output([int(index[d]) for d in plan.axes])[0] if reached else untouched[0]
            scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
            torch.testing.assert_close(scores[number], expected, rtol=0, atol=error * scale)


@pytest.mark.parametrize("rank", [1, 2, 3])
@given(data=st.data())
def test_a_thresholded_window_changes_its_own_boxes_alone(rank: int, data: st.DataObject) -> None:
    compare(data.draw(cases(rank)), data.draw(THRESHOLDS), TORCH, torch.float64, 1e-9)


@pytest.mark.parametrize("rank", [1, 2, 3])
@given(data=st.data())
def test_a_threshold_crops_what_is_asked_for(rank: int, data: st.DataObject) -> None:
    compare(data.draw(read_cases(rank)), data.draw(THRESHOLDS), TORCH, torch.float64, 1e-9)


@pytest.mark.skipif(panel_size() == 0, reason="there are no compiled kernels")
@given(case=read_cases(2), threshold=THRESHOLDS)
def test_compiled_kernels_crop_what_is_asked_for(case: Case, threshold: float) -> None:
    compare(case, threshold, KERNELS, torch.float32, 1e-3)


@pytest.mark.skipif(panel_size() == 0, reason="there are no compiled kernels")
@given(case=cases(2), threshold=THRESHOLDS)
def test_compiled_kernels_crop_as_well(case: Case, threshold: float) -> None:
    compare(case, threshold, KERNELS, torch.float32, 1e-3)


@given(case=cases(2), threshold=THRESHOLDS)
def test_no_patch_of_a_local_operator_is_longer_than_its_share(
    case: Case, threshold: float
) -> None:
    call = called(case.inputs, case.sliding_window_shapes, case.strides)
    plan = patched(case.network, call, threshold=threshold)
    analysis = plan.analysis
    windows = tuple(plan.grid.along(dim) for dim in plan.axes)
    exact, kept = (analysis.reaches(windows, t).intervals for t in (1.0, threshold))
    for rule in analysis.rules:
        if rule is None:
            continue
        for axis, dim in enumerate(rule.dims):
            if dim is None or not rule.may_crop(axis):
                continue
            size = rule.size(axis)
            most = max(1, math.floor(threshold * size + 0.5))
            was, now = exact[rule.outputs[0]][axis], kept[rule.outputs[0]][axis]
            assert was is not None and now is not None
            assert (now.stop - now.start <= most).all()
            some = now.stop > now.start
            assert (now.start[some] >= was.start[some]).all()
            assert (now.stop[some] <= was.stop[some]).all()


def papers(
    x: int, width: int, *, kernel: int, stride: int, padding: int, size: int, threshold: float
) -> tuple[int, int]:
    """The output patch by Eq. 30-36, as they are written; then Eq. 36's offset and the width."""
    wide = min(math.ceil((width + kernel - 1) / stride), size)  # 30
    if wide > math.floor(threshold * size + 0.5):  # 31
        wide = math.floor(threshold * size + 0.5)  # 32
        narrower = wide * stride - kernel + 1  # 33
        x += (width - narrower) // 2  # 34
        width = narrower  # 35
    return max(math.ceil((padding + x - kernel + 1) / stride), 0), wide  # 36


@given(
    kernels=st.lists(st.sampled_from([1, 3, 5, 7]), min_size=1, max_size=6),
    strides=st.lists(st.sampled_from([1, 1, 2]), min_size=6, max_size=6),
    threshold=st.sampled_from([0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
    size=st.sampled_from([64, 128, 224]),
    window=st.integers(2, 24),
)
def test_regions_are_the_papers_in_the_middle_of_an_image(
    kernels: list[int], strides: list[int], threshold: float, size: int, window: int
) -> None:
    """Eq. 20 and 30 are bounds, a cell wide of the interval itself at each layer."""
    start = (size - window) // 2
    ours = Reach(np.array([start]), np.array([start + window]))
    centre = np.array([(start + window / 2) / size])
    theirs, wide = start, window
    slack = 0
    for kernel, stride in zip(kernels, strides, strict=False):
        geometry = {"kernel": kernel, "stride": stride, "padding": kernel // 2, "size": size}
        geometry["size"] = size = (size - 1) // stride + 1
        ours = window_reach(ours, dilation=1, **geometry)
        most = math.floor(threshold * size + 0.5)
        if threshold < 1:
            ours = crop(ours, most, centre * size)
        theirs, wide = papers(theirs, wide, threshold=threshold, **geometry)
        slack = -(-slack // stride) + 1
        length = int((ours.stop - ours.start)[0])
        assert length <= wide <= length + slack
        assert abs(int(ours.start[0]) - theirs) <= slack
        if wide == most and slack == 1:
            assert length >= most - 1


def test_a_crop_at_the_border_is_about_the_windows_own_cells() -> None:
    """The first window of a row reaches [0, 9) of 12 cells: its change is at the left."""
    reach = Reach(np.array([0, 2, 3]), np.array([9, 11, 12]))
    kept = crop(reach, 4, np.array([1.0, 6.5, 11.0]))
    assert kept.start.tolist() == [0, 5, 8]
    assert kept.stop.tolist() == [4, 9, 12]


def test_a_map_with_a_threshold() -> None:
    network, image = small_network(), torch.rand(2, 3, 24, 20)
    question: dict[str, Any] = {"sliding_window_shapes": (3, 6, 6), "strides": (3, 2, 2)}
    exact = KryptonOcclusion(network).heatmap(image, **question)
    same = KryptonOcclusion(network, projective_field_threshold=1).heatmap(image, **question)
    assert torch.equal(same.scores, exact.scores)
    assert same.report.threshold == 1
    krypton = KryptonOcclusion(network, projective_field_threshold=0.4)
    heat = krypton.heatmap(image, **question)
    assert heat.report.threshold == 0.4
    assert heat.report.windows_evaluated == 2 * heat.report.windows
    assert heat.report.theoretical_speedup > exact.report.theoretical_speedup
    assert heat.report.checked_windows > 0
    assert heat.scores.shape == exact.scores.shape
    assert not torch.allclose(heat.scores, exact.scores)
    spread = exact.scores.std()
    assert (heat.scores - exact.scores).abs().mean() < spread
    assert krypton.attribute(image, **question).shape == image.shape


def test_a_crop_follows_a_flip() -> None:
    """Of a network that flips its image first, the map is the flipped image's, flipped."""
    network, image = small_network().double(), torch.rand(1, 3, 32, 32).double()
    question: dict[str, Any] = {"sliding_window_shapes": (3, 4, 4), "strides": (3, 4, 4)}
    plain = KryptonOcclusion(network, projective_field_threshold=0.25)
    flipped = KryptonOcclusion(lambda x: network(x.flip(3)), projective_field_threshold=0.25)
    expected = plain.heatmap(image.flip(3), target=1, **question)
    heat = flipped.heatmap(image, target=1, **question)
    assert heat.report.threshold == 0.25
    torch.testing.assert_close(heat.scores, expected.scores.flip(2), rtol=0, atol=1e-12)
    exact = KryptonOcclusion(network).heatmap(image.flip(3), target=1, **question)
    assert not torch.allclose(expected.scores, exact.scores)


def test_a_crop_follows_padding_and_slices() -> None:
    network, image = small_network().double(), torch.rand(1, 3, 32, 32).double()
    question: dict[str, Any] = {"sliding_window_shapes": (3, 4, 4), "strides": (3, 4, 4)}

    def moved(x: Tensor) -> Tensor:
        padded = nn.functional.pad(x, (16, 0, 0, 0))
        return network(torch.cat([padded, torch.zeros_like(x)], 3)[..., 16:48])

    plain = KryptonOcclusion(network, projective_field_threshold=0.25)
    heat = KryptonOcclusion(moved, projective_field_threshold=0.25).heatmap(
        image, target=1, **question
    )
    expected = plain.heatmap(image, target=1, **question)
    assert heat.report.threshold == 0.25
    torch.testing.assert_close(heat.scores, expected.scores, rtol=0, atol=1e-12)


def test_a_network_without_local_operators_is_exact() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5))
    heat = KryptonOcclusion(network, projective_field_threshold=0.4).heatmap(
        torch.rand(1, 3, 8, 8), sliding_window_shapes=(3, 2, 2), strides=(3, 1, 1)
    )
    assert heat.report.threshold == 1 and heat.report.estimated_ssim == 1


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01, math.nan])
def test_a_threshold_out_of_range(threshold: float) -> None:
    with pytest.raises(ValueError, match="projective_field_threshold"):
        KryptonOcclusion(small_network(), projective_field_threshold=threshold)
