"""The losses: values, gradients, options, arrays, against long double, PyTorch and quotients."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import softce_fast as sf
import truth
from conftest import dtype_named
from layouts import (
    STRIDES,
    WRITABLE,
    Array,
    assert_right_or_refused,
    assert_same_bits,
    byte_swapped,
)
from softce_fast import _checks
from tolerances import DIFFERENCE_QUOTIENT, assert_as_peer, assert_near, assert_ulp

pytestmark = [pytest.mark.usefixtures("isa"), pytest.mark.filterwarnings("error")]

REDUCTIONS = ("none", "mean", "sum")


def normal(shape: tuple[int, ...], dtype: Any = np.float64, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(scale=4.0, size=shape).astype(dtype)


def labels_for(shape: tuple[int, ...], axis: int, seed: int = 1) -> Array:
    axis %= len(shape)
    rows = shape[:axis] + shape[axis + 1 :]
    return np.random.default_rng(seed).integers(0, shape[axis], rows)


def probabilities_for(shape: tuple[int, ...], axis: int = -1, seed: int = 2) -> Array:
    """Class probabilities that sum to 1, some of them 0."""
    drawn = np.random.default_rng(seed).gamma(0.5, size=shape)
    drawn[drawn < 0.05] = 0
    np.moveaxis(drawn, axis, -1)[..., 0] += 0.1
    return drawn / drawn.sum(axis=axis, keepdims=True)


def positive(shape: tuple[int, ...], dtype: Any = np.float64, seed: int = 3) -> Array:
    return np.random.default_rng(seed).uniform(0.2, 2.0, shape).astype(dtype)


# Plain values

SHAPES_AND_AXES = [
    ((1,), 0),
    ((9,), -1),
    ((5000,), 0),
    ((1, 2), 1),
    ((3, 1), 1),
    ((3, 5), -1),
    ((3, 5), 0),
    ((70, 33), 1),
    ((33, 70), 0),
    ((20, 300), 1),
    ((300, 20), 0),
    ((2, 5000), 1),
    ((5000, 6), 0),
    ((4, 6, 3), 1),
    ((4, 6, 3), -3),
    ((4, 100, 17), 1),
    ((2, 3, 4, 5), 1),
    ((2, 3, 4, 5), -2),
    ((2, 3, 4, 5), 0),
    ((2, 3, 2, 3, 4), 2),
]


def check(logits: Any, target: Array, axis: int = -1) -> None:
    """Compare losses and gradient of a call with labels with the truth."""
    before = np.array(logits)
    dtype = before.dtype.newbyteorder("=")
    kept = np.array(target)
    losses, grad = sf.cross_entropy_with_grad(logits, target, axis, reduction="none")
    np.testing.assert_array_equal(logits, before)
    np.testing.assert_array_equal(target, kept)
    rows = np.moveaxis(before, axis, -1)
    assert_ulp(losses, truth.cross_entropy(rows, kept), "loss", dtype)
    assert_ulp(np.moveaxis(grad, axis, -1), truth.gradient(rows, kept), "gradient", dtype)
    assert_same_bits(sf.cross_entropy(logits, target, axis, reduction="none"), losses)


@pytest.mark.parametrize(("shape", "axis"), SHAPES_AND_AXES)
def test_shapes_and_axes(dtype: np.dtype, shape: Any, axis: int) -> None:
    check(normal(shape, dtype), labels_for(shape, axis), axis)


@pytest.mark.parametrize("layout", [*STRIDES, "byte_swapped"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_layouts(dtype: np.dtype, axis: int, layout: str) -> None:
    make = STRIDES.get(layout, byte_swapped)
    if layout == "byte_swapped" and dtype.name == "bfloat16":
        return  # ml_dtypes has it in native byte order only
    shape = (5, 19, 20)
    check(make(normal(shape, dtype)), make(labels_for(shape, axis)), axis)


@pytest.mark.parametrize("axis", [0, 1, 3])
@pytest.mark.parametrize("order", [(3, 1, 0, 2), (1, 3, 2, 0), (2, 0, 3, 1)])
def test_axes_that_do_not_merge(order: Any, axis: int) -> None:
    x = normal((5, 8, 7, 6), np.float32).transpose(order)
    check(x, labels_for(x.shape, axis), axis)
    x = normal((5, 8, 7, 6, 2), np.float32)[:, ::2, 1:, ::-3].transpose(*order, 4)
    check(x, labels_for(x.shape, axis), axis)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shape", [(1,), (6, 1), (6, 40), (3, 1, 40)])
def test_broadcast_views(full_dtype: np.dtype, shape: Any, axis: int) -> None:
    x = np.broadcast_to(normal(shape, full_dtype), (3, 6, 40))
    check(x, labels_for(x.shape, axis), axis)
    rows = x.shape[:axis] + x.shape[axis + 1 :]
    check(x, np.broadcast_to(np.int64(1), rows), axis)


def test_memory_mapped(tmp_path: Path, full_dtype: np.dtype) -> None:
    np.save(tmp_path / "logits.npy", normal((40, 30), full_dtype))
    np.save(tmp_path / "labels.npy", labels_for((40, 30), 1))
    check(
        np.load(tmp_path / "logits.npy", mmap_mode="r"),
        np.load(tmp_path / "labels.npy", mmap_mode="r"),
    )


@pytest.mark.parametrize("code", "bhilqBHILQ")
@pytest.mark.parametrize("swapped", [False, True])
def test_integer_types_of_labels(code: str, swapped: bool) -> None:
    x, labels = normal((9, 120), np.float32), labels_for((9, 120), 1)
    expected = sf.cross_entropy_with_grad(x, labels, reduction="none")
    labels = labels.astype(np.dtype(code).newbyteorder() if swapped else code)
    result = sf.cross_entropy_with_grad(x, labels, reduction="none")
    for ours, theirs in zip(result, expected, strict=True):
        assert_same_bits(ours, theirs)


@pytest.mark.parametrize("code", "bhilqBHILQ")
def test_ignore_index_of_any_integer_type(code: str) -> None:
    x, labels = normal((9, 100)), labels_for((9, 100), 1)
    labels[[2, 5]] = 120  # outside the classes, inside every type
    losses, grad = sf.cross_entropy_with_grad(
        x, labels.astype(code), ignore_index=120, reduction="none"
    )
    ignored = labels == 120
    assert (losses[ignored] == 0).all()
    assert (grad[ignored] == 0).all()
    np.testing.assert_array_equal(
        losses[~ignored], sf.cross_entropy(x[~ignored], labels[~ignored], reduction="none")
    )


@pytest.mark.parametrize("ignore_index", [-100, 0, 2, 2**40])
@pytest.mark.parametrize("classes", [3, 10, 64, 300])
def test_one_ignored_row_of_many(
    isa: str, full_dtype: np.dtype, classes: int, ignore_index: int
) -> None:
    """Kernels look at the labels of many rows at once: each of these may be the one to ignore."""
    x = normal((37, classes), full_dtype)
    others = [label for label in range(classes) if label != ignore_index]
    labels = np.resize(np.array(others, np.int64), len(x))
    expected = sf.cross_entropy_with_grad(x, labels, reduction="sum")[1]
    losses = sf.cross_entropy(x, labels, reduction="none")
    for row in range(len(x)):
        some = labels.copy()
        some[row] = ignore_index
        result, grad = sf.cross_entropy_with_grad(
            x, some, ignore_index=ignore_index, reduction="none"
        )
        assert result[row] == 0
        assert not grad[row].any()
        kept = some != ignore_index
        assert kept.sum() == len(x) - 1
        assert_same_bits(result[kept], losses[kept])
        assert_same_bits(grad[kept], expected[kept])


@pytest.mark.parametrize("ignore_index", [-1, 3, 2**31, -(2**63), 2**63, -(2**70)])
def test_ignore_index_of_any_size(ignore_index: int) -> None:
    x, labels = normal((4, 5)), np.array([0, 4, 2, 1])
    expected = sf.cross_entropy(x, labels)
    loss, _ = sf.cross_entropy_with_grad(x, labels, ignore_index=ignore_index)
    if ignore_index == 3:
        labels[1], kept = 3, [0, 2, 3]
        expected = sf.cross_entropy(x[kept], labels[kept])
        loss = sf.cross_entropy(x, labels, ignore_index=ignore_index)
    np.testing.assert_allclose(loss, expected, 1e-15)


def test_lists() -> None:
    x, labels = normal((4, 5)), [0, 4, 2, 1]
    expected = sf.cross_entropy_with_grad(x, np.array(labels))
    loss, grad = sf.cross_entropy_with_grad(x.tolist(), labels)
    assert loss == expected[0]
    np.testing.assert_array_equal(grad, expected[1])
    assert sf.cross_entropy(x.tolist(), np.eye(5)[labels].tolist()) == pytest.approx(loss, 1e-14)


def test_one_row_gives_a_scalar(dtype: np.dtype) -> None:
    x = normal((5,), dtype)
    for reduction in REDUCTIONS:
        for loss in (
            sf.cross_entropy(x, 3, reduction=reduction),
            sf.cross_entropy_with_grad(x, np.int8(3), reduction=reduction)[0],
            sf.nll_loss(x, 3, reduction=reduction),
            sf.cross_entropy_from_probs(np.abs(x), 3, reduction=reduction),
        ):
            assert isinstance(loss, dtype.type)
    assert isinstance(sf.cross_entropy(normal((4, 5), dtype), [0] * 4), dtype.type)


@pytest.mark.parametrize(("shape", "axis"), [((0, 5), 1), ((2, 0, 3), 2), ((5, 0), 0), ((0, 0), 0)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_rows(dtype: np.dtype, shape: Any, axis: int, reduction: str) -> None:
    row_shape = shape[:axis] + shape[axis + 1 :]
    labels = np.empty(row_shape, np.int64)
    loss, grad = sf.cross_entropy_with_grad(
        np.empty(shape, dtype), labels, axis, reduction=reduction
    )
    assert grad.shape == shape
    assert grad.dtype == loss.dtype == dtype
    if reduction == "none":
        assert loss.shape == row_shape
    else:
        np.testing.assert_array_equal(float(loss), np.nan if reduction == "mean" else 0)


# Data types


@pytest.mark.parametrize("code", "?bhilqBHILQ")
def test_integer_logits_compute_in_float64(code: str) -> None:
    x = np.random.default_rng(0).integers(0, 60, (6, 9)).astype(code)
    labels = labels_for((6, 9), 1)
    losses, grad = sf.cross_entropy_with_grad(x, labels, reduction="none")
    wide = x.astype(np.float64)
    assert_ulp(losses, truth.cross_entropy(wide, labels), "loss", np.float64)
    assert_ulp(grad, truth.gradient(wide, labels), "gradient", np.float64)


@pytest.mark.parametrize("requested", ["float16", "bfloat16", "float32", "float64", "longdouble"])
@pytest.mark.parametrize("given", ["float16", "bfloat16", "float32", "float64", "int16"])
@pytest.mark.parametrize("axis", [-1, 0])
def test_dtype_decides_the_result(given: str, requested: str, axis: int) -> None:
    x = normal((6, 9)).astype(dtype_named(given))
    labels = labels_for((6, 9), axis)
    dtype = dtype_named(requested)
    rows = np.moveaxis(x.astype(np.float32 if dtype.itemsize == 2 else dtype), axis, -1)
    right = truth.cross_entropy(rows, labels), truth.gradient(rows, labels)
    losses, grad = sf.cross_entropy_with_grad(x, labels, axis, reduction="none", dtype=dtype)
    grad = np.moveaxis(grad, axis, -1)
    if requested == "longdouble":
        assert_near(losses, right[0], dtype)
        assert_near(grad, right[1], dtype)
    else:
        assert_ulp(losses, right[0], "loss", dtype)
        assert_ulp(grad, right[1], "gradient", dtype)
    without = sf.cross_entropy(x, labels, axis, reduction="none", dtype=dtype)
    np.testing.assert_array_equal(without.astype(np.longdouble), losses.astype(np.longdouble))
    assert_near(sf.cross_entropy(x, labels, axis, dtype=dtype), right[0].mean(), dtype)


def test_losses_beyond_float16_are_infinite_and_silent() -> None:
    x = np.float16([[6e4, -6e4], [6e4, -6e4]])
    assert sf.cross_entropy(x, [1, 1]) == np.inf
    np.testing.assert_array_equal(sf.cross_entropy(x, [1, 0], reduction="none"), [np.inf, 0])
    # The sum is in float64: single losses beyond the range do not matter to a mean within it.
    assert sf.cross_entropy(x, [1, 0], denominator=2) == np.float16(6e4)


# Options, against the formulas in long double

WEIGHTS = [{}, {"weight": True}, {"sample_weight": True}, {"weight": True, "sample_weight": True}]
TERMS: list[dict[str, float]] = [
    {},
    {"label_smoothing": 0.1},
    {"z_loss": 1e-2},
    {"temperature": 2.5},
    {"label_smoothing": 1.0, "temperature": 0.5},
    {"label_smoothing": 0.3, "z_loss": 0.5, "temperature": 1.7},
]
TARGETS = ("labels", "ignored", "probabilities")


def options_from(flags: dict[str, Any], rows: tuple[int, ...], classes: int) -> dict[str, Any]:
    values = {"weight": positive((classes,)), "sample_weight": positive(rows, seed=4)}
    return {name: values[name] for name in flags}


def target_of(kind: str, shape: tuple[int, ...], axis: int) -> Array:
    if kind == "probabilities":
        return probabilities_for(shape, axis)
    labels = labels_for(shape, axis)
    if kind == "ignored":
        labels.reshape(-1)[::3] = -100
    return labels


def check_options(
    x: Array, target: Array, axis: int, options: dict[str, Any], reduction: str
) -> None:
    dtype = x.dtype
    if target.dtype.kind == "f":
        target = target.astype(dtype)
    options = {
        name: value.astype(dtype) if isinstance(value, np.ndarray) else value
        for name, value in options.items()
    }
    options["reduction"] = reduction
    last = target
    if target.shape == x.shape:
        last = np.moveaxis(target, axis, -1).astype(np.float64)
    wide = {
        name: value.astype(np.float64) if isinstance(value, np.ndarray) else value
        for name, value in options.items()
    }
    right = truth.cross_entropy_with_options(np.moveaxis(x, axis, -1), last, **wide)
    loss, grad = sf.cross_entropy_with_grad(x, target, axis, **options)
    assert_near(loss, right.loss, dtype)
    largest = float(np.abs(right.gradient).max())
    assert_near(np.moveaxis(grad, axis, -1), right.gradient, dtype, scale=largest)
    assert_same_bits(sf.cross_entropy(x, target, axis, **options), loss)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("terms", TERMS, ids=str)
@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda flags: "+".join(flags) or "plain")
@pytest.mark.parametrize("kind", TARGETS)
def test_options(
    full_dtype: np.dtype, kind: str, weights: Any, terms: dict[str, float], reduction: str
) -> None:
    for shape, axis in [((21, 5), 1), ((3, 40, 7), 1), ((3, 200), 1)]:
        rows = labels_for(shape, axis).shape
        options = options_from(weights, rows, shape[axis]) | terms
        x = normal(shape, full_dtype)
        check_options(x, target_of(kind, shape, axis), axis, options, reduction)


@pytest.mark.parametrize("terms", TERMS, ids=str)
@pytest.mark.parametrize("kind", TARGETS)
def test_options_of_half_types(half_dtype: np.dtype, kind: str, terms: dict[str, float]) -> None:
    for shape, axis in [((21, 5), 1), ((3, 40, 7), 1), ((3, 200), 1)]:
        rows = labels_for(shape, axis).shape
        options = options_from({"weight": True, "sample_weight": True}, rows, shape[axis]) | terms
        x = normal(shape, half_dtype)
        for reduction in REDUCTIONS:
            check_options(x, target_of(kind, shape, axis), axis, options, reduction)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("shape", [(5, 4097), (2, 20_000)])
def test_options_of_long_rows(full_dtype: np.dtype, shape: tuple[int, int], kind: str) -> None:
    options = options_from({"weight": True, "sample_weight": True}, shape[:1], shape[1])
    x = normal(shape, full_dtype)
    check_options(x, target_of(kind, shape, 1), 1, options | TERMS[-1], "mean")
    check_options(x, target_of(kind, shape, 1), 1, {"label_smoothing": 0.1}, "none")


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("layout", [*STRIDES, "byte_swapped"])
def test_layouts_of_options(full_dtype: np.dtype, layout: str, kind: str) -> None:
    """Every array of the call laid out differently: the same result."""
    make = STRIDES.get(layout, byte_swapped)
    shape, axis = (5, 19, 20), 1
    x, target = normal(shape, full_dtype), target_of(kind, shape, axis)
    if kind == "probabilities":
        target = target.astype(full_dtype)
    options = {
        "weight": positive((19,), full_dtype),
        "sample_weight": positive((5, 20), full_dtype),
        "label_smoothing": 0.1,
        "reduction": "none",
    }
    expected = sf.cross_entropy_with_grad(x, target, axis, **options)
    options["weight"] = make(options["weight"])
    options["sample_weight"] = make(options["sample_weight"])
    result = sf.cross_entropy_with_grad(make(x), make(target), axis, **options)
    for ours, theirs in zip(result, expected, strict=True):
        if layout == "byte_swapped":
            assert_near(ours, theirs, full_dtype)
        else:
            assert_same_bits(ours, theirs)


@pytest.mark.parametrize("target_dtype", ["float16", "float32", "float64", "longdouble"])
def test_probability_targets_of_any_floating_type(full_dtype: np.dtype, target_dtype: str) -> None:
    x, target = normal((6, 9), full_dtype), probabilities_for((6, 9)).astype(target_dtype)
    right = truth.cross_entropy_with_options(x, target)
    loss, grad = sf.cross_entropy_with_grad(x, target)
    assert_near(loss, right.loss, full_dtype)
    assert_near(grad, right.gradient, full_dtype)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("divisor", [0.0, -0.0, "no weight"])
def test_gradient_of_a_mean_divided_by_zero(full_dtype: np.dtype, divisor: Any, kind: str) -> None:
    """The gradient is divided by 0 like the loss: what is not 0 turns infinite."""
    x, target = normal((4, 3), full_dtype), np.array([0, -100, 2, 1])
    if kind == "probabilities":
        target = sf.softmax(normal((4, 3), full_dtype, seed=1))
    options: dict[str, Any] = {"denominator": divisor}
    if divisor == "no weight":
        options = {"sample_weight": np.zeros(4)}
    for empty in ("nan", "zero"):
        options["empty"] = empty
        loss, grad = sf.cross_entropy_with_grad(x, target, **options)
        right, right_grad = sf.reference.cross_entropy_with_grad(x, target, **options)
        np.testing.assert_array_equal(loss, right)
        np.testing.assert_array_equal(grad, right_grad)


def test_gradient_of_a_mean_with_tiny_weights(full_dtype: np.dtype) -> None:
    """Their share in the mean is an ordinary number, but its factors are not."""
    x, target = normal((4, 3), full_dtype), np.array([0, 1, 2, 1])
    weight = np.full(4, 1e-36)
    loss, grad = sf.cross_entropy_with_grad(x, target, sample_weight=weight)
    right, right_grad = sf.cross_entropy_with_grad(x, target)
    assert_near(loss, right.astype(np.longdouble), full_dtype)
    assert_near(grad, right_grad.astype(np.longdouble), full_dtype)


# Powers of ten, of float32 and of float64: below the smallest normal number, and such that products
# of weights, or the multiple of them that a gradient is first, are out of range.
SIZES = {"tiny": (-40, -310), "small": (-30, -300), "large": (30, 300), "1": (0, 0)}
EXTREMES: list[dict[str, Any]] = [
    {"weight": ["tiny"]},
    {"weight": ["small"]},
    {"weight": ["large"]},
    {"weight": ["small", "1", "large"]},
    {"sample_weight": ["tiny"]},
    {"sample_weight": ["small"]},
    {"sample_weight": ["large"]},
    {"sample_weight": ["large", "1", "1", "small"]},
    {"weight": ["small"], "sample_weight": ["small"]},
    {"weight": ["large"], "sample_weight": ["large"]},
    {"weight": ["large"], "sample_weight": ["small"], "label_smoothing": 0.1},
    {"denominator": "small"},
    {"denominator": "large"},
    {"denominator": "large", "temperature": 1e3},
    {"denominator": "large", "weight": ["large"], "sample_weight": ["1"], "z_loss": 0.1},
    {"z_loss": "large"},
    {"z_loss": "small", "weight": ["tiny"]},
    {"z_loss": 1e-3, "weight": ["small"], "label_smoothing": 0.1},
]


def extreme_options(extremes: dict[str, Any], dtype: np.dtype, shape: Any) -> dict[str, Any]:
    column = int(dtype == np.float64)

    def number(size: Any) -> Any:
        return float(f"1e{SIZES[size][column]}") if isinstance(size, str) else size

    options = {name: number(size) for name, size in extremes.items() if not isinstance(size, list)}
    for name, count in (("weight", shape[1]), ("sample_weight", shape[0])):
        if name in extremes:
            sizes = np.resize([number(size) for size in extremes[name]], count)
            options[name] = (sizes * positive((count,), seed=count)).astype(dtype)
    return options


def assert_near_in_range(result: Any, right: Any, dtype: Any) -> None:
    """Check rows against the truth, which need not be in the range of the dtype."""
    largest = np.longdouble(np.finfo(dtype).max)
    result, right = np.atleast_2d(result), np.atleast_2d(right)
    over = np.abs(right) > largest
    assert (np.isinf(result) == over)[np.abs(np.abs(right) / largest - 1) > 1e-5].all()
    inside = np.abs(right) < largest
    wanted = np.where(inside, right, 0)
    scale = np.abs(wanted).max(axis=1, keepdims=True)
    assert_near(np.where(inside, result, 0), wanted, dtype, scale=scale)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("extremes", EXTREMES, ids=str)
@pytest.mark.parametrize("shape", [(4, 3), (40, 200)], ids=str)
def test_weights_of_any_size(
    full_dtype: np.dtype, shape: Any, extremes: dict[str, Any], kind: str, reduction: str
) -> None:
    options = extreme_options(extremes, full_dtype, shape) | {"reduction": reduction}
    x, target = normal(shape, full_dtype), target_of(kind, shape, 1)
    if kind == "probabilities":
        target = target.astype(full_dtype)
    right = truth.cross_entropy_with_options(x, target, **options)
    loss, grad = sf.cross_entropy_with_grad(x, target, **options)
    assert_near_in_range(loss, right.loss, full_dtype)
    assert_near_in_range(grad, right.gradient, full_dtype)
    if options.keys() <= {"weight", "sample_weight", "reduction"}:
        log_probs = truth.log_softmax(x).astype(full_dtype)
        loss = sf.nll_loss(log_probs, target, **options)
        right_loss = truth.negative_log_likelihood(log_probs, target, **options)
        assert_near_in_range(loss, right_loss, full_dtype)


def test_an_extreme_weight_of_a_single_row() -> None:
    loss = sf.cross_entropy(np.zeros(2), 0, sample_weight=np.array(1e49), reduction="sum")
    np.testing.assert_allclose(loss, 1e49 * np.log(2), 1e-15)


def test_an_extreme_weight_changes_no_bits_of_other_rows(full_dtype: np.dtype) -> None:
    x, labels = normal((40, 200), full_dtype), labels_for((40, 200), 1)
    ordinary = positive((40,), full_dtype)
    extreme = ordinary.copy()
    extreme[7] = 1e37
    extreme[9] = 1e-37
    others = np.delete(np.arange(40), [7, 9])
    for reduction in ("sum", "none"):
        loss, grad = sf.cross_entropy_with_grad(
            x, labels, sample_weight=ordinary, reduction=reduction
        )
        loss_beside, grad_beside = sf.cross_entropy_with_grad(
            x, labels, sample_weight=extreme, reduction=reduction
        )
        assert_same_bits(grad_beside[others], grad[others])
        if reduction == "none":
            assert_same_bits(loss_beside[others], loss[others])


def test_an_extreme_z_loss_alone_takes_no_power_out_of_anything() -> None:
    # exp(-800) is 0, so the logsumexp is 0, and with it what z_loss adds.
    logits = np.array([[0.0, -800.0]])
    assert sf.cross_entropy(logits, np.array([1]), z_loss=1.5e308, reduction="sum") == 800


@pytest.mark.parametrize("temperature", [1e-40, 1e-25, 1e25, 1e60])
@pytest.mark.parametrize("kind", TARGETS)
def test_temperatures_beyond_those_of_the_kernels(
    full_dtype: np.dtype, kind: str, temperature: float
) -> None:
    shape = (5, 7)
    x = (normal(shape) * min(temperature, 1e37)).astype(full_dtype)
    target = target_of(kind, shape, 1)
    if kind == "probabilities":
        target = target.astype(full_dtype)
    right = truth.cross_entropy_with_options(x, target, temperature=temperature)
    loss, grad = sf.cross_entropy_with_grad(x, target, temperature=temperature)
    assert_near_in_range(loss, right.loss, full_dtype)
    assert_near_in_range(grad, right.gradient, full_dtype)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("denominator", [1, 7, 0.5, -2.0, np.float32(3), np.int64(4)])
def test_denominator_replaces_the_divisor(
    full_dtype: np.dtype, denominator: float, kind: str
) -> None:
    x = normal((8, 9), full_dtype)
    options = options_from({"weight": True, "sample_weight": True}, (8,), 9)
    options |= {"denominator": denominator, "z_loss": 0.1}
    check_options(x, target_of(kind, (8, 9), 1), 1, options, "mean")
    for reduction in ("sum", "none"):  # where it means nothing
        target = target_of(kind, (8, 9), 1)
        loss = sf.cross_entropy(x, target, denominator=denominator, reduction=reduction)
        assert_same_bits(loss, sf.cross_entropy(x, target, reduction=reduction))


@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_sample_weight_repeats_rows(full_dtype: np.dtype, kind: str) -> None:
    counts = np.array([2, 0, 1, 3])
    x, target = normal((4, 6), full_dtype), target_of(kind, (4, 6), 1)
    options = {"weight": positive((6,)), "label_smoothing": 0.2, "z_loss": 0.1}
    loss, grad = sf.cross_entropy_with_grad(x, target, sample_weight=counts, **options)
    repeated = np.repeat(np.arange(4), counts)
    other, parts = sf.cross_entropy_with_grad(x[repeated], target[repeated], **options)
    gathered = np.zeros_like(x)
    np.add.at(gathered, repeated, parts)
    assert_near(loss, other, full_dtype)
    assert_near(grad, gathered, full_dtype)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ["labels", "ignored", "probabilities"])
@pytest.mark.parametrize("given", [2.5, np.ones(3), np.full((4, 1), 0.5), np.arange(3)[None]])
def test_sample_weight_is_broadcast(
    full_dtype: np.dtype, given: Any, kind: str, reduction: str
) -> None:
    x, target = normal((4, 6, 3), full_dtype), target_of(kind, (4, 6, 3), 1)
    log_probs = sf.log_softmax(x, 1)
    whole = np.array(np.broadcast_to(given, (4, 3)))
    for module in (sf, sf.reference):
        for function, values in (
            (module.cross_entropy_with_grad, x), (module.nll_loss, log_probs),
            (module.cross_entropy_with_grad_and_hessian, x),
        ):  # fmt: skip
            results = [
                function(values, target, 1, sample_weight=weight, reduction=reduction)
                for weight in (given, whole)
            ]
            first, second = (item if isinstance(item, tuple) else (item,) for item in results)
            for broadcast, expected in zip(first, second, strict=True):
                assert_same_bits(broadcast, expected)


def test_own_dtype_changes_nothing(dtype: np.dtype) -> None:
    """It takes the short way of small calls, too: the general checks are not asked."""
    x, labels = normal((4, 6), dtype), labels_for((4, 6), 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_checks, "check_values", None)
        loss, grad = sf.cross_entropy_with_grad(x, labels, dtype=dtype)
    assert loss.dtype == grad.dtype == dtype
    expected_loss, expected_grad = sf.cross_entropy_with_grad(x, labels)
    assert_same_bits(loss, expected_loss)
    assert_same_bits(grad, expected_grad)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_z_loss_adds_the_squared_logsumexp(reduction: str, temperature: float) -> None:
    x, labels = normal((4, 6)), labels_for((4, 6), 1)
    squares = sf.logsumexp(x / temperature) ** 2
    reduced = {"none": squares, "mean": squares.mean(), "sum": squares.sum()}[reduction]
    options: dict[str, Any] = {"reduction": reduction, "temperature": temperature}
    np.testing.assert_allclose(
        sf.cross_entropy(x, labels, z_loss=0.5, **options),
        sf.cross_entropy(x, labels, **options) + 0.5 * reduced,
        1e-13,
    )


# Fused and separate


@pytest.mark.parametrize("shape", [(9, 5), (4, 100), (3, 5000), (9000, 2)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", TARGETS)
def test_fused_equals_separate(
    dtype: np.dtype, kind: str, reduction: str, shape: tuple[int, int]
) -> None:
    """The loss has the same bits with and without a gradient, wherever the gradient goes."""
    x, target = normal(shape, dtype), target_of(kind, shape, 1)
    if kind == "probabilities":
        target = target.astype(dtype)
    loss = sf.cross_entropy(x, target, reduction=reduction)
    fused, grad = sf.cross_entropy_with_grad(x, target, reduction=reduction)
    assert_same_bits(fused, loss)
    in_place, same = sf.cross_entropy_with_grad(x, target, reduction=reduction, grad_out=x)
    assert same is x
    assert_same_bits(in_place, loss)
    assert_same_bits(x, grad)


@pytest.mark.parametrize("shape", [(9, 5), (4, 100), (3, 5000)])
def test_gradient_is_softmax_minus_target(full_dtype: np.dtype, shape: tuple[int, int]) -> None:
    x, labels = normal(shape, full_dtype), labels_for(shape, 1)
    formula = sf.softmax(x).astype(np.float64)
    formula[np.arange(shape[0]), labels] -= 1
    _, grad = sf.cross_entropy_with_grad(x, labels, reduction="sum")
    assert_near(grad, formula, full_dtype)
    _, mean = sf.cross_entropy_with_grad(x, labels)
    assert_near(mean, formula / shape[0], full_dtype, scale=1 / shape[0])


def test_loss_is_nll_of_log_softmax(full_dtype: np.dtype) -> None:
    x, labels = normal((40, 30), full_dtype), labels_for((40, 30), 1)
    expected = sf.nll_loss(sf.log_softmax(x), labels, reduction="none")
    assert_near(sf.cross_entropy(x, labels, reduction="none"), expected, full_dtype)
    expected = sf.cross_entropy_from_probs(sf.softmax(x), labels, reduction="none")
    assert_near(sf.cross_entropy(x, labels, reduction="none"), expected, full_dtype)


# grad_out


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("layout", [*WRITABLE, "byte_swapped"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_grad_out(dtype: np.dtype, axis: int, layout: str, kind: str) -> None:
    make = WRITABLE.get(layout, byte_swapped)
    if layout == "byte_swapped" and dtype.name == "bfloat16":
        return  # ml_dtypes has it in native byte order only
    shape = (5, 19, 20)
    x, target = normal(shape, dtype), target_of(kind, shape, axis)
    loss, grad = sf.cross_entropy_with_grad(x, target, axis)
    out = make(np.full_like(x, 7))
    result = sf.cross_entropy_with_grad(x, target, axis, grad_out=out)
    assert result[1] is out
    np.testing.assert_array_equal(result[0], loss)
    np.testing.assert_array_equal(out, grad)
    in_place = make(x)
    result = sf.cross_entropy_with_grad(in_place, target, axis, grad_out=in_place)
    assert result[1] is in_place
    np.testing.assert_array_equal(result[0], loss)
    np.testing.assert_array_equal(in_place, grad)


@pytest.mark.parametrize("start", [1, 4, 40])
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_partial_overlap_is_right_or_refused(kind: str, start: int) -> None:
    memory = normal((200,))
    x, out = memory[:120].reshape(12, 10), memory[start : start + 120].reshape(12, 10)
    target = target_of(kind, (12, 10), 1)
    before, right = memory.copy(), sf.cross_entropy_with_grad(x.copy(), target)
    for options in ({}, {"temperature": 1.0, "label_smoothing": 0.0, "z_loss": 0.0}):
        call = partial(sf.cross_entropy_with_grad, x, target, grad_out=out, **options)
        assert_right_or_refused(call, right, out, memory)
        memory[:] = before


def test_grad_out_over_the_target() -> None:
    """The gradient may take the place of class probabilities, or is refused."""
    x, target = normal((12, 10)), probabilities_for((12, 10))
    right = sf.cross_entropy_with_grad(x, target)
    call = partial(sf.cross_entropy_with_grad, x, target, grad_out=target)
    assert_right_or_refused(call, right, target, target)


@pytest.mark.parametrize("axis", [-1, 1])
def test_grad_out_over_labels(axis: int) -> None:
    """Labels within the gradient's memory: small calls and others refuse."""
    sf.cross_entropy(normal((3, 10)), labels_for((3, 10), 1))
    memory = normal((300,))
    labels = memory.view(np.int64)[100:112]
    labels[:] = np.arange(12) % 10
    before = memory.copy()
    with pytest.raises(ValueError, match="overlap"):
        sf.cross_entropy_with_grad(
            normal((12, 10)), labels, axis, grad_out=memory[:120].reshape(12, 10)
        )
    np.testing.assert_array_equal(memory, before)


