"""Windows: where they are."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_krypton._call.windows import WindowGrid


@given(
    size=st.integers(1, 30),
    window=st.integers(1, 30),
    stride=st.integers(1, 30),
)
def test_windows_cover_the_input_and_the_last_is_clipped(
    size: int, window: int, stride: int
) -> None:
    window, stride = min(window, size), min(stride, window, size)
    grid = WindowGrid((size,), (window,), (stride,))
    reach = grid.along(0)
    assert len(reach.start) == grid.total
    assert reach.start[0] == 0
    assert reach.stop[-1] == size
    assert (np.diff(reach.start) == stride).all()
    spread = grid.spread(torch.ones(1, grid.total, dtype=torch.float64))
    torch.testing.assert_close(spread, torch.ones(1, size, dtype=torch.float64))
    assert (reach.stop[:-1] - reach.start[:-1] == window).all()
