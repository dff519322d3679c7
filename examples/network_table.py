"""Many networks: does captum-krypton return what Captum returns, and how long does each take?

    python examples/network_table.py --only resnet18 swin_t
    python examples/network_table.py --size 224 --json docs/data/networks.json --markdown

Random weights, so nothing is downloaded. Exit status 1 if a network differs from Captum, fails, or
does not run incrementally.
"""

from __future__ import annotations

import argparse
import gc
import json
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
from _tables import network_table, verdict
from captum.attr import Occlusion
from torch import Tensor

from captum_krypton import KryptonOcclusion

# Each with the smallest side that leaves its deepest layers something to look at.
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


def seconds_of(work: Any) -> tuple[float, Any]:
    """Seconds that `work()` took, and its result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def compare(name: str, size: int, window: int, stride: int) -> dict[str, Any]:
    """Captum and captum-krypton on one network."""
    network = build_network(name, size)
    x = to_input(load_image(None, size), network)
    with torch.no_grad():
        target = int(network(x).argmax())
    windows: dict[str, Any] = {
        "sliding_window_shapes": (3, window, window),
        "strides": (3, stride, stride),
    }
    corners = window_corners(x, window, stride)
    batch = fastest_batch(
        lambda b, batches: captum_seconds_per_window(network, x, target, b, batches, **windows),
        BATCHES,
        len(corners),
    )
    captum_seconds, theirs = seconds_of(
        lambda: Occlusion(network).attribute(
            x, target=target, perturbations_per_eval=batch, **windows
        )
    )
    occlusion = KryptonOcclusion(network)
    first_seconds, _ = seconds_of(lambda: occlusion.heatmap(x, target=target, **windows))
    seconds, heat = seconds_of(lambda: occlusion.heatmap(x, target=target, **windows))
    report = heat.report
    sampled = sampled_windows(len(corners), 6)
    return {
        "windows": report.windows,
        "path": report.path,
        "reasons": list(report.reasons),
        "theoretical_speedup": report.theoretical_speedup,
        "setup_seconds": report.setup_seconds,
        "captum_batch": batch,
        "captum_seconds": captum_seconds,
        "first_seconds": first_seconds,
        "seconds": seconds,
        "largest_attribution": theirs.abs().max().item(),
        "difference": (heat.attribution() - theirs).abs().max().item(),
        "outcomes": outcome_errors(
            network,
            x,
            target,
            [corners[index] for index in sampled],
            window,
            heat.scores.flatten()[sampled],
        ),
        **operators(occlusion, x, target, windows),
    }


def operators(
    occlusion: KryptonOcclusion, x: Tensor, target: int, windows: dict[str, Any]
) -> dict[str, int]:
    """How many operators run, and how many of them on full volumes."""
    plans = occlusion.explain(x, target=target, **windows).plans
    kinds = [row.kind for rows, _ in plans for row in rows]
    return {"operators": len(kinds), "global_operators": kinds.count("global")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the networks; 0 if every one is equal and incremental."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these networks, and no others")
    parser.add_argument("--size", type=int, help="side of the input (default: small, by network)")
    parser.add_argument("--window", type=int, default=16, help="side of a window in pixels")
    parser.add_argument("--stride", type=int, default=16, help="pixels between windows")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--json", help="write the results to this file")
    parser.add_argument("--markdown", action="store_true", help="print the documentation's table")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)

    rows: list[dict[str, Any]] = []
    result = {
        "window": options.window,
        "stride": options.stride,
        "weights": "random",
        "machine": machine(),
        "networks": rows,
    }
    for name in options.only or NETWORKS:
        size = options.size or NETWORKS.get(name, 224)
        row: dict[str, Any] = {"name": name, "size": size}
        try:
            row |= compare(name, size, options.window, options.stride)
        except Exception:
            row["error"] = traceback.format_exc()
            print(row["error"], file=sys.stderr)
        rows.append(row)
        print(f"{name:<32}{verdict(row)}", file=sys.stderr, flush=True)
        gc.collect()
        if options.json:  # after each one: a long run that is stopped keeps what it has
            Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    if options.markdown:
        print(network_table(result))
    wrong = [row["name"] for row in rows if verdict(row) != "equal"]
    print(f"{len(rows) - len(wrong)} of {len(rows)} networks equal Captum incrementally")
    if wrong:
        print("not so:", ", ".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
