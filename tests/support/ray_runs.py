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
    """A worker that is killed, into `out`; then a full disk, which grows before the second try."""
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


if __name__ == "__main__":
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=100 * 2**20)
    {"resume": resume, "mishaps": mishaps}[sys.argv[1]](*sys.argv[2:])
