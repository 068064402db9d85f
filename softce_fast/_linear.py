"""Cross-entropy from hidden states and a class matrix, the logits never whole in memory.

A block of rows at a time: its logits come from a product by NumPy's BLAS, the gradient takes their
place in one fused pass, and two more products bring it to the hidden states and the class matrix.
All works in one buffer (:class:`_Buffers`), as large as `memory` allows. Rows that do not count are
left out before the first product. Of hidden states and matrix, what BLAS cannot take as it is goes
into the buffer piece by piece: another dtype, odd strides, rows with others between them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import _arrays, _checks, _fresh_outputs, _losses, _scores, reference
from ._checks import LinearArrays
from .reference import LinearGrads, TargetScores

Array = NDArray[Any]
DType = np.dtype[Any]
Rows = slice | NDArray[np.intp]

MEMORY = 256 * 2**20
# Rows of a block, at most; so many are looked at for the next ones that count.
MOST_ROWS = 1 << 16
# Logits of a block, at most, if it has FEW_ROWS: with more of either nothing becomes faster.
BLOCK_SIZE = 1 << 24
FEW_ROWS = 1024
# Bytes of the part of the class matrix, or its gradient, that is worked on at once.
PANEL_BYTES = 1 << 22
# Elements that are fetched together of rows with others between them.
GATHER_SIZE = 1 << 18
LINE = 64  # bytes of a cache line, at which buffers begin


def linear_cross_entropy(
    hidden: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
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
    dtype: DTypeLike | None = None,
    memory: int = MEMORY,
) -> Any:
    r"""Return the cross-entropy of the logits ``hidden @ linear_weight.T + linear_bias``.

    The logits are never whole in memory.

    Parameters
    ----------
    hidden : array_like, shape (..., D)
        Hidden states, of any real dtype and any strides.
    linear_weight : array_like, shape (C, D)
        The class matrix, of any real dtype and any strides.
    target : array_like
        Integers of the shape of `hidden` without its last axis: class indices. Or floating numbers
        of the shape of the logits, (..., C): class probabilities.
    linear_bias : array_like, shape (C,), optional
        Added to the logits of every row.
    weight : array_like, shape (C,), optional
        Weight of each class.
    sample_weight : array_like, optional
        Weight of each row, broadcast to the shape of `hidden` without its last axis. Rows of weight
        0 count for nothing, even where they hold NaN. It may be negative.
    ignore_index, label_smoothing, z_loss, temperature, softcap
        As in :func:`cross_entropy`.
    where : array_like of bool, shape (C,), optional
        The classes allowed. The result is that without the other classes, whose part of
        `linear_weight` may hold NaN.
    reduction, denominator, empty
        As in :func:`cross_entropy`.
    dtype : dtype, optional
        Floating type to compute in and to return. By default what `hidden`, `linear_weight` and
        `linear_bias` are together: of one half type that, of both float32.
    memory : int, default 256 MiB
        Bytes to work in, at most.

    Returns
    -------
    scalar or ndarray
        The reduced loss, or with ``reduction="none"`` the losses, one for each row.

    Raises
    ------
    IndexError
        If a label is below 0 or not below C, and is not `ignore_index`.
    TypeError
        If an array is complex, masked or not numeric, or the labels are boolean.
    ValueError
        If a shape does not fit, an option is out of range, or `memory` is less than it takes for
        the logits of one row and what goes with them: the message says how much that is.

    See Also
    --------
    linear_cross_entropy_with_grad : The loss and its gradients.

    Notes
    -----
    .. math:: H = -\sum_i p_i \log q_i, \quad q = \mathrm{softmax}((W h + b) / T)

    With few rows in a block the products are slow: from 512 rows on, which take 2048 bytes for each
    class in float32, `memory` is ample. What is not counted there: the results, a few MB, and a
    copy of the class probabilities where rows are left out of them, one block at a time.

    Half types are multiplied in float32 and the logits not rounded. The products are those of
    NumPy's BLAS, whose rounding depends on the sizes of the blocks, so on `memory`, and may depend
    on its number of threads; two calls alike give the same bits. Logits that are exact, as those of
    small integers are, give the losses of :func:`cross_entropy` bit by bit, and their sum in
    float64, however the blocks fall.

    Examples
    --------
    >>> import numpy as np
    >>> import softce_fast as sf
    >>> hidden = np.array([[1.0, 0.5]])
    >>> classes = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 0.2]])
    >>> round(float(sf.linear_cross_entropy(hidden, classes, np.array([0]))), 3)
    0.417
    """
    options = {
        "weight": weight, "ignore_index": ignore_index, "label_smoothing": label_smoothing,
        "z_loss": z_loss, "temperature": temperature, "softcap": softcap, "where": where,
        "reduction": reduction, "denominator": denominator, "empty": empty,
    }  # fmt: skip
    call = _Call(hidden, linear_weight, target, linear_bias, sample_weight, dtype, memory, options)
    return _evaluate(call, _NO_GRADS)[0]


def linear_cross_entropy_with_grad(
    hidden: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
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
    dtype: DTypeLike | None = None,
    memory: int = MEMORY,
    grads: Collection[str] = _checks.LINEAR_GRADS,
    accumulate: bool = False,
    hidden_grad_out: Array | None = None,
    weight_grad_out: Array | None = None,
    bias_grad_out: Array | None = None,
) -> tuple[Any, LinearGrads]:
    r"""Return the cross-entropy of ``hidden @ linear_weight.T + linear_bias``, and its gradients.

    Neither the logits nor their gradient are ever whole in memory.

    Parameters
    ----------
    hidden, linear_weight, target, linear_bias, weight, sample_weight, ignore_index
        As in :func:`linear_cross_entropy`.
    label_smoothing, z_loss, temperature, softcap, where, reduction, denominator, empty
        As in :func:`linear_cross_entropy`.
    dtype, memory
        As in :func:`linear_cross_entropy`.
    grads : collection of {"hidden", "weight", "bias"}, default all of them
        The gradients that are wanted. The others are None and cost nothing.
    accumulate : bool, default False
        Add the gradients to the arrays given for them, which are then needed.
    hidden_grad_out, weight_grad_out, bias_grad_out : ndarray, optional
        Where to put the gradients: each of the shape of what it is the gradient of, and of the
        dtype named below, any strides. `hidden_grad_out` may be `hidden` itself.

    Returns
    -------
    loss : scalar or ndarray
        As from :func:`linear_cross_entropy`.
    grads : LinearGrads
        A named tuple of `hidden`, `weight` and `bias`: gradients of the reduced loss; for
        ``reduction="none"`` of the sum of the losses. Each has the dtype of the array it is the
        gradient of, or `dtype` if that is given; those of half types may be put into float32
        arrays. That of `bias` is None without `linear_bias`.

    Raises
    ------
    IndexError, TypeError, ValueError
        As :func:`linear_cross_entropy`; also if `grads` has an unknown name, an output does not
        fit, is missing with `accumulate`, is not wanted, is read-only, or shares memory with
        another array of the call. Nothing has been written then.

    Notes
    -----
    .. math::
        \frac{\partial H}{\partial h} = W^T g, \quad
        \frac{\partial H}{\partial W} = \sum g h^T, \quad
        \frac{\partial H}{\partial b} = \sum g, \quad
        g = \frac{\partial H}{\partial (W h + b)}

    With ``reduction="sum"`` and `sample_weight`, negative or not, they are the vector-Jacobian
    product of the losses of ``reduction="none"``. Gradients of rows that do not count are exactly
    0, and nothing of such rows reaches the others.

    Sums over rows are made in float32 at least. For the gradient of a `linear_weight` of half type
    that takes a float32 array of its size beside `memory`, if there is more than one block of rows
    and no float32 array is given. On `memory` and on bits see :func:`linear_cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> import softce_fast as sf
    >>> hidden = np.array([[1.0, 0.5]])
    >>> classes = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 0.2]])
    >>> loss, grads = sf.linear_cross_entropy_with_grad(hidden, classes, np.array([0]))
    >>> grads.weight.round(3)
    array([[-0.341, -0.17 ],
           [ 0.242,  0.121],
           [ 0.099,  0.049]])
    >>> grads.bias is None
    True
    """
    options = {
        "weight": weight, "ignore_index": ignore_index, "label_smoothing": label_smoothing,
        "z_loss": z_loss, "temperature": temperature, "softcap": softcap, "where": where,
        "reduction": reduction, "denominator": denominator, "empty": empty,
    }  # fmt: skip
    call = _Call(hidden, linear_weight, target, linear_bias, sample_weight, dtype, memory, options)
    outs = hidden_grad_out, weight_grad_out, bias_grad_out
    return _evaluate(call, _Wanted(grads, accumulate, outs))


def linear_target_scores(
    hidden: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    top_k: int = 0,
    entropy: bool = False,
    ties: str = "first",
    ignore_index: int = -100,
    temperature: float = 1.0,
    softcap: float | None = None,
    where: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
    memory: int = MEMORY,
) -> TargetScores:
    r"""Return how targets do by the logits ``hidden @ linear_weight.T + linear_bias``.

    The logits are never whole in memory.

    Parameters
    ----------
    hidden, linear_weight
        As in :func:`linear_cross_entropy`.
    target : array_like
        Class indices: integers of the shape of `hidden` without its last axis.
    linear_bias
        As in :func:`linear_cross_entropy`.
    top_k, entropy, ties, ignore_index, temperature, softcap
        As in :func:`target_scores`.
    where : array_like of bool, shape (C,), optional
        Classes that are allowed.
    dtype, memory
        As in :func:`linear_cross_entropy`.

    Returns
    -------
    TargetScores
        As from :func:`target_scores`.

    Raises
    ------
    IndexError, TypeError, ValueError
        As :func:`target_scores` and :func:`linear_cross_entropy`.

    Notes
    -----
    As :func:`target_scores`, of logits in the dtype that is computed in: those of half types are
    not rounded. The log-probabilities have the bits of the losses of :func:`linear_cross_entropy`
    where the blocks are the same; on `memory` and on bits see there.

    Examples
    --------
    >>> import numpy as np
    >>> import softce_fast as sf
    >>> hidden = np.array([[1.0, 0.5]])
    >>> classes = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 0.2]])
    >>> sf.linear_target_scores(hidden, classes, np.array([1])).rank
    array([1])
    """
    arrays = _checks.check_linear(hidden, linear_weight, linear_bias, dtype)
    compute = _checks.compute_dtype(arrays.dtype)
    classes = len(arrays.weight)
    row_shape = arrays.hidden.shape[:-1]
    labels = _checks.check_class_indices(target, (*row_shape, classes), len(row_shape))
    options: dict[str, Any] = {
        "top_k": top_k, "entropy": entropy, "ties": ties, "ignore_index": ignore_index,
        "temperature": temperature, "softcap": softcap,
        "where": _checks.check_allowed_classes(where, classes), "dtype": compute,
    }  # fmt: skip
    call = _checks.check_scores(
        np.empty((0, classes), compute), labels.reshape(-1)[:0], 1, **options
    )
    memory = _checks.check_memory(memory)
    _checks.check_labels(labels, classes, call.ignore_index)
    if compute.itemsize > 8 or classes == 0:
        return reference.linear_target_scores(
            arrays.hidden, arrays.weight, labels, linear_bias=arrays.bias, memory=memory,
            **{**options, "dtype": arrays.dtype},
        )  # fmt: skip
    batch = _Batch(arrays, labels, None, {"weight": None, "where": None, "reduction": "none"})
    batch.count = batch.rows
    plan = _plan(arrays, batch, (), memory)
    found = _scores.empty_scores((batch.rows,), call)
    with np.errstate(all="ignore"):
        run = _Run(arrays, batch, plan, LinearGrads(None, None, None), False)
        for rows in batch.blocks(plan.rows):
            logits = run.logits_of(rows)
            block = _checks.check_scores(logits, batch.target[rows], 1, **options)
            for to, part in zip(found, _scores.scores(block), strict=True):
                if to is not None:
                    to[rows] = part
        return _scores.delivered(found, row_shape, arrays.dtype)


class _Call(NamedTuple):
    """Arguments as they were given."""

    hidden: ArrayLike
    linear_weight: ArrayLike
    target: ArrayLike
    linear_bias: ArrayLike | None
    sample_weight: ArrayLike | None
    dtype: DTypeLike | None
    memory: int
    options: dict[str, Any]  # of cross_entropy


class _Wanted(NamedTuple):
    """The gradients that are wanted, and where."""

    grads: Collection[str]
    accumulate: bool
    outs: tuple[Array | None, Array | None, Array | None]


_NO_GRADS = _Wanted((), False, (None, None, None))


def _evaluate(call: _Call, wanted: _Wanted) -> tuple[Any, LinearGrads]:
    arrays = _checks.check_linear(call.hidden, call.linear_weight, call.linear_bias, call.dtype)
    classes = len(arrays.weight)
    options = {
        **call.options, "where": _checks.check_allowed_classes(call.options["where"], classes)
    }  # fmt: skip
    if options["weight"] is not None:
        options["weight"] = _checks.check_class_weight(
            options["weight"], classes, arrays.hidden.shape[:-1]
        )
    compute = _checks.compute_dtype(arrays.dtype)
    no_rows = np.empty((0, classes), compute)
    checked = _checks.check_loss(
        "logits", no_rows, np.empty(0, np.int64), -1, sample_weight=None, dtype=None, **options
    )
    batch = _Batch(arrays, call.target, call.sample_weight, options)
    memory = _checks.check_memory(call.memory)
    dtypes = _checks.check_linear_grads(
        arrays, wanted.grads, wanted.accumulate, wanted.outs, call.dtype
    )
    _check_overlaps(arrays, batch, wanted.outs)
    if (
        compute.itemsize > 8 or classes == 0
        or _arrays.out_of_range(checked.temperature, checked.softcap)
    ):  # fmt: skip
        return reference.linear_cross_entropy_with_grad(
            arrays.hidden, arrays.weight, call.target, linear_bias=arrays.bias,
            sample_weight=call.sample_weight, dtype=call.dtype, memory=memory, grads=wanted.grads,
            accumulate=wanted.accumulate, **options, **_named(wanted.outs),
        )  # fmt: skip
    batch.scan()
    plan = _plan(arrays, batch, dtypes, memory)
    outs = [
        _fresh_outputs.empty(array.shape, dtypes[name])
        if out is None and array is not None and name in dtypes
        else out
        for name, array, out in zip(_checks.LINEAR_GRADS, arrays[:3], wanted.outs, strict=True)
    ]
    written = LinearGrads(*(None if out is None else _arrays.plain(out) for out in outs))
    with np.errstate(all="ignore"):
        loss = _Run(arrays, batch, plan, written, wanted.accumulate).loss()
    return loss, LinearGrads(*outs)


def _named(outs: tuple[Array | None, ...]) -> dict[str, Any]:
    """Return the arrays for gradients by the names of their arguments."""
    names = (f"{name}_grad_out" for name in _checks.LINEAR_GRADS)
    return dict(zip(names, outs, strict=True))


def _check_overlaps(
    arrays: LinearArrays, batch: _Batch, outs: tuple[Array | None, Array | None, Array | None]
) -> None:
    """Refuse outputs that share memory with what is still read when they are written."""
    options = batch.options
    given = [arrays.weight, arrays.bias, batch.target.array, options["weight"], options["where"]]
    if batch.sample_weight is not None:
        given.append(batch.sample_weight.array)
    inputs = [item for item in given if isinstance(item, np.ndarray)]
    for (name, out), may_be_hidden in zip(_named(outs).items(), (True, False, False), strict=True):
        if out is None:
            continue
        others = inputs if may_be_hidden else [*inputs, arrays.hidden]
        if any(_arrays.shares_memory(item, out) for item in others) or (
            may_be_hidden and _arrays.overlaps(out, arrays.hidden)
        ):
            raise ValueError(f"{name} must not share memory with another array of the call")
        inputs.append(out)


# Rows


class _RowView:
    """An array whose leading axes are the rows, seen as one axis without a copy."""

    def __init__(self, array: Array, row_shape: tuple[int, ...]) -> None:
        self.array, self.row_shape = array, row_shape
        self.flat: Array | None = array  # None if the strides do not allow it
        if not row_shape:
            self.flat = array[None]
        elif len(row_shape) > 1:
            self.flat = _joined(array, len(row_shape))

    def __getitem__(self, rows: Rows) -> Array:
        """Return rows: a view where they are neighbours and the strides allow it."""
        found: Array = self.array[self._key(rows)] if self.flat is None else self.flat[rows]
        return found

    def __setitem__(self, rows: Rows, values: Array) -> None:
        if self.flat is None:
            self.array[self._key(rows)] = values
        else:
            self.flat[rows] = values

    def _key(self, rows: Rows) -> tuple[NDArray[np.intp], ...]:
        if isinstance(rows, slice):
            return np.unravel_index(np.arange(rows.start, rows.stop), self.row_shape)
        return np.unravel_index(rows, self.row_shape)

    def pieces(self, rows: Rows) -> Iterator[tuple[slice, Rows]]:
        """Yield parts of `rows` that are small where they must be copied to be seen."""
        count = _length(rows)
        step = max(1, count)
        if self.flat is None or not isinstance(rows, slice):
            step = max(1, GATHER_SIZE // max(1, self.array.shape[-1]))
        for start in range(0, count, step):
            part = slice(start, min(start + step, count))
            if isinstance(rows, slice):
                yield part, slice(rows.start + part.start, rows.start + part.stop)
            else:
                yield part, rows[part]

    def copy_to(self, rows: Rows, out: Array) -> None:
        """Copy rows to `out`."""
        for part, piece in self.pieces(rows):
            out[part] = self[piece]

    def put(self, rows: Rows, values: Array, add: bool) -> None:
        """Write rows, or add to them."""
        for part, piece in self.pieces(rows):
            self[piece] = self[piece] + values[part] if add else values[part]


def _joined(array: Array, count: int) -> Array | None:
    """Return `array` with its first axes as one, None if its strides do not allow it."""
    shape, strides = array.shape, array.strides
    if any(strides[i] != shape[i + 1] * strides[i + 1] for i in range(count - 1)):
        return None
    return array.reshape((math.prod(shape[:count]), *shape[count:]))


def _length(rows: Rows) -> int:
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def _neighbours(rows: NDArray[np.intp]) -> Rows:
    """Return rows as a slice if no other one lies between them."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows


class _Batch:
    """Hidden states and targets of all rows, and which of them count."""

    def __init__(
        self,
        arrays: LinearArrays,
        target: ArrayLike,
        sample_weight: ArrayLike | None,
        options: dict[str, Any],
    ) -> None:
        self.row_shape = arrays.hidden.shape[:-1]
        self.rows = math.prod(self.row_shape)
        self.classes = len(arrays.weight)
        self.dtype = arrays.dtype  # of the loss
        self.options = options
        logits_shape = (*self.row_shape, self.classes)
        given, self.is_labels = _checks.check_target(target, logits_shape, len(self.row_shape))
        self.hidden = _RowView(arrays.hidden, self.row_shape)
        self.target = _RowView(given, self.row_shape)
        self.sample_weight = None
        if sample_weight is not None:
            weights = _checks.check_sample_weight(sample_weight, self.row_shape)
            self.sample_weight = _RowView(weights, self.row_shape)
        self.count = 0  # of rows that count
        self.divisor = 1.0  # of the mean

    @np.errstate(all="ignore")
    def scan(self) -> None:
        """Check the labels, count the rows that count, and find what their mean divides by."""
        weight, divisor = self.options["weight"], 0.0
        for part in self._parts():
            counts = self._counting(part)
            count = int(np.count_nonzero(counts))
            self.count += count
            weights: Any = None
            if self.sample_weight is not None:
                weights = np.asarray(self.sample_weight[part], np.float64)
            if self.is_labels:
                labels = self.target[part]
                outside = (labels < 0) | (labels >= self.classes)
                if (outside & (labels != self.options["ignore_index"])).any():
                    _checks.check_labels(
                        self.target.array, self.classes, self.options["ignore_index"]
                    )
                if weight is not None:
                    taken = np.asarray(weight.take(labels, mode="clip"), np.float64)
                    weights = taken if weights is None else reference.product(taken, weights)
            divisor += count if weights is None else float(weights.sum(where=counts))
        if self.options["reduction"] == "mean":
            given = self.options["denominator"]
            self.divisor = divisor if given is None else float(given)

    def _parts(self, size: int = MOST_ROWS) -> Iterator[slice]:
        for start in range(0, self.rows, size):
            yield slice(start, min(start + size, self.rows))

    def _counting(self, part: slice) -> NDArray[np.bool_]:
        """Tell which rows are neither ignored nor of weight 0."""
        counts = np.ones(part.stop - part.start, np.bool_)
        if self.is_labels:
            counts &= self.target[part] != self.options["ignore_index"]
        if self.sample_weight is not None:
            counts &= self.sample_weight[part] != 0
        return counts

    def blocks(self, size: int) -> Iterator[Rows]:
        """Yield the rows that count, `size` at a time."""
        if self.count == self.rows:
            yield from self._parts(size)
            return
        waiting = np.empty(0, np.intp)
        for part in self._parts():
            found = np.flatnonzero(self._counting(part)) + part.start
            waiting = np.concatenate((waiting, found))
            while len(waiting) >= size:
                yield _neighbours(waiting[:size])
                waiting = waiting[size:]
        if len(waiting):
            yield _neighbours(waiting)


# The buffer


class _Plan(NamedTuple):
    """How much is worked on at once."""

    rows: int  # of a block
    panel: int  # classes of a panel
    blocks: int
    size: int  # of the buffer, in elements
    dtype: DType  # to compute in


def _plan(arrays: LinearArrays, batch: _Batch, wanted: Collection[str], memory: int) -> _Plan:
    """Share the memory out over rows and panels of classes, or say how much it must be."""
    classes, features = arrays.weight.shape
    dtype = _checks.compute_dtype(arrays.dtype)
    # Logits (and a copy of their targets), hidden states, their gradient, a panel's part in that;
    per_row = (1 if batch.is_labels else 2) * classes + (3 if "hidden" in wanted else 1) * features
    per_row += "bias" in wanted  # a one, to sum with
    # of a panel the class matrix, and its gradient.
    per_class = (2 if "weight" in wanted else 1) * features
    once = (0 if arrays.bias is None else 2 * classes) + 8 * LINE
    least = (once + per_row + per_class) * dtype.itemsize
    if memory < least:
        raise ValueError(
            f"memory must be at least {least} bytes for {classes} classes and {features} features, "
            f"got {memory}"
        )
    size = memory // dtype.itemsize
    count = max(1, batch.count)
    most = min(MOST_ROWS, max(FEW_ROWS, BLOCK_SIZE // max(1, classes)), count)
    panel = min(PANEL_BYTES // dtype.itemsize, (size - once) // 4) // max(1, per_class)
    panel = max(1, min(panel, classes))
    rows = max(1, min(most, (size - once - panel * per_class) // max(1, per_row)))
    panel = max(1, min(panel, (size - once - rows * per_row) // max(1, per_class)))
    blocks = -(-count // rows)
    rows = -(-count // blocks)  # all of one size
    return _Plan(rows, panel, blocks, once + rows * per_row + panel * per_class, dtype)


class _Buffer:
    """One piece of memory, and arrays that take their part of it."""

    def __init__(self, plan: _Plan) -> None:
        self.free = _fresh_outputs.empty((plan.size,), plan.dtype)

    def take(self, *shape: int) -> Array:
        """Return an array that begins at a cache line of the buffer."""
        size = math.prod(shape)
        array = self.free[:size].reshape(shape)
        self.free = self.free[-(-size // LINE) * LINE :]
        return array


# Products


def _fits_blas(array: Array, dtype: DType) -> bool:
    """Tell whether NumPy's matmul gives a matrix to BLAS as it is."""
    if array.dtype != dtype or not array.flags.aligned:
        return False
    for axis in (0, 1):
        steps, rest = divmod(array.strides[axis], dtype.itemsize)
        in_row = array.strides[1 - axis] == dtype.itemsize
        if in_row and rest == 0 and max(1, array.shape[1 - axis]) <= steps < 2**31:
            return True
    return False


def _add(out: Array, values: Array, add: bool) -> None:
    """Write `values` to `out`, or add them to it."""
    if add:
        np.add(out, values, out=out, casting="unsafe")
    else:
        out[...] = values


class _ClassMatrix:
    """The class matrix as BLAS takes it, by panels of classes; 0 for those excluded."""

    def __init__(self, matrix: Array, where: Array | None, plan: _Plan, buffer: _Buffer) -> None:
        self.matrix, self.where = matrix, where
        self.panels = [slice(0, len(matrix))]
        self.buffer, self.held = None, slice(0, 0)
        if where is not None or not _fits_blas(matrix, plan.dtype):
            self.panels = _panels(len(matrix), plan)
            self.buffer = buffer.take(plan.panel, matrix.shape[1])

    def __getitem__(self, panel: slice) -> Array:
        if self.buffer is None:
            return self.matrix[panel]
        copy = self.buffer[: panel.stop - panel.start]
        if panel != self.held:
            copy[...] = self.matrix[panel]
            if self.where is not None:
                copy[~self.where[panel]] = 0  # a gradient of 0 times NaN would be one
            self.held = panel
        return copy


def _panels(classes: int, plan: _Plan) -> list[slice]:
    return [
        slice(start, min(start + plan.panel, classes)) for start in range(0, classes, plan.panel)
    ]


class _Run:
    """One call: its buffers, and the way of a block of rows through them."""

    def __init__(
        self,
        arrays: LinearArrays,
        batch: _Batch,
        plan: _Plan,
        gradients: LinearGrads,
        accumulate: bool,
    ) -> None:
        self.batch, self.plan, self.gradients, self.accumulate = batch, plan, gradients, accumulate
        classes, features = arrays.weight.shape
        buffer = _Buffer(plan)
        self.logits = buffer.take(plan.rows, classes)
        self.hidden = buffer.take(plan.rows, features)
        self.hidden_fits = _rows_fit_blas(batch.hidden, plan.dtype)
        self.matrix = _ClassMatrix(arrays.weight, batch.options["where"], plan, buffer)
        self.bias = None if arrays.bias is None else arrays.bias.astype(plan.dtype, copy=False)
        if gradients.hidden is not None:
            self.hidden_grad, self.hidden_part = buffer.take(2, plan.rows, features)
            self.hidden_out = _RowView(gradients.hidden, batch.row_shape)
            self.out_fits = not accumulate and _rows_fit_blas(self.hidden_out, plan.dtype)
        # What blocks add to, in float32 at least.
        self.weight_sum, self.bias_sum = (
            np.empty(out.shape, plan.dtype)
            if out is not None and out.itemsize == 2 and plan.blocks > 1
            else out
            for out in (gradients.weight, gradients.bias)
        )
        if self.weight_sum is not None:
            self.weight_part = buffer.take(plan.panel, features)
        if self.bias_sum is not None:
            self.bias_part, self.ones = buffer.take(classes), buffer.take(plan.rows)
            self.ones[...] = 1

    def loss(self) -> Any:
        """Return the loss, and write the gradients."""
        batch, options = self.batch, self.batch.options
        losses = np.zeros(batch.rows, self.plan.dtype) if options["reduction"] == "none" else None
        total = 0.0
        self._clear()
        for number, rows in enumerate(batch.blocks(self.plan.rows)):
            hidden = self._hidden_rows(rows)
            logits = self._logits(hidden)
            loss = self._fused(logits, rows)
            if losses is None:
                total += loss
            else:
                losses[rows] = loss
            self._add_weight_grad(logits, hidden, number == 0)
            self._add_bias_grad(logits, number == 0)
            # Last, since it may overwrite the hidden states.
            self._put_hidden_grad(logits, rows)
        self._finish()
        if losses is None:
            reduced = _losses.Reduced(total, batch.divisor)
            return reduced.scalar(options["empty"], batch.dtype)
        return _arrays.deliver(losses.reshape(batch.row_shape), batch.dtype)

    def logits_of(self, rows: Rows) -> Array:
        """Return the logits of rows, until those of others are asked for."""
        return self._logits(self._hidden_rows(rows))

    def _hidden_rows(self, rows: Rows) -> Array:
        if self.hidden_fits and isinstance(rows, slice):
            return self.batch.hidden[rows]
        copy = self.hidden[: _length(rows)]
        self.batch.hidden.copy_to(rows, copy)
        return copy

    def _logits(self, hidden: Array) -> Array:
        logits = self.logits[: len(hidden)]
        for panel in self.matrix.panels:
            np.matmul(hidden, self.matrix[panel].T, out=logits[:, panel])
        if self.bias is not None:
            np.add(logits, self.bias, out=logits)
        return logits

    def _fused(self, logits: Array, rows: Rows) -> Any:
        """Return the sum of the losses, or each; the gradient takes the place of the logits."""
        batch = self.batch
        with_grad = any(gradient is not None for gradient in self.gradients)
        weights = None if batch.sample_weight is None else batch.sample_weight[rows]
        options = {**batch.options, "sample_weight": weights}
        losses = None
        if options["reduction"] == "none":
            losses = np.empty(len(logits), logits.dtype)
        else:
            options["denominator"] = batch.divisor
        call = _checks.check_loss("logits", logits, batch.target[rows], -1, dtype=None, **options)
        loss = _losses.run(call, losses, logits if with_grad else None)
        if losses is not None:
            return losses
        return loss._replace(divisor=1.0).scalar("nan", np.dtype(np.float64))

    def _add_weight_grad(self, gradient: Array, hidden: Array, first: bool) -> None:
        out = self.weight_sum
        if out is None:
            return
        add = self._adds(out, self.gradients.weight, first)
        for panel in _panels(len(out), self.plan):
            if not add and _fits_blas(out[panel], self.plan.dtype):
                np.matmul(gradient[:, panel].T, hidden, out=out[panel])
            else:
                part = self.weight_part[: panel.stop - panel.start]
                np.matmul(gradient[:, panel].T, hidden, out=part)
                _add(out[panel], part, add)

    def _add_bias_grad(self, gradient: Array, first: bool) -> None:
        out = self.bias_sum
        if out is not None:
            np.matmul(self.ones[: len(gradient)], gradient, out=self.bias_part)
            _add(out, self.bias_part, self._adds(out, self.gradients.bias, first))

    def _adds(self, sum_: Array, out: Array | None, first: bool) -> bool:
        """Tell whether a block adds to what is there, or is the first."""
        return not first or (self.accumulate and sum_ is out)

    def _put_hidden_grad(self, gradient: Array, rows: Rows) -> None:
        if self.gradients.hidden is None:
            return
        direct = self.out_fits and isinstance(rows, slice)
        result = self.hidden_out[rows] if direct else self.hidden_grad[: len(gradient)]
        # The last panel is still held.
        first, *others = reversed(self.matrix.panels)
        np.matmul(gradient[:, first], self.matrix[first], out=result)
        for panel in others:
            part = self.hidden_part[: len(gradient)]
            np.matmul(gradient[:, panel], self.matrix[panel], out=part)
            result += part
        if not direct:
            self.hidden_out.put(rows, result, self.accumulate)

    def _clear(self) -> None:
        """Set to 0 what no block writes."""
        if self.accumulate:
            return
        if self.gradients.hidden is not None and self.batch.count < self.batch.rows:
            self.gradients.hidden[...] = 0
        for out in (self.gradients.weight, self.gradients.bias):
            if out is not None and self.batch.count == 0:
                out[...] = 0

    def _finish(self) -> None:
        """Bring sums that were made apart from the outputs to these."""
        sums = self.weight_sum, self.bias_sum
        for sum_, out in zip(sums, self.gradients[1:], strict=True):
            if sum_ is not out and sum_ is not None and out is not None:
                for panel in _panels(len(out), self.plan):
                    _add(out[panel], sum_[panel], self.accumulate)


def _rows_fit_blas(rows: _RowView, dtype: DType) -> bool:
    return rows.flat is not None and _fits_blas(rows.flat, dtype)
