"""Classes shared out over arrays, processes or machines.

Each has some of the classes of every row. What it finds out about them, its row states, is small:
104 bytes for each :data:`SPLIT` classes of a row, twice that of half types. States that are merged
say all about a row that its logsumexp, loss, probabilities and gradient need:

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

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _arrays, _checks, _losses, _row_states
from ._checks import ShardArguments
from ._kernels import execute
from ._row_states import Loss
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

#: Shards that begin at multiples of so many classes keep the bits of the undivided call.
SPLIT = execute.SPLIT

# Of a chunk of classes: the largest logit, and the point that exponentials are relative to; sums of
# these (and what each lost by rounding) of all classes, without the largest, and without the label;
# that of class weights without the largest one's own (in two), that one, and what these make of
# logits. As the kernels take it: see SHARD_NUMBERS.
_CHUNK = np.dtype(
    [
        ("maximum", "f8"), ("reference", "f8", 2), ("all", "f8", 2), ("rest", "f8", 2),
        ("others", "f8", 2), ("weights", "f8", 2), ("own", "f8"), ("spread", "f8"),
    ]
)  # fmt: skip
_BYTES = np.dtype(f"V{_CHUNK.itemsize}")  # which are copied as a whole
# The same of no logit.
_NOTHING = np.array((-np.inf, (0, -48), (0, 0), (0, 0), (0, 0), (0, 0), 0, 0), _CHUNK)
# How far from 1 the exponents of coefficients may lie that float32 holds.
_WIDEST = 60


def _sums(dtype: np.dtype[Any], chunks: int) -> list[Any]:
    """Return what states say about chunks, of half types with all digits as well."""
    names = ("chunks", "more_digits") if dtype.itemsize == 2 else ("chunks",)
    return [("has_nan", "?"), *((name, _CHUNK, (chunks,)) for name in names)]


def row_states(
    logits: ArrayLike,
    target: ArrayLike | None = None,
    axis: int = -1,
    *,
    class_offset: int = 0,
    weight: ArrayLike | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
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
    softcap : float, optional
        Makes ``softcap * tanh(logits / softcap)`` of the logits before that. Finite and above 0.
        The same in all calls.
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
        If `target` holds class probabilities, the logits are of longdouble, or `temperature` or
        `softcap` is beyond 1e±200 or 1e±100.

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
    call = _served(
        _checks.check_shard(
            logits, target, axis, class_offset=class_offset, weight=weight,
            temperature=temperature, softcap=softcap, where=where,
        )
    )  # fmt: skip
    sums = _sums(call.dtype, max(1, -(-call.classes // SPLIT)))
    states = _row_states.opened(call, sums)
    if call.logits.size:
        _absorb(call, states)
        _find_nan(states, call)
    else:
        for name, *_ in sums[1:]:
            states[name] = _NOTHING
    return states


def _served(call: ShardArguments) -> ShardArguments:
    """Refuse what the kernels do not serve."""
    for name, option in (
        ("temperature", (call.temperature, None)), ("softcap", (1.0, call.softcap)),
    ):  # fmt: skip
        if _arrays.out_of_range(*option):
            raise NotImplementedError(
                f"{name} must not be as extreme as {getattr(call, name)!r} for shards of classes"
            )
    return call


def _absorb(call: ShardArguments, states: Array) -> None:
    """Fill in what the chunks sum up to, in one read but of half types that have a target."""
    labels = None if call.target is None else call.labels()
    is_half = call.dtype.itemsize == 2
    rows = states.reshape(-1)
    if is_half or labels is None:
        _export("logsumexp", call, labels, {"exported": rows["chunks"]}, call.where)
    if labels is None:
        return
    chunks = rows["more_digits" if is_half else "chunks"]
    if call.where is None and call.weight is None:
        _export("dense_cross_entropy", call, labels, {"exported": chunks}, None)
        chunks["weights"][..., 0] -= 1
        chunks["own"] = 1
    else:
        # With a mask the kernels sum row by row; each coefficient is the weight.
        where = np.broadcast_to(True, call.logits.shape) if call.where is None else call.where
        known = {"exported": chunks, "share": np.ones(call.row_shape)}
        _export("dense_cross_entropy", call, labels, known, where)


def _export(
    operation: str, call: ShardArguments, labels: Array | None, states: dict[str, Any],
    where: Array | None,
) -> None:  # fmt: skip
    is_dense = operation == "dense_cross_entropy"
    execute.shard(
        operation, call.logits, labels, where, None, None, call.axis, states,
        call.weight if is_dense else None, None, float(is_dense), 0.0, call.temperature,
        call.softcap or 0.0, 1.0, 0, call.dtype, threads_for,
    )  # fmt: skip


def _find_nan(states: Array, call: ShardArguments) -> None:
    """Tell which rows have a NaN; the sums of those with +inf are NaN, too."""
    states["has_nan"] = np.isnan(states["chunks"]["all"][..., 0]).any(axis=-1)
    infinite = (states["chunks"]["maximum"] == np.inf).any(axis=-1)
    if infinite.any():
        is_nan = np.isnan(np.moveaxis(call.logits, call.axis, -1)[infinite])
        if call.where is not None:
            is_nan &= np.moveaxis(call.where, call.axis, -1)[infinite]
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
        If shapes, dtypes, temperatures, soft caps or targets differ, or two have the class of one
        target.

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
    _row_states.check_mergeable(states, "chunks")
    dtype = _row_states.rows_of(states[0]).dtype
    sums = _sums(dtype, sum(item["chunks"].shape[-1] for item in states))
    merged = _row_states.merged(states, sums)
    merged["has_nan"] = np.logical_or.reduce([item["has_nan"] for item in states])
    for name, *_ in sums[1:]:
        chunks = [item[name].astype(_CHUNK, copy=False).view(_BYTES) for item in states]
        np.concatenate(chunks, axis=-1, out=merged[name].view(_BYTES))
    return merged


def _name_of_sums(states: Array) -> str:
    """Return the name of the sums that have all digits."""
    return "more_digits" if "more_digits" in (states.dtype.names or ()) else "chunks"


def _chunks(states: Array, is_rough: bool, class_power: int = 0) -> Array:
    """Return the chunks of the rows as the kernels take them.

    Those of half types with few digits, if they are enough. `class_power`: what is to be taken out
    of the sums of class weights.
    """
    name = "chunks" if is_rough else _name_of_sums(states)
    chunks: Array = states.reshape(-1)[name].astype(_CHUNK, copy=False)
    if class_power:
        chunks = chunks.copy()
        for name in ("weights", "own", "spread"):
            chunks[name] = np.ldexp(chunks[name], -class_power)
    return chunks


class _Task(NamedTuple):
    """What the kernels make of states, and are told besides."""

    operation: str
    states: dict[str, Any]
    sample_weight: Array | None = None
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    power: int = 0  # of two, that results are multiplied by
    class_power: int = 0  # the part of it that was taken out of class weights
    divisor: float = 1.0  # of the results
    is_wide: bool = False  # float32 cannot hold its coefficients

    def run(
        self, logits: Array, labels: Array | None, where: Array | None, result: Array | None,
        output: Array | None, axis: int, class_weight: Array | None, options: _row_states.Rows,
    ) -> None:  # fmt: skip
        """Write results and output."""
        execute.shard(
            self.operation, logits, labels, where, result, output, axis, self.states, class_weight,
            self.sample_weight, self.label_smoothing, self.z_loss, options.temperature,
            options.softcap or 0.0, 1.0 if self.divisor == 0 or output is None else self.divisor,
            self.power, np.dtype(np.float64) if self.is_wide else options.dtype, threads_for,
        )  # fmt: skip


def _finish(task: _Task, states: Array, result: Array, ignored: Array | None = None) -> None:
    """Write what a task makes of states."""
    if not states.size:
        return
    options = _row_states.rows_of(states)
    # One class, which is looked at in rows with +inf; a label is that one.
    flag = np.where(states["has_nan"], np.nan, 0.0)
    flag = flag.astype(_checks.compute_dtype(options.dtype))[..., None]
    labels = None if ignored is None else np.where(ignored, -1, 0)
    task.run(flag, labels, None, result, None, states.ndim, None, options)


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
    _row_states.check(states, "chunks")
    result = np.empty(states.shape, _row_states.rows_of(states).dtype)
    _finish(_Task("logsumexp", {"imported": _chunks(states, True)}), states, result)
    return _arrays.unwrapped(result)


def _task_of(states: Array, loss: Loss) -> _Task:
    """Return how the kernels compute a loss; powers of two are taken out of extreme weights."""
    smoothing = loss.label_smoothing
    chunks = states[_name_of_sums(states)]
    weights = None
    if states["weighted"].any():
        weights = states["weight"]
        if smoothing:
            weights = np.append(weights, chunks["weights"].sum(axis=-1) + chunks["own"])
    class_power, sample_power = _losses.extreme_powers(
        weights, loss.sample_weight, loss.z_loss, loss.reduction
    )
    power = class_power + sample_power
    loss = loss._replace(
        label_weight=np.ldexp(loss.label_weight, -class_power),
        z_loss=math.ldexp(loss.z_loss, -class_power),
    )
    if sample_power and loss.sample_weight is not None:
        scaled = np.ldexp(loss.sample_weight.astype(np.float64), -sample_power)
        loss = loss._replace(sample_weight=np.asarray(scaled))
    if loss.reduction == "mean" and loss.denominator is None:
        power = 0  # the divisor has lost it, too
    is_rough = not (
        smoothing or weights is not None or loss.sample_weight is not None or loss.z_loss
    )
    is_wide = False
    if smoothing:
        share = np.ldexp(loss.share, -class_power)
        sizes = np.abs(chunks["weights"].sum(axis=-1) + chunks["own"]) * share[..., None]
        is_wide = bool(((sizes != 0) & (np.abs(np.frexp(sizes)[1]) > _WIDEST)).any())
    imported = {
        "imported": _chunks(states, is_rough, class_power if smoothing else 0),
        "label_logit": np.array(states["logit"], np.float64, order="C"),
        "share": np.array(loss.share, order="C"),
        "even": loss.share.flat[0] if states.size else 1.0,
    }
    if smoothing or weights is not None:
        imported["label_weight"] = loss.label_part().copy(order="C")
    return _Task(
        "dense_cross_entropy" if smoothing else "cross_entropy", imported, loss.sample_weight,
        smoothing, loss.z_loss, power, class_power, loss.divisor(), is_wide,
    )  # fmt: skip


def _losses_of(states: Array, loss: Loss, task: _Task, dtype: Any) -> Array:
    """Return the losses of the rows."""
    losses = np.empty(states.shape, dtype)
    _finish(task, states, losses, loss.ignored)
    weights = 1.0 if loss.sample_weight is None else loss.sample_weight[loss.excluded]
    losses[loss.excluded] = np.copysign(np.inf, weights)
    return losses


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
    _row_states.check(states, "chunks")
    loss = _row_states.loss_of(
        states, sample_weight, ignore_index, label_smoothing, z_loss, reduction, denominator, empty
    )
    task = _task_of(states, loss)
    dtype = _row_states.rows_of(states).dtype
    if reduction == "none":
        return _arrays.unwrapped(_losses_of(states, loss, task, dtype))
    total = _sum_in_lanes(_losses_of(states, loss, task, np.float64).reshape(-1))
    return _losses.reduced(total, task.divisor, empty, dtype)


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
    softcap: float | None = None,
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
    temperature, softcap, where
        As given to :func:`row_states`.
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
    options: dict[str, Any] = {"temperature": temperature, "softcap": softcap, "where": where}
    return _normalized("softmax", logits, states, axis, out, options)


def log_softmax(
    logits: ArrayLike,
    states: Array,
    axis: int = -1,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    where: ArrayLike | None = None,
    out: Array | None = None,
) -> Array:
    r"""Return the log-probabilities of some of the classes of each row.

    Parameters
    ----------
    logits, states, axis, temperature, softcap, where, out
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
    options: dict[str, Any] = {"temperature": temperature, "softcap": softcap, "where": where}
    return _normalized("log_softmax", logits, states, axis, out, options)


