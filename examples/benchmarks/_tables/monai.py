"""Occlusion sensitivity beside MONAI's own class."""

from __future__ import annotations

import json
from typing import Any

from . import DATA, machine_name, markdown_table


def monai_table() -> str:
    """What `monai_sensitivity.py` measured."""
    made: dict[str, Any] = json.loads((DATA / "monai_sensitivity.json").read_text())
    numbers = ("axes", "side", "times over MONAI", "MONAI, s", "first map, s", "later maps, s")
    rows = [
        [
            *(row["network"], str(row["axes"]), str(row["side"]), f"{row['speedup']:.1f}"),
            *(f"{row[name]:.1f}" for name in ("monai_seconds", "first_seconds", "seconds")),
        ]
        for row in made["rows"]
    ]
    table = markdown_table({"network": "---", **dict.fromkeys(numbers, "--:")}, rows)
    return f"{table}\n\nMeasured on: {machine_name(made)}."
