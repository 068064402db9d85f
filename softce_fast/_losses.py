"""Cross-entropy of class indices or class probabilities, from logits or from probabilities."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import _checks, _layout, reference
from ._dispatch import kernels_for
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
    logits, target, axis, weight, sample_weight, ignore_index, label_smoothing, z_loss, temperature, \
reduction, denominator, empty, dtype
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
) -> tuple[Any, Any]:
    array = _checks.real_array(logits, "logits")
    result_dtype = array.dtype
    kernels = None if dtype is not None else kernels_for(result_dtype)
    axis = array.ndim - 1 if axis == -1 and array.ndim else _checks.normalize_axis(axis, array.ndim)
    labels, is_labels = _checks.check_target(target, array.shape, axis)
    plain = (
        kernels is not None
        and is_labels
        and weight is None
        and sample_weight is None
        and array.size != 0
        and label_smoothing == 0
        and z_loss == 0
        and labels.dtype != np.uint64
    )
    views = None
    if plain:
        if temperature != 1.0:
            temperature = _checks.check_temperature(temperature)
        if denominator is not None:
            denominator = _checks.check_denominator(denominator)
        if type(ignore_index) is not int:
            ignore_index = _checks.check_ignore_index(ignore_index)
        _checks.check_reduction(reduction)
        _checks.check_empty(empty)
        grad = None
        if with_grad:
            if grad_out is None:
                grad = np.empty(array.shape, result_dtype)
            else:
                _checks.check_out(grad_out, array.shape, result_dtype, "grad_out")
                if grad_out is not array and _layout.overlaps(grad_out, (array, labels)):
                    raise ValueError("grad_out overlaps the input without being the same array")
                grad = grad_out
        if grad is None:
            views = _layout.three_axes_together((array,), axis)
        elif grad.dtype == array.dtype:
            views = _layout.three_axes_together((array, grad), axis)
    if not plain or views is None:
        options = {
            "weight": weight,
            "sample_weight": sample_weight,
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
            "z_loss": z_loss,
            "temperature": temperature,
            "reduction": reduction,
            "denominator": denominator,
            "empty": empty,
            "dtype": dtype,
        }
        if with_grad:
            return reference.cross_entropy_with_grad(
                array, labels, axis, grad_out=grad_out, **options
            )
        return reference.cross_entropy(array, labels, axis, **options), None
    view = views[0]
    if labels.dtype != np.int64:
        labels = labels.astype(np.int64)
    losses = None
    if reduction == "none":
        losses = np.empty(labels.shape, result_dtype)
    total = kernels.cross_entropy(
        _as_storage(view),
        labels.reshape(view.shape[0], view.shape[2]),
        None if losses is None else _as_storage(losses.reshape(view.shape[0], view.shape[2])),
        None if grad is None else _as_storage(views[1]),
        reduction == "mean",
        denominator or 0.0,
        ignore_index,
        temperature,
        threads_for(array.size),
    )
    if total is None:
        _checks.check_labels(_checks.real_array(target, "target"), array.shape[axis], ignore_index)
    if losses is not None:
        return (losses if losses.ndim else losses[()]), grad
    loss, count = total
    if reduction == "mean":
        if denominator is not None:
            count = denominator
        loss = loss / count if count else (0.0 if empty == "zero" and loss == 0 else math.nan)
    return result_dtype.type(loss), grad


def _as_storage(view: Array) -> Array:
    return view if view.itemsize > 2 else view.view(np.uint16)


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
    return reference.nll_loss(
        log_probs, target, axis, weight=weight, sample_weight=sample_weight,
        ignore_index=ignore_index, reduction=reduction, denominator=denominator, empty=empty,
        dtype=dtype,
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
    return reference.cross_entropy_from_probs(
        probs, target, axis, weight=weight, sample_weight=sample_weight,
        ignore_index=ignore_index, reduction=reduction, denominator=denominator, empty=empty,
        dtype=dtype,
    )  # fmt: skip
