"""What README and documentation say of the command line."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import child_environment
from PIL import Image
from scripts import ROOT

from captum_krypton import OcclusionMap
from captum_krypton._command.parser import build

PAGES = ["README.md", "docs/guides/command-line.md"]


def block(page: str, before: str) -> str:
    """The first block of commands after a heading."""
    text = (ROOT / page).read_text()
    found = re.search(r"^```sh\n(.*?)^```$", text[text.index(before) :], re.M | re.S)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_understood(page: str) -> None:
    commands = re.findall(r"^python -m captum_krypton (.*)$", (ROOT / page).read_text(), re.M)
    assert len(commands) >= 2
    for command in commands:
        assert build().parse_args(shlex.split(command)).command == "explain"


def test_options_exist() -> None:
    with pytest.raises(SystemExit):
        build().parse_args(["explain", "--help"])
    text = (ROOT / "docs/guides/command-line.md").read_text()
    source = (ROOT / "captum_krypton/_command/parser.py").read_text()
    named = set(re.findall(r"--[a-z]+(?:-[a-z]+)*", text))
    assert len(named) > 15
    assert [name for name in named if f'"{name}"' not in source] == []


@pytest.mark.slow
def test_the_readmes_commands_run(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    commands = block("README.md", "## From a terminal").replace("python ", f"{sys.executable} ")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=child_environment(),
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"class +28[1257] \(.*cat", done.stdout)
    with Image.open(tmp_path / "cat_map.png") as drawn:
        assert drawn.format == "PNG"
    for name in ("cat.png", "cup.png"):
        assert OcclusionMap.load(tmp_path / "maps" / f"{name}.npz").scores.shape == (1, 13, 13)
        assert name in (tmp_path / "maps/index.html").read_text()
