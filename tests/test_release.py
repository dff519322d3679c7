"""What has to agree in several files before a release can be right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripts import ROOT

WORKFLOW = ".github/workflows/wheels.yml"
# Where the oldest PyTorch is named, and how.
OLDEST = {
    "pyproject.toml": (r'"torch>=([\d.]+)"', r'"torch==([\d.]+)\.\*"'),
    WORKFLOW: (r'"torch==([\d.]+)\.\*"',),
    ".ci/wheel": (r"the wheel is for is ([\d.]+)\.0",),
    "CONTRIBUTING.md": (r"bash \.ci/wheel --torch ([\d.]+)\.0`",),
    "README.md": (r"PyTorch ([\d.]+) and\s+later",),
}
TARGETS = ("setup.py", "captum_krypton/_kernels/loader.py")


def read(name: str) -> str:
    return (ROOT / name).read_text()


def versions_of(name: str) -> list[str]:
    """The versions of PyTorch that the kernels are compiled for, as 2.11."""
    targets = re.findall(r"TORCH_TARGET_VERSION=0x([0-9a-f]{16})", read(name))
    return [f"{int(target[:2], 16)}.{int(target[2:4], 16)}" for target in targets]


@pytest.fixture(scope="module")
def jobs() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(read(WORKFLOW))["jobs"]
    return found


def test_the_oldest_torch_is_one() -> None:
    named = {
        (name, pattern): re.findall(pattern, read(name))
        for name, patterns in OLDEST.items()
        for pattern in patterns
    }
    named |= {(name, "target"): versions_of(name) for name in TARGETS}
    assert all(named.values()), named
    assert len({version for found in named.values() for version in found}) == 1, named


def test_the_version_is_one() -> None:
    (version,) = re.findall(r'^version = "(.+)"$', read("pyproject.toml"), re.M)
    assert re.findall(r"^version: (.+)$", read("CITATION.cff"), re.M) == [version]
    newest = re.search(r"^## (\S+) \(", read("CHANGELOG.md"), re.M)
    assert newest is not None and newest[1] == version


def test_every_folder_of_the_package_is_installed() -> None:
    listed = re.search(r"^packages = \[\n(.*?)^\]", read("pyproject.toml"), re.M | re.S)
    assert listed is not None
    names = set(re.findall(r'"(.+)"', listed[1])) - {"captum_krypton.csrc"}
    package = ROOT / "captum_krypton"
    folders = {file.parent.relative_to(ROOT) for file in package.rglob("*.py")}
    assert names == {".".join(folder.parts) for folder in folders}


def test_every_source_of_the_kernels_is_installed() -> None:
    (patterns,) = re.findall(r'^"captum_krypton.csrc" = \[(.*)\]$', read("pyproject.toml"), re.M)
    suffixes = set(re.findall(r'"\*\*/\*(\.\w+)"', patterns))
    files = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    assert suffixes == {path.suffix for path in files}


def test_every_wheel_is_used_before_it_is_published(jobs: dict[str, Any]) -> None:
    built, used = (jobs[name]["strategy"]["matrix"] for name in ("wheel", "use"))
    assert used["system"] == built["system"]
    assert len(used["torch"]) == 2
    needs = {name for name in jobs if name != "publish"}
    assert set(jobs["publish"]["needs"]) == needs


def test_only_a_tag_publishes(jobs: dict[str, Any]) -> None:
    assert jobs["publish"]["if"] == "github.ref_type == 'tag'"
    allowed = [name for name, job in jobs.items() if "id-token" in job.get("permissions", {})]
    assert allowed == ["publish"]


def test_actions_are_pinned(jobs: dict[str, Any]) -> None:
    actions = [step["uses"] for job in jobs.values() for step in job["steps"] if "uses" in step]
    assert len(actions) > 5
    assert [use for use in actions if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", use)] == []


def test_files_that_the_workflow_runs_exist(jobs: dict[str, Any]) -> None:
    commands = "\n".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
    named = re.findall(r"\.ci/[\w.]+", commands)
    assert "use_wheel.py" in {Path(name).name for name in named}
    assert [name for name in named if not (ROOT / name).is_file()] == []
