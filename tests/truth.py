"""The truth in long double, the error of a result against it, and the inputs to measure it on.

Independent of softce_fast: only NumPy. Inputs are rows of logits, the last axis holds the classes.
Logits of any dtype convert exactly to long double. On x86-64 that is the 80-bit format, with 11
bits more than float64; where long double is no wider than float64 (``HAS_EXTENDED`` is False) the
truth still serves float32 and the half types.

No formula here subtracts two numbers that are close: sums leave out the element that would cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

HAS_EXTENDED = bool(np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant)


@dataclass(frozen=True)
class _Row:
    """The parts of a batch of rows from which each truth is put together, in long double."""

    shifted: Array  # logits - largest
    exponentials: Array  # exp(shifted)
    largest: Array  # per row, axis kept
    others: Array  # sum of the exponentials without the largest one, axis kept


def _parts(logits: Array) -> _Row:
    wide = np.asarray(logits).astype(np.longdouble)
    largest = wide.max(axis=-1, keepdims=True)
    shifted = wide - largest
    exponentials = np.exp(shifted)
    without_top = exponentials.copy()
    np.put_along_axis(without_top, wide.argmax(axis=-1, keepdims=True), 0, axis=-1)
    return _Row(shifted, exponentials, largest, without_top.sum(axis=-1, keepdims=True))


def softmax(logits: Array) -> Array:
    parts = _parts(logits)
    result: Array = parts.exponentials / (1 + parts.others)
    return result


def log_softmax(logits: Array) -> Array:
    # Both terms are <= 0 or the first is exactly 0: nothing cancels, also on confident rows.
    parts = _parts(logits)
    return parts.shifted - np.log1p(parts.others)


def logsumexp(logits: Array) -> Array:
    parts = _parts(logits)
    result: Array = (parts.largest + np.log1p(parts.others))[..., 0]
    return result


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Loss of each row, with class indices as labels."""
    parts = _parts(logits)
    at_label = np.take_along_axis(parts.shifted, np.asarray(labels)[..., None], axis=-1)
    result: Array = (np.log1p(parts.others) - at_label)[..., 0]
    return result


def gradient(logits: Array, labels: Array) -> Array:
    """Gradient of the sum of the losses; at the label it is -(sum of the others) / total."""
    parts = _parts(logits)
    total = 1 + parts.others
    result: Array = parts.exponentials / total
    index = np.asarray(labels)[..., None]
    others = parts.exponentials.copy()
    np.put_along_axis(others, index, 0, axis=-1)
    np.put_along_axis(result, index, -others.sum(axis=-1, keepdims=True) / total, axis=-1)
    return result


def along(function: Callable[[Array], Array], x: Any, axes: tuple[int, ...]) -> Array:
    """``function`` of the rows of ``x`` along several axes, the result in the axes of ``x``."""
    array = np.asarray(x)
    last = tuple(range(array.ndim - len(axes), array.ndim))
    moved = np.moveaxis(array, axes, last)
    result = function(moved.reshape(*moved.shape[: array.ndim - len(axes)], -1))
    if result.ndim == array.ndim - len(axes):
        return result
    return np.moveaxis(result.reshape(moved.shape), last, axes)


def difference_quotient(
    function: Callable[[Array], Any], point: Array, step: float = 1e-6
) -> Array:
    """The gradient of a number by central differences."""
    gradient = np.empty_like(point)
    for index in np.ndindex(point.shape):
        values = []
        for sign in (1, -1):
            moved = point.copy()
            moved[index] += sign * step
            values.append(function(moved))
        gradient[index] = (values[0] - values[1]) / (2 * step)
    return gradient


def _one_hot(labels: Array, classes: int) -> Array:
    result = np.zeros((*labels.shape, classes), np.longdouble)
    np.put_along_axis(result, labels[..., None], 1, axis=-1)
    return result


