"""Speed-up by patch size, measured against theory: the paper's figure 12.

    python examples/paper/patch_size.py --figure patch_size.png --json patch_size.json

Exact maps of networks with random weights, over forward passes in batches. Theory is Eq. 17 for a
patch at the centre, and what captum-krypton counts over the map. The paper's maps stay below its
theory. Winograd's algorithm makes fewer products than theory counts, so maps here go beyond it. The
paper's stride is 4; here it is 8, and 16 for Inception v3. About three minutes on two CPU cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from _paper import Script, krypton, naive_seconds, say, timed_map, timed_network
from _paper_tables import patch_size_table
from _shared import PAPER_NETWORKS, square_windows
from _theory import theoretical_speedup
from matplotlib.figure import Figure

FULL = {
    "networks": PAPER_NETWORKS,
    "side": 224,
    "patches": (16, 24, 32, 48, 64),
    "stride": 8,
    "sample": 32,
}
QUICK = {"networks": ("resnet18",), "patches": (16, 32), "stride": 16}


def measure(settings: SimpleNamespace) -> dict[str, Any]:
    """One row a network and patch size."""
    rows = []
    for name in settings.networks:
        case = timed_network(name, settings, settings.patches[0])
        naive = naive_seconds(case, settings.sample) / case.windows
        occlusion = krypton(case.network)
        occlusion.heatmap(case.x, target=case.target, **square_windows(case.window, case.stride))
        for patch in settings.patches:
            case = replace(case, window=patch)
            windows = square_windows(patch, case.stride)
            seconds, heat = timed_map(occlusion, case.x, target=case.target, **windows)
            row = {
                **case.described(),
                "centre": theoretical_speedup(name, case.x.shape[-1], patch),
                "map": heat.report.theoretical_speedup,
                "seconds": seconds,
                "naive_seconds": naive * case.windows,
            }
            rows.append(row)
            say(f"{name:14} patch {patch:3}: {seconds:.2f} s, naive {row['naive_seconds']:.1f} s")
    return {"rows": rows}


def draw(result: dict[str, Any]) -> Figure:
    """Speed-up by patch size, a panel a network."""
    names = result["settings"]["networks"]
    figure = Figure(figsize=(3.6 * len(names), 3.4), layout="constrained")
    (panels,) = figure.subplots(1, len(names), squeeze=False)
    for panel, name in zip(panels, names, strict=True):
        rows = [row for row in result["rows"] if row["network"] == name]
        at = [row["window"] for row in rows]
        panel.plot(at, [row["naive_seconds"] / row["seconds"] for row in rows], "o-", label="exact")
        panel.plot(at, [row["map"] for row in rows], "--", label="by operations, map")
        panel.plot(at, [row["centre"] for row in rows], ":", label="by operations, centre")
        panel.set(title=name, xlabel="side of the patch, pixels", ylim=(0, None))
    panels[0].set_ylabel("speed-up over naive")
    panels[0].legend(fontsize="small")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, draw."""
    Script(__doc__, FULL, QUICK, measure, patch_size_table, draw).run(arguments)


if __name__ == "__main__":
    main()
