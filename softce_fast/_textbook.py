"""Softmax and cross-entropy in NumPy as a textbook has them: what every comparison is against.

These are the lines that users write: the maximum is subtracted, all else is the formula.
:mod:`softce_fast.reference` is stricter, about edge values and digits, and slower.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def softmax(x: Array, axis: int = -1, *, out: Array | None = None) -> Array:
    """Return exp(x) over its sum."""
    exponentials = np.exp(x - x.max(axis, keepdims=True))
    result: Array = np.divide(exponentials, exponentials.sum(axis, keepdims=True), out=out)
    return result


def log_softmax(x: Array, axis: int = -1, *, out: Array | None = None) -> Array:
    """Return the logarithm of the softmax."""
    shifted = x - x.max(axis, keepdims=True)
    result: Array = np.subtract(shifted, np.log(np.exp(shifted).sum(axis, keepdims=True)), out=out)
    return result


def logsumexp(x: Array, axis: int = -1) -> Array:
    """Return the logarithm of the sum of exponentials."""
    largest = x.max(axis, keepdims=True)
    result: Array = (np.log(np.exp(x - largest).sum(axis, keepdims=True)) + largest).squeeze(axis)
    return result


def cross_entropy(logits: Array, target: Array, axis: int = -1, *, reduction: str = "mean") -> Any:
    """Return minus the log-probabilities at the labels."""
    losses = -log_softmax(logits, axis)[_at_labels(target, axis)]
    return losses.mean() if reduction == "mean" else losses


def cross_entropy_with_grad(
    logits: Array,
    target: Array,
    axis: int = -1,
    *,
    reduction: str = "mean",
    grad_out: Array | None = None,
) -> tuple[Any, Array]:
    """Return the loss, and the probabilities less 1 at the labels."""
    index = _at_labels(target, axis)
    gradient = softmax(logits, axis, out=grad_out)
    losses = -np.log(gradient[index])
    gradient[index] -= 1
    if reduction != "mean":
        return losses, gradient
    gradient /= target.size
    return losses.mean(), gradient


def _at_labels(labels: Array, axis: int) -> tuple[Array, ...]:
    """Return the index of each row's label."""
    if labels.ndim == 1 and axis == -1:
        return np.arange(len(labels)), labels
    index: list[Array] = list(np.indices(labels.shape, sparse=True))
    index.insert(axis % (labels.ndim + 1), labels)
    return tuple(index)
