"""Grad-CAM and an occlusion map, drawn alike: python grad_cam_overlay.py PICTURE.png"""

import sys

import numpy as np
import torch
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from skimage import data, transform
from torchvision.models import resnet18
from torchvision.transforms.functional import normalize

from captum_krypton import KryptonOcclusion

torch.manual_seed(0)
model = resnet18().eval()  # resnet18(weights="DEFAULT") for trained ones
picture = transform.resize(data.chelsea()[:, 75:375], (96, 96), anti_aliasing=True)
picture = picture.astype(np.float32)  # (96, 96, 3), in 0..1
image = torch.from_numpy(picture).permute(2, 0, 1)[None]
x = normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

heat = KryptonOcclusion(model).heatmap(x, (3, 16, 16), strides=(3, 8, 8), target=281)
drop = heat.attribution()[0, 0].clamp(min=0)  # what speaks for the class, as Grad-CAM has it
ours = (drop / drop.max()).numpy()  # (96, 96), in 0..1

with GradCAM(model=model, target_layers=[model.layer4[-1]]) as cam:
    (theirs,) = cam(input_tensor=x, targets=[ClassifierOutputTarget(281)])

drawn = [show_cam_on_image(picture, each, use_rgb=True) for each in (theirs, ours)]
Image.fromarray(np.hstack(drawn)).save(sys.argv[1])
