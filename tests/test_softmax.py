"""softmax, log_softmax, logsumexp and the backward functions: values, arguments, arrays."""

from __future__ import annotations

import functools
import itertools
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

NAMES = ("softmax", "log_softmax", "logsumexp")
TRUTHS = {
    "softmax": truth.softmax,
    "log_softmax": truth.log_softmax,
    "logsumexp": truth.logsumexp,
}
SAME_SHAPE = NAMES[:2]

with_names = pytest.mark.parametrize("name", NAMES)
with_same_shape = pytest.mark.parametrize("name", SAME_SHAPE)


def normal(shape: tuple[int, ...], dtype: Any = np.float64, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(scale=4.0, size=shape).astype(dtype)


def axes_of(axis: int | tuple[int, ...] | None, ndim: int) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(ndim))
    chosen = axis if isinstance(axis, tuple) else (axis,)
    return tuple(sorted(item % ndim for item in chosen))


def expected(name: str, x: Array, axis: int | tuple[int, ...] | None = -1) -> Array:
    return truth.along(TRUTHS[name], x, axes_of(axis, x.ndim))


def check(name: str, x: Any, axis: int | tuple[int, ...] | None = -1, **options: Any) -> None:
    """Compare a call on an array of a floating dtype with the truth."""
    before = np.array(x)
    result = getattr(sf, name)(x, axis, **options)
    np.testing.assert_array_equal(x, before)
    assert_ulp(result, expected(name, before, axis), name, before.dtype.newbyteorder("="))


# Shapes and axes

SHAPES_AND_AXES = [
    ((1,), 0),
    ((7,), -1),
    ((300,), 0),
    ((5000,), (0,)),
    ((3, 1), 1),
    ((3, 5), -1),
    ((3, 5), 0),
    ((70, 33), 1),
    ((33, 70), 0),
    ((20, 300), -1),
    ((300, 20), -2),
    ((2, 5000), 1),
    ((5000, 6), 0),
    ((4, 6, 3), 1),
    ((4, 6, 3), -3),
    ((4, 6, 3), (0, 2)),
    ((4, 6, 3), (2, 0)),
    ((4, 6, 3), (-1,)),
    ((4, 6, 3), None),
    ((4, 100, 17), 1),
    ((2, 3, 4, 5), 1),
    ((2, 3, 4, 5), -2),
    ((2, 3, 4, 5), (1, 3)),
    ((2, 3, 4, 5), (-3, 2)),
    ((2, 3, 2, 3, 4), 2),
    ((2, 3, 2, 3, 4), (0, 2, 4)),
    ((2, 3, 2, 3, 4), None),
]


@with_names
@pytest.mark.parametrize(("shape", "axis"), SHAPES_AND_AXES)
def test_shapes_and_axes(dtype: np.dtype, shape: Any, axis: Any, name: str) -> None:
    check(name, normal(shape, dtype), axis)


@with_names
@pytest.mark.parametrize("axis", [0, 1, (0, 1), None])
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (2, 0, 3)])
def test_no_elements(dtype: np.dtype, shape: Any, axis: Any, name: str) -> None:
    result = getattr(sf, name)(np.empty(shape, dtype), axis)
    assert result.dtype == dtype
    if name in SAME_SHAPE:
        assert result.shape == shape
    else:
        axes = axes_of(axis, len(shape))
        assert np.shape(result) == tuple(n for i, n in enumerate(shape) if i not in axes)
        assert (np.asarray(result) == -np.inf).all()


@with_names
@pytest.mark.parametrize("axis", [0, -1, None, ()])
def test_zero_dimensions(dtype: np.dtype, axis: Any, name: str) -> None:
    result = getattr(sf, name)(np.array(3, dtype), axis)
    assert isinstance(result, dtype.type)
    assert result == {"softmax": 1, "log_softmax": 0, "logsumexp": 3}[name]


@with_same_shape
def test_zero_dimensions_with_out(name: str) -> None:
    out = np.array(7.0)
    assert getattr(sf, name)(np.array(3.0), out=out) is out
    assert out == {"softmax": 1, "log_softmax": 0}[name]