@dataclass(frozen=True)
class Loss:
    """What the cross-entropy with options is, in long double; the class axis last."""

    loss: Array
    gradient: Array


def cross_entropy_with_options(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    reduction: str = "mean",
    denominator: float | None = None,
) -> Loss:
    """Loss and gradient straight from PyTorch's formulas, finite logits, the class axis last."""
    wide = np.asarray(logits).astype(np.longdouble) / np.longdouble(temperature)
    classes = wide.shape[-1]
    target = np.asarray(target)
    class_weight = np.asarray(np.ones(classes) if weight is None else weight, np.longdouble)
    smoothing = np.longdouble(label_smoothing)
    counted = np.ones(wide.shape[:-1], bool)
    row_weight = np.ones(wide.shape[:-1], np.longdouble)
    if sample_weight is not None:
        row_weight = np.asarray(sample_weight).astype(np.longdouble)
    if target.dtype.kind in "iu":
        counted = target != ignore_index
        labels = np.where(counted, target, 0).astype(np.intp)
        distribution = _one_hot(labels, classes)
        divisor = (class_weight[labels] * row_weight * counted).sum()
    else:
        distribution = target.astype(np.longdouble)
        divisor = row_weight.sum()
    distribution = (1 - smoothing) * distribution + smoothing / classes
    coefficients = class_weight * distribution
    log_probs = log_softmax(wide)
    log_total = logsumexp(wide)[..., None]
    rows = -(coefficients * log_probs).sum(axis=-1) + np.longdouble(z_loss) * log_total[..., 0] ** 2
    slope = softmax(wide) * (coefficients.sum(axis=-1, keepdims=True) + 2 * z_loss * log_total)
    slope = (slope - coefficients) / np.longdouble(temperature)
    factor = row_weight * counted
    rows, slope = rows * factor, slope * factor[..., None]
    if reduction == "none":
        return Loss(rows, slope)
    if reduction == "mean":
        scale = divisor if denominator is None else np.longdouble(denominator)
        return Loss(rows.sum() / scale, slope / scale)
    return Loss(rows.sum(), slope)


