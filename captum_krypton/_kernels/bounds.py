"""Which measured rates cannot be: a busy machine's, or those of a clock that lied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from .rates import GUESSED_OF_GPUS, Rates

__all__ = ["Bounds", "bounds_of_cpu", "bounds_of_gpus", "least"]

# What one core may do in a second at most: two fused operations of 512 bits a cycle of 6 GHz, twice
# as much to be safe, and 32 times that where torch has a unit for matrices of short types.
_PEAK = 64 * 6e9
_MATRICES = 32
_SHORTEST_CALL = 1e-8
_LONGEST_CALL = 1e-2
_SLOWEST = 1e-7  # seconds of anything else, on one thread of any processor

# How much two rates may differ. Processors, vector instructions and numbers of threads differ by
# less than a third of this; what is disturbed by a busy core is a hundred times slower.
_RATIOS = (
    ("kernel", "call", 1 / 30, 30.0),
    ("linear", "convolution", 1 / 30, 30.0),
    ("direct", "convolution", 1 / 60, 60.0),
    ("grouped", "convolution", 1 / 2, 500.0),
    ("element", "convolution", 1.0, 1000.0),
    ("product", "direct", 1 / 5, 8.0),
    ("transform", "product", 3.0, 300.0),
    ("depthwise", "direct", 1 / 2, 80.0),
    ("pooling", "direct", 1 / 2, 120.0),
)
_RATIOS_OF_GPUS = (
    ("kernel", "call", 1 / 100, 30.0),
    ("linear", "convolution", 1 / 100, 100.0),
    ("grouped", "convolution", 1.0, 10000.0),
    ("element", "convolution", 1.0, 30000.0),
    ("pooling", "element", 1 / 100, 100.0),
)
_AS_KNOWN = 2.0  # times the rates of a known processor, or part of them: clocks and memory differ
_DEPTH = 64  # products for every number that is transformed, with 128 channels in and out


@dataclass(frozen=True)
class Bounds:
    """What rates must keep to.

    Attributes:
        low: the least of each.
        high: the most of each.
        ratios: the names of two rates, and the least and the most of the first by the second.
        known: what `low` and `high` are by, for a message.
    """

    low: Rates
    high: Rates
    ratios: Sequence[tuple[str, str, float, float]] = ()
    known: str = "any processor"

    def near(self, rates: Rates, known: str, factor: float = _AS_KNOWN) -> Bounds:
        """These bounds, and no farther than a factor from the rates of a known processor."""
        values = asdict(rates)
        low = Rates(**{name: value / factor for name, value in values.items()})
        high = Rates(**{name: value * factor for name, value in values.items()})
        return replace(self, low=low, high=high, known=known)

    def doubts(self, rates: Rates) -> tuple[str, ...]:
        """What cannot be in the rates, in words."""
        found = asdict(rates)
        low, high = asdict(self.low), asdict(self.high)
        doubts = [
            f"{name} takes {value:.2g} s, and {low[name]:.2g} to {high[name]:.2g} s on {self.known}"
            for name, value in found.items()
            if not (low[name] <= value <= high[name] and math.isfinite(value))
        ]
        for one, other, least, most in self.ratios:
            ratio = found[one] / found[other] if found[other] > 0 else math.nan
            if not least <= ratio <= most:
                doubts.append(
                    f"{one} takes {ratio:.2g} times as long as {other}, and {least:.2g} to "
                    f"{most:.2g} times on any processor"
                )
        return tuple(doubts)


def bounds_of_cpu(threads: int) -> Bounds:
    """The bounds of any CPU's rates.

    Args:
        threads: threads of an operator.
    """
    fastest = 1 / (_PEAK * threads)
    everything = dict.fromkeys(asdict(GUESSED_OF_GPUS), fastest)
    low = Rates(**everything | {"call": _SHORTEST_CALL, "kernel": _SHORTEST_CALL})
    low = replace(low, convolution=fastest / _MATRICES, linear=fastest / _MATRICES)
    high = Rates(**dict.fromkeys(everything, _SLOWEST))
    high = replace(high, call=_LONGEST_CALL, kernel=_LONGEST_CALL)
    return Bounds(low, high, _RATIOS)


def bounds_of_gpus() -> Bounds:
    """The bounds of any GPU's rates: far about those of a data centre's."""
    values = asdict(GUESSED_OF_GPUS)
    low = Rates(**{name: value / 100 for name, value in values.items()})
    high = Rates(**{name: value * 3000 for name, value in values.items()})
    high = replace(high, call=_LONGEST_CALL, kernel=_LONGEST_CALL)
    return Bounds(low, high, _RATIOS_OF_GPUS, "any GPU")


def least(measured: Sequence[Rates]) -> Rates:
    """The least of each rate; of Winograd's two, which are measured together, the cheaper pair."""
    pair = min(measured, key=lambda rates: _DEPTH * rates.product + rates.transform)
    values = {name: min(asdict(rates)[name] for rates in measured) for name in asdict(pair)}
    return Rates(**values | {"product": pair.product, "transform": pair.transform})
