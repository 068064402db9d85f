"""What states of rows say besides sums over their classes, and what a loss makes of that.

Shared by :mod:`softce_fast.sharded`, whose sums are the kernels', and by its version in plain
NumPy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _checks
from ._checks import ShardArguments
from ._kernels import execute
from ._threads import threads_for

Array = NDArray[Any]
DType = np.dtype[Any]

# Of a row, whatever its sums: RowHead of the kernels. What `execute.COMMON` names is the same in
# all its states.
_HEAD = [
    ("temperature", "f8"), ("softcap", "f8"), ("target", "i8"), ("classes", "i8"),
    ("allowed", "i8"), ("logit", "f8"), ("weight", "f8"), ("labelled", "?"), ("weighted", "?"),
    ("found", "?"), ("has_nan", "?"),
]  # fmt: skip


def _dtype_of_states(name: str, sums: list[Any]) -> DType:
    """Return the dtype of states that have `sums`; it says that of the results by a name."""
    return np.dtype([*_HEAD, ("dtype", [(name, "i4")]), *sums])


_BYTES_OF_HEAD = _dtype_of_states("", []).itemsize


def _name_of_dtype(states: Array) -> str:
    names = states.dtype["dtype"].names
    assert names is not None
    return names[0]


def opened(call: ShardArguments, sums: list[Any], **nothing: Any) -> Array:
    """Return states that no class was found out about yet, with sums of nothing."""
    dtype = _dtype_of_states(call.dtype.name, sums)
    row = np.zeros((), dtype)
    row["temperature"], row["softcap"], row["weight"] = call.temperature, call.softcap or 0, 1
    row["classes"] = row["allowed"] = call.classes
    row["labelled"], row["weighted"] = call.target is not None, call.weight is not None
    for name, value in nothing.items():
        row[name] = value
    states = np.empty(call.row_shape, dtype)
    states.view(f"V{dtype.itemsize}")[...] = row.view(f"V{dtype.itemsize}")  # as a whole
    if call.where is not None:
        states["allowed"] = call.where.sum(axis=call.axis)
    if call.target is not None:
        states["target"] = _in_int64(call.target)
    return states


def merged(states: tuple[Any, ...], sums: list[Any], joined: tuple[str, ...] = ()) -> Array:
    """Return checked states of all classes, with `joined` sums side by side, others not filled."""
    whole = np.empty(states[0].shape, _dtype_of_states(_name_of_dtype(states[0]), sums))
    rows = tuple(item.reshape(-1) for item in states)
    differs = execute.merge_states(rows, whole.reshape(-1), joined, threads_for)
    if differs > len(execute.COMMON):
        raise ValueError("states must be of different classes, got one target's class twice")
    if differs:
        raise ValueError(f"states must have the same {execute.COMMON[differs - 1]}")
    return whole


def check_mergeable(states: tuple[Any, ...], sums: str) -> tuple[Array, ...]:
    """Refuse what are no states with that field of sums, or of other rows."""
    if not states:
        raise TypeError("merge must be given states, got none")
    checked = tuple(check(item, sums) for item in states)
    first = checked[0]
    for other in checked[1:]:
        if other.shape != first.shape:
            raise ValueError(f"states must have one shape, got {first.shape} and {other.shape}")
        if _name_of_dtype(other) != _name_of_dtype(first):
            raise ValueError("states must have the same dtype")
    return checked


def check(states: Any, sums: str, call: ShardArguments | None = None) -> Array:
    """Refuse what is no array of states with that field of sums, or not of a call's rows.

    Return them in the byte order of this machine.
    """
    fields = states.dtype.fields if isinstance(states, np.ndarray) else None
    if fields is None or sums not in fields or fields[sums][1] != _BYTES_OF_HEAD:
        raise TypeError(
            f"states must come from this module's row_states, got {type(states).__name__}"
        )
    checked: Array = states.astype(states.dtype.newbyteorder("="), copy=False)
    if call is None:
        return checked
    if states.shape != call.row_shape:
        raise ValueError(
            f"states must have the shape of logits without the class axis, {call.row_shape}, "
            f"got {states.shape}"
        )
    rows = rows_of(checked)
    for name, given in (("dtype", call.dtype), ("temperature", call.temperature),
                        ("softcap", call.softcap)):  # fmt: skip
        of_states = getattr(rows, name)
        if states.size and of_states != given:
            raise ValueError(f"{name} must be that of the states, {of_states}, got {given}")
    return checked


def _in_int64(target: Array) -> NDArray[np.int64]:
    """Return labels as numbers of 64 bits; what does not fit is no class, either."""
    if target.dtype.kind == "u":
        target = np.minimum(target, np.array(np.iinfo(np.int64).max, np.uint64))
    return target.astype(np.int64, order="C", copy=False)


class Rows(NamedTuple):
    """What all rows of an array of states have in common."""

    dtype: DType  # of results
    temperature: float
    softcap: float | None


def rows_of(states: Array) -> Rows:
    """Return what all rows have in common."""
    name = _name_of_dtype(states)
    if name == "bfloat16":
        import ml_dtypes

        dtype = np.dtype(ml_dtypes.bfloat16)
    else:
        dtype = np.dtype(name)
    if not states.size:
        return Rows(dtype, 1.0, None)
    return Rows(
        dtype, float(states["temperature"].flat[0]), float(states["softcap"].flat[0]) or None
    )


class Loss(NamedTuple):
    """Checked options of a loss, and what states say about its rows."""

    ignored: Array
    excluded: Array  # rows that count and have no class that is allowed
    label_weight: Array  # of the label's class
    sample_weight: Array | None
    label_smoothing: float
    allowed: Array  # how many classes are
    weighted: bool  # there are class weights
    z_loss: float
    reduction: str
    denominator: float | None
    empty: str

    def share(self) -> Array:
        """Return what smoothing gives to each class that is allowed, of each row."""
        return np.asarray(self.label_smoothing / np.maximum(self.allowed, 1))

    def taken_out(self) -> NDArray[np.bool_]:
        """Tell which rows do not count."""
        rows = self.ignored
        if not (self.label_smoothing or self.z_loss):
            rows = rows | (self.label_weight == 0)
        return rows if self.sample_weight is None else rows | (self.sample_weight == 0)

    def label_part(self) -> Array:
        """Return what smoothing leaves of the weight of the label's class."""
        share = 1 - self.label_smoothing
        return np.asarray(share * self.label_weight if share else np.zeros_like(self.label_weight))

    def divisor(self, power: int = 0) -> float:
        """Return what the sum of the losses is divided by: of weights times 2**power."""
        if self.reduction != "mean":
            return 1.0
        if self.denominator is not None:
            return self.denominator
        weights = self.label_weight
        if self.sample_weight is not None:
            counts = (weights != 0) & (self.sample_weight != 0)
            sample_weight = self.sample_weight.astype(np.float64)
            weights, sample_weight = (
                np.where(counts, part, 0) for part in (weights, sample_weight)
            )
            if power:
                weights, of_rows = np.frexp(weights)
                sample_weight, of_sample = np.frexp(sample_weight)
                weights = np.ldexp(weights * sample_weight, of_rows + of_sample + power)
            else:
                weights = weights * sample_weight
        elif power:
            weights = np.ldexp(weights, power)
        weights = weights[~self.ignored]
        return float(weights.size) if (weights == 1).all() else sum_of(weights)


