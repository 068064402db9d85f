"""Checks of arguments, and the wording of every error about them.

Shared by the compiled path and :mod:`softce_fast.reference`, so that both accept and refuse the
same calls in the same words. Nothing here needs more than NumPy and the standard library.
"""

from __future__ import annotations

import inspect
import math
import operator
import re
import sys
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.exceptions import AxisError
from numpy.typing import ArrayLike, DTypeLike, NDArray

Array = NDArray[Any]
DType = np.dtype[Any]

REDUCTIONS = ("none", "mean", "sum")
EMPTY_VALUES = ("nan", "zero")
TIES = ("first", "min", "max")  # in the order of the kernels' Ties
MOST_THREADS = 1024

_ARRAY_PROTOCOLS = ("__array__", "__array_interface__", "__array_struct__")
_FLOAT_CHARS = "efdg"
_FLOAT_NAMES = "float16, bfloat16, float32, float64 or longdouble"


# Calls that do not fit a signature

# What other libraries call arguments, and what they are called here; None: the first one.
_NAMES_ELSEWHERE = {
    **dict.fromkeys(("a", "input", "x", "logits", "y_pred"), None),
    **dict.fromkeys(("labels", "targets", "y", "y_true"), "target"),
    "bias": "linear_bias",
    "class_weight": "weight",
    "dim": "axis",
    "k": "top_k",
    "keepdim": "keepdims",
    "sample_weights": "sample_weight",
}


