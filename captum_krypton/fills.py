"""What covers a window: fills that are made from the input, for the argument `baselines`.

    KryptonOcclusion(model).attribute(x, baselines=fills.blur(sigma=5))

Any function from an input (N, ...) to a baseline, a number or a tensor of shape (N, ...) or
(1, ...), is a fill. A `Fill` may have several samples: the outcome is then the mean over them, as
in prediction difference analysis (Zintgraf et al. 2017), and `OcclusionMap.spread` their standard
deviation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._call import ArgumentError, PatchMean, require

__all__ = ["Fill", "average", "blur", "mean", "mean_patch", "noise"]


@dataclass(frozen=True)
class Fill:
    """Baselines made from an input.

    Attributes:
        make: from an input (N, ...) and the number of a sample to a baseline.
        samples: how many baselines there are to average over.
    """

    make: Callable[[Tensor, int], Tensor | float]
    samples: int = 1

    def __call__(self, inputs: Tensor) -> Tensor | float:
        """The first baseline for an input."""
        return self.make(inputs, 0)


def blur(sigma: float) -> Fill:
    """The input, blurred by a Gaussian along all dimensions but the channels.

    Args:
        sigma: the Gaussian's standard deviation, in cells.

    Raises:
        ValueError: (an `ArgumentError`) where `sigma` is not positive.
        ImportError: (where it is used) without scikit-image (the extra `approximate`).
    """
    if not sigma > 0:
        raise ArgumentError(f"sigma must be positive, not {sigma}")

    def make(inputs: Tensor, sample: int) -> Tensor:
        filters = require("skimage.filters", extra="approximate", used_by="fills.blur")
        images = inputs.detach().cpu().double().numpy()
        axis = 0 if images.ndim > 2 else None
        made = [
            filters.gaussian(image, sigma, mode="nearest", preserve_range=True, channel_axis=axis)
            for image in images
        ]
        return torch.stack([torch.from_numpy(row) for row in made]).to(inputs)

    return Fill(make)


def mean() -> Fill:
    """The mean of each image, channel by channel."""

    def make(inputs: Tensor, sample: int) -> Tensor:
        return _over_cells(inputs, torch.mean).expand(inputs.shape)

    return Fill(make)


def mean_patch() -> PatchMean:
    """The mean of what each window covers, channel by channel."""
    return PatchMean()


def noise(samples: int = 8, seed: int = 0) -> Fill:
    """Normal noise with the mean and the standard deviation of each image, channel by channel.

    The noise is that of the seed, whatever the batch and the device.

    Args:
        samples: how many draws to average over.
        seed: seeds the draws.

    Raises:
        ValueError: (an `ArgumentError`) where `samples` is not positive.
    """
    if samples < 1:
        raise ArgumentError(f"samples must be at least 1, not {samples}")

    def make(inputs: Tensor, sample: int) -> Tensor:
        draws = torch.Generator().manual_seed(seed)
        for _ in range(sample + 1):
            drawn = torch.randn(inputs.shape[1:], generator=draws, dtype=torch.float64)
        centre, size = _over_cells(inputs, torch.mean), _over_cells(inputs, _deviation)
        return centre + size * drawn.to(inputs)

    return Fill(make, samples)


def average(images: Tensor) -> Fill:
    """Other images, one after another.

    Args:
        images: (samples, ...), each of the input's shape without its batch dimension.

    Raises:
        ValueError: (an `ArgumentError`) where there are no images, or (where they are used) of
            another shape than the input.
    """
    if images.dim() == 0 or len(images) == 0:
        raise ArgumentError(f"images must be (samples, ...), not {tuple(images.shape)}")

    def make(inputs: Tensor, sample: int) -> Tensor:
        if images.shape[1:] != inputs.shape[1:]:
            raise ArgumentError(
                f"images to average over have shape {tuple(images.shape[1:])}, expected the "
                f"input's, {tuple(inputs.shape[1:])}"
            )
        return images[sample : sample + 1].to(inputs)

    return Fill(make, len(images))


def every_baseline(inputs: Any, baselines: Any) -> list[Any]:
    """The baselines of each sample, as Captum takes them.

    Args:
        inputs: the input, or a tuple of inputs.
        baselines: for each a number, a tensor or a fill.

    Raises:
        ArgumentError: where fills have different numbers of samples.
    """
    several = isinstance(baselines, tuple)
    given = baselines if several else (baselines,)
    if not any(callable(one) for one in given):
        return [baselines]
    tensors = inputs if isinstance(inputs, tuple) else (inputs,)
    if not several and len(tensors) > 1:
        given = given * len(tensors)
    fills = [one if isinstance(one, Fill) or not callable(one) else _fill(one) for one in given]
    counts = {fill.samples for fill in fills if isinstance(fill, Fill)} - {1}
    if len(counts) > 1:
        raise ArgumentError(
            f"baselines have fills with {sorted(counts)} samples; expected one number of samples"
        )
    made = []
    for sample in range(max(counts, default=1)):
        row = tuple(
            fill.make(tensor, min(sample, fill.samples - 1)) if isinstance(fill, Fill) else fill
            for fill, tensor in zip(fills, tensors, strict=False)
        )
        made.append(row if isinstance(inputs, tuple) else row[0])
    return made


def only_baseline(inputs: Any, baselines: Any) -> Any:
    """The baselines as Captum takes them, where fills have one sample.

    Raises:
        ArgumentError: where they have several.
    """
    made = every_baseline(inputs, baselines)
    if len(made) > 1:
        raise ArgumentError(
            f"baselines must have one sample here, not {len(made)}: several are averaged by "
            "`attribute` and `heatmap` only"
        )
    return made[0]


def _fill(function: Callable[[Tensor], Tensor | float]) -> Fill:
    return Fill(lambda inputs, sample: function(inputs))


def _over_cells(inputs: Tensor, statistic: Callable[..., Tensor]) -> Tensor:
    """A statistic of every image and channel, of as many dimensions as the input."""
    dims = tuple(range(2, inputs.dim())) or (1,)
    return statistic(inputs, dim=dims, keepdim=True)


def _deviation(inputs: Tensor, dim: tuple[int, ...], keepdim: bool) -> Tensor:
    return inputs.std(dim=dim, keepdim=keepdim, correction=0)
