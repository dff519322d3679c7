"""Makes convolutions of linear layers that act on the channels of a volume.

Transformers and ConvNeXt keep channels last and multiply by linear layers. As convolutions of one
tap they run by the compiled kernels, which compute the cells that a window reaches and no others,
and take the sum and the activation that follow along. In memory nothing moves: volumes have their
channels last anyhow.
"""

from __future__ import annotations

import torch

from .graph import BatchInt, Graph, Node, Value, ValueId, is_pointwise, map_arguments
from .scale import fold_scale
from .widen import is_half, widen_convolutions

__all__ = ["as_convolutions"]

aten = torch.ops.aten
_TO_LAST, _TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def as_convolutions(graph: Graph) -> Graph:
    """An equivalent graph without such linear layers; constants may be new tensors."""
    if not any(_acts_on_channels(graph, node) for node in graph.nodes):
        return graph
    rewritten = _Rewriting(graph).graph.dead_code_eliminated()
    widen_convolutions(rewritten)
    _fold_scales(rewritten)
    return rewritten


def _acts_on_channels(graph: Graph, node: Node) -> bool:
    """Whether the operator is a linear layer on (N, H, W, C) that kernels could run."""
    if node.name != "aten.linear":
        return False
    source, *constants = node.operands()
    if not _is_volume(graph, source) or any(value not in graph.constants for value in constants):
        return False
    return graph.dtypes[source] is torch.float32 or is_half(graph, source, constants[0])


def _is_volume(graph: Graph, value: ValueId) -> bool:
    rows, *sizes = graph.shapes[value] or (1,)
    plain = all(isinstance(size, int) and size > 1 for size in sizes[:2])
    return rows == BatchInt(1, 0) and len(sizes) == 3 and plain


