"""The whole public API in plain NumPy: each formula as a textbook has it, in its stable form.

It is what the compiled kernels are measured and tested against, and it serves ``longdouble``. The
functions have the names, arguments, results and errors of those in :mod:`softce_fast`, whose
docstrings describe them in full.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import _checks
from ._layout import deliver

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
    "log_softmax",
    "log_softmax_backward",
    "logsumexp",
    "nll_loss",
    "softmax",
    "softmax_backward",
]

Array = NDArray[Any]
DType = np.dtype[Any]
Axis = int | tuple[int, ...] | None


# Helpers


def _product(coefficient: Array, value: Array) -> Array:
    """Return coefficient * value; 0 for a coefficient of 0, whatever it stands before."""
    product = np.asarray(coefficient * value)
    np.copyto(product, 0, where=coefficient == 0)
    return product


def _cool(values: Array, temperature: float) -> Array:
    """Return values / temperature, which may be out of their dtype's range."""
    if temperature == 1:
        return values
    limits = np.finfo(values.dtype)
    if limits.tiny <= temperature <= limits.max:
        cooled: Array = values / values.dtype.type(temperature)
        return cooled
    return (values / np.longdouble(temperature)).astype(values.dtype)


def _minus_maximum(values: Array, axes: tuple[int, ...], temperature: float) -> tuple[Array, Array]:
    """Return (values - maximum) / temperature, and the maximum."""
    maximum = values.max(axis=axes, keepdims=True, initial=-np.inf)
    return _cool(values - maximum, temperature), maximum


