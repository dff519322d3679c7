"""Ablation of a layer's channels (Ablation-CAM) beside Captum's LayerFeatureAblation.

    python examples/benchmarks/layer_ablation.py --json docs/data/layer_ablation.json

The layer is VGG16's last convolution, its features are the channels. Captum's time for a channel is
the difference of two runs over some of them, at its fastest batch size, scaled to all. The weights
are random.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _shared import build_network, machine
from captum.attr import LayerFeatureAblation
from torch import Tensor

from captum_krypton import KryptonLayerFeatureAblation

SIZE, LAYER, TARGET = 224, 28, 1
FEW, MANY = 9, 25  # channels of Captum's two runs


def first_channels(channels: int, number: int) -> Tensor:
    """A mask in which some channels are features of their own, and the others one together."""
    return torch.arange(channels).clamp(max=number - 1).reshape(1, channels, 1, 1)


@torch.no_grad()
def compare(rounds: int) -> dict[str, Any]:
    """Times both sides in turns."""
    network = build_network("vgg16", SIZE)
    layer, x = network.features[LAYER], torch.randn(1, 3, SIZE, SIZE)
    channels = layer.out_channels
    mask = torch.arange(channels).reshape(1, channels, 1, 1)
    ours, theirs = KryptonLayerFeatureAblation(network, layer), LayerFeatureAblation(network, layer)

    def seconds(method: Any, mask: Tensor, **arguments: Any) -> tuple[float, Tensor]:
        started = time.perf_counter()
        made = method.attribute(x, target=TARGET, layer_mask=mask, **arguments)
        return time.perf_counter() - started, made

    def captum(batch: int) -> float:
        runs = (first_channels(channels, number) for number in (FEW, MANY))
        few, many = (seconds(theirs, run, perturbations_per_eval=batch)[0] for run in runs)
        return (many - few) / (MANY - FEW) * channels

    first, made = seconds(ours, mask)
    batch = min((1, 4, 8), key=captum)
    turns = []
    for _ in range(rounds):
        other = captum(batch)
        own, made = seconds(ours, mask)
        turns.append((other, own))
    some = seconds(theirs, first_channels(channels, FEW), perturbations_per_eval=1)[1]
    alone = slice(0, FEW - 1)  # the last feature is all the others
    other, own = (statistics.median(side) for side in zip(*turns, strict=True))
    return {
        "network": "vgg16",
        "layer": f"features[{LAYER}]",
        "features": channels,
        "captum_batch": batch,
        "captum_seconds": other,
        "first_seconds": first,
        "seconds": own,
        "speedup": other / own,
        "largest_difference": float((made - some)[:, alone].abs().max() / some.abs().max()),
        "turns": turns,
        "machine": machine(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    made = compare(options.rounds)
    print(
        f"{made['features']} channels: Captum {made['captum_seconds']:.1f} s (batches of "
        f"{made['captum_batch']}), first {made['first_seconds']:.2f} s, later "
        f"{made['seconds']:.2f} s: {made['speedup']:.1f} times; largest difference "
        f"{made['largest_difference']:.1e}"
    )
    if options.json:
        Path(options.json).write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
