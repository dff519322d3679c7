"""What is read of a dense output: statements, drawn to fit it."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from layers import Code, Draw, ints
from networks import Case, baselines, geometries, image_shapes, networks, noise, targets
from torch import nn

__all__ = ["dense_networks", "read_cases", "readings"]


@st.composite
def dense_networks(draw: Draw, shape: tuple[int, ...], most: int = 5) -> nn.Module:
    """Networks as `networks` draws them, without a head."""
    return nn.Sequential(*list(draw(networks(shape, classes=0, most=most)))[:-1])


@st.composite
def readings(draw: Draw, shape: tuple[int, ...]) -> nn.Module:
    """A statement that reads a part of outputs (N, *shape), (N, C, *space)."""
    rank = len(shape) - 1
    space = tuple(range(2, 2 + rank))
    places = [draw(st.integers(0, size - 1)) for size in shape[1:]]
    spans = [(i, draw(st.integers(i + 1, size))) for i, size in zip(places, shape[1:], strict=True)]
    pixel = ", ".join(
        str(i - draw(st.sampled_from([0, size]))) for i, size in zip(places, shape[1:], strict=True)
    )
    crop = ", ".join(f"{a}:{b}" for a, b in spans)
    mask = f"m = torch.zeros{tuple(shape[1:])}.bool(); m[{crop}] = True; m[{pixel}] = False; "
    mask += "m[0] = m.any() | m[0]; " if draw(st.booleans()) else ""
    mask += f"m[{pixel}] = True; "
    i, (a, b) = places[0], spans[0]
    channel = draw(st.integers(0, shape[0] - 1))
    return Code(
        draw(
            st.sampled_from(
                [
                    f"x = x[:, :, {pixel}]",
                    f"x = x[:, {channel}, {pixel}].sigmoid()",
                    f"x = x[:, :, {crop}].mean({space})",
                    f"x = x[:, {channel}:, {crop}]",
                    f"x = x[:, {channel}, {crop}].amax(1, keepdim=True)",
                    f"x = F.pad(x, [2, 1])[:, :, {crop}].sum({space})",
                    f"x = x[:, :, {i}]",
                    f"x = x[..., {places[-1]}].relu().sum(-1)",
                    f"x = x[:, :, {i}:{i + 1}].squeeze(2) * 2",
                    f"x = x.narrow(2, {a}, {b - a}).softmax(1).flatten(1)",
                    f"x = x[:, :, [{i}, {b - 1}, {a}]].flatten(2).mean(-1)",
                    f"x = x[..., [{places[-1]}, -1]].flatten(1)",
                    f"x = x.index_select(2, torch.tensor([{b - 1}, {a}])).flatten(2).amax(-1)",
                    f"x = torch.cat([x[:, :, {pixel}], x[:, :, {', '.join(['0'] * rank)}]], 1)",
                    f"x = x[:, :, {crop}] + x[:, :, {pixel}].reshape(-1, {shape[0]}{', 1' * rank})",
                    f"{mask}x = x[:, :, m].mean(-1)",
                    f"{mask}x = torch.where(m, x, 0.5).sum({space})",
                    f"{mask}x = torch.where(m, x.exp(), x).mean({space})",
                    f"{mask}x = x.masked_fill(~m, 0.0).sum({space})",
                    f"{mask}x = (x * m).sum({space})",
                    "x = x",
                ]
            )
        )
    )


@st.composite
def read_cases(draw: Draw, rank: int) -> Case:
    """Dense networks over `rank` axes, a part of their output, and a target in it."""
    shape = draw(image_shapes(rank))
    dense = draw(dense_networks(shape))
    batch = draw(ints(1, 3))
    inputs = noise(draw, (batch, *shape))
    with torch.no_grad():
        made = dense(inputs.clone())
        network = nn.Sequential(dense, draw(readings(tuple(made.shape[1:]))))
        sizes = tuple(network(inputs.clone()).shape[1:])
    window, strides = draw(geometries(shape))
    fill = draw(baselines(batch, shape))
    target = draw(targets(batch, sizes, 200_000 // inputs.numel()))
    return Case(network, inputs, window, strides, fill, target, None, sizes)
