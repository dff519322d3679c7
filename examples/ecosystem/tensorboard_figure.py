"""A map as a figure in TensorBoard: python examples/ecosystem/tensorboard_figure.py runs"""

import sys

import torch
from torch.utils.tensorboard import SummaryWriter
from torchvision.models import resnet18

from captum_krypton import KryptonOcclusion

model = resnet18().eval()
image = torch.rand(1, 3, 64, 64)
heat = KryptonOcclusion(model).heatmap(image, (3, 16, 16), (3, 8, 8))
with SummaryWriter(sys.argv[1]) as writer:
    writer.add_figure("occlusion", heat.plot())
