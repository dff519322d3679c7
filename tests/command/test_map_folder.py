"""A folder of maps: what a run leaves, and how the next one goes on with it."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from captum.attr import Occlusion
from command_line import MODULE, WINDOWS, start, tiny_network, usual_input, write_images
from filelock import FileLock
from torch import nn

from captum_krypton import OcclusionMap
from captum_krypton._command import main

NAMES = ["a.png", "b.jpg", "deep/c.png", "deep/er/d.webp"]
Run = Callable[..., int]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = ModuleType("a_users_module")
    made.load = tiny_network  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


@pytest.fixture
def run(module: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """The command for `scans`, into `maps`."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "scans", NAMES)

    def run(*words: str, images: str = "scans", windows: tuple[str, ...] = WINDOWS) -> int:
        model = ("--model", "a_users_module:load", "--output", "maps")
        return main(("explain", images, *model, *windows, *words))

    return run


def files(folder: Path) -> set[str]:
    """All files but those of the tool's own."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix() for path in found}


def outputs(names: list[str]) -> set[str]:
    return {f"{name}{end}" for name in names for end in (".npz", ".png")}


def summary(folder: Path) -> dict[str, dict[str, str]]:
    with open(folder / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["image"] for row in rows}) == len(rows)
    return {row["image"]: row for row in rows}


def times(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in folder.rglob("*.npz")
    }


def by_captum(image: Path, target: int) -> torch.Tensor:
    made: torch.Tensor = Occlusion(nn.Sequential(tiny_network(), nn.Softmax(1))).attribute(
        usual_input(image), (3, 8, 8), strides=(3, 4, 4), target=target
    )
    return made


def check_maps(tmp_path: Path, names: list[str]) -> None:
    """All maps are Captum's, and the summary has each once."""
    rows = summary(tmp_path / "maps")
    assert [name for name, row in rows.items() if row["status"] == "done"] == names
    for name in names:
        heat = OcclusionMap.load(tmp_path / "maps" / f"{name}.npz")
        expected = by_captum(tmp_path / "scans" / name, int(rows[name]["target"]))
        torch.testing.assert_close(heat.attribution(), expected, rtol=1e-4, atol=1e-6)
        drop = float((heat.reference - heat.scores.flatten(1).min(1).values)[0])
        assert float(rows[name]["largest_drop"]) == pytest.approx(drop, rel=1e-5)


def test_what_a_run_leaves(run: Run, tmp_path: Path) -> None:
    assert run("--html") == 0
    more = {"run.json", "summary.csv", "index.html"}
    assert files(tmp_path / "maps") == outputs(NAMES) | more
    check_maps(tmp_path, NAMES)
    settings = json.loads((tmp_path / "maps/run.json").read_text())["settings"]
    assert settings["model"] == "a_users_module:load"
    assert settings["window"] == "8x8"
    assert settings["target"] == "predicted"
    assert settings["weights"].startswith("sha256:")


def test_the_same_command_again_makes_nothing_anew(
    run: Run, module: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    before = times(tmp_path / "maps")
    first = summary(tmp_path / "maps")
    assert run("--html") == 0
    assert times(tmp_path / "maps") == before
    assert "4 maps in maps, 0 of them made now" in capsys.readouterr().out
    assert summary(tmp_path / "maps") == first
    page = (tmp_path / "maps/index.html").read_text()
    assert all(name in page for name in NAMES)


def test_new_and_changed_images_are_made(run: Run, tmp_path: Path) -> None:
    assert run() == 0
    before = times(tmp_path / "maps")
    write_images(tmp_path / "scans", ["new.png", "a.png"], seed=8)
    later = max(before.values()) + 10**9
    os.utime(tmp_path / "scans/a.png", ns=(later, later))
    assert run() == 0
    after = times(tmp_path / "maps")
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"a.png.npz", "new.png.npz"}
    check_maps(tmp_path, sorted([*NAMES, "new.png"]))


