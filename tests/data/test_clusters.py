"""The examples for data frameworks, and what may befall a run with Ray Data."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mapped import plain_map
from numpy.typing import NDArray
from PIL import Image
from scripts import EXAMPLES, ROOT
from torch import Tensor, nn
from torchvision.models import squeezenet1_1

pytestmark = pytest.mark.slow

SUPPORT = Path(__file__).resolve().parents[1] / "support"
COUNT = 8
Maps = dict[str, tuple[NDArray[Any], float, int]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "images"
    made.mkdir()
    draw = np.random.default_rng(0)
    for number in range(COUNT):
        pixels = draw.integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(made / f"{number}.png")
    return made


def break_some(folder: Path) -> set[str]:
    """Two files that are no images, one in each half of the folder."""
    for name in ("1.png", "6.png"):
        (folder / name).write_bytes(b"no image " + name.encode())
    return {"1.png", "6.png"}


def command(*arguments: str | Path) -> subprocess.Popen[str]:
    paths = [str(ROOT), str(EXAMPLES / "clusters"), str(SUPPORT), *sys.path]
    return subprocess.Popen(
        [str(argument) for argument in arguments],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "3",  # what Ray leaves alone, and the mapper does not
            "SPARK_LOCAL_IP": "127.0.0.1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> None:
    try:
        said, _ = process.communicate(timeout=900)
    finally:
        process.kill()
    assert process.returncode == 0, said[-5000:]


def run(name: str, *arguments: str | Path) -> None:
    ended(command(sys.executable, EXAMPLES / "clusters" / name, *arguments))


def load_model() -> nn.Module:
    torch.manual_seed(0)
    return squeezenet1_1().eval()


def expected(folder: Path, low: float, broken: Collection[str] = ()) -> Maps:
    """Maps by one forward pass a window, of images that are scaled to low..1."""
    model, maps = load_model(), {}
    for file in sorted(folder.iterdir()):
        if file.name in broken:
            continue
        pixels = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).double() / 255
        x: Tensor = (low + pixels * (1 - low)).float()
        with torch.no_grad():
            outputs = model(x[None])[0]
        target = int(outputs.argmax())
        scores = plain_map(model, x, target, window=16, stride=8)
        maps[file.name] = scores, float(outputs[target]), target
    return maps


def check(found: Maps, want: Maps) -> None:
    assert sorted(found) == sorted(want)
    for name, (scores, reference, target) in want.items():
        assert found[name][2] == target
        assert found[name][1] == pytest.approx(reference, rel=1e-4)
        np.testing.assert_allclose(found[name][0], scores, rtol=1e-4, atol=1e-5)


def rows_of(out: Path) -> list[dict[str, Any]]:
    """The rows of a folder of Parquet files, each file whole."""
    parquet = pytest.importorskip("pyarrow.parquet")
    return [
        row
        for file in sorted(out.glob("*.parquet"))
        for row in parquet.read_table(file).to_pylist()
    ]


def flat(scores: Any) -> Any:
    """Scores as a list: Ray's tensors of several shapes in a column are read as a dict."""
    return scores["data"] if isinstance(scores, dict) else scores


def maps_of(rows: list[dict[str, Any]]) -> Maps:
    """Maps of rows by the names of their files; a file that is there twice is an error."""
    maps: Maps = {}
    for row in rows:
        name = Path(row["path"]).name
        assert name not in maps, f"{name} is there twice"
        scores = np.array(flat(row["occlusion_scores"]), np.float32).reshape(7, 7)
        maps[name] = scores, row["occlusion_reference"], row["occlusion_target"]
    return maps


def good(rows: list[dict[str, Any]], broken: set[str]) -> list[dict[str, Any]]:
    """Rows with a map; those without are the broken files, with their reasons."""
    reasons = {Path(row["path"]).name: row["occlusion_error"] for row in rows}
    without = {name: reason for name, reason in reasons.items() if reason}
    assert set(without) == broken
    assert all("UnidentifiedImageError" in reason for reason in without.values())
    return [row for row in rows if not row["occlusion_error"]]


def test_ray_data(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.data")
    run("ray_data.py", folder, tmp_path / "out")
    check(maps_of(rows_of(tmp_path / "out")), expected(folder, -1))


def test_a_run_with_ray_goes_on_after_its_driver_was_killed(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.data")
    broken = break_some(folder)
    out, checkpoint, go = tmp_path / "out", tmp_path / "checkpoint", tmp_path / "go"
    arguments = (sys.executable, SUPPORT / "ray_runs.py", "resume", folder, out, checkpoint, go)
    first = command(*arguments)
    try:
        deadline = time.monotonic() + 600
        while not any(p for p in checkpoint.glob("*.parquet") if ".pending" not in p.name):
            assert time.monotonic() < deadline and first.poll() is None
            time.sleep(0.05)
    finally:
        first.kill()
        first.communicate()
    before = {file: file.stat().st_mtime_ns for file in out.glob("*.parquet")}
    assert 0 < len(rows_of(out)) < COUNT
    go.touch()
    ended(command(*arguments))
    rows = rows_of(out)
    assert {file: file.stat().st_mtime_ns for file in before} == before  # none was made again
    check(maps_of(good(rows, broken)), expected(folder, -1, broken))


def test_a_killed_worker_a_full_disk_and_broken_batches(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.data")
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    inside = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-ec")
    mount = f"mount -t tmpfs -o size=16k tmpfs '{disk}'"
    if shutil.which("unshare") is None or subprocess.run([*inside, mount]).returncode:
        pytest.skip("needs a file system of its own: unshare and mount")
    broken = break_some(folder)
    arguments = (sys.executable, SUPPORT / "ray_runs.py", "mishaps", folder, out, disk)
    ended(command(*inside, f"{mount}; exec {shlex.join(map(str, arguments))}"))
    want = expected(folder, -1, broken)
    assert (out / "notes" / "killed").exists()
    check(maps_of(good(rows_of(out / "maps"), broken)), want)
    assert [file.name for file in out.glob("notes/threads-*")] == ["threads-1"]
    assert "No space left on device" in (out / "notes" / "full").read_text()
    check(maps_of(good(rows_of(out / "second"), broken)), want)
    check(maps_of(rows_of(out / "skip")), want)
    rows = rows_of(out / "row")
    check(maps_of(good(rows, {f"no-{number}" for number in range(len(want))})), want)


def test_hugging_face(folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    run("hugging_face.py", folder, tmp_path / "out")
    rows = list(datasets.load_from_disk(str(tmp_path / "out")))
    check(maps_of(rows), expected(folder, 0))


def test_dask(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("dask")
    run("dask_delayed.py", folder, tmp_path / "out")
    rows = []
    for file in sorted((tmp_path / "out").iterdir()):
        with np.load(file) as part:
            values = zip(*(part[name] for name in part), strict=True)
            rows += [dict(zip(part, row, strict=True)) for row in values]
    check(maps_of(rows), expected(folder, 0))


@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
def test_spark(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyspark")
    broken, out, late = break_some(folder), tmp_path / "out", tmp_path / "5.png"
    shutil.move(folder / "5.png", late)
    run("spark.py", folder, out)
    before = rows_of(out)
    assert len(before) == COUNT - 1
    shutil.move(late, folder / "5.png")
    run("spark.py", folder, out)
    rows = rows_of(out)
    assert set(map(json.dumps, before)) <= set(map(json.dumps, rows))  # none was made again
    check(maps_of(good(rows, broken)), expected(folder, -1, broken))