@with_names
def test_axes_may_be_named_in_any_order(dtype: np.dtype, name: str) -> None:
    x = np.random.default_rng(0).normal(size=(6, 70, 3, 50)).astype(dtype)
    function = getattr(sf, name)
    for axes in ((0, 1), (1, 2), (1, 3), (0, 1, 3)):
        expected = function(x, axes)
        for order in itertools.permutations(axes):
            assert np.array_equal(function(x, order), expected), order


@with_names
def test_no_axes_make_each_element_a_row(dtype: np.dtype, name: str) -> None:
    x = np.array([[1.0, 2.0], [-3.0, 0.5]], dtype)
    truths = {"softmax": np.ones((2, 2)), "log_softmax": np.zeros((2, 2)), "logsumexp": x}
    assert_ulp(getattr(sf, name)(x, ()), truths[name], name, dtype)


def test_one_row_gives_a_scalar(dtype: np.dtype) -> None:
    assert isinstance(sf.logsumexp(np.ones(3, dtype)), dtype.type)
    assert isinstance(sf.logsumexp(np.ones((3, 2), dtype), None), dtype.type)


def test_keepdims() -> None:
    x = normal((2, 3, 4))
    for axis, shape in [(1, (2, 1, 4)), ((0, 2), (1, 3, 1)), (None, (1, 1, 1))]:
        result = sf.logsumexp(x, axis, keepdims=True)
        assert result.shape == shape
        np.testing.assert_array_equal(result.squeeze(), sf.logsumexp(x, axis))


# Arrays in memory


@with_names
@pytest.mark.parametrize("layout", [*STRIDES, "byte_swapped"])
@pytest.mark.parametrize("axis", [0, 1, 2, (0, 2)])
def test_layouts(dtype: np.dtype, axis: Any, layout: str, name: str) -> None:
    make = STRIDES.get(layout, byte_swapped)
    if layout == "byte_swapped" and dtype.name == "bfloat16":
        return  # ml_dtypes has it in native byte order only
    check(name, make(normal((5, 19, 20), dtype)), axis)


@with_names
@pytest.mark.parametrize("axis", [0, 1, 3, (1, 2)])
@pytest.mark.parametrize("order", [(3, 1, 0, 2), (1, 3, 2, 0), (2, 0, 3, 1)])
def test_axes_that_do_not_merge(order: Any, axis: Any, name: str) -> None:
    check(name, normal((5, 8, 7, 6), np.float32).transpose(order), axis)
    check(name, normal((5, 8, 7, 6, 2), np.float32)[:, ::2, 1:, ::-3].transpose(*order, 4), axis)


@with_names
@pytest.mark.parametrize("shape", [(1,), (6, 1), (6, 40), (3, 1, 40)])
def test_broadcast_views(full_dtype: np.dtype, shape: Any, name: str) -> None:
    for axis in (-1, 0):
        check(name, np.broadcast_to(normal(shape, full_dtype), (3, 6, 40)), axis)


@with_names
def test_memory_mapped(tmp_path: Path, full_dtype: np.dtype, name: str) -> None:
    path = tmp_path / "logits.npy"
    np.save(path, normal((40, 30), full_dtype))
    mapped = np.load(path, mmap_mode="r")
    check(name, mapped)
    assert not isinstance(getattr(sf, name)(mapped), np.memmap)


@with_names
def test_buffer_at_an_odd_offset(full_dtype: np.dtype, name: str) -> None:
    x = normal((7, 30), full_dtype)
    buffer = b"-" + x.tobytes()
    check(name, np.frombuffer(buffer, full_dtype, offset=1).reshape(7, 30))


class Logits(np.ndarray):
    """A subclass of ndarray, as other libraries make them."""


@with_names
def test_array_likes(name: str) -> None:
    x = normal((4, 5))
    function = getattr(sf, name)
    for value in (x.tolist(), tuple(map(tuple, x)), [*x], memoryview(x), x.view(Logits)):
        result = function(value)
        assert type(result) is np.ndarray
        np.testing.assert_array_equal(result, function(x))


# Data types


@with_names
@pytest.mark.parametrize("code", "?bhilqBHILQ")
def test_integers_and_booleans_compute_in_float64(code: str, name: str) -> None:
    x = np.random.default_rng(0).integers(0, 100, (6, 9)).astype(code)
    result = getattr(sf, name)(x)
    assert_ulp(result, expected(name, x.astype(np.float64)), name, np.float64)


