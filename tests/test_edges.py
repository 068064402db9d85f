"""Every row of the contract's table of edge values, by name.

A special row is looked at alone and among others, in few and in many classes, on the last, the
middle and the first axis: these go different ways through the kernels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import softce_fast as sf
import truth
from conftest import dtype_named
from layouts import Array, assert_same_bits
from tolerances import assert_near, assert_ulp

pytestmark = [pytest.mark.usefixtures("isa"), pytest.mark.filterwarnings("error")]

NAN, INF = np.nan, np.inf


class Geometry(NamedTuple):
    """How a matrix of rows becomes an array, and which of its rows is the special one."""

    row_shape: tuple[int, ...]
    axis: int
    special: int

    def array(self, rows: Array) -> Array:
        array = rows.reshape(*self.row_shape, rows.shape[-1])
        return np.ascontiguousarray(np.moveaxis(array, -1, self.axis))

    def rows(self, array: Array) -> Array:
        classes = array.shape[self.axis]
        return np.moveaxis(array, self.axis, -1).reshape(-1, classes)


GEOMETRIES = {
    "alone": Geometry((), 0, 0),
    "one of 3": Geometry((3,), 1, 1),
    "one of 40": Geometry((40,), 1, 21),
    "middle axis": Geometry((2, 20), 1, 27),
    "first axis": Geometry((40,), 0, 39),
}
CLASS_COUNTS = (3, 16, 40, 100, 4200)


@pytest.fixture(params=GEOMETRIES)
def geometry(request: pytest.FixtureRequest) -> Geometry:
    return GEOMETRIES[request.param]


@pytest.fixture(params=CLASS_COUNTS)
def classes(request: pytest.FixtureRequest) -> int:
    count: int = request.param
    return count


def ordinary(geometry: Geometry, classes: int, dtype: Any = np.float32) -> Array:
    rows = int(np.prod(geometry.row_shape))
    return np.random.default_rng(0).normal(scale=3, size=(rows, classes)).astype(dtype)


def places(classes: int) -> tuple[int, ...]:
    """The first, an inner, and the last class."""
    return (0, 2 * classes // 3, classes - 1)


class Results(NamedTuple):
    """The results of a batch, row by row."""

    softmax: Array
    log_softmax: Array
    logsumexp: Array


def results(rows: Array, geometry: Geometry, **options: Any) -> Results:
    array = geometry.array(rows)
    where = {key: value for key, value in options.items() if key == "where"}
    return Results(
        geometry.rows(sf.softmax(array, geometry.axis, **options)),
        geometry.rows(sf.log_softmax(array, geometry.axis, **options)),
        np.reshape(sf.logsumexp(array, geometry.axis, **where), -1),
    )


def check_special(
    rows: Array,
    geometry: Geometry,
    softmax: Any,
    log_softmax: Any,
    logsumexp: Any,
    **options: Any,
) -> None:
    """Check the results of the special row, and that the others are what they are without it."""
    found = results(rows, geometry, **options)
    for array, expected in zip(found, (softmax, log_softmax, logsumexp), strict=True):
        special = np.asarray(array[geometry.special]).astype(np.float64)
        np.testing.assert_array_equal(special, np.broadcast_to(expected, special.shape))
    plain = rows.copy()
    plain[geometry.special] = 1
    for array, expected in zip(found, results(plain, geometry), strict=True):
        others = np.arange(len(rows)) != geometry.special
        assert_same_bits(array[others], expected[others])


def test_row_with_nan(geometry: Geometry, classes: int, dtype: np.dtype) -> None:
    for place in places(classes):
        rows = ordinary(geometry, classes, dtype)
        rows[geometry.special, place] = NAN
        check_special(rows, geometry, NAN, NAN, NAN)
    rows[geometry.special] = NAN
    check_special(rows, geometry, NAN, NAN, NAN)
    rows[geometry.special] = -INF
    rows[geometry.special, 1] = NAN
    check_special(rows, geometry, NAN, NAN, NAN)
    check_special(rows, geometry, NAN, NAN, NAN, empty="zero")


def test_nan_of_any_payload_stays_nan(half_dtype: np.dtype) -> None:
    """Rounding to a half type may carry; it must not carry a NaN's payload away."""
    infinity = np.array(INF, half_dtype).view(np.uint16)
    words = np.arange(1 << 16).astype(np.uint16)
    payloads = words[words & 0x7FFF > infinity].view(half_dtype)
    rows = np.zeros((len(payloads), 3), half_dtype)
    rows[:, 1] = payloads
    labels = np.arange(len(rows)) % 3
    for logits in (rows, rows[:3]):
        losses, grad = sf.cross_entropy_with_grad(
            logits, labels[: len(logits)], reduction="none", label_smoothing=0.1
        )
        binary, slope = sf.binary_cross_entropy_with_logits_with_grad(
            logits, np.ones_like(logits), reduction="none"
        )
        for result in (
            sf.softmax(logits), sf.log_softmax(logits), sf.logsumexp(logits), losses, grad,
            sf.cross_entropy_from_probs(logits, np.ones(len(logits), int), reduction="none"),
            binary[:, 1], slope[:, 1],
        ):  # fmt: skip
            assert np.isnan(result).all()


