"""What a map costs the host of a GPU: microseconds and launches, without a GPU.

    python examples/benchmarks/host_cost.py --json docs/data/host_cost.json

A GPU is so quick that what its host does decides about first maps and about small networks. This
measures that part on any machine: the paper's networks, all layers but an eighth of their channels,
on small images, so that arithmetic hardly counts; the model's contents compared as on a GPU;
batches captured once, and a replay that does nothing but count as one launch. Of a first map it
gives the seconds of each step until the first batch, beside those of a forward pass; of a later map
its microseconds, and how many operators that are no views it calls, each a launch or more. Results
of several revisions lie side by side in one file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["KRYPTON_BACKEND"] = "reference"  # plans like a GPU's: convolutions are PyTorch's own

import torch
from _shared import PAPER_NETWORKS, build_network, machine
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from captum_krypton import KryptonOcclusion, _engine
from captum_krypton._call.arguments import make_call
from captum_krypton._call.settings import Settings
from captum_krypton._capture import captured
from captum_krypton._capture import fingerprint as fingerprints
from captum_krypton._run import replay, replay_cache, replayed_base
from captum_krypton._run.captured_model import CapturedModel
from captum_krypton._run.input_run import InputRun

CHANNELS = 8  # part of each layer's
SIDES = {"inception_v3": 96}
WINDOWS: dict[str, Any] = {"sliding_window_shapes": (3, 8, 8), "strides": (3, 4, 4), "target": 1}


class IdleGraph:
    """Stands in for a CUDA graph whose replay takes no time.

    Only the first replay does its work, which is held against the operators'. Then images and
    windows stay as they are.
    """

    replays = 0

    def __init__(self, work: Callable[[], Any], pool: Any, device: torch.device) -> None:
        self.result, self._work = work(), work
        self._is_new = True

    def replay(self) -> None:
        """Counts."""
        IdleGraph.replays += 1
        if self._is_new:
            for old, new in zip(tree_leaves(self.result), tree_leaves(self._work()), strict=True):
                old.copy_(new)
            self._is_new = False


class IdlePool:
    """Stands in for the memory of graphs."""

    usable = True


def idle_hashes(tensors: Sequence[Tensor], key: int) -> Tensor:
    """Stands in for `hash_tensors` on a GPU, with its launches: contents never change."""
    sums = torch.zeros(len(tensors), 1, dtype=torch.int64)
    return sums.add_(0).sum(1)


class Calls(TorchDispatchMode):
    """Counts operators that are no views, and make or change a tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = [r.alias_info for r in func._schema.returns]
        views = any(alias is not None and not alias.is_write for alias in returns)
        if not views and "empty" not in str(func):
            self.names[str(func)] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Maps are made as a GPU's host makes them, by idle graphs."""
    made = InputRun.execution

    def replayed(run: InputRun, plan: Any) -> Any:
        execution = made(run, plan)
        execution.replays = run.model.replays
        return execution

    with ExitStack() as stack:
        for place, name, stand_in in (
            (replay, "CudaGraph", IdleGraph),
            (replay, "alike", lambda a, b: True),
            (replay_cache, "GraphPool", IdlePool),
            (replayed_base, "CudaGraph", IdleGraph),
            (replayed_base, "GraphPool", IdlePool),
            (replayed_base, "alike", lambda a, b: True),
            (InputRun, "execution", replayed),
            (_engine, "_replays", lambda call: True),
            (fingerprints, "on_host", lambda tensor: False),
            (fingerprints, "hash_tensors", idle_hashes),
        ):
            stack.enter_context(mock.patch.object(place, name, stand_in))
        yield


