"""What sees the operators of a forward function: the base of the package's dispatch modes."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .eager import COMPILER, eagerly

__all__ = ["Mode", "Traits", "collecting_later", "traits"]


class Mode(TorchDispatchMode):
    """A dispatch mode that sees every operator, to be entered within `eagerly`.

    PyTorch puts a guard against its compiler round a mode. That imports the compiler, which takes
    seconds, and costs microseconds for every operator. Within `eagerly` nothing is compiled, so the
    guard is put there only where the compiler came later: where the forward function brought it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs an operator, and notes what is to be noted of it."""
        raise NotImplementedError

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        see = self.see if eagerly.holds or COMPILER not in sys.modules else _guarded(self)
        with torch._C.DisableTorchFunction():  # what is done here is not the forward's
            return see(func, args, {} if kwargs is None else kwargs)


def _guarded(mode: Mode) -> Any:
    return torch.compiler.disable(mode.see)


@dataclass(frozen=True)
class Traits:
    """What the schema of an operator says.

    Attributes:
        composite: whether it is defined by other operators, which are the ones to see.
        written: position and name of the arguments that it writes into.
        is_batch_norm: whether it is a batch norm, which writes into its statistics in training.
        draws: whether it may draw random numbers.
        turns: whether it makes a tensor a view of itself in place.
        reads_data: whether its result is a number that the data decides.
        shape_by_data: whether the shape of its result depends on data.
    """

    composite: bool
    written: tuple[tuple[int, str], ...]
    is_batch_norm: bool
    draws: bool
    turns: bool
    reads_data: bool
    shape_by_data: bool


@functools.cache
def traits(func: Any) -> Traits:
    """The traits of an operator, looked up once."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    written = tuple(
        (position, argument.name)
        for position, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    return Traits(
        bool(has(func.name(), "CompositeImplicitAutograd")),
        written,
        "batch_norm" in func._schema.name,
        torch.Tag.nondeterministic_seeded in func.tags,
        torch.Tag.inplace_view in func.tags,
        torch.Tag.data_dependent_output in func.tags,
        torch.Tag.dynamic_output_shape in func.tags,
    )


@contextmanager
def collecting_later() -> Iterator[None]:
    """Without Python's garbage collection, which goes through all that torch has imported.

    What is noted of every operator makes it start again and again, for longer than the notes take.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
