"""Theoretical speed-up by network and patch size: the paper's figure 4.

    python examples/paper/theoretical_speedup.py --figure speedup.png --json speedup.json

By the paper's equations (13-29), for a patch at the centre of the image, convolutions alone. Beside
it what captum-krypton counts for a whole map: the cells that each window can reach, without the
bounds of Eq. 20-21, and fewer for windows at the border. So its numbers are higher. The paper's
MobileNet is version 1; this is torchvision's version 2. Nothing is timed, weights are random. About
half a minute on two CPU cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from _paper import Script, log_axis, say
from _paper_tables import theoretical_speedup_table
from _shared import LEAST_SIDE, PAPER_NETWORKS, build_network, load_image, square_windows, to_input
from _theory import theoretical_speedup
from matplotlib.figure import Figure

from captum_krypton import KryptonOcclusion

MORE = (
    *("alexnet", "vgg19", "resnet50", "squeezenet1_1", "mobilenet_v2"),
    "densenet121",
)
FULL = {
    "networks": PAPER_NETWORKS + MORE,
    "side": 224,
    "patches": (8, 16, 32, 48, 64),
    "stride": 8,
}
QUICK = {"networks": ("resnet18", "squeezenet1_1", "mobilenet_v2"), "patches": (16, 32)}


def measure(settings: SimpleNamespace) -> dict[str, Any]:
    """One row a network and patch size."""
    rows = []
    for name in settings.networks:
        side = max(settings.side, LEAST_SIDE.get(name, 0))
        network = build_network(name, side)
        x = to_input(load_image(None, side), network)
        occlusion = KryptonOcclusion(network)
        for patch in settings.patches:
            found = occlusion.explain(x, **square_windows(patch, settings.stride))
            ((operators, _),) = found.plans
            layers = [row for row in operators if row.operator.startswith("aten.convolution")]
            full = sum(row.macs_full for row in layers)
            incremental = sum(row.macs_incremental for row in layers)
            row = {
                "network": name,
                "side": side,
                "patch": patch,
                "centre": theoretical_speedup(name, side, patch),
                "map": full / incremental,
            }
            rows.append(row)
            say(f"{name:14} patch {patch:3}: centre {row['centre']:.2f}, map {row['map']:.2f}")
    return {"rows": rows}


def draw(result: dict[str, Any]) -> Figure:
    """R by patch size: at the centre, and over a whole map."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    titles = {"centre": "patch at the centre (Eq. 13-29)", "map": "whole map, exact regions"}
    for panel, (key, title) in zip(panels, titles.items(), strict=True):
        for name in result["settings"]["networks"]:
            rows = [row for row in result["rows"] if row["network"] == name]
            panel.plot([r["patch"] for r in rows], [r[key] for r in rows], "o-", label=name)
        panel.set(title=title, xlabel="side of the patch, pixels")
        log_axis(panel)
    panels[0].set_ylabel("theoretical speed-up")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right", fontsize="small")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, print, draw."""
    Script(__doc__, FULL, QUICK, measure, theoretical_speedup_table, draw).run(arguments)


if __name__ == "__main__":
    main()
