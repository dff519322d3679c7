"""Captured graphs against the functions that they were captured from."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from graphs import conv_norm, graph_of, names, run
from hypothesis import given
from hypothesis import strategies as st
from networks import networks
from torch import Tensor, nn

from captum_krypton._capture import NotCapturable, captured
from captum_krypton._capture.graph import BatchInt
from captum_krypton._capture.simplify import simplified

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


@pytest.mark.parametrize("simplify", [False, True], ids=["recorded", "simplified"])
@given(data=st.data())
def test_a_graph_is_the_network_for_every_batch_size(simplify: bool, data: st.DataObject) -> None:
    rank, seed = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 99))
    shape = (data.draw(st.integers(1, 3)), *[data.draw(st.integers(3, 9)) for _ in range(rank)])
    network = data.draw(networks(shape)).double()
    noise = torch.Generator().manual_seed(seed)
    example = torch.randn(1, *shape, dtype=torch.float64, generator=noise)
    graph = graph_of(network, example)
    graph = simplified(graph) if simplify else graph
    for rows in (1, 4):
        x = torch.randn(rows, *shape, dtype=torch.float64, generator=noise)
        with torch.no_grad():
            expected = network(x.clone())
        torch.testing.assert_close(run(graph, x), expected, rtol=1e-9, atol=1e-9)


def test_sizes_that_grow_with_the_batch_are_named() -> None:
    def forward(x: Tensor) -> Tensor:
        return x.reshape(x.shape[0] * 2, -1).exp().reshape(x.shape[0], -1)

    graph = graph_of(forward, torch.rand(1, 4, 3))
    first = graph.nodes[0].outputs[0]
    assert graph.shapes[first] == (BatchInt(2, 0), 6)
    assert graph.shapes[graph.output] == (BatchInt(1, 0), 12)


def test_in_place_operators_become_new_values() -> None:
    def forward(x: Tensor) -> Tensor:
        y = x.clone()
        y[:, 0].mul_(3)
        y[:, 1:].add_(y[:, :1]).relu_()
        return y.flatten(1)

    x = torch.randn(3, 4, 5)
    before = x.clone()
    graph = graph_of(forward, x)
    assert torch.equal(x, before)
    assert not any(node.op._schema.is_mutable for node in graph.nodes)  # type: ignore[attr-defined]
    assert torch.equal(run(graph, x), forward(x))


def test_what_the_input_does_not_change_is_computed_once() -> None:
    weight = torch.rand(2, 3, 3, 3)

    def forward(x: Tensor) -> Tensor:
        normed = weight / weight.norm() + torch.arange(3.0)
        return F.conv2d(x, normed).flatten(1)

    x = torch.rand(2, 3, 6, 6)
    graph = graph_of(forward, x)
    assert names(graph)[0] == "convolution"
    assert len(graph.constants) == 1
    torch.testing.assert_close(run(graph, x), forward(x))


def test_operators_that_nothing_reads_are_gone() -> None:
    def forward(x: Tensor) -> Tensor:
        x.cos().sin()
        return x.exp()

    assert names(graph_of(forward, torch.rand(2, 3))) == ["exp"]


def test_graphs_of_one_function_agree() -> None:
    x = torch.rand(2, 3, 8, 8)
    network = conv_norm(nn.Conv2d)
    first, second = (captured(network, (x,), (True,)) for _ in range(2))
    assert first.says_the_same_as(second)
    wider = captured(lambda x: network(F.pad(x, (1, 1))), (x,), (True,))
    assert not first.says_the_same_as(wider)


def test_a_change_of_a_weight_is_seen_whatever_it_goes_through() -> None:
    network = conv_norm(nn.Conv2d)
    made = captured(network, (torch.rand(1, 3, 8, 8),), (True,))
    assert made.is_current(network)
    weight = network[0].weight.data
    weight.numpy()[0, 0, 0, 0] += 1e-3  # past autograd's version counter
    assert not made.is_current(network)


REFUSED = {
    "a branch on the data": lambda x: x.exp() if x.sum() > 0 else x.sin(),
    "a number made of data": lambda x: x * x.max().item(),
    "a shape that depends on the data": lambda x: x[x > 0].sum().expand(x.shape[0]),
    "rows that see each other": lambda x: x - x.mean(0, keepdim=True),
    "a softmax over the batch": lambda x: x.softmax(0),
    "a loop over the batch": lambda x: torch.stack([row.exp() for row in x]),
    "an outcome of another length": lambda x: x[:1].exp(),
    "random numbers": lambda x: x + torch.rand_like(x),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str) -> None:
    """Nothing is captured that would be true for these rows alone."""
    forward = REFUSED[what]
    with pytest.raises(NotCapturable):
        graph_of(forward, torch.rand(3, 4) + 0.1)
