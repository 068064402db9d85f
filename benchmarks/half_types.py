"""float16 and bfloat16 against float32, on arrays of 64 MB and more, with the build in use.

Calls with the three types alternate. ``SOFTCE_FAST_ISA`` chooses the build.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import alternate
import machine
import report
import softce_fast
from softce_fast import _dispatch

RESULTS = Path(__file__).with_name("results")
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
SHAPES = (
    (12_000_000, 3),
    (4_000_000, 10),
    (2_000_000, 16),
    (1_000_000, 64),
    (600_000, 100),
    (300_000, 128),
    (40_000, 1000),
    (1100, 32_768),
)
OPERATIONS = ("softmax_out", "cross_entropy", "cross_entropy_with_grad_out")


def call(operation: str, logits: Any, labels: Any, out: Any) -> Callable[[], Any]:
    if operation == "softmax_out":
        return partial(softce_fast.softmax, logits, out=out)
    if operation == "cross_entropy":
        return partial(softce_fast.cross_entropy, logits, labels)
    return partial(softce_fast.cross_entropy_with_grad, logits, labels, grad_out=out)


def measure(rows: int, classes: int, rounds: int) -> list[dict[str, Any]]:
    """Seconds of each operation with each type."""
    generator = np.random.default_rng(0)
    values = generator.standard_normal((rows, classes), dtype=np.float32)
    labels = generator.integers(0, classes, rows)
    logits = {name: values.astype(dtype) for name, dtype in DTYPES.items()}
    outputs = {name: np.ones_like(array) for name, array in logits.items()}
    return [
        {
            "shape": f"{rows}x{classes}",
            "operation": operation,
            "seconds": alternate.medians(
                {name: call(operation, logits[name], labels, outputs[name]) for name in DTYPES},
                rounds,
                f"{operation} {rows}x{classes}",
            ),
        }
        for operation in OPERATIONS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, default=RESULTS / f"half-types-{_dispatch.isa}.json")
    options = parser.parse_args()
    document = {
        "kind": "half types",
        **machine.describe(["numpy", "ml_dtypes"]),
        "cells": [cell for shape in SHAPES for cell in measure(*shape, options.rounds)],
    }
    print(report.aligned(*report.half_types_rows(document), left=2))
    machine.record(document, options.json)


if __name__ == "__main__":
    main()
