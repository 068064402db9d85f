"""softmax, log_softmax and logsumexp, and the gradients of the first two."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import _checks, _layout, _memory, reference
from ._dispatch import dtype_for, kernels_for, loaded_kernels, takes
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
        The axis or axes of a row. None takes all of them.
    where : array_like of bool, optional
        Elements to include; broadcast to the shape of `x`. The others get probability 0 and are
        not read into any sum.
    temperature : float, default 1.0
        Divides `x`. Finite and above 0.
    empty : {"nan", "zero"}, default "nan"
        What a row gets that has no finite element: NaN or 0.
    dtype : dtype, optional
        Floating type to compute in and to return. By default that of `x`; float64 for booleans and
        integers. float16 and bfloat16 are computed in float32.
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
        The axis or axes of a row. None takes all of them.
    where : array_like of bool, optional
        Elements to include; broadcast to the shape of `x`. The others get -inf and are not read
        into any sum.
    temperature : float, default 1.0
        Divides `x`. Finite and above 0.
    empty : {"nan", "zero"}, default "nan"
        What a row gets that has no finite element: NaN, or the logarithm of 0, -inf.
    dtype : dtype, optional
        Floating type to compute in and to return; see :func:`softmax`.
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
        The axis or axes of a row. None takes all of them.
    b : array_like, optional
        Weights of the exponentials, broadcast to the shape of `x`; they may be negative.
    where : array_like of bool, optional
        Elements to include; broadcast to the shape of `x`.
    keepdims : bool, default False
        Keep the reduced axes with length 1.
    return_sign : bool, default False
        Also return the sign of the sum; the first result is then the logarithm of its magnitude.
    dtype : dtype, optional
        Floating type to compute in and to return; see :func:`softmax`.
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

    Calls with `b` or `return_sign` are served by plain NumPy.

    Examples
    --------
    >>> import numpy as np
    >>> import softce_fast as sf
    >>> float(sf.logsumexp(np.array([1000.0, 1000.0])))
    1000.693147...
    """
    if (
        type(x) is np.ndarray and b is None and where is None and dtype is None and out is None
        and keepdims is False and return_sign is False
    ):  # fmt: skip
        kernels = loaded_kernels.get(x.dtype)
        if kernels is not None:
            ordinary = kernels.logsumexp_ordinary(x, axis, threads_for)
            if ordinary is not None:
                return ordinary
    array = _checks.real_array(x, "x")
    result_dtype = _checks.result_dtype(array.dtype, dtype)
    axes = _checks.normalize_axes(axis, array.ndim)
    mask = None if where is None else _checks.check_where(where, array.shape)
    kept_shape = tuple(1 if i in axes else n for i, n in enumerate(array.shape))
    shape = kept_shape if keepdims else tuple(n for i, n in enumerate(array.shape) if i not in axes)
    if out is not None:
        _checks.check_out(out, shape, result_dtype)
    buffer_dtype = _checks.block_dtype(result_dtype, array)
    kernels = kernels_for(buffer_dtype)
    if array.size == 0:
        return reference.logsumexp(
            array, axes, b=b, where=mask, keepdims=keepdims, return_sign=return_sign, dtype=dtype,
            out=out,
        )  # fmt: skip
    result = np.empty(kept_shape, result_dtype)
    if b is not None or return_sign or kernels is None:
        weights = None
        if b is not None:
            weights = _checks.check_broadcast(_checks.real_array(b, "b"), array.shape, "b", "x")
        sign = np.empty(kept_shape, result_dtype)
        with np.errstate(all="ignore"):  # as in the kernels' sums
            _write_weighted(array, axes, weights, mask, result, sign)
            if not return_sign:
                result[sign < 0] = np.nan
        total = _layout.deliver(result.reshape(shape), result_dtype, out)
        return (total, _layout.deliver(sign.reshape(shape), result_dtype)) if return_sign else total
    direct = None
    if mask is None and array.dtype == result_dtype:
        direct = _layout.three_axes_together((array,), axes)
    if direct is not None:
        view = direct[0]
        kernels.logsumexp(
            _layout.as_storage(view),
            _layout.as_storage(result.reshape(view.shape[0], view.shape[2])),
            threads_for(array.size),
        )
    else:
        with np.errstate(all="ignore"):  # what a half type cannot hold becomes inf or 0
            for rows, result_rows, mask_rows in _layout.staged((array, result, mask), axes):
                buffer = _gathered(rows, mask_rows, len(axes), buffer_dtype)
                sums = np.empty((len(buffer), 1), buffer_dtype)
                kernels.logsumexp(
                    _layout.as_storage(buffer[:, :, None]),
                    _layout.as_storage(sums),
                    threads_for(buffer.size, array.size),
                )
                result_rows[...] = sums.reshape(result_rows.shape)
    return _layout.deliver(result.reshape(shape), result_dtype, out)


