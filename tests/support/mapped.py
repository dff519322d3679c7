"""Networks and images for the mapper's tests, and the maps that a plain loop makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from small_networks import small_network
from torch import Tensor, nn

WINDOW, STRIDE = 8, 4
WINDOWS = {"sliding_window_shapes": (3, WINDOW, WINDOW), "strides": (3, STRIDE, STRIDE)}


def load_model() -> nn.Module:
    """A small network in evaluation mode; an importable function, so that it can be pickled."""
    return small_network()


def some_images(count: int, side: int = 32, seed: int = 0) -> NDArray[np.uint8]:
    """Images (N, side, side, 3) that cannot be written to, as Ray hands them out."""
    images = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)
    images.setflags(write=False)
    return images


def as_inputs(images: Any) -> Tensor:
    """Images (N, H, W, C) as inputs (N, C, H, W), in 0..1."""
    scaled = np.asarray(images, np.float64).transpose(0, 3, 1, 2) / 255
    return torch.from_numpy(scaled.astype(np.float32))


@torch.no_grad()
def plain_map(
    model: nn.Module,
    x: Tensor,
    target: int,
    fill: float = 0.0,
    window: int = WINDOW,
    stride: int = STRIDE,
) -> NDArray[Any]:
    """The target's outcome for every window on an input (C, H, W): one forward pass for each."""
    rows = []
    for top in range(0, x.shape[1] - window + 1, stride):
        row = []
        for left in range(0, x.shape[2] - window + 1, stride):
            covered = x.clone()
            covered[:, top : top + window, left : left + window] = fill
            row.append(float(model(covered[None])[0, target]))
        rows.append(row)
    return np.array(rows, np.float32)
