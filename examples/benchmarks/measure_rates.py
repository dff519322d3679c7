"""Measures this processor's rates again and again, for the table of known processors.

    python examples/benchmarks/measure_rates.py --minutes 3 --threads 1 2

Prints the least of each rate as an entry of `KNOWN` in captum_krypton/_kernels/rates.py. Whatever
else the machine does only makes a rate larger: the longer this runs, the less of that is in it.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict

import torch

from captum_krypton._kernels.bounds import least
from captum_krypton._kernels.calibrate import processor
from captum_krypton._kernels.measure import gauge_of_cpu
from captum_krypton._kernels.rates import Rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3.0, help="for each number of threads")
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    asked = parser.parse_args()
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
