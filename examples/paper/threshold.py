"""Projective field threshold against speed-up, error and SSIM: the paper's figures 7 and 13.

    python examples/paper/threshold.py --figure threshold.png --json threshold.json

Speed: networks with random weights, over forward passes in batches. Theory is Eq. 17 with Eq. 30-36
for a patch at the centre, and what captum-krypton counts over the map. Quality: a trained network
on images. The error is that of its last convolution's output under the window at the centre, as
mean square, and as a share of what the window changes. The paper crops about the middle of the
computed patch, captum-krypton about the window's own place; at the centre both are the same. About
five minutes on two CPU cores.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from _paper import (
    TRAINED,
    Judged,
    Script,
    approximated,
    judged,
    krypton,
    log_axis,
    naive_seconds,
    say,
    timed_map,
    timed_network,
)
from _paper_tables import medians, threshold_table
from _shared import PAPER_NETWORKS, square_windows
from _theory import theoretical_speedup
from matplotlib.figure import Figure
from torch import Tensor, nn

from captum_krypton import ssim

FULL = {
    "networks": PAPER_NETWORKS,
    "side": 224,
    "network": TRAINED,
    "weights": None,
    "images": None,
    "count": 6,
    "window": 16,
    "stride": 8,
    "thresholds": (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4),
    "sample": 32,
}
QUICK = {"networks": ("resnet18",), "count": 1, "stride": 16, "thresholds": (1.0, 0.7, 0.4)}


def measure(settings: SimpleNamespace) -> dict[str, Any]:
    """Speed of the random networks; quality of the trained one."""
    subject = judged(settings, settings.count)
    return {
        "speed": [row for name in settings.networks for row in speed(name, settings)],
        "judged": subject.described(),
        "quality": quality(subject, settings),
    }


def speed(name: str, settings: SimpleNamespace) -> list[dict[str, Any]]:
    """One row a threshold."""
    case = timed_network(name, settings, settings.window)
    windows = square_windows(case.window, case.stride)
    naive = naive_seconds(case, settings.sample)
    exact = krypton(case.network)
    exact.heatmap(case.x, target=case.target, **windows)
    rows = []
    for tau in settings.thresholds:
        way = approximated(exact, projective_field_threshold=tau)
        seconds, heat = timed_map(way, case.x, target=case.target, **windows)
        row = {
            **case.described(),
            "threshold": tau,
            "seconds": seconds,
            "naive_seconds": naive,
            "centre": theoretical_speedup(name, case.x.shape[-1], case.window, tau),
            "map": heat.report.theoretical_speedup,
        }
        rows.append(row)
        say(f"{name:14} tau {tau:.1f}: {seconds:.2f} s, naive {naive:.1f} s")
    return rows


def quality(subject: Judged, settings: SimpleNamespace) -> list[dict[str, Any]]:
    """One row an image and threshold."""
    windows = square_windows(settings.window, settings.stride)
    few = square_windows(
        settings.window, settings.window
    )  # of these, the one at the centre is looked at
    exact = krypton(subject.probabilities)
    volume = krypton(last_volume(subject.network))
    exact.heatmap(next(iter(subject.images.values())), **windows)
    rows = []
    for name, x in subject.images.items():
        seconds, whole = timed_map(exact, x, **windows)
        deep = volume.heatmap(x, target=None, **few)
        truth, before = at_centre(deep.scores), deep.reference[0]
        for tau in settings.thresholds:
            way = approximated(exact, projective_field_threshold=tau)
            spent, heat = timed_map(way, x, **windows)
            way = approximated(volume, projective_field_threshold=tau)
            found = at_centre(way.heatmap(x, target=None, **few).scores)
            error = (found - truth).square().mean().item()
            row = {
                "image": name,
                "threshold": tau,
                "ssim": ssim(whole.scores[0].numpy(), heat.scores[0].numpy()),
                "error": error,
                "error_share": error / (truth - before).square().mean().item(),
                "seconds": spent,
                "exact_seconds": seconds,
            }
            rows.append(row)
            say(f"{name:20} tau {tau:.1f}: SSIM {row['ssim']:.3f}, {spent:.2f} s")
    return rows


def last_volume(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """The part of a network that ends with its last convolution or pooling on volumes."""
    if hasattr(network, "forward_features"):
        return network.forward_features  # timm's
    if isinstance(getattr(network, "features", None), nn.Module):
        return network.features
    parts = [part for name, part in network.named_children() if name != "AuxLogits"]
    kept = itertools.takewhile(lambda part: not isinstance(part, nn.AdaptiveAvgPool2d), parts)
    return nn.Sequential(*kept)


def at_centre(scores: Tensor) -> Tensor:
    """A volume under the window at the centre, from those under all of them."""
    found: Tensor = scores[0, ..., scores.shape[-2] // 2, scores.shape[-1] // 2].double()
    return found


def draw(result: dict[str, Any]) -> Figure:
    """Speed-up with theory, error and SSIM, by threshold."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    speeds, errors, similar = figure.subplots(1, 3)
    for number, name in enumerate(result["settings"]["networks"]):
        rows = [row for row in result["speed"] if row["network"] == name]
        at = [row["threshold"] for row in rows]
        ratios = [row["naive_seconds"] / row["seconds"] for row in rows]
        speeds.plot(at, ratios, "o-", color=f"C{number}", label=name)
        speeds.plot(at, [row["map"] for row in rows], "--", color=f"C{number}", linewidth=1)
    speeds.plot([], [], "k--", linewidth=1, label="by operations")
    speeds.set(ylabel="speed-up over naive")
    log_axis(speeds)
    quality = result["quality"]
    at = [row["threshold"] for row in quality]
    errors.plot(at, [row["error_share"] for row in quality], ".", color="grey")
    errors.set(ylabel="error, share of the change")
    similar.plot(at, [row["ssim"] for row in quality], ".", color="grey", label="images")
    middle = medians(quality, "threshold", "ssim")
    similar.plot(list(middle), list(middle.values()), "o-", label="median")
    similar.set(ylabel="SSIM")
    for panel in (speeds, errors, similar):
        panel.set_xlabel("projective field threshold")
    speeds.legend(fontsize="small")
    similar.legend(fontsize="small")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, draw."""
    Script(__doc__, FULL, QUICK, measure, threshold_table, draw).run(arguments)


if __name__ == "__main__":
    main()
