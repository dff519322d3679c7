"""Runs of examples/clusters/ray_resume.py that something befalls; a script, see test_clusters.py.

python ray_runs.py resume FOLDER OUT CHECKPOINT GO
python ray_runs.py mishaps FOLDER OUT DISK
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray_resume
import torch

from captum_krypton.data import OcclusionMapper


def later_half_waits(folder: str, go: str) -> Callable[[bytes], Any]:
    """The example's decoder, which keeps the later half of the files until a file `go` is there."""
    files = sorted(Path(folder).iterdir())
    later = {file.read_bytes() for file in files[len(files) // 2 :]}

    def decode(content: bytes) -> Any:
        while content in later and not Path(go).exists():
            time.sleep(0.05)
        return ray_resume.decode(content)

    return decode


def dies_once(folder: str, notes: Path) -> Callable[[bytes], Any]:
    """The example's decoder, which kills its process at one file, the first time it sees it."""
    victim = sorted(Path(folder).iterdir())[3].read_bytes()

    def decode(content: bytes) -> Any:
        (notes / f"threads-{torch.get_num_threads()}").touch()
        if content == victim and not (notes / "killed").exists():
            (notes / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return ray_resume.decode(content)

    return decode


def resume(folder: str, out: str, checkpoint: str, go: str) -> None:
    ray_resume.main(folder, out, checkpoint, transform=later_half_waits(folder, go))


def mishaps(folder: str, out: str, disk: str) -> None:
    """A worker that is killed, a full disk that grows before the second try, broken batches."""
    notes = Path(out, "notes")
    notes.mkdir(parents=True)
    kills = dies_once(folder, notes)
    ray_resume.main(folder, f"{out}/maps", f"{out}/checkpoint", transform=kills)
    try:
        ray_resume.main(folder, f"{disk}/maps", f"{disk}/checkpoint")
    except Exception as error:
        (notes / "full").write_text(str(error))
    subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
    ray_resume.main(folder, f"{disk}/maps", f"{disk}/checkpoint")
    subprocess.run(["cp", "-r", f"{disk}/maps", f"{out}/second"], check=True)
    broken_batches(folder, out)


def broken_batches(folder: str, out: str) -> None:
    """Batches of two rows, of which every second one has broken rows alone."""
    ray.data.DataContext.get_current().checkpoint_config = None
    files = [file for file in sorted(Path(folder).iterdir()) if file.read_bytes()[:2] != b"no"]
    rows = []
    for first in range(0, len(files) - 1, 2):
        rows += [{"path": f"no-{first + i}", "bytes": b"no image"} for i in range(2)]
        rows += [{"path": str(file), "bytes": file.read_bytes()} for file in files[first:][:2]]
    for errors in ("skip", "row"):
        ray.data.from_items(rows, override_num_blocks=1).map_batches(
            OcclusionMapper,
            fn_constructor_kwargs={
                "model": ray_resume.load_model,
                "transform": ray_resume.decode,
                "column": "bytes",
                "errors": errors,
                **ray_resume.WINDOWS,
            },
            batch_size=2,
            num_cpus=1,
            concurrency=1,
        ).write_parquet(f"{out}/{errors}")


if __name__ == "__main__":
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=100 * 2**20)
    {"resume": resume, "mishaps": mishaps}[sys.argv[1]](*sys.argv[2:])
