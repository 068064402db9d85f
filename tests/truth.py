"""The truth in long double, the error of a result against it, and the inputs to measure it on.

Independent of softce_fast: only NumPy. Inputs are rows of logits, the last axis holds the classes.
Logits of any dtype convert exactly to long double. On x86-64 that is the 80-bit format, with 11
bits more than float64; where long double is no wider than float64 (``HAS_EXTENDED`` is False) the
truth still serves float32 and the half types.

No formula here subtracts two numbers that are close: the pivot of a row, its largest logit, is left
out of the sums that what is nearly 1 would cancel in, and sums are compensated. test_truth.py
compares all of it with mpmath.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

Array = np.ndarray[Any, Any]
T = TypeVar("T")
REMEMBERED = 64  # results of a function; some tests go through that many cases on each build

HAS_EXTENDED = bool(np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant)


def remembered(function: Callable[..., T]) -> Callable[..., T]:
    """Keep the last results: tests of a case on all builds and layouts follow one another."""
    results: dict[bytes, T] = {}

    @functools.wraps(function)
    def wrapper(*arguments: Any, **options: Any) -> T:
        key = hashlib.blake2b(pickle.dumps((arguments, options))).digest()
        if key not in results:
            if len(results) == REMEMBERED:
                del results[next(iter(results))]
            results[key] = function(*arguments, **options)
            for part in vars(results[key]).values():
                np.asarray(part).flags.writeable = False
        return results[key]

    return wrapper


def _wide(values: Any) -> Array:
    return np.asarray(values).astype(np.longdouble)


def _times(coefficients: Any, terms: Any) -> Array:
    """Return the products; a coefficient of 0 takes out its term, whatever that is."""
    result: Array = np.where(coefficients == 0, 0, coefficients * terms)
    return result


def _sum(terms: Array) -> Array:
    """Return the sums over the last axis, kept: added in pairs, and what each addition lost."""
    lost = np.zeros((*terms.shape[:-1], 1), np.longdouble)
    while terms.shape[-1] != 1:
        if terms.shape[-1] % 2 or not terms.shape[-1]:
            terms = np.concatenate([terms, np.zeros_like(lost)], axis=-1)
        left, right = terms[..., ::2], terms[..., 1::2]
        terms = left + right
        part = terms - left
        lost = lost + ((left - (terms - part)) + (right - part)).sum(axis=-1, keepdims=True)
    result: Array = terms + np.where(np.isfinite(terms), lost, 0)
    return result


def _without(terms: Array, pivot: Array) -> Array:
    """Return the sums over the last axis without the pivot's terms."""
    others = terms.copy()
    np.put_along_axis(others, pivot, 0, axis=-1)
    return _sum(others)


@dataclass(frozen=True)
class _Row:
    """The parts of a batch of rows from which each truth is put together, in long double."""

    shifted: Array  # (logits - largest) / temperature
    exponentials: Array  # exp(shifted)
    pivot: Array  # the index of the largest, axis kept
    largest: Array  # / temperature, axis kept
    others: Array  # sum of the exponentials without the pivot's, axis kept
    slope: Array  # of logits / temperature by those given

    @property
    def log_total(self) -> Array:
        return self.largest + np.log1p(self.others)

    @property
    def probabilities(self) -> Array:
        result: Array = self.exponentials / (1 + self.others)
        return result

    @property
    def complements(self) -> Array:
        """1 - probabilities."""
        result = 1 - self.probabilities
        np.put_along_axis(result, self.pivot, self.others / (1 + self.others), axis=-1)
        return result


@np.errstate(all="ignore")
def softcapped(logits: Any, softcap: float | None) -> tuple[Array, Array]:
    """Return ``softcap * tanh(logits / softcap)`` and its derivative; -inf stays."""
    wide = _wide(logits)
    if softcap is None:
        return wide, np.ones_like(wide)
    cap = np.longdouble(softcap)
    far = np.exp(-2 * np.abs(wide / cap))
    return np.where(np.isinf(wide), wide, cap * np.tanh(wide / cap)), 4 * far / (1 + far) ** 2


@remembered
@np.errstate(all="ignore")
def _parts(
    logits: Any, *, where: Any = True, temperature: float = 1.0, softcap: float | None = None
) -> _Row:
    wide = _wide(logits)
    wide, slope = softcapped(wide, softcap)
    slope = slope / np.longdouble(temperature)
    wide, slope = np.where(where, wide, -np.inf), np.where(where, slope, 0)
    pivot = wide.argmax(axis=-1, keepdims=True)
    largest = np.take_along_axis(wide, pivot, axis=-1)
    # A row without any class: each is infinitely far down.
    shifted = (wide - np.where(np.isneginf(largest), 0, largest)) / np.longdouble(temperature)
    exponentials = np.exp(shifted)
    others = _without(exponentials, pivot)
    return _Row(shifted, exponentials, pivot, largest / np.longdouble(temperature), others, slope)


