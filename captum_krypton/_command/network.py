"""A network that the command explains: its input, its outcomes, their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .failure import CommandError
from .pictures import Preparation

__all__ = ["Network", "Outcomes", "Request", "outcomes_of"]


@dataclass(frozen=True)
class Request:
    """What the user says of the model.

    Attributes:
        model: `torchvision/NAME`, `timm/NAME`, `hf/NAME`, a file, or `module:function`.
        weights: a file, "random", an entry of torchvision's weights, or None for the library's.
        arguments: what is passed to the function that makes the model, by name.
        trusted: whether code of a file's author may run.
        size: side of the network's input, where it is not the model's own.
        mean: what is taken from each channel, in 0..1, where it is not the model's own.
        std: what each channel is divided by.
        channels: of the input: 3, or 1; None for the model's own.
    """

    model: str
    weights: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    trusted: bool = False
    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channels: int | None = None

    @property
    def file(self) -> Path | None:
        """The file of the weights, where they are from one."""
        named = self.weights in (None, "random", "DEFAULT")
        return None if named else Path(str(self.weights))

    @property
    def random(self) -> bool:
        """Whether the weights are to be random."""
        return self.weights == "random"

    @property
    def prepares(self) -> bool:
        """Whether the user asks for another preprocessing than the model's own."""
        return any(v is not None for v in (self.size, self.mean, self.std, self.channels))


@dataclass(frozen=True)
class Network:
    """A network, and what belongs to it.

    Attributes:
        module: from (1, channels, height, width) to scores of classes.
        preparation: from a picture to that input.
        names: of the classes, where they are known.
        source: where the weights are from, in words.
    """

    module: nn.Module
    preparation: Preparation
    names: tuple[str, ...] = ()
    source: str = ""


class Outcomes(nn.Module):
    """A network's outcomes, (N, classes): its scores, or what they are as probabilities.

    Args:
        module: the network.
        kind: "raw", "softmax" or "sigmoid".
    """

    def __init__(self, module: nn.Module, kind: str) -> None:
        super().__init__()
        self.module = module
        self.kind = kind

    def forward(self, images: Tensor) -> Tensor:
        """The outcomes of some images."""
        scores = _scores(self.module(images))
        scores = scores[:, None] if scores.dim() == 1 else scores
        if self.kind == "softmax":
            return scores.softmax(1)
        return scores.sigmoid() if self.kind == "sigmoid" else scores


def _scores(output: Any) -> Tensor:
    """The scores in what a network returns: a tensor, or an output with `logits`."""
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, Mapping) else None
    found = getattr(output, "logits", None) if found is None else found
    if found is None and isinstance(output, (tuple, list)) and len(output) == 1:
        (found,) = output
    if not isinstance(found, Tensor):
        raise CommandError(
            f"the model returns {type(output).__name__}; expected a tensor (images, classes), or "
            "an output that has one as `logits`"
        )
    return found


@torch.no_grad()
def outcomes_of(module: nn.Module, wanted: str, probe: Tensor) -> tuple[Outcomes, int]:
    """A network's outcomes, and how many there are.

    Args:
        module: the network.
        wanted: "probability", "raw" or "sigmoid". Probabilities are by softmax where the network
            has several outcomes and these are none already.
        probe: an input to see what it returns, (1, channels, height, width).

    Raises:
        CommandError: where it is no classifier, or does not take the input.
    """
    raw = Outcomes(module, "raw")
    try:
        scores = raw(probe)
    except CommandError:
        raise
    except Exception as error:
        raise CommandError(
            f"the model fails on an input of {tuple(probe.shape)}, {probe.dtype}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if scores.dim() != 2 or scores.shape[0] != 1:
        raise CommandError(
            f"the model returns {tuple(scores.shape)} for one image; expected (1, classes): the "
            "command line explains classifiers, Python any network"
        )
    classes = int(scores.shape[1])
    if wanted == "sigmoid":
        return Outcomes(module, "sigmoid"), classes
    if wanted == "raw" or classes == 1 or _are_probabilities(scores):
        return raw, classes
    return Outcomes(module, "softmax"), classes


def _are_probabilities(scores: Tensor) -> bool:
    return bool((scores >= 0).all()) and abs(float(scores.double().sum()) - 1) < 1e-3
