"""What ends a command, and the code that it ends with."""

from __future__ import annotations

import sys

from tqdm import tqdm

__all__ = ["ERROR", "FINE", "INTERRUPTED", "SOME_FAILED", "CommandError", "UsageError", "say"]

FINE, ERROR, USAGE, SOME_FAILED, INTERRUPTED = 0, 1, 2, 3, 130


class CommandError(Exception):
    """Ends the command with a message, and with `code`."""

    code = ERROR


class UsageError(CommandError):
    """Options that do not go together."""

    code = USAGE


def say(text: str) -> None:
    """A line for whoever watches, on stderr, above any progress bar."""
    tqdm.write(f"captum_krypton: {text}", file=sys.stderr)
