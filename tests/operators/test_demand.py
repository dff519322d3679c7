"""What an output depends on, against gradients and against cells that are changed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graphs import graph_of
from hypothesis import assume, given
from hypothesis import strategies as st
from layers import Draw
from networks import noise
from readings import dense_networks
from torch import Tensor

from captum_krypton._capture import narrowed, resolve
from captum_krypton._capture.simplify import simplified
from captum_krypton._operators import Kind
from captum_krypton._operators.regions import bounded, hull, index_map_demand, window_demand
from captum_krypton._plan import Analysis, analyse, fused
from captum_krypton._run.interpreter import store

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def test_hulls_and_bounds() -> None:
    assert hull((2, 4), (6, 7)) == (2, 7)
    assert hull((3, 3), (6, 7)) == hull((6, 7), (0, 0)) == (6, 7)
    assert bounded((-2, 3), 5) == (0, 3) and bounded((4, 9), 5) == (4, 5)
    assert bounded((7, 9), 5) == (5, 5) and bounded((-3, -1), 5) == (0, 0)


@given(
    start=st.integers(0, 12),
    length=st.integers(1, 6),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 3),
    size=st.integers(1, 30),
)
def test_window_demand_holds_every_tap_and_no_more(
    start: int, length: int, kernel: int, stride: int, padding: int, dilation: int, size: int
) -> None:
    cells = (start, start + length)
    taps = [o * stride - padding + t * dilation for o in range(*cells) for t in range(kernel)]
    got = window_demand(
        cells, kernel=kernel, stride=stride, padding=padding, dilation=dilation, size=size
    )
    low, high = max(0, min(taps)), min(size, max(taps) + 1)
    assert got == (low, high) if low < high else got[0] == got[1]


@given(data=st.data(), size=st.integers(1, 9), out=st.integers(1, 9))
def test_index_map_demand_against_a_loop(data: st.DataObject, size: int, out: int) -> None:
    cell = st.integers(0, size - 1)
    taps = np.array(data.draw(st.lists(st.tuples(cell, cell), min_size=out, max_size=out)))
    start = data.draw(st.integers(0, out - 1))
    stop = data.draw(st.integers(start + 1, out))
    read = [t for o in range(start, stop) for t in taps[o]]
    assert index_map_demand((start, stop), taps) == (min(read), max(read) + 1)


LINES: dict[str, Callable[[Draw], Callable[[Tensor], Tensor]]] = {}


def line(make: Callable[[Draw], Callable[[Tensor], Tensor]]) -> None:
    LINES[make.__name__] = make


def weights(draw: Draw, *shape: int) -> Tensor:
    """Numbers that no sum of theirs cancels."""
    return noise(draw, shape).abs() + 0.1


@line
def convolution(draw: Draw) -> Callable[[Tensor], Tensor]:
    weight = weights(draw, 2, 2, draw(st.integers(1, 4)))
    stride, padding = draw(st.integers(1, 3)), draw(st.integers(0, 3))
    return lambda x: F.conv1d(x, weight, None, stride, padding)


@line
def dilated(draw: Draw) -> Callable[[Tensor], Tensor]:
    weight, padding = weights(draw, 2, 2, draw(st.integers(1, 4))), draw(st.integers(0, 3))
    return lambda x: F.conv1d(x, weight, None, 1, padding, 2)


@line
def residual(draw: Draw) -> Callable[[Tensor], Tensor]:
    weight = weights(draw, 2, 2, 3)
    return lambda x: F.conv1d(x, weight, padding=1) + x


@line
def transposed(draw: Draw) -> Callable[[Tensor], Tensor]:
    kernel, stride = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    weight, padding = weights(draw, 2, 2, kernel), draw(st.integers(0, kernel - 1))
    extra = draw(st.integers(0, stride - 1))
    return lambda x: F.conv_transpose1d(x, weight, None, stride, padding, extra)


@line
def transposed_dilated(draw: Draw) -> Callable[[Tensor], Tensor]:
    weight, stride = weights(draw, 2, 2, draw(st.integers(1, 4))), draw(st.integers(1, 3))
    return lambda x: F.conv_transpose1d(x, weight, None, stride, 0, 0, 1, 2)


@line
def average(draw: Draw) -> Callable[[Tensor], Tensor]:
    kernel, stride = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    padding, ceil = draw(st.integers(0, kernel // 2)), draw(st.booleans())
    return lambda x: F.avg_pool1d(x, kernel, stride, padding, ceil)


@line
def interpolated(draw: Draw) -> Callable[[Tensor], Tensor]:
    size, mode = draw(st.integers(1, 20)), draw(st.sampled_from(["linear", "nearest"]))
    return lambda x: F.interpolate(x, size, mode=mode)


@line
def padded(draw: Draw) -> Callable[[Tensor], Tensor]:
    pads = [draw(st.integers(-2, 4)), draw(st.integers(-2, 4))]
    return lambda x: F.pad(x, pads, value=0.5)


@line
def reflected(draw: Draw) -> Callable[[Tensor], Tensor]:
    pads, mode = [draw(st.integers(0, 3)), draw(st.integers(0, 3))], draw(st.sampled_from(MODES))
    return lambda x: F.pad(x, pads, mode)


MODES = ["reflect", "replicate"]


@line
def sliced(draw: Draw) -> Callable[[Tensor], Tensor]:
    start, step = draw(st.integers(0, 4)), draw(st.integers(1, 3))
    return lambda x: x[..., start::step]


@line
def flipped(draw: Draw) -> Callable[[Tensor], Tensor]:
    return lambda x: x.flip(-1).relu()


@line
def joined(draw: Draw) -> Callable[[Tensor], Tensor]:
    first = draw(st.integers(1, 5))
    return lambda x: torch.cat([x[..., :first], x.flip(-1) * 2, x[..., :2]], -1)


@line
def scattered(draw: Draw) -> Callable[[Tensor], Tensor]:
    return lambda x: x.slice_scatter(x[..., :3] * 2, -1, 4, 7)


@line
def chosen(draw: Draw) -> Callable[[Tensor], Tensor]:
    mask = torch.zeros(9, dtype=torch.bool)
    mask[draw(st.integers(0, 4)) : draw(st.integers(5, 9))] = True
    return lambda x: torch.where(mask, x, 1.0)


@line
def filled(draw: Draw) -> Callable[[Tensor], Tensor]:
    mask = torch.zeros(9, dtype=torch.bool)
    mask[: draw(st.integers(0, 8))] = True
    return lambda x: x.masked_fill(mask, 1.0)


# Of taps that are apart some may lie outside; what is written over is asked for.
LOOSE = {"dilated", "scattered", "transposed_dilated"}


@pytest.mark.parametrize("name", LINES)
@given(data=st.data())
def test_an_operator_asks_for_what_has_a_gradient(name: str, data: st.DataObject) -> None:
    """Along one axis: the hull of the inputs that the gradient of some outputs reaches."""
    operator = LINES[name](data.draw)
    x = weights(data.draw, 1, 2, 9).requires_grad_()
    try:
        output = operator(x)
    except RuntimeError:
        assume(False)
    assume(0 not in output.shape)
    start = data.draw(st.integers(0, output.shape[-1] - 1))
    stop = data.draw(st.integers(start + 1, output.shape[-1]))
    (gradient,) = torch.autograd.grad(output[..., start:stop].sum(), x, allow_unused=True)
    read = [] if gradient is None else gradient.abs().sum((0, 1)).nonzero().flatten().tolist()
    graph = narrowed(
        simplified(graph_of(operator, x.detach())), ((0, output.shape[1]), (start, stop))
    )
    (asked,) = analyse(graph, graph.inputs[0], (2,)).demands[graph.inputs[0]]
    assert asked is not None
    if name in LOOSE:
        assert not read or (asked[0] <= read[0] and read[-1] < asked[1])
    else:
        assert asked == (read[0], read[-1] + 1) if read else asked[0] == asked[1]


def disturbed(analysis: Analysis, x: Tensor) -> Tensor:
    """The output where every local value holds noise in the cells that nobody is to ask for."""
    graph, seed = analysis.graph, torch.Generator().manual_seed(0)
    values = dict(zip(graph.inputs, (x,), strict=True))
    for node in [None, *graph.nodes]:
        if node is not None:
            args, kwargs = resolve(
                (node.args, node.kwargs),
                lambda v: graph.constants[v] if v in graph.constants else values[v],
                len(x),
            )
            store(values, node, node.op(*args, **kwargs))
        for value in graph.inputs if node is None else node.results:
            tensor = values[value]
            if analysis.kinds[value] is not Kind.LOCAL or not tensor.is_floating_point():
                continue
            inside = torch.ones(tensor.shape, dtype=torch.bool)
            for dim, cells in zip(analysis.dims[value], analysis.demands[value], strict=True):
                if dim is not None and cells is not None:
                    place = torch.arange(tensor.shape[dim])
                    along = (place >= cells[0]) & (place < cells[1])
                    inside &= along.reshape([-1 if d == dim else 1 for d in range(tensor.dim())])
            other = torch.randn(tensor.shape, generator=seed).to(tensor.dtype)
            values[value] = torch.where(inside, tensor, other)
    return values[graph.output]


@pytest.mark.parametrize("rank", [1, 2, 3])
@given(data=st.data())
def test_nothing_else_is_read(rank: int, data: st.DataObject) -> None:
    """Cells that no operator asks for may hold anything, in all values at once."""
    sizes = {1: (5, 20), 2: (5, 12), 3: (4, 6)}[rank]
    shape = (2, *(data.draw(st.integers(*sizes)) for _ in range(rank)))
    network = data.draw(dense_networks(shape))
    x = noise(data.draw, (1, *shape))
    with torch.no_grad():
        graph = simplified(graph_of(network, x))
        part = []
        for size in graph.size(graph.output, 1)[1:]:
            start = data.draw(st.integers(0, size - 1))
            part.append((start, data.draw(st.integers(start + 1, size))))
        graph = narrowed(graph, tuple(part))
        axes = tuple(range(2, 2 + rank))
        analysis = analyse(graph, graph.inputs[0], axes)
        expected = network(x.clone())
        for dim, (start, stop) in enumerate(part, 1):
            expected = expected.narrow(dim, start, stop - start)
        scale = 1 + float(expected.abs().max())
        for seen in (analysis, analyse(fused(analysis), graph.inputs[0], axes)):
            output = disturbed(seen, x.clone())
            torch.testing.assert_close(output, expected, rtol=0, atol=1e-9 * scale)
