"""cross_entropy_with_grad_and_hessian: the diagonal against long double, and what goes with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import softce_fast as sf
import truth
from layouts import STRIDES, assert_same_bits
from softce_fast._kernels import execute
from tolerances import smallest_normal

UNITS = 4

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "temperature": {"temperature": 1.7},
    "mean": {"reduction": "mean"},
    "denominator": {"reduction": "mean", "denominator": 7.0},
}


def batch(dtype: Any, classes: int, kind: str) -> tuple[np.ndarray[Any, Any], Any, Any, Any]:
    """Rows with their largest logit 0 to 80 above the others; weights of classes and rows."""
    generator = np.random.default_rng(classes)
    logits = generator.normal(size=(40, classes))
    logits[np.arange(40), generator.integers(0, classes, 40)] += np.arange(0, 80, 2)
    logits = logits.astype(dtype)
    target: Any = generator.integers(0, classes, 40)
    if kind == "probabilities":
        target = generator.dirichlet(np.ones(classes), 40).astype(dtype)
    else:
        target[3] = -100
    sample_weight = generator.uniform(0.1, 3, 40)
    sample_weight[5] = 0
    return logits, target, generator.uniform(0, 2, classes), sample_weight


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [1, 2, 10, 100, 5000])
def test_digits(
    isa: str, full_dtype: np.dtype, name: str, kind: str, weighted: bool, classes: int
) -> None:
    logits, target, weight, sample_weight = batch(full_dtype, classes, kind)
    options: dict[str, Any] = {"reduction": "sum"} | OPTIONS[name]
    if weighted:
        options |= {"weight": weight, "sample_weight": sample_weight}
    loss, grad, hessian = sf.cross_entropy_with_grad_and_hessian(logits, target, **options)
    expected = truth.cross_entropy_with_options(logits, target, **options)
    # Probabilities below the smallest normal number are 0 before anything adds or multiplies them.
    smallest = 16 * classes * smallest_normal(full_dtype)
    near_zero = (np.abs(expected.hessian) < smallest) & (np.abs(hessian) < smallest)
    error = truth.ulp_error(
        np.where(near_zero, 0, hessian), np.where(near_zero, 0, expected.hessian), full_dtype
    )
    assert error.max() <= UNITS
    right_loss, right_grad = sf.cross_entropy_with_grad(logits, target, **options)
    assert_same_bits(loss, right_loss)
    assert_same_bits(grad, right_grad)


def test_excluded_classes(isa: str, full_dtype: np.dtype) -> None:
    """As without them, whatever they hold; 0 there, and not the floor."""
    logits, target, *_ = batch(full_dtype, 100, "labels")
    where = np.arange(100) % 3 != 1
    target[:] = np.where(target >= 0, target // 3 * 3, target)
    poisoned = np.where(where, logits, np.nan).astype(full_dtype)
    hessian = sf.cross_entropy_with_grad_and_hessian(
        poisoned, target, where=where, reduction="sum", hessian_floor=1e-30
    )[2]
    right = truth.cross_entropy_with_options(logits, target, where=where, reduction="sum").hessian
    right = np.where(where & (target >= 0)[:, None], np.maximum(right, 1e-30), 0)
    assert truth.ulp_error(hessian, right, full_dtype).max() <= UNITS


@pytest.mark.parametrize("layout", STRIDES)
def test_layouts(layout: str, full_dtype: np.dtype) -> None:
    logits, target, *_ = batch(full_dtype, 10, "labels")
    expected = sf.cross_entropy_with_grad_and_hessian(logits, target)
    found = sf.cross_entropy_with_grad_and_hessian(STRIDES[layout](logits), target)
    for ours, right in zip(found, expected, strict=True):
        assert_same_bits(ours, right)


def test_class_axis_and_outputs() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    target = np.random.default_rng(1).integers(0, 5, (3, 4))
    _, grad, hessian = sf.cross_entropy_with_grad_and_hessian(logits, target, 1)
    moved = np.ascontiguousarray(np.moveaxis(logits, 1, -1))
    _, _, right = sf.cross_entropy_with_grad_and_hessian(moved, target)
    assert_same_bits(hessian, np.moveaxis(right, -1, 1))
    out = np.empty(logits.shape, np.float32, order="F")
    found = sf.cross_entropy_with_grad_and_hessian(
        logits, target, 1, grad_out=logits, hessian_out=out
    )
    assert found[1] is logits
    assert found[2] is out
    assert_same_bits(out, hessian)
    assert_same_bits(logits, grad)


def test_scale_and_floor() -> None:
    logits, target, _, sample_weight = batch(np.float64, 10, "labels")
    plain = sf.cross_entropy_with_grad_and_hessian(
        logits, target, sample_weight=sample_weight, reduction="sum"
    )[2]
    found = sf.cross_entropy_with_grad_and_hessian(
        logits, target, sample_weight=sample_weight, reduction="sum", hessian_scale=2.0,
        hessian_floor=1e-3,
    )[2]  # fmt: skip
    counts = np.ones(len(logits), bool)
    counts[[3, 5]] = False
    np.testing.assert_array_equal(found[~counts], 0)
    np.testing.assert_allclose(found[counts], np.maximum(2 * plain[counts], 1e-3), 1e-15)


def test_ignored_rows_and_another_dtype() -> None:
    logits = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    found = sf.cross_entropy_with_grad_and_hessian(
        logits.T, np.array([0, 2, 7, 7]), axis=0, ignore_index=7, dtype=np.float64
    )
    expected = sf.cross_entropy_with_grad_and_hessian(
        logits[:2].astype(np.float64), np.array([0, 2])
    )
    assert found[0].dtype == np.float64
    assert_same_bits(found[0], expected[0])
    for ours, right in zip(found[1:], expected[1:], strict=True):
        assert ours.dtype == np.float64
        assert_same_bits(ours.T[:2], right)
        np.testing.assert_array_equal(ours.T[2:], 0)


@pytest.mark.parametrize(("empty", "loss"), [("nan", np.nan), ("zero", 0.0)])
def test_no_row_counts(empty: str, loss: float) -> None:
    target = np.full(2, -100)
    found = sf.cross_entropy_with_grad_and_hessian(np.ones((2, 3)), target, empty=empty)
    np.testing.assert_array_equal(found[0], loss)
    np.testing.assert_array_equal(found[2], 0)


@pytest.mark.parametrize(("empty", "hessian"), [("nan", np.nan), ("zero", 0.0)])
@pytest.mark.parametrize("module", [sf, sf.reference], ids=["kernels", "reference"])
def test_no_class_weighs_anything(module: Any, empty: str, hessian: float) -> None:
    """Under smoothing no row is taken out: the sum is 0, and so is what a mean divides by."""
    found = module.cross_entropy_with_grad_and_hessian(
        np.ones((2, 3)), np.zeros(2, int), weight=np.zeros(3), label_smoothing=0.1,
        hessian_floor=1e-16, empty=empty,
    )  # fmt: skip
    for result in found:
        np.testing.assert_array_equal(result, hessian)


@pytest.mark.parametrize("name", ["float16", "longdouble"])
def test_other_dtypes(name: str) -> None:
    logits, target, *_ = batch(name, 10, "labels")
    _, _, hessian = sf.cross_entropy_with_grad_and_hessian(logits, target, reduction="sum")
    assert hessian.dtype == logits.dtype
    expected = truth.cross_entropy_with_options(logits, target, reduction="sum").hessian
    eps = np.finfo(name).eps
    np.testing.assert_allclose(
        hessian.astype(np.longdouble), expected, 8 * eps, np.finfo(name).tiny
    )


@pytest.mark.parametrize("name", OPTIONS)
def test_reference_agrees(name: str) -> None:
    logits, target, weight, sample_weight = batch(np.float64, 10, "labels")
    options: dict[str, Any] = {"weight": weight, "sample_weight": sample_weight} | OPTIONS[name]
    ours = sf.cross_entropy_with_grad_and_hessian(logits, target, hessian_floor=1e-9, **options)
    plain = sf.reference.cross_entropy_with_grad_and_hessian(
        logits, target, hessian_floor=1e-9, **options
    )
    for found, right in zip(ours, plain, strict=True):
        np.testing.assert_allclose(found, right, 1e-12, 1e-300)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"hessian_scale": 0}, ValueError, "hessian_scale must be finite and > 0, got 0"),
        ({"hessian_scale": "2"}, TypeError, "hessian_scale must be a finite number > 0"),
        ({"hessian_floor": -1.0}, ValueError, "hessian_floor must be None or finite and >= 0"),
        ({"hessian_out": np.empty((2, 2))}, ValueError, "hessian_out must have shape"),
        ({"hessian_out": np.empty((2, 3), "f4")}, TypeError, "hessian_out must have dtype"),
    ],
)
@pytest.mark.parametrize("module", [sf, sf.reference], ids=["kernels", "reference"])
def test_errors(module: Any, options: dict[str, Any], error: type, message: str) -> None:
    grad = np.full((2, 3), 7.0)
    with pytest.raises(error, match=message):
        module.cross_entropy_with_grad_and_hessian(
            np.zeros((2, 3)), np.array([0, 1]), grad_out=grad, **options
        )
    np.testing.assert_array_equal(grad, 7)


def test_hessian_beside_the_gradient_is_refused() -> None:
    out = np.empty((2, 3))
    with pytest.raises(ValueError, match="hessian_out must not share memory"):
        sf.cross_entropy_with_grad_and_hessian(
            np.zeros((2, 3)), np.array([0, 1]), grad_out=out, hessian_out=out
        )


@pytest.mark.parametrize("kind", ["labels", "probabilities"])
@pytest.mark.parametrize("classes", [3, 100, 5000])
def test_masks_of_all_kinds(isa: str, full_dtype: np.dtype, classes: int, kind: str) -> None:
    logits, target, *_ = batch(full_dtype, classes, kind)
    where = np.random.default_rng(2).random(logits.shape) < 0.7
    if kind == "labels":
        where[np.arange(40), np.maximum(target, 0)] = True
    else:
        target = np.where(where, target, 0)
        where[:, 0] = True
    options = {"where": where, "label_smoothing": 0.1, "reduction": "sum"}
    expected = truth.cross_entropy_with_options(logits, target, **options)
    logits[~where] = np.nan
    _, grad, hessian = sf.cross_entropy_with_grad_and_hessian(logits, target, **options)
    smallest = 16 * classes * smallest_normal(full_dtype)
    error = truth.ulp_error(hessian, expected.hessian, full_dtype)
    assert error[np.abs(expected.hessian) >= smallest].max() <= UNITS
    assert_same_bits(grad, sf.cross_entropy_with_grad(logits, target, **options)[1])
    _, _, floored = sf.cross_entropy_with_grad_and_hessian(
        logits, target, hessian_floor=0.5, **options
    )
    np.testing.assert_array_equal(floored[~where], 0)
    counts = np.ones(40, bool) if kind == "probabilities" else target != -100
    assert floored[counts][where[counts]].min() == 0.5


def test_confident_rows_with_another_label(isa: str, full_dtype: np.dtype) -> None:
    """The class above 1/2 is not the one that is left out of the row's sum."""
    logits, *_ = batch(full_dtype, 5000, "labels")
    target = (logits.argmax(axis=1) + 1) % 5000
    hessian = sf.cross_entropy_with_grad_and_hessian(logits, target, reduction="sum")[2]
    expected = truth.cross_entropy_with_options(logits, target, reduction="sum").hessian
    top = np.arange(40), logits.argmax(axis=1)
    assert truth.ulp_error(hessian[top], expected[top], full_dtype).max() <= UNITS


