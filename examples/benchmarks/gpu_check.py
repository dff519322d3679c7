"""Everything that needs a GPU, part by part: tests, first and later maps, profiles.

    python examples/benchmarks/gpu_check.py --json gpu.json

Each part takes less than ten minutes, has a process of its own, and is written when it ends. A part
that is in the file is not run again: a run that was stopped goes on where it was, `--parts` chooses
some, and `--minutes` starts none after so long. Nothing is downloaded.

- `tests`: what is skipped without a card; `sanitizer`: some of them under compute-sanitizer.
- `bandwidth`: of the gather, beside a copy on the device.
- `first:NETWORK`: the only map of a new process, Captum's and ours.
- `maps:NETWORK`: `compare_with_captum.py`, with CUDA graphs and without, and without kernels.
- `compiled:NETWORK`: the same beside a loop through torch.compile, which may take minutes.
- `few:NETWORK`: maps of 16 windows; `profile:NETWORK`: the kernels of a later map.
- `bfloat16:NETWORK`, `approximate:NETWORK`: what these gain.
- `volume:NETWORK`: videos and volumes (`volumes.py`); MONAI's need MONAI.

The exit status is 0 where every part ended and every test passed. `--device cpu` rehearses without
a card.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _gpu_parts import PARTS, VOLUMES_OF_CARDS, Run
from _shared import PAPER_NETWORKS, machine

from captum_krypton import backend_info

_LONGEST = 570  # seconds of a part
_ALONE = ("tests", "sanitizer", "bandwidth")


def names(networks: Sequence[str], volumes: Sequence[str]) -> list[str]:
    """The parts, in the order in which they are run: what people wait for first comes first."""
    of_networks = [kind for kind in PARTS if kind not in (*_ALONE, "volume")]
    found = [*_ALONE, *(f"{kind}:{network}" for kind in of_networks for network in networks)]
    return [*found, *(f"volume:{name}" for name in volumes)]


def put(result: dict[str, Any], part: str, found: Any) -> None:
    """Puts what a part has found into the result, in the place of what it found before."""
    kind, _, network = part.partition(":")
    place, _ = PARTS[kind]
    if not network:
        result[place] = found
        return
    rows = [row for row in result.get(place, []) if row["model"] != network]
    result[place] = [*rows, *(found if isinstance(found, list) else [found])]


def ended(part: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Runs a part in a process of its own: how it ended, and what it found."""
    started = time.perf_counter()
    with tempfile.NamedTemporaryFile("r", suffix=".json") as file:
        command = [sys.executable, __file__, *arguments, "--run", part, "--json", file.name]
        try:
            done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=_LONGEST)
            failed = done.stderr.strip().splitlines()[-1:] if done.returncode else None
        except subprocess.TimeoutExpired:
            failed = [f"it took longer than {_LONGEST} s"]
        seconds = round(time.perf_counter() - started, 1)
        if failed is not None:
            return {"seconds": seconds, "failed": "".join(failed) or "it was killed"}
        return {"seconds": seconds, "found": json.loads(file.read())}


def parse(arguments: Sequence[str] | None) -> Run:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a rehearsal")
    parser.add_argument("--size", type=int, help="side of the input (default: the network's own)")
    parser.add_argument("--stride", type=int, default=4, help="pixels between windows")
    parser.add_argument("--sample", type=int, default=512, help="windows that naive sides run")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--only", nargs="+", default=PAPER_NETWORKS, help="these networks")
    parser.add_argument("--volumes", nargs="*", default=VOLUMES_OF_CARDS, help="these volumes")
    parser.add_argument("--parts", nargs="+", metavar="PART", help="these parts, or kinds of them")
    parser.add_argument("--again", action="store_true", help="also parts that are in the file")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no part after so long")
    parser.add_argument("--list", action="store_true", help="say which parts there are")
    parser.add_argument("--json", help="write everything measured to this file")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    return parser.parse_args(arguments, Run())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts that are asked for; 0 where all ended and all tests passed."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    run = parse(given)
    if run.run:  # in the process of a part
        kind, _, network = run.run.partition(":")
        found = PARTS[kind][1](run, *([network] if network else []))
        Path(run.json).write_text(json.dumps(found))
        return 0
    every = names(run.only, run.volumes)
    asked = [p for p in every if not run.parts or {p, p.partition(":")[0]} & set(run.parts)]
    unknown = [p for p in run.parts or () if not any(p in (q, q.split(":")[0]) for q in every)]
    if unknown:
        raise SystemExit(f"--parts: {', '.join(unknown)}; there are {', '.join(every)}")
    if run.list:
        print("\n".join(asked))
        return 0
    file = None if run.json is None else Path(run.json)
    result: dict[str, Any] = {"parts": {}}
    if file is not None and file.exists():
        result |= json.loads(file.read_text())
    backend = backend_info(run.device)
    result["machine"] = machine(run.device)
    result["backend"] = {"name": backend.name, "reasons": backend.reasons}
    print(result["backend"], flush=True)
    began, good = time.monotonic(), True
    for part in asked:
        before = result["parts"].get(part)
        if before is not None and "failed" not in before and not run.again:
            print(f"{part}: in the file")
            continue
        if time.monotonic() - began > 60 * run.minutes:
            print(f"{part}: not started, {run.minutes:g} minutes are over")
            good = False
            continue
        done = ended(part, given)
        if "found" in done:
            found = done.pop("found")
            put(result, part, found)
            good = good and (not isinstance(found, dict) or found.get("passed", True))
        result["parts"][part] = done
        print(f"{part}: {done.get('failed', 'done')} ({done['seconds']:.0f} s)", flush=True)
        good = good and "failed" not in done
        if file is not None:
            whole = file.with_suffix(".part")
            whole.write_text(json.dumps(result, indent=1) + "\n")
            whole.replace(file)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
