"""Prediction difference analysis of a photograph: evidence, spread, and how sure the mean is.

    python examples/benchmarks/prediction_difference.py --output prediction_difference.png

What covers a window is other photographs of scikit-image and their mirror images, one after another
(`fills.average`). The network is EfficientNet-Lite0 with ImageNet weights. It prints how many
windows are in doubt, and how far the means of two sets of samples are apart, beside what the
standard error says.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from _shared import efficientnet_lite, load_image, photographs, to_input
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion, OcclusionMap, fills

IMAGES, CLASSES = 1_281_167, 1000  # ImageNet's, for the Laplace correction


def log2_odds(p: Tensor) -> Tensor:
    """Log-odds in bits, with the correction of Zintgraf et al. for probabilities of 0 and 1."""
    corrected = (p.double() * IMAGES + 1) / (IMAGES + CLASSES)
    return torch.logit(corrected) / np.log(2)


def apart(scores: Tensor, generator: torch.Generator) -> list[tuple[int, float, float]]:
    """How far the means of two sets of n samples are apart, and what is expected, for every n.

    Args:
        scores: (samples, ...), the outcomes of each sample.
        generator: draws the sets, a hundred times for every n.

    Returns:
        n, the root mean square difference over windows and draws, and sqrt(2 / n) deviations.
    """
    deviation = float(scores.var(0).mean().sqrt())
    found = []
    for n in range(1, len(scores) // 2 + 1):
        squares = []
        for _ in range(100):
            drawn = torch.randperm(len(scores), generator=generator)[: 2 * n]
            one, other = scores[drawn[:n]].mean(0), scores[drawn[n:]].mean(0)
            squares.append((one - other).square().mean())
        measured = float(torch.stack(squares).mean().sqrt())
        found.append((n, measured, (2 / n) ** 0.5 * deviation))
    return found


def draw(
    picture: np.ndarray,
    heat: OcclusionMap,
    evidence: Tensor,
    doubtful: Tensor,
    curve: list[tuple[int, float, float]],
    output: str,
) -> None:
    """The photograph, its evidence, where that is in doubt, and the error by samples."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(14, 3.9), layout="constrained")
    axes[0].imshow(picture)
    axes[0].set_title(f"class {int(heat.target)}, probability {float(heat.reference[0]):.2f}")
    drop = heat.drop[0].abs().numpy()
    spread = heat.spread[0].numpy()  # type: ignore[index]
    limit = float(evidence.abs().max())
    maps = {
        "weight of evidence, bits": (evidence.numpy(), "RdBu_r", -limit, limit),
        "spread / |drop|": (spread / np.maximum(drop, 1e-12), "PuOr_r", 0, 2),
    }
    for axis, (title, (values, colours, low, high)) in zip(axes[1:3], maps.items(), strict=True):
        axis.imshow(picture.mean(-1), cmap="gray", vmin=0, vmax=255)
        drawn = axis.imshow(
            values, cmap=colours, vmin=low, vmax=high, alpha=0.7, extent=heat.extent()
        )
        axis.set(title=title, xlim=(0, picture.shape[1]), ylim=(picture.shape[0], 0))
        figure.colorbar(drawn, ax=axis, location="bottom", shrink=0.9)
    left, right, bottom, top = heat.extent()
    rows, columns = doubtful.shape
    x = left + (np.arange(columns) + 0.5) * (right - left) / columns
    y = top + (np.arange(rows) + 0.5) * (bottom - top) / rows
    for row, column in doubtful.nonzero().tolist():
        axes[1].plot(x[column], y[row], "kx", markersize=4)
    for axis in axes[:3]:
        axis.set_axis_off()
        axis.set_anchor("N")
    n, measured, expected = zip(*curve, strict=True)
    axes[3].loglog(n, measured, "o", label="measured")
    axes[3].loglog(n, expected, "-", label=r"$\sqrt{2/n}$ deviations")
    axes[3].set(xlabel="samples n", title="two means of n samples, apart by")
    axes[3].grid(alpha=0.3, which="both")
    axes[3].legend()
    figure.savefig(output, dpi=85)


def main(arguments: Sequence[str] | None = None) -> None:
    """Explain, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", help="a photograph of yours")
    parser.add_argument("--size", type=int, default=224, help="side of the image in pixels")
    parser.add_argument("--window", type=int, default=32, help="side of a window in pixels")
    parser.add_argument("--stride", type=int, default=16, help="pixels between windows")
    parser.add_argument("--samples", type=int, default=30, help="other images, 30 at most")
    parser.add_argument("--output", default="prediction_difference.png", help="the picture's path")
    options = parser.parse_args(arguments)

    files = dict(photographs())
    own = options.image or files.pop("coffee.png")
    picture = load_image(own, options.size)
    others = torch.cat([to_input(load_image(file, options.size)) for file in files.values()])
    others = torch.cat([others, others.flip(-1)])[: options.samples]
    network = nn.Sequential(efficientnet_lite(), nn.Softmax(dim=1)).eval()
    occlusion = KryptonOcclusion(network)
    side, stride = options.window, options.stride
    windows = {"sliding_window_shapes": (3, side, side), "strides": (3, stride, stride)}
    x = to_input(picture)
    heat = occlusion.heatmap(x, baselines=fills.average(others), **windows)
    single = torch.stack(  # the same samples one by one, for the curve
        [occlusion.heatmap(x, baselines=other[None], **windows).scores[0] for other in others]
    )

    drop = heat.drop[0]
    evidence = log2_odds(heat.reference[0]) - log2_odds(heat.scores[0])
    error = heat.spread[0] / (len(others) - 1) ** 0.5  # type: ignore[index]
    doubtful = drop.abs() < 2 * error
    wide = heat.spread[0] > drop.abs()  # type: ignore[index]
    print(
        f"class {int(heat.target)}, probability {float(heat.reference[0]):.3f}, {len(others)} "
        f"samples, {drop.numel()} windows: {int(doubtful.sum())} within two standard errors of 0, "
        f"{int(wide.sum())} with a spread above the drop; evidence up to "
        f"{float(evidence.max()):.2f} bits, drop up to {float(drop.max()):.3f}"
    )
    curve = apart(single, torch.Generator().manual_seed(0))
    for n, measured, expected in curve:
        print(f"{n:3} samples: two means are {measured:.2e} apart, expected {expected:.2e}")
    draw(picture, heat, evidence, doubtful, curve, options.output)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
