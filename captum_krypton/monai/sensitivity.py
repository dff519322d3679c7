"""`OcclusionSensitivity`: MONAI's arguments in, MONAI's maps out, sooner."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .. import KryptonFallbackWarning, KryptonOcclusion
from .places import Places, blended, places_of
from .scaled import ScaledWindows, kernel

__all__ = ["OcclusionSensitivity"]

_MODES = ("gaussian", "mean_patch", "mean_img")


class OcclusionSensitivity:
    """Occlusion sensitivity equal to `monai.visualize.OcclusionSensitivity`'s, sooner.

    Every argument is MONAI's, in MONAI's order, with its default. Windows are evaluated by
    incremental inference; where the network cannot be captured, they run one batch after another
    as in MONAI, with a `KryptonFallbackWarning`. More overlap costs less here than it does there.

    Args:
        nn_module: the network, from (N, channels, ...) to (N, classes). It runs in evaluation mode
            and is left as it was.
        mask_size: the window's side in cells, or one an axis.
        n_batch: how many windows run together where they run as in MONAI. Else the batch is chosen
            for the device.
        verbose: whether to show a progress bar.
        mode: what becomes of a window. `"gaussian"`: it is multiplied by one minus a Gaussian, and
            windows are blended by another. `"mean_img"`: it gets the mean of the image, over all
            channels. A number: it gets that. `"mean_patch"`: it is multiplied by its own mean,
            which is what MONAI's code does (its documentation has it replaced by the mean). A
            function of the image and the window's cells gives what the cells become; such windows
            run as in MONAI.
        overlap: the share of a window that the next one covers too, in [0, 1), or one an axis.
        activate: what follows the network. True: the sigmoid for images of one channel, else the
            softmax over classes. False: nothing. A function is called on batches of outputs.

    Raises:
        NotImplementedError: for a mode of another name.

    Examples:
        >>> sensitivity = OcclusionSensitivity(model, mask_size=16, n_batch=10)
        >>> occ_map, most_probable_class = sensitivity(image)
    """

    def __init__(  # noqa: D107
        self,
        nn_module: nn.Module,
        mask_size: int | Sequence[int] = 16,
        n_batch: int = 16,
        verbose: bool = True,
        mode: str | float | Callable[[Tensor, Tensor], Tensor] = "gaussian",
        overlap: float | Sequence[float] = 0.6,
        activate: bool | Callable[[Tensor], Tensor] = True,
    ) -> None:
        if isinstance(mode, str) and mode not in _MODES:
            raise NotImplementedError(
                f"mode must be one of {', '.join(_MODES)}, a number or a function, not {mode!r}"
            )
        self.nn_module = nn_module
        self.mask_size = mask_size
        self.n_batch = n_batch
        self.verbose = verbose
        self.mode = mode
        self.overlap = overlap
        self.activate = activate
        self._kept: tuple[Any, KryptonOcclusion] | None = None

    def __call__(
        self, x: Tensor, b_box: Sequence[int] | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The outcome with every part of an image covered.

        Args:
            x: one image, (1, channels, ...), with one to three axes.
            b_box: the part of the image to explain: a minimum and a maximum for every axis, one
                after another, the maximum not included; -1 stands for all.
            kwargs: further arguments of the network.

        Returns:
            The map, (1, classes, ...): the weighted mean of the outcomes of the windows on a cell.
            And its largest class, (1, 1, ...). Both are plain tensors of the part's size, the map
            float32.

        Raises:
            ValueError: for several images, a window larger than the image, and arguments out of
                range.
        """
        if x.shape[0] > 1:
            raise ValueError(f"x must have a batch size of 1, not {x.shape[0]}")
        if not 3 <= x.dim() <= 5:
            raise ValueError(f"x must be (1, channels, ...) with 1 to 3 axes, not {tuple(x.shape)}")
        x = x.detach().as_subclass(Tensor)
        places = places_of(x.shape[2:], self.mask_size, self.overlap, b_box)
        with _evaluation(self.nn_module):
            rows = self._outputs(x, places, kwargs)
            scores = self._activated(rows, x.shape[1]).to(x.dtype)
            occ_map = blended(scores, places, self.mode == "gaussian").float()
        return occ_map, occ_map.argmax(dim=1, keepdim=True)

    def _outputs(self, x: Tensor, places: Places, kwargs: dict[str, Any]) -> Tensor:
        """What the network gives for every window, (windows, classes)."""
        if callable(self.mode):
            reason = "mode is a function, which gives each window cells of its own"
            return self._one_by_one(x, places, kwargs, reason)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", KryptonFallbackWarning)
                rows = self._incrementally(x, places, kwargs)
        except KryptonFallbackWarning as fallback:
            self._kept = None  # so that the next map says it too
            return self._one_by_one(x, places, kwargs, str(fallback).partition(": ")[2])
        if rows.dim() != 3:
            raise ValueError(f"nn_module must give (N, classes), not {rows.dim() - 1} dimensions")
        return rows[0].T

    def _incrementally(self, x: Tensor, places: Places, kwargs: dict[str, Any]) -> Tensor:
        """The network's outputs by incremental inference, (1, classes, windows)."""
        if self.mode in ("gaussian", "mean_patch"):
            shape = [n - w + 1 for n, w in zip(places.size, places.window, strict=True)]
            depths = x.new_full((1, 1, *shape), 2)  # of a Gaussian: one, and what no window has
            if self.mode == "mean_patch":
                for corner, box in zip(places.corners, places.boxes, strict=True):
                    place, cells = (0, 0, *corner), (slice(None), slice(None), *box)
                    depths[place] = 2 - x[cells].mean()
            windows = [tuple(slice(c, c + 1) for c in corner) for corner in places.corners]
            heat = self._explainer(x, places.window, kwargs).heatmap(
                torch.ones_like(depths),
                baselines=depths,
                target=None,
                additional_forward_args=(x,),
                windows=windows,
                show_progress=self.verbose,
            )
        else:
            heat = self._explainer(x, None, kwargs).heatmap(
                x,
                baselines=self._number(x),
                target=None,
                windows=places.boxes,
                show_progress=self.verbose,
            )
        return heat.scores

    def _number(self, x: Tensor) -> float:
        """What covers every window."""
        if self.mode == "mean_img":
            return float(x.mean())
        assert isinstance(self.mode, (int, float))
        return float(self.mode)

    def _explainer(
        self, x: Tensor, window: tuple[int, ...] | None, kwargs: dict[str, Any]
    ) -> KryptonOcclusion:
        """What explains the network, the same as for the map before where that is possible.

        Args:
            x: the image.
            window: the size of windows that scale what they cover; None for windows of one value.
            kwargs: further arguments of the network.
        """
        network: Callable[..., Any] = self.nn_module
        gaussian = self.mode == "gaussian"
        key = (network, window, gaussian, x.dtype, x.device)
        if self._kept is not None and self._kept[0] == key and not kwargs:
            return self._kept[1]
        forward = _With(network, kwargs) if kwargs else network
        if window is not None:
            forward = ScaledWindows(forward, window, gaussian, x).eval()
        explainer = KryptonOcclusion(forward)
        if not kwargs:
            self._kept = key, explainer
        return explainer

    def _one_by_one(self, x: Tensor, places: Places, kwargs: dict[str, Any], reason: str) -> Tensor:
        """The network's outputs for every window, a batch of whole images after another."""
        warnings.warn(
            f"this map is made by the network itself, at MONAI's speed: {reason}",
            KryptonFallbackWarning,
            stacklevel=4,
        )
        boxes, rows = places.boxes, []
        depth = kernel(places.window, True).to(x) if self.mode == "gaussian" else None
        for start in tqdm(range(0, len(boxes), self.n_batch), disable=not self.verbose):
            part = boxes[start : start + self.n_batch]
            images = x.repeat(len(part), *[1] * (x.dim() - 1))
            for row, box in enumerate(part):
                place = (slice(row, row + 1), slice(None), *box)
                cells = images[place]
                cells.copy_(self._covered(x, cells.clone(), depth))
            rows.append(self.nn_module(images, **kwargs))
            if rows[0].dim() != 2:
                raise ValueError(f"nn_module must give (N, classes), not {tuple(rows[0].shape)}")
        return torch.cat(rows)

    def _covered(self, x: Tensor, cells: Tensor, depth: Tensor | None) -> Tensor:
        """What the cells of a window become, (1, channels, *window)."""
        if callable(self.mode):
            return self.mode(x, cells)
        if depth is not None:
            return cells * (1 - depth)
        if self.mode == "mean_patch":
            return cells * cells.mean()
        return torch.full_like(cells, self._number(x))

    def _activated(self, rows: Tensor, channels: int) -> Tensor:
        """What follows the network, on batches as MONAI makes them."""
        if callable(self.activate):
            return torch.cat([self.activate(part) for part in rows.split(self.n_batch)])
        if not self.activate:
            return rows
        return rows.sigmoid() if channels == 1 else rows.softmax(1)


class _With(nn.Module):
    """A network with further arguments."""

    def __init__(self, network: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.network, self.kwargs = network, kwargs

    def forward(self, images: Tensor) -> Any:
        return self.network(images, **self.kwargs)


@contextmanager
def _evaluation(network: Any) -> Iterator[None]:
    """A network in evaluation mode, and without gradients; afterwards as it was."""
    modules = list(network.modules()) if isinstance(network, nn.Module) else []
    before = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training