@with_names
def test_longdouble(name: str) -> None:
    x = normal((6, 9), np.longdouble) / 3
    result = getattr(sf, name)(x)
    assert_near(result, expected(name, x), np.longdouble)


@with_names
@pytest.mark.parametrize("requested", ["float16", "bfloat16", "float32", "float64", "longdouble"])
@pytest.mark.parametrize("given", ["float16", "bfloat16", "float32", "float64", "int16"])
@pytest.mark.parametrize("axis", [-1, 0])
def test_dtype_decides_the_result(given: str, requested: str, axis: int, name: str) -> None:
    x = normal((6, 9)).astype(dtype_named(given))
    result_dtype = dtype_named(requested)
    result = getattr(sf, name)(x, axis, dtype=result_dtype)
    computed_in = np.float32 if result_dtype.itemsize == 2 else result_dtype
    truth_of_rounded = expected(name, x.astype(computed_in), axis)
    if requested == "longdouble":
        assert_near(result, truth_of_rounded, result_dtype)
    else:
        assert_ulp(result, truth_of_rounded, name, result_dtype)


@with_same_shape
def test_values_beyond_float16_are_silent(name: str) -> None:
    """A result that float16 cannot hold is infinite, without a warning."""
    x = np.float32([6e4, -6e4])
    for where in (None, True):
        result = getattr(sf, name)(x, dtype=np.float16, where=where)
        np.testing.assert_array_equal(result, {"softmax": [1, 0]}.get(name, [0, -np.inf]))
    assert sf.logsumexp(np.float32([7e4, 0]), dtype=np.float16) == np.inf


# where


@with_names
@pytest.mark.parametrize("axis", [-1, 0, (0, 2), None])
@pytest.mark.parametrize(
    "mask_shape", [(5, 7, 6), (7, 6), (6,), (7, 1), (5, 1, 1), (1, 7, 1)], ids=str
)
def test_where(dtype: np.dtype, mask_shape: Any, axis: Any, name: str) -> None:
    x = normal((5, 7, 6), dtype)
    where = np.random.default_rng(1).random(mask_shape) < 0.7
    full = np.broadcast_to(where, x.shape)
    filled = np.where(full, x.astype(np.longdouble), -np.inf)
    axes = axes_of(axis, 3)
    some = full.any(axis=axes, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        truths = expected(name, filled, axis)
    rows = some if name in SAME_SHAPE else some.squeeze(axes)
    truths = np.where(rows, truths, -np.inf if name == "logsumexp" else np.nan)
    poisoned = np.where(full, x, np.array(np.nan, dtype))
    result = np.asarray(getattr(sf, name)(poisoned, axis, where=where))
    np.testing.assert_array_equal(np.isnan(result), np.isnan(truths))
    fine = np.isfinite(truths)
    assert_ulp(result[fine], truths[fine], name, dtype)
    if name == "softmax":
        assert (result[~full & rows] == 0).all()
    elif name == "log_softmax":
        assert (result[~full & rows] == -np.inf).all()


@with_names
def test_where_all_true_changes_no_bit(dtype: np.dtype, name: str) -> None:
    x = normal((9, 33), dtype)
    function = getattr(sf, name)
    np.testing.assert_array_equal(function(x, where=True), function(x))


@with_same_shape
def test_where_with_out_in_place(full_dtype: np.dtype, name: str) -> None:
    x = normal((9, 33), full_dtype)
    where = np.arange(33) % 3 > 0
    result = getattr(sf, name)(x, where=where)
    assert getattr(sf, name)(x, where=where, out=x) is x
    np.testing.assert_array_equal(x, result)


@with_names
def test_where_as_a_list(name: str) -> None:
    function = getattr(sf, name)
    x = [[1.0, 5.0, 2.0]]
    without = np.array(function([[1.0, 2.0]]))
    result = np.array(function(x, where=[True, False, True]))
    np.testing.assert_array_equal(result[:, [0, 2]] if name in SAME_SHAPE else result, without)


# temperature and empty


@with_same_shape
@pytest.mark.parametrize("temperature", [0.25, 0.7, 1, 3.0, 100.0, np.float32(2), np.int64(5)])
@pytest.mark.parametrize("shape", [(6, 9), (3, 200), (2, 5000)])
def test_temperature(dtype: np.dtype, shape: Any, temperature: Any, name: str) -> None:
    x = normal(shape, dtype) + np.array(50, dtype)
    truths = TRUTHS[name](x.astype(np.longdouble) / np.longdouble(temperature))
    result = getattr(sf, name)(x, temperature=temperature)
    with np.errstate(under="ignore"):
        assert_near(result, truths, dtype, scale=0 if name == "softmax" else 1)


@with_same_shape
@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e30, 1e300])
def test_extreme_temperature(full_dtype: np.dtype, temperature: float, name: str) -> None:
    x = np.array([-np.inf, 1, 1, 0], full_dtype)
    result = getattr(sf, name)(x, temperature=temperature)
    shares = [0, 0.5, 0.5, 0] if temperature < 1 else [0, 1 / 3, 1 / 3, 1 / 3]
    if name == "log_softmax":
        result = np.exp(result)
    np.testing.assert_allclose(result, shares, 1e-6)


