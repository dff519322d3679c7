"""Compiled code runs eagerly while a forward function is looked at: its operators are seen."""

from __future__ import annotations

import sys
import threading
from contextlib import ExitStack

import torch

__all__ = ["eagerly"]


class _Eager:
    """A context within which, in any thread, no compiled code runs.

    The stance is the process's. Threads that each set and restored it would leave it as whoever
    came last had found it.
    """

    def __init__(self) -> None:
        self._lock, self._within = threading.Lock(), 0
        self._stance = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._within == 0 and "torch._dynamo" in sys.modules:
                self._stance.enter_context(torch.compiler.set_stance("force_eager"))
            self._within += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._within -= 1
            if self._within == 0:
                self._stance.close()


eagerly = _Eager()
