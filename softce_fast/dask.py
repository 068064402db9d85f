"""softmax, logsumexp and cross-entropy of Dask arrays: lazy, in any chunks.

Chunks of whole rows are a call of this package each. Where the class axis is in several chunks, the
row states of each (softce_fast.sharded) are merged in a tree, and results are made of these. Every
task computes on one thread: Dask has the others.
"""

# Dask's own annotations say that chunks are a str and shapes may be floats.
# pyright: reportArgumentType=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from math import isnan
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import softce_fast as sf
from softce_fast import sharded
from softce_fast._adapters import requires

with requires("Dask 2024.8 or later", extra="dask"):
    import dask.array as da

__all__ = ["cross_entropy", "cross_entropy_with_grad", "log_softmax", "logsumexp", "softmax"]

Array = NDArray[Any]
Indices = tuple[int, ...]


def softmax(x: da.Array, axis: int = -1, *, temperature: float = 1.0) -> da.Array:
    r"""Return the softmax of a Dask array along an axis.

    Parameters
    ----------
    x : dask.array.Array, shape (..., C, ...)
        Real numbers, in any chunks; those of the class axis must be known.
    axis : int, default -1
        The class axis.
    temperature : float, default 1.0
        Divides `x`. Finite and above 0.

    Returns
    -------
    dask.array.Array
        Probabilities, with the shape and the chunks of `x`.

    Raises
    ------
    AxisError
        If `axis` is out of range.
    TypeError
        If `x` is not a Dask array, or not of real numbers.
    ValueError
        If the chunks of the class axis are unknown, or an option is out of range.

    Notes
    -----
    .. math:: S_i = \frac{\exp(x_i / T)}{\sum_j \exp(x_j / T)}

    Examples
    --------
    >>> import dask.array as da
    >>> from softce_fast.dask import softmax
    >>> probabilities = softmax(da.zeros((4, 10), chunks=(2, 10)))
    >>> probabilities.sum(axis=-1).compute()
    array([1., 1., 1., 1.])
    """
    return _normalized(x, axis, temperature, log=False)


def log_softmax(x: da.Array, axis: int = -1, *, temperature: float = 1.0) -> da.Array:
    r"""Return the logarithm of the softmax of a Dask array along an axis.

    Parameters
    ----------
    x, axis, temperature
        As in :func:`softmax`.

    Returns
    -------
    dask.array.Array
        Log-probabilities, with the shape and the chunks of `x`.

    Raises
    ------
    AxisError, TypeError, ValueError
        As :func:`softmax`.

    Notes
    -----
    .. math:: \log S_i = x_i / T - \log \sum_j \exp(x_j / T)

    Examples
    --------
    >>> import dask.array as da
    >>> from softce_fast.dask import log_softmax
    >>> log_softmax(da.zeros((1, 2))).compute().round(3)
    array([[-0.693, -0.693]])
    """
    return _normalized(x, axis, temperature, log=True)


def logsumexp(x: da.Array, axis: int = -1, *, keepdims: bool = False) -> da.Array:
    r"""Return the logarithm of the sum of exponentials of a Dask array along an axis.

    Parameters
    ----------
    x, axis
        As in :func:`softmax`.
    keepdims : bool, default False
        Keep the class axis with length 1.

    Returns
    -------
    dask.array.Array
        One number for each row.

    Raises
    ------
    AxisError, TypeError, ValueError
        As :func:`softmax`.

    Notes
    -----
    .. math:: \log \sum_j \exp(x_j)

    Examples
    --------
    >>> import dask.array as da
    >>> from softce_fast.dask import logsumexp
    >>> float(logsumexp(da.full(4, 1000.0)).compute())
    1001.386294...
    """
    axis, dtype = _checked(x, axis)
    if x.numblocks[axis] > 1:
        states = _states(x, axis, None, None, 1.0)
        rows = _rows(x, axis)
        sums = _blocks(_logsumexp_of, rows, states, rows, dtype=dtype, into=dtype)
    else:
        sums = _blocks(_logsumexp, _rows(x, axis), x, _all(x), dtype=dtype, axis=axis)
    return da.expand_dims(sums, axis) if keepdims else sums


