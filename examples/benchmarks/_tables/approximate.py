"""The tables of approximate maps: what they are worth, what they cost, how honest they are."""

from __future__ import annotations

import json
import statistics
from typing import Any

from . import DATA, machine_line, markdown_table


def approximations() -> list[dict[str, Any]]:
    """The committed results of `approximate_quality.py`, by network."""
    return [json.loads(file.read_text()) for file in sorted((DATA / "approximate").glob("*.json"))]


def quality_of(way: str) -> float:
    """The target of a way of `approximate_quality.py`, 0 where it has none."""
    return float(way.split()[1].strip(",")) if way.startswith("quality") else 0.0


def approximation_table(result: dict[str, Any]) -> str:
    """The table that `approximate_quality.py` measured: medians over the photographs."""
    titles = {
        "approximation": "---",
        "SSIM": "--:",
        "lowest": "--:",
        "estimated": "--:",
        "target met": "--:",
        "Spearman": "--:",
        "windows run": "--:",
        "of them exactly": "--:",
        "over exact": "--:",
        "over Captum": "--:",
    }
    ways: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        ways.setdefault(row["way"], []).append(row)

    def cells(name: str, rows: list[dict[str, Any]]) -> list[str]:
        def middle(key: str) -> float:
            return statistics.median(row[key] for row in rows)

        seconds = middle("seconds")
        target = quality_of(name)
        met = sum(row["ssim"] >= target for row in rows) if target else 0
        return [
            name,
            f"{middle('ssim'):.3f}",
            f"{min(row['ssim'] for row in rows):.3f}",
            f"{middle('estimated'):.3f}" if target else "",
            f"{met} of {len(rows)}" if target else "",
            f"{middle('spearman'):.3f}",
            f"{middle('windows'):.0%}",
            f"{middle('exact_windows'):.0%}",
            f"{statistics.median(row['exact_seconds'] / row['seconds'] for row in rows):.1f}",
            f"{result['captum']['seconds'] / seconds:.1f}",
        ]

    exact = statistics.median(row["exact_seconds"] for row in result["rows"])
    over = f"{result['captum']['seconds'] / exact:.1f}"
    rows = [["exact", "1", "1", "", "", "1", "100%", "100%", "1", over]]
    rows += [cells(name, found) for name, found in ways.items()]
    return markdown_table(titles, rows)


def approximation_page() -> str:
    """The table of docs/approximate.md, with what it was measured on."""
    result = json.loads((DATA / "approximate" / "lite0.json").read_text())
    photographs = len({row["photograph"] for row in result["rows"]})
    return (
        f"{approximation_table(result)}\n\n{result['network']}, {photographs} photographs, "
        f"{result['size']} pixels a side, windows of {result['window']}, stride "
        f"{result['stride']}: {result['windows']} windows. {machine_line(result)}"
    )


def estimate_table(results: list[dict[str, Any]]) -> str:
    """How near maps' own estimates of their SSIM are, by network and by all of them."""
    titles = {
        "network": "---",
        "maps": "--:",
        "target met": "--:",
        "SSIM minus estimate, median": "--:",
        "5th percentile": "--:",
        "lowest": "--:",
    }

    def cells(name: str, rows: list[dict[str, Any]]) -> list[str]:
        apart = sorted(row["ssim"] - row["estimated"] for row in rows)
        met = sum(row["ssim"] >= quality_of(row["way"]) for row in rows)
        return [
            name,
            str(len(rows)),
            f"{met} of {len(rows)}",
            f"{statistics.median(apart):+.3f}",
            f"{statistics.quantiles(apart, n=20, method='inclusive')[0]:+.3f}",
            f"{apart[0]:+.3f}",
        ]

    judged = {
        f"{result['network']}, stride {result['stride']}": [
            row for row in result["rows"] if quality_of(row["way"])
        ]
        for result in results
    }
    every = [row for rows in judged.values() for row in rows]
    rows = [cells(name, found) for name, found in judged.items()]
    for target in sorted({quality_of(row["way"]) for row in every}):
        of_it = [row for row in every if quality_of(row["way"]) == target]
        rows.append(cells(f"all, target {target:g}", of_it))
    return markdown_table(titles, [*rows, cells("all", every)])


def estimates_page() -> str:
    """The measured part of what docs/approximate.md says about estimates."""
    results = approximations()
    pairs = sum(len({row["photograph"] for row in result["rows"]}) for result in results)
    return (
        f"{estimate_table(results)}\n\n{pairs} pairs of network and photograph. "
        f"Measured on: {machine_line(*results)}"
    )


def approximation_speed_table(result: dict[str, Any]) -> str:
    """Speed-ups over Captum's fastest batch, by network and approximation."""
    titles = {
        "network": "---",
        "approximation": "---",
        "windows run": "--:",
        "seconds": "--:",
        "over exact": "--:",
        "over Captum": "--:",
    }
    rows = []
    for network in result["networks"]:
        exact, captum = network["rows"][0]["seconds"], network["captum"]["seconds"]
        rows += [
            [
                network["model"],
                row["way"],
                f"{row['windows']:.0%}",
                f"{row['seconds']:.2f}",
                f"{exact / row['seconds']:.1f}",
                f"{captum / row['seconds']:.1f}",
            ]
            for row in network["rows"]
        ]
    return markdown_table(titles, rows)


def approximation_speed_page() -> str:
    """The tables of `approximate_speed.py`, with what they were measured on."""
    results = [json.loads(f.read_text()) for f in sorted(DATA.glob("approximate_speed*.json"))]
    return "\n\n".join(
        f"{approximation_speed_table(result)}\n\nWindows of {result['window']}, stride "
        f"{result['stride']}. Measured on: {machine_line(result)}"
        for result in results
    )
