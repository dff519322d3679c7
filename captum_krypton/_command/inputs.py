"""Which images: files, and those in folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .failure import CommandError
from .folder import holds_maps
from .pictures import kinds

__all__ = ["Images", "find"]


@dataclass(frozen=True)
class Images:
    """The images of a command.

    Attributes:
        paths: of every image, by its name in the output.
        base: the folder that names are relative to.
        several: whether there may be several: a folder, or more than one file.
    """

    paths: dict[str, Path]
    base: Path
    several: bool


def find(arguments: Sequence[str], output: Path | None) -> Images:
    """The images that a command names, sorted by name.

    An image in the only folder given is named by its path in it; else by its path from the working
    folder, and where it does not lie in that, from the root.

    Args:
        arguments: files and folders.
        output: a folder that is left out of those, for it holds pictures of earlier runs.

    Raises:
        CommandError: where there is no such file, or no image.
    """
    given = [Path(argument) for argument in arguments]
    for path in given:
        if not path.exists():
            raise CommandError(f"{path}: no such file or folder")
    several = len(given) > 1 or given[0].is_dir()
    base = Path(os.path.abspath(given[0] if len(given) == 1 and several else "."))
    skipped = None if output is None else output.resolve()
    paths = {
        _name(path, base): path
        for argument in given
        for path in (_inside(argument, skipped) if argument.is_dir() else [argument])
    }
    if not paths:
        raise CommandError(f"{', '.join(arguments)}: no images in it, of a kind that Pillow reads")
    return Images(dict(sorted(paths.items())), base, several)


def _inside(folder: Path, skipped: Path | None) -> Iterator[Path]:
    """The images below a folder; not hidden ones, nor the pictures of earlier runs."""
    endings = kinds()

    def unreadable(error: OSError) -> None:
        raise CommandError(f"{error.filename}: {error.strerror}") from error

    for place, folders, files in os.walk(folder, onerror=unreadable):
        here = Path(place)
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and (here / name).resolve() != skipped
            and not holds_maps(here / name)
        ]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in endings:
                yield here / name


def _name(path: Path, base: Path) -> str:
    # Links are not followed: a link is an image with a name of its own.
    full = Path(os.path.abspath(path))
    for start in (base, Path(full.anchor)):
        if full.is_relative_to(start):
            return full.relative_to(start).as_posix()
    return full.name