def softmax(logits: Array, **options: Any) -> Array:
    """``options`` here and below: where, temperature, softcap."""
    return _parts(logits, **options).probabilities


def log_softmax(logits: Array, **options: Any) -> Array:
    # Both terms are <= 0 or the first is exactly 0: nothing cancels, also on confident rows.
    parts = _parts(logits, **options)
    return parts.shifted - np.log1p(parts.others)


def logsumexp(logits: Array, **options: Any) -> Array:
    return _parts(logits, **options).log_total[..., 0]


def logsumexp_scale(logits: Array, **options: Any) -> Array:
    """What the error of logsumexp is measured at, where the result is smaller: log1p(rest)."""
    result: Array = np.log1p(_parts(logits, **options).others)[..., 0]
    return result


@np.errstate(all="ignore")
def entropy(logits: Array, **options: Any) -> Array:
    """Entropy of the softmax, in nats."""
    parts = _parts(logits, **options)
    spread = _sum(_times(parts.exponentials, -parts.shifted))
    return (np.log1p(parts.others) + spread / (1 + parts.others))[..., 0]


class Entries(NamedTuple):
    """Numbers that are differences, and the sizes at which their errors are measured."""

    values: Array
    scale: Array


def gradient_entries(
    probabilities: Array, complements: Array, coefficients: Array, pivot: Array
) -> Entries:
    """``p K - k``, K the sum of the coefficients k, by the way that cancels less.

    The scale is the larger of the result and the smaller of max(p K, k) and max(K - k, K (1 - p)).
    """
    total = _sum(coefficients)
    rest = total - coefficients
    np.put_along_axis(rest, pivot, _without(coefficients, pivot), axis=-1)
    own, other = probabilities * total, complements * total
    values = np.where(probabilities > 0.5, rest - other, own - coefficients)
    scale = np.minimum(
        np.maximum(np.abs(own), np.abs(coefficients)), np.maximum(np.abs(rest), np.abs(other))
    )
    return Entries(values, np.maximum(np.abs(values), scale))


def cross_entropy(logits: Array, labels: Any) -> Array:
    """Loss of each row, with class indices as labels."""
    return cross_entropy_with_options(logits, labels, reduction="none").loss


def gradient(logits: Array, labels: Any) -> Array:
    """Gradient of the sum of the losses; at the label it is -(sum of the others) / total."""
    return cross_entropy_with_options(logits, labels, reduction="none").gradient


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


@dataclass(frozen=True)
class Loss:
    """What a loss with options is, in long double; the class axis last."""

    loss: Array
    gradient: Array
    gradient_scale: Array  # the size at which the error of an entry is measured
    hessian: Array  # the diagonal
    # What a relative error of 1 of the capped logits comes to, 0 without softcap.
    loss_doubt: Array | float = 0.0
    gradient_doubt: Array | float = 0.0
    # What a relative error of 1 of log1p(others) comes to by z_loss, where that is more than the
    # logsumexp: there its digits are promised, not those of what is left.
    z_loss_doubt: Array | float = 0.0
    z_loss_gradient_doubt: Array | float = 0.0
    z_loss_gradient: Array | float = 0.0  # the part of the gradient that z_loss adds


class _Target(NamedTuple):
    """What a target comes to."""

    coefficients: Array  # of -log(probability), the shape of the logits
    row_factor: Array  # of each row, 0 where it does not count
    divisor: Any  # of the mean


def _target(
    shape: tuple[int, ...],
    target: Any,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    where: Any = True,
) -> _Target:
    """Return PyTorch's formulas for a target of class indices or class probabilities."""
    target = np.asarray(target)
    class_weight = _wide(np.ones(shape[-1]) if weight is None else weight)
    row_factor = _wide(np.broadcast_to(1 if sample_weight is None else sample_weight, shape[:-1]))
    divisor = row_factor.sum()
    distribution = _wide(target)
    if target.dtype.kind in "iu":
        counted = target != ignore_index
        row_factor = np.where(counted, row_factor, 0)
        labels = np.where(counted, target, 0).astype(np.intp)
        divisor = _times(row_factor, class_weight[labels]).sum()
        distribution = np.zeros(shape, np.longdouble)
        np.put_along_axis(distribution, labels[..., None], 1, axis=-1)
    smoothing = np.longdouble(label_smoothing)
    allowed = np.broadcast_to(where, shape)
    share = np.where(allowed, smoothing, 0) / np.maximum(allowed.sum(axis=-1, keepdims=True), 1)
    coefficients = class_weight * ((1 - smoothing) * distribution + share)
    return _Target(coefficients, row_factor, divisor)


