"""Cross-entropy of independent yes/no targets."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import _arrays, _checks, _fresh_outputs, reference
from ._kernels import execute
from ._threads import threads_for

Array = NDArray[Any]


def binary_cross_entropy(
    probs: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    reduction: str = "mean",
    dtype: DTypeLike | None = None,
) -> Any:
    r"""Return the binary cross-entropy of a target, given the probabilities of yes.

    Parameters
    ----------
    probs : array_like
        Probabilities, of any real dtype and any shape. They are not clamped.
    target : array_like, of the same shape
        Probabilities of yes; booleans and integers 0 and 1 will do.
    weight : array_like, optional
        Weight of each element, broadcast to the shape of `probs`.
    reduction : {"mean", "sum", "none"}, default "mean"
        What becomes of the losses; "mean" divides by the number of elements.
    dtype : dtype, optional
        Floating type of the result. By default that of `probs`; float64 for booleans and
        integers. It is computed in the wider of the two, half types in float32.

    Returns
    -------
    scalar or ndarray
        The reduced loss, or the losses; +inf where the target contradicts a certain probability.

    Raises
    ------
    TypeError
        If an array is complex, masked or not numeric.
    ValueError
        If a shape does not fit or `reduction` is unknown.

    Notes
    -----
    .. math:: H = -w \left(t \log q + (1 - t) \log (1 - q)\right)

    A term with coefficient 0 is 0.

    Examples
    --------
    >>> import numpy as np
    >>> import softce_fast as sf
    >>> round(float(sf.binary_cross_entropy(np.array([0.8, 0.1]), np.array([1, 0]))), 3)
    0.164
    """
    return _binary("probs", probs, target, weight, None, reduction, dtype, False, None)[0]


def binary_cross_entropy_with_logits(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    reduction: str = "mean",
    dtype: DTypeLike | None = None,
) -> Any:
    r"""Return the binary cross-entropy of the sigmoid of `logits` with a target.

    Parameters
    ----------
    logits : array_like
        Log-odds of yes, of any real dtype and any shape.
    target : array_like, of the same shape
        Probabilities of yes; booleans and integers 0 and 1 will do.
    weight : array_like, optional
        Weight of each element, broadcast to the shape of `logits`.
    pos_weight : array_like, optional
        Weight of the yes part, broadcast to the shape of `logits`.
    reduction : {"mean", "sum", "none"}, default "mean"
        What becomes of the losses; "mean" divides by the number of elements.
    dtype : dtype, optional
        Floating type of the result. By default that of `logits`; float64 for booleans and
        integers. It is computed in the wider of the two, half types in float32.

    Returns
    -------
    scalar or ndarray
        The reduced loss, or the losses.

    Raises
    ------
    TypeError
        If an array is complex, masked or not numeric.
    ValueError
        If a shape does not fit or `reduction` is unknown.

    Notes
    -----
    .. math::
        H = w \left(v\, t \log(1 + e^{-x}) + (1 - t) \log(1 + e^{x})\right)

    with :math:`v` for `pos_weight`, by log1p of the smaller exponential: stable for any logit.

    Examples
    --------
    >>> import numpy as np
    >>> import softce_fast as sf
    >>> loss = sf.binary_cross_entropy_with_logits(np.array([1000.0, -2.0]), np.array([1, 0]))
    >>> round(float(loss), 3)
    0.063
    """
    return _binary("logits", logits, target, weight, pos_weight, reduction, dtype, False, None)[0]


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
    r"""Return the binary cross-entropy with logits, and its gradient by the logits.

    Parameters
    ----------
    logits, target, weight, pos_weight, reduction, dtype
        As in :func:`binary_cross_entropy_with_logits`.
    grad_out : ndarray, optional
        Where to put the gradient: of the shape of `logits` and the dtype of the result. It may be
        `logits` itself.

    Returns
    -------
    loss : scalar or ndarray
        As from :func:`binary_cross_entropy_with_logits`.
    grad : ndarray
        Gradient of the reduced loss; for ``reduction="none"`` that of the sum of the losses.

    Raises
    ------
    TypeError, ValueError
        As :func:`binary_cross_entropy_with_logits`; also if `grad_out` does not fit.

    Notes
    -----
    .. math:: g = w \left((1 - t)\, \sigma(x) - v\, t\, \sigma(-x)\right)

    Examples
    --------
    >>> import numpy as np
    >>> import softce_fast as sf
    >>> loss, grad = sf.binary_cross_entropy_with_logits_with_grad(np.array([0.0]), np.array([1]))
    >>> grad
    array([-0.5])
    """
    return _binary("logits", logits, target, weight, pos_weight, reduction, dtype, True, grad_out)


def _binary(
    name: str,
    values: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None,
    pos_weight: ArrayLike | None,
    reduction: str,
    dtype: DTypeLike | None,
    with_grad: bool,
    grad_out: Array | None,
) -> tuple[Any, Any]:
    """Return the loss of probabilities (`name` is "probs") or of logits, and the gradient."""
    call = _checks.check_binary(
        name, values, target, weight, pos_weight, reduction, dtype, grad_out
    )
    shape, size = call.values.shape, call.values.size
    if _arrays.left_to_numpy(call.values, call.dtype):
        return reference.binary_loss(call, with_grad, grad_out)
    losses = _fresh_outputs.empty(shape, call.dtype) if reduction == "none" else None
    gradient: Any = None
    if with_grad:
        inputs = call.values, call.target, call.weight, call.pos_weight
        gradient = _arrays.output(grad_out, "grad_out", shape, call.dtype, *inputs)
    divisor = size if reduction == "mean" else 1
    total = execute.binary(
        call.values, call.target, call.weight, call.pos_weight, losses, gradient, call.from_logits,
        divisor, threads_for, call.dtype,
    )  # fmt: skip
    if gradient is not None:
        gradient = _arrays.unwrapped(gradient, grad_out)
    if losses is not None:
        return _arrays.unwrapped(losses), gradient
    with np.errstate(all="ignore"):  # a loss beyond the result's range is inf or 0
        return np.float64(total / divisor).astype(call.dtype), gradient
