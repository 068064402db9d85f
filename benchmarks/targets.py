"""Largest error of losses and gradients in ULP against long double, by kind of target and option.

On each build that this machine runs. The inputs are those of accuracy.py, fewer of them. Gradients
are measured at the larger of an entry's two terms, as they are promised.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import accuracy
import report
import softce_fast as sf
from accuracy import AccuracyInput, truth
from shapes import Array
from softce_fast import _dispatch

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
    """Of 1e-3 to 1e6, and zeros."""
    found = 10.0 ** random.uniform(-3, 6, length)
    found[random.random(length) < 0.2] = 0
    found[-1] = 0.7
    return found


def call_for(kind: str, given: AccuracyInput) -> tuple[Array, dict[str, Any]]:
    """Target and options of a kind."""
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


def errors(given: AccuracyInput, dtype: str) -> Iterator[dict[str, Any]]:
    """The largest error of each result, kind and build."""
    for kind in KINDS:
        target, options = call_for(kind, given)
        options["reduction"] = "none"
        right = truth.cross_entropy_with_options(given.logits, target, **options)
        # A capped logit is rounded to the type that is computed in.
        step = float(np.finfo(dtype).eps)
        of_results = {
            "loss": (right.loss, 0.0, step * right.loss_doubt),
            "gradient": (right.gradient, right.gradient_scale, step * right.gradient_doubt),
        }
        for isa in _dispatch.available():
            with _dispatch.using(isa):
                found = sf.cross_entropy_with_grad(given.logits, target, **options)
            for (name, (exact, floor, doubt)), value in zip(of_results.items(), found, strict=True):
                error = truth.ulp_error(value, exact, dtype, floor=floor, doubt=doubt).max()
                yield {"result": name, "kind": kind, "dtype": dtype, "isa": isa, "ulp": error}


def measure(options: Any) -> dict[str, Any]:
    class_counts = (2, 10) if options.quick else (2, 3, 10, 17, 100, 1000, 8193)
    return accuracy.worst(errors, class_counts, 2**10 if options.quick else 2**14)


if __name__ == "__main__":
    report.run("targets", __doc__, measure, ("numpy", "softce_fast"))
