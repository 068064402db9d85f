"""The whole public API in plain NumPy: each formula as a textbook has it, in its stable form.

It is what the compiled kernels are measured and tested against, and it serves ``longdouble``. The
functions have the names, arguments, results and errors of those in :mod:`softce_fast`, whose
docstrings describe them in full. Losses are computed in float64 at least; what leaves its range on
the way, as products of extreme weights may, is infinite or 0 in the end.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import _checks
from ._arrays import deliver, unwrapped
from ._checks import (
    BackwardArguments,
    BinaryArguments,
    LossArguments,
    ScoreArguments,
    SoftmaxArguments,
)

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_with_grad",
    "cross_entropy",
    "cross_entropy_from_probs",
    "cross_entropy_with_grad",
    "cross_entropy_with_grad_and_hessian",
    "linear_cross_entropy",
    "linear_cross_entropy_with_grad",
    "linear_target_scores",
    "log_softmax",
    "log_softmax_backward",
    "logsumexp",
    "nll_loss",
    "softmax",
    "softmax_backward",
    "target_scores",
]

Array = NDArray[Any]
DType = np.dtype[Any]
Axis = int | tuple[int, ...] | None


# Helpers


def product(coefficient: Array, value: Array) -> Array:
    """Return coefficient * value; 0 for a coefficient of 0, whatever it stands before."""
    product = np.asarray(coefficient * value)
    np.copyto(product, 0, where=coefficient == 0)
    return product


def cool(values: Array, temperature: float) -> Array:
    """Return values / temperature, which may be out of their dtype's range."""
    if temperature == 1:
        return values
    limits = np.finfo(values.dtype)
    if limits.tiny <= temperature <= limits.max:
        cooled: Array = values / values.dtype.type(temperature)
        return cooled
    return (values / np.longdouble(temperature)).astype(values.dtype)


def softcapped(values: Array, softcap: float) -> tuple[Array, Array]:
    """Return softcap * tanh(values / softcap), and its derivative; infinities stay."""
    limits = np.finfo(values.dtype)
    is_held = limits.tiny <= softcap <= limits.max
    limit = (values.dtype.type if is_held else np.longdouble)(softcap)
    scaled = values / limit
    capped = np.where(np.isinf(values), values, limit * np.tanh(scaled))
    decay = np.exp(-2 * np.abs(scaled))
    slope = 4 * decay / (1 + decay) ** 2
    return capped.astype(values.dtype), slope.astype(values.dtype)


def _minus_maximum(values: Array, axes: tuple[int, ...], temperature: float) -> tuple[Array, Array]:
    """Return (values - maximum) / temperature, and the maximum."""
    maximum = values.max(axis=axes, keepdims=True, initial=-np.inf)
    if temperature == 1:
        return values - maximum, maximum
    # Halves: the difference may be out of range.
    return cool(values / 2 - maximum / 2, temperature / 2), maximum


def _sum(x: Array, axes: tuple[int, ...] = (-1,)) -> Array:
    """Add up along `axes`, which stay, of length 1, in an order that memory has no part in."""
    if not axes:
        return x
    rows = np.moveaxis(x, axes, range(-len(axes), 0))
    rows = rows.reshape(*rows.shape[: -len(axes)], math.prod(rows.shape[-len(axes) :]))
    return np.expand_dims(np.ascontiguousarray(rows).sum(axis=-1), axes)


