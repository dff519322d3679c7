"""The words of the command line."""

from __future__ import annotations

import argparse
import ast
import re
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

__all__ = ["Options", "Pair", "build", "options_of"]

Pair = tuple[int, int]

_TOP = """\
exit codes:
  0 fine, 1 an error, 2 wrong usage, 3 some images failed, 130 interrupted
"""

_EXAMPLES = """\
examples:
  python -m captum_krypton explain photo.jpg --model timm/resnet50 \\
      --weights model.safetensors --output photo.png
  python -m captum_krypton explain scans/ --model my_package:load_model \\
      --window 16 --stride 8 --output maps/ --html

A folder of maps can be gone on with: killed at any point, the same command does
what is left. maps/ has for every image its map (.npz, which
captum_krypton.OcclusionMap.load reads) and its picture (.png), and a summary.

exit codes:
  0    fine
  1    an error: the message says what to do
  2    wrong usage
  3    some images failed (the summary says why), the others were
  130  interrupted
"""


@dataclass(frozen=True)
class Options:
    """What `explain` is asked for; the words of `build` say what each is."""

    images: tuple[str, ...]
    model: str
    weights: str | None
    model_arguments: dict[str, Any]
    trust_pickle: bool
    size: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    channels: int | None
    target: str | None
    labels: str | None
    outcome: str
    window: Pair | None
    stride: Pair | None
    baseline: str
    quality: float | None
    budget: float | None
    device: str
    threads: int | None
    batch: int | None
    output: str | None
    html: bool
    summary: str
    overwrite: bool
    plan: bool
    progress: bool
    traceback: bool

    @property
    def place(self) -> Path | None:
        """Where the output goes to."""
        return None if self.output is None else Path(self.output)


def options_of(asked: argparse.Namespace) -> Options:
    """The options that were parsed."""
    values = {field.name: getattr(asked, field.name) for field in fields(Options)}
    values["images"] = tuple(asked.images)
    values["model_arguments"] = dict(asked.model_arguments)
    if asked.progress is None:
        values["progress"] = sys.stderr.isatty()
    return Options(**values)


