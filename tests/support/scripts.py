"""Where the examples are, and how tests run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import captum_krypton

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
BENCHMARKS = EXAMPLES / "benchmarks"


def python_path() -> str:
    """What a process needs to import the package that these tests import."""
    return os.pathsep.join([str(Path(captum_krypton.__file__).parents[1]), *sys.path])


def run_example(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an example with the package that these tests import."""
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": python_path()},
    )
