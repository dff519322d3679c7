"""The benchmark of Ray Data beside plain loops, and the tables of what a data set costs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from scripts import run_example


@pytest.mark.parametrize(
    ("seconds", "images", "text"),
    [(1.0, 3600, "1 hours"), (0.36, 100_000, "10 hours"), (36.0, 100_000, "42 days")],
)
def test_hours(seconds: float, images: int, text: str, benchmarks: None) -> None:
    from _tables.sizing import hours_of

    assert hours_of(seconds, images) == text


def test_tables_are_of_the_committed_measurements(benchmarks: None) -> None:
    from _tables.gpu import gpu
    from _tables.sizing import NETWORKS, cores_table, gpu_table
    from _tables.speed import comparisons

    lines = cores_table().splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:-2]]
    assert [row[0] for row in cells] == list(NETWORKS)
    one = {result["model"]: result for result in comparisons("16-8", threads=1)}
    for name, windows, alone, *_, sixteen in cells:
        seconds = one[name]["sides"]["krypton"]["seconds"]
        assert (windows, alone) == (str(one[name]["windows"]), f"{seconds:.1f}")
        number, unit = sixteen.split()
        hours = float(number) * {"hours": 1, "days": 24}[unit]
        assert hours == pytest.approx(seconds * 100_000 / 3600 / 16, rel=0.17)
    assert "Measured on: " in lines[-1]
    assert gpu()["machine"]["gpu"] in gpu_table()


def measured() -> dict[str, Any]:
    """Invented, in the form that `cluster.py` writes."""
    return {
        "model": "resnet18",
        "size": 224,
        "windows": 729,
        "images": 120,
        "workers": 2,
        "images_per_second": {
            "loops": {"steady": 0.5, "whole": 0.4},
            "ray": {"steady": 0.45, "whole": 0.3},
        },
        "ratio": {"steady": 0.9, "whole": 0.75},
        "ray": "2.0",
        "machine": {
            "processor": "one",
            "gpu": None,
            "vector instructions": "AVX2",
            "threads": 1,
            "system": "Linux",
            "python": "3",
            "versions": {"torch": "2"},
            "date": "2026-01-01",
        },
    }


def test_what_ray_costs_in_words(tmp_path: Path, benchmarks: None) -> None:
    from _tables.sizing import cluster_line

    file = tmp_path / "cluster.json"
    assert "*not measured*" in cluster_line(file)
    file.write_text(json.dumps(measured()))
    said = cluster_line(file)
    assert "0.45 images a second" in said and "0.5: 90% of their speed" in said
    assert "0.3 and 0.4, 75%" in said and "images take 62 hours" in said


def test_steady_leaves_out_the_first_batch(tmp_path: Path, benchmarks: None) -> None:
    pytest.importorskip("pyarrow")
    import cluster
    import pyarrow
    from pyarrow import parquet

    rows = [(7, 10.0), (7, 10.0), (7, 12.0), (7, 14.0), (8, 20.0), (8, 21.0)]
    columns = {
        "path": [str(number) for number in range(len(rows))],
        "pid": [pid for pid, _ in rows],
        "done": [done for _, done in rows],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    assert cluster.steady(tmp_path, 6) == pytest.approx(2 / 4 + 1 / 1)
    with pytest.raises(RuntimeError, match="6 rows of 7 images"):
        cluster.steady(tmp_path, 7)


@pytest.mark.slow
def test_cluster(tmp_path: Path) -> None:
    pytest.importorskip("ray.data")
    file = tmp_path / "cluster.json"
    done = run_example(
        "benchmarks/cluster.py",
        *("--images=8", "--model=squeezenet1_1", "--size=64", "--window=16", "--stride=16"),
        *("--batch=2", "--rounds=1", f"--json={file}"),
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(file.read_text())
    assert (made["images"], made["windows"], made["workers"]) == (8, 16, 2)
    for side in made["images_per_second"].values():
        assert 0 < side["whole"] < side["steady"]
    assert made["ratio"]["whole"] > 0 < made["ratio"]["steady"]
    assert re.search(r"^Ray over loops: \d\.\d\d steady, \d\.\d\d whole$", done.stdout, re.M)
