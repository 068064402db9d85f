"""Largest error of losses and gradients in ULP against long double, by kind of target and option.

On each build that this machine runs. The inputs are those of accuracy.py, fewer of them. Gradients
are measured at the larger of an entry's two terms, as they are promised.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

import report
import softce_fast as sf
from shapes import Array
from softce_fast import _dispatch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import truth
from truth import AccuracyInput

# Which target, and options whose values weights() may have to make.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "labels": ("labels", {}),
    "label smoothing 0.1": ("labels", {"label_smoothing": 0.1}),
    "class weights": ("labels", {"weight": "classes"}),
    "class weights, label smoothing 1": ("labels", {"weight": "classes", "label_smoothing": 1.0}),
    "sample weights": ("labels", {"sample_weight": "rows"}),
    "one-hot": ("one-hot", {}),
    "class probabilities": ("soft", {}),
    "class probabilities, class weights": ("soft", {"weight": "classes"}),
    "temperature 0.3": ("labels", {"temperature": 0.3}),
    "temperature 3": ("labels", {"temperature": 3.0}),
    "z_loss 0.01": ("labels", {"z_loss": 0.01}),
    "softcap 20": ("labels", {"softcap": 20.0}),
}


def weights(random: np.random.Generator, length: int) -> Array:
    """Return weights of 1e-3 to 1e6, and zeros."""
    found = 10.0 ** random.uniform(-3, 6, length)
    found[random.random(length) < 0.2] = 0
    found[-1] = 0.7
    return found


def call_for(kind: str, given: AccuracyInput) -> tuple[Array, dict[str, Any]]:
    """Return target and options of a kind."""
    target_kind, options = KINDS[kind]
    random = np.random.default_rng(given.classes)
    lengths = {"classes": given.classes, "rows": len(given.logits)}
    options = {
        name: weights(random, lengths[value]) if isinstance(value, str) else value
        for name, value in options.items()
    }
    if target_kind == "labels":
        return given.labels, options
    target = np.zeros(given.logits.shape)
    if target_kind == "soft":
        target = random.gamma(0.5, size=target.shape)
    target[np.arange(len(target)), given.labels] += 1
    return (target / target.sum(axis=1, keepdims=True)).astype(given.logits.dtype), options


def errors(class_counts: tuple[int, ...], elements: int) -> Iterator[dict[str, Any]]:
    """The largest error of each result, kind, dtype and build on each input."""
    for dtype in ("float32", "float64") if truth.HAS_EXTENDED else ("float32",):
        inputs = truth.accuracy_inputs(dtype, class_counts=class_counts, elements=elements)
        for given in tqdm(list(inputs), desc=dtype, unit="input"):
            for kind in KINDS:
                target, options = call_for(kind, given)
                options["reduction"] = "none"
                right = truth.cross_entropy_with_options(given.logits, target, **options)
                # A capped logit is rounded to the type that is computed in.
                step = float(np.finfo(dtype).eps)
                for isa in _dispatch.available():
                    with _dispatch.using(isa):
                        found = sf.cross_entropy_with_grad(given.logits, target, **options)
                    for name, value, exact, scale, doubt in zip(
                        ("loss", "gradient"), found, (right.loss, right.gradient),
                        (0.0, right.gradient_scale), (right.loss_doubt, right.gradient_doubt),
                        strict=True,
                    ):  # fmt: skip
                        error = truth.ulp_error(
                            value, exact, dtype, floor=scale, doubt=step * doubt
                        ).max()
                        yield {
                            "result": name, "kind": kind, "dtype": dtype, "isa": isa,
                            "ulp": float(error), "input": given.kind, "classes": given.classes,
                        }  # fmt: skip


def measure(options: Any) -> dict[str, Any]:
    class_counts = (2, 10) if options.quick else (2, 3, 10, 17, 100, 1000, 8193)
    elements = 2**10 if options.quick else 2**14
    found = pd.DataFrame(errors(class_counts, elements))
    of_each = found.groupby(["result", "kind", "dtype", "isa"], sort=False)
    return {
        "class_counts": list(class_counts),
        "elements_per_input": elements,
        "results": found.loc[of_each["ulp"].idxmax()].to_dict("records"),
    }


if __name__ == "__main__":
    report.run("targets", __doc__, measure, ("numpy", "softce_fast"))
