"""Adaptive drill-down: its fraction and its stage one stride: the paper's figures 9 and 14.

    python examples/paper/drill_down.py --figure drill_down.png --json drill_down.json

One series varies the fraction at a fixed stage one stride, the other the stride at a fixed
fraction. Target speed-ups follow from Eq. 37. Speed: networks with random weights, over forward
passes in batches, beside the theory (Eq. 17 times Eq. 37). Quality: a trained network on images.
The paper reports speed alone. About five minutes on two CPU cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from _paper_tables import drill_down_table, medians
from _shared import PAPER_NETWORKS, square_windows
from matplotlib.figure import Figure

from captum_krypton import DrillDown, ssim

FRACTION, STEP = 0.25, 4  # what a series leaves alone
FULL = {
    "networks": PAPER_NETWORKS,
    "side": 224,
    "network": TRAINED,
    "weights": None,
    "images": None,
    "count": 2,
    "window": 16,
    "stride": 8,
    "fractions": (0.1, 0.2, 0.3, 0.4, 0.5),
    "steps": (2, 3, 4, 6, 8),
    "sample": 32,
}
QUICK = {"networks": ("resnet18",), "count": 1, "fractions": (0.1, 0.4), "steps": (2, 4)}


def series(settings: SimpleNamespace) -> Iterator[tuple[str, float, int, DrillDown]]:
    """Which series, fraction, stage one stride in units of the stage two stride, and both."""
    asked_for = [("fraction", fraction, STEP) for fraction in settings.fractions]
    asked_for += [("stride", FRACTION, step) for step in settings.steps]
    for which, fraction, step in asked_for:
        target = step**2 / (1 + fraction * step**2)  # Eq. 37
        yield which, fraction, step, DrillDown(fraction, target)


def measure(settings: SimpleNamespace) -> dict[str, Any]:
    """Speed of the random networks; quality of the trained one, at half the stride."""
    subject = judged(settings, settings.count)
    return {
        "speed": [row for name in settings.networks for row in speed(name, settings)],
        "judged": {**subject.described(), "stride": settings.stride // 2},
        "quality": quality(subject, settings),
    }


def speed(name: str, settings: SimpleNamespace) -> list[dict[str, Any]]:
    """One row a setting."""
    case = timed_network(name, settings, settings.window)
    windows = square_windows(case.window, case.stride)
    naive = naive_seconds(case, settings.sample)
    exact = krypton(case.network)
    exact.heatmap(case.x, target=case.target, **windows)
    seconds, _ = timed_map(exact, case.x, target=case.target, **windows)
    rows = []
    for which, fraction, step, settings_of in series(settings):
        way = approximated(exact, drill_down=settings_of)
        spent, heat = timed_map(way, case.x, target=case.target, **windows)
        row = {
            **case.described(),
            "series": which,
            "fraction": fraction,
            "step": step,
            "target_speedup": settings_of.speedup,
            "windows_evaluated": heat.report.windows_evaluated,
            "theoretical": heat.report.theoretical_speedup,
            "seconds": spent,
            "exact_seconds": seconds,
            "naive_seconds": naive,
        }
        rows.append(row)
        say(f"{name:14} r {fraction:.2f}, S1 {step} x S2: {spent:.2f} s, exact {seconds:.2f} s")
    return rows


def quality(subject: Judged, settings: SimpleNamespace) -> list[dict[str, Any]]:
    """One row an image and setting."""
    windows = square_windows(settings.window, settings.stride // 2)
    exact = krypton(subject.probabilities)
    first = next(iter(subject.images.values()))
    exact.heatmap(first, **square_windows(settings.window, settings.window))  # capture and weights
    rows = []
    for name, x in subject.images.items():
        seconds, whole = timed_map(exact, x, **windows)
        for which, fraction, step, settings_of in series(settings):
            spent, heat = timed_map(approximated(exact, drill_down=settings_of), x, **windows)
            row = {
                "image": name,
                "series": which,
                "fraction": fraction,
                "step": step,
                "target_speedup": settings_of.speedup,
                "ssim": ssim(whole.scores[0].numpy(), heat.scores[0].numpy()),
                "seconds": spent,
                "exact_seconds": seconds,
            }
            rows.append(row)
            say(
                f"{name:20} r {fraction:.2f}, S1 {step} x S2: SSIM {row['ssim']:.3f}, {spent:.2f} s"
            )
    return rows


def draw(result: dict[str, Any]) -> Figure:
    """Speed-up with theory and SSIM, by fraction and by stage one stride."""
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    panels = figure.subplots(2, 2, sharey="row", sharex="col")
    labels = {"fraction": "drill-down fraction", "stride": "stage one stride / stage two stride"}
    for column, (which, label) in enumerate(labels.items()):
        key = "fraction" if which == "fraction" else "step"
        speeds, similar = panels[0][column], panels[1][column]
        for number, name in enumerate(result["settings"]["networks"]):
            rows = [r for r in result["speed"] if (r["network"], r["series"]) == (name, which)]
            at = [row[key] for row in rows]
            ratios = [row["naive_seconds"] / row["seconds"] for row in rows]
            speeds.plot(at, ratios, "o-", color=f"C{number}", label=name)
            theory = [row["theoretical"] for row in rows]
            speeds.plot(at, theory, "--", color=f"C{number}", linewidth=1)
        quality = [row for row in result["quality"] if row["series"] == which]
        at = [row[key] for row in quality]
        similar.plot(at, [row["ssim"] for row in quality], ".", color="grey", label="images")
        middle = medians(quality, key, "ssim")
        similar.plot(list(middle), list(middle.values()), "o-", label="median")
        similar.set_xlabel(label)
    panels[0][0].plot([], [], "k--", linewidth=1, label="by operations (Eq. 17, 37)")
    panels[0][0].set(ylabel="speed-up over naive")
    log_axis(panels[0][0])
    panels[1][0].set(ylabel="SSIM")
    panels[0][0].legend(fontsize="small")
    panels[1][0].legend(fontsize="small")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, draw."""
    Script(__doc__, FULL, QUICK, measure, drill_down_table, draw).run(arguments)


if __name__ == "__main__":
    main()