@with_same_shape
@pytest.mark.parametrize("temperature", [1e-60, 1e-40, 1e-25, 1e25, 1e60])
def test_temperature_of_logits_of_its_size(
    full_dtype: np.dtype, temperature: float, name: str
) -> None:
    size = min(max(temperature, 1e-36), 1e37)
    x = (normal((5, 7)) * size).astype(full_dtype)
    truths = TRUTHS[name](x.astype(np.longdouble) / np.longdouble(temperature))
    with np.errstate(under="ignore", over="ignore"):
        result = getattr(sf, name)(x, temperature=temperature)
        inside = np.abs(truths) < np.finfo(full_dtype).max
        assert np.isinf(result[~inside]).all()
        largest = float(np.abs(truths[inside]).max())
        assert_near(result[inside], truths[inside], full_dtype, scale=largest)


@with_names
@pytest.mark.parametrize(
    ("shape", "axes"),
    [((6, 50), None), ((6, 50), (0, 1)), ((3, 4, 50), (1, 2)), ((3, 4, 50), (0, 1)),
     ((3, 4, 5, 6), (1, 2)), ((3, 1, 50), None)],
    ids=str,
)  # fmt: skip
def test_several_axes_are_one_row(dtype: np.dtype, shape: Any, axes: Any, name: str) -> None:
    """Where they are neighbours in memory, no copy is made of them; the bits are the same."""
    x = normal(shape, dtype)
    function = getattr(sf, name)
    apart = np.asfortranarray(x)
    assert_same_bits(function(x, axes), function(apart, axes))
    if axes is None or len(axes) == len(shape):
        flat = function(x.reshape(-1))
        assert_same_bits(np.reshape(function(x, axes), np.shape(flat)), flat)


@with_same_shape
def test_empty_changes_nothing_else(dtype: np.dtype, name: str) -> None:
    x = normal((9, 33), dtype)
    function = getattr(sf, name)
    np.testing.assert_array_equal(function(x, empty="zero"), function(x))


# out


@with_same_shape
@pytest.mark.parametrize("layout", [*WRITABLE, "byte_swapped"])
@pytest.mark.parametrize("axis", [0, 1, -1, (0, 2)])
def test_out(dtype: np.dtype, axis: Any, layout: str, name: str) -> None:
    make = WRITABLE.get(layout, byte_swapped)
    if layout == "byte_swapped" and dtype.name == "bfloat16":
        return  # ml_dtypes has it in native byte order only
    x = normal((5, 19, 20), dtype)
    function = getattr(sf, name)
    result = function(x, axis)
    out = make(np.zeros_like(x))
    assert function(x, axis, out=out) is out
    np.testing.assert_array_equal(out, result)
    in_place = make(x)
    assert function(in_place, axis, out=in_place) is in_place
    np.testing.assert_array_equal(in_place, result)


@with_same_shape
def test_out_decides_nothing_about_the_dtype(name: str) -> None:
    x = np.arange(6).reshape(2, 3)
    out = np.empty((2, 3))
    assert getattr(sf, name)(x, out=out) is out
    np.testing.assert_array_equal(out, getattr(sf, name)(x))
    single = np.empty((2, 3), np.float32)
    assert getattr(sf, name)(x, dtype=np.float32, out=single) is single


