"""Threshold tuning by a fit to SSIM, and its deviation on held-out images: the paper's figure 10.

    python examples/paper/tuning.py --figure tuning.png --json tuning.json

The paper tunes VGG16, ResNet18 and Inception v3, fine-tuned, on 30 images of one kind, and holds
out 30; more than half of them meet the target. Photographs of many kinds differ more, and there are
fewer of them here. Where the last volumes are small, SSIM falls in steps (Eq. 31), and the second
degree curve may run above one: then fewer images meet the target. For a data set: `--images`,
`--network` and `--weights`. About five minutes on two CPU cores.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from _paper import TRAINED, Script, judged
from _paper_tables import tuning_table
from _shared import square_windows
from matplotlib.figure import Figure

from captum_krypton import KryptonOcclusion

# What the paper chose for a target of 0.9 on its OCT images (Section 4.4).
PAPER = {"vgg16": 0.5, "resnet18": 0.7, "inception_v3": 0.9}
FULL = {
    "network": TRAINED,
    "weights": None,
    "images": None,
    "count": 8,
    "held_out": 8,
    "target": 0.9,
    "window": 16,
    "stride": 8,
    "thresholds": (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4),
}
QUICK = {"count": 3, "held_out": 3, "stride": 16, "thresholds": (1.0, 0.8, 0.6, 0.4)}


def measure(settings: SimpleNamespace) -> dict[str, Any]:
    """The tuning, and the quality of every image at the chosen threshold."""
    subject = judged(settings, settings.count + settings.held_out)
    images = list(subject.images.values())
    tuning = KryptonOcclusion(subject.probabilities).tune(
        iter(images[: settings.count]),
        settings.target,
        held_out=iter(images[settings.count :]),
        limit=max(settings.count, settings.held_out),
        thresholds=tuple(settings.thresholds),
        show_progress=True,
        **square_windows(settings.window, settings.stride),
    )
    curve = [float(tuning.predicted(tau)) for tau in settings.thresholds]
    return {
        "judged": subject.described(),
        "paper": PAPER,
        "threshold": tuning.threshold,
        "curve": curve,
        "ssim": tuning.ssim,
        "at_threshold": tuning.at_threshold,
        "held_out": tuning.held_out,
        "_figure": tuning.plot(),
    }


def draw(result: dict[str, Any]) -> Figure:
    """SSIM by threshold with its fit, and how far images are from the target."""
    figure: Figure = result["_figure"]
    figure.set_size_inches(9, 3.8)
    for panel in itertools.islice(figure.axes, 2):
        panel.get_legend().set_loc("lower right")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Tune, print, draw."""
    Script(__doc__, FULL, QUICK, measure, tuning_table, draw).run(arguments)


if __name__ == "__main__":
    main()
