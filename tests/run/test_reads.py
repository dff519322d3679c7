"""Maps of a part of an output: against Captum and a loop, whatever is read and however."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from against_captum import check, check_heat_map, check_precision, krypton
from captum.attr import Occlusion
from hypothesis import given
from hypothesis import strategies as st
from questions import question
from readings import read_cases
from torch import Tensor, nn

from captum_krypton import Budget, DrillDown, KryptonOcclusion
from captum_krypton._run.naive import naive_scores

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


@pytest.mark.parametrize("rank", [1, 2, 3])
@given(data=st.data())
def test_attributions_of_what_is_read(rank: int, data: st.DataObject) -> None:
    case = data.draw(read_cases(rank))
    with krypton(data.draw, case.network) as explainer:
        check(case, explainer)


@pytest.mark.parametrize("rank", [1, 2, 3])
@given(data=st.data())
def test_outcomes_of_what_is_read(rank: int, data: st.DataObject) -> None:
    check_heat_map(data.draw, data.draw(read_cases(rank)))


@pytest.mark.parametrize("rank", [1, 2, 3])
@given(data=st.data())
def test_what_is_read_in_float32(rank: int, data: st.DataObject) -> None:
    """The compiled kernels compute the demanded cells of what a window reaches."""
    check_precision(data.draw, data.draw(read_cases(rank)), torch.float32, 1e-4, 1e-6)


class Dense(nn.Module):
    """Four classes at every pixel, of which none sees farther than six pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.deep = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU())
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.head = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.up(self.deep(self.body(x))))
        return made


@pytest.fixture
def dense() -> nn.Module:
    torch.manual_seed(0)
    return Dense().double().eval()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 3, 64, 48, generator=torch.Generator().manual_seed(1)).double()


QUESTION: dict[str, Any] = {"sliding_window_shapes": (3, 4, 4), "strides": (3, 2, 2)}
PIXEL = (2, 20, 30)


def outcomes(network: nn.Module, image: Tensor, target: Any) -> Tensor:
    """Of every window, one forward pass a window, (*grid)."""
    call = question(image, **QUESTION)
    windows = list(range(call.grids[0].total))
    with torch.no_grad():
        found = naive_scores(network, call, 0, target, windows, lambda rows: None, captum=False)
    return found[:, 0].reshape(call.grids[0].counts[1:])


def test_windows_that_cannot_reach_a_pixel_are_not_run(dense: nn.Module, image: Tensor) -> None:
    expected = outcomes(dense, image, PIXEL)
    heat = KryptonOcclusion(dense).heatmap(image, target=PIXEL, **QUESTION)
    torch.testing.assert_close(heat.scores[0], expected, rtol=0, atol=1e-12)
    moved = expected != heat.reference
    report = heat.report
    assert report.windows - report.windows_unreached >= int(moved.sum()) > 0
    assert report.windows_unreached > 0.8 * report.windows
    unmoved = heat.scores[0] == heat.reference  # not but for rounding
    assert int(unmoved.sum()) >= report.windows_unreached
    assert report.windows_evaluated == report.windows_exact == report.windows
    everything = KryptonOcclusion(dense).heatmap(image, target=PIXEL[:1], **QUESTION).report
    assert everything.windows_unreached == 0
    assert report.theoretical_speedup > 10 * everything.theoretical_speedup
    assert everything.checked_windows == 2 and report.checked_windows == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_patches_hold_no_more_than_is_asked_for(
    dense: nn.Module, image: Tensor, dtype: torch.dtype
) -> None:
    """A pixel is one cell of the last convolution, and few of the one before."""
    krypton = KryptonOcclusion(dense.to(dtype))

    def patches(target: tuple[int, ...]) -> list[tuple[int, ...]]:
        ((rows, _),) = krypton.explain(image.to(dtype), target=target, **QUESTION).plans
        return [row.patch for row in rows if "convolution" in row.operator]

    own, every = patches(PIXEL), patches(PIXEL[:1])
    assert own[-1] == (1, 1)
    assert all(max(few) <= max(many) for few, many in zip(own, every, strict=True))
    assert max(own[-2]) < max(every[-2])


def test_a_plan_says_what_is_not_run(dense: nn.Module, image: Tensor) -> None:
    krypton = KryptonOcclusion(dense)
    report = krypton.heatmap(image, target=PIXEL, **QUESTION).report
    ((_, totals),) = krypton.explain(image, target=PIXEL, **QUESTION).plans
    sentence = f"{report.windows_unreached} of {report.windows} windows cannot reach what"
    assert sentence in totals
    ((_, totals),) = krypton.explain(image, target=1, **QUESTION).plans
    assert "cannot reach" not in totals
    ((_, totals),) = krypton.explain(image, **QUESTION).plans  # the largest of all outputs
    assert "cannot reach" in totals


