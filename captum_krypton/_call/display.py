"""What a notebook shows: tables of facts, and pictures beside them."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import fields
from html import escape
from typing import Any

__all__ = ["beside", "fact_table", "field_table", "picture_tag", "row_table", "short_repr"]


def short_repr(thing: Any) -> str:
    """A data class by the fields that differ from their defaults, numbers in three digits."""
    shown = (f"{name}={_short(value)}" for name, value in _told(thing).items())
    return f"{type(thing).__name__}({', '.join(shown)})"


def field_table(thing: Any, without: Sequence[str] = ()) -> str:
    """The same as an HTML table of names and values.

    Args:
        thing: the data class.
        without: fields that are left out.
    """
    told = _told(thing).items()
    return fact_table(
        {
            name: value if isinstance(value, str) else _short(value)
            for name, value in told
            if name not in without
        }
    )


def _told(thing: Any) -> dict[str, Any]:
    """The fields that differ from their defaults."""
    return {
        field.name: getattr(thing, field.name)
        for field in fields(thing)
        if getattr(thing, field.name) != field.default
    }


def fact_table(facts: Mapping[str, Any]) -> str:
    """An HTML table of names and values."""
    rows = (
        f"<tr><th style='text-align:left'>{escape(name)}</th>"
        f"<td style='text-align:left'>{escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    return f"<table>{''.join(rows)}</table>"


def row_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table of rows, in a box that scrolls; columns that hold numbers are to the right."""
    right = [all(_is_number(row[column]) for row in rows) for column in range(len(names))]
    sides = ["right" if numbers else "left" for numbers in right]

    def line(tag: str, cells: Sequence[str]) -> str:
        made = (
            f"<{tag} style='text-align:{side}'>{escape(cell)}</{tag}>"
            for cell, side in zip(cells, sides, strict=True)
        )
        return f"<tr>{''.join(made)}</tr>"

    body = "".join(line("td", row) for row in rows)
    table = f"<table><thead>{line('th', names)}</thead><tbody>{body}</tbody></table>"
    return f"<div style='max-height:32em;overflow:auto'>{table}</div>"


def beside(*parts: str) -> str:
    """Parts in HTML side by side, and below each other where the page is narrow."""
    boxes = "".join(f"<div style='max-width:100%'>{part}</div>" for part in parts)
    style = "display:flex;flex-wrap:wrap;gap:1em;align-items:flex-start"
    return f"<div style='{style}'>{boxes}</div>"


def picture_tag(png: bytes, says: str) -> str:
    """An HTML image of a PNG."""
    data = b64encode(png).decode()
    text = escape(says, quote=True)
    return f"<img src='data:image/png;base64,{data}' alt='{text}' style='max-width:100%'>"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, tuple) and len(value) > 4:
        return f"<{len(value)}>"
    return repr(value)


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "").rstrip("%") or "0")
    except ValueError:
        return False
    return True
