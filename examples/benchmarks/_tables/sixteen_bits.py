"""The table of maps in bfloat16 and float16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import DATA, NOTHING, tables_by_machine


def sixteen_bit_table(file: Path = DATA / "sixteen_bits.json") -> str:
    """The table of what `sixteen_bits.py` measured."""
    if not file.exists():
        return NOTHING
    titles = {
        "network": "---",
        "type": "---",
        "later maps, s": "--:",
        "of float32's": "--:",
        "error of a drop, plain": "--:",
        "krypton": "--:",
    }
    rows = [
        {**result, "type": kind}
        for result in json.loads(file.read_text())
        for kind in result["seconds"]
    ]

    def cells(row: dict[str, Any]) -> list[str]:
        seconds, errors = row["seconds"], row["errors"][row["type"]]
        return [
            row["network"],
            row["type"],
            f"{seconds[row['type']]:.2f}",
            f"{seconds[row['type']] / seconds['float32']:.2f}",
            f"{errors['naive']:.1e}",
            f"{errors['krypton']:.1e}",
        ]

    return tables_by_machine(titles, rows, cells)
