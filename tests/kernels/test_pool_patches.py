"""`pool_patches` against plain torch in float64."""

from __future__ import annotations

from typing import Any

import cuda_on_host
import pytest
import torch
from captum.attr import Occlusion
from hypothesis import given, settings
from hypothesis import strategies as st
from patches import EPSILON, Size, counted, extents, naive_taps, numbers, offsets, patches, sizes
from small_networks import POOLINGS, pooling_network
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion
from captum_krypton._kernels import PATCH_TYPES, Patches, panel_size, pool_patches, reference
from captum_krypton._kernels.formats import is_channels_last
from captum_krypton._kernels.rates import GUESSED_OF_GPUS
from captum_krypton._operators import Means
from captum_krypton._run.captured_model import CapturedModel


def for_cuda(
    source: Patches,
    read_offset: Tensor,
    size: Size,
    kernel: Size,
    *,
    stride: Size,
    dilation: Size = (1, 1),
    maximum: bool,
    divisor: float = 1.0,
    output_extent: Tensor | None = None,
) -> Tensor:
    """The kernel of a GPU, its threads one after another."""
    if not cuda_on_host.load():
        pytest.skip("needs a C++ compiler")
    rest = (size, output_extent, kernel, stride, dilation, maximum, divisor)
    made: Tensor = torch.ops.captum_krypton_on_host.pool_patches(*source, read_offset, *rest)
    return made


backends = pytest.mark.parametrize("run", [pool_patches, for_cuda])


@backends
@pytest.mark.parametrize("maximum", [True, False])
@given(data=st.data())
def test_equals_the_reference(run: Any, maximum: bool, data: st.DataObject) -> None:
    noise = numbers(data.draw)
    axes = 2 if run is for_cuda else data.draw(st.integers(1, 3))
    windows, images = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 3))
    channels = data.draw(st.sampled_from([1, 3, 8, 11, 16, 19]))
    source = patches(data.draw, noise, windows, images, channels, data.draw(st.booleans()), axes)
    read_offset = offsets(noise, windows, axes, -6)
    size = data.draw(sizes(axes, 1, {1: 15, 2: 9, 3: 5}[axes]))
    kernel = data.draw(sizes(axes, 1, 7 if axes == 1 else 4))
    stride, dilation = data.draw(sizes(axes, 1, 3)), data.draw(sizes(axes, 1, 3))
    divisor = data.draw(st.integers(1, 9))
    extent = extents(data.draw, noise, windows, size)
    if run is for_cuda:
        dtype = data.draw(st.sampled_from(PATCH_TYPES))
        source = source._replace(base=source.base.to(dtype), patch=source.patch.to(dtype))
    actual = run(
        source,
        read_offset,
        size,
        kernel,
        stride=stride,
        dilation=dilation,
        maximum=maximum,
        divisor=divisor,
        output_extent=extent,
    )
    base, patch = source.base.double(), source.patch.double()
    expected = reference.pool_patches(
        base,
        patch,
        source.image,
        source.patch_offset,
        source.patch_extent,
        read_offset,
        size,
        extent,
        kernel,
        stride,
        dilation,
        maximum,
        divisor,
    )
    assert actual.shape == expected.shape
    assert actual.dtype == source.base.dtype
    assert is_channels_last(actual)
    actual, expected = counted(actual, extent), counted(expected, extent)
    if maximum:
        assert torch.equal(actual.double(), expected)
    else:
        error = 100 * EPSILON + torch.finfo(actual.dtype).eps * expected.abs()
        assert ((actual - expected).abs() <= error).all()


@pytest.mark.parametrize("maximum", [True, False])
@settings(max_examples=40)
@given(data=st.data())
def test_equals_a_naive_loop(maximum: bool, data: st.DataObject) -> None:
    noise, axes = numbers(data.draw), data.draw(st.integers(1, 3))
    windows, channels = data.draw(st.integers(0, 3)), data.draw(st.sampled_from([1, 8, 19]))
    source = patches(data.draw, noise, windows, 2, channels, data.draw(st.booleans()), axes)
    read_offset, size = offsets(noise, windows, axes, -6), data.draw(sizes(axes, 1, 4))
    geometry = [data.draw(sizes(axes, 1, 3)) for _ in range(3)]
    kernel, stride, dilation = geometry
    actual = pool_patches(
        source, read_offset, size, kernel, stride=stride, dilation=dilation, maximum=maximum
    )
    fill = -torch.inf if maximum else 0.0
    for cell, taps in naive_taps(source, read_offset, size, *geometry, fill):
        read = taps.flatten(2)
        expected = read.amax(2) if maximum else read.sum(2)
        error = 100 * EPSILON + 0 * expected.nan_to_num(0, 0, 0)
        own = actual[(..., *cell)].double()
        assert ((own == expected) | ((own - expected).abs() <= error)).all()


@backends
def test_not_a_number_is_the_largest(run: Any) -> None:
    base = torch.zeros(1, 9, 4, 4)
    base[0, 8, 1, 1] = torch.nan
    base[0, 2, 2, 2] = torch.nan
    index = torch.zeros(1, 2, dtype=torch.int64)
    source = Patches(base, base[:, :, :0, :0], index[:, 0], index)
    pooled = run(source, index, (2, 2), (2, 2), stride=(2, 2), maximum=True)
    assert pooled.isnan().nonzero().tolist() == [[0, 2, 1, 1], [0, 8, 0, 0]]


@pytest.mark.parametrize("pooling", POOLINGS, ids=str)
@pytest.mark.parametrize("window", [3, 14])
def test_maps_that_pool_in_place_as_on_a_gpu(
    pooling: nn.Module, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All operators are PyTorch's but for the pooling, on patches and on whole volumes."""
    if panel_size() == 0:
        pytest.skip("the compiled kernels are not here")
    means = Means(GUESSED_OF_GPUS, cpu_kernels=False, winograd=False, gpu_pooling=True)
    monkeypatch.setattr(CapturedModel, "_means", lambda self, device, winograd: means)
    model, x = pooling_network(pooling), torch.randn(2, 3, 16, 16)
    windows: Any = {"sliding_window_shapes": (3, window, window), "strides": (3, 1, 1), "target": 1}
    expected = Occlusion(model).attribute(x, **windows)
    explainer = KryptonOcclusion(model)
    assert "pooling" in str(explainer.explain(x, **windows))
    got = explainer.attribute(x, **windows)
    assert ((got - expected).abs() <= 1e-5 * expected.abs().max()).all()


def test_opcheck() -> None:
    panel_size()
    base, patch = torch.rand(1, 3, 6, 6), torch.rand(2, 3, 2, 2)
    index = torch.zeros(2, 2, dtype=torch.int64)
    arguments = (base, patch, index[:, 0], index, None, index, [2, 2], None, [2, 2], [2, 2], [1, 1])
    operator = torch.ops.captum_krypton.pool_patches.default
    torch.library.opcheck(operator, (*arguments, True, 1.0))
