"""Simplified graphs: what becomes fewer operators, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from graphs import conv_norm, graph_of, names, run
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion
from captum_krypton._capture.simplify import simplified


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("groups", [1, 2])
def test_batch_norms_are_folded(
    groups: int, kind: type[nn.Module], dtype: torch.dtype, affine: bool
) -> None:
    network = conv_norm(kind, groups, affine=affine).to(dtype)
    x = torch.rand(2, 2 + groups, 8, 8, dtype=dtype)
    graph = simplified(graph_of(network, x))
    assert names(graph) == ["convolution", "reshape"]
    torch.testing.assert_close(run(graph, x), network(x).detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_in_16_bits_convolution_and_norm_round_once(
    kind: type[nn.Module], dtype: torch.dtype
) -> None:
    network = conv_norm(kind).to(dtype)
    x = torch.rand(2, 3, 8, 8).to(dtype)
    graph = simplified(graph_of(network, x))
    assert names(graph) == ["captum_krypton.convolution_block", "reshape"]
    made, exact = run(graph, x), network.double()(x.double()).detach()
    assert made.dtype == dtype
    allowed = 1e-5 + torch.finfo(dtype).eps / 2 * exact.abs()
    assert ((made - exact).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_a_norm_alone_rounds_once(dtype: torch.dtype) -> None:
    norm = conv_norm(nn.Conv2d)[1].to(dtype)
    x = torch.rand(2, norm.num_features, 8, 8).to(dtype)
    graph = simplified(graph_of(norm, x))
    assert names(graph) == ["captum_krypton.join_block"]
    made, exact = run(graph, x), norm.double()(x.double()).detach()
    assert made.dtype == dtype
    allowed = 1e-5 + torch.finfo(dtype).eps / 2 * exact.abs()
    assert ((made - exact).abs() <= allowed).all()


def test_a_convolution_that_others_read_keeps_its_norm() -> None:
    network = conv_norm(nn.Conv2d)

    def forward(x: Tensor) -> Tensor:
        y = network[0](x)
        return (network[1](y) + y).flatten(1)

    x = torch.rand(2, 3, 8, 8)
    graph = simplified(graph_of(forward, x))
    assert len(names(graph)) == 4
    torch.testing.assert_close(run(graph, x), forward(x).detach())


def test_linear_layers_come_back() -> None:
    network = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3, bias=False))
    x = torch.rand(2, 6, 5)
    graph = simplified(graph_of(lambda x: network(x).mean(1), x))
    assert names(graph)[:3] == ["linear", "relu", "linear"]
    torch.testing.assert_close(run(graph, x), network(x).mean(1).detach())


def test_only_the_selected_token_is_computed() -> None:
    torch.manual_seed(0)
    norm, layers = nn.LayerNorm(4), nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))
    scale = torch.rand(5, 1)

    def forward(x: Tensor) -> Tensor:
        mixed = x + x.softmax(1)  # (N, 5, 4)
        return norm(mixed + layers(mixed * scale))[:, -2]

    x = torch.rand(3, 5, 4)
    graph = simplified(graph_of(forward, x))
    sizes = {n.name.split(".")[1]: graph.size(n.outputs[0], 7) for n in graph.nodes}
    assert sizes["linear"] == sizes["native_layer_norm"] == (7, 4)
    assert sizes["gelu"] == (7, 6)
    assert sizes["_softmax"] == (7, 5, 4)
    torch.testing.assert_close(run(graph, x), forward(x).detach())


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: (y := x.relu())[:, 1] + y.sum(1),  # others read it
        lambda x: (y := x.relu())[:, 1] + y[:, 0],  # by two indices
        lambda x: (y := x.relu())[:, 1] + y[:, 1].relu(),  # twice by the same one
        lambda x: F.layer_norm(x, (5, 4))[:, 2],  # along the normalised dimension
        lambda x: F.linear(x, torch.ones(3, 4))[..., 1],  # along the features
        lambda x: (x.relu() + 1)[:, :, 2].relu(),
        lambda x: (x[:, :1] * x)[:, 3],  # a dimension of size one
        lambda x: (x * torch.ones(4, dtype=torch.float64))[..., 1],  # a type of its own
    ],
)
def test_what_a_selection_may_not_or_may_change(forward: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(3, 5, 4)
    graph = simplified(graph_of(forward, x))
    torch.testing.assert_close(run(graph, x), forward(x).detach())


def test_fused_attention_does_not_depend_on_the_recorded_layout() -> None:
    """Volumes are put together in a layout that the kernel of the recorded call cannot read."""

    def forward(x: Tensor) -> Tensor:
        tokens = x.contiguous(memory_format=torch.channels_last).flatten(2).mT
        return F.scaled_dot_product_attention(tokens, tokens, tokens).flatten(1)

    x = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    assert "attention" in " ".join(names(simplified(graph_of(forward, x))))
    explainer = KryptonOcclusion(forward, self_check=False)
    scores = explainer.heatmap(x, (2, 1, 1), target=None).scores  # (1, 18, 3, 3)
    covered = x.repeat(9, 1, 1, 1)
    for window in range(9):
        covered[window, :, window // 3, window % 3] = 0
    torch.testing.assert_close(scores.reshape(18, 9).t(), forward(covered))
