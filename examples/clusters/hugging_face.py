"""Maps of a data set with Hugging Face datasets, in two processes.

python hugging_face.py FOLDER OUT
"""

import sys
from pathlib import Path

import torch
from datasets import Dataset, Image
from torchvision.models import squeezenet1_1

from captum_krypton.data import OcclusionMapper

WINDOWS = {"sliding_window_shapes": (3, 16, 16), "strides": (3, 8, 8)}


def load_model():
    torch.manual_seed(0)
    return squeezenet1_1().eval()


def main(folder, out):
    paths = sorted(str(path) for path in Path(folder).iterdir())
    images = Dataset.from_dict({"path": paths, "image": paths}).cast_column("image", Image())
    maps = images.map(
        OcclusionMapper(load_model, threads=1, **WINDOWS),
        batched=True,
        batch_size=4,
        num_proc=2,
        remove_columns=["image"],
    )
    maps.save_to_disk(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
