"""The binary cross-entropies: values, gradients, options, arrays, against the same truths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import softce_fast as sf
import truth
from layouts import WRITABLE, Array, assert_right_or_refused, assert_same_bits, byte_swapped
from test_losses import REDUCTIONS, normal, positive, torch_result
from tolerances import DIFFERENCE_QUOTIENT, assert_as_peer, assert_near

pytestmark = [pytest.mark.usefixtures("isa"), pytest.mark.filterwarnings("error")]

BINARY = ("binary_cross_entropy", "binary_cross_entropy_with_logits")


def binary_truth(
    name: str, values: Array, target: Array, weight: Any, pos_weight: Any, reduction: str
) -> tuple[Array, Array]:
    """Return the loss and, for logits, the gradient, in long double."""
    x, t = values.astype(np.longdouble), target.astype(np.longdouble)
    factor = np.longdouble(1) if weight is None else np.asarray(weight).astype(np.longdouble)
    of_yes = t if pos_weight is None else t * np.asarray(pos_weight).astype(np.longdouble)
    if name == "binary_cross_entropy":
        rows = -factor * (of_yes * np.log(x) + (1 - t) * np.log1p(-x))
        slope = np.zeros_like(x)
    else:
        rows = factor * (of_yes * np.logaddexp(0, -x) + (1 - t) * np.logaddexp(0, x))
        slope = factor * ((1 - t) / (1 + np.exp(-x)) - of_yes / (1 + np.exp(x)))
    if reduction == "none":
        return rows, slope
    scale = x.size if reduction == "mean" else 1
    return rows.sum() / scale, slope / scale


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weight_shape", [None, (3,), (4, 5, 3), (5, 1), ()])
@pytest.mark.parametrize("name", BINARY)
def test_binary(dtype: np.dtype, name: str, weight_shape: Any, reduction: str) -> None:
    shape = (4, 5, 3)
    generator = np.random.default_rng(6)
    values = generator.normal(scale=6.0, size=shape)
    if name == "binary_cross_entropy":
        values = generator.uniform(0.01, 0.99, shape)
    values, target = values.astype(dtype), generator.random(shape).astype(dtype)
    weight = None if weight_shape is None else positive(weight_shape, dtype)
    pos_weights = (None,) if name == "binary_cross_entropy" else (None, positive((3,), dtype))
    for pos_weight in pos_weights:
        options = {"weight": weight, "reduction": reduction}
        right = binary_truth(name, values, target, weight, pos_weight, reduction)
        if name == "binary_cross_entropy":
            assert_near(sf.binary_cross_entropy(values, target, **options), right[0], dtype)
            continue
        options["pos_weight"] = pos_weight
        loss, grad = sf.binary_cross_entropy_with_logits_with_grad(values, target, **options)
        assert_near(loss, right[0], dtype)
        assert_near(grad, right[1], dtype, scale=float(np.abs(right[1]).max()))
        assert_same_bits(sf.binary_cross_entropy_with_logits(values, target, **options), loss)


@pytest.mark.parametrize("size", [8191, 8193, 131_073, 150_000, 262_145, 524_300, 600_001])
@pytest.mark.parametrize("name", BINARY)
def test_binary_of_several_tasks(full_dtype: np.dtype, name: str, size: int) -> None:
    """Every element counts once, wherever one task ends and the next begins."""
    generator = np.random.default_rng(size)
    values = generator.uniform(0.01, 0.99, size).astype(full_dtype)
    target = generator.random(size).astype(full_dtype)
    expected, _ = binary_truth(name, values, target, None, None, "sum")
    assert_near(getattr(sf, name)(values, target, reduction="sum"), expected, full_dtype)


@pytest.mark.parametrize("dtype_of_target", ["?", "u1", "i8", "f4", "f8"])
@pytest.mark.parametrize("name", BINARY)
def test_binary_targets_of_any_type(name: str, dtype_of_target: str) -> None:
    values = np.random.default_rng(7).uniform(0.1, 0.9, (6, 4))
    target = np.random.default_rng(8).integers(0, 2, (6, 4))
    function = getattr(sf, name)
    expected = function(values, target.astype(np.float64))
    assert_same_bits(function(values, target.astype(dtype_of_target)), expected)


def test_binary_of_any_logit_is_finite(full_dtype: np.dtype) -> None:
    logits = np.array([1000, 1e30, np.finfo(full_dtype).max], full_dtype)
    for sign in (1, -1):
        for yes in (0, 1):
            loss, grad = sf.binary_cross_entropy_with_logits_with_grad(
                sign * logits, np.full(3, yes), reduction="none"
            )
            wrong = (sign > 0) != yes
            np.testing.assert_array_equal(loss, logits if wrong else 0)
            np.testing.assert_array_equal(grad, sign if wrong else 0)


@pytest.mark.parametrize("layout", [*WRITABLE, "byte_swapped"])
def test_binary_grad_out(full_dtype: np.dtype, layout: str) -> None:
    make = WRITABLE.get(layout, byte_swapped)
    logits = normal((4, 5, 3), full_dtype)
    target = np.random.default_rng(5).random((4, 5, 3)).astype(full_dtype)
    function = sf.binary_cross_entropy_with_logits_with_grad
    loss, grad = function(logits, target)
    out = make(np.zeros_like(logits))
    assert function(make(logits), make(target), grad_out=out)[1] is out
    np.testing.assert_array_equal(out, grad)
    in_place = make(logits)
    result = function(in_place, target, grad_out=in_place)
    assert result[1] is in_place
    assert result[0] == loss
    np.testing.assert_array_equal(in_place, grad)


@pytest.mark.parametrize("name", ["target", "weight", "pos_weight"])
@pytest.mark.parametrize("start", [0, 1, 70])
def test_binary_grad_out_over_another_input(full_dtype: np.dtype, start: int, name: str) -> None:
    memory = np.random.default_rng(6).random(1000).astype(full_dtype)
    logits = normal((8, 100), full_dtype)
    arrays = {"target": logits > 0, name: memory[:800].reshape(8, 100)}
    function = sf.binary_cross_entropy_with_logits_with_grad
    right = function(logits, **{key: array.copy() for key, array in arrays.items()})
    out = memory[start : start + 800].reshape(8, 100)
    assert_right_or_refused(lambda: function(logits, **arrays, grad_out=out), right, out, memory)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_binary_grad_out_of_a_subclass(full_dtype: np.dtype) -> None:
    logits, target = normal((4, 5), full_dtype), np.full((4, 5), 0.25, full_dtype)
    out = np.zeros((4, 5), full_dtype).view(np.matrix)
    result = sf.binary_cross_entropy_with_logits_with_grad(logits, target, grad_out=out)
    assert result[1] is out
    expected = sf.binary_cross_entropy_with_logits_with_grad(logits, target)
    np.testing.assert_array_equal(out, expected[1])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("pos_weighted", [False, True])
def test_binary_matches_torch(
    torch: Any, pos_weighted: bool, weighted: bool, reduction: str
) -> None:
    values, target = normal((4, 5, 3)), np.random.default_rng(5).random((4, 5, 3))
    options: dict[str, Any] = {"reduction": reduction}
    if weighted:
        options["weight"] = positive((5, 3))
    probs = np.clip(np.abs(values) / 20, 0.01, 0.99)
    expected, _ = torch_result(torch, "binary_cross_entropy", probs, target, **options)
    np.testing.assert_allclose(sf.binary_cross_entropy(probs, target, **options), expected, 1e-12)
    if pos_weighted:
        options["pos_weight"] = positive((3,))
    name = "binary_cross_entropy_with_logits"
    expected, slope = torch_result(torch, name, values, target, **options)
    loss, grad = sf.binary_cross_entropy_with_logits_with_grad(values, target, **options)
    assert_as_peer(loss, expected, np.float64)
    assert_as_peer(grad, slope, np.float64)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", [(), ("weight",), ("pos_weight",), ("weight", "pos_weight")])
def test_binary_gradient_is_the_difference_quotient(options: Any, reduction: str) -> None:
    chosen = {name: positive((4,), seed=len(name)) for name in options} | {"reduction": reduction}
    x, target = normal((3, 4)) / 2, np.random.default_rng(5).random((3, 4))
    _, grad = sf.binary_cross_entropy_with_logits_with_grad(x, target, **chosen)
    quotient = truth.difference_quotient(
        lambda point: np.sum(sf.binary_cross_entropy_with_logits(point, target, **chosen)), x
    )
    relative, absolute = DIFFERENCE_QUOTIENT
    np.testing.assert_allclose(grad, quotient, relative, absolute)
