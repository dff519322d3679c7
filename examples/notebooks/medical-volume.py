# %% [markdown]
# # A medical volume
#
# From a NIfTI file to a map in three dimensions, and back to NIfTI files that lie over the scan in
# a viewer.
#
# What is real, and what is made up:
#
# - **The scan is real**: an MR volume of a head that comes with nibabel.
# - **The lesion is made up**: a bright blob, put where we choose.
# - **The network is made of two filters of MONAI's, set by hand.** Nobody trained it, nothing in it
#   is random, and it is of no use for anybody's scan. It does make a map that can be checked, since
#   we know where the blob is. Put your network in its place.
#
# To run it: `pip install '.[notebooks]'` in a clone of the repository.

# %%
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.networks.layers import GaussianFilter
from nibabel.affines import apply_affine
from nibabel.testing import data_path
from torch import nn

from captum_krypton import KryptonOcclusion, fills

# %% [markdown]
# ## A scan with a lesion
#
# The scan, without the air at its sides. Its voxels are 2.0 x 2.0 x 2.2 mm.

# %%
image = nib.load(Path(data_path) / "example4d.nii.gz").slicer[28:100, :, :, 0]
scan = torch.from_numpy(image.get_fdata(dtype=np.float32))
scan = scan / scan.max()
print(tuple(scan.shape), "voxels")

# %% [markdown]
# A blob of 8 mm about one voxel adds up to a half of the scan's brightest value.

# %%
lesion = torch.tensor([22, 60, 14])
voxels = torch.stack(torch.meshgrid(*map(torch.arange, scan.shape), indexing="ij"), -1)
millimetres = (voxels - lesion) * torch.tensor(image.header.get_zooms())
ill = scan + 0.5 * torch.exp(-((millimetres.norm(dim=-1) / 8) ** 2))

# %% [markdown]
# It goes into a file, and is read again, as your scan would be. The tensor keeps the axes of the
# array, so that nothing is transposed on the way in or out.

# %%
nib.save(nib.Nifti1Image(ill.numpy(), image.affine), "scan.nii.gz")

image = nib.load("scan.nii.gz")
x = torch.from_numpy(image.get_fdata(dtype=np.float32))[None, None]
print(tuple(x.shape))

# %% [markdown]
# ## A network
#
# A blob is where a narrow blur is much brighter than a wide one. The outcome is how much of that
# there is inside the head.


# %%
class Blobs(nn.Module):
    """How much there is in (N, 1, D, H, W) that is brighter than what surrounds it: (N, 1)."""

    def __init__(self):
        super().__init__()
        self.narrow = GaussianFilter(3, sigma=1.5)
        self.wide = GaussianFilter(3, sigma=4.0)
        head = (scan > 0.2).float()[None, None]
        self.register_buffer("inside", (self.wide(head) > 0.9).float())  # not at its border

    def forward(self, x):
        return (self.inside * (self.narrow(x) - self.wide(x) - 0.1).relu()).sum((2, 3, 4))


model = Blobs().eval()
with torch.no_grad():
    print(f"with the blob {float(model(x)):.1f}, without {float(model(scan[None, None])):.1f}")

# %% [markdown]
# ## A map
#
# A window has about equal sides in millimetres. What covers it must not be a finding itself: here
# it is the scan, blurred.

# %%
occlusion = KryptonOcclusion(model)
heat = occlusion.heatmap(
    x,
    sliding_window_shapes=(1, 10, 10, 8),
    strides=(1, 6, 6, 4),
    baselines=fills.blur(sigma=6),
    target=0,
)
heat

# %% [markdown]
# Three slices through the largest change, over the scan.

# %%
heat.plot(ill, label="blobs", alpha=0.6)

# %% [markdown]
# The window that the network misses most, and the blob, in millimetres of the scanner.
# `grid_affine` leads from the map's indices to the scan's voxels, and the scan's affine from there
# to millimetres.

# %%
drop = heat.drop[0].numpy()
affine = image.affine @ heat.grid_affine()
peak = np.unravel_index(drop.argmax(), drop.shape)
print("largest drop at", apply_affine(affine, peak).round(), "mm")
print("the blob is at ", apply_affine(image.affine, lesion).round(), "mm")

# %% [markdown]
# ## Maps as NIfTI files
#
# The map of the windows has an affine of its own. The attribution, which is Captum's, has the
# scan's resolution and its affine. Open either over `scan.nii.gz`.

# %%
nib.save(nib.Nifti1Image(drop, affine), "windows.nii.gz")
attribution = heat.attribution()[0, 0].numpy()
nib.save(nib.Nifti1Image(attribution, image.affine), "attribution.nii.gz")

for name in ("scan", "windows", "attribution"):
    saved = nib.load(f"{name}.nii.gz")
    sides = " x ".join(f"{side:.1f}" for side in saved.header.get_zooms())
    print(f"{name}: {saved.shape}, voxels of {sides} mm")
