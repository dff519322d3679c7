"""Maps as files, arrays and xarray."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_krypton import KryptonFeatureAblation, KryptonOcclusion, OcclusionMap, fills
from captum_krypton._run import few_windows


def network(outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 144, outputs)
    ).eval()


IMAGES = torch.randn(2, 2, 12, 12, generator=torch.Generator().manual_seed(1))
WINDOWS = {"sliding_window_shapes": (2, 4, 4), "strides": (2, 2, 3)}


def of_grid(**arguments: Any) -> OcclusionMap:
    return KryptonOcclusion(network()).heatmap(IMAGES, **{**WINDOWS, **arguments})


def assert_same(one: OcclusionMap, other: OcclusionMap) -> None:
    for name in ("scores", "reference", "spread"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.dtype == b.dtype and torch.equal(a, b), name
    assert one.grid == other.grid and one.report == other.report
    torch.testing.assert_close(
        one.attribution(), other.attribution(), rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize(
    "target",
    [None, 1, [2, 0], torch.tensor([1, 2]), [(0,), (2,)], (1,)],
    ids=repr,
)
def test_a_map_is_read_as_it_was_written(target: Any, tmp_path: Path) -> None:
    heat = of_grid(target=target)
    heat.save(tmp_path / "map.npz")
    read = OcclusionMap.load(tmp_path / "map.npz")
    assert_same(heat, read)
    if isinstance(target, Tensor):
        assert torch.equal(read.target, target)
    else:
        assert read.target == target and type(read.target) is type(target)


def test_slices_are_targets(tmp_path: Path) -> None:
    heat = KryptonOcclusion(lambda x: x[:, 0, :4, :4]).heatmap(
        IMAGES, target=(slice(None), slice(1, None, 2)), **WINDOWS
    )
    heat.save(tmp_path / "map")
    assert OcclusionMap.load(tmp_path / "map").target == (slice(None), slice(1, None, 2))


def made_otherwise(kind: str) -> OcclusionMap:
    if kind == "spread":
        return of_grid(target=1, baselines=fills.noise(samples=2))
    if kind == "quality":
        windows = {"sliding_window_shapes": (2, 2, 2), "strides": (2, 1, 1)}
        return KryptonOcclusion(network(), quality=0.8).heatmap(IMAGES, target=1, **windows)
    if kind == "bfloat16":
        return KryptonOcclusion(network().bfloat16()).heatmap(
            IMAGES.bfloat16(), target=1, **WINDOWS
        )
    if kind == "boxes":
        return KryptonOcclusion(network()).heatmap(
            IMAGES, target=1, windows=[np.s_[1:4, 2:9], np.s_[0:12, 3:4]]
        )
    mask = torch.arange(144).reshape(12, 12) % 7
    return KryptonFeatureAblation(network()).heatmap(IMAGES, target=1, feature_mask=mask)


@pytest.mark.parametrize("kind", ["spread", "quality", "bfloat16", "boxes", "mask"])
def test_every_kind_of_map_is_read_as_it_was_written(kind: str, tmp_path: Path) -> None:
    heat = made_otherwise(kind)
    heat.save(tmp_path / "map.npz")
    assert_same(heat, OcclusionMap.load(tmp_path / "map.npz"))
    assert os.listdir(tmp_path) == ["map.npz"]


def test_the_file_is_as_documented(tmp_path: Path) -> None:
    heat = of_grid(target=1)
    heat.save(tmp_path / "map.npz")
    with np.load(tmp_path / "map.npz") as file:  # without this package
        assert set(file.files) == {"scores", "reference", "map"}
        text = json.loads(str(file["map"]))
        assert np.array_equal(file["scores"], heat.scores.numpy())
    assert text["format"] == "captum-krypton map" and text["version"] == 1
    assert text["grid"] == {"shape": [2, 12, 12], "window": [2, 4, 4], "stride": [2, 2, 3]}
    assert text["target"] == 1 and text["dtype"] == "float32"
    assert text["report"]["windows"] == heat.grid.total


def changed(path: Path, **arrays: Any) -> Path:
    with np.load(path) as file:
        kept = {name: file[name] for name in file.files}
    kept.update(arrays)
    np.savez(path, **{name: array for name, array in kept.items() if array is not None})
    return path


def meta(path: Path, **changes: Any) -> Path:
    with np.load(path) as file:
        text = json.loads(str(file["map"]))
    return changed(path, map=np.array(json.dumps({**text, **changes})))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: changed(path, scores=None), "scores"),
        (lambda path: changed(path, scores=np.zeros((2, 3, 3), np.float32)), "no map of"),
        (lambda path: changed(path, map=np.array("[")), "Expecting value"),
        (lambda path: meta(path, format="other"), "its format is 'other'"),
        (lambda path: meta(path, version=2), "version 2, and this release reads 1"),
        (lambda path: meta(path, dtype="complex64"), "complex64"),
        (lambda path: meta(path, target={"code": [1]}), "its target has 'code'"),
        (lambda path: meta(path, report=3), "its report is 3"),
        (lambda path: path.write_bytes(path.read_bytes()[:-60]), "not a zip file"),
        (lambda path: path.write_bytes(b""), "No data left"),
        (lambda path: path.write_text("text"), "map.npz is no map"),
    ],
)
def test_what_is_no_map_is_refused(spoil: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "map.npz"
    of_grid(target=1).save(path)
    spoil(path)
    with pytest.raises(ValueError, match=message):
        OcclusionMap.load(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        OcclusionMap.load(tmp_path / "map.npz")


class Marker:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("whole", [False, True])
def test_nothing_in_a_file_is_run(whole: bool, tmp_path: Path) -> None:
    path, marker = tmp_path / "map.npz", tmp_path / "ran"
    of_grid(target=1).save(path)
    if whole:
        path.write_bytes(pickle.dumps(Marker(marker)))
    else:
        scores = io.BytesIO()
        np.save(scores, np.array([Marker(marker)], dtype=object), allow_pickle=True)
        with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("scores.npy", scores.getvalue())
    with pytest.raises(ValueError, match="is no map"):
        OcclusionMap.load(path)
    assert not marker.exists()


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    heat = of_grid(target=1)
    path = tmp_path / "map.npz"
    path.write_bytes(b"before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(OSError):
            heat.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["map.npz"] and path.read_bytes() == b"before"


def test_a_target_that_json_cannot_say(tmp_path: Path) -> None:
    heat = of_grid(target=1)
    strange = OcclusionMap(heat.scores, heat.reference, heat.grid, "cat", heat.report)
    with pytest.raises(TypeError, match="target must be integers"):
        strange.save(tmp_path / "map.npz")
    assert os.listdir(tmp_path) == []


def test_bfloat16_as_an_array() -> None:
    heat = made_otherwise("bfloat16")
    array = heat.to_numpy()
    assert array.dtype == np.float32 and np.array_equal(array, heat.scores.float().numpy())


# --- reports


@pytest.mark.parametrize(
    "arguments", [{}, {"baselines": fills.noise(samples=2)}], ids=["one", "several"]
)
def test_a_report_as_json(arguments: dict[str, Any]) -> None:
    report = of_grid(target=1, **arguments).report
    again = type(report).from_dict(json.loads(json.dumps(report.to_dict())))
    assert again == report
    later = {**report.to_dict(), "joules": 3}
    assert type(report).from_dict(later) == report


@pytest.mark.parametrize("quality", [None, 0.8])
def test_every_image_has_a_report(quality: float | None) -> None:
    windows = {"sliding_window_shapes": (2, 2, 2), "strides": (2, 1, 1)}
    images = torch.cat([IMAGES, torch.zeros_like(IMAGES[:1])])  # nothing changes the last one
    report = (
        KryptonOcclusion(network(), quality=quality).heatmap(images, target=1, **windows).report
    )
    assert len(report.images) == 3
    assert sum(image.seconds for image in report.images) == pytest.approx(report.seconds)
    assert all(image.seconds > 0 for image in report.images)
    assert sum(image.windows_evaluated for image in report.images) == report.windows_evaluated
    assert sum(image.windows_exact for image in report.images) == report.windows_exact
    assert min(image.estimated_ssim for image in report.images) == report.estimated_ssim
    if quality is not None:
        evaluated = [image.windows_evaluated for image in report.images]
        alone = [
            KryptonOcclusion(network(), quality=quality)
            .heatmap(image[None], target=1, **windows)
            .report
            for image in images
        ]
        assert evaluated == [one.windows_evaluated for one in alone]
        assert len({image.estimated_ssim for image in report.images}) > 1


@pytest.mark.parametrize("examples", [1, 2])
def test_reports_of_few_windows_and_of_captums_path(
    examples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(few_windows, "_SETUP_ROWS", 24)
    few = KryptonOcclusion(network()).heatmap(
        IMAGES[:examples], sliding_window_shapes=(2, 8, 8), strides=(2, 8, 8), target=1
    )
    assert few.report.path == "naive"
    with pytest.warns(UserWarning, match="Captum's own path"):
        captums = KryptonOcclusion(lambda x: network()(x) + 0 * torch.rand(1)).heatmap(
            IMAGES[:examples], target=1, **WINDOWS
        )
    for heat in (few, captums):
        each = heat.report.images
        assert [image.windows_evaluated for image in each] == [heat.grid.total] * examples
        assert [image.estimated_ssim for image in each] == [1.0] * examples


def test_growing_maps_have_a_report_an_image() -> None:
    windows = {"sliding_window_shapes": (2, 2, 2), "strides": (2, 1, 1)}
    for heat in KryptonOcclusion(network()).growing(IMAGES[:1], target=1, **windows):
        (image,) = heat.report.images
        assert image.seconds == pytest.approx(heat.report.seconds)
        assert image.windows_evaluated == heat.report.windows_evaluated
        assert image.estimated_ssim == heat.report.estimated_ssim


# --- xarray


def test_xarray_of_a_grid() -> None:
    xarray = pytest.importorskip("xarray")
    made = of_grid(target=None).to_xarray()
    assert isinstance(made, xarray.Dataset)
    assert made.scores.dims == ("example", "output", "y", "x")
    assert made.reference.dims == ("example", "output")
    # A window of 4 in 12 cells by strides of 2 and 3; the last of the latter is cut off at 12.
    assert made.y.values.tolist() == [1.5, 3.5, 5.5, 7.5, 9.5]
    assert made.x.values.tolist() == [1.5, 4.5, 7.5, 10.0]
    assert made.attrs["path"] == "incremental"


def test_xarray_of_other_maps() -> None:
    pytest.importorskip("xarray")
    assert made_otherwise("boxes").to_xarray().scores.dims == ("example", "region")
    assert "spread" in made_otherwise("spread").to_xarray()
    by_channel = of_grid(target=1, sliding_window_shapes=(1, 4, 4), strides=(1, 4, 4))
    assert by_channel.to_xarray().scores.dims == ("example", "channel", "y", "x")
    assert by_channel.to_xarray().channel.values.tolist() == [0, 1]
    signal = KryptonOcclusion(lambda x: x.sum(1)).heatmap(torch.randn(1, 9), (3,), (3,))
    assert signal.to_xarray().scores.dims == ("example", "x")
    volume = KryptonOcclusion(lambda x: x.sum((1, 2, 3, 4))).heatmap(
        torch.randn(1, 1, 4, 4, 6), (1, 2, 2, 2), (1, 2, 2, 2)
    )
    assert volume.to_xarray().scores.dims == ("example", "z", "y", "x")
    assert volume.to_xarray().x.values.tolist() == [0.5, 2.5, 4.5]


def test_without_xarray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match=r"to_xarray needs xarray.*captum-krypton\[xarray\]"):
        of_grid(target=1).to_xarray()


def test_all_fields_of_a_report_are_in_its_text() -> None:
    report = of_grid(target=1).report
    assert {field.name for field in fields(report)} == set(report.to_dict())


def test_maps_are_read_where_torch_runs_nothing(tmp_path: Path) -> None:
    """A file is read in a process of its own, by the class alone."""
    of_grid(target=1).save(tmp_path / "map.npz")
    code = "from captum_krypton import OcclusionMap; print(OcclusionMap.load('map.npz').grid.total)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(of_grid(target=1).grid.total)
