"""The page of many maps, without a browser."""

from __future__ import annotations

import hashlib
import io
import math
import re
from base64 import b64decode, b64encode
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2lab

from captum_krypton._command import page
from captum_krypton._command.page import PageEntry, colours, number, write_page

VOID = {"img", "input", "link", "meta"}
RANDOM = np.random.default_rng(0)
PLAIN = PageEntry(
    name="cats/tom.png",
    label="tabby",
    outcome=0.75,
    drop=0.5,
    seconds=1.25,
    picture=RANDOM.integers(0, 256, (24, 32, 3), dtype=np.uint8),
    heat=np.array([[0.5, -0.25, 0.0], [0.1, -0.5, 0.25]], dtype=np.float32),
    extent=(4.0, 28.0, 20.0, 4.0),
)


@dataclass
class Reader(HTMLParser):
    """A page's elements; every one is closed in its place."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({key for key, _ in attrs}) == len(attrs), f"{tag} has an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, tag: str) -> str:
        return "".join(data for name, data in self.texts if name == tag)


def reader_of(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def written(folder: Path, *entries: PageEntry, title: str = "Maps") -> tuple[str, Reader]:
    path = folder / "page.html"
    write_page(path, entries, title)
    text = path.read_text("utf-8")
    return text, reader_of(text)


def card(reader: Reader) -> dict[str, str]:
    (found,) = (each for each in reader.all("li") if each.get("class") == "card")
    return {key: value or "" for key, value in found.items()}


def image_at(address: str | None) -> Image.Image:
    assert address is not None
    kind, content = re.fullmatch(r"data:image/(\w+);base64,(.*)", address, re.S).groups()
    image = Image.open(io.BytesIO(b64decode(content)))
    assert image.format == kind.upper()
    return image


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    text, reader = written(tmp_path, PLAIN, PLAIN)
    assert "://" not in text
    for _, attributes in reader.elements:
        for key, value in attributes.items():
            assert not key.startswith("on") and key != "style"
            if key in ("src", "href"):
                assert str(value).startswith("data:image/")
    addresses = re.findall(r"url\((.{11})", text)
    assert addresses and set(addresses) == {"data:image/"}


def test_labels_and_names_of_elements(tmp_path: Path) -> None:
    _, reader = written(tmp_path, PLAIN, PLAIN)
    names = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(set(names)) == len(names) > 0
    for _, attributes in reader.elements:
        for key in ("for", "aria-labelledby", "aria-describedby"):
            assert attributes.get(key) in (None, *names)
    assert [image["alt"] for image in reader.all("img")] == ["cats/tom.png", "cats/tom.png"]


def test_the_policy_allows_what_is_on_the_page_alone(tmp_path: Path) -> None:
    _, reader = written(tmp_path, PLAIN)
    policy = reader.all("meta")[1]
    assert policy["http-equiv"] == "Content-Security-Policy"
    for element in ("style", "script"):
        assert len(reader.all(element)) == 1
        digest = b64encode(hashlib.sha256(reader.text(element).encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}';" in str(policy["content"])
    assert str(policy["content"]).startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in str(policy["content"])


NASTY = [
    "<script>alert(1)</script>.png",
    '" onmouseover="alert(1)',
    "' autofocus onfocus='alert(1)",
    "</li></ul></main><h1>over",
    "{{cards}} {{policy}}",
    "&lt;b&gt; &amp;",
    "<!-- ",
    "日本語/ünï.png",
]


@pytest.mark.parametrize("nasty", NASTY)
def test_names_are_text(nasty: str, tmp_path: Path) -> None:
    _, reader = written(tmp_path, replace(PLAIN, name=nasty, label=nasty), title=nasty)
    _, plain = written(tmp_path, PLAIN)
    assert len(reader.all("script")) == 1
    shape = [(tag, sorted(each)) for tag, each in reader.elements if tag != "span"]
    assert shape == [(tag, sorted(each)) for tag, each in plain.elements if tag != "span"]
    assert reader.text("title") == reader.text("h1") == nasty
    folder, slash, file = nasty.rpartition("/")
    assert reader.text("bdi") == file + nasty
    assert f"{folder}{slash}" in reader.text("span")
    assert reader.all("img")[0]["alt"] == nasty
    assert reader.all("option")[1]["value"] == nasty


def test_names_that_are_no_text(tmp_path: Path) -> None:
    _, reader = written(tmp_path, replace(PLAIN, name="a\udcff\x00\x1b.png"))
    assert reader.text("bdi").startswith("a\ufffd\ufffd\ufffd.png")


def test_the_numbers_of_a_card(tmp_path: Path) -> None:
    text, reader = written(tmp_path, replace(PLAIN, estimated_ssim=0.987))
    found = card(reader)
    assert [float(found[f"data-{key}"]) for key in ("outcome", "drop", "seconds", "limit")] == [
        0.75,
        0.5,
        1.25,
        0.5,
    ]
    heat = np.frombuffer(b64decode(found["data-heat"]), "<f4").reshape(2, 3)
    np.testing.assert_array_equal(heat, PLAIN.heat)
    assert (found["data-size"], found["data-shape"]) == ("32 24", "2 3")
    assert found["data-extent"] == "4 28 20 4"
    assert reader.text("dt") == "OutcomeLargest dropTimeEstimated SSIM"
    assert reader.text("dd") == "0.750.51.25 s0.987"
    assert "Estimated SSIM" not in written(tmp_path, PLAIN)[0]


def test_the_map_without_a_script(tmp_path: Path) -> None:
    _, reader = written(tmp_path, PLAIN)
    (place,) = reader.all("image")
    assert [place[key] for key in ("x", "y", "width", "height")] == ["4", "4", "24", "16"]
    assert reader.all("svg")[0]["viewbox"] == "0 0 32 24"
    pixels = np.asarray(image_at(place["href"])).astype(int)
    assert pixels.shape == (2, 3, 4)
    red, _, blue, opacity = np.moveaxis(pixels, -1, 0)
    np.testing.assert_array_equal(np.sign(red - blue)[opacity > 0], [1, -1, 1, -1, 1])
    # 0.92 of the whole at the end of the scale, and in proportion to the drop.
    np.testing.assert_allclose(opacity, 255 * 0.92 * np.abs(PLAIN.heat) / 0.5, atol=1.5)


def test_windows_without_a_number(tmp_path: Path) -> None:
    heat = PLAIN.heat.copy()
    heat[0, 1], heat[1, 1] = np.nan, np.inf
    text, reader = written(tmp_path, replace(PLAIN, heat=heat, outcome=math.nan, drop=math.inf))
    assert reader.text("dd") == "no numberno number1.25 s"
    pixels = np.asarray(image_at(reader.all("image")[0]["href"]))
    for column, row in ((1, 0), (1, 1)):
        assert pixels[row, column].tolist() == [128, 128, 128, 215]
    assert card(reader)["data-limit"] == "0.5"
    assert '<p class="gap">no number</p>' in text
    assert '<p class="gap" hidden>no number</p>' in written(tmp_path, PLAIN)[0]


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_map_of_nothing(value: float, tmp_path: Path) -> None:
    heat = np.full((2, 2), value, np.float32)
    _, reader = written(tmp_path, replace(PLAIN, heat=heat))
    assert card(reader)["data-limit"] == "0.0"
    opacity = np.asarray(image_at(reader.all("image")[0]["href"]))[..., 3]
    assert opacity.tolist() == [[215 if math.isnan(value) else 0] * 2] * 2


def test_no_entries(tmp_path: Path) -> None:
    text, reader = written(tmp_path)
    assert '<p class="none">This report holds no images.</p>' in text
    assert '<p class="summary">No images</p>' in text
    assert "hidden" in reader.all("figure")[0] and "hidden" in reader.all("form")[0]
    assert 'class="card"' not in text
    text, _ = written(tmp_path, PLAIN)
    assert '<p class="none" hidden>This report holds no images.</p>' in text
    assert '<p class="summary">1 image, 1 class, 1.25 s in all</p>' in text


def test_classes_to_choose_from(tmp_path: Path) -> None:
    lower = replace(PLAIN, label="apple")
    _, reader = written(tmp_path, PLAIN, lower, replace(PLAIN, label="Bee"), lower)
    values = [each["value"] for each in reader.all("option")]
    assert values[:4] == ["", "apple", "Bee", "tabby"]
    assert "All classesapple (2)Bee (1)tabby (1)" in reader.text("option")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"picture": np.zeros((8, 8), np.uint8)},
            r"picture of 'cats/tom.png' must be \(H, W, 3\), not \(8, 8\): give a greyscale",
        ),
        ({"picture": np.zeros((8, 8, 4), np.uint8)}, r"picture .* not \(8, 8, 4\)"),
        ({"picture": np.zeros((0, 8, 3), np.uint8)}, r"picture .* not \(0, 8, 3\)"),
        ({"picture": np.zeros((8, 8, 3))}, "picture .* must be uint8, not float64: scale it"),
        ({"heat": np.zeros((1, 2, 2))}, r"heat .* must be floats .* \(1, 2, 2\): give the map"),
        ({"heat": np.zeros((0, 2))}, r"heat .* not float64 \(0, 2\)"),
        ({"heat": np.zeros((2, 2), int)}, "heat .* must be floats .*not int"),
        ({"extent": (4, 4, 8, 0)}, r"extent .* not \(4, 4, 8, 0\): give \(left, right"),
        ({"extent": (0, 8, 0, 8)}, "extent .* must be left < right and bottom > top"),
        ({"extent": (0, math.inf, 8, 0)}, "extent"),
    ],
)
def test_what_cannot_be_drawn(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PLAIN, **change)


@pytest.mark.parametrize("before", ["the page of before", None])
def test_a_failure_leaves_what_was_there(
    before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "page.html"
    if before is not None:
        path.write_text(before)
    made = page._card

    def fail(entry: PageEntry) -> str:
        assert any(file.suffix == ".part" for file in tmp_path.iterdir())
        if entry.name == "bad":
            raise MemoryError
        return made(entry)

    monkeypatch.setattr(page, "_card", fail)
    with pytest.raises(MemoryError):
        write_page(path, [PLAIN, replace(PLAIN, name="bad")], "Maps")
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"] * (before is not None)
    assert before is None or path.read_text() == before


def test_the_file_takes_the_place_of_another(tmp_path: Path) -> None:
    path, other = tmp_path / "page.html", tmp_path / "other"
    path.write_text("before")
    other.write_text("")
    write_page(path, [PLAIN], "Maps")
    assert path.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert {file.name for file in tmp_path.iterdir()} == {"page.html", "other"}
    assert path.stat().st_mode == other.stat().st_mode
    with pytest.raises(OSError, match="missing"):
        write_page(tmp_path / "missing" / "page.html", [PLAIN], "Maps")


def test_pictures(tmp_path: Path) -> None:
    _, reader = written(tmp_path, PLAIN)
    small = np.asarray(image_at(reader.all("img")[0]["src"])).astype(int)
    assert small.shape == (24, 32, 3)
    flat = np.full((900, 1800, 3), (200, 30, 90), np.uint8)
    _, reader = written(tmp_path, replace(PLAIN, picture=flat[:, ::-1]))
    image = image_at(reader.all("img")[0]["src"])
    assert image.size == (640, 320)
    np.testing.assert_allclose(np.asarray(image).mean((0, 1)), (200, 30, 90), atol=3)
    assert reader.all("svg")[0]["viewbox"] == "0 0 1800 900"
    assert (reader.all("img")[0]["width"], reader.all("img")[0]["height"]) == ("1800", "900")


def test_the_scale_is_the_same_on_both_sides() -> None:
    scale = colours()
    assert scale.shape == (256, 4) and scale.dtype == np.uint8
    opacity = scale[:255, 3].astype(int)
    np.testing.assert_array_equal(opacity, opacity[::-1])
    assert opacity[127] == 0 and (np.diff(opacity[127:]) > 0).all()


# Machado, Oliveira and Fernandes (2009): what people see who lack one kind of cones.
BLIND = {
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}


@pytest.mark.parametrize("kind", BLIND)
def test_everybody_tells_a_rise_from_a_drop(kind: str) -> None:
    scale = colours()[:255].astype(float) / 255
    opaque = scale[:, :3] * scale[:, 3:] + 1 - scale[:, 3:]  # on white
    linear = np.where(opaque <= 0.04045, opaque / 12.92, ((opaque + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(BLIND[kind]).T, 0, 1)
    lab = rgb2lab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055))
    apart = np.linalg.norm(lab - lab[::-1], axis=1)
    assert apart[0] > 40 and apart[63] > 20  # 2.3 is a difference that can just be seen
    assert (np.diff(np.linalg.norm(lab - lab[127], axis=1)[127:]) > -0.1).all()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (0.12345, "0.123"),
        (-12.345, "−12.3"),
        (1234.5, "1234"),
        (123456.7, "123457"),
        (2.5e7, "2.5e7"),
        (-0.0000123, "−1.23e−5"),
        (math.nan, "no number"),
        (-math.inf, "no number"),
    ],
)
def test_numbers(value: float, shown: str) -> None:
    assert number(value) == shown
