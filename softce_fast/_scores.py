"""Scores of a target among the classes of its row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import _arrays, _checks, reference
from ._checks import ScoreArguments
from ._kernels import execute
from ._threads import threads_for
from .reference import TargetScores

Array = NDArray[Any]
DType = np.dtype[Any]


def target_scores(
    logits: ArrayLike,
    target: ArrayLike,
    axis: int = -1,
    *,
    top_k: int = 0,
    entropy: bool = False,
    ties: str = "first",
    ignore_index: int = -100,
    temperature: float = 1.0,
    softcap: float | None = None,
    where: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> TargetScores:
    r"""Return how a target does among the classes of its row, in one pass over the logits.

    Parameters
    ----------
    logits : array_like, shape (..., C, ...)
        Unnormalised log-probabilities, of any real dtype and any strides.
    target : array_like
        Class indices: integers of the shape of `logits` without the class axis.
    axis : int, default -1
        The class axis.
    top_k : int, default 0
        How many of the most probable classes are wanted, at most C.
    entropy : bool, default False
        Whether the entropy is wanted.
    ties : {"first", "min", "max"}, default "first"
        Which of the logits that equal the target's count as above it: those of a lower index, so
        that rank 0 means that the target is the argmax; none; or all others.
    ignore_index : int, default -100
        Target of rows that have none: log_prob is 0 there and rank -1.
    temperature : float, default 1.0
        Divides the logits. Finite and above 0.
    softcap : float, optional
        Makes ``softcap * tanh(logits / softcap)`` of the logits, before `temperature` divides
        them, for all that is no comparison. Finite and above 0.
    where : array_like of bool, optional
        Classes that are allowed; broadcast to the shape of `logits`. The result is that of rows
        without the others, and a target among these has log_prob -inf and rank -1.
    dtype : dtype, optional
        Floating type of the result. By default that of `logits`; float64 for booleans and
        integers. It is computed in the wider of the two, half types in float32.

    Returns
    -------
    log_prob : ndarray
        The logarithm of the target's probability. This and what follows are the fields of a named
        tuple, `TargetScores`, and have the shape of `target`; scalars where that has no axes.
    rank : ndarray of int64
        How many logits are above that of the target. Accuracy is the mean of ``rank == 0``, top-5
        accuracy that of ``rank < 5``.
    argmax : ndarray of int64
        The class of the largest logit, the first if there are several.
    logsumexp : ndarray
        The logarithm of the sum of the exponentials.
    entropy : ndarray or None
        That of the row's distribution, in nats.
    top_indices : ndarray of int64, shape (..., top_k), or None
        The classes of the largest logits, in descending order, equal ones by index; -1 where there
        are not so many that are allowed.
    top_log_probs : ndarray, shape (..., top_k), or None
        The logarithms of their probabilities.

    Raises
    ------
    IndexError
        If a label is below 0 or not below C, and is not `ignore_index`.
    AxisError
        If `axis` is out of range.
    TypeError
        If `logits` is complex, masked or not numeric, or the target holds no class indices.
    ValueError
        If a shape does not fit, an option is out of range, or `top_k` is above C.

    See Also
    --------
    cross_entropy : The loss, which is minus log_prob.

    Notes
    -----
    .. math:: \log q_y, \quad \log \sum_i e^{z_i}, \quad
       -\sum_i q_i \log q_i = \log(1 + s) + \frac{\sum_i e^{z_i - m} (m - z_i)}{1 + s}

    with :math:`q = \mathrm{softmax}(z)`, :math:`z = x / T`, :math:`m` the largest of them and
    :math:`s` the sum of :math:`e^{z_i - m}` over the others. So the entropy of a confident row
    keeps its digits. Logits are compared as they are given, before the temperature. A row
    with NaN or +inf, or without a finite logit, has NaN for log_prob, entropy and top_log_probs and
    -1 for rank and indices.

    Examples
    --------
    >>> import numpy as np
    >>> import softce_fast as sf
    >>> logits = np.array([[2.0, 1.0, 0.1], [0.5, 3.0, 1.0]])
    >>> scores = sf.target_scores(logits, np.array([1, 1]), top_k=2)
    >>> scores.rank
    array([1, 0])
    >>> scores.top_indices
    array([[0, 1],
           [1, 2]])
    >>> round(float(np.exp(-scores.log_prob.mean())), 3)  # the perplexity
    2.241
    """
    call = _checks.check_scores(
        logits, target, axis, top_k=top_k, entropy=entropy, ties=ties, ignore_index=ignore_index,
        temperature=temperature, softcap=softcap, where=where, dtype=dtype,
    )  # fmt: skip
    return scores(call)


def scores(call: ScoreArguments) -> TargetScores:
    """Return the scores of a checked call."""
    if _arrays.left_to_numpy(call.logits, call.dtype, call.temperature, call.softcap):
        return reference.scores(call)
    found = empty_scores(call.labels.shape, call)
    into(call, found)
    return TargetScores._make(
        None if array is None else _arrays.unwrapped(array) for array in found
    )


def empty_scores(shape: tuple[int, ...], call: ScoreArguments) -> TargetScores:
    """Return arrays for the scores of rows of a shape."""
    top = (*shape, call.top_k)
    return TargetScores(
        np.empty(shape, call.dtype),
        np.empty(shape, np.int64),
        np.empty(shape, np.int64),
        np.empty(shape, call.dtype),
        np.empty(shape, call.dtype) if call.entropy else None,
        np.empty(top, np.int64) if call.top_k else None,
        np.empty(top, call.dtype) if call.top_k else None,
    )


def delivered(found: TargetScores, shape: tuple[int, ...], dtype: DType) -> TargetScores:
    """Return scores of rows one after the other in the shape of these, and in a dtype."""

    def of_shape(array: Array | None) -> Array | None:
        if array is None:
            return None
        result = array.reshape((*shape, *array.shape[1:]))
        return _arrays.deliver(result, result.dtype if result.dtype.kind == "i" else dtype)

    return TargetScores._make(map(of_shape, found))


def into(call: ScoreArguments, found: TargetScores) -> None:
    """Write the scores to contiguous arrays."""
    results: dict[str, Any] = {
        name: array for name, array in found._asdict().items() if array is not None
    }
    if call.softcap is not None:
        # Capped logits may be equal where those that were given are not: these are compared first.
        into(call._replace(softcap=None), found)
        results |= {
            name: np.empty_like(results[name])
            for name in ("rank", "argmax", "top_indices")
            if name in results
        }
    if not execute.scores(
        call.logits, call.labels, call.where, results, call.axis, call.top_k,
        _checks.TIES.index(call.ties), call.temperature, call.softcap or 0.0, call.ignore_index,
        threads_for,
    ):  # fmt: skip
        _checks.check_labels(call.labels, call.logits.shape[call.axis], call.ignore_index)
        raise IndexError("target was changed during the call, and held a label that is no class")
