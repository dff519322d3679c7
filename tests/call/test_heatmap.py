"""Maps as pictures, and what they say about themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion, OcclusionMap


def bright_spot(row: int, column: int) -> tuple[nn.Module, Tensor]:
    """A network that looks at one pixel alone, and an image."""

    class Spot(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :, row, column].sum(1, keepdim=True)

    return Spot(), torch.ones(1, 3, 40, 60)


def made(row: int, column: int, window: int, stride: int) -> OcclusionMap:
    model, image = bright_spot(row, column)
    shape, strides = (3, window, window), (3, stride, stride)
    return KryptonOcclusion(model).heatmap(image, shape, strides, target=0)


@pytest.mark.parametrize(("window", "stride"), [(8, 4), (10, 2), (6, 6), (9, 5)])
def test_numbers_stand_in_the_middle_of_their_windows(window: int, stride: int) -> None:
    heat = made(20, 30, window, stride)
    left, right, bottom, top = heat.extent()
    rows, columns = heat.scores.shape[1:]
    for number in range(columns):
        middle = left + (number + 0.5) * (right - left) / columns
        assert middle == pytest.approx(number * stride + window / 2)
    for number in range(rows):
        middle = top + (number + 0.5) * (bottom - top) / rows
        assert middle == pytest.approx(number * stride + window / 2)
    twice = heat.extent((80, 120))
    assert twice == pytest.approx([2 * edge for edge in heat.extent()])


def test_a_map_lies_over_what_it_shows() -> None:
    """The drop's middle on the picture is the pixel that the network looks at."""
    heat = made(33, 7, 8, 2)
    figure = heat.plot(torch.rand(40, 60))
    overlay = figure.axes[2].images[-1]
    left, right, bottom, top = overlay.get_extent()
    drop = (heat.reference[0] - heat.scores[0]).numpy()
    rows, columns = drop.nonzero()
    across = left + (columns.mean() + 0.5) * (right - left) / drop.shape[1]
    down = top + (rows.mean() + 0.5) * (bottom - top) / drop.shape[0]
    assert abs(across - 7.5) <= 1 and abs(down - 33.5) <= 1
    assert figure.axes[2].get_xlim() == (0, 60)
    assert figure.axes[2].get_ylim() == (40, 0)


def test_a_map_along_one_axis_has_no_extent() -> None:
    signal = KryptonOcclusion(nn.Sequential(nn.Flatten(), nn.Linear(60, 2)))
    heat = signal.heatmap(torch.rand(1, 3, 20), (3, 5), (3, 5), target=0)
    with pytest.raises(ValueError, match="two window axes"):
        heat.extent()