@with_same_shape
@pytest.mark.parametrize("axis", [-1, 0, None])
@pytest.mark.parametrize("start", [1, 4, 40])
def test_partial_overlap_is_right_or_refused(start: int, axis: Any, name: str) -> None:
    memory = normal((200,))
    x = memory[:120].reshape(12, 10)
    out = memory[start : start + 120].reshape(12, 10)
    function = getattr(sf, name)
    right = function(x.copy(), axis)
    assert_right_or_refused(lambda: function(x, axis, out=out), right, out, memory)


@with_same_shape
@pytest.mark.parametrize("axis", [-1, 0])
def test_transposed_out_of_the_same_memory(axis: int, name: str) -> None:
    x = normal((12, 12))
    function = getattr(sf, name)
    out, right = x.T, function(x.copy(), axis)
    assert_right_or_refused(lambda: function(x, axis, out=out), right, out, x)


@with_same_shape
def test_an_overlap_that_is_hard_to_tell_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_hard(*_: Any, **__: Any) -> bool:
        raise np.exceptions.TooHardError

    memory = normal((40, 20), np.float32)
    monkeypatch.setattr(np, "shares_memory", too_hard)
    with pytest.raises(ValueError, match="overlap"):
        getattr(sf, name)(memory[:, ::2], out=memory[:, 1::2])


@with_same_shape
def test_interleaved_out_is_no_overlap(name: str) -> None:
    """Two arrays between each other's elements share no memory."""
    memory = normal((40, 20), np.float32)
    x, out = memory[:, ::2], memory[:, 1::2]
    right = getattr(sf, name)(x.copy())
    assert getattr(sf, name)(x, out=out) is out
    np.testing.assert_array_equal(out, right)


# logsumexp with b and with a sign


@pytest.mark.parametrize("axis", [-1, 0, None])
@pytest.mark.parametrize("shape", [(4, 6), (6,), (4, 1), ()])
@pytest.mark.parametrize("return_sign", [False, True])
def test_logsumexp_with_b_matches_scipy(
    special: Any, return_sign: bool, shape: Any, axis: Any
) -> None:
    x, b = normal((4, 6)), np.random.default_rng(3).normal(size=shape)
    for keepdims in (False, True):
        arguments = {"b": b, "keepdims": keepdims, "return_sign": return_sign}
        result = sf.logsumexp(x, axis, **arguments)
        other = special.logsumexp(x, axis, **arguments)
        for ours, theirs in zip(
            result if return_sign else [result], other if return_sign else [other], strict=True
        ):
            assert np.shape(ours) == np.shape(theirs)
            np.testing.assert_allclose(ours, theirs, 1e-12)


def test_logsumexp_with_where_and_b(special: Any) -> None:
    x, b = normal((4, 6)), np.abs(normal((4, 6), seed=1))
    where = np.arange(6) != 2
    poisoned = np.where(where, x, np.nan)
    result = sf.logsumexp(poisoned, b=np.where(where, b, np.nan), where=where)
    np.testing.assert_allclose(result, special.logsumexp(x[:, where], 1, b=b[:, where]), 1e-12)


@pytest.mark.parametrize("b", [None, 2.0])
def test_logsumexp_return_sign_without_b(full_dtype: np.dtype, b: Any) -> None:
    x = normal((4, 6), full_dtype)
    value, sign = sf.logsumexp(x, b=b, return_sign=True)
    assert value.dtype == sign.dtype == full_dtype
    np.testing.assert_array_equal(sign, 1)
    assert_near(value, sf.logsumexp(x).astype(np.longdouble) + np.log(b or 1), full_dtype)


