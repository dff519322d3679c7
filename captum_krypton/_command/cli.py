"""From a command line to what it asks for, and to an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from .. import ArgumentError
from .failure import ERROR, FINE, INTERRUPTED, CommandError, say
from .parser import Options, build, options_of

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the words after the program's name; those of the process where left out.

    Returns:
        The exit code: 0 fine, 1 an error, 3 some images failed, 130 interrupted. Wrong usage
        raises `SystemExit` with 2.
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
        return _explain(options_of(asked))
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has gone, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ERROR
    except (CommandError, ArgumentError) as error:
        if asked.command == "explain" and asked.traceback:
            raise
        say(f"error: {error}")
        return error.code if isinstance(error, CommandError) else ERROR


def _explain(options: Options) -> int:
    try:
        from .explain import run
    except ImportError as error:
        raise CommandError(
            f"{error}; pip install 'captum-krypton[command]' installs what the command line uses"
        ) from error
    return run(options)
