"""A map of a CT or MR slice as a DICOM parametric map.

python dicom_map.py SLICE.dcm MAP.dcm
"""

import sys

import highdicom as hd
import numpy as np
import pydicom
import torch
from pydicom.pixels import apply_modality_lut
from pydicom.sr.codedict import codes
from torch import nn
from torchvision.models import resnet18

import captum_krypton
from captum_krypton import KryptonOcclusion

source = pydicom.dcmread(sys.argv[1])
values = apply_modality_lut(source.pixel_array, source).astype(np.float32)  # CT: HU
x = torch.from_numpy((values - values.mean()) / values.std())[None, None]

torch.manual_seed(0)
network = resnet18(num_classes=2)  # yours, with its weights and its own normalisation
network.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
model = nn.Sequential(network, nn.Softmax(dim=1)).eval()
heat = KryptonOcclusion(model).heatmap(x, (1, 16, 16), strides=(1, 8, 8), target=1)

drop = heat.attribution()[0, 0].numpy()  # (rows, columns) of the slice, float32
limit = float(abs(drop).max())
meaning = hd.pm.RealWorldValueMapping(
    lut_label="drop",
    lut_explanation="Fall of the probability of class 1 under a window 16 wide",
    unit=codes.UCUM.NoUnits,  # a probability is a pure number
    value_range=(float(drop.min()), float(drop.max())),
    slope=1.0,  # what is stored is the number itself
    intercept=0.0,
    quantity_definition=codes.DCM.Saliency,
)
made = hd.pm.ParametricMap(
    source_images=[source],  # patient, study, and where the slice lies
    pixel_array=drop,
    series_instance_uid=hd.UID(),
    series_number=100,
    sop_instance_uid=hd.UID(),
    instance_number=1,
    manufacturer="your institution",
    manufacturer_model_name="captum-krypton",
    software_versions=captum_krypton.__version__,
    device_serial_number="none",
    contains_recognizable_visual_features=False,
    real_world_value_mappings=[meaning],
    voi_lut_transformations=[
        hd.VOILUTTransformation(window_center=0.0, window_width=2 * limit)  # 0 is mid-grey
    ],
    content_description="Occlusion map",
)
made.save_as(sys.argv[2])
