"""What only a GPU can show: the kernel on the card, and maps made there. Skipped without one."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from captum.attr import Occlusion
from gather_cases import Case, bits, cases, naive, values, wide
from hypothesis import given, settings
from networks import networks
from small_networks import POOLINGS, pooling_network
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion, backend_info
from captum_krypton._kernels import (
    ACTIVATIONS,
    PATCH_TYPES,
    Patches,
    fastest_finish,
    gather_patches,
    hash_tensors,
    plain_finish,
    pool_patches,
    reference,
)
from captum_krypton._run import few_windows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated"),  # of its compiler
]


def on_card(case: Case) -> Case:
    moved = {
        field.name: value.cuda()
        for field in dataclasses.fields(case)
        if isinstance(value := getattr(case, field.name), Tensor)
    }
    return dataclasses.replace(case, **moved)


def test_the_kernel_for_cuda_runs() -> None:
    info = backend_info("cuda")
    assert info.name == "cuda", info.reasons


@settings(max_examples=250, deadline=None)
@given(case=cases())
def test_equals_a_loop_over_cells(case: Case) -> None:
    result = gather_patches(*on_card(case).arguments())
    assert result.is_cuda
    assert torch.equal(bits(result.cpu()), bits(naive(case)))


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_batches(layout: str, dtype: torch.dtype) -> None:
    case = wide(layout, dtype)
    assert torch.equal(
        bits(gather_patches(*on_card(case).arguments()).cpu()),
        bits(gather_patches(*case.arguments())),
    )


def test_the_current_stream_is_used() -> None:
    case = on_card(wide("channels last"))
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = case.base.clone()  # waits on the stream, as what reads it must
        result = gather_patches(late, *case.arguments()[1:])
    stream.synchronize()
    assert torch.equal(bits(result.cpu()), bits(gather_patches(*case.arguments()).cpu()))


def test_a_graph_can_be_captured() -> None:
    """No synchronisation, and no address that changes from call to call."""
    case = on_card(wide("channels last"))
    gather_patches(*case.arguments())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = gather_patches(*case.arguments())
    case.base.mul_(2)
    graph.replay()
    assert torch.equal(bits(result.cpu()), bits(gather_patches(*case.arguments()).cpu()))


def test_volumes_beyond_32_bit_indices() -> None:
    size = 2**31 + 64
    if torch.cuda.mem_get_info()[0] < 3 * size:
        pytest.skip("needs 6 GiB of the card's memory")
    base = torch.zeros(1, 1, size, dtype=torch.uint8, device="cuda")
    base[..., -8:] = torch.arange(8, device="cuda")
    index = torch.tensor([[size - 6]], device="cuda")
    none = base.new_empty(1, 1, 0)
    result = gather_patches(base, none, index[0] * 0, index, index, (8,))
    assert result.flatten().tolist() == [2, 3, 4, 5, 6, 7, 0, 0]


@pytest.mark.parametrize("dtype", PATCH_TYPES)
@pytest.mark.parametrize("maximum", [True, False])
@pytest.mark.parametrize("channels", [5, 32])
def test_pooling(channels: int, maximum: bool, dtype: torch.dtype) -> None:
    noise = torch.Generator().manual_seed(0)
    windows, last = 300, torch.channels_last
    base = torch.randn(2, channels, 20, 20, generator=noise).to(dtype)
    patch = torch.randn(windows, channels, 7, 6, generator=noise).to(dtype)
    image = torch.randint(0, 2, (windows,), generator=noise)
    offset = torch.randint(-8, 22, (windows, 2), generator=noise)
    extent = torch.randint(0, 7, (windows, 2), generator=noise)
    source = Patches(base.contiguous(memory_format=last), patch, image, offset, extent)
    read = torch.randint(-3, 14, (windows, 2), generator=noise)
    rest: Any = ((5, 4), (3, 2))
    named: Any = {"stride": (2, 1), "dilation": (1, 2), "maximum": maximum, "divisor": 5.0}
    card = Patches(*(tensor.cuda() for tensor in source))
    made = pool_patches(card, read.cuda(), *rest, **named).cpu()
    wide = [t.double() if t.is_floating_point() else t for t in source]
    asked = (rest[0], None, rest[1], (2, 1), (1, 2), maximum, 5.0)
    expected = reference.pool_patches(*wide, read, *asked)
    assert made.dtype == dtype
    error = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(made.double(), expected, rtol=error, atol=error)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("channels", [3, 64])
def test_finish(channels: int, activation: str, last: bool, dtype: torch.dtype) -> None:
    noise = torch.Generator().manual_seed(0)
    sums, residual = torch.randn(2, 50, channels, 9, 7, generator=noise).to(dtype)
    if last:
        sums = sums.contiguous(memory_format=torch.channels_last)
    bias = torch.randn(channels, generator=noise).to(dtype)
    slope = bias.flip(0) if activation == "prelu" else None
    exact = None if slope is None else slope.double()
    wide = plain_finish(-1.0, 1.5, activation)
    expected = wide(sums.double().clone(), bias.double(), residual.double(), exact)
    finished = fastest_finish(-1.0, 1.5, activation, torch.device("cuda"))
    on_card = None if slope is None else slope.cuda()
    made = finished(sums.cuda(), bias.cuda(), residual.cuda(), on_card).cpu()
    error = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(made.double(), expected, rtol=error, atol=4 * error)


def test_first_windows_run_together_while_a_graph_does_not_pay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(few_windows, "_SETUP_SECONDS", 1e9)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 5)).cuda()
    x, windows = torch.randn(1, 3, 16, 16).cuda(), ((3, 4, 4), (3, 2, 2))
    krypton = KryptonOcclusion(model)
    heat = krypton.heatmap(x, *windows, target=1)
    assert heat.report.path == "naive"
    expected = Occlusion(model).attribute(x, *windows, target=1)
    torch.testing.assert_close(heat.attribution(), expected, rtol=1e-3, atol=1e-3)
    monkeypatch.setattr(few_windows, "_SETUP_SECONDS", 0.0)
    assert krypton.heatmap(x, *windows, target=1).report.path == "incremental"


@settings(max_examples=40, deadline=None)
@given(model=networks((3, 9, 8), classes=4))
def test_maps_equal_captum(model: nn.Module) -> None:
    model = model.cuda()
    x = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(1)).double().cuda()
    windows = {"sliding_window_shapes": (3, 3, 2), "strides": (3, 2, 1), "target": 1}
    expected = Occlusion(model).attribute(x, **windows)
    got = KryptonOcclusion(model, cuda_graphs=False).attribute(x, **windows)
    assert got.is_cuda
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9 * float(expected.abs().max() + 1))


@settings(max_examples=12, deadline=None)  # each captures the graphs of all its groups
@given(model=networks((3, 9, 8), classes=4))
def test_replayed_maps_equal_captum(model: nn.Module) -> None:
    model = model.cuda()
    x = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(1)).double().cuda()
    windows = {"sliding_window_shapes": (3, 3, 2), "strides": (3, 2, 1), "target": 1}
    krypton = KryptonOcclusion(model)
    for image in (x, x + 1, x - 1):
        expected = Occlusion(model).attribute(image, **windows)
        heat = krypton.heatmap(image, **windows)
        bound = 1e-9 * float(expected.abs().max() + 1)
        torch.testing.assert_close(heat.attribution(), expected, rtol=0, atol=bound)
    if heat.report.path in ("incremental", "full"):
        assert heat.report.batches_replayed == heat.report.batches > 0


@pytest.mark.parametrize("pooling", POOLINGS, ids=str)
def test_maps_that_pool_on_the_card(pooling: nn.Module) -> None:
    model, x = pooling_network(pooling).cuda(), torch.randn(2, 3, 16, 16).cuda()
    with torch.backends.cudnn.flags(allow_tf32=False):
        expected = Occlusion(model).attribute(x, (3, 3, 3), (3, 1, 1), target=1)
        got = KryptonOcclusion(model).attribute(x, (3, 3, 3), (3, 1, 1), target=1)
    assert float((got - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


def test_finish_of_more_numbers_than_32_bits_count() -> None:
    sums = torch.zeros(2**29 // 8 + 64, 8, dtype=torch.float16, device="cuda")
    sums[-1] = -2
    finished = fastest_finish(0.0, 2.0, "none", sums.device)
    made = finished(sums, torch.full_like(sums[0], 3), None)
    assert made[[0, -1]].tolist() == [[2.0] * 8, [1.0] * 8]
    assert float(made[:-1].min()) == 2.0


def test_hashes() -> None:
    every = torch.arange(2**22 + 300, dtype=torch.int64).view(torch.uint8)
    tensors = [every[n : 3 * n * n + 7] for n in range(300)] + [every]
    expected = hash_tensors(tensors, 7).tolist()
    assert hash_tensors([tensor.cuda() for tensor in tensors], 7).tolist() == expected
    card = every.cuda()
    begun_anywhere = [card[n : 3 * n * n + 7] for n in range(300)]
    assert hash_tensors(begun_anywhere, 7).tolist() == expected[:-1]


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("compile_pointwise", [False, True])
def test_a_network_on_the_card(cuda_graphs: bool, compile_pointwise: bool) -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 16, 3))
    model = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(16 * 14 * 14, 5)).cuda()
    x = values((2, 3, 64, 64), torch.float32, 3, "contiguous").nan_to_num().cuda()
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        expected = Occlusion(model).attribute(x, (3, 8, 8), (3, 4, 4), target=1)
        krypton = KryptonOcclusion(
            model, cuda_graphs=cuda_graphs, compile_pointwise=compile_pointwise
        )
        for _ in range(2):
            heat = krypton.heatmap(x, (3, 8, 8), (3, 4, 4), target=1)
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert heat.report.path == "incremental"
    assert heat.report.batches_replayed == (heat.report.batches if cuda_graphs else 0)
    assert heat.scores.is_cuda
    difference = (heat.attribution() - expected).abs().max()
    assert float(difference) <= 1e-4 * float(expected.abs().max())