def _reduced(
    losses: Array, target: _Target, reduction: str, denominator: Any
) -> tuple[Array, Array]:
    """Return the reduced loss, and the factor of what belongs to each row."""
    losses = _times(target.row_factor, losses)
    if reduction == "none":
        return losses, target.row_factor
    if reduction == "sum":
        return losses.sum(), target.row_factor
    divisor = target.divisor if denominator is None else np.longdouble(denominator)
    return losses.sum() / divisor, _times(target.row_factor, 1 / divisor)


@remembered
@np.errstate(all="ignore")
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
    softcap: float | None = None,
    where: Any = True,
    reduction: str = "mean",
    denominator: float | None = None,
) -> Loss:
    """Return the loss and its derivatives, for logits that are finite or -inf.

    With ``where`` they are those of the row without the classes excluded.
    """
    parts = _parts(logits, where=where, temperature=temperature, softcap=softcap)
    shape = parts.shifted.shape
    options = weight, sample_weight, ignore_index, label_smoothing, where
    asked = _target(shape, target, *options)
    coefficients = asked.coefficients
    total = _sum(coefficients)
    # Of a class at -inf that the target asks for, the loss is +inf.
    losses = _sum(_times(coefficients, -parts.shifted)) + _times(total, np.log1p(parts.others))
    losses = losses[..., 0] + _times(np.longdouble(z_loss), parts.log_total[..., 0] ** 2)
    loss, factor = _reduced(losses, asked, reduction, denominator)
    probabilities, complements = parts.probabilities, parts.complements
    entries = gradient_entries(probabilities, complements, coefficients, parts.pivot)
    of_z_loss = _times(2 * np.longdouble(z_loss) * probabilities, parts.log_total)
    gradient = entries.values + of_z_loss
    scale = np.maximum(np.maximum(np.abs(gradient), entries.scale), np.abs(of_z_loss))
    if z_loss != 0 and (label_smoothing != 0 or np.asarray(target).dtype.kind not in "iu"):
        # The coefficients are taken off the sum of the two products.
        scale = np.maximum(scale, np.abs(probabilities * total + of_z_loss))
    factor = np.asarray(factor)[..., None]
    hessian = _times(factor, total * probabilities * complements / np.longdouble(temperature) ** 2)
    loss_doubt: Any = 0.0
    gradient_doubt: Any = 0.0
    if softcap is not None:
        capped, slope = softcapped(logits, softcap)
        size = np.abs(np.where(np.isfinite(capped) & where, capped, 0)).max(axis=-1, keepdims=True)
        each = np.abs(gradient) * (parts.slope != 0)
        loss_doubt = _times(np.abs(factor), _sum(each * size / np.longdouble(temperature)))[..., 0]
        loss_doubt = loss_doubt if reduction == "none" else loss_doubt.sum()
        # An entry changes with its own logit, and by no more with all others.
        gradient_doubt = _times(2 * np.abs(hessian), size * slope)
    added, log_total = np.log1p(parts.others)[..., 0], np.abs(parts.log_total[..., 0])
    near_0 = np.where(added > log_total, 2 * abs(z_loss) * added, 0)
    z_loss_doubt: Any = _times(np.abs(factor[..., 0]), near_0 * log_total)
    return Loss(
        np.asarray(loss),
        _times(factor, gradient * parts.slope),
        _times(np.abs(factor), scale * parts.slope),
        hessian,
        loss_doubt,
        gradient_doubt,
        z_loss_doubt if reduction == "none" else z_loss_doubt.sum(),
        _times(np.abs(factor), near_0[..., None] * probabilities * parts.slope),
        _times(factor, of_z_loss * parts.slope),
    )


@np.errstate(all="ignore")
def negative_log_likelihood(
    log_probs: Array,
    target: Any,
    *,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    denominator: float | None = None,
) -> Array:
    """Reduced loss straight from PyTorch's formulas, given log-probabilities."""
    wide = _wide(log_probs)
    asked = _target(wide.shape, target, weight, sample_weight, ignore_index)
    losses = _sum(_times(asked.coefficients, -wide))[..., 0]
    return np.asarray(_reduced(losses, asked, reduction, denominator)[0])


@np.errstate(all="ignore")
def cross_entropy_from_probs(probs: Array, target: Any, **options: Any) -> Array:
    """As ``negative_log_likelihood``, of the logarithms."""
    return negative_log_likelihood(np.log(_wide(probs)), target, **options)


