"""What a user types, from the help to the exit code."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import timm
import torch
from captum.attr import Occlusion
from command_line import MODULE, SIDE, WINDOWS, start, tiny_network, usual_input, write_images
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from captum_krypton import OcclusionMap
from captum_krypton._command import main

Run = Callable[..., int]
MODEL = ("--model", "a_users_module:load")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """The command line in this process, in a folder with `photo.png` and a module of the user's."""
    module = ModuleType("a_users_module")
    module.load = tiny_network  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path, ["photo.png"])

    def run(*words: str) -> int:
        try:
            return main(words)
        except SystemExit as ended:
            assert isinstance(ended.code, int)
            return ended.code

    return run


def by_captum(model: nn.Module, x: torch.Tensor, target: int, baseline: Any = 0) -> torch.Tensor:
    made: torch.Tensor = Occlusion(model).attribute(
        x, (3, 8, 8), strides=(3, 4, 4), target=target, baselines=baseline
    )
    return made


def probabilities() -> nn.Module:
    return nn.Sequential(tiny_network(), nn.Softmax(1))


# Help.


def test_the_help_fits_one_screen(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run("--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert run() == 0
    assert capsys.readouterr().out.splitlines() == lines


def test_the_help_of_explain(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run("explain", "--help") == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for code in ("0    fine", "1    an error", "2    wrong", "3    some images", "130  inter"):
        assert code in text


def test_info(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info") == 0
    text = capsys.readouterr().out
    assert torch.__version__.partition("+")[0] in text
    assert f"threads           {torch.get_num_threads()}" in text
    assert "kernels (cpu)" in text


# One image.


@pytest.mark.parametrize("outcome", ["probability", "raw", "sigmoid"])
def test_a_map_is_captums(outcome: str, run: Run, tmp_path: Path) -> None:
    words = ("explain", "photo.png", *MODEL, *WINDOWS, "--outcome", outcome, "--target", "3")
    assert run(*words, "--output", "map.npz") == 0
    heat = OcclusionMap.load(tmp_path / "map.npz")
    last = {"probability": nn.Softmax(1), "raw": nn.Identity(), "sigmoid": nn.Sigmoid()}[outcome]
    expected = by_captum(
        nn.Sequential(tiny_network(), last), usual_input(tmp_path / "photo.png"), 3
    )
    assert heat.target == 3
    torch.testing.assert_close(heat.attribution(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("baseline", ["-1.5", "mean", "blur:3", "blur"])
def test_what_covers_a_window(baseline: str, run: Run, tmp_path: Path) -> None:
    from skimage.filters import gaussian

    x = usual_input(tmp_path / "photo.png")
    if baseline == "mean":
        cover: Any = x.mean((2, 3), keepdim=True).expand(x.shape)
    elif baseline.startswith("blur"):
        sigma = 3 if baseline == "blur:3" else 4  # half of the window
        blurred = gaussian(x[0].double().numpy(), sigma, mode="nearest", channel_axis=0)
        cover = torch.from_numpy(blurred)[None].float()
    else:
        cover = float(baseline)
    words = ("explain", "photo.png", *MODEL, *WINDOWS, "--target", "0", "--baseline", baseline)
    assert run(*words, "--output", "map.npz") == 0
    heat = OcclusionMap.load(tmp_path / "map.npz")
    expected = by_captum(probabilities(), x, 0, cover)
    torch.testing.assert_close(heat.attribution(), expected, rtol=1e-4, atol=1e-6)


def test_the_predicted_class_and_where_its_drop_is_largest(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\nhen\nox\nyak\n")
    assert run("explain", "photo.png", *MODEL, *WINDOWS, "--labels", "names.txt") == 0
    text = capsys.readouterr().out
    x, model = usual_input(tmp_path / "photo.png"), probabilities()
    with torch.no_grad():
        untouched = model(x)[0]
        target = int(untouched.argmax())
        dropped = {}
        for top in range(0, SIDE - 7, 4):
            for left in range(0, SIDE - 7, 4):
                covered = x.clone()
                covered[:, :, top : top + 8, left : left + 8] = 0
                dropped[top, left] = float(untouched[target] - model(covered)[0, target])
    top, left = max(dropped, key=lambda place: dropped[place])
    name = ("cat", "dog", "hen", "ox", "yak")[target]
    assert f"{target} ({name})" in text
    assert f"rows {top} to {top + 8}, columns {left} to {left + 8}" in text
    assert f"{max(dropped.values()):.3g}"[:4] in text
    assert f"{float(untouched[target]):.4g}" in text


def test_a_picture_and_a_page(run: Run, tmp_path: Path) -> None:
    words = ("explain", "photo.png", *MODEL, *WINDOWS, "--output", "drawn.png", "--html")
    assert run(*words) == 0
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert min(drawn.size) > 300
        assert np.asarray(drawn.convert("RGB")).std() > 10
    assert "photo.png" in (tmp_path / "drawn.html").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"photo.png", "drawn.png", "drawn.html"}


def test_targets_by_name(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "names.json").write_text(json.dumps(["house cat", "wild cat", "hen", "ox", "yak"]))
    words = ("explain", "photo.png", *MODEL, *WINDOWS, "--labels", "names.json", "--target")
    assert run(*words, "hen", "--output", "map.npz") == 0
    assert OcclusionMap.load(tmp_path / "map.npz").target == 2
    assert run(*words, "cat") == 1
    assert "2 classes match: 0 house cat, 1 wild cat" in capsys.readouterr().err
    (tmp_path / "names.json").write_text(json.dumps(["cat", "hen"]))
    assert run(*words, "hen") == 1
    assert "2 names, and the model has 5 classes" in capsys.readouterr().err


def test_the_plan_runs_nothing(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("explain", "photo.png", *MODEL, *WINDOWS, "--plan", "--output", "maps") == 0
    text = capsys.readouterr().out
    assert "convolution" in text
    assert "windows 49 (1 x 7 x 7)" in text
    assert not (tmp_path / "maps").exists()


def test_quality_and_budget(run: Run, tmp_path: Path) -> None:
    dense = ("--size", "64", "--window", "8", "--stride", "2", "--target", "1")
    for name, option in (("q.npz", ("--quality", "0.6")), ("b.npz", ("--budget", "0.001"))):
        assert run("explain", "photo.png", *MODEL, *dense, *option, "--output", name) == 0
        report = OcclusionMap.load(tmp_path / name).report
        assert report.windows == 29 * 29
        assert report.windows_evaluated < report.windows
        assert report.estimated_ssim is not None


def test_windows_that_are_not_square(run: Run, tmp_path: Path) -> None:
    shape = ("--size", "32", "--window", "8x16", "--stride", "4x8")
    assert run("explain", "photo.png", *MODEL, *shape, "--output", "map.npz") == 0
    assert OcclusionMap.load(tmp_path / "map.npz").scores.shape == (1, 7, 3)
    assert run("explain", "photo.png", *MODEL, "--size", "56", "--output", "map.npz") == 0
    grid: Any = OcclusionMap.load(tmp_path / "map.npz").grid
    assert (grid.window, grid.stride) == ((3, 4, 4), (3, 2, 2))  # a fourteenth, and half of it


# What goes wrong.


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["explain", "photo.png"], 2, "--model"),
        (["explain", "photo.png", *MODEL, "--window", "0"], 2, "HEIGHTxWIDTH"),
        (["explain", "photo.png", *MODEL, "--baseline", "black"], 2, "blur:SIGMA"),
        (["explain", "photo.png", *MODEL, "--mean", "1,2"], 2, "neither one number nor three"),
        (["explain", "photo.png", *MODEL, "--html"], 2, "--html needs --output"),
        (["explain", "photo.png", *MODEL, "--output", "photo.png"], 2, "the image itself"),
        (["explain", "photo.png", *MODEL, "--output", "map.jpg"], 2, ".png or .npz"),
        (["explain", ".", *MODEL, "--output", "map.png"], 2, "for several give a folder"),
        (["explain", "absent.png", *MODEL], 1, "no such file"),
        (["explain", "empty", *MODEL], 1, "no images"),
        (["explain", "photo.png", "--model", "absent:load"], 1, "No module named 'absent'"),
        (["explain", "photo.png", *MODEL, "--target", "5"], 1, "classes 0 to 4"),
        (["explain", "photo.png", *MODEL, "--size", "32", "--window", "32"], 1, "smaller window"),
        (["explain", "photo.png", *MODEL, "--window", "8", "--stride", "9"], 1, "never covered"),
        (["explain", "photo.png", *MODEL, "--channels", "1"], 1, "fails on an input"),
        (["explain", "photo.png", *MODEL, "--device", "tpu9"], 1, "expected cpu, cuda"),
        (["explain", "photo.png", *MODEL, "--quality", "2"], 1, "quality must be"),
        (["explain", "bad.png", *MODEL, *WINDOWS], 3, "bad.png: not a readable picture"),
    ],
)
def test_exit_codes(
    words: list[str],
    code: int,
    message: str,
    run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_bytes(b"nonsense")
    assert run(*words) == code
    assert message in capsys.readouterr().err


def test_an_interrupt(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load() -> nn.Module:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["a_users_module"], "load", load)
    assert run("explain", "photo.png", *MODEL) == 130
    assert "interrupted" in capsys.readouterr().err


def test_random_weights_are_said_to_be(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    model = ("--model", "torchvision/squeezenet1_1", "--weights", "random")
    size = ("--size", "64", "--window", "32", "--stride", "32")
    assert run("explain", "photo.png", *model, *size) == 0
    assert "the weights are random" in capsys.readouterr().err


def test_without_a_terminal_there_is_no_progress(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("explain", ".", *MODEL, *WINDOWS, "--output", "maps") == 0
    assert "image/s" not in capsys.readouterr().err
    again = ("explain", ".", *MODEL, *WINDOWS, "--output", "others", "--progress")
    assert run(*again) == 0
    assert "1/1" in capsys.readouterr().err


# As in the README, in processes of their own.


@pytest.mark.slow
def test_one_photograph_as_in_the_readme(tmp_path: Path) -> None:
    write_images(tmp_path, ["photo.jpg"])
    torch.manual_seed(4)
    network = timm.create_model("resnet18").eval()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    words = ["--model", "timm/resnet18", "--weights", "model.safetensors", "--size", "64"]
    words += ["--window", "16", "--stride", "16", "--target", "tiger cat"]
    drawn = start(["explain", "photo.jpg", *words, "--output", "photo.png"], tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert "282 (tiger cat)" in drawn.stdout
    with Image.open(tmp_path / "photo.png") as picture:
        assert picture.format == "PNG"
    saved = start(["explain", "photo.jpg", *words, "--output", "photo.npz"], tmp_path)
    assert saved.returncode == 0, saved.stderr
    config = timm.data.resolve_model_data_config(network)
    transform = timm.data.create_transform(**{**config, "input_size": (3, 64, 64)})
    with Image.open(tmp_path / "photo.jpg") as photo:
        x = transform(photo)[None]
    expected = Occlusion(nn.Sequential(network, nn.Softmax(1))).attribute(
        x, (3, 16, 16), strides=(3, 16, 16), target=282
    )
    found = OcclusionMap.load(tmp_path / "photo.npz").attribution()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_a_folder_as_in_the_readme(tmp_path: Path) -> None:
    write_images(tmp_path / "scans", ["a.png", "b/c.jpg"])
    (tmp_path / "my_package.py").write_text(MODULE)
    words = ["explain", "scans/", "--model", "my_package:load_model", "--size", "32"]
    words += ["--window", "8", "--stride", "4", "--output", "maps/", "--html"]
    made = start(words, tmp_path)
    assert made.returncode == 0, made.stderr
    assert "image/s" not in made.stderr
    with open(tmp_path / "maps/summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["a.png", "b/c.jpg"]
    for row in rows:
        heat = OcclusionMap.load(tmp_path / "maps" / f"{row['image']}.npz")
        x = usual_input(tmp_path / "scans" / row["image"])
        expected = by_captum(probabilities(), x, int(row["target"]))
        torch.testing.assert_close(heat.attribution(), expected, rtol=1e-4, atol=1e-6)
    page = (tmp_path / "maps/index.html").read_text()
    assert "a.png" in page
    assert "b/c.jpg" in page