def _normalized(
    operation: str,
    logits: ArrayLike,
    states: Array,
    axis: int,
    out: Array | None,
    options: dict[str, Any],
) -> Array:
    call = _served(_checks.check_shard(logits, None, axis, **options))
    _row_states.check(states, "chunks", call)
    if out is not None:
        _checks.check_out(out, call.logits.shape, call.dtype)
    result = _arrays.output(out, "out", call.logits.shape, call.dtype, call.logits, call.where)
    _emit(_Task(operation, {"imported": _chunks(states, True)}), call, None, result)
    return result


def _emit(task: _Task, call: ShardArguments, labels: Array | None, result: Array) -> None:
    """Write what a task makes of the logits and the states of their rows."""
    if not result.size:
        return
    where, weight = call.where, None
    if task.label_smoothing:
        if where is None and (task.states["share"] != task.states["even"]).any():
            # With a mask, what each class is given is that of its row.
            where = np.broadcast_to(True, result.shape)
        weight = None if call.weight is None else np.ldexp(call.weight, -task.class_power)
    options = _row_states.Rows(call.dtype, call.temperature, call.softcap)
    task.run(call.logits, labels, where, None, result, call.axis, weight, options)


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
    softcap: float | None = None,
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
    temperature, softcap, where
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
    call = _served(
        _checks.check_shard(
            logits, target, axis, class_offset=class_offset, weight=weight,
            temperature=temperature, softcap=softcap, where=where,
        )
    )  # fmt: skip
    _row_states.check(states, "chunks", call)
    loss = _row_states.loss_of(
        states, sample_weight, ignore_index, label_smoothing, z_loss, reduction, denominator, empty
    )
    if grad_out is not None:
        _checks.check_out(grad_out, call.logits.shape, call.dtype, "grad_out")
    result = _arrays.output(
        grad_out, "grad_out", call.logits.shape, call.dtype, call.logits, call.target, call.where,
        call.weight, loss.sample_weight,
    )  # fmt: skip
    task = _task_of(states, loss)
    _emit(task, call, np.where(loss.ignored, -1, call.labels()), result)
    if task.divisor == 0:
        total = _sum_in_lanes(_losses_of(states, loss, task, np.float64).reshape(-1))
        _losses.divide_by_zero(
            result, call.axis, total, task.divisor, empty, loss.taken_out(), call.where
        )
    np.moveaxis(result, call.axis, -1)[loss.excluded] = 0
    return result
