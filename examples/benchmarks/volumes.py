"""Volumes, videos and signals: maps beside Captum's at its fastest batch size.

    python examples/benchmarks/volumes.py --networks r3d_18 m5
    python examples/benchmarks/volumes.py --threads 2 --json-folder docs/data/volumes

Each network is a file of its own, and one that is there is not run again. Captum's time is that of
a sample of the windows, scaled to the map; both sides take turns. Peaks of memory are those of
processes of their own. MONAI's networks need the extra `monai`. All weights are random.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _shared import captum_seconds_per_window, fastest_batch, kept, machine, sampled_windows
from _sides import Process, Task
from torch import Tensor, nn

from captum_krypton import KryptonOcclusion
from captum_krypton._call import require

BATCHES = {1: (1, 4, 16, 64), 2: (1, 4, 16), 3: (1, 4, 16)}  # by window axes: memory


class M5(nn.Module):
    """The audio network M5 (Dai et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        widths, kernels = (1, 32, 32, 64, 64), (80, 3, 3, 3)
        layers: list[nn.Module] = []
        for i, kernel in enumerate(kernels):
            layers += [
                nn.Conv1d(widths[i], widths[i + 1], kernel, stride=16 if i == 0 else 1),
                nn.BatchNorm1d(widths[i + 1]),
                nn.ReLU(),
                nn.MaxPool1d(4),
            ]
        self.features, self.head = nn.Sequential(*layers), nn.Linear(widths[-1], 35)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.features(x).mean(2))
        return made


class ResNetUNet(nn.Module):
    """A U-Net on ResNet18 with nearest upsampling, as segmentation libraries build it."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet18

        resnet = resnet18()
        stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu)
        first = nn.Sequential(resnet.maxpool, resnet.layer1)
        self.encoder = nn.ModuleList([stem, first, resnet.layer2, resnet.layer3, resnet.layer4])
        widths = ((512 + 256, 256), (256 + 128, 128), (128 + 64, 64), (64 + 64, 32), (32, 16))
        self.decoder = nn.ModuleList(
            nn.Sequential(*self._block(read, made), *self._block(made, made))
            for read, made in widths
        )
        self.head = nn.Conv2d(16, 2, 3, padding=1)

    @staticmethod
    def _block(read: int, made: int) -> list[nn.Module]:
        return [nn.Conv2d(read, made, 3, padding=1), nn.BatchNorm2d(made), nn.ReLU()]

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for stage in self.decoder:
            x = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = stage(torch.cat([x, skips.pop()], 1) if skips else x)
        made: Tensor = self.head(x)
        return made


class MeanOutcome(nn.Module):
    """A dense network whose outcomes are the means of its channels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).flatten(2).mean(2)


