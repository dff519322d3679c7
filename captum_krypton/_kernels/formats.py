"""Memory formats by the number of dimensions."""

from __future__ import annotations

import torch

__all__ = ["CHANNELS_LAST"]

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
