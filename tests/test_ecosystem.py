"""The examples with other libraries, each where its library is installed."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts import EXAMPLES, ROOT, python_path

pytestmark = pytest.mark.slow
ECOSYSTEM = EXAMPLES / "ecosystem"
# What an example's occlusion map must be, by Captum itself.
CAPTUMS = """
import captum.attr
def captums(model, x, target, **windows):
    return captum.attr.Occlusion(model).attribute(x, target=target, **windows)[0, 0].numpy()
"""
WINDOW = "sliding_window_shapes=({0}, 16, 16), strides=({0}, 8, 8)"


def needs(package: str) -> None:
    """Skips a test without a package, by name, and without importing it."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed")


def run_code(code: str, *arguments: str) -> str:
    """What a program prints, in a process of its own: other libraries warn as they like."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": python_path(), "WANDB_SILENT": "true"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(example: str, *arguments: str, then: str = "") -> str:
    """Runs an example, and then a piece of code with its names."""
    script = str(ECOSYSTEM / example)
    names = f"import runpy\nglobals().update(runpy.run_path({script!r}, run_name='__main__'))\n"
    return run_code(names + then, *arguments)


def test_tensorboard_gets_a_figure(tmp_path: Path) -> None:
    needs("tensorboard")
    run("tensorboard_figure.py", str(tmp_path))
    (events,) = tmp_path.glob("events.out.tfevents.*")
    written = events.read_bytes()
    assert b"occlusion" in written and b"\x89PNG" in written


def test_weights_and_biases_gets_figure_seconds_and_map(tmp_path: Path) -> None:
    needs("wandb")
    seconds = run("wandb_figure.py", str(tmp_path), then="print(heat.report.seconds)").split()[-1]
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    (picture,) = folder.glob("files/media/images/occlusion_*.png")
    assert len(np.unique(np.asarray(Image.open(picture)))) > 100
    (record,) = folder.glob("run-*.wandb")
    written = record.read_bytes()
    assert seconds.encode() in written and b"occlusion-map" in written


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm"])
def test_a_parametric_map_has_every_value_where_the_slice_is(name: str, tmp_path: Path) -> None:
    needs("highdicom")
    import pydicom
    from pydicom.data import get_testdata_file

    source, target = get_testdata_file(name, download=False), tmp_path / "map.dcm"
    theirs = f"np.save({str(tmp_path / 'captum.npy')!r}, captums(model, x, 1, {WINDOW.format(1)}))"
    ours = f"np.save({str(tmp_path / 'krypton.npy')!r}, heat.attribution()[0, 0].numpy())"
    run("dicom_map.py", str(source), str(target), then=f"{CAPTUMS}\n{theirs}\n{ours}\n")

    of, made = pydicom.dcmread(source), pydicom.dcmread(target)
    stored = np.frombuffer(made.FloatPixelData, "<f4").reshape(made.Rows, made.Columns)
    np.testing.assert_array_equal(stored, np.load(tmp_path / "krypton.npy"))
    expected = np.load(tmp_path / "captum.npy")
    np.testing.assert_allclose(stored, expected, rtol=0, atol=1e-3 * abs(expected).max())

    shared, own = made.SharedFunctionalGroupsSequence[0], made.PerFrameFunctionalGroupsSequence[0]
    groups = {element.keyword: element.value for group in (shared, own) for element in group}
    (meaning,) = groups["RealWorldValueMappingSequence"]
    assert (meaning.RealWorldValueSlope, meaning.RealWorldValueIntercept) == (1, 0)
    assert meaning.DoubleFloatRealWorldValueFirstValueMapped == stored.min()
    assert meaning.DoubleFloatRealWorldValueLastValueMapped == stored.max()
    (unit,) = meaning.MeasurementUnitsCodeSequence
    assert (unit.CodingSchemeDesignator, unit.CodeValue) == ("UCUM", "1")

    assert groups["PixelMeasuresSequence"][0].PixelSpacing == of.PixelSpacing
    place = groups["PlanePositionSequence"][0].ImagePositionPatient
    np.testing.assert_allclose(place, of.ImagePositionPatient)
    turned = groups["PlaneOrientationSequence"][0].ImageOrientationPatient
    np.testing.assert_allclose(turned, of.ImageOrientationPatient)
    same = ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "Rows", "Columns")
    assert [made.get(keyword) for keyword in same] == [of.get(keyword) for keyword in same]


def test_grad_cams_overlay_is_of_captums_map(tmp_path: Path) -> None:
    needs("grad-cam")
    expected = f"""
mask = captums(model, x, 281, {WINDOW.format(3)}).clip(min=0)
drawn = show_cam_on_image(picture, mask / mask.max(), use_rgb=True)
Image.fromarray(drawn).save({str(tmp_path / "expected.png")!r})
"""
    run("grad_cam_overlay.py", str(tmp_path / "both.png"), then=CAPTUMS + expected)
    both = np.asarray(Image.open(tmp_path / "both.png")).astype(int)
    assert both.shape == (96, 2 * 96, 3)
    away = abs(both[:, 96:] - np.asarray(Image.open(tmp_path / "expected.png")))
    assert away.max() <= 8  # one step of the mask's 256 is up to 4 of a colour's
    assert away.mean() < 0.1
    assert abs(both[:, :96] - both[:, 96:]).max() > 100  # Grad-CAM's is another


def test_napari_lays_windows_over_their_voxels() -> None:
    needs("napari")
    code = f"""
import json, runpy
from napari.components import ViewerModel  # a viewer without its window

names = runpy.run_path({str(ECOSYSTEM / "napari_layers.py")!r})
scan, heat = names["explained"]()
viewer = ViewerModel()
names["add_layers"](viewer, scan, heat)
volume, drop = viewer.layers["scan"], viewer.layers["drop"]
assert (drop.data == (heat.reference[0] - heat.scores[0]).numpy()).all()
for window in [(0, 0, 0), (1, 2, 3), (6, 6, 6)]:
    first = [2 * window[0], 5 * window[1], 5 * window[2]]
    last = [first[0] + 3, first[1] + 9, first[2] + 9]
    print(json.dumps([volume.data_to_world(first), volume.data_to_world(last),
                      drop.data_to_world(window)]))
"""
    placed = [json.loads(line) for line in run_code(code).splitlines()]
    assert len(placed) == 3
    for first, last, middle in placed:
        np.testing.assert_allclose(middle, np.mean([first, last], 0))
    np.testing.assert_allclose(placed[0], [(0, 0, 0), (7.5, 9, 9), (3.75, 4.5, 4.5)])  # mm


def test_quantus_takes_the_function_of_its_page() -> None:
    needs("quantus")
    text = (ROOT / "docs/guides/quantus.md").read_text()
    code = re.findall(r"^```(?:python| \{\.python\})\n((?:.*\n)*?)```$", text, re.MULTILINE)
    assert "quantus.MaxSensitivity" in code[-1]
    fewer = code[-1].replace("nr_samples=10", "nr_samples=2")
    assert fewer != code[-1]
    seeded = f"np.random.seed(0)\n{fewer}"
    compared = [
        *("import json", *code[:-1], seeded, "ours = scores"),
        *("import captum.attr", "occlusion_of = captum.attr.Occlusion", seeded),
        "print(json.dumps([list(map(float, ours)), list(map(float, scores))]))",
    ]
    ours, theirs = json.loads(run_code("\n".join(compared)).splitlines()[-1])
    assert len(ours) == 2 and min(ours) > 0
    np.testing.assert_allclose(ours, theirs, rtol=1e-2)
