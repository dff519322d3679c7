"""What is installed here: a distribution's requirements, and the space that it takes."""

from __future__ import annotations

from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def required(name: str) -> dict[str, Distribution]:
    """A distribution and all that it requires here, extras that nothing asks for left out.

    Args:
        name: the distribution, such as `"torch"`.

    Returns:
        The distributions by name.

    Raises:
        PackageNotFoundError: if one of them is not installed.
    """
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(canonicalize_name(name), "")]
    while waiting:
        here, extra = waiting.pop()
        if (here, extra) in seen:
            continue
        seen.add((here, extra))
        found[here] = _distribution(here)
        for text in found[here].requires or []:
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(need.name), e) for e in ("", *need.extras)]
    return found


def size(found: Distribution, *suffixes: str) -> int:
    """Bytes of a distribution's files, without its commands and what Python caches.

    Args:
        found: the distribution.
        suffixes: of the files that count, such as `".so"`; none: all count.
    """
    if found.files is None:
        raise FileNotFoundError(f"{found.metadata['Name']} is installed without its list of files")
    return sum(
        Path(str(file.locate())).stat().st_size
        for file in found.files
        if file.parts[0] != ".." and file.suffix != ".pyc"
        if not suffixes or file.suffix in suffixes
    )


def _distribution(name: str) -> Distribution:
    try:
        return distribution(name)
    except PackageNotFoundError as error:
        raise PackageNotFoundError(f"{name} is required here, and not installed") from error
