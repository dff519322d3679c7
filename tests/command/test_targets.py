"""Targets by number and by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from captum_krypton._command.failure import CommandError
from captum_krypton._command.targets import label_of, read_labels, resolve

NAMES = ("tabby, tabby cat", "tiger cat", "tiger, Panthera tigris", "Persian cat", "crane", "Crane")


@pytest.mark.parametrize(
    ("asked", "number"),
    [
        ("3", 3),
        ("0", 0),
        ("tiger cat", 1),
        ("TIGER  Cat", 1),
        ("tabby cat", 0),  # one of its names
        ("tiger", 2),  # a whole name goes before a part of another
        ("panthera", 2),
        ("persian", 3),
    ],
)
def test_a_class_by_number_or_name(asked: str, number: int) -> None:
    assert resolve(asked, NAMES, len(NAMES)) == number


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("cat", ["3 classes match", "0 tabby, tabby cat", "1 tiger cat", "3 Persian cat"]),
        ("crane", ["2 classes match", "4 crane, 5 Crane"]),
        ("tigre", ["no class has that name", "close to it: 2 tiger, Panthera tigris"]),
        ("6", ["classes 0 to 5"]),
        ("-1", ["no class has that name"]),
    ],
)
def test_what_is_no_class(asked: str, words: list[str]) -> None:
    with pytest.raises(CommandError) as raised:
        resolve(asked, NAMES, len(NAMES))
    for word in words:
        assert word in str(raised.value)


def test_many_matches_are_cut_short() -> None:
    with pytest.raises(CommandError, match=r"30 classes match.*9 bird 9 and 20 more"):
        resolve("bird", [f"bird {i}" for i in range(30)], 30)


def test_names_have_to_be_known() -> None:
    with pytest.raises(CommandError, match="--labels"):
        resolve("tiger", (), 6)
    assert resolve("5", (), 6) == 5
    assert label_of(5, ()) == "class 5"
    assert label_of(1, NAMES) == "tiger cat"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "cat\ndog\nguinea pig\n\n"),
        ("names.txt", "\ufeffcat\r\ndog\r\nguinea pig"),
        ("names.json", json.dumps(["cat", "dog", "guinea pig"])),
        ("names.json", json.dumps({"2": "guinea pig", "0": "cat", "1": "dog"})),
        (
            "names.json",
            json.dumps({"0": ["n1", "cat"], "1": ["n2", "dog"], "2": ["n3", "guinea pig"]}),
        ),
    ],
)
def test_files_of_names(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert read_labels(str(tmp_path / name)) == ("cat", "dog", "guinea pig")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("names.json", b"{", "not readable"),
        ("names.json", b'{"1": "dog"}', "numbers 0 to 0"),
        ("names.json", b'"dog"', "expected a list"),
        ("names.txt", b"", "expected a list"),
        ("names.txt", b"\xff\xfe\x00", "not readable"),
    ],
)
def test_files_without_names(name: str, data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CommandError, match=words):
        read_labels(str(tmp_path / name))


def test_a_missing_file_of_names(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="No such file"):
        read_labels(str(tmp_path / "names.txt"))