@pytest.mark.parametrize("name", ["weight", "sample_weight"])
def test_grad_out_over_weights(name: str) -> None:
    memory = np.abs(normal((10, 10))) + 0.1
    x, labels = normal((10, 10)), labels_for((10, 10), 1)
    weights = memory[3]
    right = sf.cross_entropy_with_grad(x, labels, **{name: weights.copy()})
    call = partial(sf.cross_entropy_with_grad, x, labels, grad_out=memory, **{name: weights})
    assert_right_or_refused(call, right, memory, memory)


@pytest.mark.parametrize("classes", [10, 1000, 300_000])
def test_grad_out_over_the_weights_of_a_single_row(classes: int) -> None:
    x, weight = normal((classes,)), np.abs(normal((classes,), seed=3)) + 0.1
    options = {"label_smoothing": 0.1, "weight": weight.copy()}
    right = sf.cross_entropy_with_grad(x, 3, **options)
    options["weight"] = weight
    call = partial(sf.cross_entropy_with_grad, x, 3, **options, grad_out=weight)
    assert_right_or_refused(call, right, weight, weight)


# PyTorch

LOGITS = (6, 9, 4)  # classes on axis 1


def torch_result(
    torch: Any, function: str, values: Array, target: Array, **options: Any
) -> tuple[Array, Array]:
    """Return PyTorch's loss and the gradient of its sum."""
    tensor = torch.tensor(values, requires_grad=True)
    options = {
        key: torch.tensor(value) if isinstance(value, np.ndarray) else value
        for key, value in options.items()
    }
    loss = getattr(torch.nn.functional, function)(tensor, torch.tensor(target), **options)
    loss.sum().backward()
    return loss.detach().numpy(), tensor.grad.numpy()


