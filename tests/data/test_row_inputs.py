"""What a row's image may be, without a transform of the user's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captum_krypton.data.rows import default_transform, name_of, target_of


def test_images_become_inputs() -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10
    want = torch.from_numpy(np.moveaxis(pixels, -1, 0).astype(np.float32) / 255)
    for image in (pixels, torch.from_numpy(pixels), Image.fromarray(pixels), pixels.tolist()):
        if isinstance(image, list):
            with pytest.raises(TypeError, match="int64"):  # a list has lost its type
                default_transform(image)
            continue
        torch.testing.assert_close(default_transform(image), want)
    grey = default_transform(pixels[..., 0])
    torch.testing.assert_close(grey, want[:1])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_stay(dtype: Any) -> None:
    array = np.random.default_rng(0).random((3, 4, 5)).astype(dtype)
    made = default_transform(array)
    assert made.numpy().dtype == dtype
    np.testing.assert_array_equal(made.numpy(), array)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"GIF89a", "type bytes: pass a `transform`"),
        ("a.png", "type str: pass a `transform`"),
        (None, "type NoneType: pass a `transform`"),
        ({"bytes": b""}, "type dict: pass a `transform`"),
        (np.zeros((4, 4), np.int32), "type torch.int32 and shape"),
        (np.zeros((1, 4, 4, 3), np.uint8), "type torch.uint8 and shape"),
        (np.array(["a"]), "type <U1, expected uint8 or floats"),
    ],
)
def test_what_is_no_image(value: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        default_transform(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3),
        (np.int32(3), 3),
        (torch.tensor(3), 3),
        ((1, np.int64(2)), (1, 2)),
        ([1, 2], (1, 2)),
        (np.array([1, 2]), (1, 2)),
        (torch.tensor([1, 2]), (1, 2)),
    ],
)
def test_targets(value: Any, expected: Any) -> None:
    found = target_of(value)
    assert found == expected
    assert all(type(one) is int for one in (found if isinstance(found, tuple) else [found]))


def test_a_rows_name_has_its_texts() -> None:
    columns = {"image": np.zeros((2, 2)), "path": ["a", "b"], "long": ["x" * 201] * 2, "n": [1, 2]}
    assert name_of(columns, 1, 2) == "row 1 of 2 (path='b')"
    assert name_of({"n": [1]}, 0, 1) == "row 0 of 1"