def _split_sum(shifted: Array, axes: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Return exp(shifted), and its sum in two parts: over the maxima, and over the others.

    The first part is their number. Kept apart from it, the second loses no digit, however small
    it is. The maxima are 0 in the exponentials returned.
    """
    exponentials = np.asarray(np.exp(shifted))
    at_maximum = shifted == 0
    top = _sum(np.where(at_maximum, exponentials, 0), axes)
    np.copyto(exponentials, 0, where=at_maximum)
    others = _sum(exponentials, axes)
    return exponentials, top, others


def log_of_sum(top: Array, others: Array) -> Array:
    log_sum: Array = np.log(top) + np.log1p(others / top)
    return log_sum


# Softmax and its kin


def _included(call: SoftmaxArguments | _checks.LogsumexpArguments) -> Array:
    """Return x in the dtype to compute in, -inf where it is excluded."""
    values = call.x.astype(_checks.compute_dtype(call.dtype), copy=False)
    if call.where is None:
        return values
    return np.where(call.where, values, values.dtype.type(-np.inf))


def softmax(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    temperature: float = 1.0,
    empty: str = "nan",
    dtype: DTypeLike | None = None,
    out: Array | None = None,
) -> Array:
    """Exponentials of `x` divided by their sum along `axis`."""
    with np.errstate(all="ignore"):
        call = _checks.check_softmax(x, axis, where, temperature, empty, dtype, out)
        shifted, maximum = _minus_maximum(_included(call), call.axes, call.temperature)
        exponentials = np.exp(shifted)
        result = exponentials / _sum(exponentials, call.axes)
        if empty == "zero":
            result = np.where(maximum == -np.inf, 0, result)
        return deliver(result, call.dtype, out)


def log_softmax(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    temperature: float = 1.0,
    empty: str = "nan",
    dtype: DTypeLike | None = None,
    out: Array | None = None,
) -> Array:
    """Logarithm of the softmax of `x` along `axis`."""
    with np.errstate(all="ignore"):
        call = _checks.check_softmax(x, axis, where, temperature, empty, dtype, out)
        shifted, maximum = _minus_maximum(_included(call), call.axes, call.temperature)
        _, top, others = _split_sum(shifted, call.axes)
        result = shifted - log_of_sum(top, others)
        if empty == "zero":
            result = np.where(maximum == -np.inf, -np.inf, result)
        return deliver(result, call.dtype, out)


def logsumexp(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    b: ArrayLike | None = None,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
    dtype: DTypeLike | None = None,
    out: Array | None = None,
) -> Any:
    """Logarithm of the sum of ``b * exp(x)`` along `axis`; with its sign if `return_sign`."""
    call = _checks.check_logsumexp(x, axis, b, where, keepdims, dtype, out)
    axes = call.axes
    with np.errstate(all="ignore"):
        values, factor = _included(call), call.b
        if factor is not None:
            factor = factor.astype(values.dtype, copy=False)
            read = (factor != 0) & (values != -np.inf)
            factor = np.where(read, factor, 0)
            values = np.where(read, values, values.dtype.type(-np.inf))
        maximum = values.max(axis=axes, keepdims=True, initial=-np.inf)
        at_maximum = values == maximum
        exponentials = np.asarray(np.exp(values - maximum))
        np.copyto(exponentials, 1, where=at_maximum)  # also where both are infinite
        if factor is not None:
            exponentials *= factor
        top = _sum(np.where(at_maximum, exponentials, 0), axes)
        np.copyto(exponentials, 0, where=at_maximum)
        others = _sum(exponentials, axes)
        total = top + others
        ratio = others / top
        log_total = np.where(
            np.abs(ratio) <= 0.5, np.log(np.abs(top)) + np.log1p(ratio), np.log(np.abs(total))
        )
        log_total = maximum + np.where(maximum == -np.inf, 0, log_total)
        sign = np.where(maximum == -np.inf, 0, np.sign(total))
        sign = np.where(np.isnan(log_total), np.nan, sign)
        if not return_sign:
            log_total = np.where(sign < 0, np.nan, log_total)
        total = deliver(log_total.reshape(call.shape), call.dtype, out)
        return (total, deliver(sign.reshape(call.shape), call.dtype)) if return_sign else total


def _in_compute_dtype(call: BackwardArguments) -> tuple[Array, Array]:
    compute = _checks.compute_dtype(call.dtype)
    return call.gradient.astype(compute, copy=False), call.output.astype(compute, copy=False)


def softmax_backward(
    grad_output: ArrayLike,
    output: ArrayLike,
    axis: Axis = -1,
    *,
    temperature: float = 1.0,
    out: Array | None = None,
) -> Array:
    """Gradient through softmax, given that of its result and the result itself."""
    with np.errstate(all="ignore"):
        call = _checks.check_backward(grad_output, output, axis, temperature, out)
        gradient, probs = _in_compute_dtype(call)
        mean = _sum(gradient * probs, call.axes)
        return deliver(cool(probs * (gradient - mean), call.temperature), call.dtype, out)


def log_softmax_backward(
    grad_output: ArrayLike,
    output: ArrayLike,
    axis: Axis = -1,
    *,
    temperature: float = 1.0,
    out: Array | None = None,
) -> Array:
    """Gradient through log_softmax, given that of its result and the result itself."""
    with np.errstate(all="ignore"):
        call = _checks.check_backward(grad_output, output, axis, temperature, out)
        gradient, log_probs = _in_compute_dtype(call)
        total = _sum(gradient, call.axes)
        result = gradient - np.exp(log_probs) * total
        return deliver(cool(result, call.temperature), call.dtype, out)


# Losses over classes


class _Task(NamedTuple):
    """Arguments of a loss, the class axis last; either labels or probabilities is None."""

    values: Array  # (log-)probabilities or logits, capped, in the dtype to compute in
    slope: Array | None  # derivative of the capped logits
    allowed: Array | None  # classes; the others are -inf
    labels: Array | None  # 0 for ignored rows
    ignored: Array | None
    probabilities: Array | None
    weight: Array | None
    sample_weight: Array | None
    call: LossArguments

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.call.classes

    def taken_out(self) -> Array:
        """Return which rows get 0, whatever they hold."""
        taken = np.zeros(self.values.shape[:-1], np.bool_)
        if self.ignored is not None:
            taken |= self.ignored
            if self.weight is not None and not (self.call.label_smoothing or self.call.z_loss):
                # Nothing is left of a row whose label has a weight of 0.
                taken |= _label_weight(self) == 0
        if self.sample_weight is not None:
            taken |= self.sample_weight == 0
        return taken


def _task(call: LossArguments) -> _Task:
    """Return arguments in float64 or wider, once the labels are checked as well."""
    # Nothing narrower: weights may be of any size.
    compute = np.promote_types(_checks.compute_dtype(call.dtype), np.float64)
    labels = ignored = None
    if call.labels is not None:
        _checks.check_labels(call.labels, call.classes, call.ignore_index)
        ignored = call.labels == call.ignore_index
        labels = np.where(ignored, 0, call.labels).astype(np.intp)
    values, probabilities, allowed = (
        None if array is None else np.moveaxis(array, call.axis, -1)
        for array in (call.values, call.probabilities, call.where)
    )
    weight, sample_weight, probabilities, values = (
        None if array is None else array.astype(compute, copy=False)
        for array in (call.weight, call.sample_weight, probabilities, values)
    )
    assert values is not None
    slope = None
    if call.softcap is not None:
        values, slope = softcapped(values, call.softcap)
    if allowed is not None:
        values = np.where(allowed, values, compute.type(-np.inf))
    return _Task(
        values, slope, allowed, labels, ignored, probabilities, weight, sample_weight, call
    )


def _pick(values: Array, labels: Array) -> Array:
    """Return the value at each row's label."""
    if values.shape[-1] == 0:  # so every row is ignored
        return np.zeros(labels.shape, values.dtype)
    return np.take_along_axis(values, labels[..., None], axis=-1)[..., 0]


def _label_weight(task: _Task) -> Array:
    """Return the class weight of each row's label, 0 for ignored rows."""
    assert task.labels is not None
    assert task.ignored is not None
    if task.weight is None:
        weight = np.ones(task.labels.shape, task.values.dtype)
    elif task.weight.size == 0:
        weight = np.zeros(task.labels.shape, task.values.dtype)
    else:
        weight = task.weight[task.labels]
    return np.where(task.ignored, 0, weight)


def _divisor(task: _Task) -> Any:
    """Return what the mean divides by."""
    dtype = task.values.dtype
    if task.call.denominator is not None:
        return dtype.type(task.call.denominator)
    weight = np.ones(task.values.shape[:-1], dtype)
    if task.labels is not None:
        weight = _label_weight(task)
    if task.sample_weight is not None:
        weight = np.where(weight == 0, 0, product(task.sample_weight, weight))
    if task.ignored is not None:
        weight = np.where(task.ignored, 0, weight)
    return weight.sum()


def _reduce(rows: Array, task: _Task) -> Array:
    """Return the losses of the rows, weighted by sample_weight, summed or averaged if wanted."""
    if task.sample_weight is not None:
        rows = product(task.sample_weight, rows)
    rows = np.where(task.taken_out(), 0, rows)
    if task.call.reduction == "none":
        return rows
    total = rows.sum()
    if task.call.reduction == "sum":
        return np.asarray(total)
    divisor = _divisor(task)
    if task.call.empty == "zero" and divisor == 0 and total == 0:
        return np.zeros((), rows.dtype)
    return np.asarray(total / divisor)


class _Softmax(NamedTuple):
    """What a row's loss and gradient have in common, the class axis last."""

    shifted: Array  # logits minus their maximum
    exponentials: Array  # 0 at the maximum
    top: Array
    others: Array
    label_part: Array | None  # coefficient of -log p at the label
    spread: Array | None  # coefficients of -log p at all classes, to add to it
    coefficient_sum: Array
    from_z: Array  # derivative of the z-loss by the row's logsumexp


def _coefficients(task: _Task) -> tuple[Array | None, Array | None, Array]:
    """Return label_part, spread and coefficient_sum of `_Softmax`."""
    label_part = spread = None
    label_smoothing = task.call.label_smoothing
    total = np.zeros((*task.values.shape[:-1], 1), task.values.dtype)
    if task.labels is not None:
        label_part = np.asarray((1 - label_smoothing) * _label_weight(task))
        total = total + label_part[..., None]
    if task.probabilities is not None:
        spread = task.probabilities
    if label_smoothing > 0:
        uniform = np.full_like(task.values[..., :1], label_smoothing / max(task.classes, 1))
        if task.allowed is not None:
            count = task.allowed.sum(axis=-1, keepdims=True, dtype=task.values.dtype)
            uniform = np.where(task.allowed, label_smoothing / np.maximum(count, 1), 0)
        if spread is None:
            spread = np.broadcast_to(uniform, task.values.shape)
        else:
            spread = (1 - label_smoothing) * spread + uniform
    if spread is not None:
        if task.weight is not None:
            spread = spread * task.weight
        total = total + _sum(spread)
    return label_part, spread, total


def _gradient(task: _Task, parts: _Softmax) -> Array:
    """Return each row's gradient by its shifted logits, writing to parts.exponentials.

    With K the sum of the coefficients k of a row it is p * K - k. At a class with p near 1 that
    cancels; there it is (sum of the other k) - K * (1 - p).
    """
    total = parts.top + parts.others
    grad = parts.exponentials
    np.copyto(grad, 1, where=parts.shifted == 0)
    grad /= total
    if task.classes == 0:
        return grad
    best = parts.shifted.argmax(axis=-1)
    best_prob = _pick(grad, best)
    grad[...] = product(parts.coefficient_sum + parts.from_z, grad)
    other_coefficients = np.zeros_like(best_prob)
    if parts.spread is not None:
        grad -= parts.spread
        other_spread = np.array(parts.spread)
        np.put_along_axis(other_spread, best[..., None], 0, axis=-1)
        other_coefficients = other_coefficients + _sum(other_spread)[..., 0]
    if task.labels is not None and parts.label_part is not None:
        at_label = _pick(grad, task.labels) - parts.label_part
        np.put_along_axis(grad, task.labels[..., None], at_label[..., None], axis=-1)
        other_coefficients += np.where(task.labels == best, 0, parts.label_part)
    complement = (parts.others + (parts.top - 1)) / total
    confident = other_coefficients - product(parts.coefficient_sum, complement)[..., 0]
    confident += product(parts.from_z[..., 0], best_prob)
    at_best = np.where(best_prob > 0.5, confident, _pick(grad, best))
    np.put_along_axis(grad, best[..., None], at_best[..., None], axis=-1)
    return grad


def loss_and_gradient(
    call: LossArguments, with_grad: bool, grad_out: Array | None = None
) -> tuple[Any, Any]:
    """Return the loss, and the gradient or None."""
    with np.errstate(all="ignore"):
        task = _task(call)
        shifted, maximum = _minus_maximum(task.values, (-1,), call.temperature)
        exponentials, top, others = _split_sum(shifted, (-1,))
        log_sum = log_of_sum(top, others) if task.classes else np.zeros_like(top)
        label_part, spread, coefficient_sum = _coefficients(task)

        rows = product(coefficient_sum, log_sum)[..., 0]
        if task.labels is not None and label_part is not None:
            rows = rows - product(label_part, _pick(shifted, task.labels))
        if spread is not None:
            rows = rows - _sum(product(spread, shifted))[..., 0]
        from_z = np.zeros_like(top)
        if call.z_loss:
            log_total = cool(maximum, call.temperature)
            log_total = np.where(maximum == -np.inf, maximum, log_total + log_sum)
            rows = rows + call.z_loss * log_total[..., 0] ** 2
            from_z = 2 * call.z_loss * log_total
        if task.allowed is not None:
            counts = (coefficient_sum[..., 0] != 0) | bool(call.z_loss)
            rows = np.where(counts & ~task.allowed.any(axis=-1), np.inf, rows)
        loss = _reduce(rows, task)
        if not with_grad:
            return deliver(loss, call.dtype), None

        parts = _Softmax(
            shifted, exponentials, top, others, label_part, spread, coefficient_sum, from_z
        )
        grad = _gradient(task, parts)
        if task.slope is not None:
            grad = product(grad, task.slope)
        if task.sample_weight is not None:
            grad = grad * task.sample_weight[..., None]
        grad = cool(grad, call.temperature)
        if call.reduction == "mean":
            divisor = _divisor(task)
            if call.empty == "zero" and divisor == 0 and loss == 0:
                grad[...] = 0
            elif divisor != 1:
                grad = grad / divisor
        if task.allowed is not None:
            np.copyto(grad, 0, where=~task.allowed)
        grad[task.taken_out()] = 0
        grad = np.moveaxis(grad, -1, call.axis)
        return deliver(loss, call.dtype), deliver(grad, call.dtype, grad_out)


def cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    axis: int = -1,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    where: ArrayLike | None = None,
    reduction: str = "mean",
    denominator: float | None = None,
    empty: str = "nan",
    dtype: DTypeLike | None = None,
) -> Any:
    """Cross-entropy of the softmax of `logits` with labels or class probabilities."""
    call = _checks.check_loss(
        "logits", logits, target, axis, weight=weight, sample_weight=sample_weight,
        ignore_index=ignore_index, label_smoothing=label_smoothing, z_loss=z_loss,
        temperature=temperature, softcap=softcap, where=where, reduction=reduction,
        denominator=denominator, empty=empty, dtype=dtype,
    )  # fmt: skip
    return loss_and_gradient(call, False)[0]


