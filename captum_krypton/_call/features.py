"""Arguments of feature ablation: which cells of the inputs are features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .arguments import ArgumentError, Call, call_of, checked_inputs
from .outcome import row_target
from .region_list import RegionList
from .windows import WindowGrid, Windows

__all__ = ["Features", "make_features", "make_region_call"]


class Features:
    """One call of feature ablation, checked.

    Args:
        call: the arguments, without windows.
        masks: for each input, the number of every cell's feature; None where each cell is one.
    """

    def __init__(self, call: Call, masks: tuple[Tensor | None, ...]) -> None:
        self.call, self.masks = call, masks

    @property
    def is_shared(self) -> bool:
        """Whether a feature has cells of several inputs."""
        if len(self.masks) == 1:
            return False
        masks = [mask for mask in self.masks if mask is not None]
        numbers = [set(torch.unique(mask).tolist()) for mask in masks]
        return len(set().union(*numbers)) < sum(map(len, numbers))

    @property
    def rows_differ(self) -> bool:
        """Whether inputs have different numbers of rows."""
        return len({len(tensor) for tensor in self.call.inputs}) > 1

    @property
    def differ(self) -> bool:
        """Whether examples have features of their own."""
        return any(mask is not None and mask.shape[0] > 1 for mask in self.masks)

    @property
    def calls(self) -> list[Call]:
        """The call with its features as windows; one for each example where they differ."""
        if not self.differ:
            return [self._with_windows(self.call, 0)]
        rows = range(self.call.examples)
        return [self._with_windows(_row(self.call, row), row) for row in rows]

    def _with_windows(self, call: Call, row: int) -> Call:
        pairs = zip(call.inputs, self.masks, strict=True)
        grids = tuple(_regions(tensor, mask, row) for tensor, mask in pairs)
        return replace(call, grids=grids, method="Feature Ablation")


def make_features(
    inputs: Any,
    baselines: Any,
    target: Any,
    additional_forward_args: Any,
    feature_mask: Any,
    perturbations_per_eval: Any,
) -> Features:
    """Checks the arguments of `KryptonFeatureAblation.attribute`.

    Raises:
        AssertionError: where Captum raises it.
        ArgumentError: an AssertionError and a ValueError, for anything else that cannot be used.
        TypeError: for inputs or masks that are not tensors.
    """
    formatted = checked_inputs(inputs)
    masks = _masks(feature_mask, formatted)
    call = call_of(inputs, (), baselines, target, additional_forward_args, perturbations_per_eval)
    return Features(call, masks)


def make_region_call(
    inputs: Any,
    windows: Sequence[Any] | Tensor,
    baselines: Any,
    target: Any,
    additional_forward_args: Any,
    perturbations_per_eval: Any,
) -> Call:
    """The call for any regions of one input.

    Args:
        inputs: the input.
        windows: boxes as tuples of slices, or a tensor of masks, (regions, ...), bool.
        baselines: as in `make_call`.
        target: as in `make_call`.
        additional_forward_args: as in `make_call`.
        perturbations_per_eval: as in `make_call`.

    Raises:
        AssertionError: where Captum raises it.
        ArgumentError: an AssertionError and a ValueError, for anything else that cannot be used.
        TypeError: for an input that is not a tensor.
    """
    formatted = checked_inputs(inputs)
    if len(formatted) != 1:
        raise ArgumentError(f"windows are for one input, not for {len(formatted)}")
    shape = tuple(formatted[0].shape[1:])
    if isinstance(windows, Tensor):
        regions = RegionList.of_masks(shape, _region_masks(windows.to(formatted[0].device), shape))
    else:
        regions = RegionList.of_boxes(shape, windows)
    others = target, additional_forward_args, perturbations_per_eval
    return call_of(inputs, (regions,), baselines, *others)


def _region_masks(masks: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Masks of regions, with as many dimensions as the input."""
    sizes = (1,) * (len(shape) + 1 - masks.dim()) + tuple(masks.shape[1:])
    fits = masks.dim() > 0 and len(masks) > 0 and len(sizes) == len(shape)
    if not fits or any(m not in (1, n) for m, n in zip(sizes, shape, strict=True)):
        raise ArgumentError(
            f"windows has shape {tuple(masks.shape)}, expected (regions, ...) with a shape that "
            f"broadcasts to {shape}"
        )
    if masks.dtype is not torch.bool:
        raise ArgumentError(f"windows must be masks of type torch.bool, not {masks.dtype}")
    return masks.reshape(len(masks), *sizes)


def _masks(feature_mask: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """The mask of each input, with as many dimensions."""
    if feature_mask is None:
        return (None,) * len(inputs)
    given = feature_mask if isinstance(feature_mask, tuple) else (feature_mask,)
    if len(given) != len(inputs):
        raise ArgumentError(
            f"feature_mask has {len(given)} entries, expected one for each of the "
            f"{len(inputs)} inputs"
        )
    masks = []
    for i, (mask, tensor) in enumerate(zip(given, inputs, strict=True)):
        if not isinstance(mask, Tensor):
            raise TypeError(f"feature_mask[{i}] must be a tensor, not {type(mask).__name__}")
        shape = (1,) * (tensor.dim() - mask.dim()) + tuple(mask.shape)
        if len(shape) > tensor.dim() or any(
            size not in (1, whole) for size, whole in zip(shape, tensor.shape, strict=True)
        ):
            raise ArgumentError(
                f"feature_mask[{i}] has shape {tuple(mask.shape)}, expected "
                f"{tuple(tensor.shape)} or a shape that broadcasts to it"
            )
        masks.append(mask.detach().to(tensor.device).reshape(shape))
    return tuple(masks)


def _regions(tensor: Tensor, mask: Tensor | None, row: int) -> Windows:
    """The features of an input as windows."""
    shape = tuple(tensor.shape[1:])
    if mask is None or tensor.numel() == 0:
        cell = (1,) * len(shape)
        return WindowGrid(shape, cell, cell)
    return RegionList.of_mask(shape, mask[row if mask.shape[0] > 1 else 0])


def _row(call: Call, row: int) -> Call:
    """The call for one of its examples."""

    def own(thing: Any) -> Any:
        rows = isinstance(thing, Tensor) and thing.dim() > 0 and thing.shape[0] == call.examples
        return thing[row : row + 1] if rows else thing

    def baseline(thing: Any, tensor: Tensor) -> Any:
        full = isinstance(thing, Tensor) and thing.dim() == tensor.dim()
        return own(thing) if full else thing

    target = row_target(call.target, torch.tensor([row]))
    pairs = zip(call.baselines, call.inputs, strict=True)
    return replace(
        call,
        inputs=tuple(map(own, call.inputs)),
        baselines=tuple(baseline(thing, tensor) for thing, tensor in pairs),
        target=target,
        extra=tuple(map(own, call.extra)),
    )
