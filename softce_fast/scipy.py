"""softmax, log_softmax and logsumexp with the signatures and defaults of :mod:`scipy.special`.

A drop-in: ``from softce_fast.scipy import logsumexp``. Arrays of NumPy, numbers and lists of them
are computed here; what this package does not serve (complex numbers, arrays of other libraries,
subclasses) goes to SciPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

import softce_fast as sf
from softce_fast._adapters import requires

with requires("SciPy 1.15 or later", extra="scipy"):
    # By name, so that these functions may even be put in the place of SciPy's.
    from scipy.special import log_softmax as scipy_log_softmax
    from scipy.special import logsumexp as scipy_logsumexp
    from scipy.special import softmax as scipy_softmax

__all__ = ["log_softmax", "logsumexp", "softmax"]

Axis = int | tuple[int, ...] | None


def softmax(x: ArrayLike, axis: Axis = None) -> Any:
    r"""Return the softmax of `x`, as :func:`scipy.special.softmax` does.

    Parameters
    ----------
    x : array_like
        Numbers of any dtype and any strides.
    axis : int, tuple of int, or None, default None
        The axis or axes of a row. None takes all of them.

    Returns
    -------
    ndarray
        Probabilities, of the shape of `x`.

    Raises
    ------
    AxisError, TypeError, ValueError
        As :func:`softce_fast.softmax` for what it serves, as SciPy for the rest.

    Notes
    -----
    .. math:: S_i = \frac{\exp(x_i)}{\sum_j \exp(x_j)}

    Booleans and integers of every size give float64; SciPy refuses booleans and gives float16 or
    float32 for integers of 8 or 16 bits.

    Examples
    --------
    >>> import numpy as np
    >>> from softce_fast.scipy import softmax
    >>> softmax(np.array([[2.0, 1.0], [0.0, 0.0]]), axis=1).round(3)
    array([[0.731, 0.269],
           [0.5  , 0.5  ]])
    """
    return sf.softmax(x, axis) if _served(x) else scipy_softmax(x, axis)


def log_softmax(x: ArrayLike, axis: Axis = None) -> Any:
    r"""Return the logarithm of the softmax of `x`, as :func:`scipy.special.log_softmax` does.

    Parameters
    ----------
    x, axis
        As in :func:`softmax`.

    Returns
    -------
    ndarray
        Log-probabilities, of the shape of `x`.

    Raises
    ------
    AxisError, TypeError, ValueError
        As :func:`softmax`.

    Notes
    -----
    .. math:: \log S_i = x_i - \log \sum_j \exp(x_j)

    A confident row keeps its digits, which SciPy rounds to 0.

    Examples
    --------
    >>> import numpy as np
    >>> from softce_fast.scipy import log_softmax
    >>> log_softmax(np.array([20.0, 0.0, 0.0], dtype=np.float32)).tolist()[0]
    -4.12230...e-09
    """
    return sf.log_softmax(x, axis) if _served(x) else scipy_log_softmax(x, axis)


def logsumexp(
    a: ArrayLike,
    axis: Axis = None,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
) -> Any:
    r"""Return the logarithm of a sum of exponentials, as :func:`scipy.special.logsumexp` does.

    Parameters
    ----------
    a : array_like
        Numbers of any dtype and any strides.
    axis : int, tuple of int, or None, default None
        The axis or axes to sum over, of what `a` and `b` broadcast to. None takes all of them.
    b : array_like, optional
        Factors of the exponentials, negative ones too. `a` and `b` are broadcast against each
        other, and both count for the dtype of the result.
    keepdims : bool, default False
        Keep the reduced axes with length 1.
    return_sign : bool, default False
        Also return the sign of the sum; the first result is then the logarithm of its magnitude.

    Returns
    -------
    ndarray or scalar
        One number for each row; NaN for a negative sum without `return_sign`.
    sign : ndarray or scalar
        With `return_sign`: -1, 0, 1 or NaN.

    Raises
    ------
    AxisError, TypeError, ValueError
        As :func:`softce_fast.logsumexp` for what it serves, as SciPy for the rest.

    Notes
    -----
    .. math:: \log \sum_j b_j \exp(a_j)

    Examples
    --------
    >>> import numpy as np
    >>> from softce_fast.scipy import logsumexp
    >>> float(logsumexp(np.log([5.0, 3.0]), b=[1, -1]))
    0.693147...
    """
    if not _served(a) or not (b is None or _served(b)):
        return scipy_logsumexp(a, axis, b, keepdims, return_sign)
    return sf.logsumexp(a, axis, b=b, keepdims=keepdims, return_sign=return_sign)


def _served(array: Any) -> bool:
    """Tell whether this package computes `array` as SciPy would: real numbers, NumPy's own."""
    if type(array) is not np.ndarray:
        if not isinstance(array, (np.generic, list, tuple, int, float)):
            return False
        array = np.asarray(array)
    return array.dtype.kind in "biuf"
