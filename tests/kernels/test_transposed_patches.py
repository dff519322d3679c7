"""`transposed_patches` against PyTorch's transposed convolution, and a loop, in float64."""

from __future__ import annotations

import itertools
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
    naive_block,
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
    pack_transposed,
    panel_size,
    reference,
    transposed_patches,
)
from captum_krypton._kernels.formats import is_channels_last

TRANSPOSED: dict[int, Any] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


@dataclass
class Case:
    """The arguments of one call; what is not finished has neither bias nor bounds."""

    source: Patches
    output_offset: Tensor
    weight: Tensor
    size: Size
    stride: Size
    padding: Size
    dilation: Size
    groups: int
    bias: Tensor | None = None
    residual: Patches | None = None
    low: float = -torch.inf
    high: float = torch.inf
    extent: Tensor | None = None
    activation: str = "none"
    slope: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.source.base.dtype

    def within(self, actual: Tensor, expected: Tensor) -> bool:
        """Whether float32's rounding and one of the stored type are all that differs."""
        return within(actual, expected, 4 * EPSILON * self.magnitude(), self.dtype, self.extent)

    def run(self) -> Tensor:
        return transposed_patches(
            self.source,
            self.output_offset,
            pack_transposed(self.weight, self.stride, self.dilation, self.groups),
            self.bias,
            self.size,
            padding=self.padding,
            residual=self.residual,
            low=self.low,
            high=self.high,
            output_extent=self.extent,
            activation=self.activation,
            slope=self.slope,
        )

    def expected(self) -> Tensor:
        """The reference, in float64."""

        def parts(patches: Patches | None) -> tuple[Any, Any, Any, Any]:
            if patches is None:
                return None, None, None, None
            base, patch = patches.base.double(), patches.patch.double()
            return base, patch, patches.patch_offset, patches.patch_extent

        base, patch, offset, extent = parts(self.source)
        weight = self.weight.double()
        return reference.transposed_patches(
            base,
            patch,
            self.source.image,
            offset,
            extent,
            self.output_offset,
            weight,
            weight,
            None if self.bias is None else self.bias.double(),
            self.size,
            self.extent,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            *parts(self.residual),
            self.low,
            self.high,
            ACTIVATIONS.index(self.activation),
            None if self.slope is None else self.slope.double(),
        )

    def by_loop(self) -> Tensor:
        """The transposed convolution alone, tap by tap of every output cell, in float64."""
        windows, kernel = len(self.output_offset), self.weight.shape[2:]
        geometry = list(zip(kernel, self.stride, self.padding, self.dilation, strict=True))
        reach = [(k - 1) * d for k, _, _, d in geometry]
        first = torch.stack(
            [
                (self.output_offset[:, axis] + p - reach[axis]) // s
                for axis, (_, s, p, _) in enumerate(geometry)
            ],
            1,
        )
        read = tuple(
            (n + r) // s + 2 for n, r, s in zip(self.size, reach, self.stride, strict=True)
        )
        block = naive_block(self.source, first, read).unflatten(1, (self.groups, -1))
        weight = self.weight.double().unflatten(0, (self.groups, -1))
        out = torch.zeros(windows, self.groups, weight.shape[2], *self.size, dtype=torch.float64)
        for window in range(windows):
            offset, start = self.output_offset[window].tolist(), first[window].tolist()
            for cell in itertools.product(*map(range, self.size)):
                for tap in itertools.product(*map(range, kernel)):
                    at = []
                    for axis, (_, s, p, d) in enumerate(geometry):
                        whole, rest = divmod(offset[axis] + cell[axis] + p - tap[axis] * d, s)
                        at += [whole - start[axis]] * (rest == 0)
                    if len(at) == len(kernel):
                        number = (window, ..., *cell)
                        taps = weight[(..., *tap)]
                        out[number] += torch.einsum("gc,gck->gk", block[(window, ..., *at)], taps)
        return out.flatten(1, 2)

    def magnitude(self) -> float:
        """A bound on the numbers that are summed: errors are in proportion to it."""
        largest = max((t.abs().max().item() for t in self.source[:2] if t.numel()), default=0.0)
        return 1 + largest * self.weight.abs().sum().item()


MOST = {1: 17, 2: 9, 3: 5}  # cells of an output along an axis, by the window axes


