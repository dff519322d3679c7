"""How many windows run in one batch, and how many images lie side by side.

A batch is as large as three things allow: the memory that is left beside the base, the bytes beyond
which a larger batch is no faster, and the rows that the caller or the kind of device sets.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

__all__ = ["Room", "default_memory_budget"]

# Larger batches leave the caches and wait for memory; see docs/design.md.
_BATCH_BYTES = {"cpu": 1 << 26}
_MOST_ROWS = {"cpu": 64}
_MOST_ROWS_ELSEWHERE = 512


@dataclass(frozen=True)
class Room:
    """What a plan may take of a device.

    Attributes:
        memory_budget: bytes that the base and one batch may take.
        batch_bytes: bytes of live values beyond which a batch is no faster; None where it always
            is.
        most_rows: the most rows that a batch may have.
    """

    memory_budget: int
    batch_bytes: int | None
    most_rows: int

    @classmethod
    def on(
        cls, device: torch.device, memory_budget: int | None = None, most_rows: int | None = None
    ) -> Room:
        """The room on a device.

        Args:
            device: where the windows run.
            memory_budget: bytes that activations may take; None for a share of the free memory.
            most_rows: the most rows that a batch may have; None for what suits the device.
        """
        budget = memory_budget or default_memory_budget(device)
        budget = 1 << (budget.bit_length() - 1)  # a power of two, so that plans are used again
        if most_rows is None:
            most_rows = _MOST_ROWS.get(device.type, _MOST_ROWS_ELSEWHERE)
        return cls(budget, _BATCH_BYTES.get(device.type), most_rows)

    def images(self, base_bytes: int, images: int) -> int:
        """How many of the images run side by side, where the base of one takes so many bytes."""
        return max(1, min(images, int(self.memory_budget // 2 // max(base_bytes, 1))))

    def batch_size(self, base_bytes: int, row_bytes: int) -> int:
        """The most rows in a batch.

        Args:
            base_bytes: what the base of all images that run side by side takes.
            row_bytes: what a row takes at the worst moment.
        """
        room = max(self.memory_budget - base_bytes, self.memory_budget // 2)
        room = room if self.batch_bytes is None else min(room, self.batch_bytes)
        return max(1, min(self.most_rows, room // max(row_bytes, 1)))


def default_memory_budget(device: torch.device) -> int:
    """A quarter of the memory that is free now, in bytes."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) // 4
    try:
        pages, size = os.sysconf("SC_AVPHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 1 << 30
    return max(pages * size // 4, 1 << 28)
