"""`gather_patches`, compiled, for CUDA and reference, against a loop over single cells."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cuda_on_host
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from captum_krypton._kernels import backend_info, gather_patches
from captum_krypton._kernels import reference as references

CSRC = Path(__file__).resolve().parent.parent / "csrc"
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
# What -inf is, written out once more; None where the dtype has no lowest value.
LOWEST = {
    torch.float16: float("-inf"),
    torch.bfloat16: float("-inf"),
    torch.float32: float("-inf"),
    torch.float64: float("-inf"),
    torch.int8: -(2**7),
    torch.int16: -(2**15),
    torch.int32: -(2**31),
    torch.int64: -(2**63),
    torch.uint8: 0,
    torch.uint16: 0,
    torch.uint32: 0,
    torch.uint64: 0,
    torch.bool: False,
    torch.complex64: None,
    torch.complex128: None,
}


@dataclass(frozen=True)
class Case:
    base: Tensor
    patch: Tensor
    image: Tensor
    patch_offset: Tensor
    read_offset: Tensor
    read_size: tuple[int, ...]
    fill: float
    patch_extent: Tensor | None = None

    def cells(self, window: int) -> list[int]:
        """How many cells of the window's patch count, along each axis."""
        if self.patch_extent is None:
            return list(self.patch.shape[2:])
        return self.patch_extent[window].tolist()

    def arguments(self) -> tuple[Any, ...]:
        return (
            self.base,
            self.patch,
            self.image,
            self.patch_offset,
            self.read_offset,
            self.read_size,
            self.fill,
            self.patch_extent,
        )


def naive(case: Case) -> Tensor:
    """Algorithm 1, one cell at a time."""
    base, patch = case.base, case.patch
    windows, channels, rank = patch.shape[0], base.shape[1], base.dim() - 2
    padding = LOWEST[base.dtype] if case.fill else 0
    result = torch.full((windows, channels, *case.read_size), padding, dtype=base.dtype)
    for window, cell in itertools.product(
        range(windows), itertools.product(*map(range, case.read_size))
    ):
        at = [int(case.read_offset[window, axis]) + cell[axis] for axis in range(rank)]
        at_patch = [at[axis] - int(case.patch_offset[window, axis]) for axis in range(rank)]
        if not all(0 <= at[axis] < base.shape[axis + 2] for axis in range(rank)):
            continue
        covered = all(0 <= at_patch[axis] < case.cells(window)[axis] for axis in range(rank))
        for channel in range(channels):
            result[(window, channel, *cell)] = (
                patch[(window, channel, *at_patch)]
                if covered
                else base[(int(case.image[window]), channel, *at)]
            )
    return result


def through_dispatcher(case: Case) -> Tensor:
    if backend_info().name != "cpp":
        pytest.skip("the compiled kernels are not here")
    return gather_patches(*case.arguments())


def reference(case: Case) -> Tensor:
    return references.gather_patches(*case.arguments())


def for_cuda(case: Case) -> Tensor:
    """The kernel of a GPU, its threads one after another."""
    if not cuda_on_host.load():
        pytest.skip("needs a C++ compiler")
    return torch.ops.captum_krypton_on_host.gather_patches(*case.arguments())


backends = pytest.mark.parametrize("run", [through_dispatcher, reference, for_cuda])


def bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, so that a NaN equals itself and -0.0 is not 0.0."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int, layout: str) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_complex or dtype.is_floating_point:
        tensor = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        tensor.view(-1)[::7] = float("nan")
        tensor.view(-1)[3::7] = -0.0
    else:
        tensor = torch.randint(-(2**40), 2**40, shape, generator=generator).to(dtype)
    if layout == "channels last" and len(shape) > 3:
        return tensor.contiguous(memory_format=CHANNELS_LAST[len(shape) - 2])
    if layout == "reversed axes":
        return (
            tensor.permute(*reversed(range(len(shape))))
            .contiguous()
            .permute(*reversed(range(len(shape))))
        )
    if layout == "every other":
        spread = torch.zeros(*shape[:-1], shape[-1] * 2, dtype=dtype)
        spread[..., ::2] = tensor
        return spread[..., ::2]
    if layout == "some channels":
        spread = torch.zeros(shape[0], shape[1] + 2, *shape[2:], dtype=dtype)
        spread[:, 1:-1] = tensor
        if len(shape) > 3:
            spread = spread.contiguous(memory_format=CHANNELS_LAST[len(shape) - 2])
        return spread[:, 1:-1]
    return tensor


