"""Rewrites a captured graph into one that is cheaper to run and means the same.

Linear layers over a last dimension come back from the flattened products that ATen makes of them,
and those over channels become convolutions. Convolutions in 16 bits, on the CPU, get weights in
float32. Batch norms with constant statistics are folded into the convolution before them, or become
a scale and a shift. Average poolings and 1 x 1 convolutions run in the cheaper order. Of what only
one index is read (a class token) the rest is not computed. Copies go, and views become reshapes, so
that patches may have any memory layout.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._kernels import join_block
from .commute import commute
from .graph import BatchInt, Graph, Node, Value, ValueId, map_arguments
from .linear import as_convolutions
from .recorder import trains
from .scale import fold_scale
from .widen import is_half, widen_convolutions

__all__ = ["simplified"]

aten = torch.ops.aten
_VIEWS = {"aten.view", "aten._unsafe_view", "aten._reshape_alias"}
_BATCH_NORMS = {
    "aten.native_batch_norm",
    "aten.cudnn_batch_norm",
    "aten.miopen_batch_norm",
    "aten._native_batch_norm_legit_no_training",
    "aten._batch_norm_no_update",
}
_IDENTITIES = {"aten.detach", "aten.alias", "aten.lift_fresh", "aten.clone"}


def simplified(graph: Graph) -> Graph:
    """An equivalent graph with fewer operators; constants may be new tensors."""
    constants = dict(graph.constants)
    graph = Graph(
        list(graph.nodes), graph.inputs, graph.output, graph.shapes, graph.dtypes, constants
    )
    _drop_identities(graph)
    _separate_rows(graph)
    _restore_linear(graph)
    _restore_bias(graph)
    widen_convolutions(graph)
    _fold_batch_norms(graph)
    _scale_by_batch_norms(graph)
    graph = graph.dead_code_eliminated()  # such as the views of a restored layer: they read too
    commute(graph)
    _select_early(graph)
    _pack_operands(graph)
    graph = as_convolutions(graph).dead_code_eliminated()
    for i, node in enumerate(graph.nodes):
        if node.name in _VIEWS:
            shape = list(node.args[1])
            if len(graph.shapes[node.outputs[0]]) == len(shape):
                shape = list(graph.shapes[node.outputs[0]])
            graph.nodes[i] = Node(aten.reshape.default, (node.args[0], shape), {}, node.outputs)
    return graph


def _replace(graph: Graph, old: ValueId, new: ValueId) -> None:
    """Makes every reader of `old` read `new`."""

    def swap(value: Value) -> Value:
        return Value(new) if value.id == old else value

    for node in graph.nodes:
        if old in node.operands():
            node.args = map_arguments(node.args, swap)
            node.kwargs = map_arguments(node.kwargs, swap)
    if graph.output == old:
        graph.output = new


def _drop_identities(graph: Graph) -> None:
    for node in list(graph.nodes):
        if node.name in _IDENTITIES and isinstance(node.args[0], Value):
            _replace(graph, node.outputs[0], node.args[0].id)


def _restore_linear(graph: Graph) -> None:
    """Makes one linear layer of a view, a product with a constant and the view back."""
    producers, users = graph.producers(), graph.users()
    for i, node in enumerate(list(graph.nodes)):
        if node.name not in ("aten.addmm", "aten.mm") or len(node.kwargs) > 0:
            continue
        operands = node.operands()
        bias = operands[0] if node.name == "aten.addmm" else None
        rows, weight = operands[-2:]
        flat = producers.get(rows)
        if weight not in graph.constants or flat is None or flat.name not in _VIEWS:
            continue
        source = flat.operands()[0]
        shape, out_features = graph.shapes[source], graph.shapes[node.outputs[0]][-1]
        restored = [u for u in users.get(node.outputs[0], []) if u.name in _VIEWS]
        if len(shape) < 3 or len(restored) != len(users.get(node.outputs[0], [])):
            continue
        if graph.shapes[rows][-1] != shape[-1] or node.outputs[0] == graph.output:
            continue
        target = (*shape[:-1], out_features)
        if not restored or any(graph.shapes[u.outputs[0]] != target for u in restored):
            continue
        if bias is not None and bias not in graph.constants:
            continue
        transposed = graph.new_value(tuple(graph.constants[weight].t().shape), graph.dtypes[weight])
        graph.constants[transposed] = graph.constants[weight].t()
        merged = graph.new_value(target, graph.dtypes[node.outputs[0]])
        args = (Value(source), Value(transposed), None if bias is None else Value(bias))
        graph.nodes[i] = Node(aten.linear.default, args, {}, (merged,))
        for user in restored:
            _replace(graph, user.outputs[0], merged)
        producers, users = graph.producers(), graph.users()


def _restore_bias(graph: Graph) -> None:
    """Gives a linear layer the bias that ATen adds afterwards where its input was strided."""
    users = graph.users()
    gone: set[int] = set()
    for node in graph.nodes:
        if node.name != "aten.linear" or len(node.operands()) > 2:
            continue
        output = node.outputs[0]
        readers = users.get(output, [])
        if len(readers) != 1 or output == graph.output or readers[0].name != "aten.add":
            continue
        (add,) = readers
        bias = [value for value in add.operands() if value in graph.constants]
        shapes = [graph.shapes[value] for value in bias]
        if add.kwargs or len(add.args) != 2 or shapes != [graph.shapes[output][-1:]]:
            continue
        if len({graph.dtypes[v] for v in (bias[0], output, *add.outputs)}) > 1:
            continue
        node.args, node.outputs = (*node.args[:2], Value(bias[0])), add.outputs
        gone.add(id(add))
    graph.nodes[:] = [node for node in graph.nodes if id(node) not in gone]


def _fold_batch_norms(graph: Graph) -> None:
    """Lets the convolution before a batch norm make what the norm did."""
    producers, users = graph.producers(), graph.users()
    folded_norms: set[int] = set()
    for node in graph.nodes:
        if not _is_scale(node) or any(users.get(v) for v in node.outputs[1:]):
            continue
        named = node.bound()
        source = node.operands()[0]
        conv = producers.get(source)
        others = [v for v in node.operands()[1:] if v not in graph.constants]
        if conv is None or others or source == graph.output or len(users[source]) != 1:
            continue
        if fold_scale(graph, conv, *_affine(graph, named), node.outputs[0]):
            producers[node.outputs[0]] = conv
            folded_norms.add(id(node))
    graph.nodes[:] = [node for node in graph.nodes if id(node) not in folded_norms]


def _is_scale(node: Node) -> bool:
    """Whether an operator is a batch norm with given statistics."""
    if node.name not in _BATCH_NORMS:
        return False
    named = node.bound()
    given = all(isinstance(named.get(name), Value) for name in ("running_mean", "running_var"))
    return given and not named.get("training", False)


def _scale_by_batch_norms(graph: Graph) -> None:
    """Makes a scale and a shift for each channel of the batch norms that are left."""
    users = graph.users()
    for i, node in enumerate(graph.nodes):
        if not _is_scale(node) or any(users.get(v) for v in node.outputs[1:]):
            continue
        source, *statistics = node.operands()
        if any(v not in graph.constants for v in statistics):
            continue
        dtype = torch.float32 if is_half(graph, source, statistics[0]) else graph.dtypes[source]
        if dtype not in (torch.float32, torch.float64):
            continue  # a GPU's in 16 bits are rounded in between
        if dtype is graph.dtypes[source] and any(graph.dtypes[v] is not dtype for v in statistics):
            continue
        made = []
        for tensor in _affine(graph, node.bound()):
            made.append(Value(graph.new_value(tuple(tensor.shape), dtype)))
            graph.constants[made[-1].id] = tensor.to(dtype)
        call = ([Value(source)], *made, -math.inf, math.inf)
        graph.nodes[i] = Node(join_block, call, {}, node.outputs[:1])


def _select_early(graph: Graph) -> None:
    """Lets operators compute only the index of their output that is read, such as a class token.

    A selection that is all that reads the output of a point operator, a layer norm or a linear
    layer moves to its operands, as far as it goes.
    """
    position, users = len(graph.nodes) - 1, graph.users()
    while position >= 0:
        node = graph.nodes[position]
        readers = users.get(node.outputs[0], [])
        selection = _only_selection(readers)
        if selection is None or graph.output == node.outputs[0] or len(node.results) > 1:
            position -= 1
            continue
        narrow = _of_selected(graph, node, *selection)
        if narrow is None:
            position -= 1
            continue
        for reader in readers:
            _replace(graph, reader.outputs[0], narrow[-1].outputs[0])
        graph.nodes[position : position + 1] = narrow
        graph.nodes[:] = [n for n in graph.nodes if not any(n is reader for reader in readers)]
        position, users = len(graph.nodes) - 1, graph.users()  # selections may have met


def _only_selection(readers: list[Node]) -> tuple[int, int] | None:
    """Dimension and index, where the same selection is all that reads a value."""
    found = set()
    for node in readers:
        dim, index = (*node.args[1:], None, None)[:2]
        if node.name != "aten.select" or type(dim) is not int or type(index) is not int:
            return None
        found.add((dim, index))
    return found.pop() if len(found) == 1 else None


def _of_selected(graph: Graph, node: Node, dim: int, index: int) -> list[Node] | None:
    """Selections of a node's operands and the node on them; None where it mixes the dimension."""
    shape = graph.shapes[node.outputs[0]]
    behind = len(shape) - dim % len(shape)  # the dimension, counted from the last
    operands = node.operands()
    if node.name == "aten.native_layer_norm" and behind > len(node.args[1]):
        narrowed = set(operands[:1])
    elif node.name == "aten.linear" and behind > 1:
        narrowed = set(operands[:1])
    elif torch.Tag.pointwise in node.op.tags:  # type: ignore[attr-defined]
        narrowed = {v for v in operands if len(graph.shapes[v]) >= behind}
    else:
        return None
    if any(len(graph.shapes[v]) == 1 for v in narrowed):
        return None  # a tensor without dimensions counts as a number, which has a say in no type

    def without(value: ValueId) -> ValueId:
        own = graph.shapes[value]
        cut = len(own) - behind
        return graph.new_value((*own[:cut], *own[cut + 1 :]), graph.dtypes[value])

    new = {value: without(value) for value in sorted(narrowed)}
    made = []
    for value, selected in new.items():
        own = graph.shapes[value]
        place = index if own[-behind] == shape[-behind] else 0  # a broadcast dimension of size 1
        args = (Value(value), len(own) - behind, place)
        made.append(Node(aten.select.int, args, {}, (selected,)))
    args, kwargs = map_arguments(
        (node.args, node.kwargs), lambda value: Value(new.get(value.id, value.id))
    )
    outputs = (without(node.outputs[0]), *[-1] * (len(node.outputs) - 1))
    return [*made, Node(node.op, args, kwargs, outputs, node.several)]


