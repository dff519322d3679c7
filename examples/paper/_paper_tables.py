"""The tables of the paper's results, as Markdown: what the scripts print and the page shows.

Standard library only: the documentation is built with it.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from typing import Any

import _benchmarks  # noqa: F401, the modules of its folder are found from here on
from _tables import DATA, machine_line, markdown_table

RANDOM = "Networks of this table have random weights: their maps are timed, not judged."


def theoretical_speedup_table(result: dict[str, Any]) -> str:
    """Figure 4."""
    patches = result["settings"]["patches"]
    titles = {"network": "---", "side": "--:"}
    titles |= {f"{patch}, centre": "--:" for patch in patches}
    titles |= {f"{patch}, map": "--:" for patch in patches}
    rows = []
    for name in result["settings"]["networks"]:
        found = {row["patch"]: row for row in result["rows"] if row["network"] == name}
        cells = [name, str(found[patches[0]]["side"])]
        cells += [f"{found[patch][key]:.2f}" for key in ("centre", "map") for patch in patches]
        rows.append(cells)
    note = (
        "Theoretical speed-up of the convolutions (Eq. 17) by side of the patch in pixels. "
        "*Centre*: the paper's equations, a patch at the centre. *Map*: captum-krypton's count, "
        f"mean of all windows at a stride of {result['settings']['stride']}."
    )
    return f"{markdown_table(titles, rows)}\n\n{note} {_where(result)}"


def threshold_table(result: dict[str, Any]) -> str:
    """Figures 7 and 13."""
    speed_titles = {
        "network": "---",
        "window/stride": "--:",
        "threshold": "--:",
        "map, s": "--:",
        "speed-up over naive": "--:",
        "by operations, map": "--:",
        "by operations, centre": "--:",
    }
    speed = [
        [
            row["network"],
            f"{row['window']}/{row['stride']}",
            f"{row['threshold']:g}",
            f"{row['seconds']:.2f}",
            f"{row['naive_seconds'] / row['seconds']:.1f}",
            f"{row['map']:.2f}",
            f"{row['centre']:.2f}",
        ]
        for row in result["speed"]
    ]
    titles = {
        "threshold": "--:",
        "SSIM": "--:",
        "lowest": "--:",
        "mean square error": "--:",
        "of the change": "--:",
        "over exact": "--:",
    }
    similar = medians(result["quality"], "threshold", "ssim")
    error = medians(result["quality"], "threshold", "error")
    share = medians(result["quality"], "threshold", "error_share")
    ratio = _ratios(result["quality"], "threshold")
    cells = [
        [
            f"{tau:g}",
            f"{similar[tau]:.3f}",
            f"{min(row['ssim'] for row in result['quality'] if row['threshold'] == tau):.3f}",
            f"{error[tau]:.1e}",
            f"{share[tau]:.1%}",
            f"{ratio[tau]:.1f}",
        ]
        for tau in similar
    ]
    settings = result["settings"]
    note = (
        f"{_judged(result)}, windows {settings['window']}/{settings['stride']}: medians. The error "
        "is that of the last convolution's output under the window at the centre."
    )
    return (
        f"{markdown_table(speed_titles, speed)}\n\n{RANDOM}\n\n{markdown_table(titles, cells)}\n\n"
        f"{note} {_where(result)}"
    )


def drill_down_table(result: dict[str, Any]) -> str:
    """Figures 9 and 14."""
    names = result["settings"]["networks"]
    titles = {"fraction": "--:", "S1/S2": "--:", "target speed-up": "--:"}
    titles |= {f"{name}, measured": "--:" for name in names}
    titles |= {f"{name}, by operations": "--:" for name in names}
    titles |= {"SSIM": "--:", "lowest": "--:", "over exact": "--:"}
    groups: dict[tuple[str, float, int], list[dict[str, Any]]] = {}
    for row in result["quality"]:
        groups.setdefault((row["series"], row["fraction"], row["step"]), []).append(row)
    rows = []
    for key, found in groups.items():
        speed = {
            row["network"]: row
            for row in result["speed"]
            if (row["series"], row["fraction"], row["step"]) == key
        }
        cells = [f"{key[1]:g}", str(key[2]), f"{found[0]['target_speedup']:.2f}"]
        cells += [f"{speed[n]['naive_seconds'] / speed[n]['seconds']:.1f}" for n in names]
        cells += [f"{speed[n]['theoretical']:.1f}" for n in names]
        ratio = statistics.median(row["exact_seconds"] / row["seconds"] for row in found)
        cells += [
            f"{statistics.median(row['ssim'] for row in found):.3f}",
            f"{min(row['ssim'] for row in found):.3f}",
            f"{ratio:.1f}",
        ]
        rows.append(cells)
    windows = ", ".join(
        f"{name} {row['window']}/{row['stride']}"
        for name, row in {row["network"]: row for row in result["speed"]}.items()
    )
    note = (
        f"Speed-ups are over naive, windows {windows}. {RANDOM.replace('of this table', 'there')} "
        f"SSIM and *over exact* are those of {_judged(result)}, windows "
        f"{result['settings']['window']}/{result['judged']['stride']}: medians."
    )
    return f"{markdown_table(titles, rows)}\n\n{note} {_where(result)}"


def tuning_table(result: dict[str, Any]) -> str:
    """Figure 10."""
    settings, target = result["settings"], result["settings"]["target"]
    titles = {"threshold": "--:", "SSIM": "--:", "lowest": "--:", "fit": "--:"}
    rows = [
        [
            f"{tau:g}",
            f"{statistics.median(found):.3f}",
            f"{min(found):.3f}",
            f"{fit:.3f}",
        ]
        for tau, found, fit in zip(
            settings["thresholds"],
            zip(*result["ssim"], strict=True),
            result["curve"],
            strict=True,
        )
    ]
    deviation = {
        "images": "---",
        "number": "--:",
        "median SSIM": "--:",
        "at least the target": "--:",
        "below it by at most 0.1": "--:",
    }
    parts = [
        [
            name,
            str(len(found)),
            f"{statistics.median(found):.3f}",
            f"{sum(value >= target for value in found)}",
            f"{sum(target - 0.1 <= value < target for value in found)}",
        ]
        for name, found in (("sample", result["at_threshold"]), ("held out", result["held_out"]))
    ]
    paper = ", ".join(f"{name} {tau:g}" for name, tau in result["paper"].items())
    note = (
        f"{_judged(result)}, windows {settings['window']}/{settings['stride']}. Chosen for a "
        f"target of {target:g}: **{result['threshold']:g}**. The paper's choices for 0.9 on its "
        f"OCT images: {paper}."
    )
    tables = markdown_table(titles, rows), note, markdown_table(deviation, parts), _where(result)
    return "\n\n".join(tables)


def end_to_end_table(result: dict[str, Any]) -> str:
    """Figure 11."""
    titles = {
        "network": "---",
        "window/stride": "--:",
        "side": "---",
        "map, s": "--:",
        "speed-up over naive": "--:",
        "by operations": "--:",
        "the paper's": "--:",
        "SSIM": "--:",
    }

    def side(row: dict[str, Any]) -> str:
        if row["side"] == "Captum":
            return f"Captum, batch {row['batch']}"
        if row["side"] != "approximate":
            return str(row["side"])
        chosen = row["drill_down"]
        return (
            f"approximate, τ {row['threshold']:g}, r {chosen['fraction']:g}, target "
            f"{chosen['speedup']:g} ({row['settings_of']})"
        )

    rows = [
        [
            row["network"],
            f"{row['window']}/{row['stride']}",
            side(row),
            f"{row['seconds']:.2f}",
            f"{row['speedup']:.1f}",
            f"{row['theoretical']:.1f}" if "theoretical" in row else "",
            f"{row['paper']:g}" if row["paper"] else "",
            f"{row['ssim']:.3f}" if "ssim" in row else "",
        ]
        for row in result["rows"]
    ]
    judged = result["judged"]
    note = (
        f"{judged['name']} has trained weights, explains {judged['images'][0]}, and its threshold "
        "is tuned on other images. The others have random weights: their maps are timed, not "
        "judged. The paper's speed-ups are those on its CPU."
    )
    return f"{markdown_table(titles, rows)}\n\n{note} {_where(result)}"


def patch_size_table(result: dict[str, Any]) -> str:
    """Figure 12."""
    titles = {
        "network": "---",
        "window/stride": "--:",
        "windows": "--:",
        "map, s": "--:",
        "naive, s": "--:",
        "speed-up": "--:",
        "by operations, map": "--:",
        "by operations, centre": "--:",
    }
    rows = [
        [
            row["network"],
            f"{row['window']}/{row['stride']}",
            str(row["windows"]),
            f"{row['seconds']:.2f}",
            f"{row['naive_seconds']:.1f}",
            f"{row['naive_seconds'] / row['seconds']:.1f}",
            f"{row['map']:.2f}",
            f"{row['centre']:.2f}",
        ]
        for row in result["rows"]
    ]
    return f"{markdown_table(titles, rows)}\n\n{RANDOM} {_where(result)}"


def visual_table(result: dict[str, Any]) -> str:
    """Figure 16, in numbers."""
    titles = {
        "image": "---",
        "threshold": "--:",
        "drill-down": "---",
        "windows run": "--:",
        "SSIM": "--:",
        "map, s": "--:",
        "over exact": "--:",
    }

    def drill_down(row: dict[str, Any]) -> str:
        chosen = row["drill_down"]
        return f"{chosen['fraction']:g}, {chosen['speedup']:g}" if chosen else ""

    rows = [
        [
            row["image"],
            f"{row['threshold']:g}",
            drill_down(row),
            f"{row['windows']:.0%}",
            f"{row['ssim']:.3f}",
            f"{row['seconds']:.2f}",
            f"{row['exact_seconds'] / row['seconds']:.1f}",
        ]
        for row in result["rows"]
    ]
    settings = result["settings"]
    note = f"{_judged(result)}, windows {settings['window']}/{settings['stride']}."
    return f"{markdown_table(titles, rows)}\n\n{note} {_where(result)}"


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "theoretical_speedup": theoretical_speedup_table,
    "threshold": threshold_table,
    "drill_down": drill_down_table,
    "tuning": tuning_table,
    "end_to_end": end_to_end_table,
    "patch_size": patch_size_table,
    "visual": visual_table,
}


def section(name: str) -> str:
    """The table of a committed result, for the documentation."""
    return TABLES[name](json.loads((DATA / "paper" / f"{name}.json").read_text()))


def medians(rows: list[dict[str, Any]], by: str, key: str) -> dict[float, float]:
    """The median of a column, by another."""
    values = dict.fromkeys(row[by] for row in rows)
    return {
        value: statistics.median(row[key] for row in rows if row[by] == value) for value in values
    }


def _ratios(rows: list[dict[str, Any]], by: str) -> dict[float, float]:
    with_ratio = [{**row, "ratio": row["exact_seconds"] / row["seconds"]} for row in rows]
    return medians(with_ratio, by, "ratio")


def _judged(result: dict[str, Any]) -> str:
    judged = result["judged"]
    count = len(judged["images"])
    return f"{judged['name']} ({judged['weights']} weights), {count} image{'s' * (count > 1)}"


def _where(result: dict[str, Any]) -> str:
    quick = "quick settings, " if result["quick"] else ""
    return f"Measured on: {machine_line(result)}; {quick}{result['seconds']:.0f} s in all."
