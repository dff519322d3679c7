"""A stand-in for a machine and its clock: work takes what its rates say, times what disturbs it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from captum_krypton._kernels.measure import Gauge, Sample
from captum_krypton._kernels.rates import GUESSED, Rates

# A server's core, with AVX-512.
TRUE = Rates(
    convolution=8e-12,
    grouped=1.9e-11,
    linear=1.8e-11,
    element=9e-11,
    call=8e-6,
    direct=7.5e-12,
    product=8.5e-12,
    transform=2.2e-10,
    depthwise=2.7e-11,
    pooling=3.7e-11,
    kernel=9e-6,
)

# As much of each kind of work as `gauge_of_cpu` times, and a call of a kernel with its work.
WORK: dict[str, tuple[dict[str, float], int]] = {
    "kernel": ({"kernel": 1}, 20),
    "convolution": ({"convolution": 1.6e9}, 2),
    "grouped": ({"grouped": 1.2e7}, 4),
    "linear": ({"linear": 2.7e8}, 2),
    "element": ({"element": 1.6e6}, 4),
    "call": ({"call": 1}, 20),
    "direct": ({"direct": 4.6e8}, 2),
    "wide": ({"product": 3.4e8, "transform": 2.65e6}, 2),
    "narrow": ({"product": 4.2e7, "transform": 2.65e6}, 2),
    "depthwise": ({"depthwise": 1.45e7}, 4),
    "pooling": ({"pooling": 1.45e7}, 4),
}
KERNELS = ("direct", "wide", "narrow", "depthwise", "pooling")

Lie = Callable[[str, int], float]
"""How many times as long a repetition of a kind of work takes: told its name and its number."""


def honest(name: str, number: int) -> float:
    """Nothing disturbs the machine."""
    return 1.0


@dataclass
class Machine:
    """What a gauge may be given to time.

    Attributes:
        lie: what disturbs the machine.
        rates: what its work takes.
        now: its clock.
        gauges: how often it has been measured.
    """

    lie: Lie = honest
    rates: Rates = TRUE
    now: float = 0.0
    gauges: int = 0

    def gauge(self) -> Gauge:
        self.gauges += 1
        samples = [
            Sample(self._runner(name, work), work, repeats)
            for name, (work, repeats) in WORK.items()
        ]
        return Gauge(samples, GUESSED, lambda: self.now, nullcontext)

    def _runner(self, name: str, work: dict[str, float]) -> Callable[[], object]:
        number = 0
        seconds = sum(amount * getattr(self.rates, kind) for kind, amount in work.items())
        seconds += self.rates.kernel * (name in KERNELS)

        def run() -> None:
            nonlocal number
            self.now += seconds * self.lie(name, number)
            number += 1

        return run
