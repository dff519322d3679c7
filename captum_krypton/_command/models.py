"""The network that `--model` names."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import weights
from .failure import CommandError
from .libraries import from_timm, from_torchvision, from_transformers
from .network import Network, Request
from .pictures import Preparation, of_transform, usual

__all__ = ["load_network"]

_LIBRARIES = {"torchvision": from_torchvision, "timm": from_timm, "hf": from_transformers}
_FILES = (".pt", ".ts", ".pth", ".pt2")
_FORMS = (
    "torchvision/NAME, timm/NAME, hf/NAME_OR_FOLDER, a file (.pt, .ts or .pth of TorchScript, .pt2 "
    "of torch.export), or module:function"
)


def load_network(request: Request) -> Network:
    """The network that the user asks for, in evaluation mode, on the CPU.

    Random weights are those of a seed: the same every time.

    Raises:
        CommandError: where it cannot be had; it says what to do.
    """
    torch.manual_seed(0)
    library, _, name = request.model.partition("/")
    if library in _LIBRARIES and name:
        try:
            network = _LIBRARIES[library](name, request)
        except ImportError as error:
            raise CommandError(
                f"--model {request.model}: {error}; pip install {library} installs it"
            ) from error
    elif Path(request.model).suffix in _FILES:
        network = _from_file(Path(request.model), request)
    elif ":" in request.model:
        network = _from_function(request)
    else:
        raise CommandError(f"--model {request.model}: expected {_FORMS}")
    if not isinstance(network.module, torch.fx.GraphModule):  # an exported one has no modes
        network.module.eval()
    return network


def _from_function(request: Request) -> Network:
    """`module:function`, which returns a network, or a network and its transform."""
    module_name, _, function_name = request.model.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function: Any = importlib.import_module(module_name)
        for part in function_name.split("."):
            function = getattr(function, part)
    except (ImportError, AttributeError) as error:
        raise CommandError(
            f"--model {request.model}: {error}; expected module:function, of a module that Python "
            f"imports from {os.getcwd()} or finds installed"
        ) from error
    if request.random:
        raise CommandError(
            f"--weights random: {request.model} makes its weights itself; leave --weights out"
        )
    found = function(**request.arguments)
    module, transform = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if not isinstance(module, nn.Module) or not (transform is None or callable(transform)):
        raise CommandError(
            f"--model {request.model}: it returned {_types(found)}; expected a torch.nn.Module, or "
            "one and a transform of a Pillow image to a tensor (channels, height, width)"
        )
    source = f"as {request.model} returns them"
    if request.file is not None:
        weights.fill(module, weights.read_tensors(request.file, request.trusted), request.file)
        source = request.file.name
    return Network(module, _own_or_usual(transform, request), (), source)


def _own_or_usual(transform: Any, request: Request) -> Preparation:
    if transform is None:
        return usual(request.size, request.mean, request.std, request.channels or 3)
    if request.size is not None or request.mean is not None or request.std is not None:
        raise CommandError(
            f"--size, --mean and --std: {request.model} brings a transform of its own; leave them "
            "out, or let it return the network alone"
        )
    return of_transform(transform, "L" if request.channels == 1 else "RGB")


def _types(found: Any) -> str:
    inside = [type(part).__name__ for part in found] if isinstance(found, tuple) else []
    return f"a tuple of {', '.join(inside)}" if inside else type(found).__name__


def _from_file(path: Path, request: Request) -> Network:
    """A file that holds a program with its weights: its author's code, which has to be trusted."""
    if not path.is_file():
        raise CommandError(f"--model {path}: no such file")
    if request.weights is not None or request.arguments:
        raise CommandError(f"--weights and --model-arg: {path} brings its own weights")
    kind = _kind(path)
    if not request.trusted:
        raise CommandError(
            f"--model {path}: {kind}. Loading it can run code of whoever made it: pass "
            "--trust-pickle if you trust them; or give the network by its name, and --weights as "
            "safetensors, which runs nothing"
        )
    try:
        module = _load(path, kind)
    except Exception as error:  # a damaged file raises many types
        reason = f"{type(error).__name__}: {(str(error) or '?').splitlines()[0][:300]}"
        raise CommandError(f"--model {path}: {kind}; it does not load: {reason}") from error
    if not isinstance(module, nn.Module):
        raise CommandError(
            f"--model {path}: it holds {type(module).__name__}, not a network. A file of weights "
            "goes to --weights, with the network's name as --model"
        )
    return Network(
        module,
        usual(request.size, request.mean, request.std, request.channels or 3),
        (),
        path.name,
    )


_SCRIPT = "a TorchScript archive"
_EXPORT = "a torch.export archive"
_PICKLE = "a pickle"


def _kind(path: Path) -> str:
    """What a file holds, by its archive's entries; nothing in it is read."""
    if path.suffix == ".pt2":
        return _EXPORT
    if not zipfile.is_zipfile(path):
        return _PICKLE
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return _SCRIPT if any(name.endswith("/constants.pkl") for name in names) else _PICKLE


def _load(path: Path, kind: str) -> Any:
    if kind == _EXPORT:
        return torch.export.load(path).module()
    if kind == _PICKLE:
        return torch.load(path, map_location="cpu", weights_only=False)
    with warnings.catch_warnings():
        # Newer releases of PyTorch warn that TorchScript is no longer developed.
        warnings.filterwarnings("ignore", message=".*torch.jit.load", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.load", category=DeprecationWarning)
        return torch.jit.load(path, map_location="cpu")
