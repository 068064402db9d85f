"""The same numbers, laid out differently in memory; and bits compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def contiguous(array: Array) -> Array:
    return np.array(array, order="C")


def fortran(array: Array) -> Array:
    return np.array(array, order="F")


def last_axis_first(array: Array) -> Array:
    """The last axis has the largest stride, the others keep their order."""
    if not array.ndim:
        return contiguous(array)
    return np.moveaxis(np.moveaxis(array, -1, 0).copy(order="C"), 0, -1)


def first_axis_last(array: Array) -> Array:
    if not array.ndim:
        return contiguous(array)
    return np.moveaxis(np.moveaxis(array, 0, -1).copy(order="C"), -1, 0)


def reversed_axes(array: Array) -> Array:
    """Every stride is negative."""
    back = (..., *[slice(None, None, -1)] * array.ndim)
    return array[back].copy(order="C")[back]


def sliced(array: Array) -> Array:
    """Every second element along every axis of a larger array, from the second on."""
    larger = np.zeros(tuple(2 * n + 1 for n in array.shape), array.dtype)
    view = larger[(..., *(slice(1, 2 * n + 1, 2) for n in array.shape))]
    view[...] = array
    return view


def padded_rows(array: Array) -> Array:
    """Neighbours along the last axis, with a gap after each row."""
    if not array.ndim:
        return contiguous(array)
    larger = np.zeros((*array.shape[:-1], array.shape[-1] + 3), array.dtype)
    view = larger[..., : array.shape[-1]]
    view[...] = array
    return view


def offset_by_one_element(array: Array) -> Array:
    """Contiguous, but never at the start of a vector."""
    memory = np.empty(array.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + array.itemsize
    return _placed(memory, start, array)


def unaligned(array: Array) -> Array:
    """Contiguous, at an odd address."""
    memory = np.empty(array.nbytes + 128, np.uint8)
    return _placed(memory, -memory.ctypes.data % 64 + 1, array)


def _placed(memory: Array, start: int, array: Array) -> Array:
    view = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def read_only(array: Array) -> Array:
    copy = contiguous(array)
    copy.flags.writeable = False
    return copy


def byte_swapped(array: Array) -> Array:
    return np.asarray(array, np.asarray(array).dtype.newbyteorder())


# Ways to lay an array out in native byte order; the results have the same bits for all of them.
STRIDES: dict[str, Callable[[Array], Array]] = {
    function.__name__: function
    for function in (
        fortran,
        last_axis_first,
        first_axis_last,
        reversed_axes,
        sliced,
        padded_rows,
        offset_by_one_element,
        unaligned,
        read_only,
    )
}
# Those that can be written to.
WRITABLE = {name: function for name, function in STRIDES.items() if function is not read_only}


def bits(array: Any) -> Array:
    """Return the bits of floating numbers as integers."""
    copy = np.array(array, order="C")
    return copy.view(np.dtype(f"u{copy.itemsize}"))


def assert_same_bits(result: Any, expected: Any, *context: Any) -> None:
    """Check that dtype, shape and every bit agree; the context goes into the message."""
    result, expected = np.asarray(result), np.asarray(expected)
    assert result.dtype == expected.dtype, context
    assert result.shape == expected.shape, context
    different = np.flatnonzero(bits(result) != bits(expected))
    if different.size:
        first = np.unravel_index(different[0], result.shape)
        raise AssertionError(
            f"{context}: {different.size} of {result.size} differ, first at "
            f"{tuple(map(int, first))}: {result[first]!r} != {expected[first]!r}"
        )


def assert_right_or_refused(
    call: Callable[[], Any], expected: Any, out: Array, memory: Array
) -> None:
    """Make a call whose output `out` overlaps an input in `memory`.

    It gives the results that it gives elsewhere, the last of them in `out`; or it is refused, and
    nothing has been written.
    """
    before = memory.copy()
    try:
        results = call()
    except ValueError as error:
        assert "overlap" in str(error)  # noqa: PT017 - either outcome is right
        assert_same_bits(memory, before)
        return
    if not isinstance(results, tuple):
        results, expected = (results,), (expected,)
    assert results[-1] is out
    for result, right in zip(results, expected, strict=True):
        assert_same_bits(result, right)
        assert not np.isnan(result).any()