@pytest.mark.parametrize("classes", [1, 3, 16, 17, 100, 1000, 4097, 10_000])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("b_shape", [(20, 1), (1, -1), (20, -1)])
def test_logsumexp_with_b_has_its_digits(
    full_dtype: np.dtype, b_shape: Any, axis: int, classes: int
) -> None:
    """Against long double, relative to the sum of all magnitudes where they cancel."""
    random = np.random.default_rng(classes)
    x = random.normal(scale=4, size=(20, classes)).astype(full_dtype)
    shape = tuple(classes if n == -1 else n for n in b_shape)
    b = (random.normal(size=shape) * (random.random(shape) < 0.8)).astype(full_dtype)
    exponentials = np.exp(x.astype(np.longdouble)) * b
    total, size = exponentials.sum(1), np.abs(exponentials).sum(1)
    poisoned = np.where(np.broadcast_to(b, x.shape) == 0, np.nan, x)
    arrays = (a if axis == 1 else np.ascontiguousarray(a.T) for a in (poisoned, b))
    found, sign = sf.logsumexp(next(arrays), axis, b=next(arrays), return_sign=True)
    assert found.dtype == sign.dtype == full_dtype
    np.testing.assert_array_equal(sign, np.sign(total).astype(full_dtype))
    counts = total != 0
    right = np.log(np.abs(total[counts]))
    epsilon = 8 * np.finfo(full_dtype).eps
    allowed = epsilon * (np.abs(right) + size[counts] / np.abs(total[counts]) + 1)
    assert (np.abs(found[counts] - right) <= allowed).all()
    np.testing.assert_array_equal(found[~counts], -np.inf)


@pytest.mark.parametrize("classes", [4, 40, 5000])
@pytest.mark.parametrize(
    ("x", "b", "expected", "sign"),
    [
        ([1, 1], [1, -1], -np.inf, 0),
        ([7, 7, 7, 2, 2], [1, -0.5, -0.5, 3, -3], -np.inf, 0),
        ([5, 1], [0, -2], 1 + np.log(2), -1),
        ([np.nan, 1], [0, 1], 1, 1),
        ([np.inf, 1], [0, 1], 1, 1),
        ([np.inf, 1], [-2, 1], np.inf, -1),
        ([np.inf, np.inf], [3, -2], np.inf, 1),
        ([np.inf, np.inf], [2, -2], np.nan, np.nan),
        ([np.inf, np.nan], [1, 1], np.nan, np.nan),
        ([1, 2], [1, np.nan], np.nan, np.nan),
        ([-np.inf, 2], [np.nan, 1], 2, 1),
        ([1, 2], [np.inf, 1], np.inf, 1),
        ([2, 1], [-np.inf, 1], np.inf, -1),
        ([2, 1], [0, 0], -np.inf, 0),
        ([-np.inf, -np.inf], [-1, 2], -np.inf, 0),
        ([0, 0], [1e38, 1e38], np.log(2e38), 1),
        ([50, 1], [1e-37, 1e-37], 50 + np.log(1e-37), 1),
    ],
)
@pytest.mark.parametrize("rows", [1, 20])
def test_edges_of_b(
    dtype: np.dtype, rows: int, x: Any, b: Any, expected: float, sign: float, classes: int
) -> None:
    """Also among elements of weight 0, in the middle of a long row."""
    if dtype == np.float16 and abs(b[1]) in (1e38, 1e-37):
        pytest.skip("float16 has no such numbers")
    if len(x) > classes:
        classes = len(x)
    values = np.full((rows, classes), 3, dtype)
    weights = np.zeros_like(values)
    start = (classes - len(x)) // 2
    values[:, start : start + len(x)], weights[:, start : start + len(x)] = x, b
    for function in (sf.logsumexp, sf.reference.logsumexp):
        found, found_sign = function(values, b=weights, return_sign=True)
        assert_near(found, np.full(rows, expected, np.longdouble), dtype)
        np.testing.assert_array_equal(found_sign.astype(float), sign)
        alone = function(values, b=weights).astype(float)
        np.testing.assert_array_equal(alone, np.nan if sign < 0 else found.astype(float))


@with_names
def test_own_dtype_changes_nothing(dtype: np.dtype, name: str) -> None:
    """It takes the short way of small calls, too: the general checks are not asked."""
    x = normal((4, 6), dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_checks, "check_values", None)
        result = getattr(sf, name)(x, dtype=dtype)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, getattr(sf, name)(x))


# Other libraries


@with_names
@pytest.mark.parametrize("axis", [-1, 0, 1, (0, 2), (-1, 0, 1), None])
def test_matches_scipy(special: Any, full_dtype: np.dtype, axis: Any, name: str) -> None:
    x = normal((4, 20, 3), full_dtype)
    result = getattr(sf, name)(x, axis)
    assert_as_peer(result, getattr(special, name)(x.astype(np.float64), axis), full_dtype)


