"""The same for files some of which are broken, in a run that may stop and go on.

python ray_resume.py FOLDER OUT CHECKPOINT
"""

import io
import sys

import numpy as np
import ray
import torch
from PIL import Image
from ray.data.checkpoint import CheckpointConfig
from torchvision.models import squeezenet1_1

from captum_krypton.data import OcclusionMapper

WINDOWS = {"sliding_window_shapes": (3, 16, 16), "strides": (3, 8, 8)}


def load_model():
    torch.manual_seed(0)
    return squeezenet1_1().eval()


def decode(content):
    """From a file's content to the model's input. What it raises is the row's error."""
    image = Image.open(io.BytesIO(content)).convert("RGB").resize((64, 64))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def main(folder, out, checkpoint, **arguments):
    ray.data.DataContext.get_current().checkpoint_config = CheckpointConfig(
        id_column="path", checkpoint_path=checkpoint, delete_checkpoint_on_success=False
    )
    files = ray.data.read_binary_files(folder, include_paths=True)
    maps = files.map_batches(
        OcclusionMapper,
        fn_constructor_kwargs={
            "model": load_model,
            "transform": decode,
            "column": "bytes",
            "errors": "row",
            **WINDOWS,
            **arguments,
        },
        batch_size=4,
        num_cpus=1,
        concurrency=2,
    )
    maps.drop_columns(["bytes"]).write_parquet(out)


if __name__ == "__main__":
    ray.init(num_cpus=4, include_dashboard=False)
    main(*sys.argv[1:])
