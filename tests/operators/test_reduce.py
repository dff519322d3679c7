"""Means and sums over all window axes, from the base and what the patches change in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from captum.attr import Occlusion
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Pooled(nn.Module):
    """Convolutions on volumes, a reduction of them, and a linear layer."""

    def __init__(self, layers: list[nn.Module], reduce: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.reduce, self.head = nn.Sequential(*layers), reduce, nn.LazyLinear(4)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.reduce(self.body(x)).flatten(1))
        return made


def reductions(axes: int) -> dict[str, Callable[[Tensor], Tensor]]:
    trailing = tuple(range(2, 2 + axes))
    backwards = tuple(range(-1, -1 - axes, -1))
    return {
        "mean": lambda x: x.mean(trailing),
        "kept": lambda x: x.mean(backwards, keepdim=True),
        "sum": lambda x: x.sum(trailing),
        "kept sum": lambda x: x.sum(trailing, keepdim=True),
        "channels too": lambda x: x.mean((1, *trailing)),
        "one axis": lambda x: x.mean(-1),
        "another type": lambda x: x.sum(trailing, dtype=torch.float32).to(x.dtype),
        "largest": lambda x: x.amax(trailing),
    }


@given(
    axes=st.integers(1, 3),
    reduce=st.sampled_from(sorted(reductions(1))),
    enlarged=st.booleans(),
    images=st.integers(1, 2),
    window=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_reductions_equal_captum(
    axes: int, reduce: str, enlarged: bool, images: int, window: int, seed: int
) -> None:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [CONVOLUTIONS[axes - 1](3, 6, 3, padding=1), nn.Tanh()]
    if enlarged:  # patches that stick out of the volume
        layers.append(TRANSPOSED[axes - 1](6, 5, 3, stride=2, padding=1))
    model = Pooled(layers, reductions(axes)[reduce]).double().eval()
    side = {1: 60, 2: 19, 3: 9}[axes]
    x = torch.randn(images, 3, *[side] * axes).double()
    model(x)
    shape, strides = (3, *[window] * axes), (3, *[max(1, window - 1)] * axes)
    expected = Occlusion(model).attribute(x, shape, strides, target=1)
    krypton = KryptonOcclusion(model)
    heat = krypton.heatmap(x, shape, strides, target=1)
    bound = 1e-6 * float(expected.abs().max())  # attributions are float32
    torch.testing.assert_close(heat.attribution(), expected, rtol=0, atol=bound)
    assert heat.report.path == "incremental"


@pytest.mark.parametrize("name", ["mean", "kept", "sum"])
def test_large_volumes_are_read_where_they_change(name: str) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1)]
    model = Pooled([*layers, nn.ReLU()], reductions(2)[name]).eval()
    x = torch.rand(2, 3, 64, 80)
    model(x)
    krypton = KryptonOcclusion(model)
    windows = ((3, 8, 8), (3, 5, 5))
    ((rows, totals),) = krypton.explain(x, *windows).plans
    assert [row.kind for row in rows if row.operator.split(".")[-1] in ("mean", "sum")] == ["local"]
    assert "aten.mean" not in totals and "aten.sum" not in totals
    heat = krypton.heatmap(x, *windows, target=1)
    exact = Occlusion(model.double()).attribute(x.double(), *windows, target=1)
    difference = (heat.attribution() - exact).abs().max()
    assert float(difference) <= 1e-4 * float(exact.abs().max())


def test_a_gate_of_a_large_volume() -> None:
    """Squeeze and excite: what the mean is made of goes on, and is read again."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 12, 3, padding=1)
            self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
            self.last, self.head = nn.Conv2d(12, 16, 3, stride=2), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            gate = self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
            made: Tensor = self.head(self.last(x * gate).relu().mean((2, 3)))
            return made

    torch.manual_seed(0)
    model, x = Gated().double().eval(), torch.randn(2, 3, 40, 36).double()
    windows = ((3, 6, 6), (3, 4, 4))
    expected = Occlusion(model).attribute(x, *windows, target=2)
    heat = KryptonOcclusion(model).heatmap(x, *windows, target=2)
    bound = 1e-6 * float(expected.abs().max())
    torch.testing.assert_close(heat.attribution(), expected, rtol=0, atol=bound)


def test_a_thresholded_patch_is_all_that_changes() -> None:
    """With a threshold, the mean is that of the base with the cropped patch laid over it."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(1, 1, 9, padding=4, bias=False).double()
    model = nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x = torch.randn(1, 1, 20, 20).double()
    krypton = KryptonOcclusion(model, projective_field_threshold=0.25)
    heat = krypton.heatmap(x, (1, 4, 4), (1, 4, 4), target=0)
    assert heat.report.threshold == 0.25
    with torch.no_grad():
        base = convolution(x)
        covered = x.clone()
        covered[..., 8:12, 8:12] = 0
        crop = base.clone()
        crop[..., 8:13, 8:13] = convolution(covered)[..., 8:13, 8:13]  # 5 of 20 cells
        crops = [crop]
        for top, left in ((7, 7), (7, 8), (8, 7)):  # the middle lies between cells
            other = base.clone()
            part = (..., slice(top, top + 5), slice(left, left + 5))
            other[part] = convolution(covered)[part]
            crops.append(other)
    found = float(heat.scores[0, 2, 2])
    assert min(abs(found - float(c.mean())) for c in crops) < 1e-12


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e30])
def test_what_a_window_covers_does_not_matter(value: float) -> None:
    """A cell that spoils every window's mean but those that cover it."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()]
    model = Pooled(layers, lambda x: x.mean((2, 3)))
    clean = torch.rand(1, 1, 32, 32)
    model(clean)
    spoilt = clean.clone()
    spoilt[..., 10, 10] = value
    covered = spoilt.clone()
    covered[..., 8:16, 8:16] = 0
    with torch.no_grad():
        expected = model(covered)[0, 1]
    heat = KryptonOcclusion(model, self_check=False).heatmap(spoilt, (1, 8, 8), (1, 8, 8), target=1)
    assert heat.report.path == "incremental"
    torch.testing.assert_close(heat.scores[0, 1, 1], expected, rtol=1e-5, atol=1e-6)
