"""Largest error in units in the last place against long double, of softce_fast and its peers."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

import report
from peers import PEERS, Peer
from shapes import Array, Case, Problem

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import truth
from truth import AccuracyInput


class Function(NamedTuple):
    operation: str
    truth: Callable[[AccuracyInput], Array]
    floor: float = 0.0  # where the spacing is taken at least
    target: float = 4


FUNCTIONS = {
    "softmax": Function("softmax_fresh", lambda x: truth.softmax(x.logits)),
    "log_softmax": Function("log_softmax_fresh", lambda x: truth.log_softmax(x.logits)),
    "logsumexp": Function("logsumexp", lambda x: truth.logsumexp(x.logits), 1.0, 2),
    "cross_entropy": Function("cross_entropy", lambda x: truth.cross_entropy(x.logits, x.labels)),
    "gradient": Function(
        "cross_entropy_with_grad_fresh", lambda x: truth.gradient(x.logits, x.labels)
    ),
}
MEASURED = ("softce_fast", "textbook", "torch", "scipy", "jax")
INSTALLED = [name for name in MEASURED if not PEERS[name].missing()]


def result(peer: Peer, operation: str, given: AccuracyInput, dtype: str) -> Array:
    """What a peer computes, losses not reduced."""
    case = Case(operation, given.logits.shape, dtype)
    way = next(iter(peer.ways(Problem(case, given.logits, given.labels, "none")).values()))
    return list(peer.parts(case, way()).values())[-1]


def errors(given: AccuracyInput, dtype: str) -> Iterator[dict[str, Any]]:
    """The largest error of each function and implementation."""
    for function, (operation, compute_truth, floor, _) in FUNCTIONS.items():
        exact = compute_truth(given)
        for name in INSTALLED:
            found = result(PEERS[name], operation, given, dtype)
            error = truth.ulp_error(found, exact, dtype, floor=floor).max()
            yield {"function": function, "dtype": dtype, "implementation": name, "ulp": error}


def worst(
    errors: Callable[[AccuracyInput, str], Iterable[dict[str, Any]]],
    class_counts: Iterable[int],
    elements: int,
) -> dict[str, Any]:
    """Of errors that differ in nothing but the input the largest, with that input."""
    found = []
    for dtype in ("float32", "float64") if truth.HAS_EXTENDED else ("float32",):
        inputs = truth.accuracy_inputs(dtype, class_counts=class_counts, elements=elements)
        for given in tqdm(inputs, desc=dtype, unit="input"):
            of_input = {"input": given.kind, "classes": given.classes}
            found += [{**error, **of_input} for error in errors(given, dtype)]
    table = pd.DataFrame(found).astype({"ulp": float})
    kinds = [name for name in found[0] if name not in ("ulp", *of_input)]
    of_each = table.groupby(kinds, sort=False)
    largest = table.loc[of_each["ulp"].idxmax()].replace({"ulp": {math.inf: None}})
    return {
        "class_counts": list(class_counts),
        "elements_per_input": elements,
        "results": largest.to_dict("records"),  # without infinity, which JSON has not
    }


def measure(options: Any) -> dict[str, Any]:
    class_counts = (2, 10, 1000, 32_768) if options.quick else truth.CLASS_COUNTS
    targets = {name: function.target for name, function in FUNCTIONS.items()}
    elements = 2**15 if options.quick else 2**18
    # A peer that overflows or takes log(0) shows it in its error.
    with np.errstate(all="ignore"):
        return {"targets": targets, **worst(errors, class_counts, elements)}


if __name__ == "__main__":
    packages = ("numpy", "softce_fast", "scipy", "torch", "jax")
    report.run("accuracy", __doc__, measure, packages)
