"""A picture in a file, as a network takes it, and as it is shown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Picture",
    "PictureError",
    "Preparation",
    "as_numbers",
    "grey",
    "kinds",
    "of_transform",
    "read_picture",
    "usual",
]

Picture = np.ndarray[Any, np.dtype[np.uint8]]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_CROP = 0.875  # of the side: a crop of 224 from 256
_SIDE = 224
# What Pillow has another program run (Ghostscript), or knows by its head alone.
_NOT_READ = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}


class PictureError(Exception):
    """A file that cannot be explained; the message says why."""


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes a network's input, and how that input is shown.

    Attributes:
        transform: from a Pillow image to the input, (channels, height, width).
        mode: what the Pillow image is to be: "RGB", or "L" for one channel.
        text: what the transform does; equal for transforms that do the same.
        mean: what was taken from each channel (one number: from all); None where unknown.
        std: what each channel was divided by after that.
    """

    transform: Callable[[Image.Image], Any]
    mode: str
    text: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def tensor(self, image: Image.Image) -> Tensor:
        """The input, (1, channels, height, width), float32.

        Raises:
            PictureError: where the transform returns something else.
        """
        made = self.transform(image)
        if not isinstance(made, Tensor) or made.dim() not in (3, 4) or not made.is_floating_point():
            what = f"{tuple(made.shape)}, {made.dtype}" if isinstance(made, Tensor) else type(made)
            raise PictureError(
                f"the model's transform returned {what}; expected a floating-point tensor "
                "(channels, height, width)"
            )
        batch = made if made.dim() == 4 else made[None]
        if batch.shape[0] != 1 or batch.shape[1] not in (1, 3):
            raise PictureError(
                f"the model's transform returned {tuple(made.shape)}; expected one image with "
                "1 or 3 channels"
            )
        return batch.float().contiguous()

    def shown(self, tensor: Tensor) -> Picture:
        """The input as a picture, (height, width, 3): what the network saw.

        Where mean and standard deviation are unknown, its values are spread over black to white.
        """
        values = tensor[0].detach().double().cpu().numpy()
        if self.mean is not None and self.std is not None:
            values = values * _per_channel(self.std) + _per_channel(self.mean)
        elif values.min() < 0 or values.max() > 1:
            values = (values - values.min()) / max(float(np.ptp(values)), 1e-12)
        pixels = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
        return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def _per_channel(numbers: tuple[float, ...]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(numbers, dtype=np.float64).reshape(-1, 1, 1)


def kinds() -> frozenset[str]:
    """The ends of the names of files that Pillow reads, lower case, with their dots."""
    known, read = Image.registered_extensions(), _formats()
    return frozenset(end for end, kind in known.items() if kind in read)


def _formats() -> list[str]:
    Image.init()
    return [kind for kind in Image.OPEN if kind not in _NOT_READ]


def read_picture(path: Path, mode: str) -> Image.Image:
    """The picture in a file, turned as its EXIF data says.

    What is transparent becomes white; 16 bits a pixel become 8, from all of their range.

    Args:
        path: the file.
        mode: "RGB" or "L".

    Raises:
        PictureError: where the file does not hold a picture, or not all of one.
    """
    try:
        with Image.open(path, formats=_formats()) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = str(error).replace(str(path), path.name) or type(error).__name__
        raise PictureError(f"not a readable picture: {reason}") from error
    return _eight_bits(image).convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """An image of 8 bits a channel, without transparency."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float64)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise PictureError(
                f"pixels from {values.min():g} to {values.max():g} in Pillow's mode {image.mode}: "
                "their range is unknown; save the picture with 8 or 16 bits a channel"
            )
        return Image.fromarray(np.rint(values / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image


def usual(
    size: int | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    channels: int = 3,
) -> Preparation:
    """ImageNet's usual preprocessing: a centre crop of the picture, resized, normalised.

    Args:
        size: side of the crop; 224 where left out. The shorter side is resized to 8/7 of it.
        mean: of each channel, in 0..1; ImageNet's where left out.
        std: of each channel.
        channels: 3, or 1 for shades of grey.
    """
    side = size or _SIDE
    one = channels == 1
    mean = mean or (grey(IMAGENET_MEAN) if one else IMAGENET_MEAN)
    std = std or (grey(IMAGENET_STD) if one else IMAGENET_STD)
    resized = round(side / _CROP)

    def transform(image: Image.Image) -> Tensor:
        pixels = np.array(_centre(_resize(image, resized), side))
        values = torch.from_numpy(pixels).float().div(255)
        values = values[None] if values.dim() == 2 else values.permute(2, 0, 1)
        return (values - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)

    text = f"shorter side {resized}, centre {side}, mean {mean}, std {std}"
    return Preparation(transform, "L" if one else "RGB", text, mean, std)


def grey(numbers: tuple[float, ...]) -> tuple[float, ...]:
    """The mean over channels of a number for each."""
    return (round(sum(numbers) / len(numbers), 3),)


def _resize(image: Image.Image, shorter: int) -> Image.Image:
    width, height = image.size
    if width <= height:
        size = shorter, max(1, int(shorter * height / width))
    else:
        size = max(1, int(shorter * width / height)), shorter
    return image.resize(size, Image.Resampling.BILINEAR)


def _centre(image: Image.Image, side: int) -> Image.Image:
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def of_transform(transform: Callable[[Image.Image], Any], mode: str = "RGB") -> Preparation:
    """A transform that a model brought; its mean and standard deviation, where it tells them."""
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(transform))
    for part in _parts(transform):
        mean, std = getattr(part, "mean", None), getattr(part, "std", None)
        if mean is not None and std is not None:
            return Preparation(transform, mode, text, as_numbers(mean), as_numbers(std))
    return Preparation(transform, mode, text)


def as_numbers(values: Any) -> tuple[float, ...]:
    """One number, or one for each channel."""
    return tuple(float(f"{value:.6g}") for value in np.asarray(values, dtype=np.float64).ravel())


def _parts(transform: Any) -> Iterator[Any]:
    yield transform
    inner = getattr(transform, "transforms", None)
    if isinstance(inner, (list, tuple)):
        for part in inner:
            yield from _parts(part)
