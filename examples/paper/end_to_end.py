"""End to end times: the paper's figure 11.

    python examples/paper/end_to_end.py --figure end_to_end.png --json end_to_end.json

For every network: forward passes in batches of 16 (the paper's naive), Captum at its fastest batch
size, incremental inference in plain PyTorch (the package's references in place of its compiled
kernels, in a process of its own), captum-krypton exact, and approximate with the drill-down of each
of the paper's data sets. Naive passes and Captum run a sample of the windows and are scaled.

Networks with random weights take the thresholds that the paper chose on its OCT images. The trained
network's is tuned for the target SSIM on images other than the one explained. Times depend neither
on weights nor on images, but what a threshold does to SSIM does.

The paper's speed-ups are of its later version, on a CPU with 8 threads and PyTorch 0.4. There its
exact side runs PyTorch's own kernels, as plain PyTorch does here. About seven minutes on two CPU
cores.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from _paper import (
    TRAINED,
    Judged,
    Script,
    Timed,
    approximated,
    captum_seconds,
    judged,
    krypton,
    log_axis,
    naive_seconds,
    say,
    timed_map,
    timed_network,
)
from _paper_tables import end_to_end_table
from _shared import PAPER_NETWORKS, square_windows
from _sides import Process, Task
from matplotlib.figure import Figure

from captum_krypton import DrillDown, ssim

DRILL_DOWNS = {
    "OCT": DrillDown(0.1, 5),
    "X-ray": DrillDown(0.4, 2),
    "ImageNet": DrillDown(0.25, 3),
}
THRESHOLDS = {"vgg16": 0.5, "resnet18": 0.7, "inception_v3": 0.9}
# Speed-ups over naive on a CPU, from the later version of the paper.
PAPER = {
    "vgg16": {"exact": 5.4, "OCT": 34.5, "X-ray": 13.8, "ImageNet": 19.9},
    "resnet18": {"exact": 2.1, "OCT": 14.8, "X-ray": 4.9, "ImageNet": 8.5},
    "inception_v3": {"exact": 1.5, "OCT": 8.0, "X-ray": 3.7, "ImageNet": 4.7},
}
FULL = {
    "networks": PAPER_NETWORKS,
    "side": 224,
    "network": TRAINED,
    "weights": None,
    "images": None,
    "count": 4,
    "target": 0.9,
    "window": 16,
    "stride": 8,
    "sample": 32,
}
QUICK = {"networks": ("resnet18",), "count": 1, "stride": 16, "sample": 16}


def measure(settings: SimpleNamespace) -> dict[str, Any]:
    """One row a network and side."""
    rows = []
    for name in settings.networks:
        case = timed_network(name, settings, settings.window)
        rows += sides(case, THRESHOLDS.get(name, 0.7), settings, trained=False)
    subject = judged(settings, settings.count + 1)
    tau, case = tuned(subject, settings)
    rows += sides(case, tau, settings, trained=True)
    return {"judged": subject.described(), "rows": rows}


def tuned(subject: Judged, settings: SimpleNamespace) -> tuple[float, Timed]:
    """The threshold for the target, from all images but the first; and that one's case."""
    first, *others = subject.images.values()
    tuning = krypton(subject.probabilities).tune(
        iter(others), settings.target, **square_windows(settings.window, settings.stride)
    )
    target = int(subject.network(first).argmax())
    case = Timed(
        subject.name, subject.probabilities, first, target, settings.window, settings.stride
    )
    return tuning.threshold, case


def sides(
    case: Timed, tau: float, settings: SimpleNamespace, *, trained: bool
) -> list[dict[str, Any]]:
    """One row a side."""
    windows = {"target": case.target, **square_windows(case.window, case.stride)}
    naive = naive_seconds(case, settings.sample)
    captum, batch = captum_seconds(case, settings.sample)
    occlusion = krypton(case.network)
    occlusion.heatmap(case.x, **windows)
    exact, whole = timed_map(occlusion, case.x, **windows)
    rows = [
        {"side": "naive", "seconds": naive},
        {"side": "Captum", "seconds": captum, "batch": batch},
        {"side": "plain PyTorch", **plain_torch(case)},
        {"side": "exact", "seconds": exact, "theoretical": whole.report.theoretical_speedup},
    ]
    for data, drill_down in DRILL_DOWNS.items():
        way = approximated(occlusion, projective_field_threshold=tau, drill_down=drill_down)
        seconds, heat = timed_map(way, case.x, **windows)
        row = {
            "side": "approximate",
            "settings_of": data,
            "threshold": tau,
            "drill_down": vars(drill_down),
            "seconds": seconds,
            "theoretical": heat.report.theoretical_speedup,
        }
        if trained:
            row["ssim"] = ssim(whole.scores[0].numpy(), heat.scores[0].numpy())
        rows.append(row)
    paper = PAPER.get(case.name, {})
    described = {
        f"image_{name}" if name == "side" else name: v for name, v in case.described().items()
    }
    for row in rows:
        row |= {**described, "speedup": naive / row["seconds"]}
        row["paper"] = paper.get(row.get("settings_of", row["side"]))
        say(
            f"{case.name:18} {row['side']:14} {row['seconds']:8.2f} s, {row['speedup']:.1f} x naive"
        )
    return rows


def plain_torch(case: Timed) -> dict[str, Any]:
    """Seconds of the exact map without compiled kernels, in a process that has none."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.pt"
        torch.save(case.network, file)
        threads = torch.get_num_threads()
        task = Task(str(file), case.x, case.target, case.window, case.stride, "cpu", threads)
        process = Process("reference", task)
        seconds = process.call("seconds")
        report = process.call("report")
        process.close()
    return {
        "seconds": seconds,
        "backend": report["backend"],
        "theoretical": report["theoretical_speedup"],
    }


def draw(result: dict[str, Any]) -> Figure:
    """Speed-ups over naive, a panel a network."""
    rows = result["rows"]
    names = list(dict.fromkeys(row["network"] for row in rows))
    figure = Figure(figsize=(3 * len(names), 3.6), layout="constrained")
    (panels,) = figure.subplots(1, len(names), squeeze=False, sharey=True)
    for panel, name in zip(panels, names, strict=True):
        found = [row for row in rows if row["network"] == name]
        labels = [" ".join((row["side"], row.get("settings_of", ""))) for row in found]
        at = range(len(found))
        panel.bar(at, [row["speedup"] for row in found], label="here")
        paper = [(i, row["paper"]) for i, row in enumerate(found) if row["paper"]]
        if paper:
            panel.plot(*zip(*paper, strict=True), "k_", markersize=14, label="the paper, CPU")
        panel.set_xticks(list(at), labels, rotation=60, ha="right", fontsize="x-small")
        panel.set(title=name)
        log_axis(panel)
    panels[0].set_ylabel("speed-up over naive")
    panels[0].legend(fontsize="small")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, draw."""
    Script(__doc__, FULL, QUICK, measure, end_to_end_table, draw).run(arguments)


if __name__ == "__main__":
    main()
