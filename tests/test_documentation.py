"""Every command and Python block of README and documentation, and what they list."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from scripts import BENCHMARKS, EXAMPLES, ROOT

from captum_krypton import KryptonOcclusion

# The options of the scripts in examples/paper are not in their own text.
SCRIPT = r"^python (examples/(?:benchmarks/)?\w+\.py)(.*)$"
READMES = ["README.md", "examples/README.md", "examples/benchmarks/README.md"]
PAGES = [*READMES, *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*.md")))]


def section(title: str) -> str:
    """The text of a section of the README."""
    found = re.split(r"^## (.+)\n", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))[title]


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of a language."""
    return re.findall(rf"^```{language}\b.*\n((?:.*\n)*?)```$", text, flags=re.MULTILINE)


def without_numbers(output: str) -> str:
    """An output's words: its numbers depend on the machine."""
    return re.sub(r"[\d.]+", "#", output)


@pytest.mark.parametrize(
    ("title", "last"), [("Quickstart", "python examples/quickstart.py"), ("Tests", "pytest")]
)
def test_readme_commands_start_from_nothing(title: str, last: str) -> None:
    (block,) = blocks(section(title), "sh")
    lines = block.splitlines()
    assert lines[:2] == ["python3 -m venv .venv", ". .venv/bin/activate"]
    assert lines[2].startswith("pip install '.[")
    assert lines[-1].startswith(last)


def test_readme_table_is_of_the_committed_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    from readme_table import update_readme

    text = (ROOT / "README.md").read_text()
    assert update_readme(text) == text


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").symlink_to(EXAMPLES)
    monkeypatch.chdir(tmp_path)  # some blocks write files
    monkeypatch.setattr(sys, "path", list(sys.path))
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    text, printed = (ROOT / page).read_text(), []
    for number, block in enumerate(blocks(text, "python")):
        with contextlib.redirect_stdout(io.StringIO()) as stream:
            exec(compile(block, f"{page}, block {number}", "exec"), names)
        printed.append(without_numbers(stream.getvalue()))
    for shown in re.findall(r"^It prints:\n\n```text\n((?:.*\n)*?)```$", text, re.MULTILINE):
        assert without_numbers(shown) in printed


@pytest.mark.parametrize("page", PAGES)
def test_commands_name_scripts_and_their_options(page: str) -> None:
    for block in blocks((ROOT / page).read_text(), "sh"):
        for script, options in re.findall(SCRIPT, block, re.MULTILINE):
            source = (ROOT / script).read_text()
            names = re.findall(r"--[a-z-]+", options)
            assert [name for name in names if f'"{name}"' not in source] == []


def test_the_table_of_arguments_is_that_of_the_methods() -> None:
    text = (ROOT / "docs/api.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", text, re.MULTILINE)
    for method in ("attribute", "heatmap", "growing", "explain"):
        _, *expected = inspect.signature(getattr(KryptonOcclusion, method)).parameters
        assert [name for name, methods in rows if f"`{method}`" in methods] == expected


def test_every_script_has_a_place_on_its_page() -> None:
    page = (ROOT / "docs" / "examples.md").read_text()
    scripts = {
        path.relative_to(ROOT).as_posix()
        for folder in (EXAMPLES, BENCHMARKS)
        for path in folder.glob("[!_]*.py")
    }
    assert scripts == {script for script, _ in re.findall(SCRIPT, page, re.MULTILINE)}


def local_links(page: str) -> list[str]:
    return re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text())


def test_readmes_of_the_examples_name_every_file() -> None:
    top, benchmarks = map(set, map(local_links, READMES[1:]))
    assert {path.name for path in EXAMPLES.glob("*.py")} <= top
    assert {f"paper/{path.name}" for path in (EXAMPLES / "paper").glob("[!_]*.py")} <= top
    assert {path.name for path in BENCHMARKS.glob("*.py")} <= benchmarks


@pytest.mark.parametrize("page", READMES)
def test_local_links_exist(page: str) -> None:
    links = local_links(page)
    assert links
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


# What does not exist, and shows where something would go.
INVENTED = re.compile(r"NAME|DEVICE|group_norm")


def places(page: str) -> list[str]:
    """The files and folders of the project that a page names."""
    named = re.findall(r"`((?:captum_krypton|csrc|tests|examples|_[a-z]+)/[\w./]*)`", page)
    return [place for place in named if not INVENTED.search(place)]


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/design.md"])
def test_places_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    assert len(places(text)) > 2
    for place in places(text):
        assert (ROOT / place).exists() or (ROOT / "captum_krypton" / place).exists(), place


def test_the_drawing_of_the_house_is_the_package() -> None:
    text = (ROOT / "docs/design.md").read_text()
    drawing = re.search(r"^```text\n(captum_krypton/\n.*?)```", text, re.M | re.S)
    assert drawing is not None
    drawn = set(re.findall(r"^  (\w+(?:\.py|/))", drawing[1], re.M))
    package = ROOT / "captum_krypton"
    there = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    there |= {path.name for path in package.glob("*.py")}
    assert drawn == there
    wings = re.findall(r"^\*\*`(\w+)`\*\*:", text, re.M)
    assert {f"{wing}/" for wing in wings} == {name for name in there if name.endswith("/")}
