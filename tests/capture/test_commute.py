"""Average poolings and 1 x 1 convolutions in the cheaper order: the same function, fewer cells."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum.attr import Occlusion
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion
from captum_krypton._capture import captured, simplified


def order(model: nn.Module, x: Tensor) -> list[str]:
    """The convolutions and poolings of the simplified graph, in the order in which they run."""
    graph = simplified(captured(model, (x,), (True,)).graph)
    names = [node.name.split(".")[-1] for node in graph.nodes]
    return [name for name in names if "pool" in name or "convolution" in name]


def image(channels: int = 6, rank: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    noise = torch.Generator().manual_seed(0)
    return torch.randn(1, channels, *[9, 8, 7][:rank], generator=noise, dtype=dtype)


def assert_as_captum(model: nn.Module, x: Tensor) -> None:
    windows: dict[str, Any] = {
        "sliding_window_shapes": (x.shape[1], *[3] * (x.dim() - 2)),
        "strides": (x.shape[1], *[2] * (x.dim() - 2)),
        "target": 1,
    }
    expected = Occlusion(model).attribute(x, **windows)
    heat = KryptonOcclusion(model).heatmap(x, **windows)
    assert heat.report.path in ("incremental", "full")
    bound = 1e-6 * float(expected.abs().max())  # attributions are float32
    torch.testing.assert_close(heat.attribution(), expected, rtol=0, atol=bound)


def norm(rank: int = 2) -> list[nn.Module]:
    """A batch norm that is not folded, and a rectifier."""
    made = (nn.BatchNorm2d if rank == 2 else nn.BatchNorm3d)(6)
    made.running_mean, made.running_var = torch.rand(6) - 0.5, 1 + torch.rand(6)
    return [made, nn.ReLU()]


def network(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    head = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*norm(), *layers, *head).double().eval()


CONVOLUTION, POOLING = "convolution", "avg_pool2d"


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        # The transition of a DenseNet, and its like.
        ((nn.Conv2d(6, 4, 1), nn.AvgPool2d(2)), [POOLING, CONVOLUTION]),
        ((nn.Conv2d(6, 4, 1, bias=False), nn.AvgPool2d(2, 2, 1)), [POOLING, CONVOLUTION]),
        ((nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4), nn.AvgPool2d(2)), [POOLING, CONVOLUTION]),
        ((nn.Conv2d(6, 4, 1), nn.AvgPool2d(3, 2, ceil_mode=True)), [POOLING, CONVOLUTION]),
        (
            (nn.Conv2d(6, 4, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
            [POOLING, CONVOLUTION],
        ),
        ((nn.Conv2d(6, 4, 1, groups=2), nn.AvgPool2d(2)), [POOLING, CONVOLUTION]),
        # The pooled branch of an Inception block, and its like.
        ((nn.AvgPool2d(3, 1, 1), nn.Conv2d(6, 4, 1)), [CONVOLUTION, POOLING]),
        ((nn.AvgPool2d(3, 1, 1), nn.Conv2d(6, 4, 1, bias=False)), [CONVOLUTION, POOLING]),
        ((nn.AvgPool2d(3, 1, 1), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4)), [CONVOLUTION, POOLING]),
        (
            (nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.Conv2d(6, 4, 1)),
            [CONVOLUTION, POOLING],
        ),
        (
            (nn.AvgPool2d(3, 1, 1, divisor_override=4), nn.Conv2d(6, 4, 1)),
            [CONVOLUTION, POOLING],
        ),
        # Where one of them would cost more, or would not be the same.
        ((nn.Conv2d(6, 4, 1), nn.AvgPool2d(3, 1, 1)), [CONVOLUTION, POOLING]),
        ((nn.AvgPool2d(3, 1, 1), nn.Conv2d(6, 8, 1)), [POOLING, CONVOLUTION]),
        ((nn.AvgPool2d(2), nn.Conv2d(6, 4, 1)), [POOLING, CONVOLUTION]),
        ((nn.Conv2d(6, 4, 1), nn.AvgPool2d(2, 2, 1)), [CONVOLUTION, POOLING]),
        ((nn.Conv2d(6, 4, 1), nn.AvgPool2d(2, divisor_override=3)), [CONVOLUTION, POOLING]),
        ((nn.Conv2d(6, 4, 1, padding=1), nn.AvgPool2d(2)), [CONVOLUTION, POOLING]),
        ((nn.Conv2d(6, 4, 1, 2), nn.AvgPool2d(2)), [CONVOLUTION, POOLING]),
        ((nn.Conv2d(6, 4, (1, 2)), nn.AvgPool2d(2)), [CONVOLUTION, POOLING]),
        ((nn.Conv2d(6, 4, 1), nn.ReLU(), nn.AvgPool2d(2)), [CONVOLUTION, POOLING]),
        ((nn.ConvTranspose2d(6, 4, 1), nn.AvgPool2d(2)), [CONVOLUTION, POOLING]),
    ],
    ids=str,
)
def test_which_goes_first(layers: tuple[nn.Module, ...], expected: list[str]) -> None:
    model, x = network(*layers), image()
    for folded in list(model.modules())[3:]:
        if isinstance(folded, nn.BatchNorm2d):
            folded.running_mean = torch.rand(4).double()
            folded.running_var = 1 + torch.rand(4).double()
    assert order(model, x)[:2] == expected
    assert_as_captum(model, x)


def test_what_others_read_stays() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.Sequential(*norm())
            self.convolution, self.pooling = nn.Conv2d(6, 4, 1), nn.AvgPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            made = self.convolution(self.norm(x))
            scores: Tensor = made.mean((2, 3)) + self.pooling(made).relu().mean((2, 3))
            return scores

    torch.manual_seed(0)
    model, x = Both().double().eval(), image()
    assert order(model, x) == [CONVOLUTION, POOLING]
    assert_as_captum(model, x)


def test_an_output_stays_an_output() -> None:
    model = nn.Sequential(*norm(), nn.Conv2d(6, 4, 1), nn.AvgPool2d(2)).double().eval()
    assert order(model, image()) == [POOLING, CONVOLUTION]
    dense = nn.Sequential(*norm(), nn.AvgPool2d(3, 1, 1), nn.Conv2d(6, 4, 1)).double().eval()
    assert order(dense, image()) == [CONVOLUTION, POOLING]
    x, windows = image(), {"sliding_window_shapes": (6, 3, 3), "strides": (6, 2, 2)}
    for each in (model, dense):
        got = KryptonOcclusion(each).attribute(x, **windows, target=(1, 2, 2))
        expected = Occlusion(each).attribute(x, **windows, target=(1, 2, 2))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nothing_is_rounded_once_more(dtype: torch.dtype) -> None:
    layers = (nn.Conv2d(6, 4, 1), nn.AvgPool2d(2), nn.Flatten())
    model = nn.Sequential(*norm(), *layers).to(dtype).eval()
    assert order(model, image(dtype=dtype))[0].startswith(CONVOLUTION)


def test_one_after_another() -> None:
    layers = (nn.Conv2d(6, 5, 1), nn.AvgPool2d(2), nn.ReLU(), nn.AvgPool2d(3, 1, 1))
    model = network(*layers, nn.Conv2d(5, 3, 1))
    assert order(model, image())[:4] == [POOLING, CONVOLUTION, CONVOLUTION, POOLING]
    assert_as_captum(model, image())


def test_volumes() -> None:
    torch.manual_seed(0)
    head = (nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    for layers, first in (
        ((nn.Conv3d(6, 4, 1), nn.AvgPool3d(2)), "avg_pool3d"),
        ((nn.AvgPool3d(3, 1, 1), nn.Conv3d(6, 4, 1)), CONVOLUTION),
    ):
        model = nn.Sequential(*norm(3), *layers, *head).double().eval()
        assert order(model, image(rank=3))[0] == first
        assert_as_captum(model, image(rank=3))


class Functions(nn.Module):
    """Layers that are given as functions of a convolution and an image."""

    def __init__(self, function: Any, convolution: nn.Module) -> None:
        super().__init__()
        self.function, self.convolution = function, convolution

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.function(self.convolution, x.relu())
        return made.flatten(2).mean(2)


@pytest.mark.parametrize(
    "function",
    [
        lambda conv, x: F.avg_pool3d(conv(x), (3, 2, 2), (1, 2, 2), (1, 0, 0)),
        lambda conv, x: conv(F.avg_pool3d(x, 3, 1, 1)),
    ],
)
def test_a_pooling_of_channels_stays_where_it_is(function: Any) -> None:
    """A pooling of volumes takes the channels of an image for its depth."""
    torch.manual_seed(0)
    model = Functions(function, nn.Conv2d(6, 4, 1)).double()
    graph = captured(model, (image(),), (True,)).graph
    before = [n.name for n in graph.nodes if "pool" in n.name or "convolution" in n.name]
    after = [n.name for n in simplified(graph).nodes]
    assert [name for name in after if name in before] == before
    assert_as_captum(model, image())


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ((nn.Conv2d(6, 4, 1), nn.AvgPool2d(3)), [CONVOLUTION, POOLING]),
        ((nn.ReLU(), nn.Conv2d(6, 4, 1), nn.AvgPool2d(3)), [CONVOLUTION, POOLING]),
        ((nn.AvgPool2d(3, 1, 1), nn.Conv2d(6, 4, 1)), [POOLING, CONVOLUTION]),
        ((nn.Tanh(), nn.AvgPool2d(3, 1, 1), nn.Conv2d(6, 4, 1)), [POOLING, CONVOLUTION]),
        ((nn.ReLU6(), nn.AvgPool2d(3, 1, 1), nn.Conv2d(6, 4, 1)), [CONVOLUTION, POOLING]),
    ],
    ids=str,
)
def test_sums_that_may_cancel_stay_in_their_order(
    layers: tuple[nn.Module, ...], expected: list[str]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*layers, nn.Flatten()).eval()
    assert order(model, image(dtype=torch.float32)) == expected


def test_differences_of_loud_channels_keep_their_digits() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.AvgPool2d(3), nn.Flatten())
    model[0].weight.data = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])[:, :, None, None]
    noise = torch.Generator().manual_seed(0)
    x = 1e5 + torch.randint(0, 64, (1, 2, 9, 9), generator=noise) / 64
    windows = {"sliding_window_shapes": (1, 3, 3), "strides": (1, 3, 3), "target": 1}
    expected = Occlusion(model).attribute(x, baselines=1e5, **windows)
    got = KryptonOcclusion(model).attribute(x, baselines=1e5, **windows)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_pair_is_the_same_function(data: st.DataObject) -> None:
    draw = data.draw
    kernel = draw(st.integers(1, 3))
    pool = nn.AvgPool2d(
        kernel,
        draw(st.integers(1, 3)),
        draw(st.integers(0, kernel // 2)),
        ceil_mode=draw(st.booleans()),
        count_include_pad=draw(st.booleans()),
        divisor_override=draw(st.sampled_from([None, 5])),
    )
    convolution = nn.Conv2d(6, draw(st.sampled_from([4, 8])), 1, bias=draw(st.booleans()))
    pair = [pool, convolution] if draw(st.booleans()) else [convolution, pool]
    assert_as_captum(network(nn.Conv2d(6, 6, 3, padding=1), *norm(), *pair), image())