def negative_log_likelihood(
    log_probs: Array,
    target: Any,
    *,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Array:
    """Reduced loss straight from PyTorch's formulas, given finite log-probabilities."""
    wide = np.asarray(log_probs).astype(np.longdouble)
    classes = wide.shape[-1]
    class_weight = np.asarray(np.ones(classes) if weight is None else weight, np.longdouble)
    row_weight = np.ones(wide.shape[:-1], np.longdouble)
    if sample_weight is not None:
        row_weight = np.asarray(sample_weight).astype(np.longdouble)
    target = np.asarray(target)
    divisor = row_weight.sum()
    if target.dtype.kind in "iu":
        row_weight = row_weight * (target != ignore_index)
        labels = np.where(target == ignore_index, 0, target).astype(np.intp)
        divisor = (row_weight * class_weight[labels]).sum()
        target = _one_hot(labels, classes)
    rows = -row_weight * (class_weight * target.astype(np.longdouble) * wide).sum(axis=-1)
    if reduction == "none":
        return rows
    return np.asarray(rows.sum() / (divisor if reduction == "mean" else 1))


@dataclass(frozen=True)
class _Format:
    precision: int  # bits of the significand, the leading one included
    smallest_normal: float


_FORMATS = {
    "float16": _Format(11, 2.0**-14),
    "bfloat16": _Format(8, 2.0**-126),
    "float32": _Format(24, 2.0**-126),
    "float64": _Format(53, 2.0**-1022),
}


def ulp_error(result: Any, truth: Any, dtype: Any, *, floor: float = 0.0) -> Array:
    """Error of each result in units in the last place that ``dtype`` has at the truth.

    ``floor``: the spacing is taken at max(|truth|, floor); logsumexp is measured with 1. A truth
    under the smallest normal number counts as 0 error, unless the result strays above that number.
    A result that is not finite where the truth is counts as infinitely wrong.
    """
    form = _FORMATS[np.dtype(dtype).name]
    wide_result = np.asarray(result).astype(np.longdouble)
    wide_truth = np.asarray(truth).astype(np.longdouble)
    if wide_result.shape != wide_truth.shape:
        raise ValueError(f"result has shape {wide_result.shape}, truth {wide_truth.shape}")
    magnitude = np.maximum(np.abs(wide_truth), floor)
    _, exponent = np.frexp(np.maximum(magnitude, form.smallest_normal))
    spacing = np.ldexp(np.longdouble(1), exponent - form.precision)
    error = np.abs(wide_result - wide_truth) / spacing
    under = (magnitude < form.smallest_normal) & (np.abs(wide_result) <= form.smallest_normal)
    error = np.where(under, 0, error)
    return np.where(np.isfinite(wide_result) | ~np.isfinite(wide_truth), error, np.inf).astype(
        np.float64
    )


@dataclass(frozen=True)
class AccuracyInput:
    """Logits (rows, classes) and labels (rows,) of one kind."""

    kind: str
    logits: Array
    labels: Array

    @property
    def classes(self) -> int:
        return int(self.logits.shape[-1])


SCALES = (1.0, 3.0, 10.0, 30.0)
OFFSETS = (0.0, 1e4, -3e5)
CLASS_COUNTS = (2, 3, 5, 10, 16, 17, 64, 100, 1000, 4097, 32_768, 131_072)


def accuracy_inputs(
    dtype: Any,
    *,
    class_counts: Iterable[int] = CLASS_COUNTS,
    elements: int = 65_536,
    seed: int = 0,
    scales: Sequence[float] = SCALES,
    offsets: Sequence[float] = OFFSETS,
) -> Iterator[AccuracyInput]:
    """The inputs of the accuracy targets, about ``elements`` logits each, at most 2048 rows.

    Normal logits of each scale and offset, confident rows (one logit 5 to 60 above the rest, in a
    random place, the label on it in half the rows), uniform rows (all logits equal), and rows of
    nearly equal logits but one, which is greater and in the second half.
    """
    generator = np.random.default_rng(seed)
    for classes in class_counts:
        rows = min(max(elements // classes, 1), 2048)
        labels = generator.integers(0, classes, size=rows)
        for scale in scales:
            for offset in offsets:
                logits = generator.standard_normal((rows, classes)) * scale + offset
                yield AccuracyInput(f"normal {scale:g} {offset:+g}", logits.astype(dtype), labels)

        # At least two rows, so that one has its label on the confident class and one has not.
        rows = max(rows, 2)
        logits = generator.standard_normal((rows, classes))
        confident = generator.integers(0, classes, size=(rows, 1))
        above = generator.uniform(5, 60, size=(rows, 1))
        np.put_along_axis(logits, confident, logits.max(axis=1, keepdims=True) + above, axis=1)
        elsewhere = generator.integers(0, classes, size=rows)
        labels = np.where(np.arange(rows) % 2 == 0, confident[:, 0], elsewhere)
        yield AccuracyInput("confident", logits.astype(dtype), labels)

        levels = generator.standard_normal((rows, 1)) * 10
        logits = np.broadcast_to(levels, (rows, classes))
        yield AccuracyInput("uniform", logits.astype(dtype), elsewhere)

        # What was added up is far less than what is to come: a compensated sum must keep it.
        logits = generator.uniform(-16, -1, size=(rows, 1))
        logits = logits + generator.standard_normal((rows, classes)) * 0.01
        late = generator.integers(classes // 2, classes, size=(rows, 1))
        np.put_along_axis(logits, late, 0.0, axis=1)
        labels = np.where(np.arange(rows) % 2 == 0, late[:, 0], elsewhere)
        yield AccuracyInput("late maximum", logits.astype(dtype), labels)