@pytest.mark.parametrize("payload", [0x7F800001, 0x7FFFFFFF, 0xFFFF8000, 0xFFFFFFFF])
def test_weights_that_are_nan_of_any_payload(half_dtype: np.dtype, payload: int) -> None:
    weight = np.full(40, payload, np.uint32).view(np.float32)
    logits = np.zeros((40, 40), half_dtype)
    labels = np.arange(40)
    for options in (
        {"weight": weight}, {"sample_weight": weight}, {"weight": weight, "label_smoothing": 0.1},
    ):  # fmt: skip
        for target in (labels, np.full_like(logits, 1 / 40)):
            losses, grad = sf.cross_entropy_with_grad(logits, target, reduction="none", **options)
            assert np.isnan(losses).all()
            assert np.isnan(grad).all()


def test_row_with_positive_infinity(geometry: Geometry, classes: int, dtype: np.dtype) -> None:
    for place in places(classes):
        rows = ordinary(geometry, classes, dtype)
        rows[geometry.special, place] = INF
        check_special(rows, geometry, NAN, NAN, INF)
    check_special(rows, geometry, NAN, NAN, INF, empty="zero")
    for other, logsumexp in ((-INF, INF), (INF, INF), (NAN, NAN)):
        rows[geometry.special, 0] = other
        check_special(rows, geometry, NAN, NAN, logsumexp)


@pytest.mark.parametrize(("empty", "values"), [("nan", (NAN, NAN)), ("zero", (0, -INF))])
def test_row_all_minus_infinity(
    geometry: Geometry, classes: int, dtype: np.dtype, empty: str, values: tuple[float, float]
) -> None:
    rows = ordinary(geometry, classes, dtype)
    rows[geometry.special] = -INF
    check_special(rows, geometry, *values, -INF, empty=empty)


@pytest.mark.parametrize(("empty", "values"), [("nan", (NAN, NAN)), ("zero", (0, -INF))])
def test_where_all_false(
    geometry: Geometry, classes: int, dtype: np.dtype, empty: str, values: tuple[float, float]
) -> None:
    rows = ordinary(geometry, classes, dtype)
    where = np.ones(rows.shape, bool)
    where[geometry.special] = False
    for poison in (0, NAN, INF):
        rows[geometry.special] = poison
        check_special(rows, geometry, *values, -INF, where=geometry.array(where), empty=empty)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [(np.longdouble, {}), (np.float64, {"temperature": 1e-300})],
    ids=["long doubles", "a temperature beyond the kernels"],
)
def test_plain_numpy_is_told_of_empty(dtype: Any, options: dict[str, Any]) -> None:
    x, ignored = np.full((2, 3), -INF, dtype), np.full(2, -100)
    for empty, probability, logarithm, loss in (("nan", NAN, NAN, NAN), ("zero", 0, -INF, 0)):
        options["empty"] = empty
        for function, expected in ((sf.softmax, probability), (sf.log_softmax, logarithm)):
            np.testing.assert_array_equal(function(x, **options), np.full((2, 3), expected))
        for result in (
            sf.cross_entropy(x, ignored, **options),
            sf.cross_entropy_with_grad(x, ignored, **options)[0],
            sf.cross_entropy_with_grad_and_hessian(x, ignored, **options)[0],
        ):
            np.testing.assert_array_equal(result, loss)


