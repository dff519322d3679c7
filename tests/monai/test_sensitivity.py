"""MONAI's occlusion sensitivity, held against MONAI's own class."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_krypton import KryptonFallbackWarning
from captum_krypton.monai import OcclusionSensitivity

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its imports, which are none of ours
    monai = pytest.importorskip("monai", reason="MONAI is an extra")
    from monai.networks.nets import DenseNet, DenseNet121
    from monai.visualize import OcclusionSensitivity as Theirs

# MONAI indexes by lists of slices, and sets the grids' coordinates from NumPy.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:monai"),
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:monai"),
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning"),
]


def network(axes: int, channels: int = 1, classes: int = 3) -> nn.Module:
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[axes - 1]
    torch.manual_seed(0)
    return nn.Sequential(
        convolution(channels, 6, 3, padding=1),
        nn.ReLU(),
        convolution(6, 6, 3, stride=2, padding=1),
        nn.Tanh(),
        pool(2),
        nn.Flatten(),
        nn.Linear(6 * 2**axes, classes),
    )


def image(*shape: int) -> Tensor:
    return torch.rand(1, *shape, generator=torch.Generator().manual_seed(1))


def same(
    net: nn.Module, x: Tensor, b_box: Any = None, forward: dict[str, Any] | None = None, **how: Any
) -> Tensor:
    """Our map, once it is MONAI's."""
    expected, best = Theirs(net, verbose=False, **how)(x, b_box, **(forward or {}))
    ours, largest = OcclusionSensitivity(net, verbose=False, **how)(x, b_box, **(forward or {}))
    expected, best = expected.as_subclass(Tensor), best.as_subclass(Tensor)
    assert type(ours) is type(largest) is Tensor
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=2e-6)
    assert largest.shape == best.shape and largest.dtype == best.dtype
    top = expected.topk(min(2, expected.shape[1]), dim=1).values
    close = top[:, :1] - top[:, -1:] < 1e-5  # either may be the largest
    assert bool(((largest == best) | close).all())
    return ours


@pytest.mark.parametrize("mode", ["gaussian", "mean_patch", "mean_img", 0.3])
@pytest.mark.parametrize(
    ("shape", "mask_size"),
    [((40,), 7), ((21, 26), 6), ((21, 26), (5, 8)), ((9, 12, 10), 4), ((9, 12, 10), (9, 1, 3))],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_modes(mode: str | float, shape: tuple[int, ...], mask_size: Any, channels: int) -> None:
    if len(shape) == 1:
        mask_size = (mask_size,)
    made = same(
        network(len(shape), channels), image(channels, *shape), mask_size=mask_size, mode=mode
    )
    assert made.shape == (1, 3, *shape)
    assert float(made.std()) > 1e-6


@pytest.mark.parametrize("mode", ["gaussian", "mean_patch", 1.0])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.85, 0.99])
def test_overlaps(mode: str | float, overlap: float) -> None:
    same(network(2), image(1, 19, 22), mask_size=6, overlap=overlap, mode=mode)


@pytest.mark.parametrize("mode", ["gaussian", "mean_patch", "mean_img"])
def test_double_precision_and_large_values(mode: str) -> None:
    same(network(2).double(), image(1, 24, 24).double(), mask_size=6, mode=mode)
    made = same(network(2), image(1, 24, 24) * 40 - 10, mask_size=6, mode=mode, activate=False)
    assert float(made.std()) > 1e-3


@pytest.mark.parametrize("n_batch", [1, 5, 64])
def test_batches(n_batch: int) -> None:
    same(network(2), image(1, 24, 24), mask_size=6, n_batch=n_batch)


@pytest.mark.parametrize(
    "activate", [True, False, "softmax", torch.tanh, lambda out: out[:, :2].exp()]
)
@pytest.mark.parametrize("channels", [1, 2])
def test_activations(activate: Any, channels: int) -> None:
    same(network(2, channels), image(channels, 24, 24), mask_size=6, activate=activate)


@pytest.mark.parametrize("mode", ["gaussian", "mean_patch", 0.0])
@pytest.mark.parametrize(
    "b_box", [[2, 20, 1, 22], [-1, -1, 4, 9], [0, -1, 0, 24], [3, 5, -1, -1], [0, 0, 3, 20]]
)
def test_boxes(mode: str | float, b_box: list[int]) -> None:
    made = same(network(2), image(1, 24, 26), b_box, mask_size=6, mode=mode)
    assert made.shape[2:] != (24, 26)


def test_further_arguments() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network(2)

        def forward(self, images: Tensor, scale: float = 1.0) -> Tensor:
            made: Tensor = self.network(images) * scale
            return made

    net = Scaled()
    twice = same(net, image(1, 24, 24), mask_size=6, forward={"scale": 2.0}, activate=False)
    once = same(net, image(1, 24, 24), mask_size=6, activate=False)
    torch.testing.assert_close(twice, 2 * once)