TORCH_TARGETS = ("labels", "ignored", "ignored label in range", "all but one ignored")
TORCH_TARGETS += ("probabilities",)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", TORCH_TARGETS)
def test_every_option_pair_matches_torch(
    torch: Any,
    full_dtype: np.dtype,
    kind: str,
    weighted: bool,
    label_smoothing: float,
    reduction: str,
) -> None:
    x = normal(LOGITS, full_dtype)
    options: dict[str, Any] = {"label_smoothing": label_smoothing, "reduction": reduction}
    if weighted:
        options["weight"] = positive((9,), full_dtype)
    target = target_of("ignored" if kind == "ignored" else "labels", LOGITS, 1)
    if kind == "probabilities":
        target = probabilities_for(LOGITS, 1).astype(full_dtype)
    elif kind == "ignored label in range":
        options["ignore_index"] = 2
    elif kind == "all but one ignored":
        target[...] = -100
        target[3, 2] = 5
    expected = torch_result(torch, "cross_entropy", x, target, **options)
    loss, grad = sf.cross_entropy_with_grad(x, target, axis=1, **options)
    assert_as_peer(loss, expected[0], full_dtype)
    assert_as_peer(grad, expected[1], full_dtype)


@pytest.mark.parametrize("kind", ["labels", "ignored", "probabilities"])
@pytest.mark.parametrize("weighted", [False, True])
def test_mean_denominator_is_that_of_torch(torch: Any, kind: str, weighted: bool) -> None:
    """The sum over the mean, of PyTorch and of ours."""
    x = normal(LOGITS)
    target = target_of(kind, LOGITS, 1)
    options = {"weight": positive((9,))} if weighted else {}
    theirs = [
        torch_result(torch, "cross_entropy", x, target, reduction=reduction, **options)[0]
        for reduction in ("sum", "mean")
    ]
    ours = [
        sf.cross_entropy(x, target, 1, reduction=reduction, **options)
        for reduction in ("sum", "mean")
    ]
    np.testing.assert_allclose(ours[0] / ours[1], theirs[0] / theirs[1], 1e-12)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["labels", "ignored"])