def test_single_minus_infinity(geometry: Geometry, classes: int, dtype: np.dtype) -> None:
    for place in places(classes):
        rows = ordinary(geometry, classes, dtype)
        rows[geometry.special, place] = -INF
        found = results(rows, geometry)
        special = rows[geometry.special]
        assert found.softmax[geometry.special, place] == 0
        assert found.log_softmax[geometry.special, place] == -INF
        others = np.arange(classes) != place
        for name in ("softmax", "log_softmax"):
            right = getattr(truth, name)(special)[others]
            result = getattr(found, name)[geometry.special, others]
            assert_ulp(result, right, name, dtype)
        result = found.logsumexp[geometry.special]
        assert_ulp(result, truth.logsumexp(special[others]), "logsumexp", dtype)


def test_single_minus_infinity_in_a_loss(
    geometry: Geometry, classes: int, full_dtype: np.dtype
) -> None:
    for place in places(classes):
        rows = ordinary(geometry, classes, full_dtype)
        rows[geometry.special, place] = -INF
        labels = np.full(geometry.row_shape, (place + 1) % classes)
        loss, grad = loss_rows(rows, labels, geometry)
        rest = np.arange(classes) != place
        special = rows[geometry.special : geometry.special + 1]
        label = labels.reshape(-1)[:1]
        right = truth.cross_entropy(special, label), truth.gradient(special, label)
        assert_ulp(loss[geometry.special], right[0][0], "loss", full_dtype)
        assert_ulp(grad[geometry.special, rest], right[1][0, rest], "gradient", full_dtype)
        assert grad[geometry.special, place] == 0
        # Where the label itself is impossible.
        labels[...] = place
        loss, grad = loss_rows(rows, labels, geometry)
        assert loss[geometry.special] == INF
        right_grad = truth.gradient(special, [place])[0]
        assert_ulp(grad[geometry.special], right_grad, "gradient", full_dtype)


def loss_rows(rows: Array, target: Any, geometry: Geometry, **options: Any) -> tuple[Array, Array]:
    """Return losses and gradients, row by row."""
    losses, grad = sf.cross_entropy_with_grad(
        geometry.array(rows), target, geometry.axis, reduction="none", **options
    )
    return np.reshape(losses, -1), geometry.rows(grad)


