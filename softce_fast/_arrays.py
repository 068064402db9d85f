"""Arrays that results go to, and what plain NumPy computes instead of the kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _fresh_outputs

Array = NDArray[Any]
DType = np.dtype[Any]

# Beyond these the kernels' constants, multiples of temperatures and squares of soft caps, leave the
# range of float64.
TEMPERATURES = (1e-200, 1e200)
SOFTCAPS = (1e-100, 1e100)


def left_to_numpy(
    values: Array, dtype: DType, temperature: float = 1.0, softcap: float | None = None
) -> bool:
    """Tell whether reference.py serves a call: long doubles, or nothing to compute."""
    return dtype.itemsize > 8 or values.size == 0 or out_of_range(temperature, softcap)


def out_of_range(temperature: float, softcap: float | None) -> bool:
    """Tell whether the kernels cannot hold what they make of these options."""
    lowest, highest = TEMPERATURES
    smallest, largest = SOFTCAPS
    return not lowest <= temperature <= highest or not (
        softcap is None or smallest <= softcap <= largest
    )


def output(
    out: Array | None, name: str, shape: tuple[int, ...], dtype: DType, *inputs: Array | None
) -> Array:
    """Return the checked `out` of a call on `inputs`, or a new array without one."""
    if out is None:
        return _fresh_outputs.empty(shape, dtype)
    if any(array is not None and overlaps(out, array) for array in inputs):
        raise ValueError(f"{name} overlaps an input without being the same array")
    return out


def plain(array: Array) -> Array:
    """Return an array without its subclass, whose views may be of something else."""
    return array if type(array) is np.ndarray else np.asarray(array)


def overlaps(out: Array, array: Array) -> bool:
    """Tell whether `out` shares memory with an input without being that very array."""
    array, out = plain(array), plain(out)
    if array is out or not np.may_share_memory(array, out):
        return False
    same = (
        array.ctypes.data == out.ctypes.data
        and array.strides == out.strides
        and array.shape == out.shape
        and array.dtype == out.dtype
    )
    return not same and shares_memory(array, out)


def shares_memory(first: Array, second: Array) -> bool:
    """Tell whether two arrays have an element in common, or may have where that is hard to say."""
    try:
        return np.shares_memory(first, second, max_work=10_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def unwrapped(result: Array, out: Array | None = None) -> Array:
    """Return a result, as a scalar where it has no axes and is not the caller's `out`."""
    return result if result.ndim or out is not None else result[()]


def deliver(result: Array, dtype: DType, out: Array | None = None) -> Array:
    """Return `result` in `dtype`: in `out`, or new, and as a scalar where it has no axes."""
    if out is not None:
        np.copyto(out, result, casting="unsafe")
        return out
    return unwrapped(np.asarray(result).astype(dtype, copy=False))
