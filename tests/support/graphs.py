"""Graphs, captured and run again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from captum_krypton._capture import captured
from captum_krypton._capture.graph import Graph
from captum_krypton._run.interpreter import prepare_constants, run_graph


def graph_of(forward: Callable[..., Tensor], *arguments: Tensor) -> Graph:
    return captured(forward, arguments, (True,) * len(arguments)).graph


def run(graph: Graph, *inputs: Tensor) -> Tensor:
    with torch.no_grad():
        output, _ = run_graph(graph, prepare_constants(graph, False), inputs, frozenset())
    return output


def names(graph: Graph) -> list[str]:
    return [node.name.removeprefix("aten.") for node in graph.nodes]


def conv_norm(kind: type[nn.Module], groups: int = 1, **arguments: bool) -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, **arguments)
    if norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    return nn.Sequential(kind(2 + groups, 4, 3, groups=groups), norm, nn.Flatten()).eval()
