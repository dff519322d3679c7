"""The library that the operators of this package are defined in."""

from __future__ import annotations

import torch

__all__ = ["library"]

library = torch.library.Library("captum_krypton", "DEF")
