"""The examples and the benchmarks with small settings, and their parts."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import skimage
import torch
from captum.attr import Occlusion
from scripts import BENCHMARKS, run_example
from torch import Tensor, nn


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True])
def test_quickstart(tmp_path: Path, own: bool) -> None:
    picture, photograph = tmp_path / "quickstart.png", tmp_path / "photograph.png"
    options = ["--window=56", "--stride=56", "--threads=1", f"--output={picture}"]
    if own:
        skimage.io.imsave(photograph, skimage.data.coffee())
        options.append(f"--image={photograph}")
    done = run_example("quickstart.py", *options)
    assert done.returncode == 0, done.stderr
    rows = dict(re.findall(r"^(.+?)\s{2,}(\S.*)$", done.stdout, flags=re.MULTILINE))
    assert ("class 967" in done.stdout) is own  # an espresso, not a cat
    assert rows["windows"] == "16"
    assert rows["path"] == "incremental"
    assert float(rows["largest difference"]) <= 1e-4 < float(rows["largest attribution"])
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_compare_with_captum(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    done = run_example(
        "benchmarks/compare_with_captum.py",
        *("--model=squeezenet1_1", "--size=64", "--windows-total=16", "--sample=16"),
        *("--rounds=1", "--threads=1", "--batch=8", "--no-compile", f"--json={file}"),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert result["windows"] == 16
    assert set(result["sides"]) == {"captum", "captum_kept", "loop", "krypton"}
    assert all(side["seconds"] > 0 for side in result["sides"].values())
    assert result["equality"]["krypton_error"] < 1e-4 * result["equality"]["largest_change"]
    assert result["machine"]["versions"]["torch"] == version("torch")
    assert "speed-up over Captum" in done.stdout


@pytest.mark.slow
def test_gpu_check_rehearses_without_a_card(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    small = ("--device=cpu", "--only", "squeezenet1_1", "--size=64", "--stride=16", "--sample=4")
    asked = (*small, "--rounds=1", f"--json={file}", "--parts")
    parts = ["tests", "bandwidth", "first:squeezenet1_1", "few", "profile"]
    done = run_example("benchmarks/gpu_check.py", *asked, *parts)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(file.read_text())
    assert set(result["parts"]) == {
        "tests",
        "bandwidth",
        *(f"{kind}:squeezenet1_1" for kind in ("first", "few", "profile")),
    }
    assert all(row["captum"] > 0 < row["krypton"] for row in result["few_windows"])
    assert {row["dtype"] for row in result["bandwidth"]} >= {"float16", "float64"}
    assert all(row["share"] > 0 for row in result["bandwidth"])
    (first,) = result["first_maps"]
    assert first["windows"] == 16 and first["captum"] > 0 < first["krypton"]
    assert result["profiles"][0]["kernels"]
    again = run_example("benchmarks/gpu_check.py", *asked, "few", "tests")
    assert again.returncode == 0 and again.stdout.count("in the file") == 2
    assert json.loads(file.read_text())["few_windows"] == result["few_windows"]


@pytest.mark.slow
def test_gpu_check_says_what_failed_and_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    asked = ("--device=cpu", "--only", "no_such_network", f"--json={file}", "--parts")
    done = run_example("benchmarks/gpu_check.py", *asked, "few", "tests")
    assert done.returncode == 1
    result = json.loads(file.read_text())
    assert "failed" in result["parts"]["few:no_such_network"]
    assert result["tests"] == {"passed": True, "summary": "rehearsal"}
    refused = run_example("benchmarks/gpu_check.py", *asked, "fewer")
    assert refused.returncode == 1 and "there are tests, sanitizer" in refused.stderr


@pytest.mark.slow
def test_network_table(tmp_path: Path) -> None:
    file = tmp_path / "networks.json"
    done = run_example(
        "benchmarks/network_table.py",
        *("--only", "squeezenet1_1", "no_such_network"),
        *("--size=64", "--timed-size=64", "--sample=8", "--threads=1", "--markdown"),
        f"--json={file}",
    )
    assert done.returncode == 1
    good, bad = json.loads(file.read_text())["networks"]
    assert good["path"] == "incremental"
    assert good["timed"]["captum_seconds"] > 0 < good["timed"]["seconds"]
    assert "no_such_network" in bad["error"]
    assert "1 of 2 networks" in done.stdout
    assert re.search(r"\| squeezenet1_1 .* equal ", done.stdout)
    assert re.search(r"\| no_such_network .* failed: ", done.stdout)

    settings = ("--size=64", "--timed-size=64", "--sample=8", "--threads=1", f"--json={file}")
    done = run_example("benchmarks/network_table.py", "--update", "--only", "alexnet", *settings)
    assert done.returncode == 0, done.stderr
    first, second, third = json.loads(file.read_text())["networks"]
    assert (first["name"], second, third) == ("alexnet", good, bad)


@pytest.mark.slow
def test_benchmark_goes_on_where_it_stopped(tmp_path: Path) -> None:
    arguments = (
        *("--networks", "squeezenet1_1", "--sizes", "64", "--windows", "--windows-total", "16"),
        *("--threads", "1", "--sample=8", "--rounds=1", "--no-compile"),
        f"--json-folder={tmp_path}",
    )
    first = run_example("benchmarks/benchmark.py", *arguments)
    assert first.returncode == 0, first.stderr
    (file,) = tmp_path.iterdir()
    assert file.name == "squeezenet1_1_64_total-16_threads-1.json"
    before = file.stat().st_mtime_ns
    second = run_example("benchmarks/benchmark.py", *arguments)
    assert second.returncode == 0, second.stderr
    assert file.stat().st_mtime_ns == before
    assert re.search(r"\| squeezenet1_1 \| .* \| 64 \| 16/16 \| 16 ", second.stdout)


@pytest.mark.slow
def test_profile(tmp_path: Path) -> None:
    done = run_example(
        "benchmarks/benchmark.py",
        "--profile=squeezenet1_1",
        "--sizes=64",
        "--windows=16/16",
        "--threads=1",
        f"--json-folder={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].endswith("ms predicted  ms measured")
    assert "| squeezenet1_1 | 16/16 |" in done.stdout
    result = json.loads((tmp_path / "squeezenet1_1.json").read_text())
    assert result["peak"] > 0
    assert sum(row["measured"] for row in result["operators"]) <= result["seconds"] * 2


@pytest.mark.slow
def test_accuracy(tmp_path: Path) -> None:
    done = run_example(
        "benchmarks/benchmark.py",
        "--accuracy=squeezenet1_1",
        "--sizes=64",
        "--windows=16/16",
        "--sample=4",
        "--threads=1",
        f"--json-folder={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    assert "| squeezenet1_1 | " in done.stdout
    result = json.loads((tmp_path / "squeezenet1_1.json").read_text())
    for error in result["rms"].values():
        assert 0 < error < 1e-5 * result["largest_output"]


@pytest.mark.slow
def test_measure_rates(tmp_path: Path) -> None:
    """As an entry of the table of known processors."""
    arguments = ["--minutes", "0", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "measure_rates.py"), *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(r'Processor\(".*", "\w+", 1\): Rates\(', done.stdout)
    assert len(re.findall(r"^        (\w+)=[\d.e-]+,$", done.stdout, re.MULTILINE)) == 11


@pytest.mark.slow
def test_cost_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, benchmarks: None) -> None:
    import cost_curves

    def quick(model: str, side: int, window: int, stride: int, rounds: int) -> dict[str, Any]:
        return whole(model, 64, 16, 16, rounds)

    whole = cost_curves.point
    monkeypatch.setattr(cost_curves, "point", quick)
    file, picture = tmp_path / "curves.json", tmp_path / "curves.png"
    cost_curves.main(
        ["--model=squeezenet1_1", "--rounds=1", f"--json={file}", f"--output={picture}"]
    )
    curves = json.loads(file.read_text())["curves"]
    assert set(curves) == {"windows", "image side", "window side"}
    assert all(p["seconds"] > 0 < p["captum_seconds"] for points in curves.values() for p in points)
    assert picture.read_bytes().startswith(b"\x89PNG")


def drawn_by(monkeypatch: pytest.MonkeyPatch, script: Any) -> list[Any]:
    """Gets what the script gives its `draw`, which draws all the same."""
    drawn: list[Any] = []
    draw = script.draw
    monkeypatch.setattr(script, "draw", lambda *given: (drawn.extend(given), draw(*given)))
    return drawn


@pytest.mark.slow
def test_regions_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, benchmarks: None, capsys: Any
) -> None:
    import regions_figure

    drawn, picture = drawn_by(monkeypatch, regions_figure), tmp_path / "regions.png"
    regions_figure.main(["--model=squeezenet1_1", "--size=96", f"--output={picture}"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    _, _, plans, changed, position, _ = drawn
    plan = plans[1.0]
    assert len(changed) > 2
    for value, change in changed.items():  # what a window changes lies in its patch
        (top, height), (left, width) = regions_figure.patch_of(plan, value, position)
        assert float(change.max()) > 0
        change[top : top + height, left : left + width] = 0
        assert float(change.max()) < 1e-5
    assert f"side {len(change)}: patch" in capsys.readouterr().out


@pytest.mark.slow
def test_superpixels_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, benchmarks: None, capsys: Any
) -> None:
    import superpixels_figure

    drawn, picture = drawn_by(monkeypatch, superpixels_figure), tmp_path / "superpixels.png"
    superpixels_figure.main(["--size=64", "--segments", "8", "20", f"--output={picture}"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    photograph, maps, _ = drawn
    x = superpixels_figure.to_input(photograph)
    network = nn.Sequential(superpixels_figure.efficientnet_lite(), nn.Softmax(dim=1)).eval()
    (_, (mask, heat), _) = maps.values()  # the one that is covered by grey
    for place, number in enumerate(mask.unique()):
        with torch.no_grad():
            covered = network(x.where(mask != number, 0.0))[0, int(heat.target)]
        torch.testing.assert_close(heat.scores[0, place], covered, rtol=1e-3, atol=1e-5)
    assert "drops most without segments" in capsys.readouterr().out


@pytest.mark.slow
def test_prediction_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, benchmarks: None
) -> None:
    import prediction_difference

    drawn: list[Any] = []
    whole, picture = prediction_difference.draw, tmp_path / "difference.png"
    monkeypatch.setattr(
        prediction_difference, "draw", lambda *given: (drawn.extend(given), whole(*given))
    )
    prediction_difference.main(
        ["--size=64", "--window=32", "--stride=16", "--samples=4", f"--output={picture}"]
    )
    assert picture.read_bytes().startswith(b"\x89PNG")
    _, heat, evidence, doubtful, curve, _ = drawn
    before, after = (value[0].double() for value in (heat.reference, heat.scores))
    plain = torch.log2(before / (1 - before)) - torch.log2(after / (1 - after))
    torch.testing.assert_close(evidence, plain, rtol=0.05, atol=0.01)  # the correction is small
    error = heat.spread[0].double() / math.sqrt(3)
    assert bool(((before - after).abs() < 2 * error).eq(doubtful).all())
    assert [n for n, *_ in curve] == [1, 2]


def test_two_means_are_apart_by_what_the_standard_error_says(benchmarks: None) -> None:
    import prediction_difference

    generator = torch.Generator().manual_seed(0)
    samples = 0.5 * torch.randn(40, 500, generator=generator)
    for n, measured, expected in prediction_difference.apart(samples, generator):
        assert expected == pytest.approx(0.5 * math.sqrt(2 / n), rel=0.05)
        assert measured == pytest.approx(expected, rel=0.05)


@pytest.mark.slow
def test_medical(tmp_path: Path) -> None:
    picture = tmp_path / "medical.png"
    done = run_example(
        *("medical.py", "--size=96", "--stride=6", "--steps=40", f"--output={picture}")
    )
    assert done.returncode == 0, done.stderr
    row, column = re.findall(r"disc is at row (\d+), column (\d+)", done.stdout)[0]
    found = re.findall(r"covered by the mean: .* row (\d+), column (\d+)", done.stdout)[0]
    assert math.dist((int(row), int(column)), tuple(map(int, found))) < 24
    assert "of 169 windows" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_approximate() -> None:
    done = run_example("approximate.py", "--window=32", "--stride=14")
    assert done.returncode == 0, done.stderr
    _, *lines = done.stdout.splitlines()
    rows = [re.split(r"\s{2,}", line) for line in lines]
    similar = {name: float(ssim) for name, _, ssim, *_ in rows}
    windows = {name: share for name, share, *_ in rows}
    assert similar["exact"] == 1
    assert windows["exact"] == windows["threshold 0.6"] == "100%"
    assert all(0.5 < found <= 1 for found in similar.values())
    assert similar["threshold 0.6"] < 1 > similar["drill-down"]


@pytest.mark.slow
def test_approximate_quality(tmp_path: Path, benchmarks: None) -> None:
    import approximate_quality

    file = tmp_path / "approximate.json"
    approximate_quality.main(["--photographs=1", "--window=32", "--stride=14", f"--json={file}"])
    result = json.loads(file.read_text())
    assert [row["way"] for row in result["rows"]] == list(approximate_quality.WAYS)
    for row in result["rows"]:
        assert 0 < row["ssim"] < 1 or row["windows"] == 1
        assert 0 < row["windows"] <= 1
        assert row["seconds"] > 0 < row["exact_seconds"]
        assert row["spearman"] > 0.5
        assert (row["estimated"] is not None) == row["way"].startswith("quality")
    assert result["captum"]["seconds"] > 0


@pytest.mark.slow
def test_approximate_speed(tmp_path: Path, benchmarks: None) -> None:
    import approximate_speed

    file = tmp_path / "speed.json"
    approximate_speed.main(
        ["--networks=resnet18", "--size=96", "--window=16", "--stride=4", f"--json={file}"]
    )
    (network,) = json.loads(file.read_text())["networks"]
    assert network["captum"]["seconds"] > 0
    windows = {row["way"]: row["windows"] for row in network["rows"]}
    assert windows["exact"] == windows["threshold 0.6"] == 1
    run = [share for way, share in windows.items() if way.startswith("quality")]
    assert run == sorted(run) and 0 < run[0] < run[-1] < 1
    assert all(row["seconds"] > 0 for row in network["rows"])


def test_estimates(tmp_path: Path, benchmarks: None) -> None:
    import estimates
    from _tables.approximate import estimate_table

    rows = [
        {"way": "quality 0.9", "ssim": 0.9 + number / 100, "estimated": 0.92}
        for number in range(-1, 4)
    ]
    rows.append({"way": "threshold 0.6", "ssim": 0.1, "estimated": None})
    table = estimate_table([{"network": "one", "stride": 4, "rows": rows}]).splitlines()
    assert table[2] == "| one, stride 4 | 5 | 4 of 5 | -0.010 | -0.028 | -0.030 |"
    assert table[-1].startswith("| all | 5 |")
    picture = tmp_path / "estimates.png"
    estimates.main([f"--figure={picture}"])
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_gains(tmp_path: Path, benchmarks: None, capsys: pytest.CaptureFixture[str]) -> None:
    import gains

    picture = tmp_path / "gains.png"
    gains.main([f"--output={picture}"])
    measured = json.loads(
        (BENCHMARKS.parents[1] / "docs/data/benchmark/vgg16_448_16-8_threads-2.json").read_text()
    )
    sides = measured["sides"]
    expected = sides["captum"]["seconds"] / sides["krypton"]["seconds"]
    *_, last = capsys.readouterr().out.splitlines()  # the largest gain
    assert last.split()[0] == "vgg16"
    assert float(last.split()[2]) == pytest.approx(expected, abs=0.06)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_gallery_pairs_blocks_with_pictures(benchmarks: None) -> None:
    import gallery

    page = "```python\na = 1\n```\n\n```python\nb = 2\n```\n![B](images/gallery/b.png)\n"
    assert gallery.pictures(page) == [("a = 1\n", ""), ("b = 2\n", "b.png")]
    named = {picture for _, picture in gallery.pictures(gallery.PAGE.read_text())} - {""}
    assert named == {path.name for path in (gallery.PAGE.parent / "images/gallery").iterdir()}


# Their parts


GOOD = {
    "path": "incremental",
    "largest_attribution": 2.0,
    "difference": 1e-4,
    "outcomes": {"naive_error": 1e-6},
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "equal"),
        ({"difference": 3e-4}, "differs"),
        ({"difference": 3e-4, "outcomes": {"naive_error": 1e-4}}, "equal"),
        ({"difference": math.nan}, "differs"),
        ({"difference": 0.0, "largest_attribution": 0.0}, "differs"),
        ({"path": "captum"}, "ran captum"),
        ({"path": "full"}, "ran full"),
        ({"error": "RuntimeError"}, "failed"),
    ],
)
def test_verdict(benchmarks: None, change: dict[str, Any], expected: str) -> None:
    from _tables.networks import verdict

    assert verdict({**GOOD, **change}) == expected


@pytest.mark.parametrize(("window", "stride"), [(4, 4), (5, 3), (12, 12), (4, 3)])
def test_windows_of_the_loop_are_captums(benchmarks: None, window: int, stride: int) -> None:
    from _shared import occluded, window_corners

    seen: list[Tensor] = []

    def forward(images: Tensor) -> Tensor:
        seen.extend(images.clone())
        return images.sum((1, 2, 3))

    image = torch.rand(1, 3, 12, 13) + 1
    shape, strides = (3, window, window), (3, stride, stride)
    Occlusion(forward).attribute(image, sliding_window_shapes=shape, strides=strides)
    ours = occluded(image, window_corners(image, window, stride), window)
    assert sorted(t.flatten().tolist() for t in ours) == sorted(
        t.flatten().tolist() for t in seen[1:]
    )


def test_partial_run_of_captum(benchmarks: None) -> None:
    from _shared import captum_seconds_per_window

    calls: list[int] = []

    def forward(images: Tensor) -> Tensor:
        calls.append(len(images))
        return images.sum((2, 3))

    image = torch.rand(1, 3, 12, 12)
    windows = {"sliding_window_shapes": (3, 4, 4), "strides": (3, 2, 2)}  # 25 of them
    assert 0 < captum_seconds_per_window(forward, image, 0, 4, 3, **windows) < math.inf
    assert calls == [1, 4, 4, 4, 4]
    assert captum_seconds_per_window(forward, image, 0, 20, 3, **windows) == math.inf


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "nf_resnet26", "convnext_atto"])
def test_random_networks_are_alive(benchmarks: None, name: str) -> None:
    from _shared import build_network

    network = build_network(name, 64)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    covered = image.clone()
    covered[..., 16:48, 16:48] = 0
    with torch.no_grad():
        before, after = network(image), network(covered)
    assert (after - before).abs().max() > 0.05 * before.std()
    assert not any(module.training for module in network.modules())


def test_efficientnet_weights_are_the_trained_ones(benchmarks: None) -> None:
    from _shared import efficientnet_lite, load_image, to_input

    with torch.no_grad():
        scores: Tensor = nn.Softmax(dim=1)(efficientnet_lite()(to_input(load_image(None, 224))))
    assert set(scores[0].topk(2).indices.tolist()) == {282, 285}  # tiger cat and Egyptian cat
