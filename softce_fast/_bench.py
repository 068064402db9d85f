"""A race on one's own machine against NumPy; it needs nothing but NumPy."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import softce_fast as sf

from . import _dispatch, _textbook, reference

SHAPES = ((1, 10), (32, 1000), (100_000, 10), (4096, 1000), (32, 32768))
OPERATIONS = ("softmax", "cross_entropy", "cross_entropy_with_grad")
RIVALS = {"textbook NumPy": _textbook, "reference": reference, "softce_fast": sf}
SECONDS = 0.3  # of each measurement, at least

# From which on another program is said to have been in the way.
BUSY_LOAD = 0.3  # programs that want to run, over the CPUs, before the race
LEAST_SHARE = 0.9  # of the time that NumPy's one thread took, the part that it had a CPU


class Race(NamedTuple):
    """One operation on one shape."""

    operation: str
    shape: str
    seconds: dict[str, float]  # of a call, by rival
    cpu_share: float  # of the time of NumPy's calls

    @property
    def ratio(self) -> float:
        """How many times as long the textbook's lines take."""
        return self.seconds["textbook NumPy"] / self.seconds["softce_fast"]


def run() -> None:
    """Race, show a table, and say in a sentence what came out, and what was in the way."""
    load = _load()
    print(
        f"softce_fast {sf.__version__}: {_dispatch.isa} build, "
        f"{_counted(sf.get_num_threads(), 'thread')}; NumPy {np.__version__}; float32\n"
    )
    races = _races(_Progress(len(SHAPES) * len(OPERATIONS)))
    print(_table(races))
    print(f"\n{_summary(races)}")
    for reason in _reasons(races, load):
        print(reason)


def _races(progress: _Progress) -> list[Race]:
    generator = np.random.default_rng(0)
    races = []
    for shape in SHAPES:
        name = "x".join(map(str, shape))
        logits = generator.standard_normal(shape).astype(np.float32)
        labels = generator.integers(0, shape[1], shape[0])
        for operation in OPERATIONS:
            progress.step(f"{operation} {name}")
            arguments = (logits,) if operation == "softmax" else (logits, labels)
            timings = {
                rival: _timed(partial(getattr(module, operation), *arguments))
                for rival, module in RIVALS.items()
            }
            seconds = {rival: timing[0] for rival, timing in timings.items()}
            races.append(Race(operation, name, seconds, timings["textbook NumPy"][1]))
    progress.end()
    return races


def _timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Return the median of the seconds of a call, and the part of them that this thread ran."""
    call()
    times: list[float] = []
    start, start_of_cpu = time.perf_counter(), time.thread_time()
    while len(times) < 3 or time.perf_counter() - start < SECONDS:
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    share = (time.thread_time() - start_of_cpu) / (time.perf_counter() - start)
    return statistics.median(times), share


class _Progress:
    """A bar on a terminal; nothing elsewhere."""

    WIDTH = 24

    def __init__(self, total: int) -> None:
        self.total, self.begun = total, 0
        self.shown = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def step(self, what: str) -> None:
        done = self.WIDTH * self.begun // self.total
        self.begun += 1
        self._write(
            f"[{'#' * done}{'.' * (self.WIDTH - done)}] {self.begun} of {self.total}  {what}"
        )

    def end(self) -> None:
        self._write("")

    def _write(self, line: str) -> None:
        if self.shown:
            print(f"\r{line[:79]:79}", end="" if line else "\r", file=sys.stderr, flush=True)


def _table(races: list[Race]) -> str:
    lines = [["time of a call", "shape", *RIVALS, "times as fast as NumPy"]]
    lines += [
        [race.operation, race.shape, *map(_time, race.seconds.values()), _times(race.ratio)]
        for race in races
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )


def _time(seconds: float) -> str:
    unit, scale = next(
        (item for item in (("s", 1.0), ("ms", 1e-3)) if seconds >= item[1]), ("us", 1e-6)
    )
    return f"{seconds / scale:.3g} {unit}"


def _times(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio >= 1 else f"{ratio:.2g}"


def _summary(races: list[Race]) -> str:
    ratios = [race.ratio for race in races]
    least, most, median = map(_times, (min(ratios), max(ratios), statistics.median(ratios)))
    slower = [f"{race.operation} of {race.shape}" for race in races if race.ratio < 1]
    hardest = min(races, key=lambda race: race.ratio)
    return (
        f"softce_fast is {least} to {most} times as fast here as NumPy code out of a textbook, "
        f"{median} times in the median; it "
        + (
            f"was slower in {', '.join(slower)}."
            if slower
            else f"gains least in {hardest.operation} of {hardest.shape}."
        )
    )


def _reasons(races: list[Race], load: float) -> list[str]:
    """Return what kept the package from being faster, and what to do about it."""
    config = sf.show_config("dicts")
    assert config is not None
    isa, cpus = config["isa"], os.cpu_count() or 1
    reasons = []
    if isa["in use"] != isa["available"][0]:
        reasons.append(
            f"Build: {isa['in use']} is in use, {isa['available'][0]} would be faster: "
            "unset SOFTCE_FAST_ISA."
        )
    elif isa["in use"] == "baseline" and "avx2" in isa["built"]:
        reasons.append("Build: baseline, as this CPU has no AVX2; AVX2 would be twice as fast.")
    if not config["openmp"]["enabled"]:
        reasons.append("Threads: built without OpenMP, so there is one; build it where omp.h is.")
    elif config["threads"] < cpus:
        reasons.append(
            f"Threads: {config['threads']} of {cpus} CPUs may be used: OMP_NUM_THREADS, the CPU "
            "affinity or a quota says so."
        )
    share = min(race.cpu_share for race in races)
    if load > BUSY_LOAD or share < LEAST_SHARE:
        reasons.append(
            f"Busy machine: other programs were running (load {load * cpus:.1f} on "
            f"{_counted(cpus, 'CPU')} before the race; NumPy had a CPU for {share:.0%} of its "
            "time at worst), and calls on many threads lose most by that: run it again on a "
            "quiet machine, or compare on one thread with OMP_NUM_THREADS=1."
        )
    if not reasons:
        reasons.append(
            f"Nothing was in the way: the {isa['in use']} build, the best for this CPU, on all "
            f"{_counted(cpus, 'CPU')}, and no other program was busy."
        )
    return reasons


def _load() -> float:
    """Return how many programs wanted a CPU in the last minute, over the CPUs; 0 if unknown."""
    return os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 0.0


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"