@pytest.mark.parametrize("poison", ["nan", "+inf", "all -inf"])
def test_poisoned_row_poisons_only_its_own_loss(
    geometry: Geometry, classes: int, dtype: np.dtype, poison: str
) -> None:
    rows = ordinary(geometry, classes, dtype)
    labels = np.random.default_rng(1).integers(0, classes, geometry.row_shape)
    clean = loss_rows(rows, labels, geometry)
    if poison == "all -inf":
        rows[geometry.special] = -INF
    else:
        rows[geometry.special, classes // 2] = float(poison)
    loss, grad = loss_rows(rows, labels, geometry)
    assert np.isnan(loss[geometry.special])
    assert np.isnan(grad[geometry.special]).all()
    others = np.arange(len(rows)) != geometry.special
    assert_same_bits(loss[others], clean[0][others])
    assert_same_bits(grad[others], clean[1][others])


# Probabilities of 0

HALF = np.log(2.0)
LOSSES: list[tuple[str, list[float]]] = [
    ("cross_entropy", [0.0, -INF, 0.0]),
    ("nll_loss", [-HALF, -INF, -HALF]),
    ("cross_entropy_from_probs", [0.5, 0.0, 0.5]),
]
with_losses = pytest.mark.parametrize(("name", "row"), LOSSES)


def padded(row: list[float], classes: int, dtype: Any, value: float) -> Array:
    return np.array([*row, *[value] * (classes - len(row))], dtype)


@with_losses
@pytest.mark.parametrize("classes", [3, 16, 40, 5000])
def test_zero_times_log_zero(dtype: np.dtype, classes: int, name: str, row: list[float]) -> None:
    function = getattr(sf, name)
    impossible = row[1]
    values = np.stack([padded(row, classes, dtype, impossible)] * 5)
    target = np.stack([padded([0.5, 0, 0.5], classes, dtype, 0)] * 5)
    assert_near(function(values, target), HALF, dtype)
    assert_near(function(values, np.array([0, 2, 0, 2, 0])), HALF, dtype)
    if name == "cross_entropy":
        _, grad = sf.cross_entropy_with_grad(values, target)
        np.testing.assert_array_equal(grad.astype(float), 0)
    if name != "cross_entropy_from_probs":
        weight = padded([1, 0, 1], classes, np.float64, 0)
        labels = np.ones(5, int)
        assert function(values, labels, weight=weight, reduction="sum") == 0
        assert function(values, labels, sample_weight=np.zeros(5), reduction="sum") == 0


@with_losses
@pytest.mark.parametrize("classes", [3, 16, 40, 5000])
def test_probability_zero_where_the_target_is_positive(
    dtype: np.dtype, classes: int, name: str, row: list[float]
) -> None:
    function = getattr(sf, name)
    values = np.stack([padded(row, classes, dtype, row[1])] * 5)
    target = np.stack([padded([0.5, 0.25, 0.25], classes, dtype, 0)] * 5)
    for reduction in ("mean", "sum", "none"):
        assert (function(values, target, reduction=reduction) == INF).all()
        assert (function(values, np.ones(5, int), reduction=reduction) == INF).all()
    if name == "cross_entropy":
        assert sf.cross_entropy(values, np.zeros(5, int), label_smoothing=0.1) == INF


@pytest.mark.parametrize("count", [1, 5, 100])
def test_logarithm_of_what_is_no_probability(dtype: np.dtype, count: int) -> None:
    """Below 0 there is no logarithm, of however small or large a number."""
    tiny = {2: 1e-7, 4: 1e-40, 8: 1e-310}[dtype.itemsize]  # among them subnormal ones
    for wrong in (-1.0, -0.5, -tiny, -1e4, -INF):
        probs = np.full((count, 3), wrong, dtype)
        assert np.isnan(sf.binary_cross_entropy(probs, np.ones_like(probs), reduction="none")).all()
        assert np.isnan(
            sf.cross_entropy_from_probs(probs, np.ones(count, int), reduction="none")
        ).all()
        assert np.isnan(
            sf.cross_entropy_from_probs(probs, np.full_like(probs, 0.5), reduction="none")
        ).all()
    for wrong in (1.5, 2.0, 1e4, INF):
        probs = np.full((count, 3), wrong, dtype)
        target = np.full_like(probs, 0.5)
        assert np.isnan(sf.binary_cross_entropy(probs, target, reduction="none")).all()


def test_zero_times_log_zero_in_binary_losses(dtype: np.dtype) -> None:
    probs = np.array([0, 1, 0, 1, NAN], dtype)
    target = np.array([0, 1, 1, 0, 1], dtype)
    right = [0, 0, INF, INF, NAN]
    losses = sf.binary_cross_entropy(probs, target, reduction="none")
    np.testing.assert_array_equal(losses.astype(float), right)
    logits = np.array([-INF, INF, -INF, INF, NAN], dtype)
    losses, grad = sf.binary_cross_entropy_with_logits_with_grad(logits, target, reduction="none")
    np.testing.assert_array_equal(losses.astype(float), right)
    np.testing.assert_array_equal(grad.astype(float), [0, 0, -1, 1, NAN])


# Labels that are ignored

OPTIONS: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.3, "z_loss": 0.1, "temperature": 2.0},
    {"weight": True, "sample_weight": True},
]
CONTENTS: dict[str, float | list[float]] = {"ordinary": 3.0, "nan": NAN, "+inf": INF, "-inf": -INF}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("content", CONTENTS)
def test_ignored_label(
    geometry: Geometry, classes: int, full_dtype: np.dtype, content: str, options: dict[str, Any]
) -> None:
    rows = ordinary(geometry, classes, full_dtype)
    labels = np.random.default_rng(1).integers(0, classes, len(rows))
    options = dict(options)
    row_weights = np.linspace(1, 2, len(rows)).astype(full_dtype)
    if "weight" in options:
        options["weight"] = np.linspace(0.5, 1.5, classes).astype(full_dtype)
        options["sample_weight"] = row_weights.reshape(geometry.row_shape)
        row_weights[geometry.special] = NAN
    rows[geometry.special] = CONTENTS[content]
    labels[geometry.special] = -100
    target = labels.reshape(geometry.row_shape)
    losses, grad = loss_rows(rows, target, geometry, **options)
    assert losses[geometry.special] == 0
    assert (grad[geometry.special] == 0).all()
    # It does not count in the mean: the same as without the row.
    array = geometry.array(rows)
    mean, mean_grad = sf.cross_entropy_with_grad(array, target, geometry.axis, **options)
    others = np.arange(len(rows)) != geometry.special
    assert (geometry.rows(mean_grad)[geometry.special] == 0).all()
    if "sample_weight" in options:
        options["sample_weight"] = row_weights[others]
    if others.any():
        right, right_grad = sf.cross_entropy_with_grad(rows[others], labels[others], **options)
        assert_near(mean, right, full_dtype)
        assert_near(geometry.rows(mean_grad)[others], right_grad, full_dtype)
    else:
        assert np.isnan(mean)


