"""Feature ablation of superpixels beside Captum's at its fastest batch size.

    python examples/benchmarks/superpixels.py --networks vgg16 --sizes 224x224
    python examples/benchmarks/superpixels.py --json-folder docs/data/superpixels

The image is scikit-image's photograph of a cat, its superpixels are those of SLIC. Each network and
size is a file of its own, and one that is there is not run again. Captum's time is that of some of
the features, scaled to all; both sides take turns. All weights are random.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _shared import build_network, captum_seconds_per_window, fastest_batch, kept, machine, to_input
from captum.attr import FeatureAblation
from skimage import data, segmentation, transform, util
from torch import Tensor

from captum_krypton import KryptonFeatureAblation

NETWORKS = ("vgg16", "resnet18", "fcn_resnet50")
SIZES = ("224x224", "756x1344")
SEGMENTS = (50, 196)
TARGET = 1


def photograph(height: int, width: int) -> np.ndarray:
    """The middle of a photograph in the proportions asked for, (height, width, 3), uint8."""
    image = util.img_as_float(data.chelsea())
    rows, columns = image.shape[:2]
    scale = min(rows / height, columns / width)
    high, wide = round(scale * height), round(scale * width)
    top, left = (rows - high) // 2, (columns - wide) // 2
    cut = image[top : top + high, left : left + wide]
    made = transform.resize(cut, (height, width), order=3, anti_aliasing=True)
    return util.img_as_ubyte(np.clip(made, 0, 1))


def superpixels(image: np.ndarray, segments: int) -> Tensor:
    """The numbers of SLIC's superpixels, (1, 1, height, width)."""
    made = segmentation.slic(image, n_segments=segments, compactness=10, start_label=0)
    return torch.from_numpy(made)[None, None]


@torch.no_grad()
def compare(name: str, size: str, segments: int, rounds: int, sample: int) -> dict[str, Any]:
    """Times a network's feature ablation.

    Args:
        name: a network that `benchmark.py` knows.
        size: height and width of the image, "224x224".
        segments: superpixels to ask for; SLIC makes about so many.
        rounds: how often both sides take their turn.
        sample: features of Captum's in a turn, at least.
    """
    height, width = map(int, size.split("x"))
    image = photograph(height, width)
    network = build_network(name, 224)
    x, mask = to_input(image), superpixels(image, segments)
    features = len(torch.unique(mask))
    ablation = KryptonFeatureAblation(network)

    def captum(batch: int, batches: int) -> float:
        arguments = {"method": FeatureAblation, "feature_mask": mask}
        return captum_seconds_per_window(network, x, TARGET, batch, batches, **arguments)

    def seconds() -> tuple[float, Any]:
        started = time.perf_counter()
        heat = ablation.heatmap(x, target=TARGET, feature_mask=mask)
        return time.perf_counter() - started, heat

    first, heat = seconds()
    batch = fastest_batch(captum, (1, 4, 16) if height * width < 1e5 else (1, 4), features)
    turns = []
    for _ in range(rounds):
        theirs = captum(batch, max(1, min(math.ceil(sample / batch), features // batch - 2)))
        ours, heat = seconds()
        turns.append((theirs * features, ours))
    plain = [float(network(x.where(mask != n, 0.0))[0, TARGET]) for n in (0, features // 2)]
    made = [float(heat.scores[0, n]) for n in (0, features // 2)]
    theirs, ours = (statistics.median(side) for side in zip(*turns, strict=True))
    return {
        "network": name,
        "size": size,
        "features": features,
        "captum_batch": batch,
        "captum_seconds": theirs,
        "first_seconds": first,
        "seconds": ours,
        "speedup": theirs / ours,
        "first_speedup": theirs / first,
        "by_operations": heat.report.theoretical_speedup,
        "predicted_seconds": heat.report.predicted_seconds,
        "path": heat.report.path,
        "groups": heat.report.groups,
        "largest_difference": float(np.abs(np.subtract(made, plain)).max() / np.abs(plain).max()),
        "turns": turns,
        "machine": machine(),
    }


def runs(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What is there, and what is missing."""
    every = itertools.product(options.sizes, options.networks, options.segments)
    for size, name, segments in every:
        file = f"{name}_{size}_{segments}.json"
        arguments = name, size, segments, options.rounds, options.sample
        folder = options.json_folder
        yield kept(folder and Path(folder, file), partial(compare, *arguments))


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for each network, size and number of superpixels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    parser.add_argument("--segments", nargs="+", type=int, default=SEGMENTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sample", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json-folder")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    for made in runs(options):
        print(
            f"{made['network']:14} {made['size']:9} {made['features']:4} features in "
            f"{made['groups']} groups, {made['path']}: Captum {made['captum_seconds']:.2f} s, "
            f"first {made['first_seconds']:.2f} s, later {made['seconds']:.2f} s "
            f"(predicted {made['predicted_seconds']:.2f}): {made['speedup']:.2f} times; by "
            f"operations {made['by_operations']:.1f}; largest difference "
            f"{made['largest_difference']:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