def build() -> argparse.ArgumentParser:
    """The parser of `python -m captum_krypton`."""
    parser = argparse.ArgumentParser(
        prog="python -m captum_krypton",
        description="Occlusion maps of images: which parts a classifier's outcome depends on.",
        usage="python -m captum_krypton [-h] COMMAND ...",
        epilog=_TOP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    explain = commands.add_parser(
        "explain",
        usage="python -m captum_krypton explain IMAGE [IMAGE ...] --model MODEL ...",
        help="map one image, or all of a folder",
        description="Map images: the outcome of a classifier with a window covered, for\n"
        "every place of the window.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_model(explain)
    _add_question(explain)
    _add_effort(explain)
    _add_output(explain)
    commands.add_parser(
        "info",
        help="say what runs here: versions, kernels, threads",
        description="Say what runs here: versions, kernels (compiled where they are not yet), "
        "threads.",
    )
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="an image file, or a folder of them"
    )
    group = parser.add_argument_group("the model")
    group.add_argument(
        "--model",
        required=True,
        help="torchvision/NAME, timm/NAME, hf/NAME_OR_FOLDER (transformers), module:function (it "
        "returns a torch.nn.Module, or one and a transform of a Pillow image), or a file: .pt, .ts "
        "or .pth of TorchScript, .pt2 of torch.export",
    )
    group.add_argument(
        "--weights",
        metavar="FILE",
        help="a .safetensors file, or a state_dict by torch.save; random; an entry of "
        "torchvision's weights, such as DEFAULT (default: the library's pretrained ones, which it "
        "may have to download)",
    )
    group.add_argument(
        "--model-arg",
        dest="model_arguments",
        action="append",
        default=[],
        type=_argument,
        metavar="NAME=VALUE",
        help="an argument for what makes the model, such as num_classes=10; may be repeated",
    )
    group.add_argument(
        "--trust-pickle",
        action="store_true",
        help="load files that can run code of whoever made them: pickled objects, TorchScript, "
        "torch.export. Without it such files are refused; safetensors and plain state_dicts never "
        "need it",
    )
    group = parser.add_argument_group("the image, as the model takes it (default: its own)")
    group.add_argument("--size", type=_positive, metavar="N", help="side of the model's input")
    group.add_argument(
        "--mean", type=_numbers, metavar="M", help="taken from each channel, in 0..1: M or M,M,M"
    )
    group.add_argument(
        "--std", type=_numbers, metavar="S", help="what each channel is divided by: S or S,S,S"
    )
    group.add_argument("--channels", type=int, choices=(1, 3), help="1: shades of grey")


def _add_question(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the question")
    group.add_argument(
        "--target",
        metavar="CLASS",
        help="a class's number, or its name or a part of it (default: the class predicted for each "
        "image)",
    )
    group.add_argument(
        "--labels",
        metavar="FILE",
        help="the classes' names: a text file, one a line, or JSON; or imagenet (default: those "
        "that come with the model)",
    )
    group.add_argument(
        "--outcome",
        choices=("probability", "raw", "sigmoid"),
        default="probability",
        help="what is mapped: the class's probability (by softmax, where the model's outcomes are "
        "none yet), what the model returns, or its sigmoid (default: %(default)s)",
    )
    group.add_argument(
        "--window",
        type=_pair,
        metavar="N|HxW",
        help="size of the window in pixels of the model's input (default: a fourteenth of the "
        "shorter side)",
    )
    group.add_argument(
        "--stride",
        type=_pair,
        metavar="N|HxW",
        help="pixels between windows (default: half of the window)",
    )
    group.add_argument(
        "--baseline",
        default="0",
        type=_baseline,
        help="what covers a window: a number, in units of the normalised input (0: the mean "
        "colour); mean: that of the image; mean_patch: that of the window; noise; blur or "
        "blur:SIGMA (default: SIGMA is half of the window) (default: %(default)s)",
    )


def _add_effort(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how (default: an exact map)")
    group.add_argument(
        "--quality",
        type=float,
        metavar="Q",
        help="run as few windows as give the map this structural similarity (SSIM) to the exact "
        "one, by its own estimate; in (0, 1]",
    )
    group.add_argument(
        "--budget", type=float, metavar="SECONDS", help="the best map of each image within so long"
    )
    group.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    group.add_argument("--threads", type=_positive, metavar="N", help="CPU threads")
    group.add_argument("--batch", type=_positive, metavar="N", help="windows run together at most")


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output",
        metavar="PATH",
        help="a .png (image, map and overlay) or .npz file (the map) for one image, else a folder "
        "(default: only print numbers)",
    )
    group.add_argument(
        "--html", action="store_true", help="write one page of all maps beside the output, too"
    )
    group.add_argument(
        "--summary",
        choices=("csv", "parquet"),
        default="csv",
        help="of a folder: one row an image (default: %(default)s)",
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="remove the maps that a run with other settings left in the folder",
    )
    group.add_argument(
        "--plan",
        action="store_true",
        help="print how the first image's map would be made and how long it would take; make none",
    )
    group.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="show progress on stderr (default: on a terminal)",
    )
    group.add_argument(
        "--traceback", action="store_true", help="show where in the code an error comes from"
    )


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number


def _pair(text: str) -> Pair:
    found = re.fullmatch(r"(\d+)(?:[xX](\d+))?", text)
    pair = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if min(pair) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither N nor HEIGHTxWIDTH, above 0")
    return pair


def _numbers(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3):
        raise argparse.ArgumentTypeError(f"{text!r} is neither one number nor three")
    return numbers


def _argument(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _baseline(text: str) -> str:
    if re.fullmatch(r"mean|mean_patch|noise|blur(:\d+(\.\d+)?)?", text):
        return text
    try:
        return repr(float(text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number nor mean, mean_patch, noise, blur or blur:SIGMA"
        ) from None
