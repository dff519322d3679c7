"""How maps are made, whatever the call."""

from __future__ import annotations

from dataclasses import dataclass

from .arguments import ArgumentError

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """How maps are made, whatever the call.

    Attributes:
        memory_budget: bytes for activations, or None for a share of the free memory.
        winograd: whether convolutions may run by Winograd's algorithm.
        self_check: whether the first map of a graph is compared with the forward function.
        cuda_graphs: whether batches on a GPU are captured and replayed.
        compile_pointwise: whether torch.compile makes what follows a convolution of PyTorch's own.

    Raises:
        ValueError: (an `ArgumentError`) for a budget that is not positive.
    """

    memory_budget: int | None = None
    winograd: bool = True
    self_check: bool = True
    cuda_graphs: bool = True
    compile_pointwise: bool = False

    def __post_init__(self) -> None:
        if self.memory_budget is not None and self.memory_budget <= 0:
            raise ArgumentError(f"memory_budget must be positive bytes, not {self.memory_budget}")
