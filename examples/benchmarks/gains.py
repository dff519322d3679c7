"""How many times sooner maps are there than Captum's, from the measurements in docs/data.

    python examples/benchmarks/gains.py --output docs/images/gains.png

Reads what `benchmark.py` measured, prints it and draws the picture of the first page.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import matplotlib
from _figures import OURS, STYLE, THEIRS, WIDTH, save
from _tables.speed import comparisons
from matplotlib.figure import Figure

Gains = dict[str, tuple[float, float | None]]


def gains() -> Gains:
    """For each network the speed-up over Captum at its usual side, and at 448 where measured."""
    large = {
        result["model"]: result["speedup"]["over_captum"]
        for result in comparisons("16-8", large=True)
    }
    found = {
        result["model"]: (result["speedup"]["over_captum"], large.get(result["model"]))
        for result in comparisons()
    }
    return dict(sorted(found.items(), key=lambda item: item[1][0]))


def draw(found: Gains) -> Figure:
    """Bars, a pair for each network."""
    figure = Figure(figsize=(WIDTH, 0.45 * len(found) + 1.3), layout="constrained")
    panel = figure.subplots()
    sides = ("224 pixels a side (Inception v3: 299)", "448 pixels a side")
    for number, (side, colour) in enumerate(zip(sides, (THEIRS, OURS), strict=True)):
        rows = [(at, pair[number]) for at, pair in enumerate(found.values())]
        shown = [(at + 0.2 - 0.4 * number, gain) for at, gain in rows if gain is not None]
        heights, values = zip(*shown, strict=True)
        bars = panel.barh(heights, values, height=0.38, color=colour, label=side)
        panel.bar_label(bars, fmt="%.1f", padding=3, fontsize=9)
    panel.set_yticks(range(len(found)), list(found))
    panel.set_xlabel("times sooner than Captum")
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(x=0.12)
    figure.legend(loc="outside upper center")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Print, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", help="the picture's file")
    options = parser.parse_args(arguments)
    found = gains()
    for name, (usual, large) in found.items():
        print(f"{name:<24}{usual:>6.1f}{'' if large is None else f'{large:.1f}':>8}")
    if options.output:
        with matplotlib.rc_context(STYLE):
            save(draw(found), options.output)


if __name__ == "__main__":
    main()