def cross_entropy(
    logits: da.Array,
    target: da.Array | ArrayLike,
    axis: int = -1,
    *,
    weight: ArrayLike | None = None,
    sample_weight: da.Array | ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    reduction: str = "mean",
    denominator: float | None = None,
) -> da.Array:
    r"""Return the cross-entropy of Dask arrays.

    Parameters
    ----------
    logits : dask.array.Array, shape (..., C, ...)
        Real numbers, in chunks as of :func:`softmax`.
    target : array_like or dask.array.Array
        Class indices, of the shape of `logits` without the class axis, in chunks of its own or, if
        these are unknown, in those of `logits`; or class probabilities, of the shape of `logits`,
        whose class axis is one chunk then.
    axis : int, default -1
        The class axis.
    weight : array_like, shape (C,), optional
        Class weights.
    sample_weight : array_like or dask.array.Array, optional
        Weights of the rows, of the shape of `logits` without the class axis.
    ignore_index, label_smoothing, z_loss, temperature, reduction, denominator
        As in :func:`softce_fast.cross_entropy`.

    Returns
    -------
    dask.array.Array
        The loss, 0-d, or for "none" one for each row.

    Raises
    ------
    AxisError, TypeError, ValueError
        As :func:`softmax`; also if a shape does not fit.
    NotImplementedError
        For class probabilities if the class axis is more than one chunk.
    IndexError
        From computing, for a label that is no class; the position is that in its chunk.

    Notes
    -----
    As :func:`softce_fast.cross_entropy`. The losses of the rows are added up in float64.

    Examples
    --------
    >>> import dask.array as da
    >>> from softce_fast.dask import cross_entropy
    >>> logits = da.zeros((6, 10), chunks=(2, 10))
    >>> round(float(cross_entropy(logits, da.arange(6, chunks=3)).compute()), 4)
    2.3026
    """
    loss, _ = _cross_entropy(
        logits, target, axis, weight, sample_weight, reduction, denominator,
        ignore_index, label_smoothing=label_smoothing, z_loss=z_loss, temperature=temperature,
        wants_grad=False,
    )  # fmt: skip
    return loss


def cross_entropy_with_grad(
    logits: da.Array,
    target: da.Array | ArrayLike,
    axis: int = -1,
    *,
    weight: ArrayLike | None = None,
    sample_weight: da.Array | ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    reduction: str = "mean",
    denominator: float | None = None,
) -> tuple[da.Array, da.Array]:
    r"""Return the cross-entropy of Dask arrays, and its gradient by the logits.

    Parameters
    ----------
    logits, target, axis, weight, sample_weight, ignore_index, label_smoothing, z_loss
        As in :func:`cross_entropy`.
    temperature, reduction, denominator
        As in :func:`cross_entropy`.

    Returns
    -------
    loss : dask.array.Array
        As from :func:`cross_entropy`.
    grad : dask.array.Array
        With the shape and the chunks of `logits`; for "none" that of the sum of the losses.

    Raises
    ------
    AxisError, TypeError, ValueError, NotImplementedError, IndexError
        As :func:`cross_entropy`.

    Notes
    -----
    As :func:`softce_fast.cross_entropy_with_grad`. Compute the two together, ``dask.compute(loss,
    grad)``: then the logits are made once.

    Examples
    --------
    >>> import dask
    >>> import dask.array as da
    >>> from softce_fast.dask import cross_entropy_with_grad
    >>> loss, grad = dask.compute(
    ...     *cross_entropy_with_grad(da.zeros((1, 2)), da.zeros(1, dtype=int))
    ... )
    >>> grad
    array([[-0.5,  0.5]])
    """
    loss, grad = _cross_entropy(
        logits, target, axis, weight, sample_weight, reduction, denominator,
        ignore_index, label_smoothing=label_smoothing, z_loss=z_loss, temperature=temperature,
        wants_grad=True,
    )  # fmt: skip
    return loss, grad


# Graphs