class OneVoxel(MeanOutcome):
    """A dense network of which one cell in the middle is read."""

    def forward(self, x: Tensor) -> Tensor:
        dense = self.network(x)
        return dense[(slice(None), slice(None), *(n // 2 for n in dense.shape[2:]))]


def video(name: str) -> nn.Module:
    """A network of torchvision's for videos."""
    from torchvision.models import video as networks

    return getattr(networks, name)()


def monai(name: str, **arguments: Any) -> nn.Module:
    """A network of MONAI's."""
    nets = require("monai.networks.nets", extra="monai", used_by=name)
    return getattr(nets, name)(**arguments)


def unet(axes: int, norm: str = "batch") -> nn.Module:
    """MONAI's U-Net: residual units, PReLU, transposed convolutions, and a norm."""
    return monai(
        "UNet",
        spatial_dims=axes,
        in_channels=1,
        out_channels=2,
        channels=(16, 32, 64, 128),
        strides=(2, 2, 2),
        num_res_units=2,
        norm=norm,
    )


def segresnet() -> nn.Module:
    """MONAI's SegResNet: residual blocks with group norms, and a decoder."""
    return monai("SegResNet", spatial_dims=3, in_channels=1, out_channels=2)


def captum_windows(
    channels: int, window: tuple[int, ...], stride: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """Captum's arguments for windows over all channels."""
    return {"sliding_window_shapes": (channels, *window), "strides": (channels, *stride)}


@dataclass(frozen=True)
class Question:
    """A network, its input and its windows.

    Attributes:
        build: makes the network.
        shape: the input's shape without the batch.
        window: the window's size along the axes; all channels are covered.
        stride: the distance of windows along the axes.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def windows(self) -> dict[str, tuple[int, ...]]:
        """Captum's arguments."""
        return captum_windows(self.shape[0], self.window, self.stride)


@dataclass(frozen=True)
class VolumeTask(Task):
    """A task of one to three window axes: `window` and `stride` have a number for each."""

    window: tuple[int, ...]
    stride: tuple[int, ...]

    def windows(self) -> dict[str, tuple[int, ...]]:
        """Captum's arguments."""
        return captum_windows(self.x.shape[1], self.window, self.stride)

    def corners(self) -> list[tuple[int, ...]]:
        """First cell of every window."""
        axes = zip(self.x.shape[2:], self.window, self.stride, strict=True)
        ranges = (range(0, size - window + stride, stride) for size, window, stride in axes)
        return list(itertools.product(*ranges))


def cube(build: Callable[[], nn.Module], side: int = 64, stride: int = 8) -> Question:
    """A volume of one channel with windows of 16."""
    return Question(build, (1, *[side] * 3), (16,) * 3, (stride,) * 3)


def clip(name: str) -> Question:
    """Sixteen frames of 112 x 112, windows of 4 frames of 16 x 16."""
    return Question(lambda: video(name), (3, 16, 112, 112), (4, 16, 16), (4, 16, 16))


def signal(build: Callable[[], nn.Module]) -> Question:
    """Twelve leads of an ECG, windows of 64 with stride 16."""
    return Question(build, (12, 4000), (64,), (16,))


def resnet(depth: int, axes: int, channels: int) -> nn.Module:
    """MONAI's ResNet with one to three axes."""
    return monai(f"resnet{depth}", spatial_dims=axes, n_input_channels=channels, num_classes=5)


def densenet(axes: int, channels: int) -> nn.Module:
    """MONAI's DenseNet121 with one to three axes."""
    return monai("DenseNet121", spatial_dims=axes, in_channels=channels, out_channels=5)


QUESTIONS = {
    "r3d_18": clip("r3d_18"),
    "mc3_18": clip("mc3_18"),
    "r2plus1d_18": clip("r2plus1d_18"),
    "monai_resnet18": cube(lambda: resnet(18, 3, 1)),
    "monai_resnet50": cube(lambda: resnet(50, 3, 1)),
    "monai_densenet121": cube(lambda: densenet(3, 1)),
    "monai_unet": cube(lambda: MeanOutcome(unet(3)), stride=16),
    "monai_unet_one_voxel": cube(lambda: OneVoxel(unet(3)), stride=16),
    "monai_unet_one_pixel": Question(lambda: OneVoxel(unet(2)), (1, 512, 512), (16, 16), (8, 8)),
    "resnet_unet_one_pixel": Question(
        lambda: OneVoxel(ResNetUNet()), (3, 512, 512), (16, 16), (8, 8)
    ),
    "ecg_resnet18": signal(lambda: resnet(18, 1, 12)),
    "ecg_densenet121": signal(lambda: densenet(1, 12)),
    "m5": Question(M5, (1, 16000), (400,), (100,)),
    "monai_resnet18_96": cube(lambda: resnet(18, 3, 1), side=96),
    "monai_resnet50_96": cube(lambda: resnet(50, 3, 1), side=96),
    "monai_densenet121_96": cube(lambda: densenet(3, 1), side=96),
    "monai_segresnet": cube(lambda: MeanOutcome(segresnet()), stride=16),
    "monai_segresnet_one_voxel": cube(lambda: OneVoxel(segresnet()), stride=16),
    "monai_unet_instance": cube(lambda: MeanOutcome(unet(3, "instance")), stride=16),
    "monai_unet_instance_2d": Question(
        lambda: MeanOutcome(unet(2, "instance")), (1, 224, 224), (16, 16), (8, 8)
    ),
}


def compare(name: str, rounds: int, sample: int, threads: int) -> dict[str, Any]:
    """Times a network's maps.

    Args:
        name: one of `QUESTIONS`.
        rounds: how often both sides take their turn.
        sample: windows of Captum's in a turn, at least.
        threads: threads of PyTorch's.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    question = QUESTIONS[name]
    network, x = question.build().eval(), torch.randn(1, *question.shape)
    occlusion = KryptonOcclusion(network)

    def map_seconds() -> tuple[float, Any]:
        started = time.perf_counter()
        heat = occlusion.heatmap(x, target=1, **question.windows)
        return time.perf_counter() - started, heat

    def captum(batch: int, batches: int) -> float:
        return captum_seconds_per_window(network, x, 1, batch, batches, **question.windows)

    with torch.no_grad():
        first, heat = map_seconds()
        windows = heat.report.windows
        batch = fastest_batch(captum, BATCHES[len(question.window)], windows)
        turns, paths = [], []
        for _ in range(rounds):
            other = captum(batch, max(1, math.ceil(sample / batch))) * windows
            own, heat = map_seconds()
            turns.append((other, own))
            paths.append(heat.report.path)
        error = difference(network, x, question, heat)
    # A plan may be left for the forward function: only maps made as the last one was count.
    last = [own for (_, own), path in zip(turns, paths, strict=True) if path == paths[-1]]
    ours = statistics.median(last)
    theirs = statistics.median(other for other, _ in turns)
    report = heat.report
    peaks = memory(network, x, question, batch, report.batch_size)
    return {
        "network": name,
        "shape": question.shape,
        "window": question.window,
        "stride": question.stride,
        "windows": windows,
        "captum_batch": batch,
        "captum_seconds": theirs,
        "first_seconds": first,
        "seconds": ours,
        "speedup": theirs / ours,
        "first_speedup": theirs / first,
        "by_operations": report.theoretical_speedup,
        "predicted_seconds": report.predicted_seconds,
        "groups": report.groups,
        "path": report.path,
        "largest_difference": error,
        "batch": report.batch_size,
        **peaks,
        "turns": turns,
        "paths": paths,
        "machine": machine(),
    }


def memory(
    network: nn.Module, x: Tensor, question: Question, fastest: int, same: int
) -> dict[str, float]:
    """Peak MiB of a process that makes a map, and of two that run some of Captum's windows.

    Args:
        network: the network.
        x: its input.
        question: its windows.
        fastest: Captum's fastest batch size.
        same: the batch size of the map.
    """
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "network.pt")
        torch.save(network, file)
        threads = torch.get_num_threads()
        task = VolumeTask(file, x, 1, question.window, question.stride, "cpu", threads)
        for side, prefix, work in (
            ("krypton", "", ("seconds",)),
            ("captum", "captum_", ("seconds_per_window", fastest, 1)),
            ("captum", "captum_same_batch_", ("seconds_per_window", same, 1)),
        ):
            process = Process(side, task)
            found[f"{prefix}memory_before_mib"] = process.call("start_memory")
            process.call(*work)
            found[f"{prefix}memory_peak_mib"] = process.call("peak_memory")
            process.close()
    return found


def difference(network: nn.Module, x: Tensor, question: Question, heat: Any) -> float:
    """How far some windows' outcomes are from plain forward passes, beside the largest of them.

    Half of the windows are among those that change the outcome.
    """
    scores = heat.scores[0].reshape(-1)
    moved = (scores != heat.reference[0]).nonzero().flatten().tolist()
    chosen = {moved[number] for number in sampled_windows(len(moved), 5)}
    wanted, found = [], []
    for number in sorted(chosen.union(sampled_windows(len(scores), 5))):
        place = np.unravel_index(number, heat.scores.shape[1:])
        corner = [int(n) * stride for n, stride in zip(place, question.stride, strict=True)]
        covered = x.clone()
        inside = zip(corner, question.window, strict=True)
        covered[(..., *(slice(start, start + size) for start, size in inside))] = 0
        wanted.append(float(network(covered)[0, 1]))
        found.append(float(scores[number]))
    off = np.abs(np.subtract(found, wanted)).max()
    return float(off / np.abs(wanted).max())


def runs(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What is there, and what is missing."""
    for name in options.networks:
        file = f"{name}_threads-{options.threads}.json"
        arguments = name, options.rounds, options.sample, options.threads
        folder = options.json_folder
        yield kept(folder and Path(folder, file), partial(compare, *arguments))


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line a network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sample", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json-folder")
    for made in runs(parser.parse_args(arguments)):
        print(
            f"{made['network']:22} {made['windows']:5} windows in {made['groups']} groups, "
            f"{made['path']}: Captum {made['captum_seconds']:.2f} s, first map "
            f"{made['first_seconds']:.2f} s, later {made['seconds']:.2f} s "
            f"(predicted {made['predicted_seconds']:.2f}): {made['speedup']:.2f} times; "
            f"by operations {made['by_operations']:.1f}; "
            f"largest difference {made['largest_difference']:.1e}; "
            f"peak {made['memory_peak_mib']:.0f} MiB, "
            f"Captum's {made['captum_memory_peak_mib']:.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
