"""The base: the values of the untouched images."""

from __future__ import annotations

from torch import Tensor

from ._graph import ValueId
from ._layout import in_layout, to_block
from ._operators import Dims

__all__ = ["FILL", "Base"]

FILL: ValueId = -1  # the key of a tensor that windows are filled with, among the base's values


class Base:
    """The values of the untouched images that windows read around their patches.

    Attributes:
        kept: the values, and under `FILL` the tensor that windows are filled with, where it is one.
        last: whether they are kept with channels last.
    """

    def __init__(self, kept: dict[ValueId, Tensor], last: bool) -> None:
        self.kept, self.last = kept, last
        self._blocks: dict[tuple[ValueId, Dims], Tensor] = {}

    def clone(self) -> Base:
        """The same values in memory that nothing else uses."""
        return Base({value: tensor.clone() for value, tensor in self.kept.items()}, self.last)

    def load(self, other: Base) -> None:
        """Takes the values of another base of this shape, in the memory of its own ones."""
        for value, tensor in self.kept.items():
            tensor.copy_(other.kept[value])
        for (value, dims), block in self._blocks.items():
            if value in self.kept:  # else a constant's
                own = in_layout(to_block(self.kept[value], dims), self.last)
                if own.data_ptr() != block.data_ptr():
                    block.copy_(own)

    def block(self, value: ValueId, dims: Dims, tensor: Tensor) -> Tensor:
        """`tensor`, the value's base, as (N, channels, *axes), in the layout of the kernels."""
        key = (value, dims)
        if key not in self._blocks:
            self._blocks[key] = in_layout(to_block(tensor, dims), self.last)
        return self._blocks[key]