@pytest.mark.parametrize("classes", [17, 24, 60, 100])
def test_the_total_of_confident_rows_with_another_label(
    isa: str, full_dtype: np.dtype, classes: int
) -> None:
    """The largest exponential is not rounded once more as it is added to others."""
    random = np.random.default_rng(5)
    logits = random.normal(scale=1.5, size=(4000, classes))
    logits[:, 5] = logits.max(axis=1) + random.uniform(3, 8, 4000)
    logits, target = logits.astype(full_dtype), np.zeros(4000, int)
    hessian = sf.cross_entropy_with_grad_and_hessian(logits, target, reduction="none")[2]
    expected = truth.cross_entropy_with_options(logits, target, reduction="none").hessian
    assert truth.ulp_error(hessian, expected, full_dtype).max() <= 3


@pytest.mark.parametrize("classes", [2, 3, 10, 16, 17, 100])
def test_passes_give_the_same_bits(isa: str, dtype: np.dtype, classes: int) -> None:
    """Also where the class above 1/2 is not the label."""
    generator = np.random.default_rng(classes)
    logits = generator.normal(scale=4, size=(61, classes)).astype(dtype)
    target = generator.integers(0, classes, 61)
    found = []
    for passes in ("along", "across"):
        with execute.forcing(passes=passes):
            found.append(sf.cross_entropy_with_grad_and_hessian(logits, target)[2])
    assert_same_bits(*found)
