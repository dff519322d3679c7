"""The table of networks: which are compared with Captum, and how long each takes."""

from __future__ import annotations

import json
from typing import Any

from . import DATA, NOTHING, machine_line, markdown_table

# Maps are equal where they differ by less than this share of the largest attribution, or by no
# more than a few times what float32 itself is off, against float64, in a plain forward pass.
TOLERANCE, ROUNDING = 1e-4, 8


def verdict(row: dict[str, Any]) -> str:
    """What a network's row says: `equal`, or what is wrong with it."""
    if "error" in row:
        return "failed"
    if row["path"] != "incremental":
        return f"ran {row['path']}"
    allowed = max(TOLERANCE * row["largest_attribution"], ROUNDING * row["outcomes"]["naive_error"])
    equal = row["largest_attribution"] > 0 and row["difference"] <= allowed
    return "equal" if equal else "differs"


def over_captum(row: dict[str, Any]) -> float:
    """A network's speed-up over Captum, later maps."""
    timed = row["timed"]
    ratio: float = timed["captum_seconds"] / timed["seconds"]
    return ratio


def network_table(result: dict[str, Any]) -> str:
    """The table that `network_table.py` measured."""
    titles = {
        "network": "---",
        "verdict": "---",
        "times over Captum": "--:",
        "later maps, s": "--:",
        "first map, s": "--:",
        "Captum, s": "--:",
        "times by operations": "--:",
        "timed side, px": "--:",
        "windows": "--:",
        "relative difference": "--:",
        "side, px": "--:",
        "operators (global)": "--:",
    }

    def cells(row: dict[str, Any]) -> list[str]:
        side = str(row["size"])
        if "error" in row:
            error = row["error"].strip().splitlines()[-1].replace("|", "\\|")
            return [row["name"], f"failed: {error}", *[""] * 8, side, ""]
        timed = row["timed"]
        return [
            row["name"],
            verdict(row),
            f"{over_captum(row):.2f}",
            f"{timed['seconds']:.1f}",
            f"{timed['first_seconds']:.1f}",
            f"{timed['captum_seconds']:.1f}",
            f"{timed['theoretical_speedup']:.2f}",
            str(timed["size"]),
            str(timed["windows"]),
            f"{row['difference'] / (row['largest_attribution'] or 1):.1e}",
            side,
            f"{row['operators']} ({row['global_operators']})",
        ]

    return markdown_table(titles, [cells(row) for row in result["networks"]])


def networks_page() -> str:
    """The measured part of the documentation's page on networks."""
    file = DATA / "networks.json"
    if not file.exists():
        return NOTHING
    result = json.loads(file.read_text())
    rows = result["networks"]
    equal = sum(verdict(row) == "equal" for row in rows)
    timed = [row for row in rows if "timed" in row]
    later = [row["name"] for row in timed if over_captum(row) < 1]
    first = [
        row["name"]
        for row in timed
        if row["timed"]["first_seconds"] > row["timed"]["captum_seconds"]
    ]
    return (
        f"{equal} of {len(rows)} networks return Captum's map incrementally. "
        f"Slower than Captum: in a model's first map, which includes the set-up, "
        f"{', '.join(first) or 'none'}; in later maps, {', '.join(later) or 'none'}.\n\n"
        f"{network_table(result)}\n\n"
        f"Windows of {result['window']} pixels, stride {result['stride']} where maps are compared "
        f"and {result['timed_stride']} where they are timed, "
        f"{result['weights']} weights. Measured on: {machine_line(result)}."
    )