class _Rewriting:
    """Goes through the operators once.

    Attributes:
        graph: the new graph; what is no longer read is still there.
        twins: for values (N, H, W, C), the value (N, C, H, W) that holds the same.
    """

    def __init__(self, old: Graph) -> None:
        self.graph = Graph(
            [], old.inputs, old.output, dict(old.shapes), dict(old.dtypes), dict(old.constants)
        )
        self.twins: dict[ValueId, ValueId] = {}
        self._same: dict[ValueId, ValueId] = {}  # values that are others by now
        self._convolved: set[ValueId] = set()  # outputs of what was a linear layer
        for node in old.nodes:
            self._take(node)
        self.graph.output = self._same.get(old.output, old.output)

    def _take(self, old: Node) -> None:
        args, kwargs = map_arguments(
            (old.args, old.kwargs), lambda value: Value(self._same.get(value.id, value.id))
        )
        node = Node(old.op, args, kwargs, old.outputs, old.several)
        order = _order(self.graph, node)
        operands = node.operands()
        if order == _TO_FIRST and operands[0] in self.twins:
            self._same[node.outputs[0]] = self.twins[operands[0]]
        elif order == _TO_LAST:
            self.graph.nodes.append(node)
            self.twins[node.outputs[0]] = operands[0]
        elif _acts_on_channels(self.graph, node):
            self._convolve(node)
        elif self._moves(node):
            moved = map_arguments(node.args, lambda value: Value(self._first(value.id)))
            self._append(node.op, moved, node.outputs[0])
        else:
            self.graph.nodes.append(node)

    def _convolve(self, node: Node) -> None:
        graph = self.graph
        source, weight, *bias = node.operands()
        tensor = graph.constants[weight][:, :, None, None]
        weight = graph.new_value(tuple(tensor.shape), tensor.dtype)
        graph.constants[weight] = tensor
        one, none = [1, 1], [0, 0]
        shift = Value(bias[0]) if bias else None
        call = (Value(self._first(source)), Value(weight), shift, one, none, one, False, none, 1)
        self._convolved.add(self._append(aten.convolution.default, call, node.outputs[0]))

    def _moves(self, node: Node) -> bool:
        """Whether a point operator can as well have its channels first.

        One operand does; a second one is what is added to a linear layer's output, or a scale.
        """
        operands = node.operands()
        output = node.outputs[0]
        if not is_pointwise(node) or len(node.outputs) > 1 or node.kwargs or not operands:
            return False
        shape = self.graph.shapes[output]
        same = all(self.graph.shapes[value] == shape for value in operands)
        if len(operands) == 1:
            return same and operands[0] in self.twins
        if len(operands) != 2:
            return False
        if node.name == "aten.add":
            made = any(self.twins.get(value) in self._convolved for value in operands)
            return same and made and not any(value in self.graph.constants for value in operands)
        scale = [value for value in operands if value in self.graph.constants]
        return (
            node.name == "aten.mul"
            and len(scale) == 1
            and self.graph.constants[scale[0]].numel() == shape[-1]
            and self.graph.constants[scale[0]].shape[-1:] == shape[-1:]
            and any(self.twins.get(value) in self._convolved for value in operands)
        )

    def _first(self, value: ValueId) -> ValueId:
        """The value with its channels first."""
        if value not in self.twins:
            graph = self.graph
            if value in graph.constants:  # a scale
                tensor = graph.constants[value].reshape(1, -1, 1, 1)
                self.twins[value] = graph.new_value(tuple(tensor.shape), tensor.dtype)
                graph.constants[self.twins[value]] = tensor
            else:
                call = (Value(value), list(_TO_FIRST))
                rows, height, width, channels = graph.shapes[value]
                moved = graph.new_value((rows, channels, height, width), graph.dtypes[value])
                graph.nodes.append(Node(aten.permute.default, call, {}, (moved,)))
                self.twins[value] = moved
        return self.twins[value]

    def _append(self, op: object, args: tuple[object, ...], output: ValueId) -> ValueId:
        """An operator with its channels first, and `output` as what it makes with them last."""
        graph = self.graph
        rows, height, width, channels = graph.shapes[output]
        made = graph.new_value((rows, channels, height, width), graph.dtypes[output])
        graph.nodes.append(Node(op, args, {}, (made,)))  # type: ignore[arg-type]
        back = (Value(made), list(_TO_LAST))
        graph.nodes.append(Node(aten.permute.default, back, {}, (output,)))
        self.twins[output] = made
        return made


def _order(graph: Graph, node: Node) -> tuple[int, ...] | None:
    """The order of dimensions that a permutation of four gives."""
    if node.name != "aten.permute" or len(graph.shapes[node.outputs[0]]) != 4:
        return None
    return tuple(dim % 4 for dim in node.args[1])


def _fold_scales(graph: Graph) -> None:
    """Lets a convolution make what a product with a number for each channel makes of its output.

    ConvNeXt scales its blocks so; of other convolutions the same is true.
    """
    producers, users = graph.producers(), graph.users()
    folded: set[int] = set()
    for node in graph.nodes:
        operands = node.operands()
        if node.name != "aten.mul" or node.kwargs or len(operands) != 2:
            continue
        scales = [value for value in operands if value in graph.constants]
        sources = [value for value in operands if value not in graph.constants]
        if len(scales) != 1 or len(users[sources[0]]) != 1 or sources[0] == graph.output:
            continue
        conv, scale = producers.get(sources[0]), graph.constants[scales[0]]
        shape, dtype = graph.shapes[node.outputs[0]], graph.dtypes[node.outputs[0]]
        if conv is None or len(shape) != 4 or {graph.dtypes[v] for v in operands} != {dtype}:
            continue
        if scale.dim() not in (3, 4) or scale.shape[-3:] != (shape[1], 1, 1):
            continue
        if scale.numel() != shape[1]:
            continue
        if fold_scale(graph, conv, scale.reshape(-1).double(), None, node.outputs[0]):
            producers[node.outputs[0]] = conv
            folded.add(id(node))
    graph.nodes[:] = [node for node in graph.nodes if id(node) not in folded]