def explain_misfit(function: Callable[..., Any], error: TypeError) -> None:
    """Say in the TypeError of a call that does not fit a function's signature what does."""
    message = str(error)
    unknown = re.search(r"unexpected keyword argument '(\w+)'", message)
    parameters = inspect.signature(function).parameters
    if unknown and unknown[1] in _NAMES_ELSEWHERE:
        name = _NAMES_ELSEWHERE[unknown[1]] or next(iter(parameters))
        if name in parameters:
            error.args = (f"{message}: write {name}=, which is what it is called here",)
    elif "positional argument" in message and "were given" in message:
        options = [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
        if options:
            error.args = (f"{message}: options are written by name, {options[0]}=...",)


# Data types and arrays


def is_bfloat16(dtype: DType) -> bool:
    """Tell whether `dtype` is the bfloat16 of ml_dtypes, without importing ml_dtypes."""
    return dtype.name == "bfloat16"


def is_floating(dtype: DType) -> bool:
    """Tell whether `dtype` is one of the supported floating types, in any byte order."""
    return dtype.char in _FLOAT_CHARS or is_bfloat16(dtype)


def real_array(value: ArrayLike, name: str) -> Array:
    """Return `value` as a plain array of real numbers, copying nothing that is already one."""
    if type(value) is np.ndarray:
        array = value
    elif isinstance(value, np.ma.MaskedArray):
        raise _masked(f"{name} is")
    elif isinstance(value, (list, tuple)) and any(
        isinstance(item, np.ma.MaskedArray) for item in value
    ):
        raise _masked(f"{name} holds")
    elif type(value).__module__.partition(".")[0] == "dask":
        raise TypeError(
            f"{name} is of Dask, and would be computed whole: softce_fast.dask takes Dask arrays"
        )
    elif hasattr(value, "__dlpack__") and not any(hasattr(value, how) for how in _ARRAY_PROTOCOLS):
        array = np.from_dlpack(value)  # type: ignore[arg-type, unused-ignore]
    else:
        array = np.asarray(value)
    dtype = array.dtype
    if dtype.kind in "biu" or is_floating(dtype):
        return array
    raise _not_numbers(name, value, dtype)


def _not_numbers(name: str, value: object, dtype: DType) -> TypeError:
    got, remedy = f"dtype {dtype}", ""
    if isinstance(value, dict):
        got = "a dict"
        remedy = f": pass numpy.array([{name}[label] for label in range(classes)])"
    elif name == "target" and dtype.kind in "OSU":
        remedy = (
            ": of names of classes make class indices, "
            "names, target = numpy.unique(target, return_inverse=True)"
        )
    elif isinstance(value, str) and value == "balanced":
        remedy = ": pass len(target) / (classes * numpy.bincount(target))"
    elif dtype.kind == "O":
        remedy = f": pass {name}.astype(float), if that is what it holds"
    return TypeError(
        f"{name} must hold real numbers (booleans, integers, {_FLOAT_NAMES}), got {got}{remedy}"
    )


def _masked(beginning: str) -> TypeError:
    return TypeError(
        f"{beginning} a masked array, which is not supported: pass its data, with where=~mask, or "
        "ignore_index= or sample_weight= for whole rows of a loss"
    )


def result_dtype(dtype: DType, requested: DTypeLike | None = None) -> DType:
    """Return the dtype of the result for real input of `dtype`, in native byte order."""
    if requested is not None:
        return _requested_dtype(requested)
    if dtype.kind in "biu":
        return np.dtype(np.float64)
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def _requested_dtype(requested: DTypeLike) -> DType:
    try:
        dtype = np.dtype(requested)
    except TypeError:
        dtype = None
    if dtype is None or not is_floating(dtype):
        raise TypeError(f"dtype must be {_FLOAT_NAMES}, got {requested!r}")
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def compute_dtype(dtype: DType) -> DType:
    """Return the dtype to compute a result of `dtype` in: float32 for the half types."""
    return np.dtype(np.float32) if dtype.itemsize == 2 else dtype


def is_own_dtype(dtype: DTypeLike, x: ArrayLike) -> bool:
    """Tell whether `dtype` names that of the array `x`."""
    return getattr(x, "dtype", None) == dtype


def no_wider(array: Array, dtype: DType) -> Array:
    """Return long doubles as float64 where the result, of `dtype`, is not of long doubles, too."""
    if array.dtype.itemsize <= 8 or dtype.itemsize > 8:
        return array
    with np.errstate(over="ignore"):
        return array.astype(np.float64)


def check_values(values: ArrayLike, name: str, dtype: DTypeLike | None) -> tuple[Array, DType]:
    """Return what a result is made of, the argument called `name`, and the dtype of the result."""
    array = real_array(values, name)
    result = result_dtype(array.dtype, dtype)
    return no_wider(array, result), result


def promote(first: DType, second: DType) -> DType:
    """Return the dtype of a result of two arrays whose results alone have these dtypes."""
    if first == second:
        return first
    return np.promote_types(compute_dtype(first), compute_dtype(second))


# Axes


def normalize_axis(axis: int, ndim: int) -> int:
    """Return the one axis of a loss, counted from the front."""
    try:
        index = operator.index(axis)
    except TypeError:
        raise TypeError(f"axis must be an integer, got {axis!r}") from None
    if not -ndim <= index < ndim:
        raise AxisError(index, ndim, "axis")
    return index % ndim


def normalize_axes(axis: int | tuple[int, ...] | None, ndim: int) -> tuple[int, ...]:
    """Return the reduced axes in rising order, counted from the front.

    A 0-d array takes axis 0 and -1, as NumPy's reductions do; its one element is then the row, as
    it is for no axes at all.
    """
    if axis is None:
        return tuple(range(ndim))
    if isinstance(axis, tuple):
        axes = sorted(normalize_axis(item, ndim) for item in axis)
        if len(set(axes)) != len(axes):
            raise ValueError(
                f"axis must not name an axis twice, got {axis!r} for {ndim} dimensions"
            )
        return tuple(axes)
    if not hasattr(axis, "__index__"):
        raise TypeError(f"axis must be an integer, a tuple of integers or None, got {axis!r}")
    if ndim == 0 and operator.index(axis) in (0, -1):
        return ()
    return (normalize_axis(axis, ndim),)


# Options


def check_reduction(reduction: str) -> None:
    """Refuse a reduction other than none, mean and sum."""
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")


def check_empty(empty: str) -> None:
    """Refuse a value of empty other than nan and zero."""
    if not isinstance(empty, str) or empty not in EMPTY_VALUES:
        raise ValueError(f"empty must be 'nan' or 'zero', got {empty!r}")


def check_ties(ties: str) -> None:
    """Refuse a value of ties other than first, min and max."""
    if not isinstance(ties, str) or ties not in TIES:
        raise ValueError(f"ties must be 'first', 'min' or 'max', got {ties!r}")


def check_top_k(top_k: int, classes: int) -> int:
    """Return top_k as an int from 0 to the number of classes."""
    try:
        value = operator.index(top_k)
    except TypeError:
        raise TypeError(f"top_k must be an integer, got {top_k!r}") from None
    if not 0 <= value <= classes:
        raise ValueError(f"top_k must be in [0, {classes}], for {classes} classes, got {top_k!r}")
    return value


def check_label_smoothing(label_smoothing: float) -> float:
    """Return label_smoothing as a float in [0, 1]."""
    value = _number(label_smoothing, "label_smoothing", "a number in [0, 1]")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing!r}")
    # Kernels take subnormal numbers for 0, and are to see none where others do not.
    return value if value >= sys.float_info.min else 0.0