@pytest.mark.parametrize("name", ["nll_loss", "cross_entropy_from_probs"])
@pytest.mark.parametrize("content", CONTENTS)
def test_ignored_label_of_probabilities(full_dtype: np.dtype, content: str, name: str) -> None:
    values = np.full((4, 5), 0.2, full_dtype)
    values[2] = CONTENTS[content]
    function = getattr(sf, name)
    labels = np.array([0, 4, -100, 1])
    assert function(values, labels, reduction="none")[2] == 0
    kept = [0, 1, 3]
    assert_same_bits(function(values, labels), function(values[kept], labels[kept]))


NOTHING: dict[str, tuple[tuple[int, ...], Any]] = {
    "every row ignored": ((6, 3), np.full(6, -100)),
    "one row ignored": ((3,), -100),
    "many rows ignored": ((400, 300), np.full(400, -100)),
    "no rows": ((0, 3), np.empty(0, int)),
    "no rows, probabilities": ((0, 3), np.empty((0, 3))),
    "no classes, every row ignored": ((2, 0), np.full(2, -100)),
}


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss", "cross_entropy_from_probs"])
@pytest.mark.parametrize("case", NOTHING)
def test_mean_of_nothing(dtype: np.dtype, case: str, name: str) -> None:
    """Every row ignored, or no rows: NaN, 0 with empty="zero"; the gradient is 0."""
    shape, target = NOTHING[case]
    values = np.full(shape, 0.25, dtype)
    function: Callable[..., Any] = getattr(sf, name)
    assert np.isnan(function(values, target))
    assert function(values, target, empty="zero") == 0
    assert function(values, target, reduction="sum") == 0
    assert function(values, target, denominator=3) == 0
    if name == "cross_entropy":
        for empty, expected in (("nan", NAN), ("zero", 0)):
            loss, grad = sf.cross_entropy_with_grad(values, target, empty=empty)
            np.testing.assert_array_equal(float(loss), expected)
            assert grad.shape == shape
            assert (grad == 0).all()


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss", "cross_entropy_from_probs"])
def test_denominator_zero(name: str) -> None:
    """As a division by zero gives it, unless the mean is of nothing and `empty` says 0."""
    function = getattr(sf, name)
    values, labels = np.full((2, 3), 0.25), np.array([0, 1])
    total = function(values, labels, reduction="sum")
    assert function(values, labels, denominator=0) == np.copysign(INF, total)
    assert np.isnan(function(values, np.full(2, -100), denominator=0))
    assert function(values, np.full(2, -100), denominator=0, empty="zero") == 0


def test_zero_weights_are_a_mean_of_nothing() -> None:
    values, labels = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([0, 1])
    for options in ({"sample_weight": np.zeros(2)}, {"weight": np.zeros(2)}):
        assert np.isnan(sf.cross_entropy(values, labels, **options))
        assert sf.cross_entropy(values, labels, empty="zero", **options) == 0
        _, grad = sf.cross_entropy_with_grad(values, labels, empty="zero", **options)
        assert (grad == 0).all()
        # Nothing is left of a row: nothing to divide, either.
        _, grad = sf.cross_entropy_with_grad(values, labels, **options)
        assert (grad == 0).all()


