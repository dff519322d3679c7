"""Several baselines: the untouched input is run once, and maps are those of each baseline alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_krypton import KryptonFeatureAblation, KryptonOcclusion, fills
from captum_krypton._run import group

WINDOWS = {"sliding_window_shapes": (2, 4, 4), "strides": (2, 2, 3)}
OTHERS = torch.randn(3, 2, 12, 12, generator=torch.Generator().manual_seed(2))


class Network(nn.Module):
    """A small network that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4 * 144, 3)
        self.calls = 0

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        self.calls += 1
        values = self.first(x).relu()
        values = values if other is None else values + self.first(other).tanh()
        return self.last(values.flatten(1))


def images(examples: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(examples, 2, 12, 12, generator=generator).to(dtype)


def alone(krypton: Any, inputs: Any, **arguments: Any) -> list[Any]:
    """The maps with each of `OTHERS` as the one baseline."""
    return [krypton.heatmap(inputs, baselines=one[None].to(inputs), **arguments) for one in OTHERS]


@pytest.mark.parametrize("examples", [1, 2])
@pytest.mark.parametrize("settings", [{}, {"quality": 0.7}, {"memory_budget": 3_000}], ids=repr)
def test_maps_of_several_baselines(examples: int, settings: dict[str, Any]) -> None:
    krypton = KryptonOcclusion(Network().eval(), **settings)
    arguments = {"target": 1, **WINDOWS}
    inputs = images(examples)
    each = torch.stack([heat.scores for heat in alone(krypton, inputs, **arguments)]).double()
    heat = krypton.heatmap(inputs, baselines=fills.average(OTHERS), **arguments)
    torch.testing.assert_close(heat.scores.double(), each.mean(0), rtol=0, atol=1e-6)
    spread = each.std(0, correction=0)
    torch.testing.assert_close(heat.spread.double(), spread, rtol=0, atol=1e-6)


def test_maps_in_bfloat16() -> None:
    krypton = KryptonOcclusion(Network().eval().bfloat16())
    inputs, arguments = images(2, torch.bfloat16), {"target": 1, **WINDOWS}
    one, several = (
        krypton.heatmap(inputs, baselines=fills.average(OTHERS[:count]), **arguments)
        for count in (1, 2)
    )
    (first, second, _) = alone(krypton, inputs, **arguments)
    assert torch.equal(one.scores, first.scores)
    assert torch.equal(several.reference, first.reference)
    mean = ((first.scores.double() + second.scores.double()) / 2).bfloat16()
    assert torch.equal(several.scores, mean)


def test_attributions_of_features() -> None:
    krypton = KryptonFeatureAblation(Network().eval())
    masks = torch.arange(2 * 144).reshape(2, 1, 12, 12) // 16  # each example has its own
    inputs = images(2)
    each = [
        krypton.attribute(inputs, one[None], target=1, feature_mask=masks).double()
        for one in OTHERS
    ]
    mean = krypton.attribute(inputs, fills.average(OTHERS), target=1, feature_mask=masks)
    torch.testing.assert_close(mean.double(), torch.stack(each).mean(0), rtol=0, atol=1e-6)


def test_several_inputs() -> None:
    krypton = KryptonOcclusion(Network().eval())
    inputs = images(), images().flip(2)
    windows = {"sliding_window_shapes": ((2, 4, 4), (2, 6, 3)), "strides": ((2, 2, 3), (2, 3, 3))}
    each = [
        krypton.attribute(inputs, baselines=(one[None], one[None]), target=1, **windows)
        for one in OTHERS
    ]
    made = krypton.attribute(inputs, baselines=fills.average(OTHERS), target=1, **windows)
    for position in (0, 1):
        mean = torch.stack([one[position].double() for one in each]).mean(0)
        torch.testing.assert_close(made[position].double(), mean, rtol=0, atol=1e-6)


@pytest.mark.parametrize("memory_budget", [None, 3_000])
def test_the_untouched_input_is_run_once(
    memory_budget: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network().eval()
    krypton = KryptonOcclusion(network, memory_budget=memory_budget)
    arguments = {"target": 1, **WINDOWS}
    inputs = images(2)
    krypton.heatmap(inputs, baselines=OTHERS[:1], **arguments)  # captured, planned, checked
    bases, graph = [], group.run_graph

    def counted(*arguments: Any) -> Any:
        bases.append(arguments)
        return graph(*arguments)

    monkeypatch.setattr(group, "run_graph", counted)
    before = network.calls
    krypton.heatmap(inputs, baselines=fills.average(OTHERS), **arguments)
    assert network.calls == before + 1
    together = 1 if memory_budget is None else 2 * len(OTHERS)  # an image at a time, for each
    assert len(bases) == together


def test_a_model_that_changes_is_seen_by_the_next_call() -> None:
    network = Network().eval()
    krypton = KryptonOcclusion(network)
    arguments = {"target": 1, "baselines": fills.average(OTHERS), **WINDOWS}
    krypton.heatmap(images(), **arguments)
    with torch.no_grad():
        network.first.weight.mul_(2)
    found = krypton.heatmap(images(), **arguments)
    fresh = KryptonOcclusion(network).heatmap(images(), **arguments)
    torch.testing.assert_close(found.scores, fresh.scores, rtol=0, atol=1e-6)


def test_where_captum_makes_the_maps() -> None:
    def forward(x: Tensor) -> Tensor:
        return Network().eval()(x) + 0 * torch.rand(1)

    krypton = KryptonOcclusion(forward)
    with pytest.warns(UserWarning, match="Captum's own path"):
        heat = krypton.heatmap(images(), baselines=fills.average(OTHERS), target=1, **WINDOWS)
    each = [one.scores for one in alone(krypton, images(), target=1, **WINDOWS)]
    torch.testing.assert_close(heat.scores, torch.stack(each).mean(0))