def _all(x: da.Array) -> Indices:
    return tuple(range(x.ndim))


def _rows(x: da.Array, axis: int) -> Indices:
    return tuple(i for i in range(x.ndim) if i != axis)


def _checked(x: Any, axis: int, name: str = "x") -> tuple[int, Any]:
    """Return the class axis, counted from the front, and the dtype of results."""
    if not isinstance(x, da.Array):
        raise TypeError(f"{name} must be a dask.array.Array, got {type(x).__name__}")
    one = np.zeros((1,) * x.ndim, x.dtype)
    dtype = sf.softmax(one, axis).dtype  # raises what it raises for such an array
    axis = range(x.ndim)[axis]
    if any(isnan(length) for length in x.chunks[axis]):
        raise ValueError(f"the chunks of {name} along the class axis, {axis}, must be known")
    return axis, dtype


def _blocks(function: Callable[..., Any], indices: Indices, *operands: Any, **options: Any) -> Any:
    """Return the array whose blocks a function makes of the operands' blocks.

    Of an axis that the result lacks there is one block: not to be concatenated, which would copy.
    """
    meta = np.empty((0,) * len(indices), options["dtype"])
    return da.blockwise(function, indices, *operands, meta=meta, concatenate=False, **options)


def _normalized(x: da.Array, axis: int, temperature: float, log: bool) -> da.Array:
    axis, dtype = _checked(x, axis)
    sf.softmax(np.zeros(1), temperature=temperature)  # raises for an option out of range
    options = {"axis": axis, "log": log, "temperature": temperature}
    if x.numblocks[axis] > 1:
        states = _states(x, axis, None, None, temperature)
        operands = x, _all(x), states, _rows(x, axis)
        return _blocks(_softmax_of, _all(x), *operands, dtype=dtype, **options)
    return _blocks(_softmax, _all(x), x, _all(x), dtype=dtype, **options)


def _cross_entropy(
    logits: da.Array,
    target: Any,
    axis: int,
    weight: ArrayLike | None,
    sample_weight: Any,
    reduction: str,
    denominator: float | None,
    ignore_index: int,
    wants_grad: bool,
    **options: Any,
) -> tuple[da.Array, da.Array | None]:
    axis, dtype = _checked(logits, axis, "logits")
    sf.cross_entropy(  # raises for an option out of range
        np.zeros(1), 0, ignore_index=ignore_index, reduction=reduction, denominator=denominator,
        **options,
    )  # fmt: skip
    whole, rows = _all(logits), _rows(logits, axis)
    places = whole if np.ndim(target) == logits.ndim else rows  # of the target's axes
    target = _operand(target, "target", logits, places)
    if (target.dtype.kind in "iu") == (places == whole):
        raise TypeError(
            "target must hold class indices (integers), of the shape of logits without the class "
            "axis, or class probabilities (floating), of the shape of logits; got "
            f"{target.dtype} of shape {target.shape} for logits of shape {logits.shape}"
        )
    if sample_weight is not None:
        sample_weight = _operand(sample_weight, "sample_weight", logits, rows)
    if weight is not None:
        weight = np.asarray(weight)
        if weight.shape != (logits.shape[axis],):
            raise ValueError(f"weight must have shape ({logits.shape[axis]},), got {weight.shape}")
    of_rows = [target, places, *_given(sample_weight, rows)]
    shared = {"axis": axis, "weight": weight, "ignore_index": ignore_index}
    states = None
    if logits.numblocks[axis] == 1:
        losses = _blocks(_losses, rows, logits, whole, *of_rows, dtype=dtype, **shared, **options)
    elif places == whole:
        raise NotImplementedError(
            "for a target of class probabilities the class axis of logits must be one chunk, "
            f"logits.rechunk({{{axis}: -1}}), got {logits.numblocks[axis]} chunks"
        )
    else:
        of_states = {name: value for name, value in options.items() if name != "temperature"}
        states = _states(logits, axis, target, weight, options["temperature"])
        losses = _blocks(
            _losses_of, rows, states, rows, *_given(sample_weight, rows), dtype=dtype,
            ignore_index=ignore_index, into=dtype, **of_states,
        )  # fmt: skip
    divisor = None
    if reduction == "mean" and denominator is None:
        row_weights = _blocks(_row_weights, rows, *of_rows, dtype=np.float64, **shared)
        divisor = row_weights.sum(dtype=np.float64)
    elif reduction == "mean":
        divisor = da.asarray(np.float64(denominator))
    loss = losses
    if reduction != "none":
        total = losses.sum(dtype=np.float64)
        loss = _blocks(_divided, (), total, (), *_given(divisor, ()), dtype=dtype, into=dtype)
    if not wants_grad:
        return loss, None
    operands = [logits, whole, *of_rows, *_given(divisor, ())]
    if states is not None:
        of_classes = _of_classes(logits, axis, weight)
        shared.pop("weight")
        operands += [states, rows, *of_classes]
        gradient = _blocks(_gradient_of, whole, *operands, dtype=dtype, **shared, **options)
        return loss, gradient
    return loss, _blocks(_gradient, whole, *operands, dtype=dtype, **shared, **options)