@with_names
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_matches_torch(torch: Any, full_dtype: np.dtype, axis: int, name: str) -> None:
    x = normal((4, 20, 3), full_dtype)
    theirs = getattr(torch, name)(torch.tensor(x.astype(np.float64)), axis)
    assert_as_peer(getattr(sf, name)(x, axis), theirs.numpy(), full_dtype)


@pytest.mark.parametrize("digits", [[2.0, 1.0, 0.1], [20.0, 0.0, 0.0], [-3e5, -3e5 + 1, 7.0]])
def test_against_mpmath(digits: list[float]) -> None:
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(50):
        exponentials = [mpmath.exp(item) for item in digits]
        total = mpmath.fsum(exponentials)
        shares = [item / total for item in exponentials]
        logarithms = [mpmath.log(item) for item in shares]
        np.testing.assert_allclose(sf.softmax(digits), [float(item) for item in shares], 1e-15)
        np.testing.assert_allclose(
            sf.log_softmax(digits), [float(item) for item in logarithms], 1e-15
        )
        np.testing.assert_allclose(sf.logsumexp(digits), float(mpmath.log(total)), 1e-15)


# Backward functions

BACKWARD = {"softmax": sf.softmax_backward, "log_softmax": sf.log_softmax_backward}


def wide_backward(name: str, upstream: Array, output: Array, axes: tuple[int, ...]) -> Array:
    """The textbook formulas in long double."""
    upstream, output = upstream.astype(np.longdouble), output.astype(np.longdouble)
    if name == "softmax":
        return output * (upstream - (upstream * output).sum(axis=axes, keepdims=True))
    return upstream - np.exp(output) * upstream.sum(axis=axes, keepdims=True)


@with_same_shape
@pytest.mark.parametrize("axis", [-1, 0, 1, (0, 2), None])
def test_backward(dtype: np.dtype, axis: Any, name: str) -> None:
    x, upstream = normal((4, 20, 3), dtype), normal((4, 20, 3), dtype, seed=1)
    output = getattr(sf, name)(x, axis)
    result = BACKWARD[name](upstream, output, axis)
    truths = wide_backward(name, upstream, output, axes_of(axis, 3))
    assert_near(result, truths, dtype, scale=float(np.abs(truths).max()))


@with_same_shape
@pytest.mark.parametrize("layout", [*WRITABLE, "byte_swapped"])
def test_backward_layouts_and_out(full_dtype: np.dtype, layout: str, name: str) -> None:
    make = WRITABLE.get(layout, byte_swapped)
    x, upstream = normal((4, 20, 3), full_dtype), normal((4, 20, 3), full_dtype, seed=1)
    output = getattr(sf, name)(x, 1)
    backward = functools.partial(BACKWARD[name], axis=1)
    truths = wide_backward(name, upstream, output, (1,))
    out = make(np.zeros_like(x))
    assert backward(make(upstream), make(output), out=out) is out
    assert_near(out.astype(full_dtype), truths, full_dtype, scale=float(np.abs(truths).max()))
    for place in (0, 1):
        arguments = [make(upstream), make(output)]
        assert backward(*arguments, out=arguments[place]) is arguments[place]
        np.testing.assert_array_equal(arguments[place], out)


@with_same_shape
@pytest.mark.parametrize("shape", [(3, 5000), (1, 300_000), (40, 1025), (3000, 3)])
def test_backward_of_long_rows_and_many(
    isa: str, dtype: np.dtype, shape: tuple[int, int], name: str
) -> None:
    x, upstream = normal(shape, dtype), normal(shape, dtype, seed=1)
    output = getattr(sf, name)(x)
    truths = wide_backward(name, upstream, output, (1,))
    scale = float(max(np.abs(truths).max(), np.abs(upstream.astype(float).sum(axis=1)).max()))
    assert_near(BACKWARD[name](upstream, output), truths, dtype, scale=scale)


@with_same_shape
def test_backward_refuses_out_partly_over_the_input(full_dtype: np.dtype, name: str) -> None:
    memory, output = normal((5, 4), full_dtype), normal((3, 4), full_dtype, seed=1)
    before = memory.copy()
    for arguments in ((memory[:3], output), (output, memory[:3])):
        with pytest.raises(ValueError, match="overlaps"):
            BACKWARD[name](*arguments, out=memory[1:4])
    np.testing.assert_array_equal(memory, before)


