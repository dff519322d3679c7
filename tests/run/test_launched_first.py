"""Later maps on a GPU: their windows are launched before the forward function is asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from captum.attr import Occlusion
from graph_on_host import HostGraph
from replayed_maps import maps_as_on_a_gpu
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion
from captum_krypton._run import execution, replay, replayed_base

WINDOWS: dict[str, Any] = {"sliding_window_shapes": (3, 4, 4), "strides": (3, 2, 2)}


class Network(nn.Module):
    """Notes when it is asked, and has a number that no parameter holds."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
        self.events, self.gain, self.dense = events, 1.0, False

    def forward(self, x: Tensor) -> Tensor:
        self.events.append("asked")
        made: Tensor = self.layers(x) * self.gain
        return made if self.dense else made.flatten(2).amax(2)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    noted: list[str] = []

    class Noted(HostGraph[Any]):
        def replay(self) -> None:
            noted.append("replay")
            super().replay()

    with maps_as_on_a_gpu():
        monkeypatch.setattr(replay, "CudaGraph", Noted)
        monkeypatch.setattr(replayed_base, "CudaGraph", Noted)
        yield noted


def image(number: int = 0) -> Tensor:
    noise = torch.Generator().manual_seed(number)
    return torch.randn(1, 3, 12, 12, generator=noise, dtype=torch.float64)


def assert_as_captum(krypton: KryptonOcclusion, network: Network, x: Tensor, target: Any) -> None:
    expected = Occlusion(network).attribute(x, **WINDOWS, target=target)
    network.events.clear()
    got = krypton.heatmap(x, **WINDOWS, target=target)
    torch.testing.assert_close(got.attribution(), expected, rtol=0, atol=1e-6)  # float32


def begun(events: list[str], target: Any, **dense: bool) -> tuple[KryptonOcclusion, Network]:
    """Both after maps that made what later ones replay."""
    network = Network(events).double().eval()
    network.dense = dense.get("dense", False)
    krypton = KryptonOcclusion(network)
    for number in range(3):
        assert_as_captum(krypton, network, image(number), target)
    return krypton, network


def test_windows_are_launched_first(events: list[str]) -> None:
    krypton, network = begun(events, 2)
    assert_as_captum(krypton, network, image(7), 2)
    assert events[:2] == ["replay", "replay"] and events[-1] == "asked"
    assert events.count("asked") == 1
    assert_as_captum(krypton, network, image(8), 4)  # another class of the same map
    assert events.count("asked") == 1 and events[0] == "replay"


def test_the_answer_comes_first_where_it_says_the_target(events: list[str]) -> None:
    krypton, _ = begun(events, 2)
    krypton.heatmap(image(7), **WINDOWS)
    events.clear()
    x = image(8)
    heat = krypton.heatmap(x, **WINDOWS)
    assert events[0] == "asked" and "replay" in events
    assert heat.target == int(Network([]).double()(x).argmax())


@pytest.mark.parametrize("dense", [False, True])
def test_a_change_that_comes_to_light_late_is_no_part_of_the_map(
    events: list[str], dense: bool
) -> None:
    target = (2, 3, 3) if dense else 2
    krypton, network = begun(events, target, dense=dense)
    network.gain = 3.0
    assert_as_captum(krypton, network, image(7), target)
    assert events[0] == "replay" and events.count("asked") > 1
    network.layers[0].weight.data.mul_(2)
    assert_as_captum(krypton, network, image(8), target)
    assert_as_captum(krypton, network, image(9), target)


def test_an_output_of_another_shape_is_noticed(events: list[str]) -> None:
    krypton, network = begun(events, 2)
    network.dense = True
    assert_as_captum(krypton, network, image(7), (2, 3, 3))
    network.dense = False
    assert_as_captum(krypton, network, image(8), 2)


def test_large_outputs_do_not_all_wait(events: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    krypton, network = begun(events, (2, 3, 3), dense=True)
    monkeypatch.setattr(execution, "_WAITING_BYTES", 1)
    assert_as_captum(krypton, network, image(7), (2, 3, 3))
    assert events.count("asked") == 1


def test_a_target_that_the_output_does_not_have(events: list[str]) -> None:
    krypton, network = begun(events, 2)
    with pytest.raises(IndexError):
        krypton.heatmap(image(7), **WINDOWS, target=5)
    assert_as_captum(krypton, network, image(8), 2)


def test_an_error_of_the_forward_reaches_the_user(events: list[str]) -> None:
    krypton, network = begun(events, 2)
    network.layers.append(nn.Conv2d(4, 4, 3))  # of other channels than it is given
    with pytest.raises(RuntimeError), pytest.warns(UserWarning):
        krypton.heatmap(image(7), **WINDOWS, target=2)
