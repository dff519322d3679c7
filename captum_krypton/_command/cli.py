"""From a command line to what it asks for, and to an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from .. import ArgumentError
from .failure import ERROR, FINE, INTERRUPTED, CommandError, say
from .parser import build, options_of

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the words after the program's name; those of the process where left out.

    Returns:
        The exit code: 0 fine, 1 an error, 2 options that do not go together, 3 some images failed,
        130 interrupted.

    Raises:
        SystemExit: with 2 for words that are no options, with 0 after `--help`.
    """
    parser = build()
    asked = parser.parse_args(arguments)
    if asked.command is None:
        parser.print_help()
        return FINE
    try:
        if asked.command == "info":
            from .info import print_info

            print_info()
            return FINE
        from .explain import run

        return run(options_of(asked))
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has gone, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ERROR
    except (CommandError, ArgumentError, ImportError) as error:
        if asked.command == "explain" and asked.traceback:
            raise
        hint = ""
        if isinstance(error, ModuleNotFoundError):
            hint = "; pip install 'captum-krypton[command]' installs what the command line uses"
        say(f"error: {error}{hint}")
        return error.code if isinstance(error, CommandError) else ERROR
