"""Ray Data on workers of one core each, beside as many plain loops.

    python examples/benchmarks/cluster.py --json docs/data/cluster.json

Both sides explain the same folder of PNG files with `OcclusionMapper` and write Parquet: Ray Data
with all of it and some workers of one thread; as many processes of one thread, each with its part
of the files and a loop. The sides take turns. *Whole* is all images over the time from the start of
the first process to the end of the last. *Steady* leaves out what is paid once: it is the sum over
the workers of their images after the first batch, over the time from that batch's end to the last
one's. The weights are random.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _shared import build_network, machine, square_windows
from PIL import Image
from torch import Tensor

from captum_krypton.data import OcclusionMapper


class Clocked(OcclusionMapper):
    """Says for every row when its batch was done, and by which process."""

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with its maps, `pid` and `done`."""
        made = super().__call__(batch)
        rows = len(made["path"])
        return {**made, "pid": np.full(rows, os.getpid()), "done": np.full(rows, time.time())}


def preprocess(image: np.ndarray) -> Tensor:
    """From an image (H, W, 3), uint8, to an input in -1..1."""
    return torch.from_numpy(image).permute(2, 0, 1).float() / 127.5 - 1


def arguments_of(options: argparse.Namespace) -> dict[str, Any]:
    """The mapper's arguments."""
    model, size = options.model, options.size
    return {
        "model": lambda: build_network(model, size),
        "transform": preprocess,
        "device": "cpu",
        **square_windows(options.window, options.stride),
    }


def by_ray(folder: Path, out: Path, options: argparse.Namespace) -> None:
    """All images by Ray Data."""
    import ray

    # One more than the workers, for what reads and writes.
    ray.init(num_cpus=options.workers + 1, include_dashboard=False)
    maps = ray.data.read_images(str(folder), mode="RGB", include_paths=True).map_batches(
        Clocked,
        fn_constructor_kwargs=arguments_of(options),
        batch_size=options.batch,
        num_cpus=1,
        concurrency=options.workers,
    )
    maps.drop_columns(["image"]).write_parquet(str(out))


def by_a_loop(folder: Path, out: Path, options: argparse.Namespace, part: int) -> None:
    """A part of the images by a loop."""
    import pyarrow
    from pyarrow import parquet

    mapper = Clocked(threads=1, **arguments_of(options))
    files = sorted(folder.iterdir())[part :: options.workers]
    for start in range(0, len(files), options.batch):
        some = files[start : start + options.batch]
        images = np.stack([np.array(Image.open(file)) for file in some])
        made = mapper({"path": [str(file) for file in some], "image": images})
        columns = {name: list(column) for name, column in made.items() if name != "image"}
        columns["occlusion_scores"] = [scores.ravel() for scores in made["occlusion_scores"]]
        out.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.table(columns), out / f"{part}-{start}.parquet")


def timed(side: str, folder: Path, out: Path, options: argparse.Namespace) -> dict[str, float]:
    """Runs a side in processes of its own: images a second, whole and steady."""
    shutil.rmtree(out, ignore_errors=True)
    asked = [f"--{name}={getattr(options, name)}" for name in ("model", "size", "window", "stride")]
    asked += [f"--workers={options.workers}", f"--batch={options.batch}"]
    parts = [None] if side == "ray" else list(range(options.workers))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, f"--run={side}", f"--part={part or 0}", *asked]
            + [f"--folder={folder}", f"--out={out}"],
            env=environment,
        )
        for part in parts
    ]
    ended = [process.wait() for process in processes]
    seconds = time.perf_counter() - started
    if any(ended):
        raise RuntimeError(f"the side {side} ended with {ended}")
    return {"whole": options.images / seconds, "steady": steady(out, options.images)}


def steady(out: Path, images: int) -> float:
    """Images a second after every worker's first batch, from what the rows say."""
    from pyarrow import parquet

    rows = [
        row
        for file in out.glob("*.parquet")
        for row in parquet.read_table(file, columns=["path", "pid", "done"]).to_pylist()
    ]
    if len({row["path"] for row in rows}) != images or len(rows) != images:
        raise RuntimeError(f"{len(rows)} rows of {images} images in {out}")
    rate = 0.0
    for pid in {row["pid"] for row in rows}:
        done = [row["done"] for row in rows if row["pid"] == pid]
        first, last = min(done), max(done)
        if last > first:
            rate += sum(when > first for when in done) / (last - first)
    return rate


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turns."""
    with tempfile.TemporaryDirectory() as place:
        folder, out = Path(place, "images"), Path(place, "out")
        folder.mkdir()
        draw = np.random.default_rng(0)
        for number in range(options.images):
            pixels = draw.integers(0, 256, (options.size, options.size, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:06d}.png")
        turns = [
            {side: timed(side, folder, out, options) for side in ("loops", "ray")}
            for _ in range(options.rounds)
        ]
    sides = {
        side: {
            kind: statistics.median(turn[side][kind] for turn in turns)
            for kind in ("steady", "whole")
        }
        for side in ("loops", "ray")
    }
    per_side = -(-(options.size - options.window) // options.stride) + 1
    return {
        "model": options.model,
        "size": options.size,
        "window": options.window,
        "stride": options.stride,
        "windows": per_side**2,
        "images": options.images,
        "workers": options.workers,
        "batch": options.batch,
        "images_per_second": sides,
        "ratio": {kind: sides["ray"][kind] / sides["loops"][kind] for kind in ("steady", "whole")},
        "turns": turns,
        "ray": version("ray"),
        "machine": machine(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints images a second of both sides, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=224, help="side of the images, in pixels")
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--stride", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2, help="of one thread each")
    parser.add_argument("--batch", type=int, default=4, help="images in a batch")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json")
    # What the processes of the sides are started with.
    parser.add_argument("--run", choices=("ray", "loops"), help=argparse.SUPPRESS)
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.run == "ray":
        return by_ray(options.folder, options.out, options)
    if options.run == "loops":
        return by_a_loop(options.folder, options.out, options, options.part)
    torch.set_num_threads(1)  # those of a worker, for the machine's description
    made = compare(options)
    for side, rates in made["images_per_second"].items():
        print(f"{side}: {rates['steady']:.3f} images/s steady, {rates['whole']:.3f} whole")
    print(
        f"Ray over loops: {made['ratio']['steady']:.2f} steady, {made['ratio']['whole']:.2f} whole"
    )
    if options.json:
        Path(options.json).write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
