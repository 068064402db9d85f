"""Losses whose weights, z_loss or denominator are so large or small that factors leave the range.

The kernels multiply them in the dtype that they compute in, where numbers below the smallest normal
count as 0, and keep room on both sides of a gradient's factors. Where that is not enough, powers of
two are taken out beforehand, which rounds nothing, and put back into the results.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _checks

Array = NDArray[Any]
Powers = tuple[int, int]  # the binary exponents between which magnitudes lie

# By the bytes of a number: the exponents that a product of weights may have in the kernels.
RANGE: dict[int, Powers] = {4: (-96, 60), 8: (-960, 900)}
# How far apart the exponents of class weights may lie in float32.
WIDEST = 60
# The exponent of the factors of a scaled gradient.
LARGEST = 40
BLOCK_SIZE = 1 << 16


class Call(NamedTuple):
    """Checked arguments of a loss, as the kernels take them."""

    labels: Array | None  # int64
    probabilities: Array | None
    class_weight: Array | None
    sample_weight: Array | None
    ignore_index: int
    label_smoothing: float
    z_loss: float
    temperature: float
    reduction: str
    denominator: float | None
    empty_is_zero: bool
    dtype: np.dtype[Any]  # of the result


class Scaled(NamedTuple):
    """A call that the kernels can compute, and what to make of their results."""

    call: Call
    divisor: float  # of the sum of the losses, once that has its powers of two back
    row_powers: Array | int = 0  # taken out of each row's loss and gradient, in part;
    loss_power: int = 0  # the rest, the same for all rows: of the losses,
    gradient_power: int = 0  # and of the gradient


def unscaled(call: Call, row_shape: tuple[int, ...]) -> Scaled:
    """Return a call as it is, with what its mean divides by."""
    if call.reduction != "mean":
        return Scaled(call, 1.0)
    divisor = _divisor(call, row_shape, 0)
    return Scaled(call._replace(denominator=divisor), divisor)


def scaled(call: Call, classes: int, row_shape: tuple[int, ...]) -> Scaled | None:
    """Return a call with powers of two taken out; None if the kernels need nothing of the kind."""
    if _fits(call, math.prod(row_shape)):
        return None
    easier = call
    weights: Array | None
    row_powers: Array | int = 0
    common = 0  # the power of two taken out of all rows
    if call.sample_weight is not None:
        weights, row_powers = _split(call.sample_weight)
        easier = easier._replace(sample_weight=weights)
    if (
        call.labels is not None
        and call.class_weight is not None
        and call.label_smoothing == 0
        and call.z_loss == 0
    ):
        weights, powers = _split(call.class_weight)
        row_powers = row_powers + powers.take(call.labels, mode="clip")
        easier = easier._replace(class_weight=weights)
    elif call.class_weight is not None or call.z_loss != 0:
        weights = call.class_weight
        if weights is None:
            weights = np.ones(classes, _checks.compute_dtype(call.dtype))
        common = _powers(weights)[1]
        if call.z_loss != 0:
            common = max(common, _power(call.z_loss))
        easier = easier._replace(
            class_weight=np.ldexp(weights, -common), z_loss=float(np.ldexp(call.z_loss, -common))
        )
    # What is left to the rows is near 0, so that their sum is in the range of float64.
    row_power = _largest(row_powers, call)
    row_powers = row_powers - row_power
    loss_power = common + row_power
    divisor = 1.0
    if call.reduction == "mean":
        divisor = _divisor(easier, row_shape, row_powers)
        if call.denominator is None:
            # The sum of the weights: what was taken out of it cancels.
            loss_power -= row_power + (common if call.labels is not None else 0)
    # The gradient is divided by another number than the loss, for its factors to be in range.
    gradient_divisor = divisor if divisor != 0 and math.isfinite(divisor) else 1.0
    power = -LARGEST - _power(gradient_divisor) - _power(call.temperature)
    if gradient_divisor == divisor:
        gradient_divisor = float(np.ldexp(gradient_divisor, power))
    easier = easier._replace(reduction="mean", denominator=gradient_divisor)
    return Scaled(easier, divisor, row_powers, loss_power, loss_power + power)


def dtype_for(call: Call, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return `dtype`, or float64 where class weights that add up are too far apart for float32."""
    adds_up = call.probabilities is not None or call.label_smoothing != 0
    if dtype.itemsize < 8 and adds_up and call.class_weight is not None:
        smallest, largest = _powers(call.class_weight)
        if largest - smallest > WIDEST:
            return np.dtype(np.float64)
    return dtype


