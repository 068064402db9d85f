"""softmax, log_softmax and logsumexp, and the gradients of the first two."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import _arrays, _checks, reference
from ._kernels import execute
from ._threads import threads_for

Array = NDArray[Any]
Axis = int | tuple[int, ...] | None


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
    r"""Return the softmax of `x` along an axis.

    Parameters
    ----------
    x : array_like, shape (..., C, ...)
        Real numbers of any dtype and any strides.
    axis : int, tuple of int, or None, default -1
        The axis or axes of a row. None takes all of them, which is SciPy's default.
    where : array_like of bool, optional
        Elements to include; broadcast to the shape of `x`. The others get probability 0 and are
        not read into any sum.
    temperature : float, default 1.0
        Divides `x`. Finite and above 0.
    empty : {"nan", "zero"}, default "nan"
        What a row gets that has no finite element: NaN or 0.
    dtype : dtype, optional
        Floating type of the result. By default that of `x`; float64 for booleans and integers. It
        is computed in the wider of the two, half types in float32.
    out : ndarray, optional
        Where to put the result: of the shape of `x` and the dtype of the result, any strides.
        It may be `x` itself.

    Returns
    -------
    ndarray
        Probabilities, in `out` if it was given. A scalar for 0-d `x`.

    Raises
    ------
    AxisError
        If `axis` is out of range.
    TypeError
        If `x` is complex, masked or not numeric, `where` is not boolean, or `out` is not an array
        of the result's dtype.
    ValueError
        If a shape does not fit, an option is out of range, an axis is repeated, or `out` is
        read-only or overlaps `x` without being `x`. Nothing has been written then.

    See Also
    --------
    log_softmax : The logarithm, accurate where the probability is near 1 or 0.
    cross_entropy : The loss straight from logits.

    Notes
    -----
    .. math:: S_i = \frac{\exp(x_i / T)}{\sum_j \exp(x_j / T)}

    The exponentials are split into a power of two and a remainder instead of being shifted by a
    rounded maximum, so the result is within 4 units in the last place [1]_. A row's bits depend on
    that row alone. Results below the smallest normal number are 0.

    References
    ----------
    .. [1] P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and
       softmax functions", IMA Journal of Numerical Analysis 41 (2021), analyse the shifted form.

    Examples
    --------
    >>> import numpy as np
    >>> import softce_fast as sf
    >>> sf.softmax(np.array([2.0, 1.0, 0.1])).round(3)
    array([0.659, 0.242, 0.099])
    """
    return _normalize(x, axis, where, temperature, empty, dtype, out, False)


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
    r"""Return the logarithm of the softmax of `x` along an axis.

    Parameters
    ----------
    x : array_like, shape (..., C, ...)
        Real numbers of any dtype and any strides.
    axis : int, tuple of int, or None, default -1
        The axis or axes of a row. None takes all of them, which is SciPy's default.
    where : array_like of bool, optional
        Elements to include; broadcast to the shape of `x`. The others get -inf and are not read
        into any sum.
    temperature : float, default 1.0
        Divides `x`. Finite and above 0.
    empty : {"nan", "zero"}, default "nan"
        What a row gets that has no finite element: NaN, or the logarithm of 0, -inf.
    dtype : dtype, optional
        Floating type of the result; see :func:`softmax`.
    out : ndarray, optional
        Where to put the result; see :func:`softmax`.

    Returns
    -------
    ndarray
        Log-probabilities, in `out` if it was given. A scalar for 0-d `x`.

    Raises
    ------
    AxisError, TypeError, ValueError
        As :func:`softmax`.

    Notes
    -----
    .. math:: \log S_i = (x_i - m) / T - \log \sum_j \exp((x_j - m) / T), \quad m = \max_j x_j

    The sum is kept without its largest term and the logarithm taken as log1p, so that a confident
    row keeps all digits: the largest log-probability is -4.12e-9 where other libraries give 0.

    Examples
    --------
    >>> import numpy as np
    >>> import softce_fast as sf
    >>> sf.log_softmax(np.array([20.0, 0.0, 0.0], dtype=np.float32)).tolist()[0]
    -4.12230...e-09
    """
    return _normalize(x, axis, where, temperature, empty, dtype, out, True)


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
    r"""Return the logarithm of the sum of exponentials of `x` along an axis.

    Parameters
    ----------
    x : array_like, shape (..., C, ...)
        Real numbers of any dtype and any strides.
    axis : int, tuple of int, or None, default -1
        The axis or axes of a row. None takes all of them, which is SciPy's default.
    b : array_like, optional
        Weights of the exponentials, which may be negative; `x` and `b` are broadcast against each
        other. A weight of 0 takes its term out, and so does an element of -inf, whatever the
        other holds. The result is of the wider dtype, unless `b` is a Python number.
    where : array_like of bool, optional
        Elements to include; broadcast to the shape of `x`.
    keepdims : bool, default False
        Keep the reduced axes with length 1.
    return_sign : bool, default False
        Also return the sign of the sum; the first result is then the logarithm of its magnitude.
    dtype : dtype, optional
        Floating type of the result; see :func:`softmax`.
    out : ndarray, optional
        Where to put the first result.

    Returns
    -------
    ndarray or scalar
        One number for each row; -inf for a row without a finite element or without classes.
    sign : ndarray or scalar
        With `return_sign`: -1, 0, 1 or NaN.

    Raises
    ------
    AxisError, TypeError, ValueError
        As :func:`softmax`.

    Notes
    -----
    .. math:: \log \sum_j b_j \exp(x_j)

    Without `return_sign` a sum below 0 gives NaN, and one of 0, as ever, -inf.

    Examples
    --------
    >>> import numpy as np
    >>> import softce_fast as sf
    >>> float(sf.logsumexp(np.array([1000.0, 1000.0])))
    1000.693147...
    """
    if (
        b is None and where is None and out is None and keepdims is False and return_sign is False
        and (dtype is None or _checks.is_own_dtype(dtype, x))
    ):  # fmt: skip
        result = execute.logsumexp_fast(x, axis, threads_for)
        if result is not None:
            return result
    call = _checks.check_logsumexp(x, axis, b, where, keepdims, dtype, out)
    if _arrays.left_to_numpy(call.x, call.dtype):
        return reference.logsumexp(
            call.x, call.axes, b=call.b, where=call.where, keepdims=keepdims,
            return_sign=return_sign, dtype=call.dtype, out=out,
        )  # fmt: skip
    row_shape = tuple(n for i, n in enumerate(call.x.shape) if i not in call.axes)
    result = np.empty(row_shape, call.dtype)
    sign = np.empty_like(result) if return_sign else None
    execute.logsumexp(call.x, call.b, result, sign, call.where, call.axes, threads_for)
    total = _arrays.deliver(result.reshape(call.shape), call.dtype, out)
    if sign is None:
        return total
    return total, _arrays.deliver(sign.reshape(call.shape), call.dtype)


def softmax_backward(
    grad_output: ArrayLike,
    output: ArrayLike,
    axis: Axis = -1,
    *,
    temperature: float = 1.0,
    out: Array | None = None,
) -> Array:
    r"""Return the gradient of a softmax by its input: a vector-Jacobian product.

    Parameters
    ----------
    grad_output : array_like, shape (..., C, ...)
        Gradient by the output of :func:`softmax`.
    output : array_like, of the same shape
        What :func:`softmax` returned.
    axis : int, tuple of int, or None, default -1
        The axis or axes that it was taken along.
    temperature : float, default 1.0
        That of the :func:`softmax`. Finite and above 0.
    out : ndarray, optional
        Where to put the result; `grad_output` or `output` itself may be given.

    Returns
    -------
    ndarray
        Gradient by the input, of the wider of the two dtypes.

    Raises
    ------
    AxisError, TypeError, ValueError
        As :func:`softmax`; also if the shapes differ.

    Notes
    -----
    .. math:: g_i = S_i \left(h_i - \sum_j h_j S_j\right) / T

    with :math:`h` for `grad_output`.

    Examples
    --------
    >>> import numpy as np
    >>> import softce_fast as sf
    >>> probabilities = sf.softmax(np.array([0.0, 0.0]))
    >>> sf.softmax_backward(np.array([1.0, 0.0]), probabilities)
    array([ 0.25, -0.25])
    """
    return _backward(grad_output, output, axis, temperature, out, False)


def log_softmax_backward(
    grad_output: ArrayLike,
    output: ArrayLike,
    axis: Axis = -1,
    *,
    temperature: float = 1.0,
    out: Array | None = None,
) -> Array:
    r"""Return the gradient of a log_softmax by its input: a vector-Jacobian product.

    Parameters
    ----------
    grad_output : array_like, shape (..., C, ...)
        Gradient by the output of :func:`log_softmax`.
    output : array_like, of the same shape
        What :func:`log_softmax` returned.
    axis : int, tuple of int, or None, default -1
        The axis or axes that it was taken along.
    temperature : float, default 1.0
        That of the :func:`log_softmax`. Finite and above 0.
    out : ndarray, optional
        Where to put the result; `grad_output` or `output` itself may be given.

    Returns
    -------
    ndarray
        Gradient by the input, of the wider of the two dtypes.

    Raises
    ------
    AxisError, TypeError, ValueError
        As :func:`softmax`; also if the shapes differ.

    Notes
    -----
    .. math:: g_i = \left(h_i - S_i \sum_j h_j\right) / T, \quad S = \exp(\mathrm{output})

    with :math:`h` for `grad_output`.

    Examples
    --------
    >>> import numpy as np
    >>> import softce_fast as sf
    >>> log_probabilities = sf.log_softmax(np.array([0.0, 0.0]))
    >>> sf.log_softmax_backward(np.array([1.0, 0.0]), log_probabilities)
    array([ 0.5, -0.5])
    """
    return _backward(grad_output, output, axis, temperature, out, True)


def _normalize(
    x: ArrayLike,
    axis: Axis,
    where: ArrayLike | None,
    temperature: float,
    empty: str,
    dtype: DTypeLike | None,
    out: Array | None,
    log: bool,
) -> Array:
    if where is None and (dtype is None or _checks.is_own_dtype(dtype, x)):
        result = execute.softmax_fast(x, axis, temperature, empty, out, log, threads_for)
        if result is not None:
            return result
    call = _checks.check_softmax(x, axis, where, temperature, empty, dtype, out)
    if _arrays.left_to_numpy(call.x, call.dtype, call.temperature):
        function = reference.log_softmax if log else reference.softmax
        return function(
            call.x, call.axes, where=call.where, temperature=call.temperature, empty=empty,
            dtype=call.dtype, out=out,
        )  # fmt: skip
    result = _arrays.output(out, "out", call.x.shape, call.dtype, call.x, call.where)
    execute.softmax(
        call.x, result, call.where, call.axes, log, call.temperature, empty == "zero", threads_for
    )
    return _arrays.unwrapped(result, out)


def _backward(
    grad_output: ArrayLike,
    output: ArrayLike,
    axis: Axis,
    temperature: float,
    out: Array | None,
    log: bool,
) -> Array:
    call = _checks.check_backward(grad_output, output, axis, temperature, out)
    if _arrays.left_to_numpy(call.output, call.dtype, call.temperature):
        function = reference.log_softmax_backward if log else reference.softmax_backward
        return function(
            call.gradient, call.output, call.axes, temperature=call.temperature, out=out
        )
    result = _arrays.output(out, "out", call.output.shape, call.dtype, call.gradient, call.output)
    execute.backward(
        call.gradient, call.output, result, call.axes, log, call.temperature, threads_for
    )
    return _arrays.unwrapped(result, out)