@pytest.mark.parametrize("classes", [4, 20_000])
@pytest.mark.parametrize("value", [INF, -INF, np.nan])
def test_coefficients_of_zero_leave_nothing_of_a_row(classes: int, value: float) -> None:
    """However many chunks it has, one of which has the infinite logit."""
    for place in (0, classes - 1):
        logits = np.full((1, classes), 0.25, np.float32)
        logits[0, place] = value
        smoothed = {"weight": np.zeros(classes), "label_smoothing": 0.1, "reduction": "none"}
        assert sf.cross_entropy(logits, [1], **smoothed) == 0
        assert sf.cross_entropy(logits, np.zeros_like(logits), reduction="none") == 0
        loss, grad = sf.cross_entropy_with_grad(logits, [1], **smoothed)
        assert loss == 0
        assert (grad == 0).all()


# No classes


def test_zero_classes(dtype: np.dtype) -> None:
    for shape in ((2, 0), (0,), (3, 2, 0)):
        x = np.empty(shape, dtype)
        for function in (sf.softmax, sf.log_softmax):
            assert function(x).shape == shape
            assert function(x).dtype == dtype
        sums = sf.logsumexp(x)
        assert np.shape(sums) == shape[:-1]
        assert (np.asarray(sums) == -INF).all()


@pytest.mark.parametrize(
    "name", ["cross_entropy", "cross_entropy_with_grad", "nll_loss", "cross_entropy_from_probs"]
)
@pytest.mark.parametrize("label", [0, 1, -1])
def test_zero_classes_refuse_any_label(name: str, label: int) -> None:
    with pytest.raises(IndexError, match=r"target\[1\] is .*no classes"):
        getattr(sf, name)(np.empty((2, 0)), [-100, label])


def test_small_weights_of_no_classes_are_not_a_mean_of_nothing(full_dtype: np.dtype) -> None:
    values = np.empty((2, 0), full_dtype)
    for library in (sf, sf.reference):
        assert library.cross_entropy(values, values, sample_weight=np.full(2, 1e-300)) == 0


# Digits of confident rows


def test_confident_row(geometry: Geometry, classes: int) -> None:
    """float32 [20, 0, 0] with label 0 has loss 4.122307e-09, not 0; so with more classes."""
    rows = ordinary(geometry, classes)
    rows[geometry.special] = 0
    rows[geometry.special, 0] = 20
    labels = np.zeros(geometry.row_shape, int)
    special = rows[[geometry.special]]
    right = truth.cross_entropy(special, [0])[0]
    if classes == 3:
        assert f"{right:.6e}" == "4.122307e-09"
    losses, grad = loss_rows(rows, labels, geometry)
    assert_ulp(losses[geometry.special], right, "loss", np.float32)
    assert_ulp(grad[[geometry.special]], truth.gradient(special, [0]), "gradient", np.float32)
    found = results(rows, geometry)
    assert_ulp(-found.log_softmax[geometry.special, 0], right, "log_softmax", np.float32)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("classes", [8192, 8195])
def test_confident_rows_at_the_ends_of_chunks(
    full_dtype: np.dtype, classes: int, axis: int
) -> None:
    """Kernels work on 4096 classes of a row at a time: the label is the first or last of them."""
    labels = np.array([0, 4095, 4096, 8191, classes - 1])
    rows = np.zeros((5, classes), full_dtype)
    rows[np.arange(5), labels] = 40
    for count in (1, 5):
        x, y = rows[-count:], labels[-count:]
        array = x if axis else np.ascontiguousarray(x.T)
        losses, grad = sf.cross_entropy_with_grad(array, y, axis, reduction="none")
        assert_ulp(losses, truth.cross_entropy(x, y), "loss", full_dtype)
        assert_ulp(grad if axis else grad.T, truth.gradient(x, y), "gradient", full_dtype)