LAYOUTS = ["contiguous", "channels last", "some channels", "every other", "reversed axes"]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rank = draw(st.integers(1, 3))
    largest = {1: 12, 2: 6, 3: 4}[rank]
    axes = st.lists(st.integers(1, largest), min_size=rank, max_size=rank)
    axes_or_empty = st.lists(st.integers(0, largest + 2), min_size=rank, max_size=rank)
    dtype = draw(st.sampled_from(list(LOWEST)))
    images, windows, channels = (
        draw(st.integers(1, 3)),
        draw(st.integers(0, 4)),
        draw(st.sampled_from([0, 1, 2, 3, 5, 8])),
    )
    seed = draw(st.integers(0, 2**16))
    base = values((images, channels, *draw(axes)), dtype, seed, draw(st.sampled_from(LAYOUTS)))
    patch = values(
        (windows, channels, *draw(axes_or_empty)), dtype, seed + 1, draw(st.sampled_from(LAYOUTS))
    )
    near = st.integers(-largest - 3, largest + 3)
    far = st.sampled_from([-(2**63), 2**63 - 1, 2**62, -(2**62), 2**31, -(2**31)])
    offsets = st.lists(st.one_of(near, near, near, far), min_size=rank, max_size=rank)
    rows = st.lists(offsets, min_size=windows, max_size=windows)

    def drawn(strategy: st.SearchStrategy[list[list[int]]]) -> Tensor:
        return torch.tensor(draw(strategy), dtype=torch.int64).reshape(windows, rank)

    image = draw(st.lists(st.integers(0, images - 1), min_size=windows, max_size=windows))
    cells = [st.integers(0, size) for size in patch.shape[2:]]
    rows_of_cells = st.lists(st.tuples(*cells), min_size=windows, max_size=windows)
    fills = [0.0] if LOWEST[dtype] is None else [0.0, float("-inf")]
    return Case(
        base,
        patch,
        torch.tensor(image, dtype=torch.int64),
        drawn(rows),
        drawn(rows),
        tuple(draw(axes_or_empty)),
        draw(st.sampled_from(fills)),
        drawn(rows_of_cells) if draw(st.booleans()) else None,
    )


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@backends
@settings(max_examples=250, deadline=None)
@given(case=cases())
def test_equals_a_loop_over_cells(run: Callable[[Case], Tensor], case: Case) -> None:
    result = run(case)
    expected = naive(case)
    assert result.shape == expected.shape and result.dtype == expected.dtype
    assert torch.equal(bits(result), bits(expected))
    rank = case.base.dim() - 2
    channels_last = rank > 1 and not case.base.is_contiguous() and case.base.stride(1) == 1
    layout = CHANNELS_LAST[rank] if channels_last else torch.contiguous_format
    assert result.stride() == torch.empty(expected.shape).to(memory_format=layout).stride()


def wide(layout: str, dtype: torch.dtype = torch.float32) -> Case:
    """Enough work for several threads, and patches over every border."""
    windows = 16
    generator = torch.Generator().manual_seed(0)
    return Case(
        values((2, 17, 40, 40), dtype, 1, layout),
        values((windows, 17, 9, 11), dtype, 2, layout),
        torch.randint(0, 2, (windows,), generator=generator),
        torch.randint(-12, 44, (windows, 2), generator=generator),
        torch.randint(-12, 30, (windows, 2), generator=generator),
        (21, 23),
        float("-inf"),
    )


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_threads_share_the_rows(threads: int, layout: str) -> None:
    case = wide(layout)
    assert torch.equal(bits(through_dispatcher(case)), bits(reference(case)))