def narrow(network: nn.Module) -> nn.Module:
    """The network with a part of its channels, random weights and the same operators."""

    def part(channels: int) -> int:
        return channels if channels <= 3 else max(1, channels // CHANNELS)

    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                new: nn.Module = nn.Conv2d(
                    part(child.in_channels),
                    part(child.out_channels),
                    child.kernel_size,  # type: ignore[arg-type]
                    child.stride,  # type: ignore[arg-type]
                    child.padding,  # type: ignore[arg-type]
                    bias=child.bias is not None,
                )
            elif isinstance(child, nn.BatchNorm2d):
                new = nn.BatchNorm2d(part(child.num_features))
            elif isinstance(child, nn.Linear):
                new = nn.Linear(part(child.in_features), part(child.out_features))
            else:
                continue
            setattr(module, name, new)
    return network.eval()


def least_seconds(work: Callable[[], object], repeats: int) -> float:
    """The least of some times."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def first_map(network: nn.Module, x: Tensor, repeats: int) -> dict[str, float]:
    """Seconds of what a first map does before its first batch."""
    call = make_call((x,), WINDOWS["sliding_window_shapes"], WINDOWS["strides"], None, 1, None, 1)
    three = x.expand(3, *x.shape[1:])

    def forward() -> None:
        with torch.no_grad():
            network(three[:2])
            network(three)

    def model() -> CapturedModel:
        return CapturedModel(network, call)

    def plans() -> None:
        fresh.append(model())
        started = time.perf_counter()
        fresh[-1].plan_of(call, 0, Settings())
        planned.append(time.perf_counter() - started)

    fresh: list[CapturedModel] = []
    planned: list[float] = []
    for _ in range(repeats):
        plans()
    return {
        "two_passes": least_seconds(forward, repeats),
        "recording": least_seconds(lambda: captured(network, (x,), (True,), (0,)), repeats),
        "captured_model": least_seconds(model, repeats),
        "plan": min(planned),
    }


def later_maps(network: nn.Module, x: Tensor, maps: int) -> dict[str, Any]:
    """Microseconds and launches of a map whose batches are replayed."""
    with as_on_a_gpu():
        occlusion = KryptonOcclusion(network, self_check=False)
        for _ in range(4):
            occlusion.heatmap(x, **WINDOWS)
        times = []
        for _ in range(maps):
            started = time.perf_counter()
            report = occlusion.heatmap(x, **WINDOWS).report
            times.append(time.perf_counter() - started)
        if not report.batches_replayed == report.batches > 0:
            raise RuntimeError("a batch was not replayed")
        IdleGraph.replays = 0
        with Calls() as calls:
            occlusion.heatmap(x, **WINDOWS)
    return {
        "microseconds": round(statistics.median(times) * 1e6),
        "operators": sum(calls.names.values()),
        "replays": IdleGraph.replays,
        "most_called": dict(calls.names.most_common(8)),
    }


def measured(name: str, maps: int, repeats: int) -> dict[str, Any]:
    """Everything of one network."""
    side = SIDES.get(name, 64)
    network = narrow(build_network(name, 2 * side))
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        forward = least_seconds(lambda: network(x), 20)
    return {
        "model": name,
        "side": side,
        "forward_microseconds": round(forward * 1e6),
        "first": first_map(network, x, repeats),
        "later": later_maps(network, x, maps),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=PAPER_NETWORKS, help="these networks")
    parser.add_argument("--maps", type=int, default=20, help="later maps that are timed")
    parser.add_argument("--repeats", type=int, default=5, help="of every step of a first map")
    parser.add_argument("--revision", default="now", help="what results are named in the file")
    parser.add_argument("--json", help="add what was measured to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    result: dict[str, Any] = {"machine": machine(), "networks": []}
    for name in options.only:
        found = measured(name, options.maps, options.repeats)
        result["networks"].append(found)
        steps = ", ".join(f"{k} {v * 1e3:.0f} ms" for k, v in found["first"].items())
        print(f"{name}, first map: {steps}")
        print(
            "  later: {microseconds} us, {operators} operators, {replays} replays".format(
                **found["later"]
            )
        )
        print("  ", found["later"]["most_called"])
    if options.json:
        file = Path(options.json)
        every = json.loads(file.read_text()) if file.exists() else {}
        every[options.revision] = result
        file.write_text(json.dumps(every, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
