"""`convolve_patches` and `convolution_block` against plain torch in float64."""

from __future__ import annotations

import functools
import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import Draw
from patches import (
    EPSILON,
    STORED,
    Size,
    endings,
    extents,
    naive_taps,
    numbers,
    offsets,
    patches,
    sizes,
    stored,
    within,
)
from torch import Tensor

from captum_krypton._kernels import (
    ACTIVATIONS,
    Patches,
    convolve_patches,
    in_channels_last,
    pack_weight,
    panel_size,
    reference,
)
from captum_krypton._kernels.formats import is_channels_last


@dataclass
class Case:
    """The arguments of one call; `winograd` and `groups` as in `pack_weight`."""

    source: Patches
    read_offset: Tensor
    weight: Tensor
    bias: Tensor | None
    size: Size
    stride: Size
    dilation: Size
    residual: Patches | None
    output_offset: Tensor
    low: float
    high: float
    winograd: bool
    groups: int
    extent: Tensor | None = None
    activation: str = "none"
    slope: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.source.base.dtype

    def within(self, actual: Tensor, expected: Tensor, roundings: int = 4) -> bool:
        """Whether float32's rounding and one of the stored type are all that differs."""
        limit = (10 if self.winograd else 1) * roundings * EPSILON * self.magnitude()
        return within(actual, expected, limit, self.dtype, self.extent)

    def run(self) -> Tensor:
        return convolve_patches(
            self.source,
            self.read_offset,
            pack_weight(self.weight, self.winograd, groups=self.groups),
            self.bias,
            self.size,
            stride=self.stride,
            dilation=self.dilation,
            residual=self.residual,
            output_offset=None if self.residual is None else self.output_offset,
            low=self.low,
            high=self.high,
            output_extent=self.extent,
            activation=self.activation,
            slope=self.slope,
        )

    def expected(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The reference, in float64."""

        def cast(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(dtype)

        def parts(patches: Patches | None) -> tuple[Any, Any, Any, Any]:
            if patches is None:
                return None, None, None, None
            base, patch = cast(patches.base), cast(patches.patch)
            return base, patch, patches.patch_offset, patches.patch_extent

        base, patch, offset, extent = parts(self.source)
        weight = cast(self.weight)
        assert weight is not None
        return reference.convolve_patches(
            base,
            patch,
            self.source.image,
            offset,
            extent,
            self.read_offset,
            weight,
            weight,
            cast(self.bias),
            self.size,
            self.extent,
            self.stride,
            self.dilation,
            self.winograd,
            *parts(self.residual),
            self.output_offset,
            self.low,
            self.high,
            ACTIVATIONS.index(self.activation),
            slope=cast(self.slope),
        )

    def by_loop(self) -> Tensor:
        """The convolution alone, cell by cell, in float64."""
        windows, groups = len(self.read_offset), self.groups
        out = torch.zeros(windows, len(self.weight), *self.size, dtype=torch.float64)
        weight = self.weight.double().flatten(2).unflatten(0, (groups, -1))
        geometry = (tuple(self.weight.shape[2:]), self.stride, self.dilation)
        for cell, taps in naive_taps(self.source, self.read_offset, self.size, *geometry):
            read = taps.flatten(2).unflatten(1, (groups, -1))
            out[(..., *cell)] = torch.einsum("bgct,gkct->bgk", read, weight).flatten(1)
        return out

    def magnitude(self) -> float:
        """A bound on the numbers that are summed: errors are in proportion to it."""
        parts = (self.source.base, self.source.patch)
        largest = max((t.abs().max().item() for t in parts if t.numel()), default=0.0)
        return 1 + largest * self.weight.abs().flatten(1).sum(1).max().item()


MOST = {1: 17, 2: 11, 3: 5}  # cells of an output along an axis, by the window axes


@st.composite
def cases(draw: Draw) -> Case:
    """Geometries of every kind; what a plan would never ask is as good a test."""
    noise, axes, dtype = numbers(draw), draw(st.integers(1, 3)), draw(STORED)
    kinds = ["direct", "direct", "narrow", "grouped", "depthwise", "winograd", "winograd"]
    kind = draw(st.sampled_from(kinds))
    windows, images = draw(st.integers(0, 5)), draw(st.integers(1, 3))
    channels = draw(st.sampled_from([1, 2, 3, 5, 8, 11, 16, 19, 32]))
    out_channels = draw(st.integers(1, 4 if kind == "narrow" else 40))
    out_channels = channels if kind == "depthwise" else out_channels
    groups = channels if kind == "depthwise" else 1
    if kind == "grouped":
        groups = draw(st.integers(2, 5))
        channels, out_channels = groups * draw(st.integers(1, 9)), groups * draw(st.integers(1, 20))
    stride = dilation = (1,) * axes
    if kind == "winograd":
        taps = sizes(min(axes, 2), 1, 9).filter(lambda all: max(all) > 1)
        flat = st.permutations([1, draw(st.integers(2, 9))]).map(tuple)
        kernel = draw(taps if axes == 1 else st.just((3, 3)) | taps | flat)
        kernel = (draw(st.integers(1, 4)), *kernel) if axes == 3 else kernel
        channels, out_channels = max(channels, 16), max(out_channels, 16)
    else:
        kernel = (*draw(sizes(axes - 1, 1, 5)), draw(st.sampled_from([1, 2, 3, 4, 5, 7])))
        stride, dilation = draw(sizes(axes, 1, 3)), draw(sizes(axes, 1, 3))
    source = patches(draw, noise, windows, images, channels, draw(st.booleans()), axes)
    source = stored(source, dtype)
    residual = None
    if draw(st.booleans()):
        residual = patches(draw, noise, windows, images, out_channels, draw(st.booleans()), axes)
        residual = stored(residual, dtype)._replace(image=source.image)
    weight = torch.randn(out_channels, channels // groups, *kernel, generator=noise)
    bounds = draw(
        st.sampled_from([(-torch.inf, torch.inf), (0.0, torch.inf), (0.0, 6.0), (-1.0, 1.0)])
    )
    size = draw(sizes(axes, 1, MOST[axes]))
    activation, slope = draw(endings(noise, out_channels))
    return Case(
        source,
        offsets(noise, windows, axes, -6),
        weight,
        torch.randn(out_channels, generator=noise) if draw(st.booleans()) else None,
        size,
        stride,
        dilation,
        residual,
        offsets(noise, windows, axes, -3, 9),
        *bounds,
        kind == "winograd",
        groups,
        extents(draw, noise, windows, size),
        activation,
        slope,
    )


@given(case=cases())
def test_equals_the_reference(case: Case) -> None:
    actual, expected = case.run(), case.expected()
    assert actual.shape == expected.shape
    assert actual.dtype == case.dtype
    assert is_channels_last(actual)
    assert case.within(actual, expected)


@settings(max_examples=40)
@given(case=cases())
def test_equals_a_naive_loop(case: Case) -> None:
    bounds = {"low": -torch.inf, "high": torch.inf, "activation": "none", "slope": None}
    bare = Case(**{**vars(case), "bias": None, "residual": None, **bounds})
    assert bare.within(bare.run(), bare.by_loop())


@pytest.mark.parametrize("kernel", [(1, 4), (4, 1), (1, 5), (1, 7), (7, 1), (1, 8), (8, 1), (9, 1)])
@pytest.mark.parametrize(("channels", "out_channels"), [(16, 19), (33, 40)])
def test_equals_the_reference_with_kernels_of_one_axis(
    kernel: tuple[int, int], channels: int, out_channels: int
) -> None:
    """Tiles of every length, of windows that reach from nothing to all of their patch."""
    noise = torch.Generator().manual_seed(0)
    windows = 12

    def random_patches(count: int) -> Patches:
        return Patches(
            torch.randn(2, count, 14, 15, generator=noise),
            torch.randn(windows, count, 8, 9, generator=noise),
            torch.arange(windows) % 2,
            torch.randint(-3, 9, (windows, 2), generator=noise),
        )

    case = Case(
        random_patches(channels),
        torch.randint(-6, 12, (windows, 2), generator=noise),
        torch.randn(out_channels, channels, *kernel, generator=noise),
        torch.randn(out_channels, generator=noise),
        (11, 11),
        (1, 1),
        (1, 1),
        random_patches(out_channels),
        torch.randint(-3, 9, (windows, 2), generator=noise),
        0.0,
        torch.inf,
        True,
        1,
        torch.stack([torch.arange(windows), torch.arange(windows).flip(0)], 1),
    )
    actual, expected = case.run(), case.expected()
    assert case.within(actual, expected)


def large(winograd: bool, windows: int = 7, channels: int = 24, out_channels: int = 40) -> Case:
    """A case with many blocks of work."""
    noise = torch.Generator().manual_seed(0)
    base = torch.randn(2, channels, 40, 36, generator=noise)
    source = Patches(
        base.contiguous(memory_format=torch.channels_last),
        torch.randn(windows, channels, 20, 18, generator=noise),
        torch.randint(2, (windows,), generator=noise),
        torch.randint(0, 18, (windows, 2), generator=noise),
    )
    return Case(
        source,
        source.patch_offset - 2,
        torch.randn(out_channels, channels, 3, 3, generator=noise),
        torch.randn(out_channels, generator=noise),
        (22, 20),
        (1, 1),
        (1, 1),
        None,
        source.patch_offset,
        0.0,
        torch.inf,
        winograd,
        1,
    )


@pytest.mark.parametrize(
    ("winograd", "channels", "out_channels"),
    [(False, 24, 40), (True, 24, 40), (False, 24, 1), (False, 19, 2), (False, 2, 2), (False, 3, 1)],
)
def test_results_do_not_depend_on_threads_or_batch(
    winograd: bool, channels: int, out_channels: int
) -> None:
    case = large(winograd, channels=channels, out_channels=out_channels)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = case.run()
        torch.set_num_threads(4)
        assert torch.equal(case.run(), single)
    finally:
        torch.set_num_threads(before)
    assert case.within(single, case.expected())
    base, patch, image, offset, _ = case.source
    source = Patches(base, patch[:2], image[:2], offset[:2])
    fewer = Case(**{**vars(case), "source": source, "read_offset": case.read_offset[:2]})
    assert torch.equal(fewer.run(), single[:2])


@pytest.mark.parametrize("winograd", [False, True])
def test_threads_of_the_caller(winograd: bool) -> None:
    """Calls from several threads at once do not share their memory."""
    case = large(winograd)
    alone = case.run()
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: case.run(), range(16)):
            assert torch.equal(result, alone)


@pytest.mark.parametrize("winograd", [False, True])
def test_opcheck(winograd: bool) -> None:
    panel_size()
    case = large(winograd)
    packed = pack_weight(case.weight, winograd)
    base, patch, image, offset, extent = case.source
    arguments = (
        *(base, patch, image, offset, extent, case.read_offset, packed.weight, packed.packed),
        *(case.bias, case.size, None, [1, 1], [1, 1], winograd),
        *(None, None, None, None, None, 0.0, 6.0),
    )
    torch.library.opcheck(torch.ops.captum_krypton.convolve_patches.default, arguments)


@pytest.mark.parametrize("winograd", [False, True])
def test_not_a_number_stays(winograd: bool) -> None:
    case = large(winograd)
    case.source.patch[3, 5, 9, 9] = torch.nan
    actual, expected = case.run(), case.expected()
    assert expected.isnan().any()
    assert torch.equal(actual.isnan(), expected.isnan())


@dataclass(frozen=True)
class Sums:
    """A layer as networks have them, of 64 channels, exactly and by a loop in float32."""

    x: Tensor
    weight: Tensor
    exact: Tensor
    loop: Tensor

    @staticmethod
    @functools.cache
    def of(kernel: Size) -> Sums:
        noise = torch.Generator().manual_seed(0)
        size = {1: (96,), 2: (24, 24), 3: (3, 12, 12)}[len(kernel)]
        x = torch.randn(2, 256, *size, generator=noise).relu()
        weight = torch.randn(64, 256, *kernel, generator=noise)
        weight /= math.sqrt(weight[0].numel())
        padded = F.pad(x, [taps // 2 for taps in reversed(kernel) for _ in range(2)])
        convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(kernel)]
        exact = convolve(padded.double(), weight.double())
        loop = torch.zeros(exact.shape)
        for tap in itertools.product(*map(range, kernel)):
            read = [slice(i, i + n) for i, n in zip(tap, exact.shape[2:], strict=True)]
            cells, factors = padded[(..., *read)], weight[(..., *tap)]
            for channel in range(256):
                factor = factors[:, channel].reshape(-1, *[1] * len(kernel))
                loop += factor * cells[:, channel, None]
        return Sums(x, weight, exact, loop)

    def error(self, winograd: bool, size: int) -> float:
        """Root mean square error of a corner, in multiples of the loop's."""
        zeros = torch.zeros(2, self.x.dim() - 2, dtype=torch.int64)
        source = Patches(in_channels_last(self.x), self.x, zeros[:, 0], zeros)
        first = zeros - torch.tensor(self.weight.shape[2:]) // 2
        packed = pack_weight(self.weight, winograd)
        sizes = [min(size, n) for n in self.exact.shape[2:]]
        made = convolve_patches(source, first, packed, None, sizes)
        corner = (..., *map(slice, sizes))
        own, other = (r[corner] - self.exact[corner] for r in (made, self.loop[corner]))
        return (own.square().mean() / other.square().mean()).sqrt().item()


KERNELS = [(3, 3), (1, 7), (7, 1), (4, 1), (5, 5), (3,), (7,), (3, 3, 3), (1, 3, 3)]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 24])
def test_winograds_error_is_a_small_multiple_of_a_loops(size: int, kernel: Size) -> None:
    """A sum that is made term by term is a yardstick that no library's choice of code moves."""
    assert Sums.of(kernel).error(True, size) <= (3 if size == 1 else 2)  # one: a few numbers only


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_direct_convolutions_error_is_half_of_a_loops(kernel: Size) -> None:
    """Long sums are made of short ones."""
    if panel_size() == 0:
        pytest.skip("needs the compiled kernels")
    assert Sums.of(kernel).error(False, 24) <= 0.5