@pytest.mark.parametrize("dtype_name", ["float16", "bfloat16", "float32", "float64"])
def test_confident_row_of_each_dtype(dtype_name: str) -> None:
    row = np.array([20, 0, 0], dtype_named(dtype_name))
    loss = float(sf.cross_entropy(row, 0))
    if dtype_name == "float16":  # below its smallest normal number
        assert 0 <= loss <= 2.0**-14
    else:
        assert loss == pytest.approx(4.1223072e-09, rel=1e-2 if dtype_name == "bfloat16" else 1e-6)


# Below the smallest normal number


def test_results_below_the_smallest_normal_number(
    geometry: Geometry, classes: int, full_dtype: np.dtype
) -> None:
    """That number or 0; and no loss of accuracy above it."""
    smallest = np.finfo(full_dtype).tiny
    rows = ordinary(geometry, classes, full_dtype)
    far = np.linspace(0, 1.2 * -np.log(np.longdouble(smallest)), classes)
    rows[geometry.special] = -far
    found = results(rows, geometry).softmax[geometry.special]
    right = truth.softmax(rows[geometry.special])
    above = right >= smallest * 1.001
    assert_ulp(found[above], right[above], "softmax", full_dtype)
    assert (found >= 0).all()
    assert (found[right < smallest] <= smallest).all()


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "cross_entropy_with_grad"])
@pytest.mark.parametrize("shape", [(3000, 10), (300, 100), (3, 10_000)])
def test_underflow_is_not_slow(full_dtype: np.dtype, shape: tuple[int, int], name: str) -> None:
    """Rows in which nearly all results underflow take about as long as others."""
    underflow = 700 if full_dtype == np.float64 else 85
    rows = np.random.default_rng(0).uniform(-20, 0, shape)
    rows[:, 0] = 5
    fast, slow = rows.astype(full_dtype), rows.copy()
    slow[:, 1:] -= underflow
    slow = slow.astype(full_dtype)
    arguments = (np.zeros(shape[0], int),) if name == "cross_entropy_with_grad" else ()
    function = getattr(sf, name)
    with sf.num_threads(1):
        times = {"fast": INF, "slow": INF}
        for _ in range(40):
            for kind, x in (("fast", fast), ("slow", slow)):
                before = time.perf_counter()
                function(x, *arguments)
                times[kind] = min(times[kind], time.perf_counter() - before)
    assert times["slow"] < 4 * times["fast"]


@pytest.mark.parametrize("target", ["labels", "smoothed labels", "probabilities"])
def test_gradient_of_one_class_is_zero(dtype: np.dtype, target: str) -> None:
    # Its probability is 1 whatever the logit; large weights would show what is left of rounding.
    logits = ordinary(GEOMETRIES["one of 40"], 1, dtype)
    random = np.random.default_rng(1)
    targets: Array = np.zeros(40, np.int64)
    if target == "probabilities":
        targets = random.uniform(0.1, 1, size=logits.shape).astype(dtype)
    loss, gradient = sf.cross_entropy_with_grad(
        logits,
        targets,
        weight=np.array([6e16]),
        sample_weight=random.uniform(0.1, 1, size=40),
        label_smoothing=0.1 if target == "smoothed labels" else 0.0,
        reduction="sum",
    )
    assert loss == 0
    assert_same_bits(np.abs(gradient), np.zeros_like(gradient))


# Masks and soft caps of losses


def masked_batch(classes: int, kind: str, dtype: np.dtype) -> tuple[Array, Array, Array]:
    """Logits, a target that leaves nothing to excluded classes, and a mask."""
    random = np.random.default_rng(classes)
    logits = random.normal(scale=3, size=(20, classes)).astype(dtype)
    where = random.random(logits.shape) < 0.6
    where[:, 1] = True
    if kind == "probabilities":
        probabilities = np.where(where, random.random(logits.shape), 0)
        return logits, (probabilities / probabilities.sum(axis=1, keepdims=True)), where
    return logits, np.ones(20, np.int64), where


MASKED_KINDS = pytest.mark.parametrize("kind", ["labels", "smoothed labels", "probabilities"])
CLASSES = pytest.mark.parametrize("classes", [3, 40, 5000])


def masked_loss(
    logits: Array, target: Array, kind: str, module: Any = sf, **options: Any
) -> tuple[Array, Array]:
    smoothing = 0.1 if kind == "smoothed labels" else 0.0
    loss, gradient = module.cross_entropy_with_grad(
        logits, target, reduction="none", label_smoothing=smoothing, **options
    )
    return np.asarray(loss), gradient


