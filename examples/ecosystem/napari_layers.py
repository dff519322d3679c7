"""A volume and its map as layers of napari: python napari_layers.py"""

import numpy as np
import torch
from torch import nn

from captum_krypton import KryptonOcclusion

SPACING = (2.5, 1.0, 1.0)  # mm a voxel: slices, rows, columns


def explained():
    """A volume (D, H, W) and its map: yours, by your network."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2)),
        *(nn.Conv3d(8, 8, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 2)),
    ).eval()
    scan = torch.rand(1, 1, 16, 40, 40)
    heat = KryptonOcclusion(network).heatmap(scan, (1, 4, 10, 10), strides=(1, 2, 5, 5), target=1)
    return scan[0, 0], heat


def add_layers(viewer, scan, heat):
    """The scan, and over it the map: a voxel a window, at the window's middle."""
    drop = heat.drop[0].numpy()
    limit = abs(drop).max()
    viewer.add_image(scan.numpy(), name="scan", scale=SPACING, colormap="gray")
    viewer.add_image(
        drop,
        name="drop",
        affine=np.diag([*SPACING, 1]) @ heat.grid_affine(),
        colormap="PiYG",
        contrast_limits=(-limit, limit),
        opacity=0.6,
    )


if __name__ == "__main__":
    import napari

    viewer = napari.Viewer()
    add_layers(viewer, *explained())
    napari.run()
