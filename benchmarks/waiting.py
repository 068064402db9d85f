"""What a call of few tenths of a millisecond takes where other threads are asleep or have no CPU.

OpenMP's threads fall asleep some milliseconds after a call, and where all CPUs have work they get
one only when the system lets them. So small calls do without them at such times, unless the
program has asked for threads. Each way is measured back to back, after pauses, and beside a process
that keeps one CPU busy; means, since it is the rare long waits that count.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np

import machine
import report
import softce_fast
import timing

SHAPES = ((64, 1000), (128, 1000), (512, 1000))
WAYS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "one thread": lambda: softce_fast.num_threads(1),
    "by itself": nullcontext,
    "all threads, asked for": lambda: softce_fast.num_threads(machine.available_cores()),
}


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.5)
        yield
    finally:
        process.kill()
        process.wait()


# Seconds between calls, and what runs beside them.
SITUATIONS: dict[str, tuple[float, Callable[[], AbstractContextManager[None]]]] = {
    "back to back": (0.0, nullcontext),
    "every 50 ms": (0.05, nullcontext),
    report.BESIDE: (0.0, busy_process),
}


def block(way: str, call: timing.Call, pause: float, seconds: float) -> timing.Block:
    """Times of calls with pauses between them, none of which warms up another."""
    times = []
    end = time.perf_counter() + seconds
    with WAYS[way]():
        while time.perf_counter() < end:
            time.sleep(pause)
            times.append(timing.timed(call, 1))
    return times


def cells(seconds: float, rounds: int) -> Iterator[dict[str, object]]:
    for shape in SHAPES:
        logits = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        call = partial(softce_fast.softmax, logits, out=np.ones_like(logits))
        for title, (pause, beside) in SITUATIONS.items():
            blocks = {way: partial(block, way, call, pause, seconds) for way in WAYS}
            with beside():
                # Whatever ran before is asleep after the pause.
                times = timing.interleaved(blocks, rounds, pause=0.1, average=statistics.mean)
            yield {
                "shape": f"{shape[0]}x{shape[1]}",
                "situation": title,
                "seconds": timing.medians(times),
            }


def measure(options: Any) -> dict[str, Any]:
    return {"cells": list(cells(*(0.1, 2) if options.quick else (0.5, 5)))}


if __name__ == "__main__":
    report.run("waiting", __doc__, measure, ["numpy"])
