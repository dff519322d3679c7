"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from .failure import CommandError

__all__ = ["replace_with", "write_bytes", "writing"]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes the folder of a file that is written inside; says what to do where that fails.

    Raises:
        CommandError: for a full disk, a folder that may not be written, and the like.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise CommandError(
            f"cannot write {path}: {error.strerror or error}. What was written before is whole: "
            "make room or choose another place, and run the same command again"
        ) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file by way of another one beside it, which then takes its name."""
    with writing(path):
        replace_with(path, lambda temporary: _write(temporary, data))


def replace_with(path: Path, write: Callable[[Path], None]) -> None:
    """Lets a function write a file that takes the name of another one once it is whole."""
    temporary = path.with_name(f".{uuid4().hex}.part")  # a long name may have no room for more
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
