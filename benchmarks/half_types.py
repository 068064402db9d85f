"""float16 and bfloat16 against float32, on arrays of 64 MB and more, with the build in use.

``SOFTCE_FAST_ISA`` chooses the build.
"""

from __future__ import annotations

from dataclasses import replace

import machine
import peers
import report
import softce_fast
import timing
from shapes import HALF_DTYPES, Case, Problem
from softce_fast import _dispatch

SHAPES = (
    *((12_000_000, 3), (4_000_000, 10), (2_000_000, 16), (1_000_000, 64)),
    *((600_000, 100), (300_000, 128), (40_000, 1000), (1100, 32_768)),
)
OPERATIONS = ("softmax_out", "cross_entropy", "cross_entropy_with_grad_out")


def seconds(operation: str, shape: tuple[int, int], rounds: int) -> dict[str, float]:
    """Seconds of a call by dtype."""
    calls = {
        dtype: peers.call(
            softce_fast, replace(Problem.of(Case(operation, shape, dtype)), reduction="mean")
        )
        for dtype in ("float32", *HALF_DTYPES)
    }
    return timing.medians(timing.alternate(calls, rounds, seconds=0))


def main() -> None:
    options = report.parser(f"half-types-{_dispatch.isa}", __doc__).parse_args()
    cells = [
        {
            "shape": f"{shape[0]}x{shape[1]}",
            "operation": operation,
            "seconds": seconds(operation, shape, rounds=3 if options.quick else 15),
        }
        for shape in SHAPES
        for operation in OPERATIONS
    ]
    document = {**machine.describe(["numpy", "ml_dtypes"]), "cells": cells}
    report.finish("half types", options.json, document)


if __name__ == "__main__":
    main()