@pytest.mark.skipif(panel_size() == 0, reason="needs the compiled kernels")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (2, 2, 2)}, "size has 3 numbers; expected 2"),
        ({"stride": (1,)}, "stride has 1 numbers; expected 2"),
        ({"dilation": (1, 1, 1)}, "dilation has 3 numbers; expected 2"),
        ({"bias": torch.zeros(3)}, "bias has 3 elements; expected 40"),
        ({"read_offset": torch.zeros(3, 2, dtype=torch.int64)}, "read_offset has 6 elements"),
        ({"stride": (2, 2)}, "stride 1"),
        ({"slope": torch.zeros(40)}, "slope comes with PReLU"),
        ({"slope": torch.zeros(4), "activation": "prelu"}, "slope has 4 elements; expected 40"),
        ({"extent": torch.full((7, 2), 23)}, "output_extent has 23 cells; expected 0 to 22"),
        ({"weight": torch.zeros(40, 5, 3, 3)}, "5 input channels; expected them to divide"),
    ],
)
def test_the_kernel_defends_itself(change: dict[str, Any], message: str) -> None:
    case = Case(**{**vars(large(True)), **change})
    with pytest.raises(RuntimeError, match=message):
        case.run()


def test_grouped_convolutions_have_no_winograd() -> None:
    with pytest.raises(ValueError, match="ungrouped convolutions; groups is 2"):
        pack_weight(torch.zeros(32, 16, 3, 3), winograd=True, groups=2)


@pytest.mark.skipif(panel_size() == 0, reason="needs the compiled kernels")
def test_the_kernel_refuses_grouped_winograd() -> None:
    """With as many packed numbers as it would ask for, were it to run."""
    case = large(True)
    base, patch, image, offset, _ = case.source
    weight = torch.zeros(48, base.shape[1] // 2, 3, 3)
    packed = torch.zeros(2 * 36 * base.shape[1] * panel_size() * -(-24 // panel_size()))
    with pytest.raises(RuntimeError, match="winograd is for ungrouped"):
        torch.ops.captum_krypton.convolve_patches(
            *(base, patch, image, offset, None, case.read_offset, weight, packed, None),
            *((4, 4), None, [1, 1], [1, 1], True, None, None, None, None, None, 0.0, 1.0),
        )


@pytest.mark.skipif(panel_size() == 0, reason="needs the compiled kernels")
def test_images_that_do_not_exist_are_refused() -> None:
    case = large(False)
    case.source.image[2] = 2
    with pytest.raises(RuntimeError, match="image names row 2 of base; expected 0 to 1"):
        case.run()
