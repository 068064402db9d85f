"""Classes shared out over arrays, processes or machines.

Each has some of the classes of every row. What it finds out about them, its row states, is small:
96 bytes for each :data:`SPLIT` classes of a row, whatever their dtype. States that are merged say
all about a row that its logsumexp, loss, probabilities and gradient need:

>>> import numpy as np
>>> from softce_fast import sharded
>>> logits, target = np.array([[2.0, 1.0, 0.1, 0.5]]), np.array([2])
>>> first = sharded.row_states(logits[:, :2], target)
>>> second = sharded.row_states(logits[:, 2:], target, class_offset=2)
>>> states = sharded.merge(first, second)
>>> round(float(sharded.cross_entropy(states)), 3)
2.454
>>> sharded.softmax(logits[:, :2], states).round(3)
array([[0.575, 0.211]])

A state is made of those of chunks of SPLIT classes, which are merged as in an undivided call. So a
row's results have the bits of that call if the shards begin at multiples of SPLIT, and are merged
in the order of the classes; with label smoothing they have its digits.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _arrays, _checks, _losses
from ._kernels import execute
from ._threads import threads_for

__all__ = [
    "SPLIT",
    "cross_entropy",
    "cross_entropy_grad",
    "log_softmax",
    "logsumexp",
    "merge",
    "row_states",
    "softmax",
]

Array = NDArray[Any]
DType = np.dtype[Any]

#: Shards that begin at multiples of so many classes keep the bits of the undivided call.
SPLIT = execute.SPLIT

# Of a chunk of classes: the point that its sums of exponentials are relative to, and these sums,
# each a number and what it lost by rounding: of all, without the maximum, and without the label.
_CHUNK = np.dtype(
    [
        ("maximum", "f8"), ("shift", "f8"), ("exponent", "f8"), ("all", "f8", 2),
        ("rest", "f8", 2), ("others", "f8", 2), ("coefficients", "f8", 2), ("spread", "f8"),
    ]
)  # fmt: skip
# Logits, and rows, of a call of the kernels: caches hold them while they are read again.
_BLOCK_SIZE, _BLOCK_ROWS = 1 << 19, 512


def _dtype_of_states(chunks: int) -> DType:
    return np.dtype(
        [
            ("dtype", "S8"), ("temperature", "f8"), ("classes", "i8"), ("allowed", "i8"),
            ("has_nan", "?"), ("labelled", "?"), ("weighted", "?"), ("target", "i8"),
            ("found", "?"), ("logit", "f8"), ("weight", "f8"), ("chunks", _CHUNK, (chunks,)),
        ]
    )  # fmt: skip


def _row_blocks(
    shape: tuple[int, ...], axes: tuple[int, ...], size: int
) -> Iterator[tuple[slice, ...]]:
    """Return indices of blocks of whole rows along `axes`: `size` elements, or one row."""
    budget = min(_BLOCK_ROWS, size // max(1, math.prod(shape[axis] for axis in axes)))
    slices = [[slice(None)]] * len(shape)
    for axis in reversed([axis for axis in range(len(shape)) if axis not in axes]):
        step = max(1, min(shape[axis], budget))
        budget //= step
        slices[axis] = [slice(start, start + step) for start in range(0, shape[axis], step)]
    return itertools.product(*slices)


class _Shard(NamedTuple):
    """Checked arguments of a call that has logits."""

    logits: Array
    axis: int  # of the classes, counted from the front
    labels: Array | None  # counted from the first class on, their number for others; -1 is ignored
    where: NDArray[np.bool_] | None
    weight: NDArray[np.float64] | None
    temperature: float
    dtype: DType  # of the result

    @property
    def classes(self) -> int:
        return int(self.logits.shape[self.axis])

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.logits.shape[: self.axis] + self.logits.shape[self.axis + 1 :]

    def blocks(self) -> Iterator[tuple[tuple[slice, ...], tuple[Any, ...]]]:
        """Yield indices of blocks of rows: in the logits, and in what has a number for each row."""
        for block in _row_blocks(self.logits.shape, (self.axis,), _BLOCK_SIZE):
            yield block, (*block[: self.axis], *block[self.axis + 1 :], ...)


def row_states(
    logits: ArrayLike,
    target: ArrayLike | None = None,
    axis: int = -1,
    *,
    class_offset: int = 0,
    weight: ArrayLike | None = None,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
) -> Array:
    r"""Return what is to be known of some of the classes of each row.

    Parameters
    ----------
    logits : array_like, shape (..., C, ...)
        Those of the classes from `class_offset` on, of any real dtype but longdouble.
    target : array_like of int, optional
        Class indices, for a loss: of the shape of `logits` without the class axis, counted from the
        first class of all. Other classes than these are no error.
    axis : int, default -1
        The class axis.
    class_offset : int, default 0
        Which class is the first of these.
    weight : array_like, shape (C,), optional
        Class weights of these classes.
    temperature : float, default 1.0
        Divides the logits. Finite and above 0. The same in all calls.
    where : array_like of bool, optional
        Classes that are allowed; broadcast to the shape of `logits`.

    Returns
    -------
    ndarray
        A structured array, one element a row. It can be sent, saved and indexed, as any array;
        :func:`merge` puts states of other classes to these.

    Raises
    ------
    AxisError, TypeError, ValueError
        As :func:`softce_fast.cross_entropy`; also if `class_offset` is below 0.
    NotImplementedError
        If `target` holds class probabilities, or the logits are of longdouble.

    Notes
    -----
    For each chunk of :data:`SPLIT` classes the largest logit :math:`m`, and sums of

    .. math:: e^{(x_i - m) / T}, \quad w_i, \quad w_i (m - x_i)

    the first in three ways: with all classes, and without the largest or the target's, so that no
    digit is lost whatever is made of it.

    Examples
    --------
    >>> import numpy as np
    >>> from softce_fast import sharded
    >>> sharded.row_states(np.zeros((3, 5))).shape
    (3,)
    """
    shard, given = _checked(
        logits, target, axis, class_offset=class_offset, weight=weight, temperature=temperature,
        where=where,
    )  # fmt: skip
    chunks = max(1, -(-shard.classes // SPLIT))
    states = np.zeros(shard.row_shape, _dtype_of_states(chunks))
    states["dtype"] = shard.dtype.name
    states["temperature"], states["classes"] = shard.temperature, shard.classes
    states["allowed"] = shard.classes
    if shard.where is not None:
        states["allowed"] = shard.where.sum(axis=shard.axis)
    states["chunks"]["maximum"] = -np.inf
    states["chunks"]["exponent"] = _EXPONENT_OF_NOTHING
    if given is not None:
        _put_labels(states, shard, given)
    if shard.logits.size:
        for block, rows in shard.blocks():
            _absorb(shard, block, rows, states)
        _find_nan(states, shard)
    return states


# The exponent of the reference of a row without any logit.
_EXPONENT_OF_NOTHING = -48


def _checked(
    logits: ArrayLike,
    target: ArrayLike | None,
    axis: int,
    *,
    class_offset: int,
    weight: ArrayLike | None,
    temperature: float,
    where: ArrayLike | None,
    ignore_index: int | None = None,
) -> tuple[_Shard, Array | None]:
    """Return the arguments of a call that has logits, and the target as it was given."""
    array, dtype = _checks.check_values(logits, "logits", None)
    if dtype.itemsize > 8:
        raise NotImplementedError("logits of longdouble cannot be sharded")
    axis = _checks.normalize_axis(axis, array.ndim)
    try:
        offset = operator.index(class_offset)
    except TypeError:
        raise TypeError(f"class_offset must be an integer, got {class_offset!r}") from None
    if offset < 0:
        raise ValueError(f"class_offset must be >= 0, got {class_offset!r}")
    classes = array.shape[axis]
    given = labels = None
    if target is not None:
        given, is_labels = _checks.check_target(target, array.shape, axis)
        if not is_labels:
            raise NotImplementedError("target must hold class indices: class probabilities are not "
                                      "served for shards of classes")  # fmt: skip
        labels = np.full(given.shape, classes, np.int64)
        inside = (given >= offset) & (given < offset + classes)
        labels[inside] = given[inside].astype(np.int64) - offset
        if ignore_index is not None:
            labels[given == ignore_index] = -1
    weights = None
    if weight is not None:
        weights = np.ascontiguousarray(
            _checks.check_class_weight(
                weight, classes, array.shape[:axis] + array.shape[axis + 1 :]
            ),
            np.float64,
        )
    mask = None if where is None else _checks.check_where(where, array.shape, "logits")
    temperature = _checks.check_temperature(temperature)
    lowest, highest = _arrays.TEMPERATURES
    if not lowest <= temperature <= highest:
        raise ValueError(
            f"temperature must be in [{lowest}, {highest}] for shards, got {temperature!r}"
        )
    return _Shard(array, axis, labels, mask, weights, temperature, dtype), given


def _put_labels(states: Array, shard: _Shard, given: Array) -> None:
    """Fill in what states have of the target."""
    labels = shard.labels
    assert labels is not None
    states["labelled"], states["target"] = True, given.astype(np.int64)
    states["weight"], states["weighted"] = 1, shard.weight is not None
    if not shard.classes:
        return
    found = labels < shard.classes
    places = np.where(found, labels, 0)
    states["found"] = found

    def picked(array: Array) -> Array:
        rows = np.moveaxis(array, shard.axis, -1)
        result: Array = np.take_along_axis(rows, places[..., None], axis=-1)[..., 0]
        return result

    logit = picked(shard.logits).astype(np.float64)
    if shard.where is not None:
        logit = np.where(picked(shard.where), logit, -np.inf)
    states["logit"] = np.where(found, logit, 0)
    if shard.weight is not None:
        states["weight"] = np.where(found, shard.weight[places], 0)


def _absorb(shard: _Shard, block: tuple[slice, ...], rows: tuple[Any, ...], states: Array) -> None:
    """Fill in what the chunks of a block of rows sum up to."""
    chunks = states[rows]["chunks"]

    def numbers_of(operation: str, sums: str) -> Array:
        numbers = np.zeros((*chunks.shape, 8))
        with_labels = sums in ("others", "coefficients")
        execute.shard(
            operation,
            shard.logits[block],
            shard.labels[rows] if shard.labels is not None and with_labels else None,
            None if shard.where is None else shard.where[block],
            None, None, shard.axis, {"exported": numbers},
            shard.weight if sums == "coefficients" else None,
            # Each coefficient is then the weight.
            None, float(shard.classes) if sums == "coefficients" else 0.0,
            0.0, shard.temperature, 1.0, shard.dtype, threads_for,
        )  # fmt: skip
        return numbers

    numbers = numbers_of("softmax", "all")
    chunks["all"] = numbers[..., 3:5]
    chunks["rest"] = numbers_of("logsumexp", "rest")[..., 3:5]
    if shard.labels is not None:
        chunks["others"] = numbers_of("cross_entropy", "others")[..., 3:5]
    for k, name in enumerate(("maximum", "shift", "exponent")):
        chunks[name] = numbers[..., k]
    if shard.labels is not None and shard.where is None:
        numbers = numbers_of("dense_cross_entropy", "coefficients")
        chunks["coefficients"], chunks["spread"] = numbers[..., 5:7], numbers[..., 7]


def _find_nan(states: Array, shard: _Shard) -> None:
    """Tell which rows have a NaN; the sums of those with +inf are NaN, too."""
    states["has_nan"] = np.isnan(states["chunks"]["all"][..., 0]).any(axis=-1)
    infinite = (states["chunks"]["maximum"] == np.inf).any(axis=-1)
    if infinite.any():
        values = np.moveaxis(shard.logits, shard.axis, -1)[infinite]
        is_nan = np.isnan(values)
        if shard.where is not None:
            is_nan &= np.moveaxis(shard.where, shard.axis, -1)[infinite]
        states["has_nan"][infinite] = is_nan.any(axis=-1)


def merge(*states: Array) -> Array:
    r"""Return the states of all classes that the given states are of, together.

    Parameters
    ----------
    states : ndarray
        From :func:`row_states` or this function, all of one shape. In any order and any grouping.

    Returns
    -------
    ndarray
        A structured array, one element a row.

    Raises
    ------
    TypeError
        If there is none, or one is no array of states.
    ValueError
        If shapes, dtypes, temperatures or targets differ, or two have the class of one target.

    Notes
    -----
    The chunks of all are put side by side; the sums are merged when results are made of them.

    Examples
    --------
    >>> import numpy as np
    >>> from softce_fast import sharded
    >>> states = [sharded.row_states(np.zeros((1, n))) for n in (3, 5)]
    >>> float(np.exp(sharded.logsumexp(sharded.merge(*states))[0]).round(6))
    8.0
    """
    if not states:
        raise TypeError("merge must be given states, got none")
    first = _check_states(states[0])
    for other in states[1:]:
        _check_states(other)
        if other.shape != first.shape:
            raise ValueError(f"states must have one shape, got {first.shape} and {other.shape}")
        for name in ("dtype", "temperature", "labelled", "target"):
            if (other[name] != first[name]).any():
                raise ValueError(f"states must have the same {name}")
    if np.any(np.sum([item["found"] for item in states], axis=0) > 1):
        raise ValueError("states must be of different classes, got one target's class twice")
    counts = [item.dtype["chunks"].shape[0] for item in states]
    merged = np.zeros(first.shape, _dtype_of_states(sum(counts)))
    for name in ("dtype", "temperature", "labelled", "target"):
        merged[name] = first[name]
    for name in ("classes", "allowed"):
        merged[name] = sum(item[name] for item in states)
    for name in ("has_nan", "found", "weighted"):
        merged[name] = np.logical_or.reduce([item[name] for item in states])
    merged["weight"] = 1
    for item in states:
        for name in ("logit", "weight"):
            merged[name] = np.where(item["found"], item[name], merged[name])
    merged["chunks"] = np.concatenate([item["chunks"] for item in states], axis=-1)
    return merged


def _check_states(states: Any, shape: tuple[int, ...] | None = None) -> Array:
    """Refuse what is no array of states, or not of these rows."""
    if not isinstance(states, np.ndarray) or "chunks" not in (states.dtype.names or ()):
        raise TypeError(
            f"states must come from softce_fast.sharded.row_states, got {type(states).__name__}"
        )
    if shape is not None and states.shape != shape:
        raise ValueError(
            f"states must have the shape of logits without the class axis, {shape}, "
            f"got {states.shape}"
        )
    return states


class _Rows(NamedTuple):
    """What all rows of an array of states have in common."""

    dtype: DType
    temperature: float


def _rows_of(states: Array) -> _Rows:
    if not states.size:
        return _Rows(np.dtype(np.float64), 1.0)
    name = states["dtype"].flat[0].decode()
    if name == "bfloat16":
        import ml_dtypes

        return _Rows(np.dtype(ml_dtypes.bfloat16), float(states["temperature"].flat[0]))
    return _Rows(np.dtype(name), float(states["temperature"].flat[0]))


def _imported(states: Array, sums: str, share: float = 0.0) -> Array:
    """Return states as the kernels take them; `share`: what smoothing gives to each class."""
    chunks = states["chunks"]
    numbers = np.empty((*chunks.shape, 8))
    for k, name in enumerate(("maximum", "shift", "exponent")):
        numbers[..., k] = chunks[name]
    numbers[..., 3:5] = chunks[sums]
    numbers[..., 5:7] = chunks["coefficients"] * share
    numbers[..., 7] = chunks["spread"] * share if share else 0
    return numbers


def _finish(
    operation: str, states: Array, logit: Array, imported: dict[str, Array], result: Array,
    ignored: Array | None = None, sample_weight: Array | None = None, label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> None:  # fmt: skip
    """Write what an operation makes of states; `logit`: a class for each row that has that one."""
    rows = _rows_of(states)
    compute = _checks.compute_dtype(rows.dtype)
    labels = None if ignored is None else np.where(ignored, -1, 0)
    for slices in _row_blocks(states.shape, (), _BLOCK_ROWS):
        block: Any = (*slices, ...)
        execute.shard(
            operation, logit[block].astype(compute)[..., None],
            None if labels is None else labels[block], None, result[block], None, states.ndim,
            {name: np.array(array[block]) for name, array in imported.items()}, None,
            None if sample_weight is None else sample_weight[block], label_smoothing, z_loss,
            rows.temperature, 1.0, rows.dtype, threads_for,
        )  # fmt: skip


def logsumexp(states: Array) -> Any:
    r"""Return the logarithm of the sum of exponentials of each row.

    Parameters
    ----------
    states : ndarray
        Of all classes, merged.

    Returns
    -------
    scalar or ndarray
        One number for each row, of the dtype of the logits; float64 for integers.

    Raises
    ------
    TypeError
        If `states` is no array of states.

    Notes
    -----
    .. math:: \log \sum_i e^{x_i / T}

    Examples
    --------
    >>> import numpy as np
    >>> from softce_fast import sharded
    >>> sharded.logsumexp(sharded.row_states(np.zeros((2, 1)))).tolist()
    [0.0, 0.0]
    """
    _check_states(states)
    result = np.empty(states.shape, _rows_of(states).dtype)
    # One class, which is looked at in rows with +inf.
    flag = np.where(states["has_nan"], np.nan, 0.0)
    _finish("logsumexp", states, flag, {"imported": _imported(states, "rest")}, result)
    return _arrays.unwrapped(result)


class _Loss(NamedTuple):
    """Checked options of a loss, and what states say about its rows."""

    ignored: Array
    sample_weight: Array | None
    label_smoothing: float
    z_loss: float
    divisor: float  # of the mean; else 1
    operation: str
    imported: dict[str, Array]


def _loss_of(
    states: Array,
    sample_weight: ArrayLike | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    reduction: str,
    denominator: float | None,
    empty: str,
) -> _Loss:
    _check_states(states)
    ignore_index = _checks.check_ignore_index(ignore_index)
    smoothing = _checks.check_label_smoothing(label_smoothing)
    z_loss = _checks.check_z_loss(z_loss)
    _checks.check_reduction(reduction)
    _checks.check_empty(empty)
    given = _checks.check_denominator(denominator)
    weights = None
    if sample_weight is not None:
        weights = _checks.check_sample_weight(sample_weight, states.shape, "states")
        weights = _checks.no_wider(weights, np.dtype(np.float64))
    if not states["labelled"].all():
        raise ValueError("states must have a target: give one to row_states")
    classes = int(states["classes"].flat[0]) if states.size else 0
    if smoothing and (states["allowed"] != classes).any():
        raise NotImplementedError("label_smoothing is not served together with where for shards")
    ignored = np.asarray(states["target"] == ignore_index)
    missing = ~(states["found"] | ignored)
    if missing.any():
        _checks.raise_bad_label(states["target"], int(missing.argmax()), classes, ignore_index)
    divisor = 1.0
    if reduction == "mean":
        divisor = _divisor(states, ignored, weights) if given is None else given
    share = smoothing / classes if smoothing else 0.0
    sums, operation = ("rest", "dense_cross_entropy") if smoothing else ("others", "cross_entropy")
    imported = {"imported": _imported(states, sums, share), "label_logit": states["logit"]}
    if smoothing or states["weighted"].any():
        imported["label_weight"] = (1 - smoothing) * states["weight"]
    return _Loss(ignored, weights, smoothing, z_loss, divisor, operation, imported)


def _divisor(states: Array, ignored: Array, sample_weight: Array | None) -> float:
    weights = states["weight"]
    if sample_weight is not None:
        weights = weights * sample_weight.astype(np.float64)
    return math.fsum(weights[~ignored])


def cross_entropy(
    states: Array,
    *,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    denominator: float | None = None,
    empty: str = "nan",
) -> Any:
    r"""Return the cross-entropy of rows whose states had a target.

    Parameters
    ----------
    states : ndarray
        Of all classes, merged.
    sample_weight, ignore_index, label_smoothing, z_loss, reduction, denominator, empty
        As in :func:`softce_fast.cross_entropy`.

    Returns
    -------
    scalar or ndarray
        The reduced loss, or with ``reduction="none"`` the losses, one for each row.

    Raises
    ------
    IndexError
        If a target is in no shard, and is not `ignore_index`.
    TypeError, ValueError
        If `states` is no array of states or has no target, or an option is out of range.
    NotImplementedError
        For label smoothing where classes were excluded.

    Notes
    -----
    As :func:`softce_fast.cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> from softce_fast import sharded
    >>> states = sharded.row_states(np.array([[2.0, 1.0, 0.1]]), np.array([0]))
    >>> round(float(sharded.cross_entropy(states)), 3)
    0.417
    """
    loss = _loss_of(
        states, sample_weight, ignore_index, label_smoothing, z_loss, reduction, denominator, empty
    )
    dtype = _rows_of(states).dtype
    losses = np.empty(states.shape, dtype if reduction == "none" else np.float64)
    if states.size:
        _finish(
            loss.operation, states, states["logit"], loss.imported, losses, loss.ignored,
            loss.sample_weight, loss.label_smoothing, loss.z_loss,
        )  # fmt: skip
    losses[_without_classes(states, loss)] = np.inf
    if reduction == "none":
        return _arrays.unwrapped(losses)
    return _losses.reduced(_sum_in_lanes(losses.reshape(-1)), loss.divisor, empty, dtype)


def _without_classes(states: Array, loss: _Loss) -> Array:
    """Tell which rows count, but have no class that is allowed."""
    result: Array = (states["allowed"] == 0) & (states["classes"] > 0) & ~loss.ignored
    if loss.sample_weight is not None:
        result &= loss.sample_weight != 0
    return result


def _sum_in_lanes(losses: Array) -> float:
    """Return the sum in the order of the kernels."""
    lanes = np.zeros(8)
    whole = len(losses) // 8 * 8
    for lane in range(8):
        lanes[lane] = np.add.accumulate(losses[lane:whole:8])[-1] if whole else 0.0
    lanes[: len(losses) - whole] += losses[whole:]
    return float(np.add.accumulate(lanes)[-1])


def softmax(
    logits: ArrayLike,
    states: Array,
    axis: int = -1,
    *,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
    out: Array | None = None,
) -> Array:
    r"""Return the probabilities of some of the classes of each row.

    Parameters
    ----------
    logits : array_like, shape (..., C, ...)
        Those of the classes.
    states : ndarray
        Of all classes, merged.
    axis : int, default -1
        The class axis.
    temperature : float, default 1.0
        Divides the logits, as in :func:`row_states`.
    where : array_like of bool, optional
        Classes that are allowed, as in :func:`row_states`.
    out : ndarray, optional
        Where to put the result; see :func:`softce_fast.softmax`.

    Returns
    -------
    ndarray
        Probabilities, of the shape of `logits`.

    Raises
    ------
    AxisError, TypeError, ValueError, NotImplementedError
        As :func:`row_states`; also if `out` or `states` does not fit.

    Notes
    -----
    .. math:: S_i = \frac{\exp(x_i / T)}{\sum_j \exp(x_j / T)}

    with the sum over the classes of all shards.

    Examples
    --------
    >>> import numpy as np
    >>> from softce_fast import sharded
    >>> shards = np.zeros((1, 1)), np.zeros((1, 3))
    >>> states = sharded.merge(*(sharded.row_states(shard) for shard in shards))
    >>> sharded.softmax(shards[1], states)
    array([[0.25, 0.25, 0.25]])
    """
    return _normalized("softmax", "all", logits, states, axis, temperature, where, out)


def log_softmax(
    logits: ArrayLike,
    states: Array,
    axis: int = -1,
    *,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
    out: Array | None = None,
) -> Array:
    r"""Return the log-probabilities of some of the classes of each row.

    Parameters
    ----------
    logits, states, axis, temperature, where, out
        As in :func:`softmax`.

    Returns
    -------
    ndarray
        Log-probabilities, of the shape of `logits`.

    Raises
    ------
    AxisError, TypeError, ValueError, NotImplementedError
        As :func:`softmax`.

    Notes
    -----
    .. math:: \log S_i = (x_i - m) / T - \log \sum_j \exp((x_j - m) / T), \quad m = \max_j x_j

    with maximum and sum over the classes of all shards.

    Examples
    --------
    >>> import numpy as np
    >>> from softce_fast import sharded
    >>> logits = np.zeros((1, 2))
    >>> sharded.log_softmax(logits, sharded.row_states(logits)).round(3)
    array([[-0.693, -0.693]])
    """
    return _normalized("log_softmax", "rest", logits, states, axis, temperature, where, out)


def _normalized(
    operation: str,
    sums: str,
    logits: ArrayLike,
    states: Array,
    axis: int,
    temperature: float,
    where: ArrayLike | None,
    out: Array | None,
) -> Array:
    shard, _ = _checked(
        logits, None, axis, class_offset=0, weight=None, temperature=temperature, where=where
    )
    _check_states(states, shard.row_shape)
    if out is not None:
        _checks.check_out(out, shard.logits.shape, shard.dtype)
    result = _arrays.output(out, "out", shard.logits.shape, shard.dtype, shard.logits, shard.where)
    _emit(operation, shard, {"imported": _imported(states, sums)}, result)
    return result


def _emit(
    operation: str,
    shard: _Shard,
    imported: dict[str, Array],
    result: Array,
    sample_weight: Array | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    scale: float = 1.0,
) -> None:
    """Write what an operation makes of the logits and the states of their rows."""
    if not result.size:
        return
    for block, rows in shard.blocks():
        execute.shard(
            operation, shard.logits[block], None if shard.labels is None else shard.labels[rows],
            None if shard.where is None else shard.where[block], None, result[block], shard.axis,
            {name: np.array(array[rows]) for name, array in imported.items()},
            shard.weight if label_smoothing else None,
            None if sample_weight is None else sample_weight[rows], label_smoothing, z_loss,
            shard.temperature, scale, shard.dtype, threads_for,
        )  # fmt: skip


def cross_entropy_grad(
    logits: ArrayLike,
    target: ArrayLike,
    states: Array,
    axis: int = -1,
    *,
    class_offset: int = 0,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
    reduction: str = "mean",
    denominator: float | None = None,
    empty: str = "nan",
    grad_out: Array | None = None,
) -> Array:
    r"""Return the gradient of the cross-entropy by some of the classes' logits.

    Parameters
    ----------
    logits, target
        As given to :func:`row_states`.
    states : ndarray
        Of all classes, merged.
    axis, class_offset, weight
        As given to :func:`row_states`.
    sample_weight, ignore_index, label_smoothing, z_loss
        As in :func:`cross_entropy`.
    temperature, where
        As given to :func:`row_states`.
    reduction, denominator, empty
        As in :func:`cross_entropy`.
    grad_out : ndarray, optional
        Where to put the gradient; see :func:`softce_fast.cross_entropy_with_grad`.

    Returns
    -------
    ndarray
        Gradient of the reduced loss, of the shape of `logits`; for ``reduction="none"`` that of the
        sum of the losses.

    Raises
    ------
    IndexError, AxisError, TypeError, ValueError, NotImplementedError
        As :func:`row_states` and :func:`cross_entropy`; also if `grad_out` or `states` does not
        fit. Nothing has been written then.

    Notes
    -----
    As :func:`softce_fast.cross_entropy_with_grad`.

    Examples
    --------
    >>> import numpy as np
    >>> from softce_fast import sharded
    >>> logits, target = np.array([[2.0, 1.0, 0.1]]), np.array([0])
    >>> states = sharded.row_states(logits, target)
    >>> sharded.cross_entropy_grad(logits, target, states).round(3)
    array([[-0.341,  0.242,  0.099]])
    """
    shard, given = _checked(
        logits, target, axis, class_offset=class_offset, weight=weight, temperature=temperature,
        where=where, ignore_index=_checks.check_ignore_index(ignore_index),
    )  # fmt: skip
    _check_states(states, shard.row_shape)
    loss = _loss_of(
        states, sample_weight, ignore_index, label_smoothing, z_loss, reduction, denominator, empty
    )
    assert given is not None
    if (states["target"] != given.astype(np.int64)).any():
        raise ValueError("target must be that of the states")
    if grad_out is not None:
        _checks.check_out(grad_out, shard.logits.shape, shard.dtype, "grad_out")
    result = _arrays.output(
        grad_out, "grad_out", shard.logits.shape, shard.dtype, shard.logits, shard.labels,
        shard.where, shard.weight, loss.sample_weight,
    )  # fmt: skip
    smoothing = loss.label_smoothing
    if smoothing:
        # The kernels divide by the number of classes at hand.
        smoothing *= shard.classes / int(states["classes"].flat[0])
    scale = 1.0 if loss.divisor == 0 else 1 / loss.divisor
    _emit(
        loss.operation, shard, loss.imported, result, loss.sample_weight, smoothing, loss.z_loss,
        scale,
    )  # fmt: skip
    rows = np.moveaxis(result, shard.axis, -1)
    if loss.divisor == 0 and empty == "nan":
        with np.errstate(all="ignore"):
            rows[~loss.ignored] /= rows.dtype.type(loss.divisor)
    rows[_without_classes(states, loss)] = 0
    return result
