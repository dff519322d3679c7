"""Operators that change all of their output, where compiled kernels can go on from there."""

from __future__ import annotations

from .._capture import Node, ValueId, is_pointwise
from .regions import Reach, everywhere
from .rule import Dims, Group, Rule, Step, View, batch_rows, whole_step

__all__ = ["read_by_kernels", "whole"]

_KERNELS = {
    "aten.convolution",
    "captum_krypton.convolution_block",
    "aten.max_pool2d",
    "aten.max_pool2d_with_indices",
    "aten.avg_pool2d",
    "aten.max_pool3d",
    "aten.max_pool3d_with_indices",
    "aten.avg_pool3d",
}


_JOINED = {"aten.cat", "captum_krypton.join_block"}


class _WholeRule(Rule):
    """A global operator whose output counts as local, with patches that are whole volumes."""

    is_global = True

    def __init__(self, node: Node, view: View, dims: Dims) -> None:
        self.node, self.view, self.dims = node, view, dims

    def reach(self, axis: int, operands: dict[ValueId, Reach]) -> Reach:
        return everywhere(next(iter(operands.values())), self.size(axis))

    def step(self, group: Group) -> Step:
        return whole_step(self.node, group)


def whole(node: Node, view: View, axes: int) -> Rule | None:
    """The rule of a global operator with `axes` trailing dimensions that windows move along."""
    if len(node.results) != 1 or not view.changed(node) or not batch_rows(view, node.results[0]):
        return None
    shape = view.shape(node.results[0])
    if len(shape) != axes + 2 or 0 in shape or max(shape[2:]) == 1:
        return None
    return _WholeRule(node, view, tuple(range(2, axes + 2)))


def read_by_kernels(nodes: list[Node]) -> frozenset[ValueId]:
    """The values that operators with compiled kernels read, point by point or as they are."""
    found: set[ValueId] = set()
    for node in reversed(nodes):
        if node.name in _KERNELS:
            found.add(node.operands()[0])
        elif found.intersection(node.results) and (is_pointwise(node) or node.name in _JOINED):
            found.update(node.operands())
    return frozenset(found)