def _of_classes(x: da.Array, axis: int, weight: Array | None) -> list[Any]:
    """Return the numbers and the weights of the classes, as operands of `_blocks`."""
    chunks: Any = (x.chunks[axis],)
    numbers = da.arange(x.shape[axis], chunks=chunks)
    weights = None if weight is None else da.from_array(weight, chunks=chunks)
    return [numbers, (axis,), *_given(weights, (axis,))]


def _states(
    x: da.Array, axis: int, target: da.Array | None, weight: Array | None, temperature: float
) -> da.Array:
    """Return the row states of all classes: those of each chunk, merged in a tree."""
    operands = [x, _all(x), *_given(target, _rows(x, axis)), *_of_classes(x, axis, weight)]
    adjusted = {axis: lambda length: 1}  # a block has one element for all of its classes
    parts = da.blockwise(
        _states_of, _all(x), *operands, meta=np.empty((0,) * x.ndim, object), concatenate=True,
        adjust_chunks=adjusted, axis=axis, temperature=temperature,
    )  # fmt: skip
    return da.reduction(
        parts, _as_they_are, _merged, axis=axis, combine=_merged, concatenate=False, dtype=object,
        meta=np.empty((0,) * (x.ndim - 1), object),
    )  # fmt: skip


def _given(array: da.Array | None, indices: Indices) -> list[Any]:
    """Return an optional operand of `_blocks`."""
    return [array, None if array is None else indices]


def _operand(value: Any, name: str, logits: da.Array, indices: Indices) -> da.Array:
    """Return what goes with some axes of the logits as a Dask array."""
    shape: tuple[Any, ...] = tuple(logits.shape[i] for i in indices)
    if not isinstance(value, da.Array):
        value = np.asarray(value)
        if any(isnan(length) for length in shape):
            raise ValueError(f"{name} must be a Dask array where chunks of logits are unknown")
        if name == "sample_weight":
            value = np.broadcast_to(value, shape)
        if value.shape == shape:
            chunks: Any = tuple(logits.chunks[i] for i in indices)
            return da.from_array(value, chunks=chunks)
    elif len(value.shape) == len(shape) and all(
        isnan(given) or isnan(wanted) or given == wanted
        for given, wanted in zip(value.shape, shape, strict=True)
    ):
        known = {
            place: logits.chunks[i]
            for place, i in enumerate(indices)
            if not isnan(value.shape[place]) and not isnan(logits.shape[i])
        }
        return value.rechunk(known)  # so that the results keep the chunks of the logits
    raise ValueError(f"{name} must have shape {shape}, that of logits, got {value.shape}")


# Tasks