def restored(results: Any, power: Any) -> Any:
    """Return results of a scaled call with their power of two back."""
    if isinstance(power, int) and power == 0:
        return results
    return np.ldexp(results, power)


def _fits(call: Call, rows: int) -> bool:
    """Tell whether all products that the kernels form are in range."""
    if (
        call.class_weight is None
        and call.sample_weight is None
        and call.denominator is None
        and call.z_loss == 0
    ):
        return True
    weight = _powers(call.class_weight)
    sample_weight = _powers(call.sample_weight)
    both = _plus(weight, sample_weight)
    divisor = 0, 0
    if call.reduction == "mean" and call.denominator is not None:
        divisor = _times(divisor, call.denominator)
    elif call.reduction == "mean":
        divisor = both[0], both[1] + rows.bit_length()
    share = -divisor[1], -divisor[0]
    cooled_share = _times(share, 1 / call.temperature)
    scale = _plus(cooled_share, sample_weight)
    products = [weight, sample_weight, both, share, cooled_share, scale, _plus(scale, weight)]
    if call.z_loss != 0:
        # Times twice the logsumexp, which is below 2**7 unless the logits themselves are extreme.
        z_loss = _power(call.z_loss) + 8
        products.append((0, max(0, z_loss + max(0, scale[1]))))
    lowest, highest = RANGE[_checks.compute_dtype(call.dtype).itemsize]
    return all(lowest <= low and high <= highest for low, high in products)


def _plus(a: Powers, b: Powers) -> Powers:
    return a[0] + b[0], a[1] + b[1]


def _times(powers: Powers, number: float) -> Powers:
    power = _power(number)
    return powers[0] + power, powers[1] + power


def _power(number: float) -> int:
    """Return the binary exponent of a number, 0 for 0."""
    return math.frexp(number)[1]


def _split(weights: Array) -> tuple[Array, Array]:
    """Return weights without their powers of two, and those; for 0 and the like the smallest."""
    rest, powers = np.frexp(weights)
    regular = (weights != 0) & np.isfinite(weights)
    most = int(np.iinfo(powers.dtype).max)
    smallest = int(powers.min(where=regular, initial=most))
    return rest, np.where(regular, powers, 0 if smallest == most else smallest)


def _largest(row_powers: Array | int, call: Call) -> int:
    """Return the largest power of a row that counts."""
    if isinstance(row_powers, int):
        return row_powers
    if call.labels is None:
        return int(row_powers.max())
    counted = row_powers[call.labels != call.ignore_index]
    return int(counted.max()) if counted.size else 0


def _powers(weights: Array | None) -> Powers:
    """Return exponents that weights lie between; 0 and what is not finite are left out."""
    if weights is None:
        return 0, 0
    smallest, largest = _magnitudes(weights.reshape(-1))
    if not math.isfinite(largest):
        regular = weights[np.isfinite(weights)]
        if regular.size == 0:
            return 0, 0
        smallest, largest = _magnitudes(regular)
    return _power(smallest) - 1, _power(largest)


def _magnitudes(weights: Array) -> tuple[float, float]:
    """Return the smallest magnitude but 0, and the largest, 0 if all are: by the bits, fast."""
    unsigned = np.dtype(f"u{weights.itemsize}")
    sign = 1 << (8 * weights.itemsize - 1)
    smallest, largest = sign, 0
    for start in range(0, weights.size, BLOCK_SIZE):
        bits = weights[start : start + BLOCK_SIZE].view(unsigned)
        high = int(bits.max())
        if high >= sign:
            bits = bits & unsigned.type(sign - 1)
            high = int(bits.max())
        largest = max(largest, high)
        low = int(bits.min())
        if low == 0:
            low = int((bits - unsigned.type(1)).min()) + 1  # 0 becomes the largest
        smallest = min(smallest, low)
    found = np.array([min(smallest, largest), largest], unsigned)
    low_weight, high_weight = found.view(weights.dtype).tolist()
    return low_weight, high_weight


def _divisor(call: Call, row_shape: tuple[int, ...], row_powers: Array | int) -> float:
    """Return what the mean divides by."""
    if call.denominator is not None:
        return call.denominator
    weights = np.ones(row_shape) if call.sample_weight is None else call.sample_weight
    valid: Any = True
    if call.labels is not None:
        valid = call.labels != call.ignore_index
        if call.class_weight is not None:
            weights = weights * call.class_weight.take(call.labels, mode="clip")
    weights = restored(weights.astype(np.float64, copy=False), row_powers)
    # In long double, and in pairs, as a sum with `where` is not: each rounding is the gradient's.
    return float(np.where(valid, weights, 0).sum(dtype=np.longdouble))
