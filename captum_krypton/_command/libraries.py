"""Networks of torchvision, timm and transformers, with their own preprocessing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from torch import nn

from . import weights
from .failure import CommandError
from .network import Network, Request
from .pictures import Preparation, as_numbers, grey, of_transform, usual

__all__ = ["from_timm", "from_torchvision", "from_transformers", "imagenet_names"]


def from_torchvision(name: str, request: Request) -> Network:
    """`torchvision/NAME`: its weights bring their transforms; else ImageNet's usual ones."""
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise _unknown(f"torchvision/{name}", name, known)
    entries = models.get_model_weights(name)
    entry: Any = None
    if request.weights is None or request.weights in entries.__members__:
        entry = entries[request.weights or "DEFAULT"]
    module = _made(
        request, lambda: models.get_model(name, weights=entry, **request.arguments), entry
    )
    if entry is None:
        source = _filled(module, request)
        preparation = usual(request.size, request.mean, request.std, request.channels or 3)
        categories = entries["DEFAULT"].meta.get("categories", ())
        return Network(module, preparation, () if request.random else tuple(categories), source)
    changes: dict[str, Any] = {}
    if request.size is not None:
        changes["crop_size"] = request.size
        own = entry.transforms()
        changes["resize_size"] = round(request.size * own.resize_size[0] / own.crop_size[0])
    if request.mean is not None:
        changes["mean"] = request.mean
    if request.std is not None:
        changes["std"] = request.std
    _three_channels(request)
    preparation = of_transform(entry.transforms(**changes))
    return Network(module, preparation, tuple(entry.meta["categories"]), f"torchvision's {entry}")


def from_timm(name: str, request: Request) -> Network:
    """`timm/NAME`: with the transforms of its configuration."""
    import timm
    from timm.data import create_transform, resolve_model_data_config

    pretrained = request.weights in (None, "DEFAULT")
    if ":" not in name and not timm.is_model(name):
        raise _unknown(f"timm/{name}", name, timm.list_models())
    arguments = dict(request.arguments)
    if request.channels is not None:
        arguments.setdefault("in_chans", request.channels)
    module = _made(
        request, lambda: timm.create_model(name, pretrained=pretrained, **arguments), pretrained
    )
    source = "timm's pretrained ones" if pretrained else _filled(module, request)
    config = resolve_model_data_config(module)
    _, *sides = config["input_size"]
    channels = arguments.get("in_chans", config["input_size"][0])
    config["input_size"] = (channels, *([request.size] * 2 if request.size else sides))
    for name, asked in (("mean", request.mean), ("std", request.std)):
        config[name] = asked or (grey(config[name]) if channels == 1 else config[name])
    preparation = of_transform(create_transform(**config), "L" if channels == 1 else "RGB")
    names = () if request.random else imagenet_names(module)
    return Network(module, preparation, names, source)


def imagenet_names(module: nn.Module | None = None) -> tuple[str, ...]:
    """ImageNet's names, as timm has them: of a timm model's subset, or of the 1000 classes."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = "imagenet-1k" if module is None else infer_imagenet_subset(module)
    if not subset:
        return ()
    info = ImageNetInfo(subset)
    return tuple(info.index_to_description(index) for index in range(info.num_classes()))


def from_transformers(name: str, request: Request) -> Network:
    """`hf/NAME_OR_FOLDER`: with its image processor."""
    try:
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
    except ImportError as error:
        raise CommandError(
            f"--model hf/{name} needs transformers: pip install transformers"
        ) from error

    pretrained = request.weights in (None, "DEFAULT")
    # Nothing that comes with a model runs, and its weights are not unpickled.
    safe = {"trust_remote_code": False}

    def make() -> Any:
        if pretrained:
            only = None if request.trusted else True
            return AutoModelForImageClassification.from_pretrained(
                name, use_safetensors=only, **safe, **request.arguments
            )
        config = AutoConfig.from_pretrained(name, **safe, **request.arguments)
        return AutoModelForImageClassification.from_config(config)

    module = _made(request, make, True)
    processor = _made(request, lambda: AutoImageProcessor.from_pretrained(name, **safe), True)
    source = f"those of {name}" if pretrained else _filled(module, request)
    _three_channels(request)
    labels = getattr(module.config, "id2label", None) or {}
    names = tuple(str(labels[key]) for key in sorted(labels, key=int))
    return Network(module, _processing(processor, request), names, source)


def _processing(processor: Any, request: Request) -> Preparation:
    """An image processor with what the user asks for."""
    changes: dict[str, Any] = {}
    if request.size is not None:
        size, side = dict(processor.size or {}), request.size
        short = {"shortest_edge": side} if "shortest_edge" in size else None
        changes["size"] = short or {"height": side, "width": side}
        if getattr(processor, "crop_size", None):
            changes["crop_size"] = {"height": side, "width": side}
    if request.mean is not None:
        changes.update(image_mean=list(request.mean), do_normalize=True)
    if request.std is not None:
        changes.update(image_std=list(request.std), do_normalize=True)

    def transform(image: Any) -> Any:
        return processor(images=image, return_tensors="pt", **changes)["pixel_values"][0]

    described = {**processor.to_dict(), **changes}
    text = json.dumps(described, sort_keys=True, default=str)
    if not described.get("do_normalize", True):
        return Preparation(transform, "RGB", text, (0.0,), (1.0,))
    mean, std = described.get("image_mean"), described.get("image_std")
    if mean is None or std is None:
        return Preparation(transform, "RGB", text)
    return Preparation(transform, "RGB", text, as_numbers(mean), as_numbers(std))


def _made(request: Request, make: Callable[[], Any], fetches: Any) -> Any:
    """What a library makes; where it cannot fetch it, what to do."""
    try:
        return make()
    except Exception as error:  # hubs, their clients and networks raise many types
        reason = f"{type(error).__name__}: {(str(error) or '?').splitlines()[0][:300].rstrip('.')}"
        if not fetches or isinstance(error, TypeError):
            raise CommandError(f"--model {request.model}: cannot be made: {reason}") from error
        raise CommandError(
            f"--model {request.model}: its pretrained weights could not be had: {reason}. Without "
            "a network, or where the library has none, give a file of them, --weights "
            "model.safetensors; --weights random tries the command without any"
        ) from error


def _filled(module: nn.Module, request: Request) -> str:
    """Fill a network from the user's file; says where its weights are from."""
    if request.random:
        return "random"
    file = request.file
    if file is None:
        raise CommandError(f"--model {request.model}: it has no weights of its own")
    weights.fill(module, weights.read_tensors(file, request.trusted), file)
    return file.name


def _three_channels(request: Request) -> None:
    if request.channels not in (None, 3):
        raise CommandError(f"--channels {request.channels}: {request.model} takes 3 channels")


def _unknown(asked: str, name: str, known: Sequence[str]) -> CommandError:
    close = get_close_matches(name, known, 5)
    hint = f"; close to it: {', '.join(close)}" if close else ""
    return CommandError(f"--model {asked}: there is no such network{hint}")
