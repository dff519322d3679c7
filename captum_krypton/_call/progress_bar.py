"""A progress bar over windows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

from .arguments import Call

__all__ = ["progress"]

PATIENCE = 10  # seconds without a sign of life


@contextmanager
def progress(call: Call, show: bool | None, windows: int) -> Iterator[Callable[[int], None]]:
    """A progress bar over windows, told of rows: a window has one for each example.

    Args:
        call: says what the windows are of, and how many examples there are.
        show: whether to show one; None for one after `PATIENCE` seconds, where somebody looks on.
        windows: how many there are.
    """
    if not (show or show is None and _watched()):
        yield lambda rows: None
        return
    title, delay = f"{call.method} attribution", 0 if show else PATIENCE
    with tqdm(total=windows, desc=title, unit="window", delay=delay) as bar:
        rows = 0

        def advance(more: int) -> None:
            nonlocal rows
            before, rows = rows // call.examples, rows + more
            bar.update(rows // call.examples - before)

        yield advance


def _watched() -> bool:
    """Whether what is written to stderr is seen at once: on a terminal and in a notebook."""
    return sys.stderr is not None and sys.stderr.isatty() or "ipykernel" in sys.modules
