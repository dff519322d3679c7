"""What maps of many images cost: from measured seconds a map to hours of a data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import DATA, NOTHING, machine_name, markdown_table
from .gpu import gpu
from .speed import comparisons

IMAGES = 100_000
NETWORKS = ("squeezenet1_1", "resnet18", "resnet50", "densenet121", "vgg16")


def hours_of(seconds: float, images: int = IMAGES) -> str:
    """How long so many maps take, at so many seconds a map."""
    hours = seconds * images / 3600
    return f"{hours / 24:.0f} days" if hours >= 72 else f"{float(f'{hours:.2g}'):g} hours"


def cores_table(images: int = IMAGES) -> str:
    """Seconds a map on one and on two cores, and what they make of a data set.

    Sixteen cores are planned on paper: sixteen workers of one thread, none of which slows another.
    """
    titles = {
        "network": "---",
        "windows": "--:",
        "one thread, s a map": "--:",
        "two threads, s a map": "--:",
        "two cores": "--:",
        "sixteen cores (planned)": "--:",
    }
    one = {result["model"]: result for result in comparisons("16-8", threads=1)}
    two = {result["model"]: result for result in comparisons("16-8", threads=2)}
    rows = []
    for name in NETWORKS:
        if name not in one or name not in two:
            continue
        alone, both = (found[name]["sides"]["krypton"]["seconds"] for found in (one, two))
        rows.append(
            [
                name,
                str(one[name]["windows"]),
                f"{alone:.1f}",
                f"{both:.1f}",
                hours_of(min(both, alone / 2), images),
                hours_of(alone / 16, images),
            ]
        )
    if not rows:
        return NOTHING
    machines = dict.fromkeys(machine_name(found[row[0]]) for row in rows for found in (one, two))
    return f"{markdown_table(titles, rows)}\n\nMeasured on: {' and '.join(machines)}."


def gpu_table(images: int = IMAGES) -> str:
    """Milliseconds of a later map on one card, and what they make of a data set."""
    titles = {"network": "---", "windows": "--:", "ms a map": "--:", "one GPU (planned)": "--:"}
    result = gpu()
    rows = []
    for compared in result["networks"]:
        seconds = compared["sides"]["krypton"]["seconds"]
        times = [compared["model"], str(compared["windows"]), f"{1e3 * seconds:.0f}"]
        rows.append([*times, hours_of(seconds, images)])
    return f"{markdown_table(titles, rows)}\n\nMeasured on: {machine_name(result)}."


def cluster_line(file: Path = DATA / "cluster.json") -> str:
    """What `cluster.py` measured, in words."""
    if not file.exists():
        return "What Ray Data itself costs: *not measured*."
    made: dict[str, Any] = json.loads(file.read_text())
    rates, ratio = made["images_per_second"], made["ratio"]
    whole = hours_of(1 / rates["ray"]["steady"])
    return (
        f"{made['images']} images of {made['size']} pixels, {made['model']}, {made['windows']} "
        f"windows, {made['workers']} workers of one thread: Ray Data ({made['ray']}) explains "
        f"{rates['ray']['steady']:.3g} images a second once its workers have started, as many "
        f"plain loops {rates['loops']['steady']:.3g}: {ratio['steady']:.0%} of their speed. With "
        f"the start of all processes it is {rates['ray']['whole']:.3g} and "
        f"{rates['loops']['whole']:.3g}, {ratio['whole']:.0%}. At the first rate {IMAGES:,} "
        f"images take {whole}. Measured on: {machine_name(made)}."
    )
