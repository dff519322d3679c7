"""The base: the values of the untouched images."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from torch import Tensor

from .._capture import ValueId
from .._operators import Dims
from .layout import in_layout, to_block

__all__ = ["FILL", "LABELS", "MEANS", "Base"]

# The key of a tensor that windows are filled with, among the base's values. (-1 is an output that
# nothing reads.)
FILL: ValueId = -2
LABELS: ValueId = -3  # the same for the numbers of regions
MEANS = "means"  # of the windows, derived from the occluded input


class Base:
    """The values of the untouched images that windows read around their patches.

    Attributes:
        kept: the values, and under `FILL` the tensor that windows are filled with, where it is one.
        channels_last: whether they are kept with channels last.
    """

    def __init__(self, kept: dict[ValueId, Tensor], channels_last: bool) -> None:
        self.kept, self.channels_last = kept, channels_last
        self._derived: dict[Hashable, tuple[Tensor, Callable[[], Tensor]]] = {}
        self._views = set[Hashable]()  # of what was derived: they follow the values by themselves

    def clone(self) -> Base:
        """The same values in memory that nothing else uses."""
        kept = {value: tensor.clone() for value, tensor in self.kept.items()}
        return Base(kept, self.channels_last)

    def load(self, other: Base) -> None:
        """Takes the values of another base of this shape, in the memory of its own ones."""
        for value, tensor in self.kept.items():
            tensor.copy_(other.kept[value])
        self.renew()

    def renew(self) -> None:
        """Makes anew what is derived from the values, in the memory that it has."""
        for key, (tensor, make) in self._derived.items():
            if key in self._views:
                continue
            made = make()
            if made.data_ptr() == tensor.data_ptr():
                self._views.add(key)
            else:
                tensor.copy_(made)

    def derived(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """What `make` gives, made once; `load` makes it anew."""
        if key not in self._derived:
            self._derived[key] = make(), make
        return self._derived[key][0]

    def block(self, value: ValueId, dims: Dims, tensor: Tensor) -> Tensor:
        """`tensor`, a constant or the value's base, as (N, channels, *axes), for the kernels."""
        return self.derived(
            (value, dims), lambda: in_layout(to_block(tensor, dims), self.channels_last)
        )