def cross_entropy_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    axis: int = -1,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    where: ArrayLike | None = None,
    reduction: str = "mean",
    denominator: float | None = None,
    empty: str = "nan",
    dtype: DTypeLike | None = None,
    grad_out: Array | None = None,
) -> tuple[Any, Array]:
    """Cross-entropy, and its gradient with respect to `logits`."""
    call = _checks.check_loss(
        "logits", logits, target, axis, weight=weight, sample_weight=sample_weight,
        ignore_index=ignore_index, label_smoothing=label_smoothing, z_loss=z_loss,
        temperature=temperature, softcap=softcap, where=where, reduction=reduction,
        denominator=denominator, empty=empty, dtype=dtype,
    )  # fmt: skip
    _checks.check_gradient_out(call, grad_out)
    return loss_and_gradient(call, True, grad_out)


def cross_entropy_with_grad_and_hessian(
    logits: ArrayLike,
    target: ArrayLike,
    axis: int = -1,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
    reduction: str = "mean",
    denominator: float | None = None,
    empty: str = "nan",
    dtype: DTypeLike | None = None,
    hessian_scale: float = 1.0,
    hessian_floor: float | None = None,
    grad_out: Array | None = None,
    hessian_out: Array | None = None,
) -> tuple[Any, Array, Array]:
    """Cross-entropy, its gradient and the diagonal of its Hessian with respect to `logits`."""
    call = _checks.check_loss(
        "logits", logits, target, axis, weight=weight, sample_weight=sample_weight,
        ignore_index=ignore_index, label_smoothing=label_smoothing, temperature=temperature,
        where=where, reduction=reduction, denominator=denominator, empty=empty, dtype=dtype,
    )  # fmt: skip
    scale, floor = _checks.check_hessian(call, hessian_scale, hessian_floor, hessian_out)
    _checks.check_gradient_out(call, grad_out)
    return loss_gradient_and_hessian(call, scale, floor, grad_out, hessian_out)


