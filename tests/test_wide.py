"""Networks wide enough for every kernel, in float32, against Captum.

The other networks of these tests are narrow, and most run in float64: kernels for wide float32
layers are seldom theirs.
"""

from __future__ import annotations

import pytest
import torch
from against_captum import check_precision
from hypothesis import event, given
from hypothesis import strategies as st
from layers import Draw
from networks import Case
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion
from captum_krypton._kernels import panel_size


class Block(nn.Module):
    """Branches of convolutions, joined by their sum, by channels, or with the input."""

    def __init__(self, join: str, branches: list[nn.Module]) -> None:
        super().__init__()
        self.join, self.branches = join, nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        made = [branch(x) for branch in self.branches]
        if self.join == "cat":
            return torch.cat(made, 1)
        total: Tensor = sum(made[1:], made[0])
        return (total + x if self.join == "residual" else total).relu()


@st.composite
def convolutions(draw: Draw, channels: int, out_channels: int, stride: int) -> nn.Module:
    """A convolution that keeps the size but for its stride, and what may follow it."""
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (3, 3), (5, 5), (1, 7), (7, 1), (1, 3)]))
    shared = [g for g in (1, 1, 1, 2, 4, 16) if channels % g == 0 and out_channels % g == 0]
    groups = draw(st.sampled_from(shared))
    if draw(st.booleans()) and channels == out_channels:
        groups = draw(st.sampled_from([1, channels]))
    made: list[nn.Module] = [
        nn.Conv2d(
            channels,
            out_channels,
            kernel,
            stride,
            (kernel[0] // 2, kernel[1] // 2),
            groups=groups,
            bias=draw(st.booleans()),
        )
    ]
    after = draw(st.sampled_from(["none", "relu", "relu6", "silu", "norm"]))
    event(f"kernel {kernel}, groups {groups}, stride {stride}")
    if after == "norm":
        made += [nn.BatchNorm2d(out_channels), nn.ReLU()]
    elif after != "none":
        made.append({"relu": nn.ReLU, "relu6": nn.ReLU6, "silu": nn.SiLU}[after]())
    return nn.Sequential(*made)


@st.composite
def wide_networks(draw: Draw) -> nn.Module:
    torch.manual_seed(draw(st.integers(0, 2**16)))
    width = draw(st.sampled_from([16, 20, 32]))
    parts: list[nn.Module] = [draw(convolutions(3, width, draw(st.integers(1, 2))))]
    for _ in range(draw(st.integers(1, 3))):
        join = draw(st.sampled_from(["sum", "cat", "residual"]))
        stride = draw(st.integers(1, 2)) if join != "residual" else 1
        out = width if join == "residual" else draw(st.sampled_from([16, 24, 32]))
        several = draw(st.integers(1, 2))
        parts.append(Block(join, [draw(convolutions(width, out, stride)) for _ in range(several)]))
        width = out * several if join == "cat" else out
        pool = draw(st.sampled_from(["none", "none", "max", "average"]))
        if pool != "none":
            kind = nn.MaxPool2d if pool == "max" else nn.AvgPool2d
            parts.append(kind(3, draw(st.integers(1, 2)), 1))
    if draw(st.booleans()):
        parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)]
    else:
        parts += [nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten(), nn.Linear(6 * width, 4)]
    return nn.Sequential(*parts).eval()


@st.composite
def wide_cases(draw: Draw) -> Case:
    size = draw(st.tuples(st.integers(9, 26), st.integers(9, 26)))
    images = torch.randn(draw(st.integers(1, 2)), 3, *size)
    window = (3, draw(st.integers(2, 7)), draw(st.integers(2, 7)))
    strides = (3, draw(st.integers(1, window[1])), draw(st.integers(2, window[2])))
    return Case(
        draw(wide_networks()),
        images,
        window,
        strides,
        draw(st.sampled_from([None, 0.5])),
        draw(st.integers(0, 3)),
        draw(st.sampled_from([None, 5, 64])),
        (4,),
    )


@given(data=st.data())
def test_attributions_of_wide_networks(data: st.DataObject) -> None:
    case = data.draw(wide_cases())
    check_precision(data.draw, case, torch.float32, relative=1e-4, of_outcome=1e-6)


@pytest.mark.skipif(panel_size() == 0, reason="needs the compiled kernels")
def test_every_kernel_is_reached() -> None:
    """What this file is for: one network runs by all of them."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.Conv2d(32, 32, 3, padding=1, groups=32),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).eval()
    windows = {"sliding_window_shapes": (3, 8, 8), "strides": (3, 4, 4)}
    explanation = KryptonOcclusion(network).explain(torch.rand(1, 3, 48, 48), **windows)
    used = {row.algorithm for rows, _ in explanation.plans for row in rows}
    assert {"direct", "Winograd", "depthwise", "pooling"} <= used
