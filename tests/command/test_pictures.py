"""Pictures as a network takes them, and as it sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import usual_input, write_images
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms._presets import ImageClassification

from captum_krypton._command.pictures import (
    PictureError,
    Preparation,
    kinds,
    of_transform,
    read_picture,
    usual,
)

Pixels = np.ndarray[Any, Any]


def pixels(path: Path, mode: str = "RGB") -> Pixels:
    return np.asarray(read_picture(path, mode))


@pytest.mark.parametrize("side", [32, 57, 64])
def test_the_usual_preprocessing_is_torchvisions(side: int, tmp_path: Path) -> None:
    write_images(tmp_path, ["wide.png", "odd.png"])
    for name in ("wide.png", "odd.png"):
        ours = usual(side, None, None).tensor(read_picture(tmp_path / name, "RGB"))
        torch.testing.assert_close(ours, usual_input(tmp_path / name, side))


def test_other_numbers_and_one_channel(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    image = read_picture(tmp_path / "a.png", "RGB")
    made = usual(32, (0.5,), (0.25,)).tensor(image)
    preset = ImageClassification(crop_size=32, resize_size=37, mean=(0.5,) * 3, std=(0.25,) * 3)
    torch.testing.assert_close(made, preset(image)[None])
    grey = usual(32, (0.5,), (0.25,), channels=1)
    assert grey.mode == "L"
    assert grey.tensor(read_picture(tmp_path / "a.png", "L")).shape == (1, 1, 32, 32)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    # What EXIF 2.3, section 4.6.4, says of row 0 and column 0.
    a = np.asarray(image)
    upright = {
        1: a,
        2: a[:, ::-1],
        3: a[::-1, ::-1],
        4: a[::-1],
        5: a.transpose(1, 0, 2),
        6: a.transpose(1, 0, 2)[:, ::-1],
        7: a.transpose(1, 0, 2)[::-1, ::-1],
        8: a.transpose(1, 0, 2)[::-1],
    }
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), upright[orientation])


def test_transparency_is_white(tmp_path: Path) -> None:
    colours = np.zeros((2, 2, 4), np.uint8)
    colours[0, 0] = (200, 0, 0, 255)
    colours[1, 1] = (0, 0, 0, 128)
    Image.fromarray(colours, "RGBA").save(tmp_path / "a.png")
    found = pixels(tmp_path / "a.png").astype(int)
    assert found[0, 0].tolist() == [200, 0, 0]
    assert found[0, 1].tolist() == [255, 255, 255]
    assert np.abs(found[1, 1] - 127).max() <= 1


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits(name: str, tmp_path: Path) -> None:
    values = np.array([[0, 257], [32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    assert pixels(tmp_path / name, "L").tolist() == [[0, 1], [128, 255]]
    assert pixels(tmp_path / name, "RGB")[1, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LA"])
def test_other_modes_become_three_channels(mode: str, tmp_path: Path) -> None:
    name = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    Image.new("L", (3, 2), 255).convert(mode).save(name)
    found = pixels(name)
    assert found.shape == (2, 3, 3)
    assert found.min() >= 254


def test_numbers_of_an_unknown_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.5, 3.0]], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(PictureError, match="their range is unknown"):
        read_picture(tmp_path / "a.tif", "RGB")


@pytest.mark.parametrize(
    "data", [b"", b"no picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_picture(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(PictureError, match=r"not a readable picture: .*a\.png"):
        read_picture(tmp_path / "a.png", "RGB")


def test_half_a_picture(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(PictureError, match="not a readable picture"):
        read_picture(tmp_path / "a.png", "RGB")


def test_kinds_of_files() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".bmp", ".gif"} <= kinds()
    assert not {".eps", ".pdf", ".h5", ".txt", ".npz"} & kinds()


def test_what_the_network_saw(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    image = read_picture(tmp_path / "a.png", "RGB")
    preparation = usual(32, None, None)
    shown = preparation.shown(preparation.tensor(image))
    cropped = v2.CenterCrop(32)(v2.Resize(37)(image))
    np.testing.assert_array_equal(shown, np.asarray(cropped))


def test_mean_and_deviation_are_found_in_a_transform(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    image = read_picture(tmp_path / "a.png", "RGB")
    parts = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    parts += [v2.Normalize([0.5, 0.4, 0.3], [0.2, 0.2, 0.1])]
    nested = of_transform(v2.Compose([v2.Resize(32), v2.Compose(parts)]))
    assert nested.mean == (0.5, 0.4, 0.3)
    expected = np.asarray(v2.Resize(32)(image))
    np.testing.assert_array_equal(nested.shown(nested.tensor(image)), expected)


def test_a_transform_that_tells_nothing_is_spread(tmp_path: Path) -> None:
    def transform(image: Image.Image) -> torch.Tensor:
        return torch.tensor([[[-2.0, 0.0, 6.0]]])

    first, second = of_transform(transform), of_transform(transform)
    assert first.mean is None
    assert " at 0x" not in first.text
    assert first.text == second.text
    shown = first.shown(first.tensor(Image.new("RGB", (1, 1))))
    assert shown[0, :, 0].tolist() == [0, 64, 255]


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (np.zeros((3, 4, 4)), "ndarray"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "floating-point"),
        (torch.zeros(4, 4), "floating-point"),
        (torch.zeros(2, 3, 4, 4), "one image"),
        (torch.zeros(4, 4, 3), "1 or 3 channels"),
    ],
)
def test_a_transform_that_returns_something_else(made: object, words: str) -> None:
    preparation = Preparation(lambda image: made, "RGB", "")
    with pytest.raises(PictureError, match=words):
        preparation.tensor(Image.new("RGB", (4, 4)))
