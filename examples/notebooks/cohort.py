# %% [markdown]
# # A cohort
#
# Maps of many images, as a data framework would make them: batch by batch, with a file among them
# that cannot be read. They are kept, loaded again, and put together into one map of the whole set.
#
# The images are faces that come with scikit-image, 25 pixels wide (a part of *Labeled Faces in the
# Wild*). Eyes and mouths are at about the same places in all of them, so that a mean of maps says
# something. The network is small, starts from random weights and is trained here, for seconds, to
# tell faces from what is none.
#
# To run it: `pip install '.[notebooks]'` in a clone of the repository.

# %%
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from skimage import data, io
from torch import nn

from captum_krypton.data import OcclusionMapper

# %% [markdown]
# ## A folder of files
#
# Of 100 faces and 100 other images, the first half of each is to train with. The other faces go
# into files, one of which is cut off in the middle.

# %%
images = data.lfw_subset()  # (200, 25, 25), 0 to 1
faces, others = images[:100], images[100:]

folder = Path("faces")
folder.mkdir()
for number, face in enumerate(faces[50:]):
    io.imsave(folder / f"face-{number:02}.png", (255 * face).astype(np.uint8))

broken = folder / "face-03.png"
broken.write_bytes(broken.read_bytes()[:100])
files = sorted(folder.glob("*.png"))
print(len(files), "files")

# %% [markdown]
# ## A network
#
# Its answer is the log-odds of a face: above 0 for faces. The probability is near 1 for most of
# them, and would hardly move.

# %%
torch.manual_seed(0)
network = nn.Sequential(
    *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Flatten(), nn.Linear(32 * 6 * 6, 1)),
)
x = torch.from_numpy(np.concatenate([others[:50], faces[:50]]))[:, None].float()
labels = torch.arange(2.0).repeat_interleave(50)[:, None]

optimizer = torch.optim.Adam(network.parameters(), 0.002)
for _ in range(40):
    optimizer.zero_grad()
    nn.functional.binary_cross_entropy_with_logits(network(x), labels).backward()
    optimizer.step()

# %%
with torch.no_grad():
    for name, unseen in (("faces", faces[50:]), ("others", others[50:])):
        answers = network(torch.from_numpy(unseen)[:, None].float()) > 0
        print(f"{int(answers.sum())} of {len(answers)} {name} that it has not seen are faces to it")

# %% [markdown]
# ## Maps, batch by batch
#
# `OcclusionMapper` takes a batch of columns and returns it with columns added. `transform` opens a
# file; what it raises is the row's error. Ray Data, Spark, Hugging Face datasets and Dask call the
# same object.


# %%
def opened(file):
    """From a file to the model's input, (1, 25, 25)."""
    return torch.from_numpy(io.imread(file)).float()[None] / 255


mapper = OcclusionMapper(
    network.eval(),
    transform=opened,
    column="path",
    target=0,  # the one output
    sliding_window_shapes=(1, 5, 5),
    strides=(1, 2, 2),
    baselines=float(faces.mean()),
    errors="row",
)
batches = [mapper({"path": list(map(str, files[n : n + 10]))}) for n in range(0, 50, 10)]
maps = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
for name, column in maps.items():
    print(f"{name:26}{column.shape}")

# %% [markdown]
# The broken file has a row, too: its reason, and no numbers.

# %%
for place in range(5):
    reference, error = maps["occlusion_reference"][place], maps["occlusion_error"][place]
    print(f"{maps['path'][place]}  {reference:6.3f}  {error}")

# %% [markdown]
# ## Save and load
#
# The columns are plain arrays, which go into one file here. On a cluster it would be Parquet.

# %%
np.savez_compressed("maps.npz", **maps)

with np.load("maps.npz") as loaded:
    maps = {name: loaded[name] for name in loaded}

good = maps["occlusion_error"] == ""
print(f"{good.sum()} of {len(good)} have a map")

# %% [markdown]
# ## A map of the set
#
# How far the log-odds of a face fall with each window covered, and the mean of that over all faces.
# A mean hides what differs: two single maps stand beside it.

# %%
drops = maps["occlusion_reference"][good, None, None] - maps["occlusion_scores"][good]
shown = {"one face": drops[0], "another": drops[1], f"mean of {len(drops)}": drops.mean(0)}
pictures = (faces[50], faces[51], faces[50:].mean(0))

figure, panels = plt.subplots(2, 3, figsize=(7, 4.6), layout="constrained")
for (upper, lower), picture, (title, drop) in zip(panels.T, pictures, shown.items(), strict=True):
    upper.imshow(picture, cmap="gray")
    limit = abs(drop).max()
    drawn = lower.imshow(drop, cmap="RdBu_r", vmin=-limit, vmax=limit)
    figure.colorbar(drawn, ax=lower)
    upper.set_title(title)
    upper.set_axis_off()
    lower.set_axis_off()

# %% [markdown]
# ## A table of regions
#
# The same for parts of a face that were chosen beforehand: the mean drop of their windows, and its
# standard error over the faces.

# %%
parts = {"forehead": slice(0, 3), "eyes": slice(3, 6), "nose": slice(6, 8), "mouth": slice(8, 11)}
print("part      mean drop  standard error")
for part, rows in parts.items():
    each = drops[:, rows].mean((1, 2))
    print(f"{part:10}{each.mean():9.3f}{each.std(ddof=1) / np.sqrt(len(each)):16.3f}")
