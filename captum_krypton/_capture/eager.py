"""Compiled code runs eagerly while a forward function is looked at: its operators are seen.

So does TorchScript, which runs other operators while it optimises.
"""

from __future__ import annotations

import importlib
import sys
import threading
from contextlib import ExitStack

import torch

__all__ = ["COMPILER", "eagerly"]


COMPILER = "torch._dynamo"


class _Eager:
    """A context within which, in any thread, no compiled code runs.

    The stance is the process's. Threads that each set and restored it would leave it as whoever
    came last had found it. Where nobody has imported the compiler, nothing is compiled, and it is
    not imported for this either, which takes seconds.

    Attributes:
        holds: whether the compiler is told so.
    """

    def __init__(self) -> None:
        self._lock, self._within, self.holds = threading.Lock(), 0, False
        self._stance = ExitStack()
        self._script = threading.local()  # how TorchScript ran before, by thread

    def __enter__(self) -> None:
        if COMPILER in sys.modules:
            _import_whole(COMPILER)
        with self._lock:
            if not self.holds and COMPILER in _imported:
                self._stance.enter_context(torch.compiler.set_stance("force_eager"))
                self.holds = True
            self._within += 1
        before = torch._C._get_graph_executor_optimize()
        self._script.before = [*getattr(self._script, "before", ()), before]
        torch._C._set_graph_executor_optimize(False)

    def __exit__(self, *error: object) -> None:
        torch._C._set_graph_executor_optimize(self._script.before.pop())
        with self._lock:
            self._within -= 1
            if self._within == 0:
                self._stance.close()
                self.holds = False


def _import_whole(name: str) -> None:
    """Imports a module of which torch imports parts when a dispatch mode is first used.

    The interrupt that a user sends in the meantime must not leave it half imported, for good: it
    reaches the main thread, and the import goes on in another one.
    """
    if name in _imported:
        return
    found: list[BaseException] = []

    def run() -> None:
        try:
            importlib.import_module(name)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, name=f"import {name}")
    thread.start()
    thread.join()
    if found:
        raise found[0]
    _imported.add(name)


_imported: set[str] = set()
eagerly = _Eager()
