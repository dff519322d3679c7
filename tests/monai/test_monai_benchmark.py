"""The benchmark beside MONAI, with small settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripts import run_example


@pytest.mark.slow
def test_monai_sensitivity(tmp_path: Path) -> None:
    pytest.importorskip("monai", reason="MONAI is an extra", exc_type=ImportError)
    file = tmp_path / "monai.json"
    done = run_example(
        "benchmarks/monai_sensitivity.py",
        *("--axes=2", "--side=40", "--overlap=0.2", "--batches", "4", "8"),
        *("--rounds=1", "--threads=1", f"--json={file}"),
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(file.read_text())["rows"]
    assert row["monai_seconds"] > 0 < row["seconds"]
    assert row["largest_difference"] < 1e-5 < row["spread_of_the_map"]
    assert "DenseNet121, 2 axes of 40: MONAI" in done.stdout
