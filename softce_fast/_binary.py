"""Cross-entropy of independent yes/no targets."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import _checks, _layout, _memory, reference
from ._dispatch import kernels_for
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
        Floating type to compute in and to return. By default that of `probs`; float64 for
        booleans and integers.

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
        Floating type to compute in and to return. By default that of `logits`; float64 for
        booleans and integers.

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
    arrays = _checks.check_binary(
        name, values, target, weight, pos_weight, reduction, dtype, grad_out
    )
    shape, size = arrays.values.shape, arrays.values.size
    if kernels_for(_checks.compute_dtype(arrays.dtype)) is None or size == 0:
        return _reference(name, arrays, reduction, with_grad, grad_out)
    overlapping = grad_out is not None and _layout.overlaps(
        grad_out, tuple(item for item in arrays[:4] if item is not None)
    )
    grad = _memory.empty(shape, arrays.dtype) if with_grad else None
    if grad_out is not None and not overlapping:
        grad = grad_out
    losses = _memory.empty(shape, arrays.dtype) if reduction == "none" else None
    scale = 1.0 / size if reduction == "mean" else 1.0
    total = _run(arrays, losses, grad, name == "logits", scale)
    if grad_out is not None and overlapping:
        grad_out[...] = grad
        grad = grad_out
    elif grad is not None and grad_out is None and not grad.ndim:
        grad = grad[()]
    if losses is not None:
        return (losses if losses.ndim else losses[()]), grad
    with np.errstate(all="ignore"):  # a loss beyond the result's range is inf or 0
        mean = np.float64(total) / size if reduction == "mean" else np.float64(total)
        return mean.astype(arrays.dtype), grad


def _reference(
    name: str,
    arrays: _checks.BinaryArrays,
    reduction: str,
    with_grad: bool,
    grad_out: Array | None,
) -> tuple[Any, Any]:
    options: dict[str, Any] = {"reduction": reduction, "dtype": arrays.dtype}
    options["weight"] = arrays.weight
    if name == "probs":
        return reference.binary_cross_entropy(arrays.values, arrays.target, **options), None
    options["pos_weight"] = arrays.pos_weight
    if with_grad:
        return reference.binary_cross_entropy_with_logits_with_grad(
            arrays.values, arrays.target, grad_out=grad_out, **options
        )
    return reference.binary_cross_entropy_with_logits(arrays.values, arrays.target, **options), None


def _run(
    arrays: _checks.BinaryArrays,
    losses: Array | None,
    grad: Array | None,
    from_logits: bool,
    gradient_scale: float,
) -> float:
    """Write the losses and the gradient where they are given; return the sum of the losses."""
    everything = [
        None if item is None else np.asarray(item) for item in (*arrays[:4], losses, grad)
    ]

    def call(kernels: Any, items: list[Array | None], size: int) -> float:
        flat = [None if item is None else _layout.as_storage(item.reshape(-1)) for item in items]
        n_threads = threads_for(size, arrays.values.size)
        total: float = kernels.binary(*flat, from_logits, gradient_scale, n_threads)
        return total

    if all(
        item is None or (item.dtype == arrays.dtype and item.flags.c_contiguous)
        for item in everything
    ):
        return call(kernels_for(arrays.dtype), everything, arrays.values.size)
    buffer_dtype = _checks.block_dtype(arrays.dtype, *arrays[:4])
    total = 0.0
    with np.errstate(all="ignore"):  # what a half type cannot hold becomes inf or 0
        for *inputs, loss_block, grad_block in _layout.staged(tuple(everything), ()):
            copies: list[Array | None] = [
                None if item is None else np.array(item, buffer_dtype, order="C") for item in inputs
            ]
            results = [
                None if item is None else np.empty(item.shape, buffer_dtype)
                for item in (loss_block, grad_block)
            ]
            total += call(kernels_for(buffer_dtype), copies + results, inputs[0].size)
            for block, result in zip((loss_block, grad_block), results, strict=True):
                if block is not None:
                    block[...] = result
    return total
