"""`join_patches` against plain torch in float64, and the maps of networks that join channels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum.attr import Occlusion
from hypothesis import given
from hypothesis import strategies as st
from patches import (
    EPSILON,
    STORED,
    extents,
    naive_block,
    numbers,
    offsets,
    patches,
    sizes,
    stored,
    within,
)
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion
from captum_krypton._kernels import Patches, join_patches, panel_size
from captum_krypton._kernels.formats import is_channels_last


@given(data=st.data())
def test_equals_a_naive_loop(data: st.DataObject) -> None:
    noise, axes, dtype = numbers(data.draw), data.draw(st.integers(1, 3)), data.draw(STORED)
    windows, images = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 2))
    count = data.draw(st.integers(1, 4))
    sources: list[Patches] = []
    for _ in range(count):
        channels = data.draw(st.sampled_from([1, 3, 8, 11, 16, 19, 32]))
        made = patches(data.draw, noise, windows, images, channels, data.draw(st.booleans()), axes)
        made = made._replace(image=sources[0].image if sources else made.image)
        sources.append(stored(made, dtype))
    total = sum(source.base.shape[1] for source in sources)
    scale = shift = None
    if data.draw(st.booleans()):
        scale, shift = (torch.randn(total, generator=noise) for _ in range(2))
    low, high = data.draw(st.sampled_from([(-torch.inf, torch.inf), (0.0, torch.inf), (0.0, 0.5)]))
    size = data.draw(sizes(axes, 1, 9 if axes == 1 else 4))
    read_offset = offsets(noise, windows, axes)
    extent = extents(data.draw, noise, windows, size)
    actual = join_patches(
        sources, read_offset, scale, shift, size, low=low, high=high, output_extent=extent
    )
    expected = torch.cat([naive_block(source, read_offset, size) for source in sources], 1)
    if scale is not None and shift is not None:
        of_channels = (-1, *[1] * axes)
        expected = expected * scale.reshape(of_channels) + shift.reshape(of_channels)
    expected = expected.clamp(low, high)
    assert actual.shape == expected.shape
    assert actual.dtype == dtype
    assert is_channels_last(actual)
    assert within(actual, expected, 100 * EPSILON, dtype, extent)


def two() -> tuple[list[Patches], Tensor]:
    zeros = torch.zeros(2, 2, dtype=torch.int64)
    one = Patches(torch.ones(1, 3, 4, 4), torch.ones(2, 3, 2, 2), zeros[:, 0], zeros)
    return [one, one], zeros


@pytest.mark.skipif(panel_size() == 0, reason="needs the compiled kernels")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": torch.ones(6)}, "scale and shift come together"),
        ({"scale": torch.ones(5), "shift": torch.ones(5)}, "has 5 elements; expected 6"),
        ({"scale": torch.ones(6).double(), "shift": torch.ones(6)}, "another device, type"),
        ({"size": (1,)}, "size has 1 numbers; expected 2"),
        ({"read_offset": torch.zeros(3, 2, dtype=torch.int64)}, "rows for other windows"),
    ],
)
def test_bad_arguments(change: dict[str, Any], message: str) -> None:
    sources, zeros = two()
    call = {"read_offset": zeros, "scale": None, "shift": None, "size": (2, 2), **change}
    with pytest.raises(RuntimeError, match=message):
        join_patches(sources, **call)


def test_nan_stays() -> None:
    sources, zeros = two()
    sources[0].patch[1, 1, 0, 1] = torch.nan
    out = join_patches(sources, zeros, torch.ones(6), torch.ones(6), (3, 3), low=0.0)
    assert out[1, 1, 0, 1].isnan()
    assert out[1, 4, 0, 1].isnan()  # the same patch again
    assert out.isnan().sum() == 2


class Dense(nn.Module):
    """DenseNet's layers: each reads what all before it have made."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16 + 12 * i) for i in range(4))
        self.layers = nn.ModuleList(nn.Conv2d(16 + 12 * i, 12, 3, padding=1) for i in range(4))
        for norm in self.norms:
            nn.init.uniform_(norm.running_mean, -0.5, 0.5)
            nn.init.uniform_(norm.running_var, 0.5, 2)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        made = [self.stem(x)]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            made.append(layer(F.relu(norm(torch.cat(made, 1)))))
        return self.head(torch.cat(made, 1).mean((2, 3)))


def test_maps_are_captums() -> None:
    torch.manual_seed(0)
    network = Dense().eval()
    x = torch.randn(2, 3, 40, 44)
    windows: dict[str, Any] = {"sliding_window_shapes": (3, 8, 8), "strides": (3, 4, 4)}
    krypton = KryptonOcclusion(network)
    expected = Occlusion(network).attribute(x, target=1, perturbations_per_eval=8, **windows)
    torch.testing.assert_close(krypton.attribute(x, target=1, **windows), expected)
    plan = str(krypton.explain(x, target=1, **windows))
    assert "cat+batch_norm+clamp" in plan
    assert "native_batch_norm" not in plan
    if panel_size():
        assert "joining" in plan
