"""Arrays as the kernels take them: three axes (outer, class, inner), without a copy.

Any strides will do; a row is one (outer, inner) pair. Where an array cannot be seen that way, or
must be converted, the rows are staged: copied together block by block (:func:`row_blocks`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

Array = NDArray[Any]
DType = np.dtype[Any]

# Elements of a block of staged rows: it stays in the second-level cache.
BLOCK_SIZE = 1 << 17


def plain(array: Array) -> Array:
    """Return an array without its subclass, whose views may be of something else."""
    return array if type(array) is np.ndarray else np.asarray(array)


def three_axes(array: Array, axis: int) -> Array | None:
    """Return `array` as (outer, class, inner), None if its strides do not allow it."""
    ndim = array.ndim
    if ndim == 2:
        return array[:, :, None] if axis == 1 else array[None]
    if ndim == 3 and axis == 1:
        return array
    if ndim == 3:
        return array.transpose(0, 2, 1) if axis else array.transpose(1, 0, 2)
    if ndim == 1:
        return array[None, :, None]
    if array.flags.c_contiguous:
        shape = array.shape
        return array.reshape(math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))
    return None


def join_axes(array: Array, axes: tuple[int, ...]) -> Array | None:
    """Return `array` with neighbouring axes as one, None if its strides do not allow it."""
    if not axes or axes[-1] - axes[0] + 1 != len(axes):
        return None
    shape, strides = array.shape, array.strides
    if any(strides[i] != shape[i + 1] * strides[i + 1] for i in axes[:-1]):
        return None
    joined = math.prod(shape[i] for i in axes)
    return array.reshape((*shape[: axes[0]], joined, *shape[axes[-1] + 1 :]))


def three_axes_together(
    arrays: tuple[Array, ...], axes: tuple[int, ...]
) -> tuple[Array, ...] | None:
    """Return arrays of one shape as (outer, class, inner), all with the same outer and inner."""
    arrays = tuple(map(plain, arrays))
    if len(axes) != 1:
        joined = [join_axes(array, axes) for array in arrays]
        arrays = tuple(array for array in joined if array is not None)
        if len(arrays) < len(joined):
            return None
    axis = axes[0]
    if arrays[0].ndim <= 3 or all(array.flags.c_contiguous for array in arrays):
        found = [three_axes(array, axis) for array in arrays]
        return tuple(view for view in found if view is not None)
    shape = arrays[0].shape
    groups: list[list[int]] = []
    for dimension in range(len(shape)):
        if dimension == axis or shape[dimension] == 1:
            continue
        if groups and all(
            array.strides[groups[-1][-1]] == shape[dimension] * array.strides[dimension]
            for array in arrays
        ):
            groups[-1].append(dimension)
        else:
            groups.append([dimension])
    if len(groups) > 2:
        return None
    lengths = [math.prod(shape[dimension] for dimension in group) for group in groups]
    lengths += [1] * (2 - len(groups))
    views = []
    for array in arrays:
        strides = [array.strides[group[-1]] for group in groups] + [0] * (2 - len(groups))
        views.append(
            as_strided(
                array,
                (lengths[0], shape[axis], lengths[1]),
                (strides[0], array.strides[axis], strides[1]),
                writeable=array.flags.writeable,
            )
        )
    return tuple(views)


def as_storage(view: Array) -> Array:
    """Return half types as the 16-bit integers that the kernels take them as."""
    return view if view.itemsize > 2 else view.view(np.uint16)


def overlaps(output: Array, inputs: tuple[Array, ...]) -> bool:
    """Tell whether `output` shares memory with an input without being that very array."""
    output = plain(output)
    for array in map(plain, inputs):
        if array is output or not np.may_share_memory(array, output):
            continue
        same = (
            array.ctypes.data == output.ctypes.data
            and array.strides == output.strides
            and array.shape == output.shape
            and array.dtype == output.dtype
        )
        if not same and shares_memory(array, output):
            return True
    return False


def shares_memory(first: Array, second: Array) -> bool:
    """Tell whether two arrays have an element in common, or may have where that is hard to say."""
    try:
        return np.shares_memory(first, second, max_work=10_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def staged(arrays: tuple[Array | None, ...], class_axes: tuple[int, ...]) -> Iterator[Any]:
    """Yield blocks of rows of arrays of one shape, the row axes first; None stays None."""
    shape = next(plain(array).shape for array in arrays if array is not None)
    row_axes = tuple(i for i in range(len(shape)) if i not in class_axes)
    turned = [
        None if array is None else plain(array).transpose(row_axes + class_axes) for array in arrays
    ]
    row_shape = tuple(shape[i] for i in row_axes)
    for block in row_blocks(row_shape, math.prod(shape[i] for i in class_axes)):
        index: Any = (*block, ...)  # so that no axis at all gives an array, too, not a scalar
        yield tuple(None if array is None else array[index] for array in turned)


def row_blocks(shape: tuple[int, ...], row_size: int) -> Iterator[tuple[slice, ...]]:
    """Yield slices that cover an array of rows, at most BLOCK_SIZE elements (or one row) each."""
    if not shape:
        yield ()
        return
    step_size = math.prod(shape[1:]) * row_size
    if step_size <= BLOCK_SIZE:
        step = BLOCK_SIZE // max(1, step_size)
        for start in range(0, shape[0], step):
            yield (slice(start, start + step),)
    else:
        for start in range(shape[0]):
            for rest in row_blocks(shape[1:], row_size):
                yield (slice(start, start + 1), *rest)


def deliver(result: Array, dtype: DType, out: Array | None = None) -> Array:
    """Return `result` in `dtype`: in `out`, or new, and as a scalar where it has no axes."""
    if out is not None:
        np.copyto(out, result, casting="unsafe")
        return out
    converted: Array = np.asarray(result).astype(dtype, copy=False)
    return converted if converted.ndim else converted[()]