@np.errstate(all="ignore")
def binary_cross_entropy_with_logits(
    logits: Any, target: Any, *, weight: Any = 1, pos_weight: Any = 1, reduction: str = "mean"
) -> Loss:
    """Return the loss of two classes, whose logits are 0 and the one given, and its derivatives."""
    yes, of_yes = _wide(logits), _wide(target)
    rows = np.stack([np.zeros_like(yes), yes], axis=-1)
    coefficients = np.stack([1 - of_yes, _times(of_yes, _wide(pos_weight))], axis=-1)
    options: dict[str, Any] = {"sample_weight": weight, "reduction": reduction}
    options["denominator"] = yes.size
    both = cross_entropy_with_options(rows, coefficients, **options)
    return Loss(both.loss, both.gradient[..., 1], both.gradient_scale[..., 1], both.hessian[..., 1])


@np.errstate(all="ignore")
def binary_cross_entropy(
    probs: Any, target: Any, *, weight: Any = 1, reduction: str = "mean"
) -> Array:
    wide, of_yes = _wide(probs), _wide(target)
    logarithms = np.stack([np.log1p(-wide), np.log(wide)], axis=-1)
    coefficients = np.stack([1 - of_yes, of_yes], axis=-1)
    options: dict[str, Any] = {"sample_weight": weight, "reduction": reduction}
    return negative_log_likelihood(logarithms, coefficients, denominator=wide.size, **options)


def softmax_backward(grad_output: Any, output: Any, *, temperature: float = 1.0) -> Entries:
    """``S (g - sum g S) / T``, the scale S max(|g|, sum |g| S) / T."""
    given, wide = _wide(grad_output), _wide(output)
    factor = wide / np.longdouble(temperature)
    values = factor * (given - _sum(given * wide))
    return Entries(values, factor * np.maximum(np.abs(given), _sum(np.abs(given) * wide)))


def log_softmax_backward(grad_output: Any, output: Any, *, temperature: float = 1.0) -> Entries:
    """As an entry of a gradient whose coefficients are -grad_output."""
    wide = _wide(output)
    pivot = wide.argmax(axis=-1, keepdims=True)
    entries = gradient_entries(np.exp(wide), -np.expm1(wide), -_wide(grad_output), pivot)
    return Entries(*(item / np.longdouble(temperature) for item in entries))


@dataclass(frozen=True)
class _Format:
    precision: int  # bits of the significand, the leading one included
    smallest_normal: float

    @property
    def overflow(self) -> np.longdouble:
        """What rounds to infinity, from here on."""
        _, exponent = np.frexp(self.smallest_normal)
        largest: np.longdouble = np.ldexp(2 - np.longdouble(2.0) ** -self.precision, 2 - exponent)
        return largest


_FORMATS = {
    "float16": _Format(11, 2.0**-14),
    "bfloat16": _Format(8, 2.0**-126),
    "float32": _Format(24, 2.0**-126),
    "float64": _Format(53, 2.0**-1022),
}


def ulp_error(result: Any, truth: Any, dtype: Any, *, floor: Any = 0.0, doubt: Any = 0.0) -> Array:
    """Error of each result in units in the last place that ``dtype`` has at the truth.

    ``floor``: the spacing is taken at max(|truth|, floor), the scale of a gradient's entry or of
    logsumexp; beside one beyond the largest number nothing counts as error. ``doubt``: an error
    that does not count. A truth under the smallest normal number counts as 0 error, unless the
    result strays above that number; one beyond the largest is infinite. What is not finite on one
    side alone, or not the same, is infinitely wrong.
    """
    form = _FORMATS[np.dtype(dtype).name]
    wide_result, wide_truth = _wide(result), _wide(truth)
    if wide_result.shape != wide_truth.shape:
        raise ValueError(f"result has shape {wide_result.shape}, truth {wide_truth.shape}")
    with np.errstate(all="ignore"):
        wide_truth = np.where(np.abs(wide_truth) < form.overflow, wide_truth, wide_truth * np.inf)
        magnitude = np.maximum(np.abs(wide_truth), floor)
        _, exponent = np.frexp(np.maximum(magnitude, form.smallest_normal))
        spacing = np.ldexp(np.longdouble(1), exponent - form.precision)
        error = np.maximum(np.abs(wide_result - wide_truth) - doubt, 0) / spacing
    smallest = form.smallest_normal
    under = (np.abs(wide_truth) < smallest) & (np.abs(wide_result) <= smallest)
    same = (wide_result == wide_truth) | (np.isnan(wide_result) & np.isnan(wide_truth))
    error = np.where(np.isfinite(wide_result) & np.isfinite(wide_truth), error, np.inf)
    beside = np.greater_equal(floor, form.overflow) & ~np.isnan(wide_result)
    return np.where(under | same | beside, 0, error).astype(np.float64)


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
