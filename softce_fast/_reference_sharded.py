"""softce_fast.sharded in plain NumPy, as :mod:`softce_fast.reference` has it.

The functions have the names, arguments, results and errors of those in
:mod:`softce_fast.sharded`, whose docstrings describe them in full. States have one sum of each
kind for a row, which :func:`merge` brings to the maximum of all classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _checks, _row_states, reference
from ._arrays import deliver
from ._checks import ShardArguments
from ._kernels.execute import SPLIT
from ._row_states import Loss

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

# The largest logit, the number of those, and sums over the classes: of exp(shifted) of all others,
# of class weights, and of these times -shifted, where shifted = (logit - maximum) / temperature.
_SUMS: list[Any] = [
    ("sums", [(name, "f8") for name in ("maximum", "top", "others", "weights", "spread")])
]


def _included(call: ShardArguments) -> tuple[Array, Array | None]:
    """Return the logits, capped and -inf where excluded, the classes last; and their slope."""
    values = np.moveaxis(call.logits, call.axis, -1).astype(_checks.compute_dtype(call.dtype))
    slope = None
    if call.softcap is not None:
        values, slope = reference.softcapped(values, call.softcap)
    if call.where is not None:
        allowed = np.moveaxis(call.where, call.axis, -1)
        values = np.where(allowed, values, values.dtype.type(-np.inf))
    return values, slope


def _weights(call: ShardArguments) -> Array:
    """Return the class weights, 0 where excluded, the classes last."""
    weights = np.ones(call.classes) if call.weight is None else call.weight
    allowed = True if call.where is None else np.moveaxis(call.where, call.axis, -1)
    return np.where(allowed, weights, np.zeros((*call.row_shape, 1)))


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
    """Sum up some of the classes of each row."""
    call = _checks.check_shard(
        logits, target, axis, class_offset=class_offset, weight=weight, temperature=temperature,
        softcap=softcap, where=where,
    )  # fmt: skip
    states = _row_states.opened(call, _SUMS)
    _find_label(call, states)
    sums, weights = states["sums"], _weights(call)
    with np.errstate(all="ignore"):
        values, _ = _included(call)
        maximum = values.max(axis=-1, keepdims=True, initial=-np.inf)
        shifted = _shifted(values, maximum, call.temperature)
        exponentials = np.exp(shifted)
        is_top = shifted == 0
        sums["maximum"], sums["top"] = maximum[..., 0], is_top.sum(axis=-1)
        sums["others"] = np.where(is_top, 0, exponentials).sum(axis=-1)
        sums["weights"] = weights.sum(axis=-1)
        sums["spread"] = reference.product(weights, -shifted).sum(axis=-1)
    return states


def _find_label(call: ShardArguments, states: Array) -> None:
    """Fill in what is known of a target whose class is one of these."""
    if call.target is None or not call.classes:
        return
    labels = call.labels()
    found = labels < call.classes
    places = np.where(found, labels, 0)

    def picked(array: Array) -> Array:
        rows = np.moveaxis(array, call.axis, -1)
        result: Array = np.take_along_axis(rows, places[..., None], axis=-1)[..., 0]
        return result

    logit = picked(call.logits).astype(np.float64)
    if call.where is not None:
        logit = np.where(picked(call.where), logit, -np.inf)
    states["found"], states["logit"] = found, np.where(found, logit, 0)
    if call.weight is not None:
        states["weight"] = np.where(found, call.weight[places], 1)


def _shifted(values: Array, maximum: Array, temperature: float) -> Array:
    """Return (values - maximum) / temperature; -inf where there is no logit."""
    return reference.cool(values - np.where(maximum == -np.inf, 0, maximum), temperature)


def merge(*states: Array) -> Array:
    """States of all classes that the given states are of."""
    states = _row_states.check_mergeable(states, "sums")
    whole = _row_states.merged(states, _SUMS)
    whole["sums"] = 0
    sums, temperature = whole["sums"], _row_states.rows_of(whole).temperature
    sums["maximum"] = np.maximum.reduce([item["sums"]["maximum"] for item in states])
    with np.errstate(all="ignore"):
        for item in states:
            part = item["sums"]
            below = _shifted(part["maximum"], sums["maximum"], temperature)
            is_top = below == 0
            sums["top"] += np.where(is_top, part["top"], 0)
            rest = part["others"] + np.where(is_top, 0, part["top"])
            sums["others"] += reference.product(rest, np.exp(below))
            sums["weights"] += part["weights"]
            sums["spread"] += part["spread"]
            occupied = part["maximum"] != -np.inf
            sums["spread"] += np.where(occupied, reference.product(part["weights"], -below), 0)
    return whole


def _log_sum(states: Array) -> Array:
    return reference.log_of_sum(states["sums"]["top"], states["sums"]["others"])


def _log_total(states: Array) -> Array:
    maximum = states["sums"]["maximum"]
    of_finite = reference.cool(maximum, _row_states.rows_of(states).temperature) + _log_sum(states)
    return np.where(np.isinf(maximum), maximum, of_finite)


def logsumexp(states: Array) -> Any:
    """Logarithm of the sum of exponentials of each row."""
    states = _row_states.check(states, "sums")
    with np.errstate(all="ignore"):
        return deliver(_log_total(states), _row_states.rows_of(states).dtype)


class _Parts(NamedTuple):
    """What a row's loss and gradient have in common."""

    label: Array  # coefficient of -log p at the label
    share: Array  # the same of each class weight
    total: Array  # the sum of all coefficients
    log_total: Array  # where it is asked for
    divisor: Any