def test_a_lost_picture_is_drawn_and_a_damaged_map_made_again(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    before = times(tmp_path / "maps")
    (tmp_path / "maps/a.png.png").unlink()
    damaged = tmp_path / "maps/b.jpg.npz"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    assert run() == 0
    assert "b.jpg.npz is damaged" in capsys.readouterr().err
    after = times(tmp_path / "maps")
    assert [name for name in after if after[name] != before[name]] == ["b.jpg.npz"]
    assert files(tmp_path / "maps") >= outputs(NAMES)
    check_maps(tmp_path, NAMES)


def test_corrupt_images_are_reported_and_the_others_made(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scans/bad.png").write_bytes(b"nonsense")
    whole = (tmp_path / "scans/deep/c.png").read_bytes()
    (tmp_path / "scans/deep/c.png").write_bytes(whole[: len(whole) // 2])
    assert run("--html") == 3
    shown = capsys.readouterr()
    assert "bad.png: not a readable picture" in shown.err
    assert "2 of 5 images failed" in shown.err
    rows = summary(tmp_path / "maps")
    assert rows["bad.png"]["status"] == rows["deep/c.png"]["status"] == "failed"
    assert "not a readable picture" in rows["deep/c.png"]["reason"]
    check_maps(tmp_path, [name for name in NAMES if name != "deep/c.png"])
    (tmp_path / "scans/deep/c.png").write_bytes(whole)
    (tmp_path / "scans/bad.png").unlink()
    assert run() == 0
    check_maps(tmp_path, NAMES)


def test_an_image_that_the_network_fails_on(run: Run, module: ModuleType, tmp_path: Path) -> None:
    def transform(image: Any) -> torch.Tensor:
        if image.size == (54, 45):
            raise RuntimeError("not this one")
        return torch.zeros(3, 32, 32)

    module.load = lambda: (tiny_network(), transform)  # type: ignore[attr-defined]
    assert run(windows=("--window", "8", "--stride", "8")) == 3
    rows = summary(tmp_path / "maps")
    assert rows["a.png"]["reason"] == "RuntimeError: not this one"
    assert rows["b.jpg"]["status"] == "done"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--target", "1"), "target: predicted then, 1 now"),
        (("--stride", "8"), "stride: 4x4 then, 8x8 now"),
        (("--baseline", "mean"), "baseline: 0.0 then, mean now"),
        (("--outcome", "raw"), "outcome: softmax then, raw now"),
        (("--mean", "0.5"), "preparation: "),
        (("--quality", "0.9"), "quality: None then, 0.9 now"),
    ],
)
def test_other_settings_are_refused(
    words: tuple[str, ...],
    named: str,
    run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "maps").mkdir()
    assert run() == 0
    before = times(tmp_path / "maps")
    assert run(*words) == 1
    shown = capsys.readouterr().err
    assert named in shown
    assert "--overwrite" in shown
    assert times(tmp_path / "maps") == before


def test_other_weights_are_refused_and_overwrite_begins_anew(
    run: Run, module: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--html") == 0

    def load() -> nn.Module:
        network = tiny_network()
        with torch.no_grad():
            network[7].weight.mul_(2)
        return network

    module.load = load  # type: ignore[attr-defined]
    (tmp_path / "maps/note.txt").write_text("the user's")
    assert run() == 1
    assert "weights: sha256:" in capsys.readouterr().err
    (tmp_path / "scans/a.png").unlink()
    assert run("--overwrite") == 0
    left = [name for name in NAMES if name != "a.png"]
    expected = outputs(left) | {"run.json", "summary.csv", "note.txt"}
    assert files(tmp_path / "maps") == expected
    assert run() == 0  # the record is of the new settings


def test_other_folders_are_refused(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "others", ["a.png"])
    assert run() == 0
    assert run(images="others") == 1
    assert "images: " in capsys.readouterr().err


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_a_folder_of_something_else_is_left_alone(
    overwrite: tuple[str, ...], run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps/a.png.npz").write_bytes(b"mine")
    assert run(*overwrite) == 1
    assert "no run.json of an earlier run" in capsys.readouterr().err
    assert (tmp_path / "maps/a.png.npz").read_bytes() == b"mine"
    (tmp_path / "maps/run.json").write_text("{}")
    assert run(*overwrite) == 1
    assert (tmp_path / "maps/a.png.npz").read_bytes() == b"mine"


def test_two_runs_do_not_write_into_one_folder(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "maps").mkdir()
    with FileLock(tmp_path / "maps/.lock"):
        assert run() == 1
    assert "another process" in capsys.readouterr().err
    assert run() == 0


def test_the_output_may_lie_among_the_images(run: Run, tmp_path: Path) -> None:
    for _ in range(2):  # the second time its pictures are there
        assert run(images=".") == 0
        assert list(summary(tmp_path / "maps")) == [f"scans/{name}" for name in NAMES]


def test_files_are_named_by_their_paths(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ("--model", "a_users_module:load", "--output", "maps")
    outside = tmp_path / "scans/b.jpg"
    monkeypatch.chdir(tmp_path / "scans/deep")
    assert main(("explain", "c.png", "er/d.webp", str(outside), *model, *WINDOWS)) == 0
    rows = summary(tmp_path / "scans/deep/maps")
    rooted = outside.relative_to(outside.anchor).as_posix()
    assert set(rows) == {"c.png", "er/d.webp", rooted}


def test_a_summary_as_parquet(run: Run, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "scans/bad.png").write_bytes(b"nonsense")
    assert run("--summary", "parquet") == 3
    table = parquet.read_table(tmp_path / "maps/summary.parquet").to_pylist()
    assert [row["image"] for row in table] == sorted([*NAMES, "bad.png"])
    assert [row["status"] for row in table].count("done") == 4
    heat = OcclusionMap.load(tmp_path / "maps/a.png.npz")
    assert table[0]["outcome"] == pytest.approx(float(heat.reference[0]))
    assert table[0]["windows"] == 49


def test_an_interrupt_keeps_what_is_done(
    run: Run, module: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from captum_krypton._command.pictures import usual

    prepare, seen = usual(32, None, None).transform, []

    def transform(image: Any) -> Any:
        seen.append(image)
        if len(seen) == 4:  # the first is the grey one
            raise KeyboardInterrupt
        return prepare(image)

    module.load = lambda: (tiny_network(), transform)  # type: ignore[attr-defined]
    windows = ("--window", "8", "--stride", "4")
    assert run(windows=windows) == 130
    assert "2 images are done; the same command does the others" in capsys.readouterr().err
    assert list(summary(tmp_path / "maps")) == NAMES[:2]
    before = times(tmp_path / "maps")
    assert run(windows=windows) == 0
    assert before.items() <= times(tmp_path / "maps").items()
    check_maps(tmp_path, NAMES)


# In processes of their own, which the operating system ends.

COMMAND = ["explain", "scans/", "--model", "my_package:load_model", *WINDOWS, "--output", "maps/"]


@pytest.mark.slow
def test_killed_at_any_point_the_same_command_goes_on(tmp_path: Path) -> None:
    write_images(tmp_path / "scans", NAMES)
    (tmp_path / "my_package.py").write_text(MODULE)
    kept: dict[str, int] = {}
    # Maps and pictures take their names one after another. The first process dies with its first
    # picture written and not named; the second has drawn it, and dies with a map and no picture;
    # the third has drawn that one, and dies with a map written and not named.
    for place, done in (("before 2", 1), ("after 2", 2), ("before 2", 2)):
        killed = start(COMMAND, tmp_path, DIES_AT_REPLACE=place)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        now = times(tmp_path / "maps")
        assert len([name for name in now if not Path(name).name.startswith(".")]) == done
        assert kept.items() <= now.items()
        kept = now
    ended = start([*COMMAND, "--html"], tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert kept.items() <= times(tmp_path / "maps").items()
    more = {"run.json", "summary.csv", "index.html"}
    assert files(tmp_path / "maps") == outputs(NAMES) | more
    check_maps(tmp_path, NAMES)
    page = (tmp_path / "maps/index.html").read_text()
    assert all(name in page for name in NAMES)


@pytest.mark.slow
def test_a_full_disk(tmp_path: Path) -> None:
    write_images(tmp_path / "scans", NAMES)
    (tmp_path / "my_package.py").write_text(MODULE)
    full = start(COMMAND, tmp_path, MOST_BYTES="9000")  # a map has room, and no picture
    assert full.returncode == 1, full.stderr
    assert "cannot write maps/a.png.png: File too large" in full.stderr
    assert "run the same command again" in full.stderr
    assert files(tmp_path / "maps") == {"run.json", "a.png.npz"}
    before = times(tmp_path / "maps")
    ended = start(COMMAND, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert before.items() <= times(tmp_path / "maps").items()
    assert files(tmp_path / "maps") == outputs(NAMES) | {"run.json", "summary.csv"}
    check_maps(tmp_path, NAMES)
