"""Cross-entropy of class indices or class probabilities, from logits or from probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import _checks, _layout, _memory, _scaling, reference
from ._dispatch import dtype_for, kernels_for, loaded_kernels, takes
from ._scaling import Call
from ._softmax import softmax
from ._threads import threads_for

Array = NDArray[Any]
DType = np.dtype[Any]


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
    r"""Return the cross-entropy of the softmax of `logits` with a target.

    Parameters
    ----------
    logits : array_like, shape (..., C, ...)
        Unnormalised log-probabilities, of any real dtype and any strides.
    target : array_like
        Integers of the shape of `logits` without the class axis: class indices. Or floating
        numbers of the shape of `logits`: class probabilities.
    axis : int, default -1
        The class axis. PyTorch's and ONNX's layout is ``axis=1``.
    weight : array_like, shape (C,), optional
        Weight of each class.
    sample_weight : array_like, optional
        Weight of each row, of the shape of `logits` without the class axis.
    ignore_index : int, default -100
        Label of rows that count for nothing, even where they hold NaN.
    label_smoothing : float, default 0.0
        Share, in [0, 1], of the target that is spread evenly over all classes.
    z_loss : float, default 0.0
        Adds ``z_loss * logsumexp(row)**2`` to each row's loss.
    temperature : float, default 1.0
        Divides the logits. Finite and above 0.
    reduction : {"mean", "sum", "none"}, default "mean"
        What becomes of the losses of the rows.
    denominator : float, optional
        What "mean" divides by. By default the sum of ``weight[label] * sample_weight`` over the
        rows not ignored for class indices, the sum of ``sample_weight`` (else the number of
        rows) for class probabilities.
    empty : {"nan", "zero"}, default "nan"
        The mean over no rows: NaN or 0.
    dtype : dtype, optional
        Floating type to compute in and to return. By default that of `logits`; float64 for
        booleans and integers.

    Returns
    -------
    scalar or ndarray
        The reduced loss, or with ``reduction="none"`` the losses, one for each row.

    Raises
    ------
    IndexError
        If a label is below 0 or not below C, and is not `ignore_index`.
    AxisError
        If `axis` is out of range.
    TypeError
        If `logits` is complex, masked or not numeric, or the labels are boolean.
    ValueError
        If a shape does not fit or an option is out of range.

    See Also
    --------
    cross_entropy_with_grad : The loss and its gradient in one pass.

    Notes
    -----
    .. math:: H = -\sum_i p_i \log q_i, \quad q = \mathrm{softmax}(x / T)

    with PyTorch's formulas for weights, smoothing and the mean. Where the target's probability is
    near 1 the loss is log1p(others / own), so a confident row keeps its digits. The losses are
    summed in float64, in an order that does not depend on the number of threads.

    Examples
    --------
    >>> import numpy as np
    >>> import softce_fast as sf
    >>> loss = sf.cross_entropy(np.array([[2.0, 1.0, 0.1]]), np.array([0]))
    >>> round(float(loss), 3)
    0.417
    """
    loss, _ = _cross_entropy(
        logits, target, axis, weight, sample_weight, ignore_index, label_smoothing, z_loss,
        temperature, reduction, denominator, empty, dtype, False, None,
    )  # fmt: skip
    return loss


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
    r"""Return the cross-entropy and its gradient by the logits, in one pass.

    Parameters
    ----------
    logits, target, axis, weight, sample_weight, ignore_index, label_smoothing, z_loss
        As in :func:`cross_entropy`.
    temperature, reduction, denominator, empty, dtype
        As in :func:`cross_entropy`.
    grad_out : ndarray, optional
        Where to put the gradient: of the shape of `logits` and the dtype of the result, any
        strides. It may be `logits` itself, which the gradient then overwrites.

    Returns
    -------
    loss : scalar or ndarray
        As from :func:`cross_entropy`.
    grad : ndarray
        Gradient of the reduced loss by the logits, of their shape; for ``reduction="none"`` that of
        the sum of the losses. Exactly 0 in ignored rows.

    Raises
    ------
    IndexError, AxisError, TypeError, ValueError
        As :func:`cross_entropy`; also if `grad_out` does not fit, is read-only, or overlaps
        `logits` without being `logits`. Nothing has been written then.

    Notes
    -----
    .. math:: \frac{\partial H}{\partial x_i} = (q_i - p_i) / T

    for a target that sums to 1, times the row's share in the reduced loss. At the label this is
    computed as minus the sum of the other probabilities, which keeps its digits.

    Examples
    --------
    >>> import numpy as np
    >>> import softce_fast as sf
    >>> loss, grad = sf.cross_entropy_with_grad(np.array([[2.0, 1.0, 0.1]]), np.array([0]))
    >>> grad.round(3)
    array([[-0.341,  0.242,  0.099]])
    """
    return _cross_entropy(
        logits, target, axis, weight, sample_weight, ignore_index, label_smoothing, z_loss,
        temperature, reduction, denominator, empty, dtype, True, grad_out,
    )  # fmt: skip


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
    r"""Return the cross-entropy, its gradient and the diagonal of its Hessian by the logits.

    Parameters
    ----------
    logits, target, axis, weight, sample_weight, ignore_index, label_smoothing
        As in :func:`cross_entropy`.
    temperature, reduction, denominator, empty, dtype
        As in :func:`cross_entropy`.
    hessian_scale : float, default 1.0
        Multiplies the Hessian. Finite and above 0.
    hessian_floor : float, optional
        The least value of the Hessian, after all else; not of rows that do not count, where it is
        0. Finite and not below 0.
    grad_out, hessian_out : ndarray, optional
        Where to put the gradient and the Hessian: of the shape of `logits` and the dtype of the
        result, any strides. `grad_out` may be `logits` itself.

    Returns
    -------
    loss : scalar or ndarray
        As from :func:`cross_entropy`.
    grad, hessian : ndarray
        Gradient, and second derivatives by each logit, of the reduced loss; of the sum of the
        losses for ``reduction="none"``.

    Raises
    ------
    IndexError, AxisError, TypeError, ValueError
        As :func:`cross_entropy_with_grad`; also if `hessian_scale` or `hessian_floor` is out of
        range, or `hessian_out` does not fit or shares memory with another array of the call.
        Nothing has been written then.

    Notes
    -----
    .. math:: \frac{\partial^2 H}{\partial x_i^2} = K q_i (1 - q_i) / T^2

    with :math:`K` the sum of the target's coefficients, times the row's share in the reduced loss.
    Where :math:`q_i` is above 1/2, :math:`1 - q_i` is the sum of the others.

    Examples
    --------
    >>> import numpy as np
    >>> import softce_fast as sf
    >>> logits, target = np.array([[2.0, 1.0, 0.1]]), np.array([0])
    >>> loss, grad, hessian = sf.cross_entropy_with_grad_and_hessian(logits, target)
    >>> hessian.round(3)
    array([[0.225, 0.184, 0.089]])
    """
    hessian_scale = _checks.check_hessian_scale(hessian_scale)
    hessian_floor = _checks.check_hessian_floor(hessian_floor)
    array, given, class_axis, call = _checked(
        "logits", logits, target, axis, weight, sample_weight, ignore_index, reduction, denominator,
        empty, dtype, label_smoothing, 0.0, temperature,
    )  # fmt: skip
    if hessian_out is not None:
        _checks.check_out(hessian_out, array.shape, call.dtype, "hessian_out")
        others = (array, given, call.class_weight, call.sample_weight, grad_out)
        if any(isinstance(x, np.ndarray) and _layout.shares_memory(x, hessian_out) for x in others):
            raise ValueError("hessian_out must not share memory with another array of the call")
    compute = _checks.compute_dtype(call.dtype)
    curvature = _memory.empty(array.shape, compute)
    if array.size and kernels_for(compute) is not None:
        softmax(array, class_axis, temperature=temperature, dtype=compute, out=curvature)
    loss, grad = cross_entropy_with_grad(
        array, given, class_axis, weight=weight, sample_weight=sample_weight,
        ignore_index=ignore_index, label_smoothing=label_smoothing, temperature=temperature,
        reduction=reduction, denominator=denominator, empty=empty, dtype=call.dtype,
        grad_out=grad_out,
    )  # fmt: skip
    if array.size == 0 or kernels_for(compute) is None:
        _, _, hessian = reference.cross_entropy_with_grad_and_hessian(
            array, given, class_axis, weight=weight, sample_weight=sample_weight,
            ignore_index=ignore_index, label_smoothing=label_smoothing, temperature=temperature,
            reduction=reduction, denominator=denominator, empty=empty, dtype=call.dtype,
            hessian_scale=hessian_scale, hessian_floor=hessian_floor,
        )  # fmt: skip
        return loss, grad, _layout.deliver(hessian, call.dtype, hessian_out)
    with np.errstate(all="ignore"):
        factors = _curvature_factors(call, array.shape, class_axis) * (hessian_scale / temperature)
        factors = np.ascontiguousarray(factors / temperature, compute).reshape(-1)
        views = _layout.three_axes_together((curvature,), (class_axis,))
        assert views is not None  # a new array is contiguous
        (view,) = views
        kernels_for(compute).curvatures(
            view, view, factors, -math.inf if hessian_floor is None else hessian_floor,
            threads_for(array.size),
        )  # fmt: skip
        return loss, grad, _layout.deliver(curvature, call.dtype, hessian_out)


def _curvature_factors(call: Call, shape: tuple[int, ...], axis: int) -> Array:
    """Return K of each row times its share in the reduced loss, in float64; 0 if it counts not."""
    classes = shape[axis]
    row_shape = shape[:axis] + shape[axis + 1 :]
    weights = np.ones(classes) if call.class_weight is None else call.class_weight
    evenly = call.label_smoothing / classes * math.fsum(weights)
    if call.labels is not None:
        own = weights.astype(np.float64).take(call.labels, mode="clip")
        factors = (1 - call.label_smoothing) * own + evenly
        factors = np.where(call.labels == call.ignore_index, 0, factors)
    else:
        assert call.probabilities is not None
        rows = np.moveaxis(call.probabilities, axis, -1)
        # In long double: a plain sum over many classes would lose digits.
        sums = np.einsum("...c,c->...", rows, weights, dtype=np.longdouble, casting="unsafe")
        factors = (1 - call.label_smoothing) * sums + evenly
    if call.sample_weight is not None:
        factors = np.where(call.sample_weight == 0, 0, factors * call.sample_weight)
    if call.reduction == "mean":
        divisor = _scaling.unscaled(call, row_shape).divisor
        factors = np.where(factors == 0, 0, factors / divisor)
    return np.asarray(factors, np.float64)


def _checked(
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
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
) -> tuple[Array, Array, int, Call]:
    """Return the array called `name`, the target, the axis from the front, and all the rest.

    The labels are not compared with the number of classes here.
    """
    array = _checks.real_array(values, name)
    result_dtype = _checks.result_dtype(array.dtype, dtype)
    axis = _checks.normalize_axis(axis, array.ndim)
    classes = array.shape[axis]
    row_shape = array.shape[:axis] + array.shape[axis + 1 :]
    given, is_labels = _checks.check_target(target, array.shape, axis, name)
    _checks.check_reduction(reduction)
    _checks.check_empty(empty)
    ignore_index = _checks.check_ignore_index(ignore_index)
    labels, ignored_label = given, ignore_index
    if is_labels:
        labels, ignored_label = _int64_labels(given, classes, ignore_index)

    def sample_weights(item: ArrayLike) -> Array:
        return _checks.check_sample_weight(item, row_shape, name)

    call = Call(
        labels if is_labels else None,
        None if is_labels else given,
        _weights(weight, result_dtype, lambda item: _checks.check_class_weight(item, classes)),
        _weights(sample_weight, result_dtype, sample_weights),
        ignored_label,
        _checks.check_label_smoothing(label_smoothing),
        _checks.check_z_loss(z_loss),
        _checks.check_temperature(temperature),
        reduction,
        _checks.check_denominator(denominator),
        empty == "zero",
        result_dtype,
    )
    return array, given, axis, call


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
    grad_out: Array | None,
    as_sum: bool = False,
) -> tuple[Any, Any]:
    """Return the loss, or with `as_sum` the sum of the losses in float64, and the gradient."""
    if (
        not as_sum
        and type(logits) is np.ndarray
        and weight is None
        and sample_weight is None
        and denominator is None
        and dtype is None
    ):
        kernels = loaded_kernels.get(logits.dtype)
        if kernels is not None:
            ordinary = kernels.cross_entropy_ordinary(
                logits, target, axis, ignore_index, label_smoothing, z_loss, temperature, reduction,
                empty, with_grad, grad_out, threads_for,
            )  # fmt: skip
            if ordinary is not None:
                return ordinary
    array, given, axis, call = _checked(
        "logits", logits, target, axis, weight, sample_weight, ignore_index, reduction, denominator,
        empty, dtype, label_smoothing, z_loss, temperature,
    )  # fmt: skip
    if grad_out is not None:
        _checks.check_out(grad_out, array.shape, call.dtype, "grad_out")
        inputs = (array, given, call.class_weight, call.sample_weight)
        if _layout.overlaps(grad_out, tuple(item for item in inputs if item is not None)):
            raise ValueError("grad_out overlaps an input without being the same array")
    buffer_dtype = _checks.block_dtype(call.dtype, array, call.probabilities)
    buffer_dtype = _scaling.dtype_for(call, dtype_for(call.temperature, buffer_dtype))
    if (
        kernels_for(buffer_dtype) is None
        or array.size == 0
        or not takes(call.temperature, buffer_dtype)
    ):
        loss, grad = reference.cross_entropy_with_grad(
            array, given, axis, weight=weight, sample_weight=sample_weight,
            ignore_index=ignore_index, label_smoothing=label_smoothing, z_loss=z_loss,
            temperature=temperature, reduction=reduction, denominator=denominator, empty=empty,
            dtype=call.dtype, grad_out=grad_out,
        )  # fmt: skip
        if as_sum:
            loss = reference.cross_entropy(
                array, given, axis, weight=weight, sample_weight=sample_weight,
                ignore_index=ignore_index, label_smoothing=label_smoothing, z_loss=z_loss,
                temperature=temperature, reduction="sum", dtype=np.float64,
            )  # fmt: skip
        return loss, grad
    output = _memory.empty(array.shape, call.dtype) if with_grad and grad_out is None else grad_out
    row_shape = array.shape[:axis] + array.shape[axis + 1 :]
    losses = np.empty(row_shape, call.dtype) if reduction == "none" else None
    with np.errstate(all="ignore"):
        scaled = _scaling.scaled(call, array.shape[axis], row_shape)
    summed: Any = None
    if scaled is None and array.dtype == buffer_dtype == call.dtype:
        summed = _direct(array, axis, call, losses, output)
    if summed is None:
        if scaled is not None:
            buffer_dtype = _checks.compute_dtype(buffer_dtype)
        with np.errstate(all="ignore"):  # what a half type cannot hold becomes inf or 0
            summed = _staged(array, axis, call, scaled, losses, output, buffer_dtype)
    if summed is False:
        _checks.check_labels(given, array.shape[axis], ignore_index)
        raise IndexError("target was changed during the call, and held a label that is no class")
    if losses is not None:
        return (losses if row_shape else losses[()]), output
    loss, divisor = summed
    if output is not None and reduction == "mean" and divisor == 0:
        _divide_by_zero(output, axis, loss, divisor, call)
    if as_sum:
        return loss, output
    return reduced(loss, divisor if reduction == "mean" else 1.0, empty, call.dtype), output


def sum_with_grad(logits: Array, target: Array, *, grad_out: Array | None, **options: Any) -> float:
    """Return the sum of the losses in float64, whatever the reduction of `options`.

    The gradient of the reduced loss goes to `grad_out` if that is given.
    """
    with_grad = grad_out is not None
    total, _ = _cross_entropy(
        logits, target, axis=-1, dtype=None, with_grad=with_grad, grad_out=grad_out, as_sum=True,
        **options,
    )  # fmt: skip
    return float(total)


def reduced(loss: float, divisor: float, empty: str, dtype: DType) -> Any:
    """Return a sum of losses divided, as a scalar of `dtype`; no losses over 0 are `empty`."""
    if divisor != 0:
        loss /= divisor
    elif loss != 0:
        loss *= math.copysign(math.inf, divisor)
    else:
        loss = 0.0 if empty == "zero" else math.nan
    with np.errstate(all="ignore"):  # a loss beyond the result's range is inf or 0
        return np.float64(loss).astype(dtype)


def _divide_by_zero(grad: Array, axis: int, loss: float, divisor: float, call: Call) -> None:
    """Divide the gradient of the sum as it is divided by any other number; ignored rows stay 0."""
    if call.empty_is_zero and loss == 0:
        grad[...] = 0
        return
    with np.errstate(all="ignore"):
        grad /= grad.dtype.type(divisor)
    rows = np.moveaxis(grad, axis, -1)
    if call.labels is not None:
        rows[call.labels == call.ignore_index] = 0
        if call.class_weight is not None and call.label_smoothing == 0 and call.z_loss == 0:
            rows[call.class_weight.take(call.labels, mode="clip") == 0] = 0
    if call.sample_weight is not None:
        rows[call.sample_weight == 0] = 0


def _int64_labels(labels: Array, classes: int, ignore_index: int) -> tuple[Array, int]:
    """Return labels and the ignored one as the kernels take them."""
    if labels.dtype == np.uint64:
        # Beyond int64 a label could turn into another one.
        _checks.check_labels(labels, classes, ignore_index)
        labels = np.where(labels == ignore_index, 0, labels + 1).astype(np.int64) - 1
        return labels, -1
    if not -(1 << 63) <= ignore_index < 1 << 63:
        _checks.check_labels(labels, classes, ignore_index)
        ignore_index = -1
    return np.ascontiguousarray(labels, np.int64).reshape(labels.shape), ignore_index


def _weights(value: Any, result_dtype: DType, check: Callable[[Any], Array]) -> Array | None:
    """Return weights in float64, or as they are where they are computed in as such.

    Their size is seen to before they are rounded to anything narrower (_scaling.py).
    """
    if value is None:
        return None
    given = check(value)
    if given.dtype == _checks.compute_dtype(result_dtype):
        return np.require(given, None, ["C", "ALIGNED"])
    return np.require(given, np.float64, ["C", "ALIGNED"])


def _as_real(weights: Array | None, result_dtype: DType) -> Array | None:
    """Return weights in the dtype that a result is computed in.

    For half types any NaN among them becomes NumPy's own: rounding to bfloat16 is an addition to a
    number's bits, which the payload of another NaN, all ones, might not survive as one.
    """
    if weights is None:
        return None
    with np.errstate(all="ignore"):  # what the dtype cannot hold becomes inf or 0
        weights = np.require(weights, _checks.compute_dtype(result_dtype), ["C", "ALIGNED"])
    if result_dtype.itemsize == 2 and np.isnan(weights).any():
        weights = np.where(np.isnan(weights), np.float32(np.nan), weights)
    return weights


def _direct(array: Array, axis: int, call: Call, losses: Array | None, grad: Array | None) -> Any:
    """Run the kernels on the arrays themselves; None if they cannot be seen in three axes."""
    kernels = kernels_for(array.dtype)
    arrays = [item for item in (array, call.probabilities, grad) if item is not None]
    if kernels is None or any(item.dtype != array.dtype for item in arrays):
        return None
    views = _layout.three_axes_together(tuple(arrays), (axis,))
    if views is None:
        return None
    probabilities = None if call.probabilities is None else views[1]
    return _run(kernels, views[0], call, probabilities, losses, None if grad is None else views[-1])


def _run(
    kernels: Any,
    view: Array,
    call: Call,
    probabilities: Array | None,
    losses: Array | None,
    grad: Array | None,
    whole: int = 0,
) -> Any:
    """Call the kernels on (outer, class, inner) views; False if a label is no class.

    The views may be parts of a call on `whole` logits.
    """
    row_shape = view.shape[0], view.shape[2]
    sample_weight = _as_real(call.sample_weight, view.dtype)
    summed = kernels.cross_entropy(
        _layout.as_storage(view),
        None if call.labels is None else call.labels.reshape(row_shape),
        None if probabilities is None else _layout.as_storage(probabilities),
        None if losses is None else _layout.as_storage(losses.reshape(row_shape)),
        None if grad is None else _layout.as_storage(grad),
        _as_real(call.class_weight, view.dtype),
        None if sample_weight is None else sample_weight.reshape(row_shape),
        call.label_smoothing,
        call.z_loss,
        call.reduction == "mean",
        call.denominator,
        call.ignore_index,
        call.temperature,
        threads_for(view.size, whole),
    )
    return False if summed is None else summed


def _staged(
    array: Array,
    axis: int,
    call: Call,
    scaled: _scaling.Scaled | None,
    losses: Array | None,
    grad: Array | None,
    dtype: DType,
) -> Any:
    """Run the kernels on copies of blocks of rows, of the given dtype."""
    kernels = kernels_for(dtype)
    classes = array.shape[axis]
    array = np.moveaxis(array, axis, -1)
    probabilities = call.probabilities
    if probabilities is not None:
        probabilities = np.moveaxis(probabilities, axis, -1)
    if grad is not None:
        grad = np.moveaxis(grad, axis, -1)
    if call.labels is not None and _any_bad(call.labels, classes, call.ignore_index):
        return False
    if scaled is None:
        scaled = _scaling.unscaled(call, array.shape[:-1])
    call = scaled.call
    total = 0.0
    for block in _layout.row_blocks(array.shape[:-1], classes):
        buffer = np.empty(array[block].shape, dtype)
        buffer[...] = array[block]
        rows = buffer.shape[:-1]
        part = call._replace(
            labels=None if call.labels is None else call.labels[block],
            sample_weight=None if call.sample_weight is None else call.sample_weight[block],
        )
        powers = scaled.row_powers
        block_losses = None
        if losses is not None or not isinstance(powers, int):
            block_losses = np.empty(rows, dtype)
        view = buffer.reshape(-1, classes, 1)
        target = None
        if probabilities is not None:
            target = np.ascontiguousarray(probabilities[block], dtype).reshape(-1, classes, 1)
        block_grad = None if grad is None else view
        summed, _ = _run(kernels, view, part, target, block_losses, block_grad, array.size)
        gradient_powers: Any = scaled.gradient_power
        if block_losses is not None and not isinstance(powers, int):
            powers = powers[block]
            gradient_powers = powers[..., None] + gradient_powers
            summed = _scaling.restored(block_losses.astype(np.float64), powers).sum()
        total += summed
        if losses is not None:
            losses[block] = _scaling.restored(block_losses, powers + scaled.loss_power)
        if grad is not None:
            grad[block] = _scaling.restored(buffer, gradient_powers)
    return float(_scaling.restored(total, scaled.loss_power)), scaled.divisor


def _any_bad(labels: Array, classes: int, ignore_index: int) -> bool:
    return bool((((labels < 0) | (labels >= classes)) & (labels != ignore_index)).any())


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
    r"""Return the negative log-likelihood of a target, given log-probabilities.

    Parameters
    ----------
    log_probs : array_like, shape (..., C, ...)
        Log-probabilities, as :func:`log_softmax` returns them.
    target, axis, weight, sample_weight, ignore_index, reduction, denominator, empty, dtype
        As in :func:`cross_entropy`.

    Returns
    -------
    scalar or ndarray
        As from :func:`cross_entropy`.

    Raises
    ------
    IndexError, AxisError, TypeError, ValueError
        As :func:`cross_entropy`.

    Notes
    -----
    .. math:: H = -\sum_i p_i \log q_i

    A term with :math:`p_i = 0` is 0, also where :math:`\log q_i` is -inf.

    Examples
    --------
    >>> import numpy as np
    >>> import softce_fast as sf
    >>> log_probs = np.log(np.array([[0.7, 0.2, 0.1]]))
    >>> round(float(sf.nll_loss(log_probs, np.array([0]))), 3)
    0.357
    """
    return _negative_log(
        "log_probs", log_probs, target, axis, weight, sample_weight, ignore_index, reduction,
        denominator, empty, dtype,
    )  # fmt: skip


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
    r"""Return the cross-entropy of a target, given probabilities.

    Parameters
    ----------
    probs : array_like, shape (..., C, ...)
        Probabilities. They are neither normalised nor clamped.
    target, axis, weight, sample_weight, ignore_index, reduction, denominator, empty, dtype
        As in :func:`cross_entropy`.

    Returns
    -------
    scalar or ndarray
        As from :func:`cross_entropy`; +inf where a probability is 0 and its target is not.

    Raises
    ------
    IndexError, AxisError, TypeError, ValueError
        As :func:`cross_entropy`.

    Notes
    -----
    .. math:: H(p, q) = -\sum_i p_i \log q_i

    A term with :math:`p_i = 0` is 0, also where :math:`q_i` is 0.

    Examples
    --------
    >>> import numpy as np
    >>> import softce_fast as sf
    >>> round(float(sf.cross_entropy_from_probs(np.array([[0.7, 0.2, 0.1]]), np.array([0]))), 3)
    0.357
    """
    return _negative_log(
        "probs", probs, target, axis, weight, sample_weight, ignore_index, reduction,
        denominator, empty, dtype,
    )  # fmt: skip


def _negative_log(
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
) -> Any:
    """Return the loss of probabilities (`name` is "probs") or of log-probabilities."""
    array, given, axis, call = _checked(
        name, values, target, axis, weight, sample_weight, ignore_index, reduction, denominator,
        empty, dtype,
    )  # fmt: skip
    is_log = name == "log_probs"
    compute_dtype = _scaling.dtype_for(call, _checks.compute_dtype(call.dtype))
    if kernels_for(compute_dtype) is None or array.size == 0:
        function = reference.nll_loss if is_log else reference.cross_entropy_from_probs
        return function(
            array, given, axis, weight=weight, sample_weight=sample_weight,
            ignore_index=ignore_index, reduction=reduction, denominator=denominator, empty=empty,
            dtype=call.dtype,
        )  # fmt: skip
    if call.labels is not None:
        _checks.check_labels(given, array.shape[axis], ignore_index)
    row_shape = array.shape[:axis] + array.shape[axis + 1 :]
    losses = np.empty(row_shape, compute_dtype)
    with np.errstate(all="ignore"):  # as in the sums of the kernels
        scaled = _scaling.scaled(call, array.shape[axis], row_shape)
        if scaled is None:
            scaled = _scaling.unscaled(call, row_shape)
        _write_negative_logs(array, axis, scaled.call, losses, is_log)
        if scaled.call.sample_weight is not None:
            losses *= scaled.call.sample_weight
            losses[scaled.call.sample_weight == 0] = 0
            if call.labels is not None:
                losses[call.labels == call.ignore_index] = 0
        if reduction == "none":
            losses = _scaling.restored(losses, scaled.row_powers + scaled.loss_power)
            result: Array = losses.astype(call.dtype, copy=False)
            return result if row_shape else result[()]
        total = _scaling.restored(losses.astype(np.float64), scaled.row_powers).sum()
        total = float(_scaling.restored(total, scaled.loss_power))
    return reduced(total, scaled.divisor, empty, call.dtype)


def _write_negative_logs(array: Array, axis: int, call: Call, losses: Array, is_log: bool) -> None:
    """Write the loss of each row, without its sample weight."""
    arrays = array, call.probabilities
    views = None
    is_own = losses.dtype == _checks.compute_dtype(call.dtype)
    if is_own and all(item is None or item.dtype == call.dtype for item in arrays):
        given = tuple(item for item in arrays if item is not None)
        views = _layout.three_axes_together(given, (axis,))
    if views is not None:
        _call_negative_log(kernels_for(call.dtype), views, call, call.labels, losses, is_log)
        return
    dtype = _checks.block_dtype(call.dtype, *arrays) if is_own else losses.dtype
    kernels = kernels_for(dtype)
    row_blocks = _layout.row_blocks(losses.shape, array.shape[axis])
    for block, rows in zip(row_blocks, _layout.staged(arrays, (axis,)), strict=True):
        copies = tuple(
            np.array(item, dtype, order="C").reshape(-1, array.shape[axis], 1)
            for item in rows
            if item is not None
        )
        block_losses = np.empty(losses[block].shape, losses.dtype)
        labels = None if call.labels is None else call.labels[block]
        _call_negative_log(kernels, copies, call, labels, block_losses, is_log, array.size)
        losses[block] = block_losses


def _call_negative_log(
    kernels: Any,
    views: tuple[Array, ...],
    call: Call,
    labels: Array | None,
    losses: Array,
    is_log: bool,
    whole: int = 0,
) -> None:
    """Call the kernels on (outer, class, inner) views of the values and the probabilities.

    The views may be parts of a call on `whole` values.
    """
    storages = [_layout.as_storage(view) for view in views]
    last = is_log, threads_for(views[0].size, whole)
    class_weight = _as_real(call.class_weight, views[0].dtype)
    if labels is None:
        kernels.probability_losses(*storages, class_weight, losses.reshape(-1), *last)
    else:
        kernels.label_losses(
            *storages,
            labels.reshape(views[0].shape[0], views[0].shape[2]),
            class_weight,
            losses.reshape(-1),
            call.ignore_index,
            *last,
        )