def test_backward_of_infinite_gradients(full_dtype: np.dtype) -> None:
    upstream = np.array([[np.inf, 1, 2], [1, -np.inf, np.inf], [np.nan, 0, 0]], full_dtype)
    output = np.array([[0.5, 0.25, 0.25], [0, 0.5, 0.5], [1, 0, 0]], full_dtype)
    for name, function in BACKWARD.items():
        expected = getattr(sf.reference, f"{name}_backward")(upstream, output)
        np.testing.assert_array_equal(function(upstream, output), expected)


@with_same_shape
@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_backward_is_the_difference_quotient(name: str, temperature: float) -> None:
    x, upstream = normal((3, 5)), normal((3, 5), seed=1)
    function = functools.partial(getattr(sf, name), temperature=temperature)
    quotient = truth.difference_quotient(lambda point: np.sum(function(point) * upstream), x)
    relative, absolute = DIFFERENCE_QUOTIENT
    for module in (sf, sf.reference):
        backward = getattr(module, f"{name}_backward")
        result = backward(upstream, function(x), temperature=temperature)
        np.testing.assert_allclose(result, quotient, relative, absolute)


@with_same_shape
@pytest.mark.parametrize("temperature", [1e-250, 1e-30, 0.3, 1e30, 1e250])
def test_backward_divides_by_any_temperature(
    full_dtype: np.dtype, name: str, temperature: float
) -> None:
    upstream, output = normal((4, 20), full_dtype), normal((4, 20), full_dtype, seed=1)
    result = BACKWARD[name](upstream, output, temperature=temperature)
    truths = wide_backward(name, upstream, output, (1,)) / np.longdouble(temperature)
    in_range = np.abs(truths) <= np.finfo(full_dtype).max
    assert np.isinf(result[~in_range]).all()
    scale = float(np.abs(truths).max(where=in_range, initial=0))
    assert_near(result[in_range], truths[in_range], full_dtype, scale=scale)


@with_same_shape
@pytest.mark.parametrize("axis", [0, 1])
def test_backward_matches_torch(torch: Any, axis: int, name: str) -> None:
    x = torch.tensor(normal((4, 6)), requires_grad=True)
    upstream = normal((4, 6), seed=1)
    output = getattr(torch, name)(x, axis)
    output.backward(torch.tensor(upstream))
    result = BACKWARD[name](upstream, output.detach().numpy(), axis)
    np.testing.assert_allclose(result, x.grad.numpy(), 1e-10, 1e-13)


@with_same_shape
@pytest.mark.parametrize(
    ("first", "second", "promoted"),
    [("f4", "f8", "f8"), ("f2", "f4", "f4"), ("f2", "f2", "f2"), ("f4", "i4", "f8")],
)
def test_backward_promotes(first: str, second: str, promoted: str, name: str) -> None:
    assert BACKWARD[name](np.ones(3, first), np.ones(3, second)).dtype == promoted


class OnlyDlpack:
    """What another library's array shows at the least."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


def test_objects_with_dlpack_alone_are_taken() -> None:
    logits, labels = np.random.default_rng(0).standard_normal((4, 5)), np.array([0, 4, 2, 1])
    np.testing.assert_array_equal(sf.softmax(OnlyDlpack(logits)), sf.softmax(logits))
    loss, grad = sf.cross_entropy_with_grad(OnlyDlpack(logits), OnlyDlpack(labels))
    expected = sf.cross_entropy_with_grad(logits, labels)
    assert loss == expected[0]
    np.testing.assert_array_equal(grad, expected[1])


@pytest.mark.parametrize(
    "function", [sf.cross_entropy, functools.partial(sf.linear_cross_entropy, np.eye(5))]
)
def test_arguments_with_dlpack_alone_are_taken(function: Any) -> None:
    arguments = {
        "target": np.arange(5), "weight": np.linspace(1, 2, 5), "sample_weight": np.arange(5.0),
        "where": np.ones(5, np.bool_),
    }  # fmt: skip
    given = {name: OnlyDlpack(array) for name, array in arguments.items()}
    assert function(OnlyDlpack(np.eye(5)), **given) == function(np.eye(5), **arguments)
