"""The scripts of examples/paper with small settings, and their parts."""

from __future__ import annotations

import json
import math
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scripts import EXAMPLES, run_example


def run_script(name: str, folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """Run a script of examples/paper; what it wrote and what it printed."""
    file, picture = folder / f"{name}.json", folder / f"{name}.png"
    done = run_example(
        f"paper/{name}.py",
        *("--quick", "--threads=1", f"--json={file}", f"--figure={picture}"),
        *arguments,
    )
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    result = json.loads(file.read_text())
    assert result["machine"]["versions"]["torch"] == version("torch")
    assert result["seconds"] > 0
    assert result["quick"] is True
    assert not any(key.startswith("_") for key in result)
    return result, done.stdout


@pytest.mark.slow
def test_theoretical_speedup(tmp_path: Path) -> None:
    result, printed = run_script(
        "theoretical_speedup", tmp_path, "--networks", "squeezenet1_1", "--patches", "16", "64"
    )
    small, large = result["rows"]
    assert 1 < large["centre"] < small["centre"]
    assert all(row["map"] >= row["centre"] for row in result["rows"])  # exact regions are smaller
    assert f"| squeezenet1_1 | 224 | {small['centre']:.2f} |" in printed


@pytest.mark.slow
def test_threshold(tmp_path: Path) -> None:
    result, printed = run_script(
        *("threshold", tmp_path, "--networks", "squeezenet1_1", "--side=128", "--window=32"),
        *("--stride=24", "--sample=2", "--thresholds", "1", "0.7", "0.4"),
    )
    exact, *cropped = result["quality"]
    assert exact["ssim"] == 1
    assert exact["error"] == 0
    assert exact["ssim"] > cropped[0]["ssim"] > cropped[1]["ssim"]
    assert 0 < cropped[0]["error_share"] < cropped[1]["error_share"] < 2
    for key in ("map", "centre"):
        saved = [row[key] for row in result["speed"]]
        assert saved == sorted(saved) and saved[0] < saved[-1]
    assert all(row["seconds"] > 0 < row["naive_seconds"] for row in result["speed"])
    assert "random weights" in printed


@pytest.mark.slow
def test_drill_down(tmp_path: Path) -> None:
    result, _ = run_script(
        *("drill_down", tmp_path, "--networks", "squeezenet1_1", "--side=128", "--window=32"),
        *("--stride=24", "--sample=2", "--fractions", "0.1", "0.4", "--steps", "2"),
    )
    assert [row["series"] for row in result["quality"]] == ["fraction", "fraction", "stride"]
    little, much, _ = result["quality"]
    assert little["target_speedup"] == pytest.approx(16 / (1 + 0.1 * 16))  # Eq. 37
    assert little["ssim"] < much["ssim"] < 1
    for row in result["speed"]:
        coarse = math.ceil(math.sqrt(row["windows"]) / row["step"]) + 1
        assert row["windows_evaluated"] <= coarse**2 + row["fraction"] * row["windows"]
        assert row["seconds"] > 0 < row["naive_seconds"]


@pytest.mark.slow
def test_tuning(tmp_path: Path) -> None:
    result, printed = run_script(
        *("tuning", tmp_path, "--count=2", "--held-out=1", "--window=32", "--stride=24"),
        *("--thresholds", "1", "0.8", "0.6", "0.4", "--target=0.95"),
    )
    assert len(result["ssim"]) == len(result["at_threshold"]) == 2
    assert len(result["held_out"]) == 1
    assert len(result["judged"]["images"]) == 3
    assert 0.4 <= result["threshold"] < 1
    assert [row[0] for row in result["ssim"]] == [1, 1]
    assert all(row[0] > row[2] > row[3] for row in result["ssim"])
    assert f"**{result['threshold']:g}**" in printed


@pytest.mark.slow
def test_end_to_end(tmp_path: Path) -> None:
    result, _ = run_script(
        *("end_to_end", tmp_path, "--networks", "squeezenet1_1", "--side=128"),
        *("--window=32", "--stride=24", "--sample=4", "--count=1"),
    )
    names = ["naive", "Captum", "plain PyTorch", "exact", *["approximate"] * 3]
    assert [row["side"] for row in result["rows"]] == names * 2
    assert all(row["seconds"] > 0 for row in result["rows"])
    assert {row["backend"] for row in result["rows"] if "backend" in row} == {"reference"}
    approximate = [row for row in result["rows"] if row["side"] == "approximate"]
    assert [row["settings_of"] for row in approximate] == ["OCT", "X-ray", "ImageNet"] * 2
    assert ["ssim" in row for row in approximate] == [False] * 3 + [True] * 3
    exact = {row["network"]: row for row in result["rows"] if row["side"] == "exact"}
    for row in approximate:
        assert row["theoretical"] > exact[row["network"]]["theoretical"]
        assert 0 < row.get("ssim", 0.5) < 1


@pytest.mark.slow
def test_patch_size(tmp_path: Path) -> None:
    result, printed = run_script(
        *("patch_size", tmp_path, "--networks", "squeezenet1_1", "--side=96"),
        *("--patches", "16", "32", "--sample=2"),
    )
    small, large = result["rows"]
    assert (small["windows"], large["windows"]) == (36, 25)
    assert small["map"] > large["map"] > 1
    assert small["centre"] > large["centre"] > 1
    assert all(row["seconds"] > 0 < row["naive_seconds"] for row in result["rows"])
    assert "random weights" in printed


@pytest.mark.slow
def test_visual_on_a_folder(tmp_path: Path) -> None:
    from skimage import data, io

    folder = tmp_path / "images" / "a class"
    folder.mkdir(parents=True)
    io.imsave(folder / "one.png", data.coffee())
    result, printed = run_script(
        *("visual", tmp_path, f"--images={folder.parent}", "--window=32", "--stride=16"),
    )
    assert result["judged"]["images"] == ["a class/one.png"]
    exact, cropped, drilled, both = result["rows"]
    assert (exact["ssim"], exact["windows"]) == (1, 1)
    assert cropped["windows"] == 1
    assert max(drilled["windows"], both["windows"]) <= 0.25 + 16 / 169  # Eq. 38: one in nine first
    assert max(row["ssim"] for row in (cropped, drilled, both)) < 1
    assert "| a class/one.png |" in printed


# Their parts


def test_equations(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [str(EXAMPLES / folder) for folder in ("paper", "benchmarks")]
    monkeypatch.setattr(sys, "path", [*folders, *sys.path])
    from _theory import Span, theoretical_speedup

    # AlexNet by hand: multiply-accumulates a cell, sides of output and patch (Eq. 20), a patch of
    # 16 pixels; poolings lie before the second and the third convolution.
    layers = [
        (64 * 3 * 11 * 11, 55, 7),
        (192 * 64 * 5 * 5, 27, 9),
        (384 * 192 * 3 * 3, 13, 8),
        (256 * 384 * 3 * 3, 13, 10),
        (256 * 256 * 3 * 3, 13, 12),
    ]
    full = sum(macs * side**2 for macs, side, _ in layers)
    assert theoretical_speedup("alexnet", 224, 16) == pytest.approx(
        full / sum(macs * patch**2 for macs, _, patch in layers)
    )
    half = {55: 28, 27: 14, 13: 6}  # Eq. 31-32
    cropped = sum(macs * min(patch, half[side]) ** 2 for macs, side, patch in layers)
    # The second pooling's patch is 6 of 13 as without a threshold.
    assert theoretical_speedup("alexnet", 224, 16, 0.5) == pytest.approx(full / cropped)
    # Figure 6 (b): centred crops stay about the changed cell.
    span = Span(3, 1)
    for _ in range(4):
        span = span.filtered(3, 1, 1, 7, 5 / 7)
    assert span == Span(1, 5)


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18"])
def test_networks_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import torchvision

    folders = [str(EXAMPLES / folder) for folder in ("paper", "benchmarks")]
    monkeypatch.setattr(sys, "path", [*folders, *sys.path])
    from _paper import judged

    tuned = torchvision.models.get_model(name, num_classes=4).eval()
    torch.save(tuned.state_dict(), tmp_path / "weights.pt")
    settings = SimpleNamespace(network=name, weights=str(tmp_path / "weights.pt"), images=None)
    found = judged(settings, 1)
    ((_, image),) = found.images.items()
    with torch.no_grad():
        assert torch.equal(found.probabilities(image), tuned(image).softmax(1))
    settings.weights = None
    with pytest.raises(SystemExit, match="needs --weights"):
        judged(settings, 1)
