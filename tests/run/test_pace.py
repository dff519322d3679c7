"""Plans that turn out slower than the forward function itself."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion
from captum_krypton._run import pace
from captum_krypton._run.pace import Pace, in_best_batches


def test_a_plan_is_left_where_two_maps_were_slower() -> None:
    seen = Pace(alone=0.1)
    assert not seen.leaves_plan
    seen.saw_plan(20.0, 100)
    assert not seen.leaves_plan
    seen.saw_plan(10.0, 100)
    assert seen.leaves_plan
    seen.together = 0.2
    assert not seen.leaves_plan


@pytest.mark.parametrize(
    "seen",
    [
        Pace(maps=2, by_plan=0.01, alone=0.1),
        Pace(maps=2, by_plan=0.2),  # never compared
    ],
)
def test_a_plan_is_kept(seen: Pace) -> None:
    assert not seen.leaves_plan


def test_short_maps_do_not_count() -> None:
    seen = Pace(alone=1e-6)
    for _ in range(3):
        seen.saw_plan(0.01, 10)
    assert not seen.leaves_plan


@pytest.mark.parametrize(
    ("cost", "expected"), [({1: 1.0, 2: 1.5, 4: 4.0}, 2), ({1: 1.0, 2: 2.0}, 1)]
)
@pytest.mark.parametrize("total", [30, 31])
def test_batches_grow_while_that_pays(cost: dict[int, float], expected: int, total: int) -> None:
    now, sizes = 0.0, []

    def run(windows: list[int]) -> Tensor:
        nonlocal now
        now += cost.get(len(windows), 100.0)
        sizes.append(len(windows))
        return torch.tensor(windows)

    outcomes, size = in_best_batches(run, total, 8, lambda: now)
    assert size == expected
    assert outcomes.tolist() == list(range(total))
    assert sizes.count(expected) >= (total - 4) // expected - 1


def test_batches_stay_within_what_is_allowed() -> None:
    sizes = []

    def run(windows: list[int]) -> Tensor:
        sizes.append(len(windows))
        return torch.tensor(windows)

    in_best_batches(run, 40, 3, lambda: float(len(sizes)) / 100)  # each batch takes as long
    assert max(sizes) == 3


class Small(nn.Module):
    """A network of which a forward pass takes no time."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x).softmax(3).mean((2, 3))


def test_times_of_maps_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the check and the maps took is noted where the decision finds it."""
    monkeypatch.setattr(pace, "_SHORT", 0.0)
    monkeypatch.setattr(pace, "_GAIN_OF_COMPANY", 0.0)  # whatever the forward function took
    torch.manual_seed(0)
    explainer, x = KryptonOcclusion(Small().eval()), torch.randn(1, 3, 20, 20)
    windows: dict[str, Any] = {
        "sliding_window_shapes": (3, 4, 4),
        "strides": (3, 2, 2),
        "target": 1,
    }
    paths = [explainer.heatmap(x, **windows).report.path for _ in range(3)]
    assert "naive" not in paths[:2] and paths[2] == "naive"
    (model,) = explainer._engine.cache._entries.values()
    (seen,) = model.paces.values()
    assert seen.maps == 2
    assert 0 < max(seen.by_plan, seen.alone, seen.together) < math.inf


def test_maps_by_the_forward_function_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan is left on the third map, with its reason."""
    monkeypatch.setattr(pace, "_SHORT", 0.0)
    monkeypatch.setattr(Pace, "leaves_plan", property(lambda pace: pace.maps >= 2))
    monkeypatch.setattr("captum_krypton._engine._observe", lambda device, report: None)
    torch.manual_seed(0)
    model, x = Small().eval(), torch.randn(2, 3, 20, 20)
    explainer = KryptonOcclusion(model)
    maps = [
        explainer.heatmap(x, (3, 4, 4), strides=(3, 2, 2), target=torch.tensor([1, 2]))
        for _ in range(4)
    ]
    assert [m.report.path for m in maps[2:]] == ["naive"] * 2
    assert "less time than the plan" in maps[2].report.reasons[0]
    assert maps[2].report.windows_exact == maps[1].report.windows_exact
    for heat in maps[1:]:
        torch.testing.assert_close(heat.scores, maps[0].scores)
        torch.testing.assert_close(heat.attribution(), maps[0].attribution())