def test_all_windows_count_in_a_progress_bar(
    dense: nn.Module, image: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    krypton = KryptonOcclusion(dense)
    heat = krypton.heatmap(image, target=PIXEL, show_progress=True, **QUESTION)
    assert f"{heat.report.windows}/{heat.report.windows}" in capsys.readouterr().err


def test_images_with_pixels_of_their_own(dense: nn.Module, image: Tensor) -> None:
    images, pixels = torch.cat([image, image.flip(3)]), [PIXEL, (0, -40, 25)]
    heat = KryptonOcclusion(dense, memory_budget=100_000).heatmap(images, target=pixels, **QUESTION)
    assert heat.target == pixels and heat.report.windows_unreached > 0
    for number, pixel in enumerate(pixels):
        expected = outcomes(dense, images[number : number + 1], pixel)
        torch.testing.assert_close(heat.scores[number], expected, rtol=0, atol=1e-12)


def test_every_pixel_has_its_own_check(dense: nn.Module, image: Tensor) -> None:
    krypton = KryptonOcclusion(dense)
    targets = [PIXEL, (2, 21, 30), PIXEL, (1, 20, 30)]
    reports = [krypton.heatmap(image, target=t, **QUESTION).report for t in targets]
    assert [report.checked_windows > 0 for report in reports] == [True, True, False, True]


@pytest.mark.parametrize(
    "approximate",
    [
        {"drill_down": DrillDown(0.2, 3)},
        {"quality": 0.9},
        {"budget": Budget(windows=150)},
        {"projective_field_threshold": 0.5},
    ],
    ids=str,
)
def test_approximate_maps(dense: nn.Module, image: Tensor, approximate: dict[str, Any]) -> None:
    expected = outcomes(dense, image, PIXEL)
    heat = KryptonOcclusion(dense, **approximate).heatmap(image, target=PIXEL, **QUESTION)
    report = heat.report
    assert report.windows_unreached > 0
    same = (heat.scores[0] - expected).abs() < 1e-12
    assert int(same.sum()) >= report.windows_exact
    assert same.float().mean() > 0.7


def test_growing_maps(dense: nn.Module, image: Tensor) -> None:
    *_, last = KryptonOcclusion(dense).growing(image, target=PIXEL, **QUESTION)
    expected = outcomes(dense, image, PIXEL)
    torch.testing.assert_close(last.scores[0], expected, rtol=0, atol=1e-12)


def test_a_pixel_of_the_padding_reads_nothing(image: Tensor) -> None:
    """No window reaches it, and one is run all the same."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConstantPad2d(4, 0.5)).double()
    heat = KryptonOcclusion(network).heatmap(image, target=(1, 0, 0), **QUESTION)
    assert (heat.scores == 0.5).all()
    assert heat.report.windows_unreached == heat.report.windows - 1


def test_channel_windows_and_a_pixel(dense: nn.Module, image: Tensor) -> None:
    arguments: dict[str, Any] = {"sliding_window_shapes": (1, 4, 4), "strides": (1, 4, 4)}
    heat = KryptonOcclusion(dense).heatmap(image, target=PIXEL, **arguments)
    call = question(image, **arguments)
    windows = list(range(call.grids[0].total))
    with torch.no_grad():
        found = naive_scores(dense, call, 0, PIXEL, windows, lambda rows: None, captum=False)
    torch.testing.assert_close(heat.scores[0], found.reshape(call.grids[0].counts))
    assert heat.report.windows_unreached % 3 == 0 < heat.report.windows_unreached


def test_few_plans_are_kept(dense: nn.Module, image: Tensor) -> None:
    krypton = KryptonOcclusion(dense, self_check=False)
    for column in range(48):
        krypton.heatmap(image, (3, 32, 48), (3, 32, 48), target=(0, 20, column))
    (model,) = krypton._engine.cache._entries.values()
    assert len(model._plans) <= 64 and len(model._analyses) <= 64


def branch(slope: float) -> nn.Sequential:
    """Convolutions whose activations are positive, so that a slope shows where a window is."""
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.LeakyReLU(slope), nn.Conv2d(8, 2, 3, padding=1)
    )
    for parameter in made[0].parameters():
        parameter.data.abs_()
    return made.eval()


def test_plans_of_several_inputs_have_slopes_of_their_own() -> None:
    torch.manual_seed(0)
    first, second = branch(0.1), branch(0.9)

    def both(a: Tensor, b: Tensor) -> Tensor:
        return first(a) + second(b)

    inputs = torch.rand(1, 3, 24, 24), torch.rand(1, 3, 24, 24)
    baseline = torch.full((1, 3, 24, 24), 0.5)
    baseline[..., :7, :7] = -3.0
    arguments: dict[str, Any] = {
        "sliding_window_shapes": ((3, 3, 3),) * 2,
        "strides": ((3, 1, 1),) * 2,
        "target": (1, slice(2, 22), 5),
        "baselines": (baseline, baseline),
    }
    made = KryptonOcclusion(both, self_check=False).attribute(inputs, **arguments)
    for own, expected in zip(made, Occlusion(both).attribute(inputs, **arguments), strict=True):
        torch.testing.assert_close(own, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_targets_of_other_lengths_do_not_share_values() -> None:
    """Slices at the end of one target's graph and slopes of another's were numbered alike."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.PReLU(4), nn.Conv2d(4, 3, 1)).eval()
    x, krypton = torch.rand(1, 3, 16, 16), KryptonOcclusion(network, self_check=False)
    for target in (1, (2, 5, 5), (1, 4), (2, 5, 5), 0):
        made = krypton.attribute(x, (3, 3, 3), strides=(3, 1, 1), target=target)
        expected = Occlusion(network).attribute(x, (3, 3, 3), strides=(3, 1, 1), target=target)
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
