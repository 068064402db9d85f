"""What each option of cross_entropy_with_grad costs, against the call without it.

The plain call against itself shows what the machine's noise alone does to a ratio; softmax, which
has the same bytes to read and write and no options of a loss, what the plain call pays for them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import report
import softce_fast
import timing
from report import NO_OPTION
from timing import Call

SHAPES = ((16_384, 1000), (1_000_000, 10))


def calls(rows: int, classes: int) -> dict[str, Call]:
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((rows, classes), dtype=np.float32)
    gradient = np.ones_like(logits)
    labels = generator.integers(0, classes, rows)
    probabilities = generator.random((rows, classes), dtype=np.float32)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    options: dict[str, dict[str, Any]] = {
        NO_OPTION: {},
        f"{NO_OPTION}, again": {},
        "reduction='sum'": {"reduction": "sum"},
        "ignore_index": {"target": np.where(generator.random(rows) < 0.1, -100, labels)},
        "weight": {"weight": generator.random(classes, dtype=np.float32)},
        "sample_weight": {"sample_weight": generator.random(rows, dtype=np.float32)},
        "temperature": {"temperature": 2.0},
        "z_loss": {"z_loss": 1e-4},
        "label_smoothing": {"label_smoothing": 0.1},
        "class probabilities": {"target": probabilities},
        "labels of int32": {"target": labels.astype(np.int32)},
    }
    plain = partial(softce_fast.cross_entropy_with_grad, logits, target=labels, grad_out=gradient)
    return {
        **{name: partial(plain, **keywords) for name, keywords in options.items()},
        "softmax instead": partial(softce_fast.softmax, logits, out=gradient),
    }


def measure(options: Any) -> dict[str, Any]:
    seconds = {}
    for rows, classes in SHAPES:
        times = timing.alternate(calls(rows, classes), 3 if options.quick else 25, seconds=0)
        seconds[f"{rows}x{classes}"] = timing.medians(times)
    return {"seconds": seconds}


if __name__ == "__main__":
    report.run("options", __doc__, measure, ["numpy"])
