"""Units in the last place for every kind of target, option and pair of options, on each build.

The rows have gaps of 0 to 80 between their largest logit and the rest. Plain softmax, logsumexp and
loss of labels have more lengths and sizes in test_accuracy.py.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import softce_fast as sf
import tolerances
import truth
from conftest import dtype_named
from tolerances import epsilon, ulp_limit
from truth import Array

pytestmark = [pytest.mark.usefixtures("isa"), pytest.mark.filterwarnings("error")]

CLASS_COUNTS = (2, 3, 10, 17, 100, 1000, 5000)
TARGETS = ("labels", "one-hot", "soft", "nearly one-hot")
# Each with each: its name, the argument, and the value (or how one is made).
OPTIONS: dict[str, tuple[str, Any]] = {
    "smoothing": ("label_smoothing", 0.1),
    "weight": ("weight", "with zeros, 1e-3 to 1e6"),
    "sample weight": ("sample_weight", "with zeros, 1e-3 to 1e6"),
    "cold": ("temperature", 0.3),
    "hot": ("temperature", 3.0),
    "z-loss": ("z_loss", 1e-2),
    "softcap": ("softcap", 20.0),
    "where": ("where", "two thirds, what the target asks for among them"),
}
CHOICES = [
    "+".join(chosen)
    for count in (0, 1, 2)
    for chosen in itertools.combinations(OPTIONS, count)
    if chosen != ("cold", "hot")
] + ["smoothing+weight+sample weight+cold+z-loss"]


def rows_with_gaps(classes: int, dtype: np.dtype) -> Array:
    """Rows whose largest logit is 0 to 80 above the others, at any height, in any place."""
    random = np.random.default_rng(classes)
    rows = max(4, min(24, 12_000 // classes))
    logits = random.normal(scale=random.choice([0.1, 1, 10], (rows, 1)), size=(rows, classes))
    logits += random.choice([0, 0, 30, -300], (rows, 1))
    top = random.integers(0, classes, (rows, 1))
    gaps = random.permutation(np.linspace(0, 80, rows))[:, None]
    np.put_along_axis(logits, top, logits.max(axis=1, keepdims=True) + gaps, axis=1)
    # Where the largest is 0, all digits of logsumexp are those of the rest.
    logits[1::3] -= logits[1::3].max(axis=1, keepdims=True)
    return logits.astype(dtype)


def target_for(kind: str, logits: Array) -> Array:
    """Labels at the largest logit in every second row; targets of which one has the most there."""
    random = np.random.default_rng(1)
    rows, classes = logits.shape
    labels = random.integers(0, classes, rows)
    labels[::2] = logits[::2].argmax(axis=1)
    if kind == "labels":
        return labels
    target = np.zeros(logits.shape)
    if kind != "one-hot":
        target = random.gamma(0.5, size=logits.shape)
        target[target < 0.05] = 0
    target[np.arange(rows), labels] += 1
    if kind == "nearly one-hot":
        target[np.arange(rows), labels] *= classes * 10.0 ** random.uniform(2, 20, rows)
    return (target / target.sum(axis=1, keepdims=True)).astype(logits.dtype)


def options_for(choice: str, rows: int, classes: int) -> dict[str, Any]:
    """Return the options of a choice; weights in float64, whatever the logits."""
    random = np.random.default_rng(2)
    options = dict(OPTIONS[name] for name in choice.split("+") if name)
    for name, length in (("weight", classes), ("sample_weight", rows)):
        if name in options:
            weights = 10.0 ** random.uniform(-3, 6, length)
            weights[random.random(length) < 0.2] = 0
            weights[-1] = 0.7
            options[name] = weights
    return options


def loss_case(dtype: np.dtype, choice: str, target_kind: str, classes: int) -> tuple[Any, ...]:
    """Return a call and its truth."""
    logits = rows_with_gaps(classes, dtype)
    target = target_for(target_kind, logits)
    options = options_for(choice, *logits.shape) | {"reduction": "none"}
    if "where" in options:
        options["where"] = where = np.random.default_rng(4).random(logits.shape) < 2 / 3
        where[np.arange(len(logits)), target if target.ndim == 1 else target.argmax(axis=1)] = True
        target = np.where(where, target, 0).astype(dtype) if target.ndim > 1 else target
        logits = np.where(where, logits, np.nan).astype(dtype)
    return logits, target, options, truth.cross_entropy_with_options(logits, target, **options)


class Digits:
    """Gathers what is too far from the truth, to say all of it at once."""

    def __init__(self, dtype: np.dtype) -> None:
        if dtype == np.float64 and not truth.HAS_EXTENDED:
            pytest.skip("long double is float64 here")
        self.dtype = dtype
        self.wrong: dict[str, tuple[float, str]] = {}

    def check(
        self, operation: str, found: Any, right: Any, *context: Any, scale: Any = 0.0,
        doubt: Any = 0.0,
    ) -> None:  # fmt: skip
        assert np.asarray(found).dtype == self.dtype
        # A capped logit is rounded to the type that is computed in.
        step = epsilon(self.dtype if self.dtype.itemsize > 2 else np.float32)
        error = truth.ulp_error(found, right, self.dtype, floor=scale, doubt=step * doubt)
        worst = float(error.max())
        before, _ = self.wrong.get(operation, (ulp_limit(operation, self.dtype), ""))
        if worst > before:
            place = tuple(map(int, np.unravel_index(error.argmax(), error.shape)))
            values = f"{np.asarray(found)[place]!r} for {np.asarray(right)[place]!r}"
            text = f"{operation}: {worst:.4g} ULP, {values} at {place}, {context}"
            self.wrong[operation] = worst, text

    def __enter__(self) -> Digits:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            assert not self.wrong, "\n".join(text for _, text in self.wrong.values())


LAYOUTS = pytest.mark.parametrize("middle_axis", [False, True], ids=["last axis", "middle axis"])


def moved(array: Array, middle_axis: bool) -> Array:
    """Return rows as they are, or their classes in the middle of three axes."""
    return np.ascontiguousarray(array.T)[None] if middle_axis else array


@LAYOUTS
@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice or "plain")
@pytest.mark.parametrize("dtype_name", ["float32", "float64"])
def test_losses(dtype_name: str, choice: str, middle_axis: bool) -> None:
    with Digits(np.dtype(dtype_name)) as digits:
        for case in itertools.product(TARGETS, CLASS_COUNTS):
            check_losses(digits, loss_case(digits.dtype, choice, *case), case, middle_axis)


@pytest.mark.parametrize("smoothing", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [3, 8, 12, 100])
def test_many_rows_whose_largest_class_has_about_half(
    full_dtype: np.dtype, classes: int, weighted: bool, smoothing: float
) -> None:
    """There the sum of the other coefficients is as large as what is taken off it."""
    random = np.random.default_rng(classes)
    with Digits(full_dtype) as digits:
        for trial in range(8):
            logits = random.normal(size=(500, classes))
            logits[:, trial % classes] = np.log((classes - 1) * random.uniform(0.5, 3, 500))
            logits = logits.astype(full_dtype)
            target = random.integers(0, classes, len(logits))
            options: dict[str, Any] = {"label_smoothing": smoothing}
            options |= {"weight": random.random(classes)} if weighted else {}
            options["reduction"] = ("sum", "mean")[trial % 2]
            right = truth.cross_entropy_with_options(logits, target, **options)
            gradient = sf.cross_entropy_with_grad(logits, target, **options)[1]
            digits.check("gradient", gradient, right.gradient, trial, scale=right.gradient_scale)


@pytest.mark.parametrize("classes", [3, 8])
def test_z_loss_under_smoothing_alone(full_dtype: np.dtype, classes: int) -> None:
    """What is left of an entry is far less than what it is the difference of."""
    random = np.random.default_rng(classes)
    options: dict[str, Any] = {"label_smoothing": 1.0, "z_loss": 0.5, "reduction": "none"}
    with Digits(full_dtype) as digits:
        for scale in (0.1, 0.3):
            logits = (random.normal(size=(60_000, classes)) * scale).astype(full_dtype)
            target = random.integers(0, classes, len(logits))
            right = truth.cross_entropy_with_options(logits, target, **options)
            gradient = sf.cross_entropy_with_grad(logits, target, **options)[1]
            digits.check("gradient", gradient, right.gradient, scale, scale=right.gradient_scale)


@LAYOUTS
@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice or "plain")
def test_losses_of_half_types(half_dtype: np.dtype, choice: str, middle_axis: bool) -> None:
    with Digits(half_dtype) as digits:
        for case in itertools.product(TARGETS, (3, 100)):
            check_losses(digits, loss_case(digits.dtype, choice, *case), case, middle_axis)


def check_losses(
    digits: Digits, call: tuple[Any, ...], case: tuple[str, int], middle_axis: bool
) -> None:
    logits, target, options, right = call
    if middle_axis:
        logits, options = moved(logits, True), dict(options)
        target = moved(target, True)
        if "sample_weight" in options:
            options["sample_weight"] = options["sample_weight"][None]
        if "where" in options:
            options["where"] = moved(options["where"], True)
    loss, grad = sf.cross_entropy_with_grad(logits, target, 1, **options)
    grad = grad[0].T if middle_axis else grad
    digits.check("loss", loss.reshape(-1), right.loss, *case, doubt=right.loss_doubt)
    digits.check("gradient", grad, right.gradient, *case, scale=right.gradient_scale,
                 doubt=right.gradient_doubt)  # fmt: skip


@pytest.mark.parametrize("choice", ["", *OPTIONS, CHOICES[-1]], ids=lambda name: name or "plain")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions(full_dtype: np.dtype, reduction: str, choice: str) -> None:
    with Digits(full_dtype) as digits:
        for target_kind, classes in itertools.product(TARGETS, (3, 100)):
            logits, target, options, _ = loss_case(full_dtype, choice, target_kind, classes)
            options = options | {"reduction": reduction}
            right = truth.cross_entropy_with_options(logits, target, **options)
            loss, grad = sf.cross_entropy_with_grad(logits, target, **options)
            context = target_kind, classes
            digits.check("loss", loss, right.loss, *context, doubt=right.loss_doubt)
            digits.check("gradient", grad, right.gradient, *context, scale=right.gradient_scale,
                         doubt=right.gradient_doubt)  # fmt: skip


@LAYOUTS
@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.7, 3.0])
def test_softmax(dtype: np.dtype, temperature: float, middle_axis: bool) -> None:
    with Digits(dtype) as digits:
        for classes in CLASS_COUNTS:
            logits = rows_with_gaps(classes, dtype)
            x = moved(logits, middle_axis)
            for name in ("softmax", "log_softmax"):
                found = getattr(sf, name)(x, 1, temperature=temperature)
                right = getattr(truth, name)(logits, temperature=temperature)
                digits.check(name, found[0].T if middle_axis else found, right, classes)


@LAYOUTS
def test_logsumexp(dtype: np.dtype, middle_axis: bool) -> None:
    with Digits(dtype) as digits:
        for classes in CLASS_COUNTS:
            logits = rows_with_gaps(classes, dtype)
            found = sf.logsumexp(moved(logits, middle_axis), 1).reshape(-1)
            right, scale = truth.logsumexp(logits), truth.logsumexp_scale(logits)
            digits.check("logsumexp", found, right, classes, scale=scale)


@LAYOUTS
def test_backward(dtype: np.dtype, middle_axis: bool) -> None:
    with Digits(dtype) as digits:
        for classes in CLASS_COUNTS:
            logits = rows_with_gaps(classes, dtype)
            given = np.random.default_rng(3).normal(size=logits.shape)
            given[::3] = -target_for("nearly one-hot", logits)[::3]
            given[1::3, -1] -= given[1::3].sum(axis=1)  # what is summed cancels
            given = given.astype(dtype)
            for name in ("softmax", "log_softmax"):
                output = getattr(truth, name)(logits).astype(dtype)
                right = getattr(truth, f"{name}_backward")(given, output)
                function = getattr(sf, f"{name}_backward")
                found = function(moved(given, middle_axis), moved(output, middle_axis), 1)
                found = found[0].T if middle_axis else found
                digits.check("gradient", found, right.values, name, classes, scale=right.scale)


@pytest.mark.parametrize("weight", [None, "with zeros, 1e-3 to 1e6"])
@pytest.mark.parametrize("name", ["nll_loss", "cross_entropy_from_probs"])
def test_likelihood(dtype: np.dtype, name: str, weight: Any) -> None:
    with Digits(dtype) as digits:
        for target_kind, classes in itertools.product(TARGETS, CLASS_COUNTS):
            logits = rows_with_gaps(classes, dtype)
            target = target_for(target_kind, logits)
            values = truth.log_softmax(logits).astype(dtype)
            if name == "cross_entropy_from_probs":
                values = truth.softmax(logits).astype(dtype)
            options = options_for("weight+sample weight" if weight else "", *logits.shape)
            options["reduction"] = "none"
            right_of = getattr(truth, name.replace("nll_loss", "negative_log_likelihood"))
            right = right_of(values, target, **options)
            found = getattr(sf, name)(values, target, **options)
            digits.check("loss", found, right, target_kind, classes)


@pytest.mark.parametrize("weight", [1.0, 1e-3, 1e6])
@pytest.mark.parametrize("pos_weight", [1.0, 0.0, 1e-3, 30.0])
@pytest.mark.parametrize("yes", [0.0, 1.0, 0.3, 1e-6, 1 - 2.0**-8])
def test_binary_losses(dtype: np.dtype, yes: float, pos_weight: float, weight: float) -> None:
    logits = np.append(np.linspace(-80, 80, 161), np.linspace(-2, 2, 41)).astype(dtype)
    target = np.full(logits.shape, yes).astype(dtype)
    options: dict[str, Any] = {"weight": np.float64(weight), "reduction": "none"}
    with Digits(dtype) as digits:
        both = options | {"pos_weight": np.float64(pos_weight)}
        right = truth.binary_cross_entropy_with_logits(logits, target, **both)
        loss, grad = sf.binary_cross_entropy_with_logits_with_grad(logits, target, **both)
        digits.check("loss", loss, right.loss)
        digits.check("gradient", grad, right.gradient, scale=right.gradient_scale)
        probs = truth.softmax(np.stack([0 * logits, logits], axis=-1))[:, 1].astype(dtype)
        found = sf.binary_cross_entropy(probs, target, **options)
        right_loss = truth.binary_cross_entropy(probs, target, **options)
        digits.check("loss", found, right_loss, "of probabilities")


@pytest.mark.parametrize("target_dtype", ["float16", "float64", "bfloat16"])
def test_probabilities_of_another_dtype(full_dtype: np.dtype, target_dtype: str) -> None:
    """They convert to the dtype of the logits; here none has more digits than that."""
    with Digits(full_dtype) as digits:
        for classes in (3, 100):
            logits = rows_with_gaps(classes, full_dtype)
            target = target_for("soft", logits).astype("float32").astype(dtype_named(target_dtype))
            right = truth.cross_entropy_with_options(logits, target, reduction="none")
            loss, grad = sf.cross_entropy_with_grad(logits, target, reduction="none")
            digits.check("loss", loss, right.loss, classes)
            digits.check("gradient", grad, right.gradient, classes, scale=right.gradient_scale)


def masked_case(dtype: np.dtype, choice: str, kind: str, classes: int) -> tuple[Any, ...]:
    """Return a call with a mask that allows the labels, and its truth; what is excluded is NaN."""
    logits = rows_with_gaps(classes, dtype)
    target = target_for(kind, logits)
    where = np.random.default_rng(4).random(logits.shape) < 0.6
    if kind == "labels":
        np.put_along_axis(where, target[:, None], True, axis=1)
    else:
        where[:, 0] = True
        target = np.where(where, target, 0).astype(dtype)
    options = options_for(choice, *logits.shape) | {"reduction": "none", "where": where}
    logits = np.where(where, logits, np.nan).astype(dtype)
    return logits, target, options, truth.cross_entropy_with_options(logits, target, **options)


@LAYOUTS
@pytest.mark.parametrize("choice", ["", *OPTIONS, CHOICES[-1]], ids=lambda name: name or "plain")
def test_masked_losses(full_dtype: np.dtype, choice: str, middle_axis: bool) -> None:
    with Digits(full_dtype) as digits:
        for case in itertools.product(TARGETS, CLASS_COUNTS):
            check_losses(digits, masked_case(full_dtype, choice, *case), case, middle_axis)


@pytest.mark.parametrize("fraction", [1.01, 1.2, 1.4, 1.6, 1.9])
def test_capped_logits(full_dtype: np.dtype, fraction: float) -> None:
    """Beside a logit of 0 a large one is the loss: its own error shows."""
    if full_dtype == np.float64 and not truth.HAS_EXTENDED:
        pytest.skip("long double is float64 here")
    softcap = fraction * 1e6
    logits = np.concatenate([np.linspace(0.01, 1.5, 20_000), np.linspace(1.5, 30, 2_000)]) * softcap
    rows = np.stack([np.zeros(len(logits)), logits], axis=1).astype(full_dtype)
    loss = sf.cross_entropy(rows, np.zeros(len(rows), int), softcap=softcap, reduction="none")
    right = np.longdouble(softcap) * np.tanh(rows[:, 1] / np.longdouble(softcap))
    assert truth.ulp_error(loss, right, full_dtype).max() <= 1


@LAYOUTS
@pytest.mark.parametrize("softcap", [0.7, 5.0, 30.0])
@pytest.mark.parametrize("choice", ["", "smoothing", "cold", "hot", "z-loss"])
def test_softcap(full_dtype: np.dtype, choice: str, softcap: float, middle_axis: bool) -> None:
    """Within the limits, and what a unit in the last place of each capped logit makes of it."""
    epsilon = tolerances.epsilon(full_dtype)
    for kind, classes in itertools.product(TARGETS, (2, 10, 100, 5000)):
        logits = rows_with_gaps(classes, full_dtype)
        target = target_for(kind, logits)
        options = options_for(choice, *logits.shape) | {"reduction": "none", "softcap": softcap}
        right = truth.cross_entropy_with_options(logits, target, **options)
        loss, grad = sf.cross_entropy_with_grad(
            moved(logits, middle_axis), moved(target, middle_axis), 1, **options
        )
        loss, grad = loss.reshape(-1), grad[0].T if middle_axis else grad
        unit = epsilon * softcap / options.get("temperature", 1.0)
        limit = 4 * epsilon * np.abs(right.loss) + 4 * unit
        assert np.all(np.abs(loss - right.loss) <= limit), (kind, classes)
        scale = np.maximum(np.abs(right.gradient), right.gradient_scale)
        limit = (2 * unit + 4 * epsilon) * scale + tolerances.smallest_normal(full_dtype)
        assert np.all(np.abs(grad - right.gradient) <= limit), (kind, classes)