@MASKED_KINDS
@CLASSES
@pytest.mark.parametrize("module", [sf, sf.reference])
def test_rows_that_a_mask_leaves_nothing_of(
    full_dtype: np.dtype, classes: int, kind: str, module: Any
) -> None:
    logits, target, where = masked_batch(classes, kind, full_dtype)
    right, right_gradient = masked_loss(logits, target, kind, module, where=where)
    where[4] = False
    logits[4] = NAN
    logits[7, where[7]] = -INF  # nothing that is allowed is finite
    loss, gradient = masked_loss(logits, target, kind, module, where=where)
    assert loss[4] == INF
    np.testing.assert_array_equal(gradient[4], 0)
    assert np.isnan(loss[7])
    np.testing.assert_array_equal(gradient[7, ~where[7]], 0)
    others = np.setdiff1d(np.arange(20), (4, 7))
    assert_same_bits(loss[others], right[others])
    assert_same_bits(gradient[others], right_gradient[others])


@MASKED_KINDS
@CLASSES
@pytest.mark.parametrize("module", [sf, sf.reference])
def test_a_target_that_a_mask_excludes(
    full_dtype: np.dtype, classes: int, kind: str, module: Any
) -> None:
    logits, target, where = masked_batch(classes, kind, full_dtype)
    excluded = np.array([np.flatnonzero(~row)[0] if not row.all() else -1 for row in where])
    chosen = np.flatnonzero(excluded >= 0)
    if kind == "probabilities":
        target[chosen, excluded[chosen]] = 0.25
    else:
        target[chosen] = excluded[chosen]
    loss, gradient = masked_loss(logits, target, kind, module, where=where)
    np.testing.assert_array_equal(loss[chosen], INF)
    assert np.isfinite(np.delete(loss, chosen)).all()
    np.testing.assert_array_equal(gradient[~where], 0)


@MASKED_KINDS
@CLASSES
def test_masks_are_broadcast(full_dtype: np.dtype, classes: int, kind: str) -> None:
    logits, _, where = masked_batch(classes, kind, full_dtype)
    of_classes, of_rows = where[3], np.arange(20)[:, None] % 3 > 0
    target: Array = np.ones(20, np.int64)
    if kind == "probabilities":
        target = np.zeros(logits.shape)
        target[:, 1] = 1
    for mask in (of_classes, of_rows, np.bool_(True)):
        whole = np.broadcast_to(mask, logits.shape).copy()
        found = masked_loss(logits, target, kind, where=mask)
        for got, right in zip(found, masked_loss(logits, target, kind, where=whole), strict=True):
            assert_same_bits(got, right)


@MASKED_KINDS
@CLASSES
@pytest.mark.parametrize("module", [sf, sf.reference])
def test_logits_without_a_cap(full_dtype: np.dtype, classes: int, kind: str, module: Any) -> None:
    """-inf stays out, with gradient 0; infinity and NaN are what they are without a soft cap."""
    logits, target, where = masked_batch(classes, kind, full_dtype)
    logits[~where] = -INF
    loss, gradient = masked_loss(logits, target, kind, module, softcap=5.0)
    smoothed = kind == "smoothed labels"
    assert np.isfinite(loss[where.all(axis=1) if smoothed else slice(None)]).all()
    np.testing.assert_array_equal(gradient[~where & ~np.array(smoothed)], 0)
    logits[2, 1], logits[5, 1] = INF, NAN
    loss, _ = masked_loss(logits, target, kind, module, softcap=5.0)
    assert np.isnan(loss[[2, 5]]).all()


def test_ignored_rows_under_a_soft_cap(dtype: np.dtype) -> None:
    logits = np.array([[1, NAN, 2], [1, 2, 3]], dtype)
    for options in ({"softcap": 30.0}, {"where": [True, True, False]}, {}):
        loss, gradient = sf.cross_entropy_with_grad(logits, [-100, 0], reduction="none", **options)
        assert loss[0] == 0
        np.testing.assert_array_equal(gradient[0], np.zeros(3))
