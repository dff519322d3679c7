"""Folds a scale and an offset of each channel into the convolution that makes the channels."""

from __future__ import annotations

import torch
from torch import Tensor

from .graph import Graph, Node, Value, ValueId, is_convolution

__all__ = ["fold_scale"]


def fold_scale(
    graph: Graph, conv: Node, scale: Tensor, offset: Tensor | None, output: ValueId
) -> bool:
    """Lets a convolution make `output`, which was its own output times a scale, and an offset.

    Args:
        graph: the graph; gets new constants.
        conv: what makes the value that only the scale reads.
        scale: a number for each channel, float64.
        offset: the same; none: zeros.
        output: the value.

    Returns:
        False, with nothing changed, where `conv` is no convolution that could.
    """
    if not is_convolution(conv):
        return False
    if any(v not in graph.constants for v in conv.operands()[1:]):
        return False
    call = conv.bound()
    weight = graph.constants[call["weight"].id]
    if weight.dtype not in (torch.float32, torch.float64):
        return False  # folded weights would be rounded once more
    per_output = scale.reshape(-1, *([1] * (weight.dim() - 1)))
    if call["transposed"]:  # (C, K, *kernel), K that of a group: inputs in groups come first
        groups = call["groups"]
        if type(groups) is not int or scale.numel() != weight.shape[1] * groups:
            return False
        of_groups = per_output.unflatten(0, (groups, 1, -1)).squeeze(3)
        folded = (weight.double().unflatten(0, (groups, -1)) * of_groups).flatten(0, 1)
    elif scale.numel() == len(weight):
        folded = weight.double() * per_output
    else:
        return False
    new_weight = graph.new_value(tuple(weight.shape), weight.dtype)
    graph.constants[new_weight] = folded.to(weight.dtype)
    new_bias = None
    if call["bias"] is not None or offset is not None:
        made = torch.zeros_like(scale) if offset is None else offset
        if call["bias"] is not None:
            made = made + graph.constants[call["bias"].id].double() * scale
        new_bias = Value(graph.new_value(tuple(scale.shape), weight.dtype))
        graph.constants[new_bias.id] = made.to(weight.dtype)
    args = list(conv.args)
    args[1], args[2] = Value(new_weight), new_bias
    conv.args, conv.outputs = tuple(args), (output,)
    return True
