"""Occlusion sensitivity of MONAI's DenseNet121 beside MONAI's own class.

    python examples/benchmarks/monai_sensitivity.py --json docs/data/monai_sensitivity.json

Needs `pip install '.[monai]'`. Both sides make the whole map with MONAI's defaults (a Gaussian
mask of 16 cells, an overlap of 0.6), in turns. MONAI's batch is the fastest of a few, chosen on a
part of the image. The weights are random.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from _shared import machine
from torch import Tensor, nn

from captum_krypton.monai import OcclusionSensitivity

CLASSES = 3


def densenet(axes: int, seed: int = 0) -> nn.Module:
    """MONAI's DenseNet121 for one channel."""
    from monai.networks.nets import DenseNet121

    torch.manual_seed(seed)
    made: nn.Module = DenseNet121(spatial_dims=axes, in_channels=1, out_channels=CLASSES)
    return made.eval()


def timed(make: Callable[[], tuple[Tensor, Tensor]]) -> tuple[float, Tensor]:
    """How long a map takes, and the map."""
    started = time.perf_counter()
    made = make()[0].as_subclass(Tensor)
    return time.perf_counter() - started, made


def compare(
    axes: int, side: int, mask: int, overlap: float, batches: Sequence[int], rounds: int
) -> dict[str, Any]:
    """Times both sides in turns."""
    from monai.visualize import OcclusionSensitivity as Theirs

    network, x = densenet(axes), torch.rand(1, 1, *[side] * axes)
    settings = {"mask_size": mask, "overlap": overlap, "verbose": False}
    ours = OcclusionSensitivity(network, **settings)
    part = [0, max(1, side // 8)] + [-1, -1] * (axes - 1)  # one row of windows or two

    def monai(batch: int, b_box: list[int] | None = None) -> tuple[float, Tensor]:
        return timed(lambda: Theirs(network, n_batch=batch, **settings)(x, b_box))

    best = min(batches, key=lambda batch: monai(batch, part)[0]) if len(batches) > 1 else batches[0]
    first, _ = timed(lambda: ours(x))
    turns, difference = [], 0.0
    for _ in range(rounds):
        other, theirs = monai(best)
        own, made = timed(lambda: ours(x))
        turns.append((other, own))
        difference = max(difference, float((made - theirs).abs().max()))
        spread = float(theirs.max() - theirs.min())
    other, own = (statistics.median(times) for times in zip(*turns, strict=True))
    return {
        "network": "DenseNet121",
        "axes": axes,
        "side": side,
        "mask": mask,
        "overlap": overlap,
        "monai_batch": best,
        "monai_seconds": other,
        "first_seconds": first,
        "seconds": own,
        "speedup": other / own,
        "largest_difference": difference,
        "spread_of_the_map": spread,
        "turns": turns,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for images and one for volumes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--axes", type=int, nargs="+", default=[2, 3], choices=[2, 3])
    parser.add_argument("--side", type=int, default=224, help="of an image")
    parser.add_argument("--volume-side", type=int, default=64)
    parser.add_argument("--mask", type=int, default=16)
    parser.add_argument("--overlap", type=float, default=0.6)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", "Using a non-tuple sequence")  # MONAI's
    rows = []
    for axes in options.axes:
        side = options.side if axes == 2 else options.volume_side
        row = compare(axes, side, options.mask, options.overlap, options.batches, options.rounds)
        rows.append(row)
        print(
            f"{row['network']}, {axes} axes of {side}: MONAI {row['monai_seconds']:.2f} s (batches "
            f"of {row['monai_batch']}), first {row['first_seconds']:.2f} s, later "
            f"{row['seconds']:.2f} s: {row['speedup']:.1f} times; largest difference "
            f"{row['largest_difference']:.1e}"
        )
    if options.json:
        made = {"rows": rows, "machine": machine()}
        Path(options.json).write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