@backends
def test_windows_of_several_images(run: Callable[[Case], Tensor]) -> None:
    base = torch.arange(3.0).view(3, 1, 1).expand(3, 1, 4)
    case = Case(
        base,
        torch.empty(4, 1, 0),
        torch.tensor([2, 0, 1, 2]),
        torch.zeros(4, 1, dtype=torch.int64),
        torch.zeros(4, 1, dtype=torch.int64),
        (4,),
        0.0,
    )
    assert run(case)[:, 0, 0].tolist() == [2.0, 0.0, 1.0, 2.0]


@backends
def test_projection_to_the_full_volume(run: Callable[[Case], Tensor]) -> None:
    base = values((1, 3, 8, 8), torch.float32, 0, "channels last")
    patch = torch.ones(2, 3, 2, 4)
    at = torch.tensor([[0, 4], [6, 1]])
    result = run(Case(base, patch, torch.zeros(2).long(), at, at * 0, (8, 8), 0.0))
    expected = base.repeat(2, 1, 1, 1)
    expected[0, :, 0:2, 4:8] = 1
    expected[1, :, 6:8, 1:5] = 1
    assert torch.equal(bits(result), bits(expected))


@pytest.mark.parametrize(
    "shape", [(1, 1, 4, 4), (1, 4, 1, 1), (2, 1, 1, 1), (1, 1, 2, 2, 2), (1, 3, 1, 1, 1)]
)
@backends
def test_a_base_that_is_both_counts_as_contiguous(
    run: Callable[[Case], Tensor], shape: tuple[int, ...]
) -> None:
    rank = len(shape) - 2
    base = values(shape, torch.float32, 0, "channels last")
    assert base.is_contiguous() and base.is_contiguous(memory_format=CHANNELS_LAST[rank])
    patch = values((2, shape[1], *[1] * rank), torch.float32, 1, "channels last")
    index = torch.zeros(2, rank, dtype=torch.int64)
    case = Case(base, patch, torch.zeros(2).long(), index, index - 1, (3,) * rank, 0.0)
    result = run(case)
    assert result.is_contiguous()
    assert torch.equal(bits(result), bits(naive(case)))