def check_temperature(temperature: float) -> float:
    """Return temperature as a finite float above 0."""
    value = _number(temperature, "temperature", "a finite number > 0")
    if not 0.0 < value < math.inf:
        raise ValueError(f"temperature must be finite and > 0, got {temperature!r}")
    return value


def check_softcap(softcap: float | None) -> float | None:
    """Return softcap as a finite float above 0, or None."""
    if softcap is None:
        return None
    value = _number(softcap, "softcap", "a finite number > 0 or None")
    if not 0.0 < value < math.inf:
        raise ValueError(f"softcap must be finite and > 0, or None, got {softcap!r}")
    return value


def check_z_loss(z_loss: float) -> float:
    """Return z_loss as a finite float."""
    value = _number(z_loss, "z_loss", "a finite number")
    if not math.isfinite(value):
        raise ValueError(f"z_loss must be finite, got {z_loss!r}")
    return value


def check_denominator(denominator: float | None) -> float | None:
    """Return denominator as a finite float, or None."""
    if denominator is None:
        return None
    value = _number(denominator, "denominator", "a finite number or None")
    if not math.isfinite(value):
        raise ValueError(f"denominator must be finite, got {denominator!r}")
    return value


def check_ignore_index(ignore_index: int) -> int:
    """Return ignore_index as an int."""
    try:
        return operator.index(ignore_index)
    except TypeError:
        raise TypeError(f"ignore_index must be an integer, got {ignore_index!r}") from None


def check_num_threads(n: int) -> int:
    """Return a number of threads as an int from 1 to MOST_THREADS; more count as those."""
    try:
        value = operator.index(n)
    except TypeError:
        raise TypeError(f"n must be an integer >= 1 (a number of threads), got {n!r}") from None
    if value < 1:
        raise ValueError(f"n must be >= 1 (a number of threads), got {n!r}")
    return min(value, MOST_THREADS)


def _number(value: Any, name: str, takes: str) -> float:
    if type(value) is float:
        return value
    try:
        if isinstance(value, (str, bytes)) or getattr(value, "ndim", 0) != 0:
            raise TypeError
        return float(value)
    except OverflowError:  # an int beyond the largest float
        return math.inf if int(value) > 0 else -math.inf
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be {takes}, got {value!r}") from None


# Arrays that go with an input of a given shape


def check_same_shape(array: Array, shape: tuple[int, ...], name: str, other: str) -> None:
    """Refuse an array of another shape than that of the argument called `other`."""
    if array.shape != shape:
        raise ValueError(
            f"{name} must have the shape of {other}, {shape}, got {array.shape}"
            + (f": pass {name}{change}" if (change := _reshaping(array, shape)) else "")
        )


def _reshaping(array: Array, shape: tuple[int, ...]) -> str:
    """Return what brings an array to `shape`, if axes of length 1 are all that is in the way."""
    if [n for n in array.shape if n != 1] != [n for n in shape if n != 1]:
        return ""
    return ".ravel()" if len(shape) == 1 else f".reshape{shape}"


def check_broadcast(
    array: Array, shape: tuple[int, ...], name: str, other: str, part: str = ""
) -> Array:
    """Return `array` broadcast to `shape`, that of `part` of the argument called `other`."""
    if array.shape == shape:
        return array
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(
            f"{name} must broadcast to the shape of {other}{part}, {shape}, got shape {array.shape}"
            + (f": pass {name}{change}" if (change := _reshaping(array, shape)) else "")
        ) from None


def check_where(where: ArrayLike, shape: tuple[int, ...], other: str = "x") -> NDArray[np.bool_]:
    """Return `where` as a boolean array of `shape`, that of the argument called `other`."""
    mask = real_array(where, "where")
    if mask.dtype.kind != "b":
        raise TypeError(
            f"where must hold booleans, got dtype {mask.dtype}: pass where.astype(bool)"
        )
    return check_broadcast(mask, shape, "where", other)


def check_allowed_classes(where: ArrayLike | None, classes: int) -> NDArray[np.bool_] | None:
    """Return `where` as a boolean array of shape (classes,), or None."""
    if where is None:
        return None
    mask = real_array(where, "where")
    mask = check_where(mask, mask.shape)
    if mask.shape != (classes,):
        raise ValueError(
            f"where must have one value for each class, shape ({classes},), got {mask.shape}"
        )
    return mask


