"""What a call of few tenths of a millisecond takes where other threads are asleep or have no CPU.

OpenMP's threads fall asleep some milliseconds after a call, and where all CPUs have work they get
one only when the system lets them. So small calls do without them at such times, unless the
program has asked for threads. Each way is measured back to back, after pauses, and beside a process
that keeps one CPU busy; means, since it is the rare long waits that count.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

import machine
import report
import softce_fast

RESULTS = Path(__file__).with_name("results")
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


class Situation(NamedTuple):
    pause: float  # seconds between calls
    beside: Callable[[], AbstractContextManager[None]]


SITUATIONS = {
    "back to back": Situation(0.0, nullcontext),
    "every 50 ms": Situation(0.05, nullcontext),
    "beside a busy process": Situation(0.0, busy_process),
}


def mean_seconds(call: Callable[[], object], pause: float, seconds: float) -> float:
    """Mean time of a call, of calls with pauses between them."""
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        if pause:
            time.sleep(pause)
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.mean(times)


def measure(seconds: float, rounds: int) -> list[dict[str, object]]:
    cells: list[dict[str, object]] = []
    for rows, classes in SHAPES:
        logits = np.random.default_rng(0).standard_normal((rows, classes), dtype=np.float32)
        call = partial(softce_fast.softmax, logits, out=np.ones_like(logits))
        for title, situation in SITUATIONS.items():
            found: dict[str, list[float]] = {name: [] for name in WAYS}
            with situation.beside():
                for _ in range(rounds):
                    for name, way in WAYS.items():
                        time.sleep(0.1)  # whatever ran before is asleep
                        with way():
                            found[name].append(mean_seconds(call, situation.pause, seconds))
            cells.append(
                {
                    "shape": f"{rows}x{classes}",
                    "situation": title,
                    "seconds": {name: statistics.median(values) for name, values in found.items()},
                }
            )
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.5, help="of a block")
    parser.add_argument("--rounds", type=int, default=5, help="blocks of each way")
    parser.add_argument("--json", type=Path, default=RESULTS / "waiting.json")
    options = parser.parse_args()
    document = {
        "kind": "waiting",
        **machine.describe(["numpy"]),
        "cells": measure(options.seconds, options.rounds),
    }
    print(report.aligned(*report.waiting_rows(document), left=2))
    machine.record(document, options.json)


if __name__ == "__main__":
    main()
