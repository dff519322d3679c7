"""`gather_patches`, compiled, for CUDA and reference, against a loop over single cells."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import cuda_on_host
import pytest
import torch
from gather_cases import Case, bits, cases, naive, values, wide
from hypothesis import given, settings
from torch import Tensor

from captum_krypton._kernels import backend_info, gather_patches
from captum_krypton._kernels import reference as references
from captum_krypton._kernels.formats import empty_in_format, is_channels_last

CSRC = Path(__file__).resolve().parents[2] / "csrc"


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
    channels_last = not case.base.is_contiguous() and case.base.stride(1) == 1
    assert result.stride() == empty_in_format(expected.shape, result, channels_last).stride()


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
    "shape",
    [
        *[(1, 1, 4), (1, 4, 1), (1, 1, 4, 4), (1, 4, 1, 1), (2, 1, 1, 1)],
        *[(1, 1, 2, 2, 2), (1, 3, 1, 1, 1)],
    ],
)
@backends
def test_a_base_that_is_both_counts_as_contiguous(
    run: Callable[[Case], Tensor], shape: tuple[int, ...]
) -> None:
    rank = len(shape) - 2
    base = values(shape, torch.float32, 0, "channels last")
    assert base.is_contiguous() and is_channels_last(base)
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
