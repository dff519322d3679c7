"""Notes what a forward function does, to see whether it still does what it did when captured."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._kernels import convolve
from .doors import Doors
from .eager import eagerly
from .fingerprint import fingerprint
from .graph import walk
from .mode import Mode, collecting_later, traits

__all__ = ["watched"]

_PLAIN = (bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, type(None))


class Watch(Mode):
    """Notes which operators a call runs, and on what, holding none of its tensors.

    Two calls with the same notes compute the same function: every tensor is noted by where it comes
    from, an earlier operator's output, an argument of the call, a leaf of the capture, or, where
    it is none of these, by its content.

    Args:
        arguments: the call's tensors.
        leaves: the leaves of the capture, whose contents are compared elsewhere.
    """

    def __init__(self, arguments: tuple[Tensor, ...], leaves: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.notes: list[Any] = []
        # With a reference, since ids are used again.
        self._names: dict[int, tuple[weakref.ref[Tensor], Any]] = {}
        self._made = 0
        for number, leaf in enumerate(leaves):
            self._name(leaf, ("leaf", number))
        for number, argument in enumerate(arguments):
            self._name(argument, ("argument", number))

    def left(self, door: str, tensor: Tensor | None) -> None:
        """Notes a value that leaves torch's operators."""
        self.notes.append((door, None if tensor is None else self._known(tensor)))

    def result(self, result: Any) -> None:
        """Notes what the call returned."""
        self.notes.append([self._note(part) for part in walk(result)])

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func.namespace == "profiler":
            return func(*args, **kwargs)
        if traits(func).composite:
            with self:
                return func.decompose(*args, **kwargs)
        noted = [func, *map(self._note, walk((args, kwargs) if kwargs else args))]
        result = _run(func, args, kwargs)
        for part in (result,) if isinstance(result, Tensor) else walk(result):
            if isinstance(part, Tensor) and not any(part is a for a in walk(args)):
                self._name(part, self._made)
            self._made += 1
        self.notes.append(tuple(noted))
        return result

    def _name(self, tensor: Tensor, name: Any) -> None:
        self._names[id(tensor)] = weakref.ref(tensor), name

    def _known(self, tensor: Tensor) -> Any:
        reference, name = self._names.get(id(tensor), (None, None))
        return name if reference is not None and reference() is tensor else None

    def _note(self, argument: Any) -> Any:
        if isinstance(argument, Tensor):
            name = self._known(argument)
            content = fingerprint(argument) if name is None else name
            return argument.shape, argument.dtype, content
        if type(argument) is int or argument is None:
            return argument
        if isinstance(argument, _PLAIN):
            return repr(argument)  # tells 0 from False, 0.0 from -0.0, and NaN is NaN
        if isinstance(argument, (torch.memory_format, torch.Generator)):
            return str(argument)
        return opaque(argument)


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs an operator; a convolution of one volume as the base's are run, which is faster."""
    if func is torch.ops.aten.convolution.default and not kwargs and not args[6]:
        tensor, weight, bias, stride, padding, dilation, _, _, groups = args
        return convolve(tensor, weight, bias, stride, padding, dilation, groups)
    return func(*args, **kwargs)


def opaque(thing: Any) -> Any:
    """What tells an object that torch keeps to itself, such as packed weights, from others."""
    state = getattr(thing, "__getstate__", None)
    if not isinstance(thing, torch.ScriptObject) or state is None:
        return type(thing).__name__, id(thing)
    try:
        parts = list(walk(state()))
    except RuntimeError:  # it cannot be pickled
        return type(thing).__name__, hash(thing)
    return tuple(fingerprint(p) if isinstance(p, Tensor) else repr(p) for p in parts)


def watched(
    forward: Callable[..., Any], arguments: tuple[Any, ...], leaves: tuple[Tensor, ...]
) -> tuple[Any, list[Any]]:
    """Calls `forward(*arguments)`.

    Args:
        forward: the forward function.
        arguments: all its positional arguments.
        leaves: the parameters, buffers and constants that its capture read.

    Returns:
        What it returned, and notes of what it did; they are equal where it did the same.
    """
    watch = Watch(tuple(a for a in arguments if isinstance(a, Tensor)), leaves)
    doors = Doors(watch.left, profile=False)
    with eagerly, torch.no_grad(), collecting_later(), doors, watch:
        result = forward(*arguments)
    watch.result(result)
    return result, watch.notes
