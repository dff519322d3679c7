"""Rules for operators that rename, drop or regroup dimensions without touching a window axis."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from .._capture import BatchInt, Node, Value, ValueId
from .pick import squeezed
from .rule import Dims, Kind, PatchRule, Rule, View, batch_rows

__all__ = ["expand", "permute", "pick", "regroup", "reshape", "scatter"]

aten = torch.ops.aten


def permute(node: Node, view: View) -> Rule | None:
    """permute, transpose, t, movedim: every dimension kept, in another order."""
    source = node.operands()[0]
    rank = len(view.graph.shapes[source])
    if node.name == "aten.permute":
        order = [d % rank for d in node.args[1]]
    elif node.name == "aten.transpose":
        a, b = (d % rank for d in node.args[1:3])
        order = list(range(rank))
        order[a], order[b] = b, a
    else:
        return None
    if order[0] != 0:
        return None
    dims = tuple(None if d is None else order.index(d) for d in view.dims[source])
    return PatchRule(node, view, dims, fresh=False)


def reshape(node: Node, view: View) -> Rule | None:
    """view, reshape, squeeze and unsqueeze that leave every window axis a dimension of its own."""
    source, target = node.operands()[0], node.results[0]
    if not batch_rows(view, source) or not batch_rows(view, target):
        return None
    before, after, own = view.shape(source), view.shape(target), view.dims[source]
    dims = _matching(before, after, own)
    if dims is None:
        single = {axis: (0, 1) for axis, d in enumerate(own) if d is not None and before[d] == 1}
        left = tuple(None if axis in single else d for axis, d in enumerate(own))
        dims = _matching(before, after, left)
        return squeezed(node, view, dims, single, after) if single and dims is not None else None

    rewrite = _for_patches(source, after, dims)
    plain = Node(aten.reshape.default, (Value(source), []), {}, node.outputs)
    return PatchRule(plain, view, dims, rewrite=rewrite, fresh=False)


def _for_patches(
    source: ValueId, after: tuple[int, ...], dims: Dims
) -> Callable[[tuple[int | None, ...]], tuple[Any, dict[str, Any]]]:
    """Arguments (input, shape) whose shape has patches' sizes along the window axes."""

    def rewrite(sizes: tuple[int | None, ...]) -> tuple[Any, dict[str, Any]]:
        shape: list[Any] = list(after)
        shape[0] = BatchInt(1, 0)
        for dim, size in zip(dims, sizes, strict=True):
            if dim is not None:
                shape[dim] = size
        return (Value(source), shape), {}

    return rewrite


def _matching(before: tuple[int, ...], after: tuple[int, ...], dims: Dims) -> Dims | None:
    """The dimensions of `after` that are the given dimensions of `before`, unmixed."""
    found: list[int | None] = []
    for dim in dims:
        if dim is None:
            found.append(None)
            continue
        lead, trail = math.prod(before[:dim]), math.prod(before[dim + 1 :])
        matches = [
            d
            for d in range(1, len(after))
            if after[d] == before[dim]
            and math.prod(after[:d]) == lead
            and math.prod(after[d + 1 :]) == trail
        ]
        if not matches:
            return None
        found.append(matches[-1] if dim == len(before) - 1 else matches[0])
    kept = [d for d in found if d is not None]
    ordered = [d for _, d in sorted(zip([d for d in dims if d is not None], kept, strict=True))]
    if len(set(kept)) != len(kept) or ordered != sorted(kept):
        return None
    return tuple(found)


def expand(node: Node, view: View) -> Rule | None:
    """Expand along dimensions that carry no window axis."""
    source, target = node.operands()[0], node.results[0]
    if not batch_rows(view, source) or not batch_rows(view, target):
        return None
    before, after = view.shape(source), view.shape(target)
    if len(before) != len(after):
        return None
    dims = view.dims[source]
    if any(d is not None and before[d] != after[d] for d in dims):
        return None

    rewrite = _for_patches(source, after, dims)
    return PatchRule(node, view, dims, rewrite=rewrite, fresh=False)


def pick(node: Node, view: View) -> Rule | None:
    """slice, select, split, chunk, unbind and index_select along another dimension."""
    source = node.operands()[0]
    if not batch_rows(view, source) or len(view.locals(node)) != len(set(node.operands())):
        if node.name != "aten.index_select" or view.kinds[source] is not Kind.LOCAL:
            return None
    dim = node.bound().get("dim", 0) % len(view.graph.shapes[source])
    if dim == 0 or dim in view.dims[source]:
        return None
    gone = node.name in ("aten.select", "aten.unbind")
    dims = tuple(None if d is None else d - (gone and d > dim) for d in view.dims[source])
    return PatchRule(node, view, dims, fresh=False)


def scatter(node: Node, view: View) -> Rule | None:
    """slice_scatter and select_scatter along a dimension that carries no window axis."""
    into, part = node.operands()[:2]
    named = node.bound()
    if view.kinds[into] is not Kind.LOCAL:
        return None
    rank = len(view.graph.shapes[into])
    dim = named["dim"] % rank
    dims = view.dims[into]
    if dim == 0 or dim in dims or not batch_rows(view, part):
        return None
    lost = node.name == "aten.select_scatter"
    wanted = tuple(None if d is None else d - (lost and d > dim) for d in dims)
    known = dict(view.dims)
    if view.kinds[part] is Kind.LOCAL:
        if view.dims[part] != wanted:
            return None
    else:
        known[part] = wanted
    return PatchRule(node, View(view.graph, view.kinds, known), dims)


def regroup(node: Node, view: View) -> Rule | None:
    """channel_shuffle: channels in another order."""
    source = node.operands()[0]
    if 1 in view.dims[source]:
        return None
    return PatchRule(node, view, view.dims[source])