def _write_weighted(
    array: Array,
    axes: tuple[int, ...],
    weights: Array | None,
    mask: Array | None,
    result: Array,
    sign: Array,
) -> None:
    """Write the logsumexp and its sign by plain NumPy, whose temporaries are those of a block."""
    for rows, weight_rows, mask_rows, result_rows, sign_rows in _layout.staged(
        (array, weights, mask, result, sign), axes
    ):
        result_rows[...], sign_rows[...] = reference.logsumexp(
            rows, tuple(range(rows.ndim - len(axes), rows.ndim)), b=weight_rows, where=mask_rows,
            keepdims=True, return_sign=True, dtype=result.dtype,
        )  # fmt: skip


def softmax_backward(
    grad_output: ArrayLike, output: ArrayLike, axis: Axis = -1, *, out: Array | None = None
) -> Array:
    r"""Return the gradient of a softmax by its input: a vector-Jacobian product.

    Parameters
    ----------
    grad_output : array_like, shape (..., C, ...)
        Gradient by the output of :func:`softmax`.
    output : array_like, of the same shape
        What :func:`softmax` returned, for temperature 1.
    axis : int, tuple of int, or None, default -1
        The axis or axes that it was taken along.
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
    .. math:: g_i = S_i \left(h_i - \sum_j h_j S_j\right)

    with :math:`h` for `grad_output`.

    Examples
    --------
    >>> import numpy as np
    >>> import softce_fast as sf
    >>> probabilities = sf.softmax(np.array([0.0, 0.0]))
    >>> sf.softmax_backward(np.array([1.0, 0.0]), probabilities)
    array([ 0.25, -0.25])
    """
    return _backward(grad_output, output, axis, out, False)