def loss_gradient_and_hessian(
    call: LossArguments,
    scale: float,
    floor: float | None,
    grad_out: Array | None,
    hessian_out: Array | None,
) -> tuple[Any, Array, Array]:
    """Return the loss, its gradient and the diagonal of its Hessian."""
    with np.errstate(all="ignore"):
        task = _task(call)
        shifted, _ = _minus_maximum(task.values, (-1,), call.temperature)
        exponentials, top, others = _split_sum(shifted, (-1,))
        total = top + others
        np.copyto(exponentials, 1, where=shifted == 0)
        probs = exponentials / total
        missing = np.where(probs > 0.5, (others + (top - 1)) / total, 1 - probs)
        _, _, factors = _coefficients(task)
        counts = factors != 0
        factors = factors * (scale / call.temperature / call.temperature)
        if task.sample_weight is not None:
            counts = counts & (task.sample_weight != 0)[..., None]
            factors = factors * task.sample_weight[..., None]
        if call.reduction == "mean":
            factors = factors / _divisor(task)
        # However little a row counts for; a share of nothing is NaN.
        counts = counts | (factors != 0)
        hessian = np.where(counts, factors * (probs * missing), 0)
        if floor is not None:
            hessian = np.where(counts, np.maximum(hessian, floor), hessian)
        if task.allowed is not None:
            hessian = np.where(task.allowed, hessian, 0)
        hessian[task.taken_out()] = 0
        hessian = np.moveaxis(hessian, -1, call.axis)
        loss, grad = loss_and_gradient(call, True, grad_out)
        if call.reduction == "mean" and call.empty == "zero" and loss == 0:
            hessian[...] = np.where(_divisor(task) == 0, 0, hessian)
        return loss, grad, deliver(hessian, call.dtype, hessian_out)