def sum_of(numbers: NDArray[np.float64]) -> float:
    """Return the sum of one or more, as exact as the kernels'; the GIL is let go meanwhile."""
    high, low = numbers, np.zeros_like(numbers)
    with np.errstate(over="ignore", invalid="ignore"):
        while len(high) > 1:
            if len(high) % 2:
                high, low = np.append(high, 0.0), np.append(low, 0.0)
            a, b = high[::2], high[1::2]
            high = a + b
            kept = high - a
            low = low[::2] + low[1::2] + ((a - (high - kept)) + (b - kept))
    return float(high[0] + low[0] if np.isfinite(high[0]) else high[0])


def loss_of(
    states: Array,
    target: Array | None,
    sample_weight: ArrayLike | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    reduction: str,
    denominator: float | None,
    empty: str,
) -> Loss:
    """Check the options of a loss, and the labels, against the states of all classes."""
    ignore_index = _checks.check_ignore_index(ignore_index)
    smoothing = _checks.check_label_smoothing(label_smoothing)
    z_loss = _checks.check_z_loss(z_loss)
    _checks.check_reduction(reduction)
    _checks.check_empty(empty)
    denominator = _checks.check_denominator(denominator)
    weights = None
    if sample_weight is not None:
        weights = _checks.check_sample_weight(sample_weight, states.shape, "states")
        weights = _checks.no_wider(weights, np.dtype(np.float64))
    rows, shape = states.reshape(-1), states.shape
    ignored, weight, allowed = np.empty(shape, bool), np.empty(shape), np.empty(shape, np.int64)
    note = execute.read_heads(
        rows, None if target is None else _in_int64(target).reshape(-1), ignore_index,
        ignored.reshape(-1), weight.reshape(-1), allowed.reshape(-1), threads_for,
    )  # fmt: skip
    if note & execute.Note.UNLABELLED:
        raise ValueError("states must have a target: give one to row_states")
    if note & execute.Note.MISPLACED:
        raise ValueError("target must be that of the states")
    if note & execute.Note.MISSING:
        missing = int((states["found"] | ignored).argmin())
        classes = int(rows["classes"][0])
        _checks.raise_bad_label(states["target"], missing, classes, ignore_index)
    excluded = (allowed == 0) & ~ignored
    if excluded.any():
        excluded &= states["classes"] > 0
        if z_loss == 0:
            excluded &= (weight != 0) & (smoothing < 1)
        if weights is not None:
            excluded &= weights != 0
    return Loss(
        ignored, excluded, weight, weights, smoothing, allowed,
        bool(note & execute.Note.WEIGHTED), z_loss, reduction, denominator, empty,
    )  # fmt: skip
