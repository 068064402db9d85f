"""softce_fast.scipy against SciPy itself: values, promotion, broadcasting, what goes to SciPy."""

from __future__ import annotations

import importlib.metadata
import itertools
from typing import Any

import numpy as np
import pytest

special = pytest.importorskip("scipy.special")

import softce_fast as sf
import softce_fast.scipy as adapter

SCIPY = tuple(map(int, importlib.metadata.version("scipy").split(".")[:2]))
AXES = (None, 0, -1, (0, 1))


def normal(*shape: int, dtype: Any = np.float64) -> Any:
    return (3 * np.random.default_rng(0).standard_normal(shape)).astype(dtype)


def assert_alike(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    assert ours.dtype == theirs.dtype
    rtol = 4 * float(np.finfo(ours.dtype).eps) * 64  # SciPy's own error
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "int64", "complex128"])
def test_values_and_dtypes(name: str, axis: Any, kind: str) -> None:
    x = normal(3, 4, dtype=kind)
    if kind == "complex128":
        x = x + 0.5j
    assert_alike(getattr(adapter, name)(x, axis), getattr(special, name)(x, axis))


OPERANDS = [
    [1, 2], 2, 1.5, np.float32(2), np.array([1, 2], np.int8), np.array([True, False]),
    *(np.array([1, 2], dtype) for dtype in (np.float16, np.float32, np.float64, np.int64)),
    np.ones((3, 1), np.float32), np.array(2, np.float32),
]  # fmt: skip


@pytest.mark.skipif(
    SCIPY < (1, 16), reason="SciPy 1.15 takes Python's numbers for arrays of float64"
)
@pytest.mark.parametrize(("a", "b"), list(itertools.product(OPERANDS, repeat=2)))
def test_a_and_b_broadcast_and_promote_both_ways(a: Any, b: Any) -> None:
    assert_alike(adapter.logsumexp(a, b=b), special.logsumexp(a, b=b))


def test_options_of_logsumexp() -> None:
    a, b = normal(3, 4), normal(4)
    for keepdims, return_sign in itertools.product([False, True], repeat=2):
        options = {"axis": 1, "b": b, "keepdims": keepdims, "return_sign": return_sign}
        ours, theirs = adapter.logsumexp(a, **options), special.logsumexp(a, **options)
        for first, second in zip(np.atleast_1d(ours), np.atleast_1d(theirs), strict=True):
            np.testing.assert_allclose(first, second, rtol=1e-13)


def test_bits_are_those_of_the_package() -> None:
    x = normal(5, 100, dtype=np.float32)
    assert adapter.softmax(x, 1).tobytes() == sf.softmax(x, 1).tobytes()
    assert adapter.log_softmax(x, 1).tobytes() == sf.log_softmax(x, 1).tobytes()
    assert adapter.logsumexp(x, 1).tobytes() == sf.logsumexp(x, 1).tobytes()


def test_the_functions_may_replace_scipys(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = special.logsumexp(np.array([1j, 2]))
    monkeypatch.setattr(special, "logsumexp", adapter.logsumexp)
    assert special.logsumexp(np.array([1j, 2])) == expected