def check_class_weight(weight: ArrayLike, classes: int, row_shape: tuple[int, ...]) -> Array:
    """Return the class weights as an array of shape (classes,)."""
    array = real_array(weight, "weight")
    if array.shape != (classes,):
        of_rows = array.shape == row_shape != ()
        raise ValueError(
            f"weight must have one value for each class, shape ({classes},), got {array.shape}"
            f"{': one value for each row is sample_weight=' if of_rows else ''}"
        )
    return array


def check_sample_weight(
    sample_weight: ArrayLike, row_shape: tuple[int, ...], other: str = "logits"
) -> Array:
    """Return the row weights broadcast to `row_shape`."""
    array = real_array(sample_weight, "sample_weight")
    return check_broadcast(array, row_shape, "sample_weight", other, part=" without the class axis")


def check_out(out: object, shape: tuple[int, ...], dtype: DType, name: str = "out") -> None:
    """Refuse an output array that a result of `shape` and `dtype` cannot be written to."""
    if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a numpy.ndarray, got {type(out).__name__}")
    out = np.asarray(out)  # what is there, whatever a subclass says
    if out.dtype != dtype and (out.dtype.isnative or out.dtype.newbyteorder("=") != dtype):
        raise TypeError(f"{name} must have dtype {dtype}, that of the result, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, that of the result, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError(f"{name} must be writable, got a read-only array")


# Softmax and its kin


class SoftmaxArguments(NamedTuple):
    """Checked arguments of softmax and log_softmax."""

    x: Array
    axes: tuple[int, ...]  # of a row, in rising order
    where: NDArray[np.bool_] | None  # of the shape of x
    temperature: float
    empty: str
    dtype: DType  # of the result


def check_softmax(
    x: ArrayLike,
    axis: int | tuple[int, ...] | None,
    where: ArrayLike | None,
    temperature: float,
    empty: str,
    dtype: DTypeLike | None,
    out: object | None,
) -> SoftmaxArguments:
    """Return the arguments of softmax or log_softmax."""
    array, result = check_values(x, "x", dtype)
    axes = normalize_axes(axis, array.ndim)
    mask = None if where is None else check_where(where, array.shape)
    temperature = check_temperature(temperature)
    check_empty(empty)
    if out is not None:
        check_out(out, array.shape, result)
    return SoftmaxArguments(array, axes, mask, temperature, empty, result)


def _common_dtype(*operands: Any) -> DType:
    """Return the dtype of a result of two arrays, given by dtype, or Python's numbers."""
    try:
        return result_dtype(np.result_type(*operands))
    except TypeError:  # NumPy has no rule for bfloat16 beside some
        return promote(*(result_dtype(operand) for operand in operands))


def _broadcast(x: Array, b: Array) -> tuple[Array, Array]:
    try:
        x, b = np.broadcast_arrays(x, b)
    except ValueError:
        raise ValueError(
            f"b must broadcast against x, of shape {x.shape}, got shape {b.shape}"
        ) from None
    return x, b


class LogsumexpArguments(NamedTuple):
    """Checked arguments of logsumexp."""

    x: Array
    axes: tuple[int, ...]  # of a row, in rising order
    b: Array | None  # of the shape of x,
    where: NDArray[np.bool_] | None  # as this is
    shape: tuple[int, ...]  # of the result
    dtype: DType  # of the result


def check_logsumexp(
    x: ArrayLike,
    axis: int | tuple[int, ...] | None,
    b: ArrayLike | None,
    where: ArrayLike | None,
    keepdims: bool,
    dtype: DTypeLike | None,
    out: object | None,
) -> LogsumexpArguments:
    """Return the arguments of logsumexp."""
    array, result = check_values(x, "x", dtype)
    factor = None
    if b is not None:
        factor = real_array(b, "b")
        if dtype is None:
            result = _common_dtype(
                *(
                    v if type(v) in (bool, int, float) else a.dtype
                    for v, a in ((x, array), (b, factor))
                )
            )
        array, factor = _broadcast(array, no_wider(factor, result))
    axes = normalize_axes(axis, array.ndim)
    mask = None if where is None else check_where(where, array.shape)
    shape = tuple(
        1 if i in axes else n for i, n in enumerate(array.shape) if keepdims or i not in axes
    )
    if out is not None:
        check_out(out, shape, result)
    return LogsumexpArguments(array, axes, factor, mask, shape, result)


class BackwardArguments(NamedTuple):
    """Checked arguments of softmax_backward and log_softmax_backward."""

    gradient: Array
    output: Array
    axes: tuple[int, ...]  # of a row, in rising order
    temperature: float
    dtype: DType  # of the result


def check_backward(
    grad_output: ArrayLike,
    output: ArrayLike,
    axis: int | tuple[int, ...] | None,
    temperature: float,
    out: object | None,
) -> BackwardArguments:
    """Return the arguments of a backward function."""
    gradient = real_array(grad_output, "grad_output")
    values = real_array(output, "output")
    check_same_shape(gradient, values.shape, "grad_output", "output")
    axes = normalize_axes(axis, values.ndim)
    temperature = check_temperature(temperature)
    dtype = promote(result_dtype(gradient.dtype), result_dtype(values.dtype))
    if out is not None:
        check_out(out, values.shape, dtype)
    return BackwardArguments(gradient, values, axes, temperature, dtype)


# Binary losses


class BinaryArguments(NamedTuple):
    """Checked arguments of a binary loss; all arrays are of one shape."""

    values: Array  # logits or probabilities
    target: Array
    weight: Array | None
    pos_weight: Array | None
    from_logits: bool
    reduction: str
    dtype: DType  # of the result


def check_binary(
    name: str,
    values: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None,
    pos_weight: ArrayLike | None,
    reduction: str,
    dtype: DTypeLike | None,
    grad_out: object | None = None,
) -> BinaryArguments:
    """Return the arguments of a binary loss of the argument called `name`: logits or probs."""
    array, result = check_values(values, name, dtype)
    check_reduction(reduction)

    def factor(value: ArrayLike | None, factor_name: str) -> Array | None:
        if value is None:
            return None
        given = no_wider(real_array(value, factor_name), result)
        return check_broadcast(given, array.shape, factor_name, name)

    targets = no_wider(real_array(target, "target"), result)
    check_same_shape(targets, array.shape, "target", name)
    weights, pos_weights = factor(weight, "weight"), factor(pos_weight, "pos_weight")
    if grad_out is not None:
        check_out(grad_out, array.shape, result, "grad_out")
    return BinaryArguments(
        array, targets, weights, pos_weights, name == "logits", reduction, result
    )


# Losses over classes


class LossArguments(NamedTuple):
    """Checked arguments of a loss over classes."""

    values: Array  # logits, log-probabilities or probabilities
    axis: int  # of the classes, counted from the front
    labels: Array | None  # not compared with the number of classes yet; either these
    probabilities: Array | None  # or these are the target
    weight: Array | None  # of each class, in float64 at least
    sample_weight: Array | None  # of each row
    ignore_index: int
    label_smoothing: float
    z_loss: float
    temperature: float
    softcap: float | None
    where: NDArray[np.bool_] | None  # of the shape of the values
    reduction: str
    denominator: float | None
    empty: str
    dtype: DType  # of the result

    @property
    def classes(self) -> int:
        """Number of classes."""
        classes: int = self.values.shape[self.axis]
        return classes

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of the values without the class axis."""
        return self.values.shape[: self.axis] + self.values.shape[self.axis + 1 :]


def check_loss(
    name: str,
    values: ArrayLike,
    target: ArrayLike,
    axis: int,
    *,
    weight: ArrayLike | None,
    sample_weight: ArrayLike | None,
    ignore_index: int,
    reduction: str,
    denominator: float | None,
    empty: str,
    dtype: DTypeLike | None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    where: ArrayLike | None = None,
) -> LossArguments:
    """Return the arguments of a loss over the classes of the argument called `name`."""
    array, result = check_values(values, name, dtype)
    _check_order(array, target, name)
    axis = normalize_axis(axis, array.ndim)
    given, is_labels = check_target(target, array.shape, axis, name)
    check_reduction(reduction)
    check_empty(empty)
    arguments = LossArguments(
        array,
        axis,
        given if is_labels else None,
        None if is_labels else no_wider(given, result),
        None,
        None,
        check_ignore_index(ignore_index),
        check_label_smoothing(label_smoothing),
        check_z_loss(z_loss),
        check_temperature(temperature),
        check_softcap(softcap),
        None if where is None else check_where(where, array.shape, name),
        reduction,
        check_denominator(denominator),
        empty,
        result,
    )
    if weight is not None:
        in_double = np.promote_types(compute_dtype(result), np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            weight = check_class_weight(weight, arguments.classes, arguments.row_shape)
            weight = weight.astype(in_double)
    if sample_weight is not None:
        sample_weight = check_sample_weight(sample_weight, arguments.row_shape, name)
        sample_weight = no_wider(sample_weight, result)
    return arguments._replace(weight=weight, sample_weight=sample_weight)


class ScoreArguments(NamedTuple):
    """Checked arguments of target_scores."""

    logits: Array
    axis: int  # of the classes, counted from the front
    labels: Array  # not compared with the number of classes yet
    where: NDArray[np.bool_] | None  # of the shape of the logits
    top_k: int
    entropy: bool
    ties: str
    ignore_index: int
    temperature: float
    softcap: float | None
    dtype: DType  # of the result


def check_scores(
    logits: ArrayLike,
    target: ArrayLike,
    axis: int,
    *,
    top_k: int,
    entropy: bool,
    ties: str,
    ignore_index: int,
    temperature: float,
    softcap: float | None,
    where: ArrayLike | None,
    dtype: DTypeLike | None,
) -> ScoreArguments:
    """Return the arguments of target_scores."""
    array, result = check_values(logits, "logits", dtype)
    _check_order(array, target, "logits")
    axis = normalize_axis(axis, array.ndim)
    check_ties(ties)
    return ScoreArguments(
        array,
        axis,
        check_class_indices(target, array.shape, axis),
        None if where is None else check_where(where, array.shape, "logits"),
        check_top_k(top_k, array.shape[axis]),
        bool(entropy),
        ties,
        check_ignore_index(ignore_index),
        check_temperature(temperature),
        check_softcap(softcap),
        result,
    )


def check_class_indices(target: ArrayLike, shape: tuple[int, ...], axis: int) -> Array:
    """Return a target that may hold class indices alone."""
    labels, is_labels = check_target(target, shape, axis)
    if not is_labels:
        raise TypeError(
            f"target must hold class indices (integers), got class probabilities of {labels.dtype}"
        )
    return labels


def check_gradient_out(call: LossArguments, grad_out: object | None) -> None:
    """Refuse an array that the gradient of a loss cannot be written to."""
    if grad_out is not None:
        check_out(grad_out, call.values.shape, call.dtype, "grad_out")


def check_hessian(
    call: LossArguments, scale: float, floor: float | None, hessian_out: object | None
) -> tuple[float, float | None]:
    """Return hessian_scale and hessian_floor; refuse an array that the Hessian does not fit."""
    factor = _number(scale, "hessian_scale", "a finite number > 0")
    if not 0.0 < factor < math.inf:
        raise ValueError(f"hessian_scale must be finite and > 0, got {scale!r}")
    least = floor
    if least is not None:
        least = _number(floor, "hessian_floor", "None or a finite number >= 0")
        if not 0.0 <= least < math.inf:
            raise ValueError(f"hessian_floor must be None or finite and >= 0, got {floor!r}")
    if hessian_out is not None:
        check_out(hessian_out, call.values.shape, call.dtype, "hessian_out")
    return factor, least


def check_target(
    target: ArrayLike, shape: tuple[int, ...], axis: int, other: str = "logits"
) -> tuple[Array, bool]:
    """Return the target as an array, and whether it holds class indices (not probabilities).

    `shape` is that of the argument called `other`; `axis` is its class axis, counted from the
    front. Labels are not compared with the number of classes here: `check_labels` does that.
    """
    array = real_array(target, "target")
    row_shape = shape[:axis] + shape[axis + 1 :]
    kind = array.dtype.kind
    if kind == "b":
        remedy = f"argmax({axis})" if array.shape == shape else "astype(int)"
        raise TypeError(
            "target must hold class indices (integers) or class probabilities (floating), "
            f"got booleans: pass target.{remedy}"
        )
    if kind in "iu":
        if array.shape == shape:
            raise ValueError(
                f"target of the shape of {other}, {shape}, holds class probabilities, which are "
                "floating: pass target.astype(float), or of rows with a single 1 "
                f"target.argmax({axis}); class indices have the shape {row_shape}"
            )
        if array.shape != row_shape:
            raise ValueError(
                f"target of class indices must have the shape of {other} without the class axis, "
                f"{row_shape}, got {array.shape}"
                + (f": pass target{change}" if (change := _fitting(array, shape, axis)) else "")
            )
        return array, True
    if array.shape != shape:
        if array.size == 0 and array.shape == row_shape and not isinstance(target, np.ndarray):
            return array.astype(np.intp), True  # an empty list has no integers to show its kind
        raise ValueError(
            f"target of class probabilities (dtype {array.dtype}) must have the shape of {other}, "
            f"{shape}, got {array.shape}; class indices need an integer dtype"
            f"{_as_labels(array, shape, axis)}"
        )
    return array, False


def _check_order(values: Array, target: ArrayLike, name: str) -> None:
    """Refuse labels in the place of the values of a loss, and the values in that of the target."""
    shape = np.shape(target) if values.dtype.kind in "iu" else ()
    if len(shape) == values.ndim + 1 and values.shape in _row_shapes(shape):
        raise ValueError(
            f"target has the shape {shape}, an axis more than {name}, {values.shape}, which are "
            f"integers: pass {name} first and the target second"
        )


def _row_shapes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return what `shape` is without each of its axes."""
    return [shape[:axis] + shape[axis + 1 :] for axis in range(len(shape))]


def _fitting(labels: Array, shape: tuple[int, ...], axis: int) -> str:
    """Return what makes labels fit values of `shape`, if anything does."""
    row_shapes = _row_shapes(shape)
    if labels.shape in row_shapes:
        return f" with axis={row_shapes.index(labels.shape)}"
    return _reshaping(labels, row_shapes[axis])


def _as_labels(array: Array, shape: tuple[int, ...], axis: int) -> str:
    """Return what makes labels of floating numbers, if they are that: whole, and of a fit shape."""
    fits = array.shape == _row_shapes(shape)[axis]
    change = "" if fits else _fitting(array, shape, axis)
    if not (fits or change) or (array != np.floor(array)).any():
        return ""
    return f": pass target.astype(numpy.int64){change}"


def check_labels(labels: Array, classes: int, ignore_index: int) -> None:
    """Refuse labels outside [0, classes) other than `ignore_index`."""
    if labels.size and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        outside = (labels < 0) | (labels >= classes)
        outside &= labels != ignore_index
        if outside.any():
            raise_bad_label(labels, int(outside.argmax()), classes, ignore_index)


def raise_bad_label(labels: Array, position: int, classes: int, ignore_index: int) -> NoReturn:
    """Raise the IndexError for the bad label at flat C-order `position`."""
    index = tuple(int(item) for item in np.unravel_index(position, labels.shape))
    place = "target" + (str(list(index)) if index else "")
    valid = f"in [0, {classes})" if classes else "in [0, 0), which is empty (there are no classes),"
    raise IndexError(
        f"{place} is {int(labels[index])}: labels must be {valid} or equal ignore_index, "
        f"{ignore_index}"
    )


# Some of the classes of each row


class ShardArguments(NamedTuple):
    """Checked arguments of a call that has logits of some of the classes."""

    logits: Array
    axis: int  # of the classes, counted from the front
    target: Array | None  # class indices, counted from the first class of all
    class_offset: int
    weight: NDArray[np.float64] | None  # contiguous
    temperature: float
    softcap: float | None
    where: NDArray[np.bool_] | None  # of the shape of the logits
    dtype: DType  # of the result

    @property
    def classes(self) -> int:
        """How many there are."""
        return int(self.logits.shape[self.axis])

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of what has a number for each row."""
        return self.logits.shape[: self.axis] + self.logits.shape[self.axis + 1 :]

    def labels(self) -> NDArray[np.int64]:
        """Return labels counted from the first of these classes, their number for others."""
        assert self.target is not None
        inside = self.target >= self.class_offset
        inside &= self.target < self.class_offset + self.classes
        labels = self.target.astype(np.int64) - min(self.class_offset, np.iinfo(np.int64).max)
        return np.where(inside, labels, self.classes)


def check_shard(
    logits: ArrayLike,
    target: ArrayLike | None,
    axis: int,
    *,
    class_offset: int = 0,
    weight: ArrayLike | None = None,
    temperature: float,
    softcap: float | None,
    where: ArrayLike | None,
) -> ShardArguments:
    """Return the arguments of a call that has logits of some of the classes."""
    array, dtype = check_values(logits, "logits", None)
    if dtype.itemsize > 8:
        raise NotImplementedError("logits of longdouble are not served for shards of classes")
    axis = normalize_axis(axis, array.ndim)
    labels, is_labels = None, True
    if target is not None:
        labels, is_labels = check_target(target, array.shape, axis)
    if not is_labels:
        raise NotImplementedError(
            "target must hold class indices: class probabilities are not served for shards of "
            "classes"
        )
    call = ShardArguments(
        array,
        axis,
        labels,
        check_class_offset(class_offset),
        None,
        check_temperature(temperature),
        check_softcap(softcap),
        None if where is None else check_where(where, array.shape, "logits"),
        dtype,
    )
    if weight is None:
        return call
    weights = check_class_weight(weight, call.classes, call.row_shape)
    return call._replace(weight=np.ascontiguousarray(weights, np.float64))


def check_class_offset(class_offset: int) -> int:
    """Return class_offset as an int that is not below 0."""
    try:
        offset = operator.index(class_offset)
    except TypeError:
        raise TypeError(f"class_offset must be an integer >= 0, got {class_offset!r}") from None
    if offset < 0:
        raise ValueError(f"class_offset must be >= 0, got {class_offset!r}")
    return offset


# Hidden states and the class matrix


class LinearArrays(NamedTuple):
    """Checked arguments that logits are made of."""

    hidden: Array  # (..., D)
    weight: Array  # (C, D)
    bias: Array | None  # (C,)
    dtype: DType  # of the loss


def check_linear(
    hidden: ArrayLike,
    linear_weight: ArrayLike,
    linear_bias: ArrayLike | None,
    dtype: DTypeLike | None,
) -> LinearArrays:
    """Return hidden states, class matrix and bias, whose shapes fit one another."""
    states, weight = real_array(hidden, "hidden"), real_array(linear_weight, "linear_weight")
    if states.ndim == 0:
        raise ValueError("hidden must have at least one axis, that of the features, got 0-d")
    if weight.ndim != 2 or weight.shape[1] != states.shape[-1]:
        turned = weight.ndim == 2 and weight.shape[0] == states.shape[-1]
        raise ValueError(
            "linear_weight must have shape (classes, features), with as many features as the last "
            f"axis of hidden, {states.shape[-1]}, got {weight.shape}"
            f"{': pass linear_weight.T' if turned else ''}"
        )
    bias = None if linear_bias is None else real_array(linear_bias, "linear_bias")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            "linear_bias must have one value for each class of linear_weight, shape "
            f"({weight.shape[0]},), got {bias.shape}"
        )
    result = promote(result_dtype(states.dtype, dtype), result_dtype(weight.dtype, dtype))
    if bias is not None:
        result = promote(result, result_dtype(bias.dtype, dtype))
    return LinearArrays(states, weight, bias, result)


def check_memory(memory: int) -> int:
    """Return a number of bytes as an int above 0."""
    try:
        value = operator.index(memory)
    except TypeError:
        raise TypeError(f"memory must be an integer, in bytes, got {memory!r}") from None
    if value < 1:
        raise ValueError(f"memory must be > 0 (bytes), got {memory!r}")
    return value


LINEAR_GRADS = ("hidden", "weight", "bias")


def check_linear_grads(
    arrays: LinearArrays,
    grads: Collection[str],
    accumulate: bool,
    outs: tuple[object | None, ...],
    dtype: DTypeLike | None,
) -> dict[str, DType]:
    """Return the dtype of each gradient that is wanted; refuse arrays that do not fit them.

    `outs` are the arrays for the gradients of LINEAR_GRADS. Those of half types may be float32.
    """
    if isinstance(grads, str) or any(name not in LINEAR_GRADS for name in grads):
        raise ValueError(f"grads must be a collection of names in {LINEAR_GRADS}, got {grads!r}")
    dtypes = {}
    for name, array, out in zip(LINEAR_GRADS, arrays[:3], outs, strict=True):
        out_name = f"{name}_grad_out"
        if name not in grads or array is None:
            if out is not None:
                reason = "linear_bias is None" if name in grads else f"grads is {grads!r}"
                raise ValueError(f"{out_name} must be None where {reason}")
            continue
        dtypes[name] = result_dtype(array.dtype, dtype)
        if out is not None:
            if getattr(out, "dtype", None) == compute_dtype(dtypes[name]):
                dtypes[name] = compute_dtype(dtypes[name])
            check_out(out, array.shape, dtypes[name], out_name)
        elif accumulate:
            raise ValueError(f"accumulate=True must have an array to add to, got {out_name}=None")
    return dtypes
