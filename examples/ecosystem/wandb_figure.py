"""A map, its figure and its report in Weights & Biases: python wandb_figure.py FOLDER

Offline: nothing leaves the machine until `wandb sync` is told to send the run.
"""

import sys
from pathlib import Path

import torch
import wandb
from torchvision.models import resnet18

from captum_krypton import KryptonOcclusion

torch.manual_seed(0)
model = resnet18().eval()
image = torch.rand(1, 3, 64, 64)
heat = KryptonOcclusion(model).heatmap(image, (3, 16, 16), (3, 8, 8), target=281)

folder = Path(sys.argv[1])
with wandb.init(project="occlusion", mode="offline", dir=folder) as run:
    run.log({"occlusion": wandb.Image(heat.plot(image[0])), "seconds": heat.report.seconds})
    heat.save(folder / "map.npz")
    artifact = wandb.Artifact("map", type="occlusion-map", metadata=heat.report.to_dict())
    artifact.add_file(str(folder / "map.npz"))
    run.log_artifact(artifact)
