"""Which class: its number, or its name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from .failure import CommandError

__all__ = ["label_of", "read_labels", "resolve"]

_LISTED = 10


def read_labels(file: str) -> tuple[str, ...]:
    """The classes' names in a file: one a line, or JSON.

    JSON is a list of names, or a mapping of numbers to names; of a list in place of a name, the
    last entry counts.

    Raises:
        CommandError: where there are none.
    """
    path = Path(file)
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except OSError as error:
        raise CommandError(f"--labels {file}: {error.strerror}") from error
    except ValueError as error:  # neither UTF-8 nor JSON
        raise CommandError(f"--labels {file}: not readable: {error}") from error
    names = _in_order(found, file) if isinstance(found, dict) else found
    if not isinstance(names, list) or not names:
        raise CommandError(
            f"--labels {file}: expected a list of names, or a mapping of numbers to names"
        )
    while path.suffix != ".json" and names and not names[-1].strip():
        names.pop()
    return tuple(str(name[-1] if isinstance(name, list) and name else name) for name in names)


def _in_order(found: dict[str, Any], file: str) -> list[Any]:
    try:
        numbers = {int(key): value for key, value in found.items()}
        return [numbers[index] for index in range(len(numbers))]
    except (KeyError, ValueError) as error:
        raise CommandError(
            f"--labels {file}: the keys must be the numbers 0 to {len(found) - 1}"
        ) from error


def resolve(asked: str, names: Sequence[str], classes: int) -> int:
    """The number of the class that is asked for.

    Args:
        asked: its number; or its name, or one of the names that commas separate in it, or a part.
        names: of all classes; empty where unknown.
        classes: how many there are.

    Raises:
        CommandError: where there is none, or several.
    """
    if asked.strip().isdecimal():
        number = int(asked)
        if number >= classes:
            raise CommandError(f"--target {asked}: the model has classes 0 to {classes - 1}")
        return number
    if not names:
        raise CommandError(
            f"--target {asked}: the names of this model's classes are unknown; give a number, 0 to "
            f"{classes - 1}, or the names by --labels FILE"
        )
    wanted = " ".join(asked.lower().split())
    lower = [" ".join(name.lower().split()) for name in names]
    found = [i for i, name in enumerate(lower) if name == wanted]
    found = found or [i for i, n in enumerate(lower) if wanted in map(str.strip, n.split(","))]
    found = found or [i for i, name in enumerate(lower) if wanted in name]
    if len(found) == 1:
        return found[0]
    if not found:
        parts = {part.strip(): i for i, name in enumerate(lower) for part in name.split(",")}
        close = [f"{parts[n]} {names[parts[n]]}" for n in get_close_matches(wanted, parts, 3)]
        hint = f"; close to it: {', '.join(close)}" if close else ""
        raise CommandError(f"--target {asked}: no class has that name{hint}")
    listed = ", ".join(f"{i} {names[i]}" for i in found[:_LISTED])
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    raise CommandError(f"--target {asked}: {len(found)} classes match: {listed}{more}; give one")


def label_of(target: int, names: Sequence[str]) -> str:
    """The name of a class; its number where that is unknown."""
    return names[target] if names else f"class {target}"
