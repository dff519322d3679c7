"""How a window's regions grow through a network, drawn from the plan that a map would run by.

    python examples/benchmarks/regions_figure.py --output regions.png

The upper row has the input and the last value of each size: how much covering one window changes
it, and the patch that the plan computes anew. The lower row has that patch's share of every
operator's output, over all windows.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from _figures import WIDTH
from _shared import build_network, load_image, to_input
from torch import Tensor, nn

from captum_krypton import PREDICTED
from captum_krypton._approximate import Approximation
from captum_krypton._call import Call, Settings, make_call
from captum_krypton._engine import Engine
from captum_krypton._plan import Plan
from captum_krypton._run.interpreter import run_graph

Patch = tuple[tuple[int, int], ...]  # first cell and cells, along each window axis
COLOURS = ("tab:red", "tab:blue")
ACROSS = 3  # panels in a row


def local_values(plan: Plan) -> list[int]:
    """The values that a plan computes in patches along two axes, in the order of operators."""
    operators = zip(plan.analysis.graph.nodes, plan.analysis.rules, strict=True)
    values = [node.results[0] for node, rule in operators if rule is not None]
    boxes = plan.groups[0].boxes
    return [v for v in values if v in boxes and None not in boxes[v]]


def patch_of(plan: Plan, value: int, position: tuple[int, ...]) -> Patch:
    """The cells of a value that are computed anew for the window at a position."""
    for group in plan.groups:
        places = list(zip(group.segments, position, strict=True))
        if all(segment.start <= p < segment.stop for segment, p in places):
            boxes = zip(group.boxes[value], places, strict=True)
            return tuple(
                (int(box.offset[p - segment.start]), int(box.cells[p - segment.start]))
                for box, (segment, p) in boxes
                if box is not None
            )
    raise ValueError(f"position must be one of the plan's windows, not {position}")


def mean_share(plan: Plan, value: int) -> float:
    """The share of a value's cells that is computed anew, the mean over all windows."""
    full = math.prod(plan.analysis.full_size(value, axis) or 1 for axis in range(len(plan.axes)))
    cells = 0.0
    for group in plan.groups:
        sides = [np.asarray(box.cells) for box in group.boxes[value] if box is not None]
        cells += float(math.prod(side.sum() for side in sides))
    return cells / full / math.prod(plan.grid.counts[axis] for axis in plan.axes)


def changes(
    engine: Engine, call: Call, plan: Plan, position: tuple[int, ...], values: list[int]
) -> dict[int, Tensor]:
    """How much covering a window changes each value, (H, W), the mean over channels."""
    compiled, graph = engine.cache.get(engine.forward, call), plan.analysis.graph
    image = call.inputs[0]
    covered = image.clone()
    rows, columns = (
        slice(p * plan.grid.stride[axis], p * plan.grid.stride[axis] + plan.grid.window[axis])
        for p, axis in zip(position, plan.axes, strict=True)
    )
    covered[..., rows, columns] = 0
    keep = frozenset(values)
    with torch.no_grad():
        before, after = (
            run_graph(graph, compiled.constants, (x,), keep)[1] for x in (image, covered)
        )
    return {value: (after[value] - before[value])[0].abs().mean(0) for value in values}


def draw(
    name: str,
    picture: np.ndarray,
    plans: dict[float, Plan],
    changed: dict[int, Tensor],
    position: tuple[int, ...],
    output: str,
) -> None:
    """The figure."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    plan = plans[1.0]
    shown = [plan.analysis.occluded, *changed]
    lines = math.ceil(len(shown) / ACROSS)
    figure = plt.figure(figsize=(WIDTH, 1.95 * lines + 3.6), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.95 * lines, 3.6))
    panels = upper.subplots(lines, ACROSS, squeeze=False).ravel()
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    for panel, value in zip(panels, shown, strict=False):
        side = plan.analysis.full_size(value, 0)
        if value in changed:
            change = changed[value].numpy()
            top = float(change.max()) or 1.0
            panel.imshow(change, cmap="Greys", norm=LogNorm(1e-3 * top, top, clip=True))
        else:
            panel.imshow(picture)
        for (threshold, other), colour in zip(plans.items(), COLOURS, strict=True):
            (row, height), (column, width) = patch_of(other, value, position)
            style = "-" if threshold == 1 else "--"
            where = (column - 0.5, row - 0.5)
            panel.add_patch(
                Rectangle(where, width, height, fill=False, ec=colour, ls=style, lw=1.8)
            )
        (_, height), (_, width) = patch_of(plan, value, position)
        panel.set_title(f"{height} x {width}\nof {side} x {side}", fontsize=10)
        panel.set(xticks=[], yticks=[])
        panel.set_xlim(-0.9, changed[value].shape[1] - 0.1 if value in changed else side - 0.1)
        panel.set_ylim(changed[value].shape[0] - 0.1 if value in changed else side - 0.1, -0.9)
    axis = lower.subplots()
    values = local_values(plan)
    for (threshold, other), colour in zip(plans.items(), COLOURS, strict=True):
        label = "exact" if threshold == 1 else f"threshold {threshold:g}"
        label += f": {other.theoretical_speedup:.1f} times fewer\noperations (Eq. 17)"
        shares = [100 * mean_share(other, value) for value in values]
        style = "-" if threshold == 1 else "--"
        axis.plot(range(1, len(values) + 1), shares, f"o{style}", color=colour, label=label)
    grid = plan.grid
    axis.set(
        xlabel="operator, from input to output",
        ylabel="share of the output, %",
        xticks=range(1, len(values) + 1, max(1, len(values) // 10)),
        ylim=(0, None),
    )
    axis.set_title(
        f"{name}, windows of {grid.window[-1]}, stride {grid.stride[-1]}: {grid.total} windows",
        fontsize=11,
    )
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(output, dpi=140)


def main(arguments: Sequence[str] | None = None) -> None:
    """Plan, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet18", help="any torchvision or timm name")
    parser.add_argument("--size", type=int, default=224, help="side of the image in pixels")
    parser.add_argument("--window", type=int, default=16, help="side of a window in pixels")
    parser.add_argument("--stride", type=int, default=8, help="pixels between windows")
    parser.add_argument("--threshold", type=float, default=0.6, help="the dashed patches' tau")
    parser.add_argument("--output", default="regions.png", help="the picture's path")
    options = parser.parse_args(arguments)

    network: nn.Module = build_network(options.model, options.size)
    picture = load_image(None, options.size)
    call = make_call(
        to_input(picture, network),
        (3, options.window, options.window),
        (3, options.stride, options.stride),
        *(None, PREDICTED, None, None),
    )
    engine = Engine(network, Settings())
    plans = {
        threshold: engine.plans(call, Approximation(threshold))[0]
        for threshold in (1.0, options.threshold)
    }
    plan = plans[1.0]
    if not plan.incremental:
        raise SystemExit(f"{options.model}: {plan.reasons[0]}; there are no patches to draw")
    position = tuple(plan.grid.counts[axis] * 2 // 5 for axis in plan.axes)
    values = local_values(plan)
    by_side = {plan.analysis.full_size(value, 0): value for value in values}  # the last of each
    changed = changes(engine, call, plan, position, list(by_side.values()))
    for value in by_side.values():
        sizes = (
            " x ".join(str(cells) for _, cells in patch_of(p, value, position))
            for p in plans.values()
        )
        side = plan.analysis.full_size(value, 0)
        print(f"side {side}: patch {next(sizes)}, with the threshold {next(sizes)}")
    draw(options.model, picture, plans, changed, position, options.output)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
