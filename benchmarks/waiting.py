"""What a call takes where other threads are asleep, have no CPU, or those of a product have it.

OpenMP's threads fall asleep some milliseconds after a call, and where all CPUs have work they get
one only when the system lets them; until then they keep it from others. So calls that one thread
has done sooner do without them at such times, and larger ones let them sleep at once where
something else comes between calls, unless the program has asked for threads. Each way is measured
back to back, after pauses, by turns with the matrix product that makes the logits, and beside a
process that keeps one CPU busy; means, since it is the rare long waits that count.
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
from typing import Any, NamedTuple

import numpy as np

import machine
import report
import softce_fast
import timing

SHAPES = ((64, 1000), (128, 1000), (512, 1000), (2048, 1000))
FEATURES = 128  # of the matrix product
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


class Situation(NamedTuple):
    """What comes before each call, and what runs beside it."""

    pause: float = 0.0  # seconds
    product: bool = False  # timed with the call
    beside: Callable[[], AbstractContextManager[None]] = nullcontext


SITUATIONS = {
    "back to back": Situation(),
    "every 50 ms": Situation(pause=0.05),
    "with the matrix product before it, both": Situation(product=True),
    report.BESIDE: Situation(beside=busy_process),
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


def calls(rows: int, classes: int) -> tuple[timing.Call, timing.Call]:
    """Softmax of logits, and the matrix product that makes these with it."""
    generator = np.random.default_rng(0)
    hidden = generator.standard_normal((rows, FEATURES), dtype=np.float32)
    matrix = generator.standard_normal((classes, FEATURES), dtype=np.float32)
    logits = hidden @ matrix.T
    softmax = partial(softce_fast.softmax, logits, out=np.ones_like(logits))

    def with_product() -> None:
        np.matmul(hidden, matrix.T, out=logits)
        softmax()

    return softmax, with_product


def measure(options: Any) -> dict[str, Any]:
    seconds, rounds = (0.1, 2) if options.quick else (0.5, 5)
    cells = []
    for rows, classes in SHAPES:
        softmax, with_product = calls(rows, classes)
        for title, situation in SITUATIONS.items():
            call = with_product if situation.product else softmax
            blocks = {way: partial(block, way, call, situation.pause, seconds) for way in WAYS}
            with situation.beside():
                # Whatever ran before is asleep after the pause.
                times = timing.interleaved(blocks, rounds, pause=0.1, average=statistics.mean)
            shape = f"{rows}x{classes}"
            cells.append({"shape": shape, "situation": title, "seconds": timing.medians(times)})
    return {"cells": cells}


if __name__ == "__main__":
    report.run("waiting", __doc__, measure, ["numpy"])
