"""Winograd's algorithm beside large values: a tile must not lose the digits of the others in it."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from layers import Draw
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion
from captum_krypton._kernels import (
    ACTIVATIONS,
    Patches,
    convolve_patches,
    gather_patches,
    pack_weight,
    panel_size,
    winograd_limit,
)
from captum_krypton._kernels.activation import activate

EPSILON = torch.finfo(torch.float32).eps
HUGE = (30.0, 1e3, 1e4, 1e6, 9999000.0, 1e8, 1e13, 1e20, 1e28)
NOT_FINITE = (math.inf, -math.inf, math.nan)

VOLUMES = {1: (40,), 2: (20, 18), 3: (6, 13, 11)}  # by the window axes
PATCHES = {1: (17,), 2: (9, 8), 3: (3, 7, 6)}

magnitudes = st.sampled_from(HUGE + NOT_FINITE)


class Call:
    """A convolution of windows of two images, with large values at drawn places."""

    def __init__(self, draw: Draw) -> None:
        noise = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
        windows, channels = 6, draw(st.sampled_from([16, 19, 32, 40]))
        planar = [(3, 3), (3, 3), (1, 7), (7, 1), (5, 5), (1, 3)]
        self.kernel = draw(st.sampled_from([*planar, (3,), (7,), (1, 3, 3), (3, 3, 3), (2, 1, 4)]))
        axes = len(self.kernel)
        volume, own = VOLUMES[axes], PATCHES[axes]
        self.scale = draw(st.sampled_from([1e-3, 1.0, 1e3]))
        base = torch.randn(2, channels, *volume, generator=noise) * self.scale
        patch = torch.randn(windows, channels, *own, generator=noise) * self.scale
        if draw(st.booleans()):
            base, patch = base.relu(), patch.relu()
        image = torch.arange(windows) % 2
        free = [n - p for n, p in zip(volume, own, strict=True)]
        columns = [torch.randint(0, n + 1, (windows,), generator=noise) for n in free]
        offset = torch.stack(columns, 1)
        self.quiet = Patches(base, patch, image, offset)
        self.source = Patches(base.clone(), patch.clone(), image, offset)
        for _ in range(draw(st.integers(1, 3))):
            self._put(draw, noise)
        self.read_offset = offset - torch.tensor(self.kernel) // 2
        self.size = draw(st.tuples(*(st.integers(1, n) for n in own)))
        out_channels = draw(st.sampled_from([16, 24, 35]))
        self.weight = torch.randn(out_channels, channels, *self.kernel, generator=noise)
        self.weight /= math.sqrt(self.weight[0].numel())
        self.bias = torch.randn(out_channels, generator=noise)
        self.activation = draw(st.sampled_from(ACTIVATIONS))
        self.slope: Tensor | None = None
        if self.activation == "prelu":
            self.slope = 2 * torch.rand(out_channels, generator=noise) - 1
        self.bounds = draw(st.sampled_from([(-math.inf, math.inf), (0.0, 6.0), (-1.0, 1.0)]))

    def _put(self, draw: Draw, noise: torch.Generator) -> None:
        """One large value: of one channel or all, in an image or a patch."""
        value = draw(magnitudes) * draw(st.sampled_from([1.0, -1.0]))
        if math.isfinite(value):
            value *= self.scale
        where = self.source.base if draw(st.booleans()) else self.source.patch
        row, *place = (int(torch.randint(n, (), generator=noise)) for n in where.shape)
        if draw(st.booleans()):
            where[(row, *place)] = value
        else:
            where[(row, slice(None), *place[1:])] = value

    def run(self, source: Patches | None = None, rows: slice = slice(None)) -> Tensor:
        packed = pack_weight(self.weight, winograd=True)
        assert packed.energy is not None
        base, patch, image, offset, _ = source or self.source
        return convolve_patches(
            Patches(base, patch[rows], image[rows], offset[rows]),
            self.read_offset[rows],
            packed,
            self.bias,
            self.size,
            low=self.bounds[0],
            high=self.bounds[1],
            activation=self.activation,
            slope=self.slope,
            limit=winograd_limit(base, packed.energy),
        )

    def expected(self) -> tuple[Tensor, Tensor]:
        """In float64, and the sum of what is added up for every output."""
        base, patch, image, offset, _ = self.source
        read = [n + k - 1 for n, k in zip(self.size, self.kernel, strict=True)]
        block = gather_patches(base, patch, image, offset, self.read_offset, read, 0.0).double()
        convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(self.kernel)]
        out = convolve(block, self.weight.double(), self.bias.double())
        summed = convolve(block.abs(), self.weight.abs().double())
        slope = None if self.slope is None else self.slope.double()
        return activate(out, self.activation, slope).clamp(*self.bounds), summed


@given(data=st.data())
def test_outputs_keep_their_digits(data: st.DataObject) -> None:
    """What an output does not read adds to its error at most as a few typical values would."""
    call = Call(data.draw)
    made, (expected, summed) = call.run(), call.expected()
    assert torch.equal(made.isnan(), expected.isnan())
    infinite = expected.isinf()
    assert torch.equal(made[infinite], expected[infinite].float())
    finite = expected.isfinite()
    allowed = EPSILON * (32 * (summed + 1) + 1000 * call.scale)
    assert ((made - expected).abs()[finite] <= allowed[finite]).all()


@given(data=st.data())
def test_no_window_changes_another(data: st.DataObject) -> None:
    call = Call(data.draw)
    whole = call.run()
    for window in range(len(whole)):
        alone = call.run(rows=slice(window, window + 1))
        torch.testing.assert_close(
            alone, whole[window : window + 1], rtol=0, atol=0, equal_nan=True
        )


@given(data=st.data())
def test_ordinary_values_stay_with_winograd(data: st.DataObject) -> None:
    """Bit for bit what no limit gives, up to values of a hundred times the typical one."""
    call = Call(data.draw)
    base, patch = call.quiet.base, call.quiet.patch
    for tensor in (base, patch):
        tensor[(0, 1, *[2] * len(call.kernel))] = 100 * call.scale
    limited = call.run(call.quiet)
    plain = convolve_patches(
        call.quiet,
        call.read_offset,
        pack_weight(call.weight, winograd=True),
        call.bias,
        call.size,
        low=call.bounds[0],
        high=call.bounds[1],
        activation=call.activation,
        slope=call.slope,
    )
    assert torch.equal(limited, plain)


def test_the_limit_of_an_image() -> None:
    energy = torch.tensor([1.0, 4.0])
    base = torch.ones(6, 2, 10, 10)
    base[1] = 0
    base[2] = math.nan
    base[3, :, 2:4, 2:4] = 1e20  # overflows when it is squared
    base[4, 1] = 0
    base[5, :, :9] = 1e5
    assert winograd_limit(base, energy).tolist() == pytest.approx(
        [32**2 * 5, 0, 0, 32**2 * 5, 32**2, 1024**2 * 5]
    )
    alone = torch.cat([winograd_limit(image[None], energy) for image in base])
    assert torch.equal(winograd_limit(base, energy), alone)


@pytest.mark.skipif(panel_size() == 0, reason="needs the compiled kernels")
@pytest.mark.parametrize(("energy", "limit"), [(torch.ones(3), None), (None, torch.ones(3))])
def test_the_kernel_defends_itself(energy: Tensor | None, limit: Tensor | None) -> None:
    base, patch = torch.zeros(1, 16, 8, 8), torch.zeros(1, 16, 4, 4)
    zeros = torch.zeros(1, 2, dtype=torch.int64)
    packed = pack_weight(torch.zeros(16, 16, 3, 3), winograd=True)
    with pytest.raises(RuntimeError, match=r"has 3 elements; expected (1|16), contiguous"):
        torch.ops.captum_krypton.convolve_patches(
            *(base, patch, zeros[:, 0], zeros, None, zeros, packed.weight, packed.packed, None),
            *((2, 2), None, [1, 1], [1, 1], True, None, None, None, None, None, 0.0, 1.0, 0),
            *(energy, limit),
        )


ACTIVATION_LAYERS = (nn.ReLU6, nn.Tanh, nn.Sigmoid, nn.Hardswish, nn.ReLU)
WINDOWS: dict[str, Any] = {"sliding_window_shapes": (3, 8, 8), "strides": (3, 6, 6), "target": None}


def network(kind: type[nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), kind()),
        *(nn.Conv2d(32, 32, 3, padding=1), kind(), nn.Conv2d(32, 32, 5, padding=2), kind()),
        *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 5)),
    ).eval()


@torch.no_grad()
def by_definition(
    model: nn.Module, x: Tensor, baseline: float | Tensor, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Outcomes of all windows, (windows, outputs), float64."""
    model, x = copy.deepcopy(model).to(dtype), x.to(dtype)
    counts = [math.ceil((n - 8) / 6) + 1 for n in x.shape[2:]]
    rows = []
    for top in range(counts[0]):
        for left in range(counts[1]):
            window = (..., slice(6 * top, 6 * top + 8), slice(6 * left, 6 * left + 8))
            occluded = x.clone()
            fill = baseline[window] if isinstance(baseline, Tensor) else baseline
            occluded[window] = torch.as_tensor(fill, dtype=dtype)
            rows.append(model(occluded)[0].double())
    return torch.stack(rows)


