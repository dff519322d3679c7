"""Runs of plans: batches, memory, order and progress, against one forward pass a window."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from questions import WINDOWS, expected, question
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion
from captum_krypton._call.arguments import Call
from captum_krypton._kernels import panel_size
from captum_krypton._operators import Algorithm
from captum_krypton._plan import Room
from captum_krypton._run import batches, group
from captum_krypton._run.captured_model import CapturedModel
from captum_krypton._run.execution import Execution


def execution(
    network: nn.Module,
    call: Call,
    *,
    most: int = 64,
    budget: int = 1 << 30,
    baseline: Any = 0.0,
    winograd: bool = True,
) -> Execution:
    model = CapturedModel(network, call)
    plan = model.plan(call, 0, room=Room(budget, 1 << 26, most), winograd=winograd)
    assert plan.incremental
    return Execution(
        model.material(plan, baseline),
        call.inputs,
        baseline,
        lambda rows, image: rows,
        lambda: network(*call.inputs).detach(),
    )


def ignore(rows: int) -> None:
    """A progress bar that nobody looks at."""


@pytest.mark.parametrize("most", [1, 7, 64, 10_000])
@pytest.mark.parametrize("baseline", [0.0, -1.5, "each"])
def test_scores_whatever_the_batch(
    network: nn.Module, images: Tensor, most: int, baseline: float | str
) -> None:
    fill = torch.rand_like(images) if baseline == "each" else baseline
    call = question(images, baselines=fill)
    run = execution(network, call, most=most, baseline=fill)
    with torch.no_grad():
        scores = run.run(ignore)
    torch.testing.assert_close(scores, expected(network, call))
    assert run.statistics.batch_size <= most


def test_winograd_may_be_forbidden(images: Tensor) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3))
    network = nn.Sequential(network, nn.AdaptiveAvgPool2d(2), nn.Flatten())
    call = question(images.float())
    truth = expected(copy.deepcopy(network).double(), question(images))
    for winograd in (True, False):
        run = execution(network, call, winograd=winograd)
        with torch.no_grad():
            scores = run.run(ignore)
        torch.testing.assert_close(scores.double(), truth, rtol=1e-4, atol=1e-5)
        used = {algorithm for _, algorithm in run.material.packs}
        assert (Algorithm.WINOGRAD in used) == (winograd and panel_size() > 0)


def test_progress_counts_every_row_once(network: nn.Module, images: Tensor) -> None:
    call = question(images)
    rows: list[int] = []
    run = execution(network, call, most=10)
    with torch.no_grad():
        run.run(rows.append)
    assert sum(rows) == call.grids[0].total * len(images)
    assert len(rows) == run.statistics.batches
    assert max(rows) <= 10


def test_images_that_do_not_fit_side_by_side(network: nn.Module, images: Tensor) -> None:
    call = question(images)
    run = execution(network, call, budget=40_000)
    assert run.plan.images < len(images)
    with torch.no_grad():
        torch.testing.assert_close(run.run(ignore), expected(network, call))


class Memory:
    """Makes gathers of more rows than fit fail as an allocator does."""

    def __init__(self, rows: int, error: Callable[[], RuntimeError]) -> None:
        self.rows, self.error, self.failures = rows, error, 0
        self.gather = group.gather_patches

    def __call__(self, base: Tensor, patch: Tensor, *rest: Any) -> Tensor:
        if len(patch) > self.rows:
            self.failures += 1
            raise self.error()
        return self.gather(base, patch, *rest)


ERRORS: dict[str, Callable[[], RuntimeError]] = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory"),
    "cpu": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 1 bytes. Error code 12 (Cannot allocate memory)"
    ),
}


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Memory]]:
    def limit(rows: int, error: str) -> Memory:
        memory = Memory(rows, ERRORS[error])
        monkeypatch.setattr(group, "gather_patches", memory)
        return memory

    yield limit


@pytest.mark.parametrize("error", ERRORS)
def test_out_of_memory_halves_the_batch_and_goes_on(
    network: nn.Module, images: Tensor, limited: Callable[..., Memory], error: str
) -> None:
    call = question(images)
    memory = limited(9, error)
    rows: list[int] = []
    run = execution(network, call, most=64)
    with torch.no_grad():
        scores = run.run(rows.append)
    assert memory.failures > 0
    assert run.statistics.batch_size <= 9
    assert sum(rows) == call.grids[0].total * len(images)
    torch.testing.assert_close(scores, expected(network, call))


def test_out_of_memory_with_one_row_reaches_the_user(
    network: nn.Module, images: Tensor, limited: Callable[..., Memory]
) -> None:
    limited(0, "cuda")
    with torch.no_grad(), pytest.raises(torch.OutOfMemoryError):
        execution(network, question(images)).run(ignore)


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    network: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def fail(*arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        raise RuntimeError("a bug")

    monkeypatch.setattr(group, "gather_patches", fail)
    with torch.no_grad(), pytest.raises(RuntimeError, match="a bug"):
        execution(network, question(images)).run(ignore)
    assert calls == 1


def test_a_batch_holds_only_what_is_still_read(
    network: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Activations go as soon as their last reader has run."""
    most = 0
    store = batches.store

    def watched(values: dict[int, Tensor], node: Any, result: Any) -> None:
        nonlocal most
        store(values, node, result)
        most = max(most, len(values))

    run = execution(network, question(images))
    monkeypatch.setattr(batches, "store", watched)
    with torch.no_grad():
        run.run(ignore)
    assert 0 < most <= 3  # an operator's operand and its result, and one that goes next


def test_the_user_sees_a_halved_batch(
    network: nn.Module, images: Tensor, limited: Callable[..., Memory]
) -> None:
    limited(4, "cpu")
    heat = KryptonOcclusion(network, self_check=False).heatmap(images, **WINDOWS, target=1)
    assert heat.report.path == "incremental"
    assert heat.report.batch_size <= 4
    assert heat.report.batches >= heat.report.windows * len(images) / 4


class Explained(torch.utils.data.Dataset[Tensor]):
    """Images, each explained where it is loaded."""

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        self.explainer, self.images = KryptonOcclusion(network), images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        made: Tensor = self.explainer.attribute(self.images[index : index + 1], **WINDOWS, target=1)
        return made[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_maps_in_the_workers_of_a_loader(network: nn.Module, images: Tensor) -> None:
    """After a fork of a process whose threads have run the kernels."""
    data = Explained(network.float(), images.float())
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        expected = torch.stack([data[index] for index in range(len(data))])
    finally:
        torch.set_num_threads(before)
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    torch.testing.assert_close(torch.stack(list(loader)), expected)
