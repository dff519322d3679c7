"""A progress bar over windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

from .arguments import Call

__all__ = ["progress"]


@contextmanager
def progress(call: Call, show: bool, windows: int) -> Iterator[Callable[[int], None]]:
    """A progress bar over windows, told of rows: a window has one for each example."""
    if not show:
        yield lambda rows: None
        return
    with tqdm(total=windows, desc=f"{call.method} attribution", unit="window") as bar:
        rows = 0

        def advance(more: int) -> None:
            nonlocal rows
            before, rows = rows // call.examples, rows + more
            bar.update(rows // call.examples - before)

        yield advance
