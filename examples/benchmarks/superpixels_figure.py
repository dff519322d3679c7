"""The drop of each superpixel, for two fills and two numbers of segments, laid on the photograph.

    python examples/benchmarks/superpixels_figure.py --output superpixels.png

The photograph is scikit-image's cup of coffee, the network EfficientNet-Lite0 with ImageNet
weights, both from installed packages. It prints the segments that the class rests on most, and how
alike the maps are.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from _shared import efficientnet_lite, load_image, photographs, to_input
from skimage import segmentation
from torch import Tensor, nn

from captum_krypton import KryptonFeatureAblation, OcclusionMap, fills


def superpixels(picture: np.ndarray, number: int, compactness: float) -> Tensor:
    """The number of every pixel's segment, (H, W), of SLIC."""
    made = segmentation.slic(picture, n_segments=number, compactness=compactness, start_label=0)
    return torch.from_numpy(made)


def likeness(first: OcclusionMap, second: OcclusionMap) -> float:
    """The correlation of two maps over the pixels."""
    pixels = torch.stack([heat.attribution().flatten() for heat in (first, second)])
    return float(torch.corrcoef(pixels)[0, 1])


def draw(picture: np.ndarray, maps: dict[str, tuple[Tensor, OcclusionMap]], output: str) -> None:
    """The photograph with the first map's segments, and every map laid over it."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure, axes = plt.subplots(1, 1 + len(maps), figsize=(13, 4.7), layout="constrained")
    segments, _ = next(iter(maps.values()))
    axes[0].imshow(segmentation.mark_boundaries(picture, segments.numpy(), color=(1, 1, 1)))
    axes[0].set_title(f"{len(segments.unique())} superpixels", fontsize=10)
    for axis, (title, (_, heat)) in zip(axes[1:], maps.items(), strict=True):
        drop = heat.attribution()[0, 0].numpy()
        limit = float(np.abs(drop).max())
        alpha = np.clip(3 * np.abs(drop) / limit, 0, 0.75)
        axis.imshow(picture.mean(-1), cmap="gray", vmin=0, vmax=255)
        axis.imshow(drop, cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=alpha)
        axis.set_title(title, fontsize=10)
        scale = ScalarMappable(Normalize(-limit, limit), "RdBu_r")
        label = f"drop of the probability, {float(heat.reference[0]):.2f}"
        figure.colorbar(scale, ax=axis, location="bottom", shrink=0.9, label=label)
    for axis in axes:
        axis.set_axis_off()
        axis.set_anchor("N")
    figure.savefig(output, dpi=85)


def main(arguments: Sequence[str] | None = None) -> None:
    """Cut, explain, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", help="a photograph of yours")
    parser.add_argument("--size", type=int, default=224, help="side of the image in pixels")
    parser.add_argument("--segments", type=int, nargs=2, default=(40, 150), help="two numbers")
    parser.add_argument("--compactness", type=float, default=10, help="SLIC's, of both")
    parser.add_argument("--sigma", type=float, default=15, help="the blur's, in pixels")
    parser.add_argument("--output", default="superpixels.png", help="the picture's path")
    options = parser.parse_args(arguments)

    picture = load_image(options.image or dict(photographs())["coffee.png"], options.size)
    network = nn.Sequential(efficientnet_lite(), nn.Softmax(dim=1)).eval()
    ablation = KryptonFeatureAblation(network)
    x = to_input(picture)
    few, many = (superpixels(picture, n, options.compactness) for n in options.segments)
    blur, grey = fills.blur(options.sigma), 0.0  # inputs are in -1..1
    maps = {
        f"{len(mask.unique())}, {name}": (
            mask,
            ablation.heatmap(x, baselines=fill, feature_mask=mask),
        )
        for mask, name, fill in (
            (few, "covered by a blur", blur),
            (few, "covered by grey", grey),
            (many, "covered by a blur", blur),
        )
    }
    for name, (mask, heat) in maps.items():
        drop = heat.drop[0]
        numbers = mask.unique()
        most = drop.argsort(descending=True)[:3].tolist()
        found = ", ".join(f"{int(numbers[n])} ({float(drop[n]):+.3f})" for n in most)
        print(
            f"{name}: class {int(heat.target)}, probability {float(heat.reference[0]):.3f}, "
            f"drops most without segments {found}"
        )
    (_, first), *others = maps.values()
    for name, (_, heat) in zip(list(maps)[1:], others, strict=True):
        print(f"correlation of the first map with {name}: {likeness(first, heat):.2f}")
    draw(picture, maps, options.output)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
