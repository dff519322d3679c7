"""Measures this processor's rates again and again, for the table of known processors.

    python examples/benchmarks/measure_rates.py --minutes 3 --threads 1 2
    python examples/benchmarks/measure_rates.py --profile docs/data/gpu.json

Prints the least of each rate as an entry of `KNOWN` in captum_krypton/_kernels/rates.py. Whatever
else the machine does only makes a rate larger: the longer this runs, the less of that is in it.

With `--profile` it measures nothing: a card's entry of `KNOWN_GPUS` is made from what `gpu_check`
has written about it, the medians over its networks of what the kernels of whole maps took for each
multiply-accumulate, and of copies for each number; other rates stay guessed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from _shared import build_network
from torch.utils.flop_counter import FlopCounterMode

from captum_krypton._kernels.bounds import least
from captum_krypton._kernels.calibrate import processor
from captum_krypton._kernels.measure import gauge_of_cpu
from captum_krypton._kernels.rates import GUESSED_OF_GPUS, Rates


def of_profile(file: str) -> tuple[str, Rates]:
    """A card's name and its rates, from a file of `gpu_check`."""
    found = json.loads(Path(file).read_text())
    kernels = {profile["model"]: profile["kernels"] for profile in found["profiles"]}
    convolution, linear = [], []
    for compared in found["networks"]:
        network = build_network(compared["model"], compared["size"])
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, 3, compared["size"], compared["size"]))
        macs = {str(name): n / 2 for name, n in counter.get_flop_counts()["Global"].items()}
        products = sum(n for name, n in macs.items() if "mm" in name)  # whole for every window
        saving = compared["sides"]["krypton"]["report"]["theoretical_speedup"]
        rest = sum(macs.values()) / saving - products
        spent = kernels[compared["model"]]
        plain = sum(s for name, s in spent.items() if "ffma" in name)  # float32, without TF32
        blocks = sum(s for name, s in spent.items() if "fprop" in name or "gemm" in name) - plain
        convolution.append(blocks / rest / compared["windows"])
        linear.append(plain / products / compared["windows"])
    rows = [row for row in found["bandwidth"] if row["dtype"] == "float32"]
    element = statistics.median(4 / (row["copy_gb_per_s"] * 1e9) for row in rows)
    rates = replace(
        GUESSED_OF_GPUS,
        convolution=statistics.median(convolution),
        linear=statistics.median(linear),
        element=element,
    )
    return found["machine"]["gpu"], rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3.0, help="for each number of threads")
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--profile", help="what gpu_check has written about a card")
    asked = parser.parse_args()
    if asked.profile:
        name, rates = of_profile(asked.profile)
        print(f'    "{name}": Rates(')
        for field, value in asdict(rates).items():
            print(f"        {field}={value:.3g},")
        print("    ),")
        return
    for threads in asked.threads:
        torch.set_num_threads(threads)
        measured: list[Rates] = []
        started = time.monotonic()
        while not measured or time.monotonic() - started < 60 * asked.minutes:
            measured.append(gauge_of_cpu().run())
        this = processor(threads)
        print(f'    Processor("{this.name}", "{this.vectors}", {threads}): Rates(')
        for name, value in asdict(least(measured)).items():
            print(f"        {name}={value:.3g},")
        print(f"    ),  # the least of {len(measured)} measurements")


if __name__ == "__main__":
    main()
