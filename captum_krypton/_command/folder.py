"""A folder of maps that a killed run can go on with.

A map that is there under its name is whole and done; nothing else is needed to go on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .. import OcclusionMap
from .failure import CommandError, say
from .files import write_bytes, writing

__all__ = ["MapFolder", "holds_maps", "opened"]

_RECORD, _FORMAT = "run.json", "captum-krypton run"
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.part")
_MAP, _PICTURE = ".npz", ".png"


@dataclass(frozen=True)
class MapFolder:
    """The output of one run, or of several with the same settings.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def page(self) -> Path:
        """The page of all maps."""
        return self.path / "index.html"

    def map_of(self, name: str) -> Path:
        """The file of an image's map."""
        return self.path / f"{name}{_MAP}"

    def picture_of(self, name: str) -> Path:
        """The file of an image's picture."""
        return self.path / f"{name}{_PICTURE}"

    def summary_of(self, kind: str) -> Path:
        """The file with a row an image."""
        return self.path / f"summary.{kind}"

    def names(self) -> list[str]:
        """The images that have a map, sorted."""
        found = (path.relative_to(self.path) for path in self.path.rglob(f"*{_MAP}"))
        return sorted(
            path.as_posix().removesuffix(_MAP) for path in found if not path.name.startswith(".")
        )

    def load(self, name: str) -> OcclusionMap | None:
        """The map of an image; None where there is none that is whole."""
        path = self.map_of(name)
        if not path.is_file():
            return None
        try:
            return OcclusionMap.load(path)
        except (OSError, ValueError) as error:
            say(f"{path} is damaged and is made anew: {error}")
            return None

    def is_done(self, name: str, source: Path) -> bool:
        """Whether an image has a map, and has not been changed since."""
        path = self.map_of(name)
        return path.is_file() and path.stat().st_mtime_ns >= source.stat().st_mtime_ns

    def keep(self, name: str, heat: OcclusionMap) -> None:
        """Writes the map of an image: it is done then."""
        path = self.map_of(name)
        with writing(path):
            heat.save(path)


@contextmanager
def opened(
    path: Path, settings: Mapping[str, Any], made_by: Mapping[str, str], overwrite: bool
) -> Iterator[MapFolder]:
    """A folder for the maps of these settings, which no other process writes into meanwhile.

    Args:
        path: the folder; it is made where there is none.
        settings: what maps depend on.
        made_by: what is written beside them and may change from run to run.
        overwrite: whether maps of other settings are removed first.

    Raises:
        CommandError: where the folder holds something else, or maps of other settings, or where
            another process writes into it.
    """
    if path.exists() and not path.is_dir():
        raise CommandError(f"--output {path}: it is a file; expected a folder for these images")
    record = path / _RECORD
    with writing(record):
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise CommandError(
                f"--output {path}: another process is writing maps into it"
            ) from error
    try:
        _begin(path, record, dict(settings), dict(made_by), overwrite)
        yield MapFolder(path)
    finally:
        lock.release()


def _begin(
    path: Path,
    record: Path,
    settings: dict[str, Any],
    made_by: dict[str, str],
    overwrite: bool,
) -> None:
    """Leaves a folder that is empty, or that a run with the same settings has begun."""
    if record.is_file():
        before = _read(record)
        differing = _differing(before, settings)
        if differing and not overwrite:
            raise CommandError(
                f"--output {path}: it holds maps of other settings ({'; '.join(differing)}). "
                "Choose another folder, or pass --overwrite to remove those maps"
            )
        if overwrite:
            _clear(path)
    elif any(not child.name.startswith(".") for child in path.iterdir()):
        raise CommandError(
            f"--output {path}: the folder has files and no run.json of an earlier run; choose a "
            "folder that is empty or new"
        )
    for left in path.rglob(".*"):
        if _TEMPORARY.fullmatch(left.name) and left.is_file():
            left.unlink()  # of a run that was killed while it wrote
    if overwrite or not record.is_file():
        text = {"format": _FORMAT, "version": 1, "settings": settings, "made_by": made_by}
        write_bytes(record, json.dumps(text, indent=2).encode() + b"\n")


def holds_maps(path: Path) -> bool:
    """Whether a folder is the output of a run."""
    try:
        found = json.loads((path / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("format") == _FORMAT


def _read(record: Path) -> dict[str, Any]:
    """The settings of an earlier run."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        if found["format"] != _FORMAT or found["version"] != 1:
            raise ValueError(f"format {found['format']!r}, version {found['version']!r}")
        settings: dict[str, Any] = dict(found["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandError(
            f"{record}: not readable as settings of an earlier run ({error}); choose another folder"
        ) from error
    return settings


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    now = json.loads(json.dumps(now))
    return [
        f"{name}: {before.get(name)} then, {now.get(name)} now"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def _clear(path: Path) -> None:
    """Removes what runs have written, and nothing else."""
    for made in path.rglob(f"*{_MAP}"):
        picture = made.with_name(made.name.removesuffix(_MAP) + _PICTURE)
        for file in (picture, made):  # the map last: it is how the picture is found
            file.unlink(missing_ok=True)
    for name in ("summary.csv", "summary.parquet", "index.html"):
        (path / name).unlink(missing_ok=True)
