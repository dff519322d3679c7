"""Many networks: does captum-krypton return what Captum returns, and how long does each take?

    python examples/benchmarks/network_table.py --only resnet18 swin_t
    python examples/benchmarks/network_table.py --json docs/data/networks.json --markdown

Whole maps of a small image are compared, then maps of a large one are timed, Captum's on a sample
of its windows. Random weights, so nothing is downloaded. Exit status 1 if a network differs from
Captum, fails, or does not run incrementally.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _shared import (
    build_network,
    captum_seconds_per_window,
    fastest_batch,
    load_image,
    machine,
    outcome_errors,
    sampled_windows,
    to_input,
    window_corners,
)
from _tables.networks import network_table, over_captum, verdict
from captum.attr import Occlusion
from torch import nn

from captum_krypton import KryptonOcclusion

# Each with the smallest side that leaves its deepest layers something to look at. That side is also
# the least that is timed.
NETWORKS = {
    "vgg16": 96,
    "resnet18": 96,
    "inception_v3": 139,
    "alexnet": 96,
    "squeezenet1_1": 96,
    "googlenet": 96,
    "densenet121": 96,
    "mobilenet_v2": 96,
    "mobilenet_v3_small": 96,
    "efficientnet_b0": 96,
    "shufflenet_v2_x1_0": 96,
    "mnasnet0_5": 96,
    "regnet_y_400mf": 96,
    "resnext50_32x4d": 96,
    "convnext_tiny": 96,
    "swin_t": 96,
    "vit_b_32": 224,
    "maxvit_t": 224,
    "fcn_resnet50": 96,
    "deeplabv3_mobilenet_v3_large": 96,
    "lraspp_mobilenet_v3_large": 96,
    "tf_efficientnet_lite0": 96,
    "hrnet_w18_small": 96,
    "dla34": 96,
    "xception41": 96,
    "nf_resnet50": 96,
    "eca_nfnet_l0": 96,
    "repvgg_a2": 96,
    "ghostnet_100": 96,
    "res2net50_26w_4s": 96,
    "seresnet50": 96,
    "skresnet18": 96,
    "resnest14d": 96,
    "mixnet_s": 96,
    "cspresnet50": 96,
    "inception_v4": 139,
    "fastvit_t8": 128,
    "edgenext_xx_small": 128,
    "poolformer_s12": 96,
    "selecsls42b": 96,
    "mobileone_s0": 96,
    "hardcorenas_a": 96,
    "efficientvit_b0": 128,
    "mobilevit_xxs": 128,
}
BATCHES = (1, 4, 16)
SETTINGS = ("window", "stride", "timed_stride", "weights")
SIDE, SAMPLE = 224, 64  # timed: the image's side, and how many windows Captum runs of its map


def seconds_of(work: Any) -> tuple[float, Any]:
    """Seconds that `work()` took, and its result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def question(name: str, size: int, window: int, stride: int) -> tuple[nn.Module, dict[str, Any]]:
    """A network, and the arguments of `attribute` for the photograph."""
    network = build_network(name, size)
    x = to_input(load_image(None, size), network)
    with torch.no_grad():
        target = int(network(x).argmax())
    return network, {
        "inputs": x,
        "target": target,
        "sliding_window_shapes": (3, window, window),
        "strides": (3, stride, stride),
    }


def compare(name: str, size: int, window: int, stride: int) -> dict[str, Any]:
    """Captum's map and captum-krypton's, of one network."""
    network, asked = question(name, size, window, stride)
    corners = window_corners(asked["inputs"], window, stride)
    theirs = Occlusion(network).attribute(perturbations_per_eval=8, **asked)
    occlusion = KryptonOcclusion(network)
    counted = operators(occlusion, asked)  # captures: a first map of few windows would not
    heat = occlusion.heatmap(**asked)
    every = occlusion.heatmap(**{**asked, "target": None}).scores
    sampled = sampled_windows(len(corners), 6)
    return {
        "windows": heat.report.windows,
        "path": heat.report.path,
        "reasons": list(heat.report.reasons),
        "largest_attribution": theirs.abs().max().item(),
        "difference": (heat.attribution() - theirs).abs().max().item(),
        "outcomes": outcome_errors(
            network,
            asked["inputs"],
            asked["target"],
            [corners[index] for index in sampled],
            window,
            heat.scores.flatten()[sampled],
            every[0].flatten(1).T[sampled],
        ),
        **counted,
    }


