"""A network's weights, from a file of tensors; and what identifies them."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .failure import CommandError

__all__ = ["digest", "fill", "read_tensors"]

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_NAMED = 5  # keys that a message shows
_HARMLESS = "num_batches_tracked"  # a count that evaluation does not read


def read_tensors(path: Path, trusted: bool) -> dict[str, Tensor]:
    """The tensors of a weights file by their names, unwrapped.

    Args:
        path: a `.safetensors` file, or one that torch.save wrote.
        trusted: whether the file may be unpickled without limits, which runs its author's code.

    Raises:
        CommandError: where there are none, or other objects with them and `trusted` is false.
    """
    if not path.is_file():
        raise CommandError(f"--weights {path}: no such file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=not trusted)
    except pickle.UnpicklingError as error:
        raise CommandError(
            f"--weights {path}: it is no plain file of tensors ({_first_line(error)}). Unpickling "
            "anything else can run code of the file's author. Save the state_dict alone, as "
            "safetensors, or pass --trust-pickle if you trust whoever made it"
        ) from error
    except Exception as error:  # a damaged file raises many types
        raise CommandError(f"--weights {path}: not readable: {_first_line(error)}") from error
    return _unwrapped(found, path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return _unwrapped(load_file(path), path)
    except SafetensorError as error:
        raise CommandError(f"--weights {path}: not readable: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _unwrapped(found: Any, path: Path) -> dict[str, Tensor]:
    """The mapping of names to tensors in what was read."""
    for _ in range(2):
        for wrapper in _WRAPPERS:
            inner = found.get(wrapper) if isinstance(found, Mapping) else None
            if isinstance(inner, (Mapping, nn.Module)):
                found = inner
    if isinstance(found, nn.Module):
        found = found.state_dict()
    if not isinstance(found, Mapping) or not found:
        raise CommandError(f"--weights {path}: holds {type(found).__name__}, not named tensors")
    tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if len(tensors) < len(found):
        others = [str(name) for name in found if name not in tensors]
        raise CommandError(
            f"--weights {path}: {_some(others)} are no tensors; expected a state_dict, or one "
            f"under {', '.join(_WRAPPERS)}"
        )
    return tensors


def fill(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Give a network the weights of a file.

    Prefixes that wrappers leave, such as `module.`, are taken off where the network has none.

    Raises:
        CommandError: where names or shapes differ; it names some.
    """
    wanted = set(module.state_dict())
    tensors = _without_prefixes(tensors, wanted)
    missing = [n for n in sorted(wanted - set(tensors)) if not n.endswith(_HARMLESS)]
    unexpected = sorted(set(tensors) - wanted)
    if missing or unexpected:
        parts = [f"{len(missing)} missing: {_some(missing)}"] if missing else []
        parts += [f"{len(unexpected)} unexpected: {_some(unexpected)}"] if unexpected else []
        raise CommandError(
            f"--weights {path}: not the weights of this model; of its keys {'; '.join(parts)}"
        )
    own = module.state_dict()
    other = [
        f"{name} is {tuple(value.shape)}, the model's {tuple(own[name].shape)}"
        for name, value in tensors.items()
        if value.shape != own[name].shape
    ]
    if other:
        raise CommandError(
            f"--weights {path}: other shapes than this model's: {_some(other)}. For another number "
            "of classes pass --model-arg num_classes=N"
        )
    module.load_state_dict(tensors, strict=False)


def _without_prefixes(tensors: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    for _ in _PREFIXES:
        for prefix in _PREFIXES:
            wrapped = all(name.startswith(prefix) for name in tensors)
            if wrapped and not any(name.startswith(prefix) for name in wanted):
                tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def digest(module: nn.Module) -> str:
    """SHA-256 of a network's weights: names, types, shapes and bytes."""
    total = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if not isinstance(value, Tensor):
            continue
        total.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        dense = value.detach().cpu().contiguous()
        total.update(dense.reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{total.hexdigest()}"
