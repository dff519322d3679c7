"""Fused graphs: what joins a convolution, and what must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import names, run
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion
from captum_krypton._capture import captured
from captum_krypton._capture.graph import Graph
from captum_krypton._capture.simplify import simplified
from captum_krypton._plan.analysis import analyse
from captum_krypton._plan.fuse import fused

torch.manual_seed(0)
FIRST = nn.Conv2d(4, 4, 3, padding=1).double()
SECOND = nn.Conv2d(4, 4, 1).double()
TRANSPOSED = nn.ConvTranspose2d(4, 4, 3, padding=1).double()
PRELU = nn.PReLU(4).double()
PRELU.weight.data = torch.tensor([0.1, 0.2, -0.3, 1.5]).double()


def image() -> Tensor:
    return torch.randn(2, 4, 9, 8, generator=torch.Generator().manual_seed(1)).double()


def fuse(forward: Callable[[Tensor], Tensor]) -> Graph:
    graph = simplified(captured(forward, (image(),), (True,)).graph)
    joined = fused(analyse(graph, graph.inputs[0], (2, 3)))
    torch.testing.assert_close(run(joined, image()), forward(image()).detach())
    return joined


def blocks(graph: Graph) -> list[dict[str, Any]]:
    return [node.bound() for node in graph.nodes if "convolution_block" in node.name]


JOINED: dict[str, tuple[Callable[[Tensor], Tensor], list[tuple[Any, ...]]]] = {
    "relu": (lambda x: FIRST(x).relu(), [(False, 0.0, torch.inf)]),
    "relu in place": (lambda x: FIRST(x).relu_(), [(False, 0.0, torch.inf)]),
    "relu6": (lambda x: F.relu6(FIRST(x)), [(False, 0.0, 6.0)]),
    "clamp": (lambda x: FIRST(x).clamp(-0.5, 0.25), [(False, -0.5, 0.25)]),
    "clamp of one side": (lambda x: FIRST(x).clamp(max=0.25), [(False, -torch.inf, 0.25)]),
    "sum": (lambda x: FIRST(x) + x, [(True, -torch.inf, torch.inf)]),
    "sum the other way, and relu": (lambda x: (x + FIRST(x)).relu(), [(True, 0.0, torch.inf)]),
    "the dearer of two takes the sum": (
        lambda x: (SECOND(x) + FIRST(x)).relu(),
        [(True, 0.0, torch.inf)],
    ),
    "gelu": (lambda x: F.gelu(FIRST(x)), [(False, "gelu")]),
    "silu of a sum": (lambda x: F.silu(FIRST(x) + x), [(True, "silu")]),
    "prelu": (lambda x: PRELU(FIRST(x)), [(False, "prelu", [0.1, 0.2, -0.3, 1.5])]),
    "prelu of one slope": (
        lambda x: F.prelu(FIRST(x) + x, PRELU.weight[:1]),
        [(True, "prelu", [0.1] * 4)],
    ),
    "leaky relu": (lambda x: F.leaky_relu(FIRST(x)), [(False, "prelu", [0.01] * 4)]),
    "leaky relu in place": (
        lambda x: F.leaky_relu(FIRST(x), 0.3, inplace=True),
        [(False, "prelu", [0.3] * 4)],
    ),
    "a transposed convolution": (
        lambda x: (TRANSPOSED(x) + x).relu(),
        [(True, 0.0, torch.inf)],
    ),
    "a transposed convolution, its norm and a prelu": (
        lambda x: PRELU(NORM(TRANSPOSED(x))),
        [(False, "prelu", [0.1, 0.2, -0.3, 1.5])],
    ),
    "hardswish in place": (
        lambda x: F.hardswish(FIRST(x), inplace=True),
        [(False, "hardswish")],
    ),
    "one after another": (
        lambda x: (SECOND(FIRST(x).relu()) + x).relu(),
        [(False, 0.0, torch.inf), (True, 0.0, torch.inf)],
    ),
}


@pytest.mark.parametrize("what", JOINED)
def test_joined(what: str) -> None:
    forward, expected = JOINED[what]
    graph = fuse(lambda x: forward(x).flatten(1))
    found = blocks(graph)
    made: list[tuple[Any, ...]] = []
    for block in found:
        clamps = block["activation"] == "none"
        end = (block["low"], block["high"]) if clamps else (block["activation"],)
        if block["slope"] is not None:
            slope = graph.constants[block["slope"].id]
            end = (*end, [round(number, 6) for number in slope.tolist()])
        made.append((block["residual"] is not None, *end))
    assert made == expected


def joins(graph: Graph) -> list[tuple[int, bool, float, float]]:
    found = [node.bound() for node in graph.nodes if "join_block" in node.name]
    return [(len(b["tensors"]), b["scale"] is not None, b["low"], b["high"]) for b in found]


NORM, WIDE_NORM = nn.BatchNorm2d(4).double().eval(), nn.BatchNorm2d(8).double().eval()
for each in (NORM, WIDE_NORM):
    nn.init.uniform_(each.running_mean)
    nn.init.uniform_(each.running_var, 0.5, 2)
    nn.init.uniform_(each.weight, -1)
EVERY = (-torch.inf, torch.inf)
SIDE_BY_SIDE: dict[
    str, tuple[Callable[[Tensor], Tensor], list[tuple[int, bool, float, float]], int]
] = {
    "a norm alone": (lambda x: NORM(x.sin()), [(1, True, *EVERY)], 0),
    "a norm and a clamp": (lambda x: NORM(x.sin()).relu(), [(1, True, 0.0, torch.inf)], 0),
    "all three": (
        lambda x: F.relu6(WIDE_NORM(torch.cat([x, x.sin()], 1))),
        [(2, True, 0.0, 6.0)],
        0,
    ),
    "no norm": (lambda x: torch.cat([x, x.sin()], 1).relu(), [(2, False, 0.0, torch.inf)], 0),
    "a concatenation alone": (lambda x: torch.cat([x, x.sin()], 1), [], 1),
    "one that is read twice": (
        lambda x: WIDE_NORM(y := torch.cat([x, x.sin()], 1)).relu() + y,
        [(1, True, 0.0, torch.inf)],
        1,
    ),
    "along the rows": (lambda x: torch.cat([x, x.sin()], 2).relu(), [], 1),
    "with what no window changes": (
        lambda x: torch.cat([x, torch.ones(len(x), 4, 9, 8).double()], 1).relu(),
        [],
        1,
    ),
    "whole numbers": (
        lambda x: torch.cat([(9 * x).long(), (5 * x).long()], 1).relu().double(),
        [],
        1,
    ),
    "channels last, along the rows": (
        lambda x: torch.cat([x.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1).sin()], 1).relu(),
        [],
        1,
    ),
    "a norm that a convolution makes": (lambda x: NORM(FIRST(x)), [], 0),
}


@pytest.mark.parametrize("what", SIDE_BY_SIDE)
def test_side_by_side(what: str) -> None:
    forward, expected, left = SIDE_BY_SIDE[what]
    graph = fuse(lambda x: forward(x).flatten(1))
    assert joins(graph) == expected
    assert names(graph).count("cat") == left


APART: dict[str, Callable[[Tensor], Tensor]] = {
    "another reader": lambda x: (y := FIRST(x)).relu() + y.sin(),
    "twice itself": lambda x: (y := FIRST(x)) + y,
    "a scaled sum": lambda x: torch.add(FIRST(x), x, alpha=2),
    "a number": lambda x: FIRST(x) + 1,
    "a constant": lambda x: FIRST(x) + torch.ones(4, 9, 8).double(),
    "a broadcast": lambda x: FIRST(x) + x[:, :, :1],
    "what changes everywhere": lambda x: FIRST(x) + x.mean((2, 3), keepdim=True).expand(x.shape),
    "another activation": lambda x: F.elu(FIRST(x)),
    "another kind of gelu": lambda x: F.gelu(FIRST(x), approximate="tanh"),
    "a slope that is no constant": lambda x: torch._prelu_kernel(FIRST(x), x.mean((2, 3), True)),
    "tensor bounds": lambda x: FIRST(x).clamp(torch.zeros(1).double(), torch.ones(1).double()),
}


@pytest.mark.parametrize("what", APART)
def test_apart(what: str) -> None:
    forward = APART[what]
    assert not blocks(fuse(lambda x: forward(x).flatten(1)))


def test_the_output_is_not_swallowed() -> None:
    graph = fuse(lambda x: FIRST(x).flatten(1))
    assert names(graph)[0] == "convolution"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_transposed_convolutions_between_clamps(dtype: torch.dtype) -> None:
    network = nn.Sequential(FIRST, nn.ReLU(), TRANSPOSED, nn.ReLU(), nn.Flatten()).to(dtype)
    x = image()[:1].to(dtype)
    heat = KryptonOcclusion(network).heatmap(x, (4, 3, 3), 2, target=7)
    assert heat.report.path == "incremental"
    covered = x.clone()
    covered[..., 2:5, 4:7] = 0
    torch.testing.assert_close(heat.scores[0, 1, 2], network(covered)[0, 7].detach())
    network.double()


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("cut", ["chunk", "unbind"])
def test_a_convolution_of_which_a_piece_is_read(cut: str, part: int) -> None:
    """What follows has an output that nothing reads."""

    def forward(x: Tensor) -> Tensor:
        made = FIRST(x)
        return made.chunk(2, 1)[part] if cut == "chunk" else made.unbind(1)[part]

    fuse(forward)