def timed(name: str, size: int, window: int, stride: int, sample: int) -> dict[str, Any]:
    """How long Captum and captum-krypton take for one map of a network."""
    network, asked = question(name, size, window, stride)
    windows = len(window_corners(asked["inputs"], window, stride))
    x, rest = asked["inputs"], {key: asked[key] for key in asked if key != "inputs"}

    def captum(batch: int, batches: int) -> float:
        return captum_seconds_per_window(network, x, batch=batch, batches=batches, **rest)

    batch = fastest_batch(captum, BATCHES, windows)
    batches = max(1, min(math.ceil(sample / batch), windows // batch - 2))
    occlusion = KryptonOcclusion(network)
    times = [captum(batch, batches)]
    first_seconds, _ = seconds_of(lambda: occlusion.heatmap(**asked))
    seconds, heat = seconds_of(lambda: occlusion.heatmap(**asked))
    times.append(captum(batch, batches))  # once before and once after: the machine may change
    return {
        "size": size,
        "windows": windows,
        "theoretical_speedup": heat.report.theoretical_speedup,
        "setup_seconds": heat.report.setup_seconds,
        "captum_batch": batch,
        "captum_windows": batch * batches,
        "captum_seconds": statistics.mean(times) * windows,
        "first_seconds": first_seconds,
        "seconds": seconds,
    }


def operators(occlusion: KryptonOcclusion, asked: dict[str, Any]) -> dict[str, int]:
    """How many operators run, and how many of them on full volumes."""
    plans = occlusion.explain(**asked).plans
    kinds = [row.kind for rows, _ in plans for row in rows]
    return {"operators": len(kinds), "global_operators": kinds.count("global")}


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in the order of `NETWORKS`, others last."""
    places = {name: number for number, name in enumerate(NETWORKS)}
    return sorted(rows, key=lambda row: places.get(row["name"], len(places)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the networks; 0 if every one is equal and incremental."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these networks, and no others")
    parser.add_argument("--size", type=int, help="side compared (default: small, by network)")
    parser.add_argument("--window", type=int, default=16, help="side of a window in pixels")
    parser.add_argument("--stride", type=int, default=16, help="pixels between windows compared")
    parser.add_argument("--timed-size", type=int, default=SIDE, help="side of the image timed")
    parser.add_argument("--timed-stride", type=int, default=8, help="pixels between windows timed")
    parser.add_argument("--sample", type=int, default=SAMPLE, help="windows timed for Captum")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--json", help="write the results to this file")
    parser.add_argument(
        "--update", action="store_true", help="keep what the file says of the other networks"
    )
    parser.add_argument("--markdown", action="store_true", help="print the documentation's table")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)

    rows: list[dict[str, Any]] = []
    result = {
        "window": options.window,
        "stride": options.stride,
        "timed_stride": options.timed_stride,
        "weights": "random",
        "machine": machine(),
        "networks": rows,
    }
    others: dict[str, dict[str, Any]] = {}
    if options.update and not options.json:
        parser.error("--update: which file? Give --json")
    if options.update:
        before = json.loads(Path(options.json).read_text())
        if {k: before[k] for k in SETTINGS} != {k: result[k] for k in SETTINGS}:
            parser.error(f"--update: {options.json} was measured with other settings")
        others = {row["name"]: row for row in before["networks"]}
    for name in options.only or NETWORKS:
        size = options.size or NETWORKS.get(name, 224)
        row: dict[str, Any] = {"name": name, "size": size}
        try:
            row |= compare(name, size, options.window, options.stride)
            side = max(size, options.timed_size)
            row["timed"] = timed(name, side, options.window, options.timed_stride, options.sample)
        except Exception:
            row["error"] = traceback.format_exc()
            print(row["error"], file=sys.stderr)
        others.pop(name, None)
        rows.append(row)
        ratio = f"{over_captum(row):8.2f} x Captum" if "timed" in row else ""
        print(f"{name:<32}{verdict(row):<10}{ratio}", file=sys.stderr, flush=True)
        gc.collect()
        if options.json:  # after each one: a long run that is stopped keeps what it has
            every = {**result, "networks": in_order([*rows, *others.values()])}
            Path(options.json).write_text(json.dumps(every, indent=1) + "\n")
    if options.markdown:
        print(network_table(result))
    wrong = [row["name"] for row in rows if verdict(row) != "equal"]
    print(f"{len(rows) - len(wrong)} of {len(rows)} networks equal Captum incrementally")
    slower = [row["name"] for row in rows if "timed" in row and over_captum(row) < 1]
    print("slower than Captum:", ", ".join(slower) or "none")
    if wrong:
        print("not so:", ", ".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