def log_softmax_backward(
    grad_output: ArrayLike, output: ArrayLike, axis: Axis = -1, *, out: Array | None = None
) -> Array:
    r"""Return the gradient of a log_softmax by its input: a vector-Jacobian product.

    Parameters
    ----------
    grad_output : array_like, shape (..., C, ...)
        Gradient by the output of :func:`log_softmax`.
    output : array_like, of the same shape
        What :func:`log_softmax` returned, for temperature 1.
    axis : int, tuple of int, or None, default -1
        The axis or axes that it was taken along.
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
    .. math:: g_i = h_i - S_i \sum_j h_j, \quad S = \exp(\mathrm{output})

    with :math:`h` for `grad_output`.

    Examples
    --------
    >>> import numpy as np
    >>> import softce_fast as sf
    >>> log_probabilities = sf.log_softmax(np.array([0.0, 0.0]))
    >>> sf.log_softmax_backward(np.array([1.0, 0.0]), log_probabilities)
    array([ 0.5, -0.5])
    """
    return _backward(grad_output, output, axis, out, True)


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
    if type(x) is np.ndarray and where is None and dtype is None:
        kernels = loaded_kernels.get(x.dtype)
        if kernels is not None:
            ordinary = kernels.softmax_ordinary(x, axis, temperature, empty, out, log, threads_for)
            if ordinary is not None:
                return ordinary
    array = _checks.real_array(x, "x")
    result_dtype = array.dtype if dtype is None else None
    kernels = None if result_dtype is None else kernels_for(result_dtype)
    if result_dtype is None or kernels is None:
        result_dtype = _checks.result_dtype(array.dtype, dtype)
    ndim = array.ndim
    axes = _checks.normalize_axes(axis, ndim)
    mask = None if where is None else _checks.check_where(where, array.shape)
    temperature = _checks.check_temperature(temperature)
    _checks.check_empty(empty)
    if out is None:
        result = _memory.empty(array.shape, result_dtype)
    else:
        _checks.check_out(out, array.shape, result_dtype)
        if out is not array and _layout.overlaps(out, (array,) if mask is None else (array, mask)):
            raise ValueError("out overlaps the input without being the same array")
        result = out
    if array.size == 0:
        return result
    if not takes(temperature, result_dtype):
        kernels = None
    if kernels is not None and mask is None and result.dtype == array.dtype:
        views = _layout.three_axes_together((array, result), axes)
        if views is not None:
            kernels.softmax(
                _layout.as_storage(views[0]),
                _layout.as_storage(views[1]),
                log,
                temperature,
                empty == "zero",
                threads_for(array.size),
            )
            return result
    buffer_dtype = dtype_for(temperature, _checks.block_dtype(result_dtype, array))
    kernels = kernels_for(buffer_dtype)
    if kernels is None or not takes(temperature, buffer_dtype):
        function = reference.log_softmax if log else reference.softmax
        result[...] = function(
            array, axes, where=mask, temperature=temperature, empty=empty, dtype=result_dtype
        )
    else:
        with np.errstate(all="ignore"):  # what a half type cannot hold becomes inf or 0
            for rows, result_rows, mask_rows in _layout.staged((array, result, mask), axes):
                buffer = _gathered(rows, mask_rows, len(axes), buffer_dtype)
                view = _layout.as_storage(buffer[:, :, None])
                kernels.softmax(
                    view,
                    view,
                    log,
                    temperature,
                    empty == "zero",
                    threads_for(buffer.size, array.size),
                )
                result_rows[...] = buffer.reshape(result_rows.shape)
    return result if result.ndim or out is not None else result[()]


def _backward(
    grad_output: ArrayLike, output: ArrayLike, axis: Axis, out: Array | None, log: bool
) -> Array:
    gradient, values, axes, dtype = _checks.check_backward(grad_output, output, axis, out)
    buffer_dtype = _checks.block_dtype(dtype, gradient, values)
    kernels = kernels_for(buffer_dtype)
    if kernels is None or values.size == 0:
        function = reference.log_softmax_backward if log else reference.softmax_backward
        return function(gradient, values, axes, out=out)
    fresh = out is None or _layout.overlaps(out, (gradient, values))
    result = _memory.empty(values.shape, dtype) if out is None or fresh else out
    views = None
    if gradient.dtype == values.dtype == result.dtype == dtype:
        views = _layout.three_axes_together((gradient, values, result), axes)
    if views is not None:
        first, second, target = (_layout.as_storage(view) for view in views)
        kernels.backward(first, second, target, log, threads_for(values.size))
    else:
        with np.errstate(all="ignore"):  # what a half type cannot hold becomes inf or 0
            for *inputs, result_rows in _layout.staged((gradient, values, result), axes):
                buffers = [_gathered(rows, None, len(axes), buffer_dtype) for rows in inputs]
                first, second = (_layout.as_storage(buffer[:, :, None]) for buffer in buffers)
                n_threads = threads_for(buffers[0].size, values.size)
                kernels.backward(first, second, first, log, n_threads)
                result_rows[...] = buffers[0].reshape(result_rows.shape)
    if out is None:
        return result if result.ndim else result[()]
    if fresh:
        out[...] = result
    return out


def _gathered(rows: Array, mask: Array | None, class_axes: int, dtype: np.dtype[Any]) -> Array:
    """Return a contiguous copy of a block as (rows, classes), -inf where the mask is False."""
    buffer = np.empty(rows.shape, dtype)
    buffer[...] = rows
    if mask is not None:
        np.copyto(buffer, -np.inf, where=~mask)
    return buffer.reshape(-1, math.prod(rows.shape[rows.ndim - class_axes :]))
