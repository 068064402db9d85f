"""The one timer: blocks of calls in turn, so that a slow spell of the machine hits all alike.

    seconds = timing.medians(timing.alternate({"old": old, "new": new}))
    seconds["old"] / seconds["new"]  # times as fast as "old"

A block is one call that warms the caches and then some that are timed. What counts is the median of
the blocks' medians, and ratios of such medians.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

Call = Callable[[], Any]
Block = list[float]  # seconds of a call
SHORTEST_TIMING = 2e-4  # calls that take less are timed many at once, above the clock's noise
LONG = 0.1  # seconds of a call that needs no other before it to be warm


class Timing(NamedTuple):
    """Seconds of a call."""

    median: float
    fastest_block: float
    slowest_block: float
    blocks: int


def timed(call: Call, number: int) -> float:
    """Seconds per call over `number` calls; a fresh result is given up within the time."""
    start = time.perf_counter_ns()
    for _ in range(number):
        call()
    return (time.perf_counter_ns() - start) / number * 1e-9


def repeats(seconds: float) -> int:
    """How many calls of that length to time at once."""
    return max(math.ceil(SHORTEST_TIMING / max(seconds, 1e-9)), 1)


def fastest(calls: Mapping[str, Call]) -> tuple[str, int]:
    """The name of the fastest of some calls, and how many of them to time at once."""
    trials = []
    for name, call in calls.items():
        call()
        number = repeats(min(timed(call, 1) for _ in range(3)))
        trials.append((min(timed(call, number) for _ in range(3)), name, number))
    return min(trials)[1:]


def block(call: Call, number: int, seconds: float, least: int) -> Block:
    """`least` timings of `number` calls, and more until the seconds are over."""
    timed(call, number)
    end = time.perf_counter() + seconds
    times: Block = []
    while len(times) < least or time.perf_counter() < end:
        times.append(timed(call, number))
    return times


def interleaved(
    blocks: Mapping[str, Callable[[], Block]],
    rounds: int,
    pause: float = 0.0,
    average: Callable[[Block], float] = statistics.median,
) -> dict[str, Timing]:
    """Run blocks in turn, A B C A B C ..., with a pause before each; those without times fail."""
    averages: dict[str, Block] = {}
    for _ in range(rounds):
        for name, run in blocks.items():
            time.sleep(pause)
            if times := run():
                averages.setdefault(name, []).append(average(times))
    return {
        name: Timing(statistics.median(found), min(found), max(found), len(found))
        for name, found in averages.items()
    }


def alternate(
    calls: Mapping[str, Call],
    rounds: int = 7,
    seconds: float = 0.1,
    least: int = 3,
    pause: float = 0.0,
) -> dict[str, Timing]:
    """Time calls in this process in alternating blocks of about that many seconds."""
    blocks = {}
    for name, call in calls.items():
        _, number = fastest({name: call})
        blocks[name] = partial(block, call, number, seconds, least)
    return interleaved(blocks, rounds, pause)


def medians(timings: Mapping[str, Timing]) -> dict[str, float]:
    """Seconds of a call by name."""
    return {name: timing.median for name, timing in timings.items()}
