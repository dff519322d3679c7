"""The tables of the README and the documentation, from the measurements in docs/data.

One module for each subject; here is what they share. Standard library only: the documentation is
built with it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT / "docs" / "data"
NOTHING = "*No measurement is committed yet.*"


def machine_line(*results: dict[str, Any]) -> str:
    """The machines of some measurements, in words, and from when to when they were made."""
    dates: dict[str, list[str]] = {}
    for result in results:
        dates.setdefault(machine_name(result), []).append(result["machine"]["date"])
    return " and ".join(
        f"{machine}; {' to '.join(sorted({min(days), max(days)}))}"
        for machine, days in dates.items()
    )


def machine_name(result: dict[str, Any]) -> str:
    """The machine of a measurement, and what was installed there, in words."""
    where = result["machine"]
    found = {n: v for n, v in where["versions"].items() if v != "not installed"}
    versions = ", ".join(f"{name} {version}" for name, version in found.items())
    return (
        f"{where['gpu'] or where['processor']} ({where['vector instructions']}), "
        f"{where['threads']} CPU threads, {where['system']}, Python {where['python']}, "
        f"{versions}"
    )


def markdown_table(titles: dict[str, str], rows: list[list[str]]) -> str:
    """Rows of cells under titles, each with its alignment in Markdown."""
    lines = [list(titles), list(titles.values()), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables_by_machine(
    titles: dict[str, str],
    results: list[dict[str, Any]],
    cells: Callable[[dict[str, Any]], list[str]],
) -> str:
    """A table of measurements for each machine that made some, with the machine below it.

    Args:
        titles: the columns, each with its alignment in Markdown.
        results: the measurements, a row each.
        cells: the row of a measurement.
    """
    machines: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        machines.setdefault(machine_name(result), []).append(result)
    parts = [
        f"{markdown_table(titles, [cells(result) for result in group])}\n\n"
        f"Measured on: {machine_line(*group)}."
        for group in machines.values()
    ]
    return "\n\n".join(parts) if parts else NOTHING
