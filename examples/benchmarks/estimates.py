"""How honest maps are about their own quality: estimated against true SSIM, over many images.

    python examples/benchmarks/estimates.py --figure docs/images/estimates.png

Reads what `approximate_quality.py` measured (`docs/data/approximate/*.json`), prints a table and
draws the scatter. Every point is one map that was asked for an SSIM of 0.8, 0.9 or 0.95.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from typing import Any

import matplotlib
from _figures import STYLE, WIDTH, save
from _tables.approximate import approximations, estimate_table, quality_of
from matplotlib.figure import Figure

MARKS = "osD"


def draw(results: list[dict[str, Any]]) -> Figure:
    """The scatter: a colour a target, a mark a network."""
    figure = Figure(figsize=(WIDTH, 6.4), layout="constrained")
    panel = figure.subplots()
    rows = [row for result in results for row in result["rows"] if quality_of(row["way"])]
    lowest = min(min(row["ssim"], row["estimated"]) for row in rows) - 0.01
    panel.plot([lowest, 1], [lowest, 1], color="0.6", linewidth=1)
    targets = sorted({quality_of(row["way"]) for row in rows})
    for result, mark in zip(results, itertools.cycle(MARKS), strict=False):
        for number, target in enumerate(targets):
            own = [row for row in result["rows"] if quality_of(row["way"]) == target]
            panel.scatter(
                [row["estimated"] for row in own],
                [row["ssim"] for row in own],
                marker=mark,
                s=22,
                color=f"C{number}",
                alpha=0.75,
                linewidth=0,
                label=f"{result['network'].split()[0]}, target {target:g}",
            )
    panel.set_xlabel("SSIM by the map's own estimate")
    panel.set_ylabel("SSIM to the exact map")
    figure.legend(
        *panel.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=2
    )
    panel.grid()
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", help="draw the scatter to this file")
    options = parser.parse_args(arguments)
    results = approximations()
    print(estimate_table(results))
    if options.figure:
        with matplotlib.rc_context(STYLE):
            save(draw(results), options.figure)


if __name__ == "__main__":
    main()
