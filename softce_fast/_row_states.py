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

Array = NDArray[Any]
DType = np.dtype[Any]

# Of a row, whatever its classes: what all its states have in common, and what they put together.
_COMMON = [("temperature", "f8"), ("softcap", "f8"), ("labelled", "?"), ("target", "i8")]
_PARTS = [
    ("classes", "i8"), ("allowed", "i8"), ("weighted", "?"), ("found", "?"), ("logit", "f8"),
    ("weight", "f8"),
]  # fmt: skip


def _dtype_of_states(name: str, sums: list[Any]) -> DType:
    """Return the dtype of states that have `sums`; it says that of the results by a name."""
    return np.dtype([("dtype", [(name, "?")]), *_COMMON, *_PARTS, *sums])


def _name_of_dtype(states: Array) -> str:
    names = states.dtype["dtype"].names
    assert names is not None
    return names[0]


def opened(call: ShardArguments, sums: list[Any]) -> Array:
    """Return states in which all but their sums is filled in."""
    states = np.zeros(call.row_shape, _dtype_of_states(call.dtype.name, sums))
    states["temperature"], states["softcap"] = call.temperature, call.softcap or 0
    states["classes"] = states["allowed"] = call.classes
    if call.where is not None:
        states["allowed"] = call.where.sum(axis=call.axis)
    if call.target is None:
        return states
    labels = call.labels()
    found = labels < call.classes
    states["labelled"], states["target"] = True, _in_int64(call.target)
    states["found"], states["weight"], states["weighted"] = found, 1, call.weight is not None
    if not call.classes:
        return states
    places = np.where(found, labels, 0)

    def picked(array: Array) -> Array:
        rows = np.moveaxis(array, call.axis, -1)
        result: Array = np.take_along_axis(rows, places[..., None], axis=-1)[..., 0]
        return result

    logit = picked(call.logits).astype(np.float64)
    if call.where is not None:
        logit = np.where(picked(call.where), logit, -np.inf)
    states["logit"] = np.where(found, logit, 0)
    if call.weight is not None:
        states["weight"] = np.where(found, call.weight[places], 0)
    return states


def merged(states: tuple[Array, ...], sums: list[Any]) -> Array:
    """Return the states of all classes, but for their sums."""
    first = states[0]
    whole = np.zeros(first.shape, _dtype_of_states(_name_of_dtype(first), sums))
    for name, _ in _COMMON:
        whole[name] = first[name]
    for name in ("classes", "allowed"):
        whole[name] = sum(item[name] for item in states)
    for name in ("found", "weighted"):
        whole[name] = np.logical_or.reduce([item[name] for item in states])
    whole["weight"] = 1
    for item in states:
        for name in ("logit", "weight"):
            whole[name] = np.where(item["found"], item[name], whole[name])
    return whole


def check_mergeable(states: tuple[Any, ...], sums: str) -> None:
    """Refuse what are no states with that field of sums, of the same rows and other classes."""
    if not states:
        raise TypeError("merge must be given states, got none")
    first = check(states[0], sums)
    for other in states[1:]:
        check(other, sums)
        if other.shape != first.shape:
            raise ValueError(f"states must have one shape, got {first.shape} and {other.shape}")
        if _name_of_dtype(other) != _name_of_dtype(first):
            raise ValueError("states must have the same dtype")
        for name, _ in _COMMON:
            if (other[name] != first[name]).any():
                raise ValueError(f"states must have the same {name}")
    if np.any(np.sum([item["found"] for item in states], axis=0) > 1):
        raise ValueError("states must be of different classes, got one target's class twice")


def check(states: Any, sums: str, call: ShardArguments | None = None) -> Array:
    """Refuse what is no array of states with that field of sums, or not of a call's rows."""
    if not isinstance(states, np.ndarray) or sums not in (states.dtype.names or ()):
        raise TypeError(
            f"states must come from this module's row_states, got {type(states).__name__}"
        )
    if call is None:
        return states
    if states.shape != call.row_shape:
        raise ValueError(
            f"states must have the shape of logits without the class axis, {call.row_shape}, "
            f"got {states.shape}"
        )
    rows = rows_of(states)
    for name, given in (("dtype", call.dtype), ("temperature", call.temperature),
                        ("softcap", call.softcap)):  # fmt: skip
        of_states = getattr(rows, name)
        if states.size and of_states != given:
            raise ValueError(f"{name} must be that of the states, {of_states}, got {given}")
    if call.target is not None and (states["target"] != _in_int64(call.target)).any():
        raise ValueError("target must be that of the states")
    return states


def _in_int64(target: Array) -> NDArray[np.int64]:
    """Return labels as numbers of 64 bits; what does not fit is no class, either."""
    if target.dtype.kind == "u":
        target = np.minimum(target, np.array(np.iinfo(np.int64).max, np.uint64))
    return target.astype(np.int64)


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
    share: Array  # what smoothing gives to each class that is allowed, of each row
    z_loss: float
    reduction: str
    denominator: float | None
    empty: str

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

    def divisor(self) -> float:
        """Return what the sum of the losses is divided by."""
        if self.reduction != "mean":
            return 1.0
        if self.denominator is not None:
            return self.denominator
        weights = self.label_weight
        if self.sample_weight is not None:
            counts = (weights != 0) & (self.sample_weight != 0)
            sample_weight = self.sample_weight.astype(np.float64)
            weights = np.where(counts, weights, 0) * np.where(counts, sample_weight, 0)
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
    if not states["labelled"].all():
        raise ValueError("states must have a target: give one to row_states")
    ignored = np.asarray(states["target"] == ignore_index)
    missing = ~(states["found"] | ignored)
    if missing.any():
        classes = int(states["classes"].flat[0])
        _checks.raise_bad_label(states["target"], int(missing.argmax()), classes, ignore_index)
    excluded = (states["allowed"] == 0) & (states["classes"] > 0) & ~ignored
    if z_loss == 0:
        excluded &= (states["weight"] != 0) & (smoothing < 1)
    if weights is not None:
        excluded &= weights != 0
    return Loss(
        ignored, excluded, states["weight"], weights, smoothing,
        smoothing / np.maximum(states["allowed"], 1), z_loss, reduction, denominator, empty,
    )  # fmt: skip