@st.composite
def cases(draw: Draw) -> Case:
    """Geometries of every kind: phases without a tap, and cells that no tap reaches, too."""
    noise, axes, dtype = numbers(draw), draw(st.integers(1, 3)), draw(STORED)
    windows, images = draw(st.integers(0, 4)), draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 5]))
    depthwise = groups > 1 and draw(st.booleans())
    channels = groups * (1 if depthwise else draw(st.sampled_from([1, 2, 3, 8, 19])))
    each = 1 if depthwise else draw(st.integers(1, draw(st.sampled_from([4, 40]))))
    kernel, stride = draw(sizes(axes, 1, 4)), draw(sizes(axes, 1, 4))
    dilation, padding = draw(sizes(axes, 1, 3)), draw(sizes(axes, 0, 4))
    last = draw(st.booleans())
    source = stored(patches(draw, noise, windows, images, channels, last, axes), dtype)
    residual = None
    if draw(st.booleans()):
        residual = patches(draw, noise, windows, images, groups * each, last, axes)
        residual = stored(residual, dtype)._replace(image=source.image)
    bounds = draw(st.sampled_from([(-torch.inf, torch.inf), (0.0, 6.0), (-1.0, 1.0)]))
    size = draw(sizes(axes, 1, MOST[axes]))
    activation, slope = draw(endings(noise, groups * each))
    return Case(
        source,
        offsets(noise, windows, axes, -6, 20),
        torch.randn(channels, each, *kernel, generator=noise),
        size,
        stride,
        padding,
        dilation,
        groups,
        torch.randn(groups * each, generator=noise) if draw(st.booleans()) else None,
        residual,
        *bounds,
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


@settings(max_examples=30)
@given(case=cases())
def test_equals_a_naive_loop(case: Case) -> None:
    names = ("source", "output_offset", "weight", "size", "stride", "padding", "dilation", "groups")
    bare = Case(**{name: getattr(case, name) for name in names})
    assert bare.within(bare.run(), bare.by_loop())


@given(data=st.data())
def test_volumes_are_pytorchs(data: st.DataObject) -> None:
    """A patch that is the whole output, of an input without a patch."""
    noise, axes = numbers(data.draw), data.draw(st.integers(1, 3))
    kernel, stride = data.draw(sizes(axes, 1, 4)), data.draw(sizes(axes, 1, 3))
    dilation = data.draw(sizes(axes, 1, 3))
    spans = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    padding = tuple(data.draw(st.integers(0, span)) for span in spans)
    most = [max(s, d) - 1 for s, d in zip(stride, dilation, strict=True)]
    extra = tuple(data.draw(st.integers(0, n)) for n in most)
    groups = data.draw(st.sampled_from([1, 2, 3]))
    channels, each = groups * data.draw(st.integers(1, 9)), data.draw(st.integers(1, 20))
    volume = tuple(data.draw(st.integers(3, 8)) + span for span in spans)
    x = torch.randn(2, channels, *volume, generator=noise)
    weight = torch.randn(channels, each, *kernel, generator=noise)
    bias = torch.randn(groups * each, generator=noise)
    wide = (tensor.double() for tensor in (x, weight, bias))
    expected = TRANSPOSED[axes](*wide, stride, padding, extra, groups, dilation)
    zeros = torch.zeros(2, axes, dtype=torch.int64)
    source = Patches(x, x[(..., *[slice(0)] * axes)], torch.arange(2), zeros)
    packed = pack_transposed(weight, stride, dilation, groups)
    made = transposed_patches(source, zeros, packed, bias, expected.shape[2:], padding=padding)
    limit = 4 * EPSILON * (1 + x.abs().max() * weight.abs().sum())
    assert ((made - expected).abs() <= limit).all()


def large() -> Case:
    """A case with many blocks of work."""
    noise = torch.Generator().manual_seed(0)
    source = Patches(
        torch.randn(2, 24, 20, 18, generator=noise).contiguous(memory_format=torch.channels_last),
        torch.randn(7, 24, 11, 10, generator=noise),
        torch.randint(2, (7,), generator=noise),
        torch.randint(0, 9, (7, 2), generator=noise),
    )
    weight = torch.randn(24, 40, 3, 3, generator=noise)
    bias = torch.randn(40, generator=noise)
    ones, twos = (1, 1), (2, 2)
    return Case(source, 2 * source.patch_offset - 3, weight, (23, 20), twos, ones, ones, 1, bias)


def test_results_do_not_depend_on_threads() -> None:
    case = large()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = case.run()
        torch.set_num_threads(4)
        assert torch.equal(case.run(), single)
    finally:
        torch.set_num_threads(before)


def test_opcheck() -> None:
    panel_size()
    case = large()
    packed = pack_transposed(case.weight, case.stride, case.dilation)
    arguments = (
        *(*case.source, case.output_offset, packed.weight, packed.packed, case.bias),
        *(case.size, None, [2, 2], [1, 1], [1, 1], 1, None, None, None, None, 0.0, 6.0),
    )
    torch.library.opcheck(torch.ops.captum_krypton.transposed_patches.default, arguments)


def test_not_a_number_stays() -> None:
    case = large()
    case.source.patch[3, 5, 6, 6] = torch.nan
    actual, expected = case.run(), case.expected()
    assert expected.isnan().any()
    assert torch.equal(actual.isnan(), expected.isnan())


@pytest.mark.skipif(panel_size() == 0, reason="needs the compiled kernels")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (2, 2, 2)}, "size has 3 numbers; expected 2"),
        ({"padding": (1,)}, "padding has 1 numbers; expected 2"),
        ({"bias": torch.zeros(3)}, "bias has 3 elements; expected 40"),
        (
            {"residual": stored(large().source, torch.float16)},
            "residual_base has another type than base",
        ),
        ({"slope": torch.zeros(40)}, "slope comes with PReLU"),
        ({"activation": "prelu"}, "slope comes with PReLU"),
        ({"output_offset": torch.zeros(3, 2, dtype=torch.int64)}, "read_offset has 6 elements"),
        ({"extent": torch.full((7, 2), 24)}, "output_extent has 24 cells; expected 0 to 23"),
        ({"weight": torch.zeros(40, 5, 3, 3)}, "weight has 40 input channels; expected 24"),
    ],
)
def test_the_kernel_defends_itself(change: dict[str, Any], message: str) -> None:
    case = Case(**{**vars(large()), **change})
    with pytest.raises(RuntimeError, match=message):
        case.run()


@pytest.mark.skipif(panel_size() == 0, reason="needs the compiled kernels")
def test_a_stride_of_nothing_is_refused() -> None:
    case = large()
    packed = pack_transposed(case.weight, (2, 2), (1, 1))
    with pytest.raises(RuntimeError, match="stride or dilation is not positive"):
        torch.ops.captum_krypton.transposed_patches(
            *(*case.source, case.output_offset, packed.weight, packed.packed, None),
            *((4, 4), None, [2, 0], [1, 1], [1, 1], 1, None, None, None, None, 0.0, 1.0),
        )
