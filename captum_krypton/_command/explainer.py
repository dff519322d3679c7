"""One image after another to its map, by one network."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import Budget, KryptonOcclusion, OcclusionMap, fills
from .failure import CommandError
from .network import Network, Outcomes, outcomes_of
from .parser import Options, Pair
from .pictures import Picture, Preparation, read_picture
from .targets import label_of, read_labels, resolve

__all__ = ["Explainer", "draw"]

_SHARE = 14  # of the shorter side: 16 pixels of 224
_GREY = 256  # side of the picture that is tried first


@dataclass(frozen=True)
class Explainer:
    """A network with a question: what makes maps of images.

    Attributes:
        outcomes: the network, with the outcomes that are asked for.
        preparation: from a picture to its input.
        names: of the classes; empty where unknown.
        target: the class that is asked for; None for the predicted one.
        krypton: what makes the maps.
        options: what the user asks for.
    """

    outcomes: Outcomes
    preparation: Preparation
    names: tuple[str, ...]
    target: int | None
    krypton: KryptonOcclusion
    options: Options

    @classmethod
    def of(cls, network: Network, options: Options) -> Explainer:
        """Try a network on a grey picture, and answer the question's names.

        Raises:
            CommandError: where the network is no classifier, or the target none of its classes.
        """
        from PIL import Image

        mode = network.preparation.mode
        grey = Image.new("RGB", (_GREY, _GREY), (128, 128, 128)).convert(mode)
        device = _device(options.device)
        network.module.to(device)
        probe = _like(network.module, network.preparation.tensor(grey), device)
        outcomes, classes = outcomes_of(network.module, options.outcome, probe)
        names = _names(network, options.labels, classes)
        target = None if options.target is None else resolve(options.target, names, classes)
        budget = None if options.budget is None else Budget(seconds=options.budget)
        krypton = KryptonOcclusion(outcomes, quality=options.quality, budget=budget)
        return cls(outcomes, network.preparation, names, target, krypton, options)

    def input_of(self, path: Path) -> Tensor:
        """The network's input for the picture in a file, (1, channels, height, width).

        Raises:
            PictureError: where there is none in it.
        """
        return self.preparation.tensor(read_picture(path, self.preparation.mode))

    def picture_of(self, path: Path) -> Picture:
        """The picture in a file, as the network sees it."""
        return self.preparation.shown(self.input_of(path))

    def explain(self, path: Path, show_progress: bool) -> tuple[OcclusionMap, Picture]:
        """The map of the picture in a file, and the picture as the network saw it.

        Raises:
            PictureError: where the file does not hold a picture.
            CommandError: where the window leaves no map.
        """
        x = self.input_of(path)
        question = self._question(x)
        batch, device = self.options.batch, _device(self.options.device)
        inputs = _like(self.outcomes, x, device)
        heat = self.krypton.heatmap(
            inputs, perturbations_per_eval=batch, show_progress=show_progress, **question
        )
        return heat, self.preparation.shown(x)

    def plan(self, path: Path) -> str:
        """How the map of the picture in a file would be made."""
        x = self.input_of(path)
        inputs = _like(self.outcomes, x, _device(self.options.device))
        return str(
            self.krypton.explain(
                inputs, perturbations_per_eval=self.options.batch, **self._question(x)
            )
        )

    def label(self, heat: OcclusionMap) -> str:
        """The name of the class that a map is of."""
        return label_of(int(heat.target), self.names)

    def _question(self, x: Tensor) -> dict[str, Any]:
        """The windows, what covers them, and the target, as `KryptonOcclusion` takes them."""
        channels, height, width = x.shape[1:]
        window, stride = windows(self.options, (height, width))
        target = self._predicted(x) if self.target is None else self.target
        return {
            "sliding_window_shapes": (channels, *window),
            "strides": (channels, *stride),
            "baselines": _baseline(self.options.baseline, window),
            "target": target,
        }

    @torch.no_grad()
    def _predicted(self, x: Tensor) -> int:
        inputs = _like(self.outcomes, x, _device(self.options.device))
        return int(self.outcomes(inputs)[0].argmax())


def windows(options: Options, size: Pair) -> tuple[Pair, Pair]:
    """Window and stride for an input of some height and width.

    Raises:
        CommandError: where there are not two windows along each side.
    """
    side = max(1, min(size) // _SHARE)
    window = options.window or (side, side)
    stride = options.stride or (max(1, window[0] // 2), max(1, window[1] // 2))
    if any(length <= part for length, part in zip(size, window, strict=True)):
        raise CommandError(
            f"--window {window[0]}x{window[1]}: the model's input has {size[0]}x{size[1]} pixels; "
            "a map needs a smaller window"
        )
    if any(step > part for step, part in zip(stride, window, strict=True)):
        raise CommandError(
            f"--stride {stride[0]}x{stride[1]}: at most the window, {window[0]}x{window[1]}; else "
            "pixels between windows are never covered"
        )
    return window, stride


def draw(heat: OcclusionMap, picture: Picture, label: str, unit: str) -> bytes:
    """The image, its map and an overlay, as a PNG file.

    Args:
        heat: the map.
        picture: what the network saw.
        label: the class.
        unit: of the outcome; may be empty.
    """
    figure = heat.plot(picture / 255.0, label=label, unit=unit)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def _baseline(text: str, window: Pair) -> Any:
    made = {"mean": fills.mean, "mean_patch": fills.mean_patch, "noise": fills.noise}
    if text in made:
        return made[text]()
    name, _, sigma = text.partition(":")
    if name == "blur":
        return fills.blur(float(sigma) if sigma else max(window) / 2)
    return float(text)


def _names(network: Network, labels: str | None, classes: int) -> tuple[str, ...]:
    """The classes' names; those that come with a model count where they are as many."""
    if labels is None:
        return network.names if len(network.names) == classes else ()
    if labels == "imagenet":
        from .libraries import imagenet_names

        names = imagenet_names()
    else:
        names = read_labels(labels)
    if len(names) != classes:
        raise CommandError(
            f"--labels {labels}: {len(names)} names, and the model has {classes} classes"
        )
    return names


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise CommandError(f"--device {name}: expected cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CommandError(f"--device {name}: PyTorch finds no CUDA device here")
    return device


def _like(module: torch.nn.Module, x: Tensor, device: torch.device) -> Tensor:
    """An input on a device, in the type of a network's weights."""
    floats: Sequence[Tensor] = [p for p in module.parameters() if p.is_floating_point()]
    return x.to(device, floats[0].dtype if floats else x.dtype)