def test_a_function_as_mode() -> None:
    """Held against a loop: MONAI 1.6 takes a function and then gives an error."""

    def flipped(x: Tensor, cells: Tensor) -> Tensor:
        return cells.flip(-1) + x.mean()

    net, x = network(2), image(2, 12, 18)[:, :1]
    total, count = torch.zeros(3, 12, 18), torch.zeros(12, 18)
    for top in (0, 6):
        for left in (0, 6, 12):
            covered = x.clone()
            box = (..., slice(top, top + 6), slice(left, left + 6))
            covered[box] = covered[box].flip(-1) + x.mean()
            with torch.no_grad():
                total[box] += net(covered)[0].sigmoid()[:, None, None]
            count[box] += 1
    ours = OcclusionSensitivity(net, 6, n_batch=4, verbose=False, mode=flipped, overlap=0)
    with pytest.warns(KryptonFallbackWarning, match="at MONAI's speed: mode is a function"):
        made, _ = ours(x)
    torch.testing.assert_close(made[0], total / count)


@pytest.mark.parametrize("mode", ["gaussian", "mean_patch", "mean_img", 0.5])
def test_what_cannot_be_captured_says_so_every_time(mode: str | float) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network(2)

        def forward(self, images: Tensor) -> Tensor:
            out: Tensor = self.network(images)
            return torch.stack([row * 2 if float(row[0]) > 0 else row for row in out])

    x, net = image(1, 24, 24), Branching()
    ours = OcclusionSensitivity(net, mask_size=6, verbose=False, mode=mode)
    expected, _ = Theirs(net, mask_size=6, verbose=False, mode=mode)(x)
    for _ in range(2):
        with pytest.warns(KryptonFallbackWarning, match="at MONAI's speed"):
            made, _ = ours(x)
        torch.testing.assert_close(made, expected.as_subclass(Tensor), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["gaussian", "mean_patch", "mean_img", 0.5])
def test_later_maps_are_incremental(mode: str | float) -> None:
    seen: list[int] = []

    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network(2)

        def forward(self, images: Tensor) -> Tensor:
            seen.append(len(images))
            made: Tensor = self.network(images)
            return made

    net, x = Counted(), image(1, 40, 40)
    ours = OcclusionSensitivity(net, mask_size=6, verbose=False, mode=mode)
    first, _ = ours(x)
    seen.clear()
    second, _ = ours(x)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert sum(seen) < 20  # of 324 windows
    with torch.no_grad():
        next(net.parameters()).mul_(2)
    expected, _ = Theirs(net, mask_size=6, verbose=False, mode=mode)(x)
    made, _ = ours(x)
    torch.testing.assert_close(made, expected.as_subclass(Tensor), rtol=1e-5, atol=2e-6)
    assert float((made - first).abs().max()) > 1e-4


def test_the_network_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(1936, 2))
    net[1].eval()
    net[0].train()
    before = [module.training for module in net.modules()]
    same_x = image(1, 24, 24)
    OcclusionSensitivity(net, mask_size=8, verbose=False)(same_x)
    assert [module.training for module in net.modules()] == before
    assert int(net[1].num_batches_tracked or 0) == 0


# What MONAI's own tests ask.


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["gaussian", "mean_patch", "mean_img", 0.1])
def test_densenet_2d(mode: str | float) -> None:
    torch.manual_seed(0)
    net = DenseNet121(spatial_dims=2, in_channels=1, out_channels=3)
    made = same(net, image(1, 48, 64), [2, 40, 1, 62], mask_size=16, mode=mode, n_batch=32)
    assert made.shape == (1, 3, 38, 61)


@pytest.mark.slow
@pytest.mark.parametrize("b_box", [None, [1, 3, -1, -1, -1, -1]])
def test_densenet_3d(b_box: list[int] | None) -> None:
    torch.manual_seed(0)
    net = DenseNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=3,
        init_features=2,
        growth_rate=2,
        block_config=(6,),
    )
    size = 2 if b_box else 6
    made = same(net, image(1, 6, 6, 6), b_box, mask_size=3, n_batch=10)
    assert made.shape == (1, 3, size, 6, 6)


Case = Callable[[type], Any]
REFUSED: dict[str, tuple[type[Exception], Case]] = {
    "batch": (ValueError, lambda kind: kind(network(2))(torch.rand(2, 1, 24, 24))),
    "window": (ValueError, lambda kind: kind(network(2), mask_size=32)(image(1, 24, 24))),
    "sizes": (ValueError, lambda kind: kind(network(2), mask_size=[4, 4, 4])(image(1, 24, 24))),
    "overlap": (
        ValueError,
        lambda kind: kind(network(2), mask_size=6, overlap=1.0)(image(1, 24, 24)),
    ),
    "mode": (NotImplementedError, lambda kind: kind(network(2), mode="mean")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_monai_refuses(case: str) -> None:
    error, call = REFUSED[case]
    with pytest.raises(error):
        call(Theirs)
    with pytest.raises(error, match=r"x must|mask_size must|overlap must|mode must"):
        call(OcclusionSensitivity)


@pytest.mark.parametrize("b_box", [[1, 2], [5, 5, 0, 9], [30, 40, 0, 9]])
def test_boxes_that_hold_nothing_are_refused(b_box: list[int]) -> None:
    with pytest.raises(ValueError, match="b_box"):
        OcclusionSensitivity(network(2), mask_size=1)(image(1, 24, 24), b_box)


def test_networks_with_other_outputs_are_refused() -> None:
    net = nn.Conv2d(1, 2, 3)
    with pytest.raises(ValueError, match="nn_module must give"):
        OcclusionSensitivity(net, mask_size=6, verbose=False)(image(1, 24, 24))