def test_nll_loss_matches_torch(
    torch: Any, full_dtype: np.dtype, kind: str, weighted: bool, reduction: str
) -> None:
    log_probs = sf.log_softmax(normal(LOGITS, full_dtype), axis=1)
    target = target_of(kind, LOGITS, 1)
    options: dict[str, Any] = {"reduction": reduction}
    if weighted:
        options["weight"] = positive((9,), full_dtype)
    expected, _ = torch_result(torch, "nll_loss", log_probs, target, **options)
    assert_as_peer(sf.nll_loss(log_probs, target, axis=1, **options), expected, full_dtype)


def test_every_label_ignored_matches_torch(torch: Any) -> None:
    x, target = normal((3, 4)), np.full(3, -100)
    for reduction in REDUCTIONS:
        expected, slope = torch_result(torch, "cross_entropy", x, target, reduction=reduction)
        loss, grad = sf.cross_entropy_with_grad(x, target, reduction=reduction)
        np.testing.assert_array_equal(loss, expected)
        np.testing.assert_array_equal(grad, np.nan_to_num(slope))


# nll_loss and cross_entropy_from_probs


def test_nll_loss_of_opposite_infinities(full_dtype: np.dtype) -> None:
    """Their sum is no number, and no warning."""
    log_probs = np.array([[np.inf, 0], [0, -np.inf]], full_dtype)
    assert np.isnan(sf.nll_loss(log_probs, np.array([0, 1]), reduction="sum"))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda flags: "+".join(flags) or "plain")
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_losses_of_probabilities(
    full_dtype: np.dtype, axis: int, kind: str, weights: Any, reduction: str
) -> None:
    shape = (5, 7, 6)
    probs = probabilities_for(shape, axis, seed=9) + 0.01
    target = target_of(kind, shape, axis)
    options = options_from(weights, labels_for(shape, axis).shape, shape[axis])
    options["reduction"] = reduction
    probs = probs.astype(full_dtype)
    log_probs = np.log(probs.astype(np.float64)).astype(full_dtype)
    for function, values, logarithms in [
        (sf.nll_loss, log_probs, log_probs.astype(np.longdouble)),
        (sf.cross_entropy_from_probs, probs, np.log(probs.astype(np.longdouble))),
    ]:
        right = truth.negative_log_likelihood(
            np.moveaxis(logarithms, axis, -1),
            target if target.dtype.kind == "i" else np.moveaxis(target, axis, -1),
            **options,
        )
        result = function(values, target, axis, **options)
        assert_near(result, right, full_dtype)


