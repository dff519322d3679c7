"""Windows that scale what they cover, as windows of one cell of another input.

MONAI's Gaussian windows multiply the image by a kernel, and its `mean_patch` by a number of each
window. A baseline cannot say that, for windows overlap. So the network is given a second input, the
*depths*: one cell for every place that a window may have, 1 where there is none. Two or three
convolutions along single axes spread a depth over its window, and the image is multiplied by the
result. Occluding one cell of the depths is then the same as scaling one window of the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ScaledWindows", "kernel"]

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}
_WIDTH = 0.25  # the Gaussian's standard deviation, in sides of a window


class ScaledWindows(nn.Module):
    """A network behind windows that scale what they cover.

    Args:
        network: from images to outcomes.
        window: the window's size along each axis, of at most three.
        gaussian: whether a window is deepest at its centre and 0 at the corners; else it is a box.
        like: of the images' type and device.
    """

    def __init__(  # noqa: D107
        self,
        network: Callable[[Tensor], Tensor],
        window: tuple[int, ...],
        gaussian: bool,
        like: Tensor,
    ) -> None:
        super().__init__()
        self.network = network
        for axis, taps in enumerate(_taps(window, gaussian)):
            # A convolution reads backwards.
            weight = taps.flip(-1).to(like)
            line = [1] * len(window)
            line[axis] = window[axis]
            self.register_buffer(f"weight{axis}", weight.reshape(*weight.shape[:2], *line))
        self.window = window

    def forward(self, depths: Tensor, images: Tensor) -> Tensor:
        """The network's outcome for the images with windows of these depths.

        Args:
            depths: (N, 1, *places), where a window starts one more than its depth, else 1.
            images: (N, channels, *shape).
        """
        shade = depths - 1
        for axis, side in enumerate(self.window):
            weight = self.get_buffer(f"weight{axis}")
            padding = [side - 1 if other == axis else 0 for other in range(len(self.window))]
            groups = shade.shape[1] // weight.shape[1]
            shade = _CONVOLUTIONS[len(self.window)](shade, weight, padding=padding, groups=groups)
        return self.network(images * (1 - shade))


def kernel(window: tuple[int, ...], gaussian: bool) -> Tensor:
    """How deep a window of depth 1 is in each of its cells, float64, of the window's shape."""
    if not gaussian:
        return torch.ones(window, dtype=torch.float64)
    bell = _bell(window)
    low, high = bell.min(), bell.max()
    if low == high:
        return torch.ones_like(bell)
    return (bell - low) / (high - low)


def _taps(window: tuple[int, ...], gaussian: bool) -> list[Tensor]:
    """Lines (out, in / groups, side), one an axis, whose product is `kernel`.

    The Gaussian less its least value is the difference of two products, in two channels.
    """
    ones = [torch.ones(side, dtype=torch.float64) for side in window]
    bell = _bell(window)
    low, high = float(bell.min()), float(bell.max())
    if not gaussian or low == high:
        return [line[None, None] for line in ones]
    if len(window) == 1:
        return [kernel(window, gaussian)[None, None]]
    lines = [
        torch.stack([_line(side), one])[:, None] for side, one in zip(window, ones, strict=True)
    ]
    lines[0] = lines[0] * torch.tensor([1.0, -low]).double()[:, None, None] / (high - low)
    lines[-1] = lines[-1].transpose(0, 1)  # adds the channels up
    return lines


def _bell(window: tuple[int, ...]) -> Tensor:
    bell = torch.ones((), dtype=torch.float64)
    for side in window:
        bell = bell[..., None] * _line(side)
    return bell


def _line(side: int) -> Tensor:
    """The Gaussian's share of every cell along an axis, about the middle cell."""
    cell = torch.arange(side, dtype=torch.float64) - side // 2
    scale = 1 / (math.sqrt(2) * _WIDTH * side)
    # Its tails end at four standard deviations, which is as far as the window.
    return 0.5 * (torch.erf((cell + 0.5) * scale) - torch.erf((cell - 0.5) * scale))
