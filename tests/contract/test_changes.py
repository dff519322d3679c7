"""Changes of a model between calls, and its hooks, are noticed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import Occlusion
from contract_network import IMAGE, QUESTION, Network, assert_as_captum, assert_same
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn.utils import parametrizations

from captum_krypton import KryptonFallbackWarning, KryptonOcclusion

pytestmark = pytest.mark.usefixtures("way")

# Models that change between calls


def _optimise(network: Network) -> None:
    network(IMAGE).square().sum().backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()


def _load(network: Network) -> None:
    network.load_state_dict({k: v * 2 for k, v in network.state_dict().items()})


def _load_and_assign(network: Network) -> None:
    network.load_state_dict({k: v * 2 for k, v in network.state_dict().items()}, assign=True)


def _swap_filters(network: Network) -> None:
    network.conv.weight.data[[0, 1]] = network.conv.weight.data[[1, 0]]


def _move_weight(network: Network) -> None:
    """The sum of the weights stays, so does the sum of their sizes."""
    flat = network.deep.weight.data.view(-1)
    flat[3], flat[40] = flat[40].item(), flat[3].item()


def _in_place(network: Network) -> None:
    with torch.no_grad():
        network.deep.weight.mul_(-1)


def _write_numpy(network: Network) -> None:
    network.deep.weight.detach().numpy()[0, 0] += 0.5


def _replace_data(network: Network) -> None:
    network.head.weight.data = network.head.weight.data.flip(1).contiguous()


def _replace_layer(network: Network) -> None:
    network.deep = nn.Conv2d(5, 6, 3, stride=1).eval()


def _replace_forward(network: Network) -> None:
    network.forward = lambda x: Network.forward(network, x.flip(-1))  # type: ignore[method-assign]


def _reset_statistics(network: Network) -> None:
    network.norm.running_mean.add_(1)


CHANGES: dict[str, Callable[[Network], Any]] = {
    "optimiser step": _optimise,
    "load_state_dict": _load,
    "load_state_dict, assigned": _load_and_assign,
    "filters swapped through .data": _swap_filters,
    "two weights swapped through .data": _move_weight,
    "in place": _in_place,
    "written by numpy": _write_numpy,
    ".data replaced": _replace_data,
    "one small weight": lambda network: network.deep.weight.data[0, 0, 0, 0].add_(0.05),
    "running mean": _reset_statistics,
    "epsilon": lambda network: setattr(network.norm, "eps", 2.0),
    "stride of a layer": lambda network: setattr(network.deep, "stride", (1, 1)),
    "layer replaced": _replace_layer,
    "python attribute": lambda network: setattr(network, "scale", -3.0),
    "forward replaced": _replace_forward,
    "new parameter": lambda network: setattr(network.head, "bias", nn.Parameter(torch.ones(4) * 2)),
    "forward hook": lambda network: network.deep.register_forward_hook(
        lambda module, inputs, output: output * 2
    ),
    "forward pre-hook": lambda network: network.deep.register_forward_pre_hook(
        lambda module, inputs: (inputs[0].flip(-1) * 3,)
    ),
    "weight norm": lambda network: parametrizations.weight_norm(network.deep).weight,
    "moved to bfloat16 and back": lambda network: network.bfloat16().float(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("held", ["module", "lambda"])
def test_changes_to_the_model_are_noticed(
    network: Network, images: Tensor, change: str, held: str
) -> None:
    forward: Callable[[Tensor], Tensor] = network if held == "module" else lambda x: network(x)
    # A class that no parameter but every weight matters to.
    question = {**QUESTION, "target": [1, 3]}
    explainer = KryptonOcclusion(forward)
    before = explainer.attribute(images, **question)
    assert_same(explainer.attribute(images, **question), before)
    CHANGES[change](network)
    expected = Occlusion(forward).attribute(images, **question)
    if change not in ("weight norm", "moved to bfloat16 and back", "new parameter"):
        assert not torch.allclose(before, expected, rtol=1e-3, atol=1e-4)
    assert_same(explainer.attribute(images, **question), expected)
    assert_same(explainer.heatmap(images, **question).attribution(), expected)


def test_a_weight_norm_that_changes_is_noticed(network: Network, images: Tensor) -> None:
    parametrizations.weight_norm(network.deep)
    explainer = KryptonOcclusion(network)
    explainer.attribute(images, **QUESTION)
    network.deep.parametrizations.weight.original0.data.mul_(3)
    expected = Occlusion(network).attribute(images, **QUESTION)
    assert_same(explainer.attribute(images, **QUESTION), expected)


def test_a_change_of_dtype_is_noticed(network: Network, images: Tensor) -> None:
    explainer = KryptonOcclusion(network)
    explainer.attribute(images, **QUESTION)
    network.double()
    expected = Occlusion(network).attribute(images.double(), **QUESTION)
    actual = explainer.attribute(images.double(), **QUESTION)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)


def test_training_mode_is_noticed(network: Network, images: Tensor) -> None:
    explainer = KryptonOcclusion(network)
    explainer.attribute(images, **QUESTION)
    network.drop.train()
    torch.manual_seed(6)
    with pytest.warns(KryptonFallbackWarning):
        actual = explainer.attribute(images, perturbations_per_eval=1, **QUESTION)
    torch.manual_seed(6)
    assert_same(actual, Occlusion(network).attribute(images, **QUESTION))
    network.eval()
    assert_same(
        explainer.attribute(images, **QUESTION), Occlusion(network).attribute(images, **QUESTION)
    )


def test_training_mode_that_changes_nothing_is_no_reason_to_fall_back(images: Tensor) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    network(images)
    assert network.training
    heat_map = KryptonOcclusion(network).heatmap(images, **QUESTION)
    assert heat_map.report.path != "captum"
    assert network.training


GLOBAL_SCALE = [1.0]
GLOBAL_WEIGHT = torch.ones(4)


def _with_globals(x: Tensor) -> Tensor:
    return x.mean((2, 3)).repeat(1, 2)[:, :4].exp() * GLOBAL_SCALE[0] * GLOBAL_WEIGHT


def test_changes_outside_of_any_module_are_noticed(images: Tensor) -> None:
    explainer = KryptonOcclusion(_with_globals)
    explainer.attribute(images, **QUESTION)
    try:
        GLOBAL_WEIGHT.mul_(2)
        expected = Occlusion(_with_globals).attribute(images, **QUESTION)
        assert_same(explainer.attribute(images, **QUESTION), expected)
        GLOBAL_SCALE[0] = -2.0
        expected = Occlusion(_with_globals).attribute(images, **QUESTION)
        assert_same(explainer.attribute(images, **QUESTION), expected)
    finally:
        GLOBAL_SCALE[0] = 1.0
        GLOBAL_WEIGHT.fill_(1)


def test_a_change_that_this_input_does_not_show_is_noticed(images: Tensor) -> None:
    """The untouched outcome stays the same, the occluded ones do not."""

    class Ratio(nn.Module):
        power = 1.0

        def forward(self, x: Tensor) -> Tensor:
            deviation = x.mean((1, 2, 3)) / centre
            return torch.stack([deviation.abs() ** self.power] * 2, 1)

    centre = images.mean((1, 2, 3))
    network, images = Ratio(), images[:1]
    centre = centre[0]
    explainer = KryptonOcclusion(network)
    explainer.attribute(images, **QUESTION)
    network.power = 3.0
    expected = Occlusion(network).attribute(images, **QUESTION)
    assert_same(explainer.attribute(images, **QUESTION), expected)


def test_another_argument_value_is_noticed(network: Network, images: Tensor) -> None:
    def forward(x: Tensor, scale: float, how: str) -> Tensor:
        return getattr(network(x) * scale, how)()

    explainer = KryptonOcclusion(forward)
    for extra in [(1.0, "tanh"), (2.0, "tanh"), (2.0, "sigmoid"), (torch.tensor(0.5), "relu")]:
        expected = Occlusion(forward).attribute(images, additional_forward_args=extra, **QUESTION)
        actual = explainer.attribute(images, additional_forward_args=extra, **QUESTION)
        assert_same(actual, expected)


def test_one_explainer_for_inputs_of_many_kinds(network: Network, images: Tensor) -> None:
    explainer = KryptonOcclusion(network)
    for x in [
        images,
        images[:1],
        images.repeat(2, 1, 1, 1),
        torch.randn(1, 3, 20, 7),
        images * 3,
        torch.randn(3, 3, 11, 9),
        images,
    ]:
        for target in (0, [3] * len(x)):
            question = {**QUESTION, "target": target}
            expected = Occlusion(network).attribute(x, **question)
            assert_same(explainer.attribute(x, **question), expected)


# Hooks


def test_hooks_are_honoured_and_keep_no_fake_tensor(network: Network, images: Tensor) -> None:
    kept: list[Any] = []

    def double(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        kept.extend([*inputs, output])
        return output * 2

    def shift(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        kept.extend(inputs)
        return (inputs[0] + 0.5,)

    network.deep.register_forward_hook(double)
    network.norm.register_forward_pre_hook(shift)
    network.register_forward_hook(lambda module, inputs, output: kept.append(output))
    assert_as_captum(network, images, **QUESTION)
    assert kept
    for tensor in kept:
        assert not isinstance(tensor, FakeTensor)
        assert type(tensor) is Tensor
        assert tensor.device.type == "cpu"
        tensor.sum().item()


def test_a_hook_that_is_removed_is_noticed(network: Network, images: Tensor) -> None:
    hook = network.deep.register_forward_hook(lambda module, inputs, output: output * 2)
    explainer = KryptonOcclusion(network)
    explainer.attribute(images, **QUESTION)
    hook.remove()
    expected = Occlusion(network).attribute(images, **QUESTION)
    assert_same(explainer.attribute(images, **QUESTION), expected)


def test_a_hook_on_all_modules_is_noticed(network: Network, images: Tensor) -> None:
    explainer = KryptonOcclusion(network)
    explainer.attribute(images, **QUESTION)
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: output * 2 if isinstance(module, nn.Conv2d) else None
    )
    try:
        expected = Occlusion(network).attribute(images, **QUESTION)
        assert_same(explainer.attribute(images, **QUESTION), expected)
    finally:
        hook.remove()