def _parts(states: Array, loss: Loss) -> _Parts:
    label = np.where(loss.ignored, 0, loss.label_part())
    total = label + reference.product(loss.share(), states["sums"]["weights"])
    log_total = _log_total(states) if loss.z_loss else np.zeros(states.shape)
    return _Parts(label, loss.share(), total, log_total, np.float64(loss.divisor()))


def _rows(states: Array, loss: Loss) -> Array:
    """Return the losses of the rows."""
    parts, rows = _parts(states, loss), _row_states.rows_of(states)
    logit, maximum = states["logit"], states["sums"]["maximum"]
    if rows.softcap is not None:
        logit, _ = reference.softcapped(logit, rows.softcap)
    losses = reference.product(parts.total, _log_sum(states))
    losses -= reference.product(parts.label, reference.cool(logit - maximum, rows.temperature))
    losses += reference.product(parts.share, states["sums"]["spread"])
    losses += loss.z_loss * parts.log_total**2
    losses[loss.excluded] = np.inf
    if loss.sample_weight is not None:
        losses = losses * loss.sample_weight
    losses[loss.taken_out()] = 0
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
    """Cross-entropy of rows whose states had a target."""
    states = _row_states.check(states, "sums")
    loss = _row_states.loss_of(
        states, None, sample_weight, ignore_index, label_smoothing, z_loss, reduction,
        denominator, empty,
    )  # fmt: skip
    with np.errstate(all="ignore"):
        result = _rows(states, loss)
        if reduction != "none":
            total, divisor = result.sum(), np.float64(loss.divisor())
            nothing = empty == "zero" and total == 0 == divisor
            result = np.asarray(0.0 if nothing else total / divisor)
        return deliver(result, _row_states.rows_of(states).dtype)


def _normalized(
    logits: ArrayLike,
    states: Array,
    axis: int,
    out: Array | None,
    log: bool,
    options: dict[str, Any],
) -> Array:
    call = _checks.check_shard(logits, None, axis, **options)
    states = _row_states.check(states, "sums", call)
    if out is not None:
        _checks.check_out(out, call.logits.shape, call.dtype)
    with np.errstate(all="ignore"):
        shifted = _included(call)[0] - states["sums"]["maximum"][..., None]
        result = reference.cool(shifted, call.temperature) - _log_sum(states)[..., None]
        result = np.moveaxis(result if log else np.exp(result), -1, call.axis)
        return np.asarray(deliver(result, call.dtype, out))


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
    """Probabilities of some of the classes of each row."""
    options: dict[str, Any] = {"temperature": temperature, "softcap": softcap, "where": where}
    return _normalized(logits, states, axis, out, False, options)


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
    """Log-probabilities of some of the classes of each row."""
    options: dict[str, Any] = {"temperature": temperature, "softcap": softcap, "where": where}
    return _normalized(logits, states, axis, out, True, options)


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
    """Gradient of the cross-entropy by some of the classes' logits."""
    call = _checks.check_shard(
        logits, target, axis, class_offset=class_offset, weight=weight, temperature=temperature,
        softcap=softcap, where=where,
    )  # fmt: skip
    states = _row_states.check(states, "sums", call)
    loss = _row_states.loss_of(
        states, call.target, sample_weight, ignore_index, label_smoothing, z_loss, reduction,
        denominator, empty,
    )  # fmt: skip
    if grad_out is not None:
        _checks.check_out(grad_out, call.logits.shape, call.dtype, "grad_out")
    with np.errstate(all="ignore"):
        parts, sums = _parts(states, loss), states["sums"]
        values, slope = _included(call)
        shifted = reference.cool(values - sums["maximum"][..., None], call.temperature)
        all_sum = (sums["top"] + sums["others"])[..., None]
        probs = np.exp(shifted) / all_sum
        coefficients = parts.share[..., None] * _weights(call)
        is_label = np.arange(call.classes) == call.labels()[..., None]
        coefficients += np.where(is_label, parts.label[..., None], 0)
        total = parts.total[..., None]
        # p K - k; near p = 1 that cancels, (K - k) - K (1 - p) does not.
        complement = (sums["others"] + (sums["top"] - 1))[..., None] / all_sum
        grad = np.where(
            probs > 0.5,
            (total - coefficients) - reference.product(total, complement),
            reference.product(total, probs) - coefficients,
        )
        grad += 2 * loss.z_loss * parts.log_total[..., None] * probs
        if slope is not None:
            grad *= slope
        grad = reference.cool(grad, call.temperature)
        if loss.sample_weight is not None:
            grad *= loss.sample_weight[..., None]
        if empty == "zero" and parts.divisor == 0 == _rows(states, loss).sum():
            grad[...] = 0
        elif parts.divisor != 1:
            grad /= parts.divisor
        grad[loss.taken_out() | loss.excluded] = 0
        if call.where is not None:
            np.copyto(grad, 0, where=~np.moveaxis(call.where, call.axis, -1))
        return np.asarray(deliver(np.moveaxis(grad, -1, call.axis), call.dtype, grad_out))
