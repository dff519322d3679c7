"""U-Nets with one to three axes: maps beside Captum's, and what their layers run by."""

from __future__ import annotations

import pytest
import torch
from against_captum import assert_close, captum, check_precision, krypton, outcome_size
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import CONV, Draw
from networks import Case
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion
from captum_krypton._kernels import panel_size

TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SIDES = {1: 40, 2: 20, 3: 12}


class UNet(nn.Module):
    """An encoder, what lies within it, and a decoder that reads the input besides.

    What comes back may be larger than the input by some cells, or smaller: the common ones are
    joined.
    """

    def __init__(self, down: nn.Module, inner: nn.Module, up: nn.Module, join: str) -> None:
        super().__init__()
        self.down, self.inner, self.up, self.join = down, inner, up, join

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.inner(self.down(x)))
        least = [min(a, b) for a, b in zip(x.shape[2:], y.shape[2:], strict=True)]
        common = (..., *[slice(n) for n in least])
        if self.join == "sum" and x.shape[1] == y.shape[1]:
            return torch.relu(x[common] + y[common])
        return torch.cat([x[common], y[common]], 1)


class Means(nn.Module):
    """Of every channel, so that the outcome is small beside the network."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(2)


def after(draw: Draw, axes: int, channels: int) -> list[nn.Module]:
    norm = NORM[axes](channels)
    norm.running_mean.uniform_(-0.5, 0.5)
    norm.running_var.uniform_(0.5, 2)
    ends = [nn.PReLU(), nn.PReLU(channels, 0.1), nn.LeakyReLU(0.2), nn.ReLU(), nn.Identity()]
    return [*[norm] * draw(st.integers(0, 1)), draw(st.sampled_from(ends))]


@st.composite
def unets(draw: Draw, axes: int, wide: bool) -> nn.Module:
    """Of one or two levels; the outermost channels are `in` and `classes`."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    widths = [draw(st.sampled_from([16, 24, 33] if wide else [2, 3, 4])) for _ in range(3)]

    def level(channels: int, depth: int) -> tuple[nn.Module, int]:
        """A U-Net without its head, and the channels that it makes."""
        width = widths[depth]
        stride, kernel = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        down = [CONV[axes](channels, width, kernel, stride, kernel // 2)]
        down += after(draw, axes, width)
        inner: nn.Module = nn.Sequential(
            CONV[axes](width, width, 3, padding=1), *after(draw, axes, width)
        )
        made = width
        if depth == 0 and draw(st.booleans()):
            inner, made = level(width, 1)
        taps, dilation = draw(st.integers(1, 4)), draw(st.sampled_from([1, 1, 1, 2]))
        out = channels if draw(st.booleans()) else widths[2]
        groups = draw(st.sampled_from([g for g in (1, 1, 2, 3) if made % g == 0 == out % g]))
        up = TRANSPOSED[axes](
            made,
            out,
            taps,
            stride,
            draw(st.integers(0, (taps - 1) * dilation // 2)),
            draw(st.integers(0, max(stride, dilation) - 1)),
            groups,
            draw(st.booleans()),
            dilation,
        )
        join = draw(st.sampled_from(["cat", "sum"]))
        decoder = nn.Sequential(up, *after(draw, axes, out))
        net = UNet(nn.Sequential(*down), inner, decoder, join)
        return net, out if join == "sum" and channels == out else channels + out

    net, channels = level(2, 0)
    head = [CONV[axes](channels, 3, draw(st.sampled_from([1, 3])), padding=0), Means()]
    return nn.Sequential(net, *head).eval()


@st.composite
def questions(draw: Draw, wide: bool) -> Case:
    axes = draw(st.integers(1, 3))
    network = draw(unets(axes, wide))
    side = SIDES[axes]
    size = tuple(draw(st.integers(side // 2, side)) for _ in range(axes))
    window = (2, *(draw(st.integers(1, 6)) for _ in range(axes)))
    strides = (2, *(draw(st.integers(min(n, 2), n)) for n in window[1:]))
    x = torch.randn(draw(st.integers(1, 2)), 2, *size)
    return Case(network, x, window, strides, 0.25, 1, draw(st.sampled_from([None, 4])), (3,))


@settings(max_examples=40)
@given(data=st.data())
def test_maps_in_float32(data: st.DataObject) -> None:
    case = data.draw(questions(wide=data.draw(st.booleans())))
    check_precision(data.draw, case, torch.float32, relative=1e-4, of_outcome=1e-6)


@settings(max_examples=20)
@given(data=st.data())
def test_maps_in_float64(data: st.DataObject) -> None:
    case = data.draw(questions(wide=False))
    network, x, arguments = case.network.double(), case.inputs.double(), case.arguments()
    expected = captum(network, x, None, **arguments)
    with krypton(data.draw, network) as explainer:
        made = explainer.attribute(x, **arguments)
    assert_close(made, expected, outcome_size(network, x))


@pytest.mark.skipif(panel_size() == 0, reason="needs the compiled kernels")
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_u_net_is_one_group_of_blocks(axes: int) -> None:
    """No norm and no activation is left, and windows need not share their phase."""
    torch.manual_seed(0)
    convolution, transposed, norm = CONV[axes], TRANSPOSED[axes], NORM[axes]
    down = nn.Sequential(convolution(1, 16, 3, 2, 1), norm(16), nn.PReLU())
    inner = nn.Sequential(convolution(16, 16, 3, 1, 1), norm(16), nn.PReLU(16))
    up = nn.Sequential(transposed(16, 16, 3, 2, 1, 1), norm(16), nn.LeakyReLU())
    head = convolution(17, 2, 1)
    network = nn.Sequential(UNet(down, inner, up, "cat"), head, Means()).eval()
    x = torch.randn(1, 1, *[48] * axes)
    windows = {"sliding_window_shapes": (1, *[5] * axes), "strides": (1, *[5] * axes)}
    explanation = KryptonOcclusion(network).explain(x, **windows)
    rows = explanation.plans[0][0]
    names = [row.operator for row in rows]
    assert names[:5] == [
        *["aten.convolution+prelu"] * 2,
        "aten.transposed_convolution+prelu",
        "aten.cat",
        "aten.convolution",
    ]
    assert {row.algorithm for row in rows[:2]} <= {"direct", "Winograd"}
    assert rows[2].algorithm == "direct"
    assert "groups 1," in str(explanation)
