"""Classes shared out over arrays, processes or machines.

Each has some of the classes of every row. What it finds out about them, its row states, is small:
64 bytes a row, and for each :data:`SPLIT` classes 56 more, with a target 104, twice that of half
types. States that are merged say all about a row that its logsumexp, loss, probabilities and
gradient need:

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
# these (and what each lost by rounding) of all classes, and without the largest; with a target also
# without the label, and the sum of class weights without the largest one's own (in two), that one,
# and what these make of logits. As the kernels take it: see SHARD_NUMBERS.
_OF_CHUNK = [("maximum", "f8"), ("reference", "f8", 2), ("all", "f8", 2), ("rest", "f8", 2)]
_OF_TARGET = [("others", "f8", 2), ("weights", "f8", 2), ("own", "f8"), ("spread", "f8")]
_NOTHING = (-np.inf, (0, -48), (0, 0), (0, 0)), ((0, 0), (0, 0), 0, 0)  # the same of no logit
# How far from 1 the exponents of coefficients may lie that float32 holds.
_WIDEST = 60


def _sums(dtype: np.dtype[Any], labelled: bool, chunks: int) -> list[Any]:
    """Return what states say about chunks, of half types that have a target with all digits too."""
    names = ("chunks", "more_digits") if dtype.itemsize == 2 and labelled else ("chunks",)
    chunk = np.dtype(_OF_CHUNK + _OF_TARGET if labelled else _OF_CHUNK)
    return [(name, chunk, (chunks,)) for name in names]


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
    labelled = call.target is not None
    sums = _sums(call.dtype, labelled, max(1, -(-call.classes // SPLIT)))
    nothing = np.array(_NOTHING[0] + _NOTHING[1] * labelled, sums[0][1])
    states = _row_states.opened(call, sums, **{name: nothing for name, *_ in sums})
    if call.logits.size and _absorb(call, states.reshape(-1)):
        _find_nan(states, call)
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


def _absorb(call: ShardArguments, rows: Array) -> bool:
    """Fill in what the chunks sum up to, in one read but of half types that have a target.

    Tell whether a sum is NaN.
    """
    any_nan = False
    labels = None if call.target is None else call.labels()
    sums = _name_of_sums(rows)
    if labels is None or sums != "chunks":
        any_nan = _Task("logsumexp", rows, "chunks").run(call, labels, where=call.where)
    if labels is not None:
        # With a mask the kernels sum row by row; each coefficient is the weight.
        where = call.where
        if where is None and call.weight is not None:
            where = np.broadcast_to(True, call.logits.shape)
        task = _Task("dense_cross_entropy", rows, sums, label_smoothing=1.0)
        any_nan = task.run(call, labels, where=where, class_weight=call.weight)
    return any_nan


def _find_nan(states: Array, call: ShardArguments) -> None:
    """Tell rows that have a NaN from those with +inf, whose sums are NaN, too."""
    infinite = (states["chunks"]["maximum"] == np.inf).any(axis=-1)
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
    states = _row_states.check_mergeable(states, "chunks")
    fields = states[0].dtype
    chunks = sum(item["chunks"].shape[-1] for item in states)
    names = [name for name in ("chunks", "more_digits") if name in (fields.names or ())]
    sums = [(name, fields[name].base, (chunks,)) for name in names]
    return _row_states.merged(states, sums, tuple(names))


def _name_of_sums(states: Array) -> str:
    """Return the name of the sums that have all digits."""
    return "more_digits" if "more_digits" in (states.dtype.names or ()) else "chunks"


class _Task(NamedTuple):
    """What the kernels make of states, and are told besides."""

    operation: str
    states: Array
    sums: str  # which of them
    sample_weight: Array | None = None
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    power: int = 0  # of two, that results are multiplied by
    class_power: int = 0  # the part of it that was taken out of class weights
    weighs_label: bool = False
    divisor: float = 1.0  # of the results
    is_wide: bool = False  # float32 cannot hold its coefficients

    def run(
        self, call: ShardArguments, labels: Array | None, *, where: Array | None = None,
        class_weight: Array | None = None, result: Array | None = None,
        output: Array | None = None,
    ) -> bool:  # fmt: skip
        """Write results or output; without these to the states, and tell if any sum is NaN."""
        return execute.shard(
            self.operation, call.logits, labels, where, result, output, call.axis,
            self.states.reshape(-1), self.sums, class_weight, self.sample_weight,
            self.label_smoothing, self.z_loss, call.temperature, call.softcap or 0.0,
            1.0 if self.divisor == 0 or output is None else self.divisor, self.power,
            self.class_power, self.weighs_label,
            np.dtype(np.float64) if self.is_wide else call.dtype, threads_for,
        )  # fmt: skip

    def finish(self, result: Array, ignored: Array | None = None) -> None:
        """Write what becomes of the states alone."""
        states = self.states
        if not states.size:
            return
        options = _row_states.rows_of(states)
        # One class, which is looked at in rows with +inf; a label is that one.
        flag = np.where(states["has_nan"], np.nan, 0.0)
        flag = flag.astype(_checks.compute_dtype(options.dtype))[..., None]
        labels = None if ignored is None else np.where(ignored, -1, 0)
        call = ShardArguments(
            flag, states.ndim, None, 0, None, options.temperature, options.softcap, None,
            options.dtype,
        )  # fmt: skip
        self.run(call, labels, result=result)

    def emit(self, call: ShardArguments, labels: Array | None, output: Array) -> None:
        """Write what becomes of the logits."""
        if not output.size:
            return
        where, weight = call.where, None
        if self.label_smoothing:
            allowed = self.states["allowed"]
            if where is None and (allowed != allowed.flat[0]).any():
                # With a mask, what each class is given is that of its row.
                where = np.broadcast_to(True, output.shape)
            weight = None if call.weight is None else np.ldexp(call.weight, -self.class_power)
        self.run(call, labels, where=where, class_weight=weight, output=output)


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
    states = _row_states.check(states, "chunks")
    result = np.empty(states.shape, _row_states.rows_of(states).dtype)
    _Task("logsumexp", states, "chunks").finish(result)
    return _arrays.unwrapped(result)


def _balanced(loss: Loss, class_weights: Array | None) -> tuple[Loss, _losses.Powers]:
    """Return a loss without the powers of two that leave its weights around 1.

    `class_weights`: sums of those of all classes, where these have a part in the loss.
    """
    weights, sample_weight = loss.label_weight, loss.sample_weight
    of_classes = None
    if loss.weighted:
        of_classes = weights if class_weights is None else np.append(weights, class_weights)
    powers = _losses.balance(of_classes, sample_weight, loss.z_loss)
    if powers.moderate:
        return loss, powers
    if loss.reduction == "mean" and loss.denominator is None:
        powers = _losses.divided(powers, ~loss.ignored, weights, sample_weight)
    left, sample_weight, z_loss = powers.taken_out_of(weights, sample_weight, loss.z_loss)
    assert left is not None
    loss = loss._replace(label_weight=left, sample_weight=sample_weight, z_loss=z_loss)
    return loss, powers


def _task_of(states: Array, loss: Loss) -> tuple[_Task, _losses.Powers]:
    """Return how the kernels compute a loss, or what is to be right of each of its rows."""
    smoothing, sums = loss.label_smoothing, _name_of_sums(states)
    class_weights, is_wide = None, False
    if smoothing:
        class_weights = states[sums]["weights"].sum(axis=-1) + states[sums]["own"]
    loss, powers = _balanced(loss, class_weights)
    of_row, _, in_divisor = powers.factors(labelled=True)
    if class_weights is not None:
        share = np.ldexp(loss.share(), -powers.of_class)
        sizes = np.abs(class_weights) * share[..., None]
        is_wide = bool(((sizes != 0) & (np.abs(np.frexp(sizes)[1]) > _WIDEST)).any())
    weighs_label = bool(smoothing) or loss.weighted
    if not (weighs_label or loss.sample_weight is not None or loss.z_loss):
        sums = "chunks"  # of half types: few digits will do
    task = _Task(
        "dense_cross_entropy" if smoothing else "cross_entropy", states, sums, loss.sample_weight,
        smoothing, loss.z_loss, of_row, powers.of_class, weighs_label, loss.divisor(in_divisor),
        is_wide,
    )  # fmt: skip
    return task, powers


def _losses_of(task: _Task, loss: Loss, dtype: Any) -> Array:
    """Return the losses of the rows."""
    losses = np.empty(task.states.shape, dtype)
    task.finish(losses, loss.ignored)
    if loss.excluded.any():
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
    states = _row_states.check(states, "chunks")
    loss = _row_states.loss_of(
        states, None, sample_weight, ignore_index, label_smoothing, z_loss, reduction,
        denominator, empty,
    )  # fmt: skip
    task, powers = _task_of(states, loss)
    dtype = _row_states.rows_of(states).dtype
    if reduction == "none":
        return _arrays.unwrapped(_losses_of(task, loss, dtype))

    def summed(power: int) -> float:
        return _sum_of_losses(task._replace(power=power), loss)

    return powers.reduced(summed(0), task.divisor, summed).scalar(empty, dtype)


def _sum_of_losses(task: _Task, loss: Loss) -> float:
    return _sum_in_lanes(_losses_of(task, loss, np.float64).reshape(-1))


@np.errstate(over="ignore", invalid="ignore")
def _sum_in_lanes(losses: Array) -> float:
    """Return the sum in the order of the kernels, and as silently."""
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
    states = _row_states.check(states, "chunks", call)
    if out is not None:
        _checks.check_out(out, call.logits.shape, call.dtype)
    result = _arrays.output(out, "out", call.logits.shape, call.dtype, call.logits, call.where)
    _Task(operation, states, "chunks").emit(call, None, result)
    return result


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
    states = _row_states.check(states, "chunks", call)
    loss = _row_states.loss_of(
        states, call.target, sample_weight, ignore_index, label_smoothing, z_loss, reduction,
        denominator, empty,
    )  # fmt: skip
    if grad_out is not None:
        _checks.check_out(grad_out, call.logits.shape, call.dtype, "grad_out")
    result = _arrays.output(
        grad_out, "grad_out", call.logits.shape, call.dtype, call.logits, call.target, call.where,
        call.weight, loss.sample_weight,
    )  # fmt: skip
    task, _ = _task_of(states, loss)
    task.emit(call, np.where(loss.ignored, -1, call.labels()), result)
    if task.divisor == 0:
        reduced = _losses.Reduced(_sum_of_losses(task, loss), task.divisor)
        _losses.divide_by_zero(result, call.axis, reduced, empty, loss.taken_out(), call.where)
    if loss.excluded.any():
        np.moveaxis(result, call.axis, -1)[loss.excluded] = 0
    return result
