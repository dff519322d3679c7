"""Maps of a folder of images with Ray Data, as a folder of Parquet files.

python ray_data.py FOLDER OUT
"""

import sys

import ray
import torch
from torchvision.models import squeezenet1_1

from captum_krypton.data import OcclusionMapper

WINDOWS = {"sliding_window_shapes": (3, 16, 16), "strides": (3, 8, 8)}


def load_model():
    """Called once in every worker."""
    torch.manual_seed(0)
    return squeezenet1_1().eval()  # yours, with its weights


def preprocess(image):
    """From one image, (H, W, 3) and uint8, to the model's input."""
    return torch.from_numpy(image).permute(2, 0, 1).float() / 127.5 - 1


def main(folder, out):
    maps = ray.data.read_images(folder, mode="RGB", include_paths=True).map_batches(
        OcclusionMapper,
        fn_constructor_kwargs={"model": load_model, "transform": preprocess, **WINDOWS},
        batch_size=4,
        num_cpus=1,  # a worker's; on a GPU: num_gpus=1
        concurrency=2,  # workers
    )
    maps.drop_columns(["image"]).write_parquet(out)


if __name__ == "__main__":
    # Two for the workers, one for reading and writing. On a cluster: ray.init().
    ray.init(num_cpus=3, include_dashboard=False)
    main(*sys.argv[1:])