def _on_one_thread(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def task(*arguments: Any, **options: Any) -> Any:
        with sf.num_threads(1):
            return function(*map(_block, arguments), **options)

    return task


def _block(argument: Any) -> Any:
    """Return an operand, which is the one item of a list where the result lacks an axis of it."""
    return argument[0] if isinstance(argument, list) else argument


@_on_one_thread
def _softmax(block: Array, *, axis: int, log: bool, temperature: float) -> Any:
    return (sf.log_softmax if log else sf.softmax)(block, axis, temperature=temperature)


@_on_one_thread
def _logsumexp(block: Array, *, axis: int) -> Any:
    return np.asarray(sf.logsumexp(block, axis))


@_on_one_thread
def _states_of(
    logits: Array, target: Any, classes: Array, weight: Any, *, axis: int, temperature: float
) -> Any:
    states = sharded.row_states(
        logits, target, axis, class_offset=int(classes[0]) if classes.size else 0, weight=weight,
        temperature=temperature,
    )  # fmt: skip
    return np.expand_dims(states, axis)


def _as_they_are(states: Array, axis: Any, keepdims: bool) -> Array:
    return states


def _merged(states: Any, axis: tuple[int, ...], keepdims: bool) -> Any:
    """Merge states along an axis; of a single block there is no list."""
    merged = sharded.merge(*_flat(states))
    return merged if keepdims else np.squeeze(merged, axis)


def _flat(states: Any) -> list[Array]:
    if not isinstance(states, list):
        return [states]
    return [array for item in states for array in _flat(item)]


@_on_one_thread
def _softmax_of(block: Array, states: Array, *, axis: int, log: bool, temperature: float) -> Any:
    function = sharded.log_softmax if log else sharded.softmax
    return function(block, states, axis, temperature=temperature)


@_on_one_thread
def _logsumexp_of(states: Array, *, into: Any) -> Any:
    return np.asarray(sharded.logsumexp(states)).astype(into)  # no rows have none of their own


@_on_one_thread
def _losses_of(states: Array, sample_weight: Any, *, into: Any, **options: Any) -> Any:
    losses = sharded.cross_entropy(states, sample_weight=sample_weight, reduction="none", **options)
    return np.asarray(losses).astype(into)


@_on_one_thread
def _gradient_of(
    logits: Array,
    target: Array,
    sample_weight: Any,
    divisor: Array | None,
    states: Array,
    classes: Array,
    weight: Any,
    *,
    axis: int,
    **options: Any,
) -> Any:
    if divisor is None:
        options["reduction"] = "sum"
    else:
        options["denominator"] = float(divisor)
    return sharded.cross_entropy_grad(
        logits, target, states, axis, class_offset=int(classes[0]) if classes.size else 0,
        weight=weight, sample_weight=sample_weight, **options,
    )  # fmt: skip


@_on_one_thread
def _losses(logits: Array, target: Array, sample_weight: Any, *, axis: int, **options: Any) -> Any:
    losses = sf.cross_entropy(
        logits, target, axis, sample_weight=sample_weight, reduction="none", **options
    )
    return np.asarray(losses)


@_on_one_thread
def _gradient(
    logits: Array,
    target: Array,
    sample_weight: Any,
    divisor: Array | None,
    *,
    axis: int,
    **options: Any,
) -> Any:
    if divisor is None:
        options["reduction"] = "sum"
    else:
        options["denominator"] = float(divisor)
    _, gradient = sf.cross_entropy_with_grad(
        logits, target, axis, sample_weight=sample_weight, **options
    )
    return gradient


@_on_one_thread
def _row_weights(
    target: Array, sample_weight: Any, *, axis: int, weight: Any, ignore_index: int
) -> Any:
    """Return what each row adds to what reduction "mean" divides by."""
    if target.dtype.kind not in "iu":
        factors = np.ones(target.shape[:axis] + target.shape[axis + 1 :])
    elif weight is None:
        factors = (target != ignore_index).astype(np.float64)
    else:  # a label that is no class is an error of the loss
        factors = np.where(target == ignore_index, 0, np.take(weight, target, mode="clip"))
    return factors if sample_weight is None else factors * sample_weight


def _divided(total: Any, divisor: Any, *, into: Any) -> Any:
    with np.errstate(all="ignore"):  # NaN for no rows; what a half type cannot hold
        return np.asarray(total if divisor is None else total / divisor).astype(into)