class _RowByRow:
    """An operator that is called for one row after another of its first argument."""

    def __init__(self, op: Any) -> None:
        self._op, self._schema, self.tags = op, op._schema, ()
        self.__name__ = str(op.overloadpacket)

    def __call__(self, rows: Tensor, *rest: Any, **named: Any) -> Tensor:
        return torch.cat([self._op(row, *rest, **named) for row in rows.split(1)])


def _separate_rows(graph: Graph) -> None:
    """Dynamically quantised layers take their scale from all rows that they see: from one each."""
    for i, node in enumerate(graph.nodes):
        if node.name.startswith("quantized.") and "dynamic" in node.name:
            first = graph.shapes[node.operands()[0]][:1]
            if first == (BatchInt(1, 0),) and len(node.outputs) == 1:
                op = _RowByRow(node.op)
                graph.nodes[i] = Node(op, node.args, node.kwargs, node.outputs)


# Operators that read memory as it lies: the recorded call had packed operands where they matter.
# Norms are here since PyTorch's lose digits where channels are last.
_READS_MEMORY = (
    "as_strided",
    "_scaled_dot_product_",
    "_transformer_encoder_layer_fwd",
    "_native_multi_head_attention",
    "_flash_attention",
    "_efficient_attention",
    "mkldnn_rnn_layer",
    "_cudnn_rnn",
    "miopen_rnn",
    "native_group_norm",
)


