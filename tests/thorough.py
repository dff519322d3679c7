"""Compares thousands of drawn networks with Captum; goes on where it stopped.

    python tests/thorough.py --networks 10000

Every chunk of networks has a seed of its own, drawn afresh and written to the state file with how
many networks it had and what failed. The same command goes on until the wanted number has been
drawn over each number of window axes; `--seed` and `--axes` repeat one chunk.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

CHUNK = 50


def chunk(axes: int, seed: int, networks: int) -> tuple[int, str | None]:
    """Draws and checks networks over some window axes.

    Args:
        axes: window axes, 1 to 3.
        seed: Hypothesis' seed.
        networks: how many.

    Returns:
        How many were checked, and the report of the smallest failure, if any.
    """
    from against_captum import check_heat_map
    from networks import cases

    checked = 0

    @seeded(seed)
    @settings(
        max_examples=networks,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        nonlocal checked
        check_heat_map(data.draw, data.draw(cases(axes)))
        checked += 1  # one that fits: what Hypothesis discards does not count

    try:
        run()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return checked, traceback.format_exc()
    return checked, None


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", type=int, default=10_000, help="in all (default: 10000)")
    parser.add_argument("--axes", type=int, nargs="+", default=[1, 2, 3], choices=[1, 2, 3])
    parser.add_argument("--seed", type=int, help="run one chunk with this seed and stop")
    parser.add_argument("--state", type=Path, default=Path("thorough.json"))
    parser.add_argument("--minutes", type=float, help="stop after so many")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    os.environ.setdefault("KRYPTON_MEASURE", "0")
    folder = Path(__file__).parent
    sys.path[:0] = [str(folder), str(folder / "support")]
    import conftest  # noqa: F401  # small maps take the graph's path

    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="Using padding='same' with even kernel lengths")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    if asked.seed is not None:
        failures = [chunk(axes, asked.seed, CHUNK)[1] for axes in asked.axes]
        print("\n".join(f for f in failures if f) or "no failure")
        return int(any(failures))
    chunks: list[dict[str, Any]] = []
    if asked.state.exists():
        chunks = json.loads(asked.state.read_text())
    started = time.monotonic()
    while True:
        done = {axes: 0 for axes in asked.axes}
        for entry in chunks:
            if entry["axes"] in done:
                done[entry["axes"]] += entry["networks"]
        axes = min(done, key=lambda axes: done[axes])
        late = asked.minutes is not None and time.monotonic() - started > 60 * asked.minutes
        if sum(done.values()) >= asked.networks or late:
            break
        seed = secrets.randbits(32)
        networks, failure = chunk(axes, seed, CHUNK)
        chunks.append({"axes": axes, "seed": seed, "networks": networks, "failure": failure})
        asked.state.write_text(json.dumps(chunks, indent=1))
        print(f"{axes} axes, seed {seed}: {networks} networks, {'FAILED' if failure else 'ok'}")
    failed = [entry for entry in chunks if entry["failure"]]
    print(f"{sum(done.values())} networks {done}, {len(failed)} failures")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
