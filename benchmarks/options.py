"""What each option of cross_entropy_with_grad costs, against the call without it.

Calls alternate; a ratio is that of two medians. The first line, the plain call against itself,
shows what the machine's noise alone does to a ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import machine
import report
import softce_fast

RESULTS = Path(__file__).with_name("results")
SHAPES = ((16_384, 1000), (1_000_000, 10))


def calls(rows: int, classes: int) -> dict[str, dict[str, Any]]:
    """Keyword arguments by the name of the option."""
    generator = np.random.default_rng(0)
    target = generator.integers(0, classes, rows)
    probabilities = generator.random((rows, classes), dtype=np.float32)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    ignored = np.where(generator.random(rows) < 0.1, -100, target)
    return {
        "none": {"target": target},
        "none, again": {"target": target},
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
    chosen = calls(rows, classes)
    times: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in tqdm(range(rounds), desc=f"{rows} x {classes}", unit="round"):
        for name, options in chosen.items():
            start = time.perf_counter()
            softce_fast.cross_entropy_with_grad(logits, grad_out=gradient, **options)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", type=Path, default=RESULTS / "options.json")
    options = parser.parse_args()
    found = {shape: medians(*shape, options.rounds) for shape in SHAPES}
    header = ["option", *(f"{rows} x {classes}" for rows, classes in SHAPES)]
    rows = [
        [name, *(f"{1e3 * column[name]:.2f} ms, {column[name] / column['none']:.2f}"
                 for column in found.values())]
        for name in found[SHAPES[0]]
    ]  # fmt: skip
    print(report.aligned(header, rows, left=1))
    document = {
        "kind": "options",
        **machine.describe(["numpy"]),
        "seconds": {f"{rows}x{classes}": times for (rows, classes), times in found.items()},
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(document, indent=1) + "\n")
    print(f"saved {options.json}")


if __name__ == "__main__":
    main()
