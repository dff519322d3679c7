"""What the scripts of this folder share: command line, networks, images, clocks."""

from __future__ import annotations

import argparse
import copy
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import _benchmarks  # noqa: F401, the modules of its folder are found from here on
import torch
from _shared import (
    LEAST_SIDE,
    build_network,
    captum_seconds_per_window,
    efficientnet_lite,
    fastest_batch,
    load_image,
    machine,
    occluded,
    photographs,
    sampled_windows,
    square_windows,
    to_input,
    window_corners,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion, OcclusionMap

TRAINED = "efficientnet_lite0"
BATCH = 16  # the paper's, on a CPU
# Its map takes several times the others' for the same windows.
COARSER = {"inception_v3": 2}

HELP = {
    "networks": "torchvision or timm networks, with random weights: speed only",
    "network": f"the network whose maps are judged: {TRAINED} or a torchvision name",
    "weights": "its weights: DEFAULT (downloads), or a file with a state dictionary",
    "images": "folder of images in torchvision's ImageFolder layout (default: photographs)",
    "count": "how many images",
    "held_out": "how many further images",
    "side": "side of the image in pixels",
    "patches": "sides of the occlusion patch in pixels",
    "window": "side of the occlusion patch in pixels",
    "stride": "distance of neighbouring windows in pixels",
    "thresholds": "projective field thresholds",
    "fractions": "drill-down fractions",
    "steps": "stage one strides, in units of the stage two stride",
    "target": "the SSIM to reach",
    "sample": "windows that naive sides run",
}


@dataclass(frozen=True)
class Script:
    """A result of the paper.

    Attributes:
        doc: the script's docstring.
        full: its settings and their values.
        quick: the values that `--quick` changes.
        measure: from the settings, what goes to the JSON file.
        table: from all that goes to the JSON file, the table, as Markdown.
        draw: from the same, the figure.
    """

    doc: str
    full: dict[str, Any]
    quick: dict[str, Any]
    measure: Callable[[SimpleNamespace], dict[str, Any]]
    table: Callable[[dict[str, Any]], str]
    draw: Callable[[dict[str, Any]], Figure]

    def run(self, arguments: Sequence[str] | None = None) -> None:
        """Measure, print the table, and write figure and JSON."""
        options = self._parse(arguments)
        torch.set_num_threads(options.threads)
        settings = {**self.full, **(self.quick if options.quick else {})}
        given = {name: getattr(options, name) for name in settings}
        settings |= {name: value for name, value in given.items() if value is not None}
        started = time.perf_counter()
        with torch.no_grad():
            measured = self.measure(SimpleNamespace(**settings))
        result = {
            "quick": options.quick,
            "settings": settings,
            "machine": machine(),
            "seconds": time.perf_counter() - started,
            **measured,
        }
        print("\n" + self.table(result))
        if options.figure:
            save(self.draw(result), options.figure)
        if options.json:
            kept = {name: value for name, value in result.items() if not name.startswith("_")}
            Path(options.json).write_text(json.dumps(kept, indent=1) + "\n")

    def _parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        parser = argparse.ArgumentParser(
            description=self.doc, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--quick", action="store_true", help="within two minutes")
        parser.add_argument("--figure", metavar="FILE", help="file to draw the figure to")
        parser.add_argument("--json", metavar="FILE", help="file to write the result to")
        parser.add_argument(
            "--threads", type=int, default=torch.get_num_threads(), help="CPU threads"
        )
        for name, value in self.full.items():
            several = isinstance(value, tuple)
            kind = type(value[0] if several else "" if value is None else value)
            parser.add_argument(
                f"--{name.replace('_', '-')}",
                type=kind,
                nargs="+" if several else None,
                help=f"{HELP[name]} (default: {_words(value)})",
            )
        return parser.parse_args(arguments)


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True)
class Judged:
    """A trained network, whose maps can be judged.

    Attributes:
        name: its name.
        weights: where its weights are from.
        network: logits.
        probabilities: the same with a softmax: the paper's maps are of probabilities.
        side: side of its images in pixels.
        images: its inputs, (1, 3, side, side), by name.
    """

    name: str
    weights: str
    network: nn.Module
    probabilities: nn.Module
    side: int
    images: dict[str, Tensor]

    def described(self) -> dict[str, Any]:
        """What the JSON file says of it."""
        names = list(self.images)
        return {"name": self.name, "weights": self.weights, "side": self.side, "images": names}


def judged(settings: SimpleNamespace, count: int) -> Judged:
    """The trained network of the settings, and `count` images for it."""
    side = max(224, LEAST_SIDE.get(settings.network, 0))
    if settings.network == TRAINED and settings.weights is None:
        network, normalised = efficientnet_lite(), None
    elif settings.weights is None:
        raise SystemExit(f"--network {settings.network} needs --weights: DEFAULT or a file")
    elif Path(settings.weights).is_file():
        network = normalised = _from_file(settings.network, settings.weights)
    else:
        network = normalised = build_network(settings.network, side, settings.weights)
    files = _images(settings.images)[:count]
    if len(files) < count:
        raise SystemExit(f"{count} images are asked for, and {len(files)} are there")
    return Judged(
        settings.network,
        settings.weights or "ImageNet",
        network,
        nn.Sequential(network, nn.Softmax(1)).eval(),
        side,
        {name: to_input(load_image(file, side), normalised) for name, file in files},
    )


def _from_file(name: str, file: str) -> nn.Module:
    """A torchvision network with as many classes as the file's last layer has."""
    import torchvision

    state = torch.load(file, weights_only=True)
    extra: dict[str, Any] = {"num_classes": len(list(state.values())[-1])}
    if name in ("inception_v3", "googlenet"):
        auxiliary = any("aux" in key.lower() for key in state)
        extra |= {"aux_logits": auxiliary, "init_weights": False}
    network: nn.Module = torchvision.models.get_model(name, **extra)
    network.load_state_dict(state)
    return network.eval()


def _images(folder: str | None) -> list[tuple[str, str]]:
    """Names and files of images: a folder's in an order drawn once, or the photographs."""
    if folder is None:
        return photographs()
    from torchvision.datasets import ImageFolder

    files = [Path(file) for file, _ in ImageFolder(folder).samples]
    random.Random(0).shuffle(files)
    return [(f"{file.parent.name}/{file.name}", str(file)) for file in files]


@dataclass(frozen=True)
class Timed:
    """A network with random weights, whose maps are only timed.

    Attributes:
        name: its name.
        network: the network.
        x: its input, (1, 3, side, side).
        target: the class predicted for it.
        window: side of the occlusion patch in pixels.
        stride: distance of neighbouring windows in pixels.
    """

    name: str
    network: nn.Module
    x: Tensor
    target: int
    window: int
    stride: int

    @property
    def windows(self) -> int:
        """Windows of the map."""
        return len(window_corners(self.x, self.window, self.stride))

    def described(self) -> dict[str, Any]:
        """What a row of the JSON file says of it."""
        return {
            "network": self.name,
            "side": self.x.shape[-1],
            "window": self.window,
            "stride": self.stride,
            "windows": self.windows,
        }


def timed_network(name: str, settings: SimpleNamespace, window: int) -> Timed:
    """A network of the settings, with random weights."""
    side = max(settings.side, LEAST_SIDE.get(name, 0) if settings.side >= 224 else 0)
    network = build_network(name, side)
    x = to_input(load_image(None, side), network)
    target = int(network(x).argmax())
    return Timed(name, network, x, target, window, settings.stride * COARSER.get(name, 1))


def naive_seconds(case: Timed, sample: int) -> float:
    """Seconds of a whole map by forward passes in batches, scaled from a sample of its windows."""
    corners = window_corners(case.x, case.window, case.stride)
    chosen = [corners[index] for index in sampled_windows(len(corners), sample)]
    batches = [chosen[at : at + BATCH] for at in range(0, len(chosen), BATCH)]
    case.network(occluded(case.x, batches[0], case.window))  # warms up
    started = time.perf_counter()
    for batch in batches:
        case.network(occluded(case.x, batch, case.window))[:, case.target].tolist()
    return (time.perf_counter() - started) / len(chosen) * len(corners)


def captum_seconds(case: Timed, sample: int) -> tuple[float, int]:
    """Seconds of a whole map by Captum, scaled, and the batch size at which it is fastest."""

    def seconds(batch: int, batches: int) -> float:
        windows = square_windows(case.window, case.stride)
        return captum_seconds_per_window(
            case.network, case.x, case.target, batch, batches, **windows
        )

    batch = fastest_batch(seconds, (1, 4), case.windows)
    batches = max(1, min(sample // batch, case.windows // batch - 2))
    return seconds(batch, batches) * case.windows, batch


def krypton(model: nn.Module) -> KryptonOcclusion:
    """captum-krypton for a model whose maps are timed.

    The check of a first map belongs to the set-up, and these times are those of later maps.
    """
    return KryptonOcclusion(model, self_check=False)


def approximated(exact: KryptonOcclusion, **settings: Any) -> KryptonOcclusion:
    """The same with approximations: both share a capture, so its set-up is paid once."""
    other = copy.copy(exact)
    other.approximation = KryptonOcclusion(exact.forward_func, **settings).approximation
    return other


def timed_map(occlusion: KryptonOcclusion, x: Tensor, **windows: Any) -> tuple[float, OcclusionMap]:
    """Seconds of a map whose plan is there already, and the map.

    The capture has to be there too, with its packed weights: a map has been made before, with these
    windows or others.
    """
    occlusion.explain(x, **windows)
    started = time.perf_counter()
    heat = occlusion.heatmap(x, **windows)
    return time.perf_counter() - started, heat


def save(figure: Figure, file: str) -> None:
    """Write a figure; a PNG with a palette, which is several times smaller."""
    figure.savefig(file, dpi=90)
    if file.endswith(".png"):
        with Image.open(file) as picture:
            small = picture.convert("RGB").quantize(160, method=Image.Quantize.FASTOCTREE)
        small.save(file, optimize=True)


def log_axis(panel: Axes) -> None:
    """A logarithmic axis of speed-ups, with plain numbers."""
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter(NullFormatter())


def say(text: str) -> None:
    """Tell how far the run is."""
    print(text, flush=True)