def _reads_memory(node: Node) -> bool:
    """Whether an operator may rely on the strides of its operands; one of others may."""
    space, _, name = node.name.partition(".")
    if "batch_norm" in name:  # instance norm is one, of one row
        return trains(node.bound())
    return space not in ("aten", "captum_krypton") or name.startswith(_READS_MEMORY)


def _pack_operands(graph: Graph) -> None:
    """Gives operators that rely on their operands' memory packed ones.

    Patches and volumes may have other strides than the recorded call's, and copies that packed them
    are gone.
    """
    for i in reversed(range(len(graph.nodes))):
        node = graph.nodes[i]
        if not _reads_memory(node):
            continue
        packed: list[Node] = []

        def pack(value: Value, packed: list[Node] = packed) -> Value:
            if len(graph.shapes[value.id]) < 2:  # such as a norm's weight
                return value
            made = graph.new_value(graph.shapes[value.id], graph.dtypes[value.id])
            packed.append(Node(aten.contiguous.default, (value,), {}, (made,)))
            return Value(made)

        node.args, node.kwargs = map_arguments((node.args, node.kwargs), pack)
        graph.nodes[i:i] = packed


def _affine(graph: Graph, named: dict[str, object]) -> tuple[Tensor, Tensor]:
    """A batch norm as `x * scale + offset`, in float64."""

    def tensor(name: str) -> Tensor | None:
        value = named.get(name)
        return graph.constants[value.id].double() if isinstance(value, Value) else None

    mean, var = tensor("running_mean"), tensor("running_var")
    assert mean is not None and var is not None
    eps = named.get("eps", named.get("epsilon"))
    assert isinstance(eps, float)
    scale = torch.rsqrt(var + eps)
    weight, bias = tensor("weight"), tensor("bias")
    if weight is not None:
        scale = scale * weight
    offset = -mean * scale
    return scale, offset if bias is None else offset + bias
