"""Images, a network and the command line that explains them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scripts import ROOT
from torch import Tensor, nn

SIDE = 32
WINDOWS = ("--size", str(SIDE), "--window", "8", "--stride", "4")


def tiny_network(classes: int = 5) -> nn.Sequential:
    """Logits of some classes, for images of any size."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, classes),
    ).eval()


# A user's module. Environment variables have it die or run out of room, as a machine would.
MODULE = '''
import os
import resource
import signal

from command_line import tiny_network

if "MOST_BYTES" in os.environ:
    most = int(os.environ["MOST_BYTES"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def dies_at(name, function, places):
    """The function, which kills the process before or after its nth call for the places."""
    when, _, number = os.environ.get(name, "never 0").partition(" ")
    calls = 0

    def counted(*arguments, **named):
        nonlocal calls
        calls += places(*arguments)
        if when == "before" and calls == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **named)
        if when == "after" and calls == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return counted


os.replace = dies_at(
    "DIES_AT_REPLACE", os.replace, lambda old, new: str(new).endswith((".npz", ".png"))
)


def load_model():
    return tiny_network()
'''


def write_images(folder: Path, names: Sequence[str], seed: int = 0) -> None:
    """Pictures of noise with blocks, of some sizes."""
    draws = np.random.default_rng(seed)
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = draws.integers(0, 256, (5, 6 + number % 2, 3), dtype=np.uint8)
        Image.fromarray(coarse.repeat(9, 0).repeat(9, 1)).save(path)


def usual_input(path: Path, side: int = SIDE) -> Tensor:
    """ImageNet's usual preprocessing, by torchvision."""
    from torchvision.transforms._presets import ImageClassification

    preset = ImageClassification(crop_size=side, resize_size=round(side / 0.875))
    with Image.open(path) as image:
        made: Tensor = preset(image.convert("RGB"))[None]
    return made


def child_environment(**more: str) -> dict[str, str]:
    """The environment of a process that imports this package and `command_line`."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support"), *sys.path])
    alike = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "KRYPTON_MEASURE": "0"}
    return {**os.environ, **alike, **more}


def start(
    arguments: Sequence[str], folder: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python -m captum_krypton` in a process of its own, with `folder` to work in."""
    return subprocess.run(
        [sys.executable, "-m", "captum_krypton", *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=folder,
        env=child_environment(**environment),
    )