# Scores


class TargetScores(NamedTuple):
    """What is found out about the target of each row; None for what is not asked for."""

    log_prob: Array
    rank: Array
    argmax: Array
    logsumexp: Array
    entropy: Array | None
    top_indices: Array | None
    top_log_probs: Array | None


def target_scores(
    logits: ArrayLike,
    target: ArrayLike,
    axis: int = -1,
    *,
    top_k: int = 0,
    entropy: bool = False,
    ties: str = "first",
    ignore_index: int = -100,
    temperature: float = 1.0,
    softcap: float | None = None,
    where: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> TargetScores:
    """Log-probability and rank of a target, and what its row has besides."""
    call = _checks.check_scores(
        logits, target, axis, top_k=top_k, entropy=entropy, ties=ties, ignore_index=ignore_index,
        temperature=temperature, softcap=softcap, where=where, dtype=dtype,
    )  # fmt: skip
    return scores(call)


def scores(call: ScoreArguments) -> TargetScores:
    """Return the scores of a checked call."""
    classes = call.logits.shape[call.axis]
    _checks.check_labels(call.labels, classes, call.ignore_index)
    ignored = call.labels == call.ignore_index
    labels = np.where(ignored, 0, call.labels).astype(np.intp)
    # Logits are compared in their own dtype, whatever the result's.
    own = _checks.compute_dtype(_checks.result_dtype(call.logits.dtype))
    given = np.moveaxis(call.logits, call.axis, -1).astype(own)
    allowed = np.ones(given.shape, np.bool_)
    if call.where is not None:
        allowed = np.moveaxis(call.where, call.axis, -1)
        given = np.where(allowed, given, own.type(-np.inf))
    with np.errstate(all="ignore"):
        values = given.astype(_checks.compute_dtype(call.dtype))
        if call.softcap is not None:
            values, _ = softcapped(values, call.softcap)
        shifted, maximum = _minus_maximum(values, (-1,), call.temperature)
        exponentials, top, others = _split_sum(shifted, (-1,))
        log_sum = log_of_sum(top, others)
        bad = ~np.isfinite(maximum[..., 0] + others[..., 0])
        log_probs = np.where(bad[..., None], np.nan, shifted - log_sum)
        log_total = cool(maximum, call.temperature) + log_sum
        log_total = np.where(np.isinf(maximum), maximum, log_total)[..., 0]
        log_prob = np.where(ignored, 0, _pick(log_probs, labels))
        spread = _sum(product(exponentials, -shifted))[..., 0]
        of_row = np.where(bad, np.nan, log_sum[..., 0] + spread / (top + others)[..., 0])
        excluded = ~_pick(allowed, labels)
        rank = np.where(bad | ignored | excluded, -1, _ranks(given, allowed, labels, call.ties))
        argmax = np.where(bad, -1, given.argmax(axis=-1) if classes else -1)
        order = np.lexsort((-given, ~allowed), axis=-1)[..., : call.top_k]
        top_log_probs = np.take_along_axis(log_probs, order, axis=-1)
        found = np.take_along_axis(allowed, order, axis=-1) & ~bad[..., None]
        return TargetScores(
            deliver(log_prob, call.dtype),
            unwrapped(rank.astype(np.int64)),
            unwrapped(argmax.astype(np.int64)),
            deliver(log_total, call.dtype),
            deliver(of_row, call.dtype) if call.entropy else None,
            np.where(found, order, -1).astype(np.int64) if call.top_k else None,
            deliver(top_log_probs, call.dtype) if call.top_k else None,
        )


def _ranks(values: Array, allowed: Array, labels: Array, ties: str) -> Array:
    """Return how many values count as above that of each row's label."""
    own = _pick(values, labels)[..., None]
    above: Array = (values > own).sum(axis=-1)
    equal = (values == own) & allowed
    if ties == "first":
        equal &= np.arange(values.shape[-1]) < labels[..., None]
    if ties != "min":
        above = above + equal.sum(axis=-1) - (ties == "max")
    return above


# Losses of hidden states and a class matrix


class LinearGrads(NamedTuple):
    """Gradients of a loss of ``hidden @ weight.T + bias``; None where not wanted."""

    hidden: Array | None
    weight: Array | None
    bias: Array | None


def linear_cross_entropy(
    hidden: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    where: ArrayLike | None = None,
    reduction: str = "mean",
    denominator: float | None = None,
    empty: str = "nan",
    dtype: DTypeLike | None = None,
    memory: int = 256 * 2**20,
) -> Any:
    """Cross-entropy of ``hidden @ linear_weight.T + linear_bias``, which is made whole here."""
    return linear_cross_entropy_with_grad(
        hidden, linear_weight, target, linear_bias=linear_bias, weight=weight,
        sample_weight=sample_weight, ignore_index=ignore_index, label_smoothing=label_smoothing,
        z_loss=z_loss, temperature=temperature, softcap=softcap, where=where, reduction=reduction,
        denominator=denominator, empty=empty, dtype=dtype, memory=memory, grads=(),
    )[0]  # fmt: skip


def linear_cross_entropy_with_grad(
    hidden: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    where: ArrayLike | None = None,
    reduction: str = "mean",
    denominator: float | None = None,
    empty: str = "nan",
    dtype: DTypeLike | None = None,
    memory: int = 256 * 2**20,
    grads: Collection[str] = _checks.LINEAR_GRADS,
    accumulate: bool = False,
    hidden_grad_out: Array | None = None,
    weight_grad_out: Array | None = None,
    bias_grad_out: Array | None = None,
) -> tuple[Any, LinearGrads]:
    """Cross-entropy of ``hidden @ linear_weight.T + linear_bias``, and its gradients."""
    arrays = _checks.check_linear(hidden, linear_weight, linear_bias, dtype)
    classes = len(arrays.weight)
    row_shape = arrays.hidden.shape[:-1]
    given, is_labels = _checks.check_target(target, (*row_shape, classes), len(row_shape))
    _checks.check_memory(memory)
    outs = hidden_grad_out, weight_grad_out, bias_grad_out
    dtypes = _checks.check_linear_grads(arrays, grads, accumulate, outs, dtype)
    compute = _checks.compute_dtype(arrays.dtype)
    allowed = _checks.check_allowed_classes(where, classes)
    matrix = arrays.weight.astype(compute)
    if allowed is not None:
        matrix[~allowed] = 0
    # Rows that do not count have no part in any sum, whatever they hold.
    counts = np.ones(row_shape, np.bool_)
    if is_labels:
        counts &= given != ignore_index
    if sample_weight is not None:
        counts &= _checks.check_sample_weight(sample_weight, row_shape) != 0
    states = np.where(counts[..., None], arrays.hidden, 0).astype(compute)
    with np.errstate(all="ignore"):
        logits = states @ matrix.T
        if arrays.bias is not None:
            logits = logits + arrays.bias.astype(compute)
        loss, gradient = cross_entropy_with_grad(
            logits, given, weight=weight, sample_weight=sample_weight, ignore_index=ignore_index,
            label_smoothing=label_smoothing, z_loss=z_loss, temperature=temperature,
            softcap=softcap, where=allowed, reduction=reduction, denominator=denominator,
            empty=empty,
        )  # fmt: skip
        gradient[~counts] = 0
        rows = gradient.reshape(counts.size, classes)
        results = {
            "hidden": gradient @ matrix,
            "weight": rows.T @ states.reshape(counts.size, states.shape[-1]),
            "bias": rows.sum(axis=0),
        }
        for name, out in zip(_checks.LINEAR_GRADS, outs, strict=True):
            if out is not None and accumulate:
                results[name] = out + results[name]
        found = {
            name: deliver(results[name], dtypes[name], out) if name in dtypes else None
            for name, out in zip(_checks.LINEAR_GRADS, outs, strict=True)
        }
    return deliver(loss, arrays.dtype), LinearGrads(**found)


def linear_target_scores(
    hidden: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    top_k: int = 0,
    entropy: bool = False,
    ties: str = "first",
    ignore_index: int = -100,
    temperature: float = 1.0,
    softcap: float | None = None,
    where: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
    memory: int = 256 * 2**20,
) -> TargetScores:
    """Scores by ``hidden @ linear_weight.T + linear_bias``, which is made whole here."""
    arrays = _checks.check_linear(hidden, linear_weight, linear_bias, dtype)
    compute = _checks.compute_dtype(arrays.dtype)
    mask = _checks.check_allowed_classes(where, len(arrays.weight))
    _checks.check_memory(memory)
    with np.errstate(all="ignore"):
        logits = arrays.hidden.astype(compute) @ arrays.weight.astype(compute).T
        if arrays.bias is not None:
            logits = logits + arrays.bias.astype(compute)
    return target_scores(
        logits, target, top_k=top_k, entropy=entropy, ties=ties, ignore_index=ignore_index,
        temperature=temperature, softcap=softcap, where=mask, dtype=arrays.dtype,
    )  # fmt: skip


def negative_log(call: LossArguments, is_log: bool) -> Any:
    """Return the loss for (log-)probabilities."""
    with np.errstate(all="ignore"):
        task = _task(call)
        if task.labels is not None:
            picked = _pick(task.values, task.labels)
            rows = product(_label_weight(task), 0 - (picked if is_log else np.log(picked)))
        else:
            assert task.probabilities is not None
            coefficients = task.probabilities
            if task.weight is not None:
                coefficients = coefficients * task.weight
            log_probs = task.values if is_log else np.log(task.values)
            rows = 0 - _sum(product(coefficients, log_probs))[..., 0]
        return deliver(_reduce(rows, task), call.dtype)


def nll_loss(
    log_probs: ArrayLike,
    target: ArrayLike,
    axis: int = -1,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    denominator: float | None = None,
    empty: str = "nan",
    dtype: DTypeLike | None = None,
) -> Any:
    """Negative log-likelihood of labels or class probabilities, given log-probabilities."""
    call = _checks.check_loss(
        "log_probs", log_probs, target, axis, weight=weight, sample_weight=sample_weight,
        ignore_index=ignore_index, reduction=reduction, denominator=denominator, empty=empty,
        dtype=dtype,
    )  # fmt: skip
    return negative_log(call, is_log=True)


def cross_entropy_from_probs(
    probs: ArrayLike,
    target: ArrayLike,
    axis: int = -1,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    denominator: float | None = None,
    empty: str = "nan",
    dtype: DTypeLike | None = None,
) -> Any:
    """Cross-entropy of labels or class probabilities, given probabilities."""
    call = _checks.check_loss(
        "probs", probs, target, axis, weight=weight, sample_weight=sample_weight,
        ignore_index=ignore_index, reduction=reduction, denominator=denominator, empty=empty,
        dtype=dtype,
    )  # fmt: skip
    return negative_log(call, is_log=False)


# Binary losses


def binary_loss(
    call: BinaryArguments, with_grad: bool, grad_out: Array | None = None
) -> tuple[Any, Any]:
    """Return the loss, and the gradient or None."""
    compute = _checks.compute_dtype(call.dtype)
    values, target, weight, pos_weight = (
        None if array is None else array.astype(compute, copy=False)
        for array in (call.values, call.target, call.weight, call.pos_weight)
    )
    assert values is not None
    assert target is not None
    grad = None
    with np.errstate(all="ignore"):
        yes = target if pos_weight is None else target * pos_weight
        no = 1 - target
        small = np.exp(-np.abs(values))
        if call.from_logits:
            softplus = np.log1p(small)
            elements = product(yes, softplus + np.maximum(-values, 0))
            elements = elements + product(no, softplus + np.maximum(values, 0))
        else:
            elements = 0 - (product(yes, np.log(values)) + product(no, np.log1p(-values)))
        if weight is not None:
            elements = product(weight, elements)
        if with_grad:
            sigmoid = np.where(values >= 0, 1, small) / (1 + small)
            complement = np.where(values >= 0, small, 1) / (1 + small)  # sigmoid of -logits
            grad = np.asarray(no * sigmoid - yes * complement)
            if weight is not None:
                grad = grad * weight
            if call.reduction == "mean" and grad.size:
                grad = grad / grad.dtype.type(grad.size)
            grad = deliver(grad, call.dtype, grad_out)
        if call.reduction != "none":
            elements = np.sum(elements, dtype=np.promote_types(compute, np.float64))
            elements = elements / values.size if call.reduction == "mean" else elements
        return deliver(elements, call.dtype), grad


def binary_cross_entropy(
    probs: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    reduction: str = "mean",
    dtype: DTypeLike | None = None,
) -> Any:
    """Cross-entropy of independent yes/no targets, given the probabilities of yes."""
    call = _checks.check_binary("probs", probs, target, weight, None, reduction, dtype)
    return binary_loss(call, False)[0]


def binary_cross_entropy_with_logits(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    reduction: str = "mean",
    dtype: DTypeLike | None = None,
) -> Any:
    """Cross-entropy of independent yes/no targets with the sigmoid of `logits`."""
    call = _checks.check_binary("logits", logits, target, weight, pos_weight, reduction, dtype)
    return binary_loss(call, False)[0]


def binary_cross_entropy_with_logits_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    reduction: str = "mean",
    dtype: DTypeLike | None = None,
    grad_out: Array | None = None,
) -> tuple[Any, Array]:
    """Binary cross-entropy with logits, and its gradient with respect to `logits`."""
    call = _checks.check_binary(
        "logits", logits, target, weight, pos_weight, reduction, dtype, grad_out
    )
    return binary_loss(call, True, grad_out)


# Classes shared out over arrays: made of what is above.
from . import _reference_sharded  # noqa: E402

sharded = _reference_sharded
