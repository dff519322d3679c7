"""A medical image explained end to end: load, normalise, train, explain, draw.

    python examples/medical.py --output medical.png

The image is the fundus photograph of scikit-image, its green channel. No medical network comes
with a package, so a small one-channel network first learns to tell crops of this very photograph
that have the optic disc from crops that have not. That is enough for a map that can be checked by
eye, and for nothing else. Two baselines stand side by side, since what covers a window is itself a
finding to some networks, and a map of a chosen quality beside the exact one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from skimage import data, filters, transform, util
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion, OcclusionMap, ssim

CROP = 64


def load(size: int) -> np.ndarray:
    """The green channel of the photograph, (size, size), in 0..1: vessels and disc stand out."""
    green = util.img_as_float(data.retina())[..., 1]
    small: np.ndarray = transform.resize(green, (size, size), order=1, anti_aliasing=True)
    return small


def normalised(picture: np.ndarray) -> tuple[Tensor, float, float]:
    """A network input (1, 1, H, W), and the mean and deviation that it was made with.

    The black rim around the eye is left out of both.
    """
    inside = picture[picture > filters.threshold_otsu(picture) / 2]
    mean, deviation = float(inside.mean()), float(inside.std())
    return torch.from_numpy((picture - mean) / deviation)[None, None].float(), mean, deviation


def disc_centre(picture: np.ndarray) -> tuple[int, int]:
    """Where the optic disc is: the brightest place at its own scale."""
    smooth = filters.gaussian(picture, len(picture) / 40)
    row, column = np.unravel_index(smooth.argmax(), smooth.shape)
    return int(row), int(column)


class Network(nn.Sequential):
    """Grey images (N, 1, H, W) to two scores, (N, 2): without the disc, with it."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for before, after in ((1, 16), (16, 32), (32, 64), (64, 64)):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
        head = (nn.Conv2d(64, 2, 1), nn.AdaptiveMaxPool2d(1), nn.Flatten())
        super().__init__(*layers, *head)


def crops(x: Tensor, centre: tuple[int, int], count: int) -> tuple[Tensor, Tensor]:
    """Crops of the photograph, (count, 1, CROP, CROP), and whether the disc is well inside."""
    last, margin = x.shape[-1] - CROP, CROP // 8
    corners = torch.randint(0, last + 1, (count, 2))
    near = torch.tensor(centre) - torch.randint(margin, CROP - margin, (count // 2, 2))
    corners[: count // 2] = near.clamp(0, last)
    inside = (torch.tensor(centre) - corners - margin).clamp(min=0)
    labels = ((inside > 0) & (inside < CROP - 2 * margin)).all(1).long()
    images = torch.stack([x[0, :, r : r + CROP, c : c + CROP] for r, c in corners.tolist()])
    brightness = 0.3 * torch.randn(count, 1, 1, 1)
    flipped = images.flip(-1) if torch.rand(()) < 0.5 else images
    return flipped * (1 + 0.2 * torch.randn(count, 1, 1, 1)) + brightness, labels


def train(x: Tensor, centre: tuple[int, int], steps: int) -> nn.Module:
    """A network that finds the optic disc in this photograph."""
    network = Network().train()
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(steps):
        images, labels = crops(x, centre, 32)
        loss = nn.functional.cross_entropy(network(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    print(f"trained on {steps} batches of crops, last loss {float(loss.detach()):.3f}")
    return network.eval()


def draw(picture: np.ndarray, maps: dict[str, OcclusionMap], window: int, output: str) -> None:
    """The photograph, and every map laid over it."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure, axes = plt.subplots(1, 1 + len(maps), figsize=(13, 3.6), layout="constrained")
    axes[0].imshow(picture, cmap="gray")
    axes[0].set_title("fundus photograph, green channel", fontsize=10)
    drops = {title: heat.drop[0].numpy() for title, heat in maps.items()}
    limit = max(float(np.abs(drop).max()) for drop in drops.values())
    for axis, (title, drop), heat in zip(axes[1:], drops.items(), maps.values(), strict=True):
        axis.imshow(picture, cmap="gray")
        axis.imshow(
            drop,
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
            alpha=np.clip(3 * np.abs(drop) / limit, 0, 0.75),
            extent=heat.extent(),
        )
        axis.set_xlim(0, picture.shape[1])
        axis.set_ylim(picture.shape[0], 0)
        axis.set_title(title, fontsize=10)
    for axis in axes:
        axis.set_axis_off()
    scale = ScalarMappable(Normalize(-limit, limit), "RdBu_r")
    figure.colorbar(scale, ax=axes[1:], shrink=0.8, label=f"drop under a window of {window}")
    figure.savefig(output, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, explain, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224, help="side of the image in pixels")
    parser.add_argument("--window", type=int, default=24, help="side of a window in pixels")
    parser.add_argument("--stride", type=int, default=4, help="pixels between windows")
    parser.add_argument("--steps", type=int, default=150, help="batches to train on")
    parser.add_argument("--quality", type=float, default=0.9, help="SSIM of the third map")
    parser.add_argument("--output", default="medical.png", help="the picture's path")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    picture = load(options.size)
    x, mean, deviation = normalised(picture)
    centre = disc_centre(picture)
    network = train(x, centre, options.steps)
    print(f"the disc is at row {centre[0]}, column {centre[1]}")

    windows = {
        "sliding_window_shapes": (1, options.window, options.window),
        "strides": (1, options.stride, options.stride),
        "target": 1,
    }
    occlusion = KryptonOcclusion(network)
    grey = occlusion.heatmap(x, baselines=0.0, **windows)  # the mean, since inputs are normalised
    black = occlusion.heatmap(x, baselines=-mean / deviation, **windows)
    quick = KryptonOcclusion(network, quality=options.quality)
    sooner = quick.heatmap(x, baselines=0.0, **windows)

    for name, heat in (("the mean", grey), ("black", black)):
        drop = heat.drop[0]
        row, column = np.unravel_index(int(drop.argmax()), drop.shape)
        middle = [place * options.stride + options.window // 2 for place in (row, column)]
        print(
            f"covered by {name}: the score {float(heat.reference[0]):.2f} drops most, by "
            f"{float(drop.max()):.2f}, under the window about row {middle[0]}, column {middle[1]}"
        )
    report = sooner.report
    share = report.windows_evaluated / report.windows
    found = ssim(grey.scores[0], sooner.scores[0])
    print(
        f"quality {options.quality:g}: {report.windows_evaluated} of {report.windows} windows, "
        f"SSIM {found:.3f}, estimated {report.estimated_ssim:.3f}"
    )
    maps = {
        "covered by the mean": grey,
        "covered by black": black,
        f"the mean, {100 * share:.0f} % of the windows, SSIM {found:.2f}": sooner,
    }
    draw(picture, maps, options.window, options.output)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