def _split_sum(shifted: Array, axes: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Return exp(shifted), and its sum in two parts: over the maxima, and over the others.

    The first part is their number. Kept apart from it, the second loses no digit, however small
    it is. The maxima are 0 in the exponentials returned.
    """
    exponentials = np.asarray(np.exp(shifted))
    at_maximum = shifted == 0
    top = exponentials.sum(axis=axes, keepdims=True, where=at_maximum)
    np.copyto(exponentials, 0, where=at_maximum)
    others = exponentials.sum(axis=axes, keepdims=True)
    return exponentials, top, others


def _log_sum(top: Array, others: Array) -> Array:
    log_sum: Array = np.log(top) + np.log1p(others / top)
    return log_sum


# Softmax and its kin


class _Rows(NamedTuple):
    """Checked arguments of softmax and log_softmax."""

    values: Array  # in the dtype to compute in; -inf where excluded
    axes: tuple[int, ...]
    temperature: float
    dtype: DType  # of the result


def _softmax_arguments(
    x: ArrayLike,
    axis: Axis,
    where: ArrayLike | None,
    temperature: float,
    empty: str,
    dtype: DTypeLike | None,
    out: Array | None,
) -> _Rows:
    array = _checks.real_array(x, "x")
    axes = _checks.normalize_axes(axis, array.ndim)
    result = _checks.result_dtype(array.dtype, dtype)
    mask = None if where is None else _checks.check_where(where, array.shape)
    temperature = _checks.check_temperature(temperature)
    _checks.check_empty(empty)
    if out is not None:
        _checks.check_out(out, array.shape, result)
    values = array.astype(_checks.compute_dtype(result), copy=False)
    if mask is not None:
        values = np.where(mask, values, values.dtype.type(-np.inf))
    return _Rows(values, axes, temperature, result)


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
        rows = _softmax_arguments(x, axis, where, temperature, empty, dtype, out)
        shifted, maximum = _minus_maximum(rows.values, rows.axes, rows.temperature)
        exponentials = np.exp(shifted)
        result = exponentials / exponentials.sum(axis=rows.axes, keepdims=True)
        if empty == "zero":
            result = np.where(maximum == -np.inf, 0, result)
        return deliver(result, rows.dtype, out)


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
        rows = _softmax_arguments(x, axis, where, temperature, empty, dtype, out)
        shifted, maximum = _minus_maximum(rows.values, rows.axes, rows.temperature)
        _, top, others = _split_sum(shifted, rows.axes)
        result = shifted - _log_sum(top, others)
        if empty == "zero":
            result = np.where(maximum == -np.inf, -np.inf, result)
        return deliver(result, rows.dtype, out)


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
    array = _checks.real_array(x, "x")
    axes = _checks.normalize_axes(axis, array.ndim)
    result = _checks.result_dtype(array.dtype, dtype)
    factor = None
    if b is not None:
        factor = _checks.check_broadcast(_checks.real_array(b, "b"), array.shape, "b", "x")
    mask = None if where is None else _checks.check_where(where, array.shape)
    if out is not None:
        shape = tuple(1 if i in axes else n for i, n in enumerate(array.shape))
        if not keepdims:
            shape = tuple(n for i, n in enumerate(array.shape) if i not in axes)
        _checks.check_out(out, shape, result)

    with np.errstate(all="ignore"):
        values = array.astype(_checks.compute_dtype(result), copy=False)
        minus_infinity = values.dtype.type(-np.inf)
        if factor is not None:
            factor = factor.astype(values.dtype, copy=False)
            read = factor != 0 if mask is None else (factor != 0) & mask
            factor = np.where(read, factor, 0)
            values = np.where(read, values, minus_infinity)
        elif mask is not None:
            values = np.where(mask, values, minus_infinity)
        maximum = values.max(axis=axes, keepdims=True, initial=-np.inf)
        at_maximum = values == maximum
        exponentials = np.asarray(np.exp(values - maximum))
        np.copyto(exponentials, 1, where=at_maximum)  # also where both are infinite
        if factor is not None:
            exponentials *= factor
        top = exponentials.sum(axis=axes, keepdims=True, where=at_maximum)
        np.copyto(exponentials, 0, where=at_maximum)
        others = exponentials.sum(axis=axes, keepdims=True)
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
        if not keepdims:
            log_total, sign = log_total.squeeze(axes), sign.squeeze(axes)
        if return_sign:
            return deliver(log_total, result, out), deliver(sign, result)
        return deliver(log_total, result, out)


def _backward_arguments(
    grad_output: ArrayLike, output: ArrayLike, axis: Axis, out: Array | None
) -> tuple[Array, Array, tuple[int, ...], DType]:
    gradient, values, axes, result = _checks.check_backward(grad_output, output, axis, out)
    compute = _checks.compute_dtype(result)
    return gradient.astype(compute, copy=False), values.astype(compute, copy=False), axes, result


def softmax_backward(
    grad_output: ArrayLike, output: ArrayLike, axis: Axis = -1, *, out: Array | None = None
) -> Array:
    """Gradient through softmax, given that of its result and the result itself."""
    with np.errstate(all="ignore"):
        gradient, probs, axes, dtype = _backward_arguments(grad_output, output, axis, out)
        mean = (gradient * probs).sum(axis=axes, keepdims=True)
        return deliver(probs * (gradient - mean), dtype, out)


def log_softmax_backward(
    grad_output: ArrayLike, output: ArrayLike, axis: Axis = -1, *, out: Array | None = None
) -> Array:
    """Gradient through log_softmax, given that of its result and the result itself."""
    with np.errstate(all="ignore"):
        gradient, log_probs, axes, dtype = _backward_arguments(grad_output, output, axis, out)
        total = gradient.sum(axis=axes, keepdims=True)
        return deliver(gradient - np.exp(log_probs) * total, dtype, out)


# Losses over classes


class _Task(NamedTuple):
    """Checked arguments of a loss, the class axis last; either labels or probabilities is None."""

    values: Array  # logits, log-probabilities or probabilities, in the dtype to compute in
    axis: int  # where the class axis was
    labels: Array | None  # 0 for ignored rows
    ignored: Array | None
    probabilities: Array | None
    weight: Array | None
    sample_weight: Array | None
    reduction: str
    denominator: float | None
    empty: str
    dtype: DType  # of the result

    @property
    def classes(self) -> int:
        """Number of classes."""
        classes: int = self.values.shape[-1]
        return classes


def _task(
    name: str,
    values: ArrayLike,
    target: ArrayLike,
    axis: int,
    weight: ArrayLike | None,
    sample_weight: ArrayLike | None,
    ignore_index: int,
    reduction: str,
    denominator: float | None,
    empty: str,
    dtype: DTypeLike | None,
) -> _Task:
    """Check the arguments that the losses have in common."""
    array = _checks.real_array(values, name)
    axis = _checks.normalize_axis(axis, array.ndim)
    classes = array.shape[axis]
    result = _checks.result_dtype(array.dtype, dtype)
    _checks.check_reduction(reduction)
    _checks.check_empty(empty)
    denominator = _checks.check_denominator(denominator)
    ignore_index = _checks.check_ignore_index(ignore_index)
    target_array, is_labels = _checks.check_target(target, array.shape, axis, name)
    row_shape = array.shape[:axis] + array.shape[axis + 1 :]
    class_weights = row_weights = None
    if weight is not None:
        class_weights = _checks.check_class_weight(weight, classes)
    if sample_weight is not None:
        row_weights = _checks.check_sample_weight(sample_weight, row_shape, name)
    if is_labels:
        _checks.check_labels(target_array, classes, ignore_index)

    compute = _checks.compute_dtype(result)
    labels = ignored = probabilities = None
    if is_labels:
        ignored = target_array == ignore_index
        labels = np.where(ignored, 0, target_array).astype(np.intp)
    else:
        probabilities = np.moveaxis(target_array.astype(compute, copy=False), axis, -1)
    if class_weights is not None:
        class_weights = class_weights.astype(compute, copy=False)
    if row_weights is not None:
        # Not to anything narrower, in which small ones would be a mean of nothing.
        row_weights = row_weights.astype(np.promote_types(compute, np.float64), copy=False)
    return _Task(
        np.moveaxis(array.astype(compute, copy=False), axis, -1),
        axis,
        labels,
        ignored,
        probabilities,
        class_weights,
        row_weights,
        reduction,
        denominator,
        empty,
        result,
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
    wide = np.promote_types(task.values.dtype, np.float64)
    if task.denominator is not None:
        return wide.type(task.denominator)
    row_shape = task.values.shape[:-1]
    weight = np.ones(row_shape, wide) if task.labels is None else _label_weight(task).astype(wide)
    if task.sample_weight is not None:
        weight = weight * task.sample_weight
    if task.ignored is not None:
        weight = np.where(task.ignored, 0, weight)
    return weight.sum(dtype=wide)


def _reduce(rows: Array, task: _Task) -> Array:
    """Return the losses of the rows, weighted by sample_weight, summed or averaged if wanted."""
    if task.sample_weight is not None:
        rows = _product(task.sample_weight, rows)
    if task.ignored is not None:
        rows = np.where(task.ignored, 0, rows)
    if task.reduction == "none":
        return rows
    total = rows.sum(dtype=np.promote_types(rows.dtype, np.float64))
    if task.reduction == "sum":
        return np.asarray(total)
    divisor = _divisor(task)
    if task.empty == "zero" and divisor == 0 and total == 0:
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


def _coefficients(task: _Task, label_smoothing: float) -> tuple[Array | None, Array | None, Array]:
    """Return label_part, spread and coefficient_sum of `_Softmax`."""
    label_part = spread = None
    total = np.zeros((*task.values.shape[:-1], 1), task.values.dtype)
    if task.labels is not None:
        label_part = np.asarray((1 - label_smoothing) * _label_weight(task))
        total = total + label_part[..., None]
    if task.probabilities is not None:
        spread = task.probabilities
    if label_smoothing > 0:
        uniform = np.full_like(task.values[..., :1], label_smoothing / max(task.classes, 1))
        if spread is None:
            spread = np.broadcast_to(uniform, task.values.shape)
        else:
            spread = (1 - label_smoothing) * spread + uniform
    if spread is not None:
        if task.weight is not None:
            spread = spread * task.weight
        total = total + spread.sum(axis=-1, keepdims=True)
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
    grad *= parts.coefficient_sum + parts.from_z
    other_coefficients = np.zeros_like(best_prob)
    if parts.spread is not None:
        grad -= parts.spread
        other_spread = np.array(parts.spread)
        np.put_along_axis(other_spread, best[..., None], 0, axis=-1)
        other_coefficients = other_coefficients + other_spread.sum(axis=-1)
    if task.labels is not None and parts.label_part is not None:
        at_label = _pick(grad, task.labels) - parts.label_part
        np.put_along_axis(grad, task.labels[..., None], at_label[..., None], axis=-1)
        other_coefficients += np.where(task.labels == best, 0, parts.label_part)
    complement = (parts.others + (parts.top - 1)) / total
    confident = other_coefficients - (parts.coefficient_sum * complement)[..., 0]
    confident += parts.from_z[..., 0] * best_prob
    at_best = np.where(best_prob > 0.5, confident, _pick(grad, best))
    np.put_along_axis(grad, best[..., None], at_best[..., None], axis=-1)
    return grad


def _cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    axis: int,
    weight: ArrayLike | None,
    sample_weight: ArrayLike | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    temperature: float,
    reduction: str,
    denominator: float | None,
    empty: str,
    dtype: DTypeLike | None,
    with_grad: bool,
    grad_out: Array | None = None,
) -> tuple[Any, Any]:
    """Return the loss, and the gradient or None."""
    label_smoothing = _checks.check_label_smoothing(label_smoothing)
    z_loss = _checks.check_z_loss(z_loss)
    temperature = _checks.check_temperature(temperature)
    task = _task(
        "logits", logits, target, axis, weight, sample_weight, ignore_index, reduction, denominator,
        empty, dtype,
    )  # fmt: skip
    if grad_out is not None:
        shape = np.moveaxis(task.values, -1, task.axis).shape
        _checks.check_out(grad_out, shape, task.dtype, "grad_out")

    shifted, maximum = _minus_maximum(task.values, (-1,), temperature)
    exponentials, top, others = _split_sum(shifted, (-1,))
    log_sum = _log_sum(top, others) if task.classes else np.zeros_like(top)
    label_part, spread, coefficient_sum = _coefficients(task, label_smoothing)

    rows = (coefficient_sum * log_sum)[..., 0]
    if task.labels is not None and label_part is not None:
        rows = rows - _product(label_part, _pick(shifted, task.labels))
    if spread is not None:
        rows = rows - _product(spread, shifted).sum(axis=-1)
    from_z = np.zeros_like(top)
    if z_loss:
        log_total = _cool(maximum, temperature) + log_sum
        rows = rows + z_loss * log_total[..., 0] ** 2
        from_z = 2 * z_loss * log_total
    elif spread is None:
        # A class weight of 0 takes all of its label's row out.
        rows = np.where(label_part == 0, 0, rows)
    loss = _reduce(rows, task)
    if not with_grad:
        return deliver(loss, task.dtype), None

    parts = _Softmax(
        shifted, exponentials, top, others, label_part, spread, coefficient_sum, from_z
    )
    grad = _gradient(task, parts)
    if task.sample_weight is not None:
        grad *= task.sample_weight[..., None]
    grad = _cool(grad, temperature)
    if reduction == "mean":
        divisor = _divisor(task)
        if empty == "zero" and divisor == 0 and loss == 0:
            grad[...] = 0
        elif divisor != 1:
            grad /= grad.dtype.type(divisor)
    if task.ignored is not None:
        grad[task.ignored] = 0
    if spread is None and not z_loss:
        grad[label_part == 0] = 0
    if task.sample_weight is not None:
        grad[task.sample_weight == 0] = 0
    grad = np.moveaxis(grad, -1, task.axis)
    return deliver(loss, task.dtype), deliver(grad, task.dtype, grad_out)


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
    reduction: str = "mean",
    denominator: float | None = None,
    empty: str = "nan",
    dtype: DTypeLike | None = None,
) -> Any:
    """Cross-entropy of the softmax of `logits` with labels or class probabilities."""
    with np.errstate(all="ignore"):
        return _cross_entropy(
            logits, target, axis, weight, sample_weight, ignore_index, label_smoothing, z_loss,
            temperature, reduction, denominator, empty, dtype, with_grad=False,
        )[0]  # fmt: skip


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
    reduction: str = "mean",
    denominator: float | None = None,
    empty: str = "nan",
    dtype: DTypeLike | None = None,
    grad_out: Array | None = None,
) -> tuple[Any, Array]:
    """Cross-entropy, and its gradient with respect to `logits`."""
    with np.errstate(all="ignore"):
        return _cross_entropy(
            logits, target, axis, weight, sample_weight, ignore_index, label_smoothing, z_loss,
            temperature, reduction, denominator, empty, dtype, with_grad=True, grad_out=grad_out,
        )  # fmt: skip


# Losses of hidden states and a class matrix


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
    hessian_scale = _checks.check_hessian_scale(hessian_scale)
    hessian_floor = _checks.check_hessian_floor(hessian_floor)
    with np.errstate(all="ignore"):
        task = _task(
            "logits", logits, target, axis, weight, sample_weight, ignore_index, reduction,
            denominator, empty, dtype,
        )  # fmt: skip
        if hessian_out is not None:
            shape = np.moveaxis(task.values, -1, task.axis).shape
            _checks.check_out(hessian_out, shape, task.dtype, "hessian_out")
        temperature = _checks.check_temperature(temperature)
        shifted, _ = _minus_maximum(task.values, (-1,), temperature)
        exponentials, top, others = _split_sum(shifted, (-1,))
        total = top + others
        np.copyto(exponentials, 1, where=shifted == 0)
        probs = exponentials / total
        missing = np.where(probs > 0.5, (others + (top - 1)) / total, 1 - probs)
        _, _, factors = _coefficients(task, _checks.check_label_smoothing(label_smoothing))
        factors = factors * (hessian_scale / temperature / temperature)
        if task.sample_weight is not None:
            factors = factors * task.sample_weight[..., None]
        if reduction == "mean":
            factors = factors / _divisor(task)
        hessian = _product(factors, probs * missing)
        if hessian_floor is not None:
            hessian = np.where(factors != 0, np.maximum(hessian, hessian_floor), hessian)
        for rows in (task.ignored, None if task.sample_weight is None else task.sample_weight == 0):
            if rows is not None:
                hessian[rows] = 0
        hessian = np.moveaxis(hessian, -1, task.axis)
        loss, grad = cross_entropy_with_grad(
            logits, target, axis, weight=weight, sample_weight=sample_weight,
            ignore_index=ignore_index, label_smoothing=label_smoothing, temperature=temperature,
            reduction=reduction, denominator=denominator, empty=empty, dtype=dtype,
            grad_out=grad_out,
        )  # fmt: skip
        return loss, grad, deliver(hessian, task.dtype, hessian_out)


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
        z_loss=z_loss, temperature=temperature, reduction=reduction,
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
    matrix = arrays.weight.astype(compute)
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
            reduction=reduction, denominator=denominator, empty=empty,
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


def _negative_log(task: _Task, is_log: bool) -> Any:
    """Return the loss for (log-)probabilities."""
    if task.labels is not None:
        picked = _pick(task.values, task.labels)
        rows = _product(_label_weight(task), 0 - (picked if is_log else np.log(picked)))
    else:
        assert task.probabilities is not None
        coefficients = task.probabilities
        if task.weight is not None:
            coefficients = coefficients * task.weight
        log_probs = task.values if is_log else np.log(task.values)
        rows = 0 - _product(coefficients, log_probs).sum(axis=-1)
    return deliver(_reduce(rows, task), task.dtype)


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
    with np.errstate(all="ignore"):
        task = _task(
            "log_probs", log_probs, target, axis, weight, sample_weight, ignore_index, reduction,
            denominator, empty, dtype,
        )  # fmt: skip
        return _negative_log(task, is_log=True)


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
    with np.errstate(all="ignore"):
        task = _task(
            "probs", probs, target, axis, weight, sample_weight, ignore_index, reduction,
            denominator, empty, dtype,
        )  # fmt: skip
        return _negative_log(task, is_log=False)


# Binary losses


def _binary_arrays(
    name: str,
    values: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None,
    pos_weight: ArrayLike | None,
    reduction: str,
    dtype: DTypeLike | None,
    grad_out: Array | None = None,
) -> _checks.BinaryArrays:
    """Return the checked arrays in the dtype to compute in."""
    arrays = _checks.check_binary(
        name, values, target, weight, pos_weight, reduction, dtype, grad_out
    )
    compute = _checks.compute_dtype(arrays.dtype)

    def optional(factor: Array | None) -> Array | None:
        return None if factor is None else factor.astype(compute, copy=False)

    return _checks.BinaryArrays(
        arrays.values.astype(compute, copy=False),
        arrays.target.astype(compute, copy=False),
        optional(arrays.weight),
        optional(arrays.pos_weight),
        arrays.dtype,
    )


def _binary_reduce(elements: Array, arrays: _checks.BinaryArrays, reduction: str) -> Any:
    if arrays.weight is not None:
        elements = _product(arrays.weight, elements)
    if reduction == "none":
        return deliver(elements, arrays.dtype)
    total = np.sum(elements, dtype=np.promote_types(elements.dtype, np.float64))
    return deliver(total / elements.size if reduction == "mean" else total, arrays.dtype)


def binary_cross_entropy(
    probs: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    reduction: str = "mean",
    dtype: DTypeLike | None = None,
) -> Any:
    """Cross-entropy of independent yes/no targets, given the probabilities of yes."""
    with np.errstate(all="ignore"):
        arrays = _binary_arrays("probs", probs, target, weight, None, reduction, dtype)
        yes = _product(arrays.target, np.log(arrays.values))
        no = _product(1 - arrays.target, np.log1p(-arrays.values))
        return _binary_reduce(0 - (yes + no), arrays, reduction)


def _binary_with_logits(arrays: _checks.BinaryArrays) -> tuple[Array, Array, Array]:
    """Return the coefficients of yes and no, and the unweighted loss of each element."""
    yes = arrays.target if arrays.pos_weight is None else arrays.target * arrays.pos_weight
    no = 1 - arrays.target
    softplus = np.log1p(np.exp(-np.abs(arrays.values)))
    elements = _product(yes, softplus + np.maximum(-arrays.values, 0))
    elements = elements + _product(no, softplus + np.maximum(arrays.values, 0))
    return yes, no, elements


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
    with np.errstate(all="ignore"):
        arrays = _binary_arrays("logits", logits, target, weight, pos_weight, reduction, dtype)
        return _binary_reduce(_binary_with_logits(arrays)[2], arrays, reduction)


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
    with np.errstate(all="ignore"):
        arrays = _binary_arrays(
            "logits", logits, target, weight, pos_weight, reduction, dtype, grad_out
        )
        yes, no, elements = _binary_with_logits(arrays)
        small = np.exp(-np.abs(arrays.values))
        positive = arrays.values >= 0
        sigmoid = np.where(positive, 1, small) / (1 + small)
        complement = np.where(positive, small, 1) / (1 + small)  # sigmoid of -logits
        grad = np.asarray(no * sigmoid - yes * complement)
        if arrays.weight is not None:
            grad = grad * arrays.weight
        if reduction == "mean" and grad.size:
            grad = grad / grad.dtype.type(grad.size)
        return _binary_reduce(elements, arrays, reduction), deliver(grad, arrays.dtype, grad_out)