@pytest.mark.parametrize("layout", [*STRIDES, "byte_swapped"])
@pytest.mark.parametrize("name", ["nll_loss", "cross_entropy_from_probs"])
@pytest.mark.parametrize("kind", TARGETS)
def test_layouts_of_probabilities(dtype: np.dtype, kind: str, name: str, layout: str) -> None:
    make = STRIDES.get(layout, byte_swapped)
    if layout == "byte_swapped" and dtype.name == "bfloat16":
        return  # ml_dtypes has it in native byte order only
    shape = (5, 7, 6)
    values = (probabilities_for(shape, 1) + 0.01).astype(dtype)
    target = target_of(kind, shape, 1)
    function = getattr(sf, name)
    result = function(make(values), make(target), 1)
    assert result.dtype == dtype
    assert_near(result, function(values, target, 1), dtype)


# Finite differences


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("terms", TERMS, ids=str)
@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda flags: "+".join(flags) or "plain")
@pytest.mark.parametrize("kind", TARGETS)
def test_gradient_is_the_difference_quotient(
    kind: str, weights: Any, terms: dict[str, float], reduction: str
) -> None:
    shape, axis = (3, 5), 1
    options: dict[str, Any] = options_from(weights, (3,), 5) | terms | {"reduction": reduction}
    x, target = normal(shape) / 2, target_of(kind, shape, axis)
    _, grad = sf.cross_entropy_with_grad(x, target, axis, **options)
    quotient = truth.difference_quotient(
        lambda point: np.sum(sf.cross_entropy(point, target, axis, **options)), x
    )
    relative, absolute = DIFFERENCE_QUOTIENT
    np.testing.assert_allclose(grad, quotient, relative, absolute)
