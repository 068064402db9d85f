"""Cross-entropy of class indices or class probabilities, from logits or from probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import _arrays, _checks, _fresh_outputs, reference
from ._checks import LossArguments
from ._kernels import execute
from ._threads import threads_for

Array = NDArray[Any]
DType = np.dtype[Any]


def cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    axis: int = -1,
    *,
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
) -> Any:
    r"""Return the cross-entropy of the softmax of `logits` with a target.

    Parameters
    ----------
    logits : array_like, shape (..., C, ...)
        Unnormalised log-probabilities, of any real dtype and any strides. The bits of bfloat16 in
        uint16 are numbers like any others: pass ``bits.view(ml_dtypes.bfloat16)``.
    target : array_like
        Integers of the shape of `logits` without the class axis: class indices. Or floating
        numbers of the shape of `logits`: class probabilities, which are taken as they stand.
        Labels that their dtype has wrapped round (200 is -56 in int8) cannot be told.
    axis : int, default -1
        The class axis. PyTorch's and ONNX's layout is ``axis=1``.
    weight : array_like, shape (C,), optional
        Weight of each class.
    sample_weight : array_like, optional
        Weight of each row, broadcast to the shape of `logits` without the class axis.
    ignore_index : int, default -100
        Label of rows that count for nothing, even where they hold NaN.
    label_smoothing : float, default 0.0
        Share, in [0, 1], of the target that is spread evenly over all classes.
    z_loss : float, default 0.0
        Adds ``z_loss * logsumexp(row)**2`` to each row's loss.
    temperature : float, default 1.0
        Divides the logits. Finite and above 0.
    softcap : float, optional
        Makes ``softcap * tanh(logits / softcap)`` of the logits, before `temperature` divides
        them. Finite and above 0.
    where : array_like of bool, optional
        The classes allowed, broadcast to the shape of `logits`. The result is that of rows without
        the other classes, which may hold NaN; `label_smoothing` is shared by those allowed.
    reduction : {"mean", "sum", "none"}, default "mean"
        What becomes of the losses of the rows.
    denominator : float, optional
        What "mean" divides by. By default the sum of ``weight[label] * sample_weight`` over the
        rows not ignored for class indices, the sum of ``sample_weight`` (else the number of
        rows) for class probabilities.
    empty : {"nan", "zero"}, default "nan"
        The mean over no rows: NaN or 0.
    dtype : dtype, optional
        Floating type of the result. By default that of `logits`; float64 for booleans and
        integers. It is computed in the wider of the two, half types in float32.

    Returns
    -------
    scalar or ndarray
        The reduced loss, or with ``reduction="none"`` the losses, one for each row: +inf where
        the target gives a part to a class that `where` excludes, or `where` allows no class.

    Raises
    ------
    IndexError
        If a label is below 0 or not below C, and is not `ignore_index`.
    AxisError
        If `axis` is out of range.
    TypeError
        If `logits` is complex, masked or not numeric, the labels are boolean, or `where` is not.
    ValueError
        If a shape does not fit or an option is out of range.

    See Also
    --------
    cross_entropy_with_grad : The loss and its gradient in one pass.

    Notes
    -----
    .. math:: H = -\sum_i p_i \log q_i, \quad q = \mathrm{softmax}(x / T)

    with PyTorch's formulas for weights, smoothing and the mean. Where the target's probability is
    near 1 the loss is log1p(others / own), so a confident row keeps its digits. The losses are
    summed in float64, in an order that does not depend on the number of threads.

    Examples
    --------
    >>> import numpy as np
    >>> import softce_fast as sf
    >>> loss = sf.cross_entropy(np.array([[2.0, 1.0, 0.1]]), np.array([0]))
    >>> round(float(loss), 3)
    0.417
    """
    loss, _ = _cross_entropy(
        logits, target, axis, weight, sample_weight, ignore_index, label_smoothing, z_loss,
        temperature, softcap, where, reduction, denominator, empty, dtype, False, None,
    )  # fmt: skip
    return loss


def cross_entropy_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    axis: int = -1,
    *,
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
    grad_out: Array | None = None,
) -> tuple[Any, Array]:
    r"""Return the cross-entropy and its gradient by the logits, in one pass.

    Parameters
    ----------
    logits, target, axis, weight, sample_weight, ignore_index, label_smoothing, z_loss
        As in :func:`cross_entropy`.
    temperature, softcap, where, reduction, denominator, empty, dtype
        As in :func:`cross_entropy`.
    grad_out : ndarray, optional
        Where to put the gradient: of the shape of `logits` and the dtype of the result, any
        strides. It may be `logits` itself, which the gradient then overwrites.

    Returns
    -------
    loss : scalar or ndarray
        As from :func:`cross_entropy`.
    grad : ndarray
        Gradient of the reduced loss by the logits, of their shape; for ``reduction="none"`` that of
        the sum of the losses. Exactly 0 in ignored rows and at classes that `where` excludes.

    Raises
    ------
    IndexError, AxisError, TypeError, ValueError
        As :func:`cross_entropy`; also if `grad_out` does not fit, is read-only, or overlaps
        `logits` without being `logits`. Nothing has been written then.

    Notes
    -----
    .. math:: \frac{\partial H}{\partial x_i} = (q_i - p_i) / T

    for a target that sums to 1, times the row's share in the reduced loss. At the label this is
    computed as minus the sum of the other probabilities, which keeps its digits. With `softcap` an
    entry is multiplied by :math:`1 - \tanh^2 u = 4 v / (1 + v)^2`, where :math:`u` is
    ``logits / softcap`` and :math:`v = e^{-2 |u|}`.

    Examples
    --------
    >>> import numpy as np
    >>> import softce_fast as sf
    >>> loss, grad = sf.cross_entropy_with_grad(np.array([[2.0, 1.0, 0.1]]), np.array([0]))
    >>> grad.round(3)
    array([[-0.341,  0.242,  0.099]])
    """
    return _cross_entropy(
        logits, target, axis, weight, sample_weight, ignore_index, label_smoothing, z_loss,
        temperature, softcap, where, reduction, denominator, empty, dtype, True, grad_out,
    )  # fmt: skip


def cross_entropy_with_grad_and_hessian(
    logits: ArrayLike,
    target: ArrayLike,
    axis: int = -1,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
    reduction: str = "mean",
    denominator: float | None = None,
    empty: str = "nan",
    dtype: DTypeLike | None = None,
    hessian_scale: float = 1.0,
    hessian_floor: float | None = None,
    grad_out: Array | None = None,
    hessian_out: Array | None = None,
) -> tuple[Any, Array, Array]:
    r"""Return the cross-entropy, its gradient and the diagonal of its Hessian by the logits.

    Parameters
    ----------
    logits, target, axis, weight, sample_weight, ignore_index, label_smoothing
        As in :func:`cross_entropy`.
    temperature, where, reduction, denominator, empty, dtype
        As in :func:`cross_entropy`.
    hessian_scale : float, default 1.0
        Multiplies the Hessian. Finite and above 0.
    hessian_floor : float, optional
        The least value of the Hessian, after all else; not in rows that do not count nor at classes
        that `where` excludes, where it is 0. Finite and not below 0.
    grad_out, hessian_out : ndarray, optional
        Where to put the gradient and the Hessian: of the shape of `logits` and the dtype of the
        result, any strides. `grad_out` may be `logits` itself.

    Returns
    -------
    loss : scalar or ndarray
        As from :func:`cross_entropy`.
    grad, hessian : ndarray
        Gradient, and second derivatives by each logit, of the reduced loss; of the sum of the
        losses for ``reduction="none"``.

    Raises
    ------
    IndexError, AxisError, TypeError, ValueError
        As :func:`cross_entropy_with_grad`; also if `hessian_scale` or `hessian_floor` is out of
        range, or `hessian_out` does not fit or shares memory with another array of the call.
        Nothing has been written then.

    Notes
    -----
    .. math:: \frac{\partial^2 H}{\partial x_i^2} = K q_i (1 - q_i) / T^2

    with :math:`K` the sum of the target's coefficients, times the row's share in the reduced loss.
    Where :math:`q_i` is above 1/2, :math:`1 - q_i` is the sum of the others.

    Examples
    --------
    >>> import numpy as np
    >>> import softce_fast as sf
    >>> logits, target = np.array([[2.0, 1.0, 0.1]]), np.array([0])
    >>> loss, grad, hessian = sf.cross_entropy_with_grad_and_hessian(logits, target)
    >>> hessian.round(3)
    array([[0.225, 0.184, 0.089]])
    """
    call = _checks.check_loss(
        "logits", logits, target, axis, weight=weight, sample_weight=sample_weight,
        ignore_index=ignore_index, label_smoothing=label_smoothing, temperature=temperature,
        where=where, reduction=reduction, denominator=denominator, empty=empty, dtype=dtype,
    )  # fmt: skip
    shape = call.values.shape
    scale, floor = _checks.check_hessian(call, hessian_scale, hessian_floor, hessian_out)
    _checks.check_gradient_out(call, grad_out)
    if hessian_out is not None:
        others = (*_inputs(call), grad_out)
        if any(x is not None and _arrays.shares_memory(x, hessian_out) for x in others):
            raise ValueError("hessian_out must not share memory with another array of the call")
    if _arrays.left_to_numpy(call.values, call.dtype, call.temperature):
        return reference.loss_gradient_and_hessian(call, scale, floor, grad_out, hessian_out)
    gradient = _arrays.output(grad_out, "grad_out", shape, call.dtype, *_inputs(call))
    hessian = _fresh_outputs.empty(shape, call.dtype) if hessian_out is None else hessian_out
    losses = _losses_array(call)
    loss = run(call, losses, gradient, hessian, scale, floor)
    return _result(call, losses, loss), gradient, hessian


def _cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    axis: int,
    weight: ArrayLike | None,
    sample_weight: ArrayLike | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    temperature: float,
    softcap: float | None,
    where: ArrayLike | None,
    reduction: str,
    denominator: float | None,
    empty: str,
    dtype: DTypeLike | None,
    with_grad: bool,
    grad_out: Array | None,
) -> tuple[Any, Any]:
    """Return the loss, and the gradient or None."""
    if (
        denominator is None and softcap is None and where is None
        and (dtype is None or _checks.is_own_dtype(dtype, logits))
    ):  # fmt: skip
        results = execute.cross_entropy_fast(
            logits, target, axis, weight, sample_weight, ignore_index, label_smoothing, z_loss,
            temperature, reduction, empty, with_grad, grad_out, threads_for,
        )  # fmt: skip
        if results is not None:
            return results
    call = _checks.check_loss(
        "logits", logits, target, axis, weight=weight, sample_weight=sample_weight,
        ignore_index=ignore_index, label_smoothing=label_smoothing, z_loss=z_loss,
        temperature=temperature, softcap=softcap, where=where, reduction=reduction,
        denominator=denominator, empty=empty, dtype=dtype,
    )  # fmt: skip
    _checks.check_gradient_out(call, grad_out)
    if _arrays.left_to_numpy(call.values, call.dtype, call.temperature, call.softcap):
        return reference.loss_and_gradient(call, with_grad, grad_out)
    losses, gradient = _losses_array(call), None
    if with_grad:
        shape = call.values.shape
        gradient = _arrays.output(grad_out, "grad_out", shape, call.dtype, *_inputs(call))
    loss = run(call, losses, gradient)
    return _result(call, losses, loss), gradient


class Reduced(NamedTuple):
    """A reduced loss: total / divisor * 2**power."""

    total: float
    divisor: float = 1.0
    power: int = 0

    def scalar(self, empty: str, dtype: DType) -> Any:
        """Return it; nothing over 0 is `empty`."""
        total, divisor, power = self
        with np.errstate(all="ignore"):  # a loss beyond the result's range is inf or 0
            if divisor == 0 and total != 0:
                loss = total * math.copysign(math.inf, divisor)
            elif divisor == 0:
                loss = 0.0 if empty == "zero" else math.nan
            elif power == 0:
                loss = total / divisor
            else:
                (total, over), (divisor, under) = math.frexp(total), math.frexp(divisor)
                loss = np.ldexp(total / divisor, over - under + power)
            return np.float64(loss).astype(dtype)


def run(
    call: LossArguments,
    losses: Array | None,
    gradient: Array | None,
    hessian: Array | None = None,
    hessian_scale: float = 1.0,
    hessian_floor: float | None = None,
) -> Reduced:
    """Write what is wanted; return the sum of the losses or their mean.

    Gradient and Hessian are those of the reduced loss.
    """
    scaled, powers = _balanced(call)
    floor = -math.inf if hessian_floor is None else hessian_floor

    def executed(
        sum_power: int, losses: Array | None, gradient: Array | None, hessian: Array | None
    ) -> tuple[float, float]:
        found = execute.cross_entropy(
            call.values, call.labels, call.probabilities, call.where, losses, gradient, hessian,
            call.axis, scaled.weight, scaled.sample_weight, call.label_smoothing, scaled.z_loss,
            call.temperature, call.softcap or 0.0, call.reduction == "mean", call.denominator,
            call.ignore_index, powers.factors(call.labels is not None, sum_power), threads_for,
            call.dtype, hessian_scale, floor,
        )  # fmt: skip
        return _checked(call, found)

    found = executed(0, losses, gradient, hessian)
    loss = _reduced(call, powers, found, lambda power: executed(power, None, None, None)[0])
    for derivative in (gradient, hessian):
        if derivative is not None and loss.divisor == 0:
            divide_by_zero(derivative, call.axis, loss, call.empty, _taken_out(call), call.where)
    return loss


def _inputs(call: LossArguments) -> tuple[Array | None, ...]:
    return (
        call.values, call.labels, call.probabilities, call.weight, call.sample_weight, call.where
    )  # fmt: skip


def _losses_array(call: LossArguments) -> Array | None:
    return np.empty(call.row_shape, call.dtype) if call.reduction == "none" else None


def _checked(call: LossArguments, found: tuple[float, float] | None) -> tuple[float, float]:
    """Return what the kernels found, or raise the error for the label that is no class."""
    if found is not None:
        return found
    assert call.labels is not None
    _checks.check_labels(call.labels, call.classes, call.ignore_index)
    raise IndexError("target was changed during the call, and held a label that is no class")


def _reduced(
    call: LossArguments, powers: Powers, found: tuple[float, float], again: Callable[[int], float]
) -> Reduced:
    """Return the loss of a sum, and what a mean divides by; `again` as in Powers.reduced()."""
    total, divisor = found
    if call.reduction == "none":
        return Reduced(total)
    if call.reduction == "sum":
        divisor = 1.0
    elif call.denominator is not None:
        divisor = call.denominator
    return powers.reduced(total, divisor, again)


def _result(call: LossArguments, losses: Array | None, loss: Reduced) -> Any:
    """Return the losses, or their sum or mean."""
    if losses is not None:
        return _arrays.unwrapped(losses)
    return loss.scalar(call.empty, call.dtype)


# ---- weights of any size -------------------------------------------------------------------------

# The exponents between which weights are moderate; how far apart two of others may be; that of the
# largest numbers; and one that counts for nothing.
_MODERATE, _FAR = 100, 900
_LARGEST = np.finfo(np.float64).maxexp
_NOTHING = -10_000
# A sum below this may miss losses. It is made again of others, so many powers of two away.
_TINY = 2.0**-900
_STEP, _FARTHEST = 1000, 3000


class Powers(NamedTuple):
    """Powers of two that are taken out of weights and of what follows from them."""

    moderate: bool = True  # the weights are near 1: nothing is taken out
    close: bool = True  # what is left of them may be multiplied and added up
    of_class: int = 0  # of class weights and z_loss,
    of_sample: int = 0  # of sample weights,
    divisor: int = 0  # and of what a mean is divided by

    def factors(self, labelled: bool, sum_power: int = 0) -> tuple[int, int, int]:
        """Return the powers that multiply each row, each loss in a sum, each weight in a divisor.

        The divisor of a row has lost its own.
        """
        taken = self.of_class + self.of_sample
        weights = taken if labelled else self.of_sample
        return taken - self.divisor, sum_power, weights - self.divisor

    def taken_out_of(
        self, weight: Array | None, sample_weight: Array | None, z_loss: float
    ) -> tuple[Array | None, Array | None, float]:
        """Return what is left of class weights, sample weights and z_loss."""
        return (
            None if weight is None else _without_power(weight, self.of_class),
            None if sample_weight is None else _without_power(sample_weight, self.of_sample),
            math.ldexp(z_loss, -self.of_class),
        )

    def reduced(self, total: float, divisor: float, again: Callable[[int], float]) -> Reduced:
        """Return a sum of losses over a divisor.

        Where weights are not moderate, the sum may be out of the range that the result is in.
        `again` sums the losses times a power of two.
        """
        power = 0
        while not self.moderate and abs(power) < _FARTHEST and (
            abs(total) < _TINY or abs(total) == math.inf
        ):  # fmt: skip
            power += _STEP if abs(total) < _TINY else -_STEP
            total = again(power)
        return Reduced(total, divisor, self.of_class + self.of_sample - power - self.divisor)


def balance(weight: Array | None, sample_weight: Array | None, z_loss: float) -> Powers:
    """Return the powers that leave weights around 1."""
    (least, most), (least_sample, most_sample) = map(_exponents, (weight, sample_weight))
    if max(map(abs, (least, most, least_sample, most_sample))) < _MODERATE:
        return Powers()
    of_class = _middle(least, most)
    if weight is not None and z_loss:
        # There is room for the square of a logsumexp, unless a weight would vanish.
        of_z = math.frexp(z_loss)[1]
        of_class = max(of_class, min(of_z, least + _FAR), of_z - _FAR)
    of_sample = _middle(least_sample, most_sample)
    close = max(most - of_class, of_class - least) + most_sample - of_sample < _FAR
    return Powers(False, close, of_class, of_sample)


def _middle(least: int, most: int) -> int:
    """Return the middle of two exponents; less that, the larger is in range."""
    return max((least + most) // 2, most - _LARGEST + 1)


def _exponents(weights: Array | None) -> tuple[int, int]:
    """Return the smallest and the largest exponent of weights that are neither 0 nor infinite."""
    if weights is None or weights.size == 0:
        return 0, 0
    with np.errstate(invalid="ignore"):  # a NaN of any payload
        least, most = float(weights.min()), float(weights.max())
        if not 0 < least <= most < np.inf:
            size = np.abs(weights).astype(np.float64, copy=False)
            counts = (size > 0) & (size < np.inf)
            least, most = (
                size.min(where=counts, initial=np.inf),
                size.max(where=counts, initial=0),
            )
    return (0, 0) if least == np.inf else (math.frexp(least)[1], math.frexp(most)[1])


def divided(
    powers: Powers, counts: Array | bool, label: Array | None, sample: Array | None
) -> Powers:
    """Return powers with that of a divisor, from the weights of the rows that count.

    If need be, that of the largest of their products.
    """
    if powers.close:
        return powers._replace(divisor=(0 if label is None else powers.of_class) + powers.of_sample)
    total: Array | int = 0
    for weights in (label, sample):
        if weights is not None:
            weights = weights.astype(np.float64, copy=False)
            usable = np.isfinite(weights) & (weights != 0)
            total = total + np.where(usable, np.frexp(weights)[1], _NOTHING)
    largest = int(np.where(counts, total, _NOTHING).max())
    return powers._replace(divisor=largest if largest > _NOTHING // 2 else 0)


def _balanced(call: LossArguments) -> tuple[LossArguments, Powers]:
    """Return a call without the powers of two that leave its weights around 1."""
    weight, sample_weight = call.weight, call.sample_weight
    powers = balance(weight, sample_weight, call.z_loss)
    if powers.moderate:
        return call, powers
    if call.reduction == "mean" and call.denominator is None:
        counts: Array | bool = True
        of_label = None
        if call.labels is not None:
            counts = call.labels != call.ignore_index
            of_label = None if weight is None else weight.take(call.labels, mode="clip")
        powers = divided(powers, counts, of_label, sample_weight)
    weight, sample_weight, z_loss = powers.taken_out_of(weight, sample_weight, call.z_loss)
    return call._replace(weight=weight, sample_weight=sample_weight, z_loss=z_loss), powers


def _without_power(weights: Array, power: int) -> Array:
    """Return weights less a power of two; none becomes 0: times an infinite loss, each counts."""
    weights = weights.astype(np.float64, copy=False)
    with np.errstate(all="ignore"):
        scaled: Array = weights * 2.0**-power if abs(power) < 1000 else np.ldexp(weights, -power)
    smallest = np.finfo(np.float64).tiny
    vanishes = (np.abs(scaled) < smallest) & (weights != 0)
    return np.where(vanishes, np.copysign(smallest, weights), scaled)


def divide_by_zero(
    gradient: Array,
    axis: int,
    loss: Reduced,
    empty: str,
    taken_out: NDArray[np.bool_],
    where: NDArray[np.bool_] | None,
) -> None:
    """Divide a derivative of the sum as by any other number; the rows taken out stay 0."""
    if empty == "zero" and loss.total == 0:
        gradient[...] = 0
        return
    with np.errstate(all="ignore"):
        gradient /= gradient.dtype.type(loss.divisor)
    np.moveaxis(gradient, axis, -1)[taken_out] = 0
    if where is not None:
        np.copyto(gradient, 0, where=~where)


def _taken_out(call: LossArguments) -> NDArray[np.bool_]:
    """Tell which rows do not count."""
    rows = np.zeros(call.row_shape, np.bool_)
    if call.labels is not None:
        rows |= call.labels == call.ignore_index
        if call.weight is not None and call.label_smoothing == 0 and call.z_loss == 0:
            rows |= call.weight.take(call.labels, mode="clip") == 0
    if call.sample_weight is not None:
        rows |= call.sample_weight == 0
    return rows


def nll_loss(
    log_probs: ArrayLike,
    target: ArrayLike,
    axis: int = -1,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    denominator: float | None = None,
    empty: str = "nan",
    dtype: DTypeLike | None = None,
) -> Any:
    r"""Return the negative log-likelihood of a target, given log-probabilities.

    Parameters
    ----------
    log_probs : array_like, shape (..., C, ...)
        Log-probabilities, as :func:`log_softmax` returns them.
    target, axis, weight, sample_weight, ignore_index, reduction, denominator, empty, dtype
        As in :func:`cross_entropy`.

    Returns
    -------
    scalar or ndarray
        As from :func:`cross_entropy`.

    Raises
    ------
    IndexError, AxisError, TypeError, ValueError
        As :func:`cross_entropy`.

    Notes
    -----
    .. math:: H = -\sum_i p_i \log q_i

    A term with :math:`p_i = 0` is 0, also where :math:`\log q_i` is -inf.

    Examples
    --------
    >>> import numpy as np
    >>> import softce_fast as sf
    >>> log_probs = np.log(np.array([[0.7, 0.2, 0.1]]))
    >>> round(float(sf.nll_loss(log_probs, np.array([0]))), 3)
    0.357
    """
    return _negative_log(
        "log_probs", log_probs, target, axis, weight, sample_weight, ignore_index, reduction,
        denominator, empty, dtype,
    )  # fmt: skip


def cross_entropy_from_probs(
    probs: ArrayLike,
    target: ArrayLike,
    axis: int = -1,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    denominator: float | None = None,
    empty: str = "nan",
    dtype: DTypeLike | None = None,
) -> Any:
    r"""Return the cross-entropy of a target, given probabilities.

    Parameters
    ----------
    probs : array_like, shape (..., C, ...)
        Probabilities. They are neither normalised nor clamped, nor checked to be in [0, 1].
    target, axis, weight, sample_weight, ignore_index, reduction, denominator, empty, dtype
        As in :func:`cross_entropy`.

    Returns
    -------
    scalar or ndarray
        As from :func:`cross_entropy`; +inf where a probability is 0 and its target is not.

    Raises
    ------
    IndexError, AxisError, TypeError, ValueError
        As :func:`cross_entropy`.

    Notes
    -----
    .. math:: H(p, q) = -\sum_i p_i \log q_i

    A term with :math:`p_i = 0` is 0, also where :math:`q_i` is 0.

    Examples
    --------
    >>> import numpy as np
    >>> import softce_fast as sf
    >>> round(float(sf.cross_entropy_from_probs(np.array([[0.7, 0.2, 0.1]]), np.array([0]))), 3)
    0.357
    """
    return _negative_log(
        "probs", probs, target, axis, weight, sample_weight, ignore_index, reduction, denominator,
        empty, dtype,
    )  # fmt: skip


def _negative_log(
    name: str,
    values: ArrayLike,
    target: ArrayLike,
    axis: int,
    weight: ArrayLike | None,
    sample_weight: ArrayLike | None,
    ignore_index: int,
    reduction: str,
    denominator: float | None,
    empty: str,
    dtype: DTypeLike | None,
) -> Any:
    """Return the loss of probabilities (`name` is "probs") or of log-probabilities."""
    is_log = name == "log_probs"
    if denominator is None and (dtype is None or _checks.is_own_dtype(dtype, values)):
        loss = execute.negative_log_fast(
            values, target, axis, weight, sample_weight, ignore_index, reduction, empty, is_log,
            threads_for,
        )  # fmt: skip
        if loss is not None:
            return loss
    call = _checks.check_loss(
        name, values, target, axis, weight=weight, sample_weight=sample_weight,
        ignore_index=ignore_index, reduction=reduction, denominator=denominator, empty=empty,
        dtype=dtype,
    )  # fmt: skip
    if _arrays.left_to_numpy(call.values, call.dtype):
        return reference.negative_log(call, is_log)
    losses = _losses_array(call)
    scaled, powers = _balanced(call)

    def executed(sum_power: int, losses: Array | None) -> tuple[float, float]:
        found = execute.negative_log(
            call.values, call.labels, call.probabilities, losses, call.axis, scaled.weight,
            scaled.sample_weight, call.ignore_index, is_log,
            powers.factors(call.labels is not None, sum_power), threads_for, call.dtype,
        )  # fmt: skip
        return _checked(call, found)

    loss = _reduced(call, powers, executed(0, losses), lambda power: executed(power, None)[0])
    return _result(call, losses, loss)
