"""Maps with Dask: one file of maps for each part of a folder of images.

python dask_delayed.py FOLDER OUT
"""

import sys
from pathlib import Path

import dask
import numpy as np
import torch
from PIL import Image
from torchvision.models import squeezenet1_1

from captum_krypton.data import OcclusionMapper

WINDOWS = {"sliding_window_shapes": (3, 16, 16), "strides": (3, 8, 8)}


def load_model():
    torch.manual_seed(0)
    return squeezenet1_1().eval()


@dask.delayed
def read(paths):
    return {
        "path": [path.name for path in paths],
        "image": [np.array(Image.open(p)) for p in paths],
    }


@dask.delayed
def write(maps, file):
    np.savez(file, **{name: maps[name] for name in maps if name != "image"})


def main(folder, out):
    mapper = dask.delayed(OcclusionMapper(load_model, **WINDOWS), pure=True)
    paths = sorted(Path(folder).iterdir())
    parts = [paths[start : start + 4] for start in range(0, len(paths), 4)]
    Path(out).mkdir()
    work = [
        write(mapper(read(part)), Path(out, f"{number}.npz")) for number, part in enumerate(parts)
    ]
    dask.compute(*work)


if __name__ == "__main__":
    main(*sys.argv[1:])
