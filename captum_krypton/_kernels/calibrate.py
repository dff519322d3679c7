"""This machine's rates: measured once, held against bounds and against maps, kept in a file."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from . import cuda_graph
from .bounds import Bounds, bounds_of_cpu, bounds_of_gpus, least
from .convolve_patches import panel_size
from .loader import backend_info
from .measure import Gauge, gauge_of_cpu, gauge_of_gpu
from .rates import GUESSED, GUESSED_OF_GPUS, KNOWN, KNOWN_GPUS, Processor, Rates

__all__ = ["Calibration", "Guess", "Measurement", "calibration_of", "processor", "rates_of"]

_FORMAT = 3  # of the file
_ATTEMPTS = 2  # to measure rates that can be
_PATIENCE = 5.0  # seconds to wait for another process that measures
_KEPT = 3  # measurements of a machine; a slower one that lasts is believed when it is all of them

# Measured by predicted time is 1.1 to 1.6 for the networks of docs/benchmarks.md, where rates are
# right. What is beyond these is mispredicted.
_SLOWER, _FASTER = 2.0, 1 / 1.5
_SHORT = 0.02  # seconds; Python takes much of a shorter map's time
_MAPS = 4  # mispredicted to the same side in a row, after which rates are measured again ...
_SECONDS = 10.0  # ... and the time of those maps at least: measuring takes less than a tenth of it
_BACK_OFF = 8  # times as long, after every time that rates have been measured again
_MOST_AGAIN = 6  # times; a month of maps
_FULL = ("none", "ieee", False)  # as PyTorch names float32 without TF32
_CHANGED = 1.25  # a rate that differs by less is the same

_NUMBERS = {"family": "cpu family", "model": "model"}  # as /proc/cpuinfo names them


@dataclass(frozen=True)
class Guess:
    """Rates that are not measured.

    Attributes:
        rates: the rates.
        origin: where they come from, in words.
    """

    rates: Rates
    origin: str

    def observe(self, predicted: float, seconds: float, *, at_most: bool = False) -> None:
        """Nothing follows from a map's time."""


@dataclass(frozen=True)
class Measurement:
    """Rates that were measured.

    Attributes:
        on: when, to the minute, in ISO 8601.
        rates: what was measured.
    """

    on: str
    rates: Rates


@dataclass(frozen=True)
class _Found:
    """What a file holds: measurements, and how often maps had them made to no effect."""

    measured: tuple[Measurement, ...]
    again: int

    @classmethod
    def of(cls, read: Any) -> _Found:
        """The content of a file of this format.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: where it is of another one.
        """
        if read["format"] != _FORMAT:
            raise ValueError(f"format {read['format']}")
        measured = []
        for entry in read["measured"][-_KEPT:]:
            rates = Rates(**entry["rates"])
            if not all(isinstance(value, float) for value in asdict(rates).values()):
                raise TypeError("a rate is not a number")
            measured.append(Measurement(str(entry["on"]), rates))
        return cls(tuple(measured), min(max(int(read["again"]), 0), _MOST_AGAIN))


