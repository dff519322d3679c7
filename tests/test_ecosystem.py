"""The examples with other libraries."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from scripts import run_example


@pytest.mark.slow
def test_tensorboard_gets_a_figure(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its imports, which are none of ours
        pytest.importorskip("tensorboard", reason="TensorBoard is not among the extras")
    done = run_example("ecosystem/tensorboard_figure.py", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (events,) = tmp_path.glob("events.out.tfevents.*")
    written = events.read_bytes()
    assert b"occlusion" in written and b"\x89PNG" in written