@backends
def test_volumes_beyond_32_bit_indices(run: Callable[[Case], Tensor]) -> None:
    # Never written to but for a few cells, so the operating system backs few of the pages.
    size = 2**31 + 64
    base = torch.empty(1, 1, size, dtype=torch.uint8)
    base[..., -8:] = torch.arange(8)
    patch = torch.empty(1, 1, size, dtype=torch.uint8)
    patch[..., -8:] = torch.arange(100, 108)
    window = torch.tensor([0])
    offset = torch.tensor([[size - 6]])
    result = run(Case(base, patch, window, torch.tensor([[2]]), offset, (8,), 0.0))
    # Volume cell y is patch cell y - 2: the last six of the volume are 2 before the patch's end.
    assert result.flatten().tolist() == [100, 101, 102, 103, 104, 105, 0, 0]
    result = run(Case(base, patch[..., :3], window, offset + 1, offset, (8,), 0.0))
    assert result.flatten()[[0, 4, 5, 6, 7]].tolist() == [2, 6, 7, 0, 0]


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_index_arithmetic_is_64_bit() -> None:
    program = """
    #include "patch_index.h"
    using namespace captum_krypton;
    constexpr int64_t kBig = int64_t{1} << 20;
    constexpr Volume kFirst{8, {kBig, kBig, kBig / 8}, false};
    constexpr Volume kLast{8, {kBig, kBig, kBig / 8}, true};
    constexpr int64_t kEnd = kBig - 1, kAll = 4 * kBig * kBig * kBig;
    static_assert(kFirst.at<int64_t>(3, 7, kEnd, kEnd, kBig / 8 - 1) == kAll - 1);
    static_assert(kLast.at<int64_t>(3, 7, kEnd, kEnd, kBig / 8 - 1) == kAll - 1);
    constexpr AxisCut kCut = cut_axis(kBig * kBig, kBig, 100, kBig * kBig - 10, kBig * kBig - 60);
    static_assert(kCut.inside_begin == 0 && kCut.inside_end == 60);
    static_assert(kCut.patch_begin == 50 && kCut.patch_end == 60);
    constexpr AxisCut kFar = cut_axis(9, 9, 9, INT64_MIN, INT64_MAX);
    static_assert(!kFar.inside(0) && !kFar.covered(0) && !kFar.inside(8));
    """
    command = ["c++", "-std=c++20", "-fsyntax-only", f"-I{CSRC}", "-x", "c++", "-"]
    done = subprocess.run(command, input=program, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_opcheck(rank: int, layout: str) -> None:
    backend_info()
    offset = torch.arange(3 * rank).view(3, rank) - 1
    arguments = (
        values((2, 3, *[5] * rank), torch.int32, 0, layout),
        values((3, 3, *[2] * rank), torch.int32, 1, layout),
        torch.tensor([0, 1, 1]),
        offset,
        offset - 2,
        [4] * rank,
        0.0,
    )
    torch.library.opcheck(torch.ops.captum_krypton.gather_patches.default, arguments)


GOOD = {
    "base": torch.zeros(2, 3, 5, 5),
    "patch": torch.zeros(4, 3, 2, 2),
    "image": torch.zeros(4, dtype=torch.int64),
    "patch_offset": torch.zeros(4, 2, dtype=torch.int64),
    "read_offset": torch.zeros(4, 2, dtype=torch.int64),
    "read_size": (3, 3),
    "fill": 0.0,
}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"base": torch.zeros(2, 3)}, ValueError, r"base has shape \(2, 3\); expected"),
        (
            {"patch": torch.zeros(4, 3, 2, 2).double()},
            TypeError,
            "patch is torch.float64; expected",
        ),
        ({"patch": torch.zeros(4, 2, 2, 2)}, ValueError, r"patch has shape \(4, 2, 2, 2\)"),
        ({"patch": torch.zeros(4, 3, 2)}, ValueError, r"patch has shape \(4, 3, 2\)"),
        ({"patch": torch.zeros(())}, ValueError, r"patch has shape \(\)"),
        ({"image": torch.zeros(4)}, TypeError, "image is torch.float32; expected torch.int64"),
        ({"image": torch.zeros(3).long()}, ValueError, r"image has shape \(3,\); expected \(4,\)"),
        ({"patch_offset": torch.zeros(4, 3).long()}, ValueError, r"patch_offset has shape \(4, 3"),
        ({"patch_offset": torch.zeros(4, 2).int()}, TypeError, "patch_offset is torch.int32"),
        ({"read_offset": torch.zeros(1, 2).long()}, ValueError, r"read_offset has shape \(1, 2"),
        ({"read_size": (3,)}, ValueError, r"read_size is \(3,\); expected 2 numbers"),
        ({"read_size": (3, -1)}, ValueError, r"read_size is \(3, -1\)"),
        ({"read_size": ()}, ValueError, r"read_size is \(\)"),
        ({"fill": 1.0}, ValueError, r"fill is 1\.0; expected 0 or -inf"),
        ({"fill": float("nan")}, ValueError, "fill is nan; expected 0 or -inf"),
        (
            {
                "base": GOOD["base"].to(torch.complex64),
                "patch": GOOD["patch"].to(torch.complex64),
                "fill": float("-inf"),
            },
            TypeError,
            "fill is -inf, which torch.complex64",
        ),
        ({"image": torch.tensor([0, 1, 2, 0])}, RuntimeError, "image names row.* expected 0 to 1"),
        ({"image": torch.tensor([0, -1, 1, 0])}, RuntimeError, "image names row.* expected 0 to 1"),
    ],
)
def test_errors_name_the_argument(
    change: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        gather_patches(**{**GOOD, **change})
    assert gather_patches(**GOOD).shape == (4, 3, 3, 3)


def test_reference_checks_the_images() -> None:
    arguments = {**GOOD, "image": torch.tensor([0, 1, 2, 0])}
    with pytest.raises(RuntimeError, match="image names row"):
        references.gather_patches(**arguments)


@pytest.mark.parametrize("change", [{"image": GOOD["image"][:2]}, {"read_size": (3, 3, 3)}])
def test_kernel_defends_itself(change: dict[str, object]) -> None:
    """Calls that go round the wrapper must not read beyond the end of anything."""
    if backend_info().name != "cpp":
        pytest.skip("the compiled kernels are not here")
    with pytest.raises(RuntimeError, match=next(iter(change))):
        torch.ops.captum_krypton.gather_patches(**{**GOOD, **change})
