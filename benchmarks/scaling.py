"""Time against the number of threads: 1 to 16, or as many as there are cores."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

import machine
import peers
import report
import softce_fast
import timing
from shapes import Case, Problem

FUNCTIONS = ("softmax_out", "cross_entropy", "cross_entropy_with_grad_out")
SHAPES = ((1_000_000, 10), (65_536, 1000), (256, 131_072), (1, 2**26))


def measure(options: Any) -> dict[str, Any]:
    points = []
    for shape in tqdm(SHAPES[::3] if options.quick else SHAPES, unit="shape"):
        calls = {
            function: peers.call(softce_fast, Problem.of(Case(function, shape, "float32")))
            for function in FUNCTIONS
        }
        base: dict[str, timing.Timing] = {}
        for threads in range(1, min(machine.available_cores(), 16) + 1):
            with softce_fast.num_threads(threads):
                times = timing.alternate(calls, 5, 0.006 if options.quick else 0.05, least=1)
            base = base or times
            points += [
                {
                    "study": "threads", "function": function, "dtype": "float32",
                    "rows": shape[0], "classes": shape[1], "seconds": found._asdict(),
                    "threads": threads, "speedup": base[function].median / found.median,
                }
                for function, found in times.items()
            ]  # fmt: skip
    return {"points": points}


if __name__ == "__main__":
    report.run("scaling", __doc__, measure)
