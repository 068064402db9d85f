"""The long double truth against the textbook's formulas in mpmath, with digits to waste."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import truth
from truth import Array

mpmath = pytest.importorskip("mpmath")

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.skipif(not truth.HAS_EXTENDED, reason="long double is float64 here"),
]

# A gap of 80 takes 35 digits, 1 / 0.3 of it 116; 50 more remain.
DIGITS = 170
# In units of float64, whose results may be 2 or 4 from the truth. exp(-267) alone has 0.12.
LARGEST_ERROR = 0.2


def exact(value: Any) -> Any:
    """Return a number without any rounding, also if it is a long double."""
    mantissa, exponent = np.frexp(np.longdouble(value))
    high = float(mantissa)
    return mpmath.ldexp(mpmath.mpf(high) + mpmath.mpf(float(mantissa - high)), int(exponent))


def numbers(values: Any) -> Any:
    """Return numbers as mpmath's, in an array of objects."""
    array = np.asarray(values)
    return np.array([exact(item) for item in array.flat], object).reshape(array.shape)


def assert_true(found: Array, right: Any, scale: Any = 0.0) -> None:
    """Compare with results of mpmath; the rounding of those to long double is small beside it."""
    wide = [np.longdouble(float(item)) + np.longdouble(float(item - float(item))) for item in right]
    floor = np.asarray(scale, np.float64)
    error = truth.ulp_error(found, np.array(wide), np.float64, floor=floor)
    assert error.max() <= LARGEST_ERROR, f"{error.max()} at {error.argmax()}"


def rows(kind: str, dtype: Any, seed: int) -> Array:
    """Rows of 7 logits: random, or one of them 0 to 80 above the others."""
    random = np.random.default_rng(seed)
    logits = random.normal(scale=3, size=(12, 7)) + random.choice([0, 50, -1000], (12, 1))
    if kind == "confident":
        top = random.integers(0, 7, (12, 1))
        gaps = np.linspace(0, 80, 12)[:, None]
        np.put_along_axis(logits, top, logits.max(axis=1, keepdims=True) + gaps, axis=1)
    return logits.astype(dtype)


def target_for(kind: str, logits: Array, seed: int) -> Array:
    random = np.random.default_rng(seed)
    labels = np.where(np.arange(12) % 2, logits.argmax(axis=1), random.integers(0, 7, 12))
    if kind == "labels":
        labels[3] = -100
        return labels
    if kind == "one-hot":
        return np.eye(7, dtype=logits.dtype)[labels]
    soft = random.gamma(0.3, size=logits.shape) ** 3
    soft[np.arange(12), labels] += 10.0 ** random.uniform(-2, 12, 12)
    return (soft / soft.sum(axis=1, keepdims=True)).astype(logits.dtype)


class Textbook:
    """One row's softmax, loss and derivatives as a textbook has them."""

    def __init__(
        self, logits: Any, coefficients: Any, temperature: Any, z_loss: Any, softcap: Any = None
    ) -> None:
        given = numbers(logits)
        capped, slope = given, np.array([mpmath.mpf(1)] * len(given))
        if softcap is not None:
            curve = np.array([mpmath.tanh(item / exact(softcap)) for item in given])
            capped, slope = exact(softcap) * curve, 1 - curve**2
        scaled = capped / exact(temperature)
        exponentials = np.array([mpmath.exp(item) for item in scaled])
        self.logsumexp = mpmath.log(exponentials.sum())
        self.softmax = exponentials / exponentials.sum()
        self.log_softmax = scaled - self.logsumexp
        total = coefficients.sum()
        z_loss = exact(z_loss)
        self.loss = -(coefficients * self.log_softmax).sum() + z_loss * self.logsumexp**2
        self.gradient = total * self.softmax - coefficients
        self.gradient = self.gradient + 2 * z_loss * self.logsumexp * self.softmax
        self.gradient = self.gradient * slope / exact(temperature)
        self.hessian = total * self.softmax * (1 - self.softmax) / exact(temperature) ** 2