@given(data=st.data())
def test_maps_with_large_values(data: st.DataObject) -> None:
    """A hot pixel, a region of fill values, or a large baseline, before every activation."""
    kind = data.draw(st.sampled_from(ACTIVATION_LAYERS))
    seed = data.draw(st.integers(0, 2**16))
    value = data.draw(st.sampled_from(HUGE)) * data.draw(st.sampled_from([1.0, -1.0]))
    model = network(kind, seed)
    x = torch.rand(1, 3, 36, 33)
    top, left = data.draw(st.tuples(st.integers(0, 35), st.integers(0, 32)))
    baseline: float | Tensor = 0.5
    match data.draw(st.sampled_from(["pixel", "region", "baseline", "baselines"])):
        case "pixel":
            x[0, :, top, left] = value
        case "region":
            x[0, :, top // 2 : top // 2 + 14, left // 2 : left // 2 + 16] = value
        case "baseline":
            baseline = value
        case "baselines":
            baseline = torch.rand_like(x)
            baseline[0, 1, top, left] = value
    heat = KryptonOcclusion(model, self_check=False).heatmap(x, baselines=baseline, **WINDOWS)
    assert heat.report.path == "incremental"
    made = heat.scores[0].flatten(1).T.double()
    expected = by_definition(model, x, baseline)
    # A sum of large numbers that is small by chance has lost its digits in any float32.
    chance = (by_definition(model, x, baseline, torch.float32) - expected).abs().max()
    assert (made - expected).abs().max() <= 1e-5 * expected.abs().max() + 4 * chance


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_cell_that_is_not_finite_reaches_only_who_reads_it(value: float) -> None:
    """Each cell's outcome is a row of the map: those that never read the cell are numbers."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.MaxPool2d(8),
        nn.Flatten(),
    ).eval()
    x = torch.rand(1, 3, 32, 32)
    x[0, 1, 20, 13] = value
    heat = KryptonOcclusion(model, self_check=False).heatmap(x, baselines=0.5, **WINDOWS)
    made = heat.scores[0].flatten(1).T.double()
    expected = by_definition(model, x, 0.5)
    assert expected.isfinite().any()
    assert torch.equal(made.isfinite(), expected.isfinite())
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