class Calibration:
    """The rates of one device, and how far they are to be trusted.

    The file holds the last few measurements, and the least of each rate in them counts. So what was
    measured while the machine was busy does not outlast a measurement in a quiet moment, and what
    was measured before the machine became slower does not outlast a few of them.

    Args:
        path: the file.
        guess: rates where none can be measured.
        bounds: what measured rates must keep to.
        gauge: makes what measures them.
        patience: seconds to wait for another process that measures.
        now: the time of a measurement.
        later: how many maps are made with the guess before rates are measured, so that a first map
            does not wait for that; infinity where the guess is as good as a measurement, until maps
            say that it is not.
    """

    def __init__(
        self,
        path: Path,
        guess: Guess,
        bounds: Bounds,
        gauge: Callable[[], Gauge],
        *,
        patience: float = _PATIENCE,
        now: Callable[[], datetime] = datetime.now,
        later: float = 0,
    ) -> None:
        self.path, self.guess, self.bounds = path, guess, bounds
        self.gauge, self.patience, self.now = gauge, patience, now
        self._measured: tuple[Measurement, ...] = ()
        self._rates = guess.rates
        self._again = 0  # how often maps have had rates measured again
        self._refused = self._unkept = ""
        self._due, self._later = True, later
        self._side, self._maps, self._seconds = 0, 0, 0.0

    @property
    def rates(self) -> Rates:
        """The rates; measures them first where that is due."""
        if self._due and self._later <= 0:
            self._due = False
            self._settle()
        elif not self._measured:  # another process may have measured meanwhile
            self._adopt(self._read())
        return self._rates

    @property
    def origin(self) -> str:
        """Where the rates come from, in words."""
        _ = self.rates
        if not self._measured:
            reason = self._refused or "a first map does not wait for that"
            return f"{self.guess.origin}, not measured: {reason}"
        times = [measurement.on for measurement in self._measured]
        words = f"measured on {times[-1]}"
        if len(times) > 1:
            words += f", the least of {len(times)} measurements since {times[0]}"
        words += f"; not kept: {self._unkept}" if self._unkept else f", kept in {self.path}"
        return words + (f"; measuring again failed: {self._refused}" if self._refused else "")

    def observe(self, predicted: float, seconds: float, *, at_most: bool = False) -> None:
        """Compares a map's time with its prediction.

        After several maps in a row that all took much longer or all much less, the next use of the
        rates measures them again. That may change nothing, where it is the plan that is wrong: so
        every further time takes more of such maps.

        Args:
            predicted: seconds that its windows and base were expected to take.
            seconds: those that they took.
            at_most: whether `predicted` is an upper bound only.
        """
        self._later -= 1
        if max(predicted, seconds) < _SHORT:
            return
        side = 0
        if seconds > _SLOWER * predicted:
            side = 1
        elif seconds < _FASTER * predicted and not at_most:
            side = -1
        if side != self._side:
            self._side, self._maps, self._seconds = side, 0, 0.0
        if side == 0:
            return
        self._maps += 1
        self._seconds += seconds
        if self._maps >= _MAPS and self._seconds >= _SECONDS * _BACK_OFF**self._again:
            self._due, self._later = True, 0
            self._again += 1
            self._side = 0

    def _settle(self) -> None:
        """Takes the rates of the file, or measures them, where no other process does just now."""
        before = self._measured
        if self._is_news(self._read(), before):
            return
        with self._alone() as alone:
            if alone and not self._is_news(self._read(), before):
                self._measure()
            elif not alone:
                self._refused = "another process is measuring them"

    def _is_news(self, found: _Found | None, before: tuple[Measurement, ...]) -> bool:
        """Takes what is in the file, where it was not known; whether that was so."""
        news = found is not None and found.measured != before
        self._adopt(found)
        return news

    def _adopt(self, found: _Found | None) -> None:
        if found is not None and found.measured != self._measured:
            self._measured, self._refused, self._unkept = found.measured, "", ""
            self._rates = least([measurement.rates for measurement in found.measured])
            self._again = max(self._again, found.again)

    def _measure(self) -> None:
        try:
            gauge = self.gauge()
            for _ in range(_ATTEMPTS):
                rates = gauge.run()
                doubts = self.bounds.doubts(rates)
                if not doubts:
                    break
        except torch.OutOfMemoryError:  # the card is full
            doubts = ("no memory is left on the device",)
        if doubts:
            self._refused = "; ".join(doubts)
            return
        self._refused = ""
        new = Measurement(self.now().isoformat(timespec="minutes"), rates)
        self._measured = (*self._measured, new)[-_KEPT:]
        before, self._rates = self._rates, least([m.rates for m in self._measured])
        self._save(0 if _differ(before, self._rates) else self._again)

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Keeps other processes of this machine from measuring; False where one does for long.

        Two that measure at once measure each other.
        """
        from filelock import FileLock, Timeout  # most processes find a file, and need none

        # The operating system releases it when its holder dies. A holder that hangs is not waited
        # for, and where there is no lock to be had, one measures without.
        lock = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path.parent / "rates.lock")
            lock.acquire(timeout=self.patience)
        except Timeout:
            yield False
            return
        except (OSError, NotImplementedError):
            lock = None
        try:
            yield True
        finally:
            if lock is not None:
                lock.release()

    def _read(self) -> _Found | None:
        """What the file holds, as far as it can be."""
        try:
            found = _Found.of(json.loads(self.path.read_text()))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
        good = tuple(m for m in found.measured if not self.bounds.doubts(m.rates))
        return _Found(good, found.again) if good else None

    def _save(self, again: int) -> None:
        """Writes the file as a whole or not at all; where there is no room, `origin` says so."""
        content = {
            "format": _FORMAT,
            "again": again,
            "measured": [asdict(measurement) for measurement in self._measured],
        }
        self._unkept = ""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.path.parent, suffix=".json")
            with os.fdopen(handle, "w") as file:
                json.dump(content, file, indent=1)
            os.replace(name, self.path)
        except OSError as error:
            self._unkept = str(error)


def _differ(one: Rates, other: Rates) -> bool:
    return any(
        not 1 / _CHANGED < getattr(one, field.name) / getattr(other, field.name) < _CHANGED
        for field in fields(Rates)
    )


def rates_of(device: torch.device) -> Rates:
    """The rates of a device: measured on GPUs and where the compiled kernels run, else guessed.

    `KRYPTON_MEASURE=0` has them guessed everywhere.
    """
    return calibration_of(device).rates


def calibration_of(device: torch.device) -> Calibration | Guess:
    """The rates of a device, with where they come from."""
    on_gpu = device.type == "cuda"
    if os.environ.get("KRYPTON_MEASURE") == "0":
        return Guess(GUESSED_OF_GPUS if on_gpu else GUESSED, "guessed (KRYPTON_MEASURE=0)")
    if on_gpu:
        return _of_this_gpu(device, cuda_graph.precision())
    if device.type != "cpu" or panel_size() == 0:
        return Guess(GUESSED, "guessed (there are no compiled kernels)")
    return _of_this_machine(torch.get_num_threads(), os.environ.get("KRYPTON_KERNELS", ""))


@functools.cache
def _of_this_machine(threads: int, kernels: str) -> Calibration:
    this = processor(threads, kernels)
    parts = (str(this), platform.machine(), kernels, _binary(), torch.__version__)
    guess, bounds = Guess(GUESSED, "guessed"), bounds_of_cpu(threads)
    if this in KNOWN:
        guess = Guess(KNOWN[this], f"those of {this}")
        bounds = bounds.near(guess.rates, str(this))
    return Calibration(_path(parts), guess, bounds, gauge_of_cpu)


@functools.cache
def _of_this_gpu(device: torch.device, precision: tuple[Any, Any]) -> Calibration:
    name = torch.cuda.get_device_name(device)
    parts = (name, *map(str, precision), _binary("cuda"), torch.__version__)
    guess, later = Guess(GUESSED_OF_GPUS, "guessed"), 1.0
    if name in KNOWN_GPUS and (precision[0] in _FULL, precision[1] in _FULL) == (True, False):
        guess, later = Guess(KNOWN_GPUS[name], f"those of {name}"), math.inf
    bounds = bounds_of_gpus()
    return Calibration(_path(parts), guess, bounds, lambda: gauge_of_gpu(device), later=later)


def _path(parts: tuple[str, ...]) -> Path:
    """The file for what rates depend on."""
    home = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(home) if home else Path.home() / ".cache") / "captum_krypton"
    digest = hashlib.sha256("|".join((*parts, str(_FORMAT))).encode()).hexdigest()[:16]
    return folder / f"rates-{digest}.json"


def _binary(device: str = "cpu") -> str:
    """Which build of the kernels runs: another one may have other rates."""
    path = backend_info(device).path
    try:
        return "" if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:  # gone since it was loaded
        return ""


def processor(threads: int, kernels: str = "") -> Processor:
    """This machine's processor.

    Args:
        threads: threads of an operator.
        kernels: the vector instructions that the kernels are told to use; empty where torch's.
    """
    vectors = torch.backends.cpu.get_cpu_capability()
    return Processor(
        _name(), vectors if not kernels else f"{vectors} (kernels: {kernels})", threads
    )


@functools.cache
def _name() -> str:
    """What the system calls the processor; under Linux with family and model, where it has them.

    Virtual machines give many processors one name.
    """
    if sys.platform == "linux":
        try:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
        except OSError:
            lines = []
        found: dict[str, str] = {}
        for line in lines:
            key, _, value = line.partition(":")
            found.setdefault(key.strip(), value.strip())
        if "model name" in found:
            parts = [found["model name"]]
            parts += [f"{k} {found[name]}" for k, name in _NUMBERS.items() if name in found]
            return ", ".join(parts)
    return platform.processor()