OPTIONS: dict[str, Any] = {
    "weight": np.array([1e-3, 0.0, 1.0, 2.5, 1e6, 0.3, 0.0]),
    "sample_weight": np.array([0.5, 0.0, 3.0, 1e-30, 1e30, 1.0] * 2),
    "label_smoothing": 0.1,
    "z_loss": 1e-2,
    "temperature": 0.3,
    "softcap": 30.0,
    "where": np.array([True, True, False, True, True, True, True]),
}
CHOICES = [chosen for count in (0, 1, 2) for chosen in itertools.combinations(OPTIONS, count)] + [
    tuple(OPTIONS)
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("target_kind", ["labels", "one-hot", "soft"])
@pytest.mark.parametrize("kind", ["random", "confident"])
def test_cross_entropy(kind: str, target_kind: str, dtype: str) -> None:
    for seed, chosen in enumerate(CHOICES):
        logits = rows(kind, dtype, seed)
        target = target_for(target_kind, logits, seed)
        check_cross_entropy(logits, target, {name: OPTIONS[name] for name in chosen})


def check_cross_entropy(logits: Array, target: Array, options: dict[str, Any]) -> None:
    found = truth.cross_entropy_with_options(logits, target, reduction="none", **options)
    allowed = options.get("where", np.ones(7, bool))
    with mpmath.workdps(DIGITS):
        weight = numbers(options.get("weight", np.ones(7)))
        smoothing = exact(options.get("label_smoothing", 0.0))
        temperature = options.get("temperature", 1.0)
        for row, given in enumerate(np.broadcast_to(target.T, (7, 12)).T):
            counted = target.ndim > 1 or given[0] >= 0
            factor = exact(options.get("sample_weight", np.ones(12))[row] * counted)
            if not factor:
                assert found.loss[row] == 0
                assert not found.gradient[row].any()
                assert not found.hessian[row].any()
                continue
            distribution = numbers(given if target.ndim > 1 else np.eye(7)[given[0]])
            share = allowed / exact(allowed.sum())
            coefficients = weight * ((1 - smoothing) * distribution + smoothing * share)
            if (coefficients[~allowed] > 0).any():
                assert found.loss[row] == np.inf
                assert not found.gradient[row, ~allowed].any()
                continue
            right = Textbook(
                logits[row][allowed], coefficients[allowed], temperature,
                options.get("z_loss", 0.0), options.get("softcap"),
            )  # fmt: skip
            # As the loss of z_loss: where a logsumexp is near 0, its digits are those of its parts.
            assert_true(found.loss[[row]], [right.loss * factor])
            gradient, scale = found.gradient[row], found.gradient_scale[row]
            assert_true(gradient[allowed], right.gradient * factor, scale[allowed])
            assert not gradient[~allowed].any()
            if "softcap" not in options:
                assert_true(found.hessian[row, allowed], right.hessian * factor)
            parts = {name: options[name] for name in ("where", "temperature", "softcap")
                     if name in options}  # fmt: skip
            one = logits[[row]]
            assert_true(truth.softmax(one, **parts)[0, allowed], right.softmax)
            assert_true(truth.log_softmax(one, **parts)[0, allowed], right.log_softmax)
            size = truth.logsumexp_scale(one, **parts)
            assert_true(truth.logsumexp(one, **parts), [right.logsumexp], size)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("target_kind", ["labels", "soft"])
def test_reductions(target_kind: str, reduction: str) -> None:
    """What "mean" divides by."""
    logits = rows("random", "float64", 0)
    target = target_for(target_kind, logits, 0)
    options = {name: OPTIONS[name] for name in ("weight", "sample_weight")}
    each = truth.cross_entropy_with_options(logits, target, reduction="none", **options)
    found = truth.cross_entropy_with_options(logits, target, reduction=reduction, **options)
    divisor = exact(1)
    with mpmath.workdps(DIGITS):
        if reduction == "mean":
            divisor = numbers(options["sample_weight"]).sum()
        if reduction == "mean" and target_kind == "labels":
            factors = np.where(target >= 0, options["weight"][np.maximum(target, 0)], 0)
            divisor = (numbers(options["sample_weight"]) * numbers(factors)).sum()
        assert_true(found.loss[None], [numbers(each.loss).sum() / divisor])
        for name in ("gradient", "gradient_scale", "hessian"):
            rescaled = numbers(getattr(each, name)) / divisor
            assert_true(getattr(found, name).ravel(), rescaled.ravel())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_binary_losses(dtype: str) -> None:
    random = np.random.default_rng(0)
    logits = np.append(np.linspace(-80, 80, 33), random.normal(scale=3, size=31)).astype(dtype)
    with mpmath.workdps(DIGITS):
        for yes, weight, pos_weight in itertools.product((0, 1, 1e-9, 0.3), (1, 1e30), (1, 1e-3)):
            target = np.full(64, yes, dtype)
            t, factor = exact(target[0]), exact(weight)
            found = truth.binary_cross_entropy_with_logits(
                logits, target, weight=weight, pos_weight=pos_weight, reduction="none"
            )
            sigmoid = np.array([1 / (1 + mpmath.exp(-exact(item))) for item in logits])
            of_yes = np.array([mpmath.log(item) for item in sigmoid]) * t
            of_no = np.array([mpmath.log(1 - item) for item in sigmoid]) * (1 - t)
            assert_true(found.loss, -factor * (exact(pos_weight) * of_yes + of_no))
            right = factor * ((1 - t) * sigmoid - exact(pos_weight) * t * (1 - sigmoid))
            assert_true(found.gradient, right, found.gradient_scale)
            curvature = (1 - t + exact(pos_weight) * t) * sigmoid * (1 - sigmoid)
            assert_true(found.hessian, factor * curvature)
            probs = np.array([float(item) for item in sigmoid]).astype(dtype)
            probs = probs[(probs > 0) & (probs < 1)]
            loss = truth.binary_cross_entropy(
                probs, target[: len(probs)], weight=weight, reduction="none"
            )
            right = [t * mpmath.log(q) + (1 - t) * mpmath.log(1 - q) for q in numbers(probs)]
            assert_true(loss, -factor * np.array(right))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["random", "confident"])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_backward(kind: str, dtype: str, temperature: float) -> None:
    logits = rows(kind, dtype, 5)
    grad_output = np.random.default_rng(6).normal(size=logits.shape).astype(dtype)
    grad_output[::3] = -np.eye(7)[logits.argmax(axis=1)][::3]
    grad_output[1::3, -1] -= grad_output[1::3].sum(axis=1)  # the sum cancels
    outputs = [function(logits).astype(dtype) for function in (truth.softmax, truth.log_softmax)]
    found = [
        function(grad_output, output, temperature=temperature)
        for function, output in zip(
            (truth.softmax_backward, truth.log_softmax_backward), outputs, strict=True
        )
    ]
    with mpmath.workdps(DIGITS):
        for row in range(len(logits)):
            g, s, log_s = (numbers(item[row]) for item in (grad_output, *outputs))
            right = s * (g - (g * s).sum()) / exact(temperature)
            assert_true(found[0].values[row], right, found[0].scale[row])
            exponentials = np.array([mpmath.exp(item) for item in log_s])
            right = (g - exponentials * g.sum()) / exact(temperature)
            assert_true(found[1].values[row], right, found[1].scale[row])


def test_likelihood_of_given_probabilities() -> None:
    random = np.random.default_rng(7)
    probs = random.uniform(size=(12, 7))
    target = target_for("soft", probs, 7)
    with mpmath.workdps(DIGITS):
        weight = numbers(OPTIONS["weight"])
        logarithms = [[mpmath.log(item) for item in row] for row in numbers(probs)]
        right = -(weight * numbers(target) * np.array(logarithms)).sum(axis=1)
        found = truth.cross_entropy_from_probs(
            probs, target, weight=OPTIONS["weight"], reduction="none"
        )
        assert_true(found, right)
