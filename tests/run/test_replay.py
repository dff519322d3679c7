"""Batches that are captured once and replayed, with a stand-in for the graph of a GPU.

The stand-in runs the captured operators again on the same memory (see `graph_on_host`). What a
real graph would not do anew, it does not do either: it shows stale images, windows and baselines.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from captum.attr import Occlusion
from graph_on_host import HostGraph
from hypothesis import given, settings
from networks import networks
from questions import expected, question
from replayed_maps import graphs_on_the_host, maps_as_on_a_gpu
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion
from captum_krypton._call import PatchMean, make_region_call
from captum_krypton._kernels import cuda_graph
from captum_krypton._plan import Room
from captum_krypton._run import replay, replayed_base
from captum_krypton._run.base import Base
from captum_krypton._run.captured_model import CapturedModel
from captum_krypton._run.execution import Execution
from captum_krypton._run.replay_cache import ReplayCache


@pytest.fixture(autouse=True, scope="module")
def on_the_host() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        graphs_on_the_host(patch)
        patch.setattr(replay, "_MANY", 2)
        yield


class Runs:
    """Runs of one plan that share what is resident."""

    def __init__(self, network: nn.Module, call: Any, most: int) -> None:
        self.network, self.model = network, CapturedModel(network, call)
        self.plan = self.model.plan(call, 0, room=Room(1 << 30, 1 << 26, most), winograd=True)
        self.cache = ReplayCache()

    def execution(self, images: Tensor, baseline: Any = 0.0, own_mean: bool = False) -> Execution:
        return Execution(
            self.model.material(self.plan, baseline, own_mean),
            (images,),
            baseline,
            lambda rows, image: rows,
            lambda: self.network(images).detach(),
            replays=self.cache,
        )

    def __call__(
        self, images: Tensor, baseline: Any = 0.0, own_mean: bool = False
    ) -> tuple[Tensor, Execution]:
        run = self.execution(images, baseline, own_mean)
        rows: list[int] = []
        with torch.no_grad():
            scores = run.run(rows.append)
        assert sum(rows) == self.plan.grid.total * len(images)
        return scores, run


def test_windows_that_are_not_run_are_not_replayed(images: Tensor) -> None:
    class Corner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3))

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.body(x)[:, :, -5, 3].sigmoid()
            return made

    torch.manual_seed(0)
    network = Corner().double()
    runs = Runs(network, question(images), 2)
    assert 0 < runs.plan.unreached < runs.plan.grid.total
    for batch in (images, images.flip(0), images + 1):
        scores, run = runs(batch)
        torch.testing.assert_close(scores, expected(network, question(batch)))
    assert run.statistics.replayed == run.statistics.batches > 0


@pytest.mark.parametrize("most", [1, 7, 10, 64])
@pytest.mark.parametrize("baseline", [0.0, -1.5, "each", "one"])
def test_every_map_is_that_of_its_own_images(
    network: nn.Module,
    images: Tensor,
    most: int,
    baseline: float | str,
) -> None:
    runs = Runs(network, question(images), most)
    untouched = images.clone()
    for number in range(3):
        x = images.roll(number, 0) + number if number else images
        fill: Any = baseline
        if baseline == "each":
            fill = torch.rand_like(x)
        elif baseline == "one":
            fill = torch.rand_like(x[:1])
        scores, run = runs(x, fill)
        torch.testing.assert_close(scores, expected(network, question(x, baselines=fill)))
        if number:  # all batches
            assert run.statistics.replayed == run.statistics.batches > 0
        assert run.statistics.batch_size <= most
    assert torch.equal(images, untouched)


def test_the_first_map_replays_what_it_runs_often(
    network: nn.Module,
    images: Tensor,
) -> None:
    runs = Runs(network, question(images), 10)
    scores, run = runs(images)
    assert 0 < run.statistics.replayed <= run.statistics.batches - len(runs.plan.groups)
    torch.testing.assert_close(scores, expected(network, question(images)))


def test_a_first_map_of_few_batches_is_not_worth_a_capture(
    network: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "_MANY", 16)
    runs = Runs(network, question(images), 64)
    assert [runs(images)[1].statistics.replayed > 0 for _ in range(2)] == [False, True]


def test_other_numbers_of_images_and_baselines_are_other_graphs(
    network: nn.Module,
    images: Tensor,
) -> None:
    runs = Runs(network, question(images), 16)
    for x, fill in ((images, 0.0), (images[:1], 0.0), (images, 2.0), (images, 0.0)) * 2:
        scores, _ = runs(x, fill)
        torch.testing.assert_close(scores, expected(network, question(x, baselines=fill)))


def test_own_means_are_those_of_the_images_at_hand(network: nn.Module, images: Tensor) -> None:
    runs = Runs(network, question(images), 16)
    for x, own_mean in ((images, False), (images, True), (images + 1, True), (images, False)) * 2:
        fill = PatchMean() if own_mean else 0.0
        scores, _ = runs(x, own_mean=own_mean)
        torch.testing.assert_close(scores, expected(network, question(x, baselines=fill)))


def test_regions_are_replayed(network: nn.Module, images: Tensor) -> None:
    rows, columns = (torch.arange(size) // 2 for size in images.shape[2:])
    masks = (rows[:, None] * 3 + columns) % 7 == torch.arange(7)[:, None, None]
    call = make_region_call(images, masks, 0.5, None, None, None)
    runs = Runs(network, call, 4)
    for x in (images, images + 1, images):
        scores, _ = runs(x, 0.5)
        torch.testing.assert_close(scores, expected(network, replace(call, inputs=(x,))))


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "cudnn": lambda: torch.backends.cudnn.flags(enabled=False),
    "benchmark": lambda: torch.backends.cudnn.flags(enabled=True, benchmark=True),
    "products": lambda: changed(torch.backends.cuda.matmul, "allow_tf32", True),
    "sums": lambda: changed(
        torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", False
    ),
    "attention": lambda: torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference": lambda: torch.inference_mode(),
}


@contextmanager
def changed(thing: Any, name: str, value: bool) -> Iterator[None]:
    before = getattr(thing, name)
    setattr(thing, name, value)
    try:
        yield
    finally:
        setattr(thing, name, before)


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_that_a_graph_holds_on_to_are_in_its_key(setting: str) -> None:
    device = torch.device("cpu")
    before = cuda_graph.graph_settings(device)
    with SETTINGS[setting]():
        assert cuda_graph.graph_settings(device) != before


def test_other_settings_are_other_graphs(network: nn.Module, images: Tensor) -> None:
    runs = Runs(network, question(images), 16)
    runs(images)
    with torch.backends.cudnn.flags(enabled=False):
        _, run = runs(images)
    assert run.statistics.replayed < run.statistics.batches  # its first batch is run once more


class Counting(HostGraph[Any]):
    """Counts captures."""

    made = 0

    def __init__(self, work: Any, pool: Any, device: Any) -> None:
        super().__init__(work, pool, device)
        Counting.made += 1


@pytest.mark.parametrize("inputs", [1, 3])
def test_nothing_is_captured_twice(
    network: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch, inputs: int
) -> None:
    """Not for several inputs that are occluded in turn, nor for images in parts."""
    monkeypatch.setattr(replay, "CudaGraph", Counting)
    cache = ReplayCache(inputs)
    runs = [Runs(network, question(images), 10) for _ in range(inputs)]
    for each in runs:
        each.cache = cache
    made = []
    for _ in range(4):
        Counting.made = 0
        for each in runs:
            each(images)
            each(images[:2])
        made.append(Counting.made)
    assert made[0] > 0
    assert made[2:] == [0, 0]


def test_an_error_in_the_middle_leaves_nothing_behind(network: nn.Module, images: Tensor) -> None:
    runs = Runs(network, question(images), 10)
    runs(images)

    class Stop(Exception):
        pass

    def stop(rows: int) -> None:
        raise Stop

    run = runs.execution(images + 1)
    with torch.no_grad(), pytest.raises(Stop):
        run.run(stop)
    scores, run = runs(images + 2)
    torch.testing.assert_close(scores, expected(network, question(images + 2)))
    assert run.statistics.replayed == run.statistics.batches


def test_no_memory_for_what_is_resident(
    network: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(base: Base) -> Base:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Base, "clone", full)
    scores, run = Runs(network, question(images), 10)(images)
    torch.testing.assert_close(scores, expected(network, question(images)))
    assert run.statistics.replayed == 0


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@settings(max_examples=60, deadline=None)
@given(model=networks((3, 9, 8), classes=4))
def test_any_network_can_be_captured(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 9, 8, generator=generator).double()
    windows = {"sliding_window_shapes": (3, 3, 2), "strides": (3, 2, 1), "target": 1}
    occlusion = KryptonOcclusion(model)
    with maps_as_on_a_gpu():
        for number in range(4):  # by operators, captured, and replayed before the answer is there
            want = Occlusion(model).attribute(x + number, **windows)
            heat = occlusion.heatmap(x + number, **windows)
            bound = 1e-9 * float(want.abs().max() + 1)
            torch.testing.assert_close(heat.attribution(), want, rtol=0, atol=bound)
            if number and heat.report.path in ("incremental", "full"):
                assert heat.report.batches_replayed == heat.report.batches > 0


def test_what_cannot_be_captured_is_said_and_run_by_its_operators(
    network: nn.Module,
    images: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = Runs(network, question(images), 10)

    def refuse(work: Any, pool: Any, device: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(replay, "CudaGraph", refuse)
    with pytest.warns(RuntimeWarning, match="not permitted when stream is capturing"):
        scores, run = runs(images)
    torch.testing.assert_close(scores, expected(network, question(images)))
    assert run.statistics.replayed == 0


def test_a_graph_that_gives_something_else_is_not_used(
    network: nn.Module,
    images: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Wrong(HostGraph[Any]):
        def replay(self) -> None:
            super().replay()
            for tensor in self.result.values():
                tensor.mul_(2)

    monkeypatch.setattr(replay, "CudaGraph", Wrong)
    runs = Runs(network, question(images), 10)
    with pytest.warns(RuntimeWarning, match="other values"):
        scores, run = runs(images)
    torch.testing.assert_close(scores, expected(network, question(images)))
    assert run.statistics.replayed == 0


@pytest.mark.parametrize("most", [1, 10, 10_000])
def test_work_that_runs_at_its_capture_is_noticed(
    network: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """As on a stream of another device: the graph is empty, and its memory holds some result."""

    class Empty:
        def __init__(self, work: Any, pool: Any, device: Any) -> None:
            self.result = work()

        def replay(self) -> None:
            pass

    monkeypatch.setattr(replay, "CudaGraph", Empty)
    runs = Runs(network, question(images), most)
    with pytest.warns(RuntimeWarning, match="other values"):
        for number in range(2):  # the second captures at the first row
            scores, run = runs(images + number)
            torch.testing.assert_close(scores, expected(network, question(images + number)))
            assert run.statistics.replayed == 0


class Replaying(HostGraph[Any]):
    """Counts its replays."""

    replays = 0

    def replay(self) -> None:
        super().replay()
        Replaying.replays += 1


class Untrue(HostGraph[Any]):
    def replay(self) -> None:
        super().replay()
        self.result.add_(1)


class Bare:
    """Work that runs at its capture: the graph is empty."""

    def __init__(self, work: Any, pool: Any, device: Any) -> None:
        self.result = work()

    def replay(self) -> None:
        pass


def uncapturable(work: Any, pool: Any, device: Any) -> Any:
    raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize("baseline", [0.0, "each"])
def test_the_base_is_replayed(
    network: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch, baseline: float | str
) -> None:
    monkeypatch.setattr(replayed_base, "CudaGraph", Replaying)
    runs, counts = Runs(network, question(images), 10), list[int]()
    Replaying.replays = 0
    for number in range(4):
        x = images + number
        fill = torch.rand_like(x) if baseline == "each" else 0.0
        scores, _ = runs(x, fill)
        torch.testing.assert_close(scores, expected(network, question(x, baselines=fill)))
        counts.append(Replaying.replays)
    assert counts == [0, 1, 2, 3]  # the first replay is held against the operators


@pytest.mark.parametrize(
    ("graph", "message"),
    [(uncapturable, "not permitted"), (Untrue, "other values"), (Bare, "other values")],
)
def test_a_base_that_cannot_be_replayed_is_said(
    network: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch, graph: Any, message: str
) -> None:
    monkeypatch.setattr(replayed_base, "CudaGraph", graph)
    runs = Runs(network, question(images), 10)
    runs(images)
    with pytest.warns(RuntimeWarning, match=f"untouched inputs cannot be replayed.*{message}"):
        scores, run = runs(images + 1)
    torch.testing.assert_close(scores, expected(network, question(images + 1)))
    scores, run = runs(images + 2)  # said once
    torch.testing.assert_close(scores, expected(network, question(images + 2)))
    assert run.statistics.replayed == run.statistics.batches > 0


def test_out_of_memory_halves_the_batch(
    network: nn.Module,
    images: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(work: Any, pool: Any, device: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(replay, "CudaGraph", full)
    runs = Runs(network, question(images), 16)
    scores, run = runs(images)
    torch.testing.assert_close(scores, expected(network, question(images)))
    assert run.statistics.batch_size < 16


def test_one_thread_at_a_time_has_what_is_resident(
    network: nn.Module,
    images: Tensor,
) -> None:
    runs = Runs(network, question(images), 10)
    runs(images)
    found: list[tuple[Tensor, Tensor]] = []

    def explain(x: Tensor) -> None:
        for _ in range(3):
            found.append((x, runs(x)[0]))

    threads = [threading.Thread(target=explain, args=(images + i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 9
    for x, scores in found:
        torch.testing.assert_close(scores, expected(network, question(x)))
