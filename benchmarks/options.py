"""What each option of cross_entropy_with_grad costs, against the call without it.

Calls alternate; a ratio is that of two medians. The plain call against itself shows what the
machine's noise alone does to a ratio; softmax, which has the same bytes to read and write and no
options of a loss, what the plain call pays for having them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import alternate
import machine
import report
import softce_fast
from report import NO_OPTION

RESULTS = Path(__file__).with_name("results")
SHAPES = ((16_384, 1000), (1_000_000, 10))


def options_by_name(rows: int, classes: int) -> dict[str, dict[str, Any]]:
    """Keyword arguments by the name of the option."""
    generator = np.random.default_rng(0)
    target = generator.integers(0, classes, rows)
    probabilities = generator.random((rows, classes), dtype=np.float32)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    ignored = np.where(generator.random(rows) < 0.1, -100, target)
    return {
        NO_OPTION: {"target": target},
        f"{NO_OPTION}, again": {"target": target},
        "reduction='sum'": {"target": target, "reduction": "sum"},
        "ignore_index": {"target": ignored},
        "weight": {"target": target, "weight": generator.random(classes, dtype=np.float32)},
        "sample_weight": {
            "target": target, "sample_weight": generator.random(rows, dtype=np.float32),
        },
        "temperature": {"target": target, "temperature": 2.0},
        "z_loss": {"target": target, "z_loss": 1e-4},
        "label_smoothing": {"target": target, "label_smoothing": 0.1},
        "class probabilities": {"target": probabilities},
        "labels of int32": {"target": target.astype(np.int32)},
    }  # fmt: skip


def medians(rows: int, classes: int, rounds: int) -> dict[str, float]:
    """Seconds of a call, by option."""
    logits = np.random.default_rng(1).standard_normal((rows, classes), dtype=np.float32)
    gradient = np.ones_like(logits)
    calls: dict[str, Callable[[], Any]] = {
        name: partial(softce_fast.cross_entropy_with_grad, logits, grad_out=gradient, **options)
        for name, options in options_by_name(rows, classes).items()
    }
    calls["softmax instead"] = partial(softce_fast.softmax, logits, out=gradient)
    return alternate.medians(calls, rounds, f"{rows} x {classes}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", type=Path, default=RESULTS / "options.json")
    options = parser.parse_args()
    document = {
        "kind": "options",
        **machine.describe(["numpy"]),
        "seconds": {
            f"{rows}x{classes}": medians(rows, classes, options.rounds) for rows, classes in SHAPES
        },
    }
    print(report.aligned(*report.options_rows(document), left=1))
    machine.record(document, options.json)


if __name__ == "__main__":
    main()
