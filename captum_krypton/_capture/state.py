"""What a capture depends on: the modules that a callable holds, their modes, hooks and contents."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from .fingerprint import fingerprints
from .recorder import NotCapturable

__all__ = ["current_state", "reachable_modules", "refuse_modules"]


def current_state(forward: Callable[..., Any], leaves: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """A value that changes when a parameter, buffer, mode or hook of the model changes."""
    state: list[Any] = [torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")]
    for module in reachable_modules(forward):
        for part in module.modules():
            state.append((id(part), _training(part), *_hooks(part)))
        tensors: list[Tensor] = [*module.parameters(), *module.buffers()]
        state.extend((id(t), t.data_ptr(), t.dtype, t.device) for t in tensors)
    state.extend(fingerprints(leaves))
    return tuple(state)


def _refuse_lists(things: tuple[Any, ...]) -> None:
    """Refuses TorchScript that makes lists of tensors: no operator reads their memory there."""
    for thing in things:
        parts = thing.modules() if isinstance(thing, nn.Module) else (thing,)
        for part in parts:
            graph = getattr(part, "inlined_graph", None) if _is_script(part) else None
            if graph is not None and graph.findAllNodes("prim::tolist"):
                raise NotCapturable("the forward takes values out of a tensor (prim::tolist)")


def _is_script(thing: Any) -> bool:
    return isinstance(thing, (torch.jit.ScriptModule, torch.jit.ScriptFunction))


def reachable_modules(forward: Callable[..., Any]) -> tuple[nn.Module, ...]:
    """The modules that a callable holds: itself, its owner, its closure, its partial's parts."""
    return tuple(thing for thing in _reachable(forward) if isinstance(thing, nn.Module))


def _reachable(forward: Callable[..., Any]) -> tuple[Any, ...]:
    """The modules and scripted functions that a callable holds."""
    found: dict[int, Any] = {}
    seen: set[int] = set()

    def visit(thing: Any, depth: int) -> None:
        if id(thing) in seen or depth > 4:
            return
        seen.add(id(thing))
        if isinstance(thing, nn.Module) or _is_script(thing):
            found[id(thing)] = thing
        elif isinstance(thing, functools.partial):
            for part in (thing.func, *thing.args, *thing.keywords.values()):
                visit(part, depth + 1)
        elif isinstance(thing, (tuple, list)):
            for part in thing:
                visit(part, depth + 1)
        elif isinstance(thing, dict):
            for part in thing.values():
                visit(part, depth + 1)
        elif _has_code(thing):
            for cell in thing.__closure__ or ():
                try:
                    visit(cell.cell_contents, depth + 1)
                except ValueError:  # a cell that is still empty
                    continue
            for name in thing.__code__.co_names:
                part = thing.__globals__.get(name)
                if isinstance(part, nn.Module) or _has_code(part) or _is_script(part):
                    visit(part, depth + 1)
        elif hasattr(thing, "__self__"):
            visit(thing.__self__, depth + 1)
            visit(getattr(thing, "__func__", None), depth + 1)
        elif callable(thing) and hasattr(thing, "__dict__"):
            for part in vars(thing).values():
                visit(part, depth + 1)

    visit(forward, 0)
    visit(getattr(forward, "__self__", None), 0)
    visit(getattr(forward, "__wrapped__", None), 0)
    return tuple(found.values())


def _has_code(thing: Any) -> bool:
    """Whether something is a function of Python; the class of functions has `__code__`, too."""
    return isinstance(getattr(thing, "__code__", None), CodeType)


def _hooks(module: nn.Module) -> tuple[int, ...]:
    return (*module._forward_hooks.keys(), -1, *module._forward_pre_hooks.keys())


def _training(module: nn.Module) -> bool:
    """Whether a module is in training mode; a frozen TorchScript module has no mode."""
    return bool(getattr(module, "training", False))


def refuse_modules(forward: Callable[..., Any]) -> None:
    """Raises NotCapturable where a module that the forward function holds makes that impossible."""
    things = _reachable(forward)
    _refuse_training(things)
    _refuse_lists(things)


def _refuse_training(things: tuple[Any, ...]) -> None:
    """Raises NotCapturable where a module is in a mode that takes from or writes to its state."""
    for thing in things:
        for name, part in thing.named_modules() if isinstance(thing, nn.Module) else ():
            norm = isinstance(part, nn.modules.batchnorm._NormBase)
            if not _training(part) or not (norm or isinstance(part, nn.modules.dropout._DropoutNd)):
                continue
            if norm and not isinstance(part, nn.modules.batchnorm._BatchNorm):
                if not part.track_running_stats:
                    continue  # instance norm works row by row in either mode
            if getattr(part, "p", None) == 0:
                continue
            raise NotCapturable(f"module {name or type(part).__name__!r} is in training mode")
