"""Visual examples, exact and approximate: the paper's figure 16.

    python examples/paper/visual.py --figure visual.png --json visual.json

For every image two rows of heat maps by threshold: of all windows, and with adaptive drill-down of
the paper's default. Colours are the paper's: `jet_r` from 0.75 p to min(1, 1.25 p), p being the
probability of the untouched image. The paper shows an OCT, an X-ray and an ImageNet picture, by
VGG16. About three minutes on two CPU cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from _paper import TRAINED, Script, approximated, judged, krypton, say, timed_map
from _paper_tables import visual_table
from _shared import square_windows
from matplotlib.figure import Figure

from captum_krypton import DrillDown, ssim

FULL = {
    "network": TRAINED,
    "weights": None,
    "images": None,
    "count": 3,
    "window": 16,
    "stride": 4,
    "thresholds": (1.0, 0.8, 0.6, 0.4),
}
QUICK = {"count": 1, "stride": 8, "thresholds": (1.0, 0.6)}


def measure(settings: SimpleNamespace) -> dict[str, Any]:
    """One row an image, threshold, and with and without drill-down."""
    subject = judged(settings, settings.count)
    windows = square_windows(settings.window, settings.stride)
    exact = krypton(subject.probabilities)
    first = next(iter(subject.images.values()))
    exact.heatmap(first, **square_windows(settings.window, settings.window))  # capture and weights
    rows, maps, pictures = [], [], {}
    for name, x in subject.images.items():
        seconds, whole = timed_map(exact, x, **windows)
        p = whole.reference.item()
        pictures[name] = (x[0], p)
        for drill_down in (None, DrillDown()):
            for tau in settings.thresholds:
                way = approximated(exact, projective_field_threshold=tau, drill_down=drill_down)
                spent, heat = timed_map(way, x, **windows)
                maps.append(heat.scores[0].numpy())
                row = {
                    "image": name,
                    "probability": p,
                    "threshold": tau,
                    "drill_down": None if drill_down is None else vars(drill_down),
                    "ssim": ssim(whole.scores[0].numpy(), maps[-1]),
                    "windows": heat.report.windows_evaluated / heat.report.windows,
                    "seconds": spent,
                    "exact_seconds": seconds,
                }
                rows.append(row)
                say(f"{name:20} tau {tau:.1f}, {drill_down}: SSIM {row['ssim']:.3f}, {spent:.2f} s")
    described = subject.described()
    return {"judged": described, "rows": rows, "_maps": maps, "_pictures": pictures}


def draw(result: dict[str, Any]) -> Figure:
    """The pictures with their maps."""
    across = len(result["settings"]["thresholds"])
    down = len(result["rows"]) // across
    figure = Figure(figsize=(1.5 * (across + 1), 1.6 * down), layout="constrained")
    panels = figure.subplots(down, across + 1, squeeze=False)
    for panel in panels.flat:
        panel.set_axis_off()
    for number, (x, _) in enumerate(result["_pictures"].values()):
        low, high = x.min(), x.max()
        panels[2 * number][0].imshow(((x - low) / (high - low)).permute(1, 2, 0).numpy())
    for number, (row, heat) in enumerate(zip(result["rows"], result["_maps"], strict=True)):
        panel = panels[number // across][1 + number % across]
        p = row["probability"]
        panel.imshow(heat, cmap="jet_r", vmin=0.75 * p, vmax=min(1.0, 1.25 * p))
        drilled = "" if row["drill_down"] is None else ", drill-down"
        panel.set_title(f"τ {row['threshold']:g}{drilled}\nSSIM {row['ssim']:.2f}", fontsize=7)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, draw."""
    Script(__doc__, FULL, QUICK, measure, visual_table, draw).run(arguments)


if __name__ == "__main__":
    main()
