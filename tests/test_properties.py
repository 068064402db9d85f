"""Whatever the call, softce_fast and its reference agree to rounding."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

import softce_fast as sf
from conftest import ISAS
from layouts import STRIDES, Array
from softce_fast import _dispatch

hypothesis = pytest.importorskip("hypothesis")
strategies = pytest.importorskip("hypothesis.strategies")

from hypothesis import given, settings

EXAMPLES = 150
DTYPES = ["float16", "float32", "float64", "longdouble", "int32", "uint8", "bool"]
if importlib.util.find_spec("ml_dtypes"):
    DTYPES.append("bfloat16")
FLOATING = [name for name in DTYPES if "float" in name or name == "longdouble"]

# Of both sides together, relative to the largest finite logit, loss term or gradient entry.
TOLERANCE = {"float16": 3e-3, "bfloat16": 2.5e-2, "float32": 1e-5, "float64": 1e-13}
TOLERANCE |= {"longdouble": 1e-13, "float128": 1e-13}

SPECIAL = [0.0, -0.0, 1.0, np.inf, -np.inf, np.nan, 88.0, -104.0, 700.0, 1e4, -3e5]


def dtype_of(name: str) -> np.dtype:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


class Draw:
    """What a call is made of, drawn from a Hypothesis example."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.generator = np.random.default_rng(data.draw(strategies.integers(0, 2**32 - 1)))

    def choice(self, *values: Any) -> Any:
        return self.data.draw(strategies.sampled_from(values))

    def chance(self) -> bool:
        return bool(self.data.draw(strategies.booleans()))

    def shape(self) -> tuple[int, ...]:
        ndim = self.choice(1, 2, 2, 2, 3, 3, 4, 5)
        lengths = [self.choice(1, 1, 2, 3, 5) for _ in range(ndim)]
        lengths[self.choice(*range(ndim))] = self.choice(0, 1, 2, 7, 16, 33, 70, 200)
        return tuple(lengths)

    def values(self, shape: tuple[int, ...], dtype: str) -> Array:
        scale = self.choice(1.0, 3.0, 30.0)
        x = self.generator.normal(scale=scale, size=shape)
        if dtype in ("int32", "uint8", "bool"):
            return np.abs(x).astype(dtype)
        if self.chance() and x.size:
            count = self.choice(1, 2, 3)
            for index in self.generator.integers(0, x.size, count):
                x.reshape(-1)[index] = self.choice(*SPECIAL)
        with np.errstate(over="ignore"):
            return x.astype(dtype_of(dtype))

    def lay(self, array: Array) -> Array:
        return STRIDES[self.choice(*STRIDES)](array) if self.chance() else array

    def positive(self, shape: tuple[int, ...]) -> Array:
        return self.lay(self.generator.uniform(0.2, 2.0, shape))


def assert_agree(ours: Any, theirs: Any, largest: float) -> None:
    """Compare results of one dtype; `largest` is the size of what rounding errors come from."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    tolerance = TOLERANCE[ours.dtype.name]
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_allclose(
            ours.astype(np.float64), theirs.astype(np.float64), tolerance, tolerance * largest
        )


def size_of(x: Array) -> float:
    """The size of the largest finite element, at least 1."""
    wide = np.abs(np.asarray(x).astype(np.longdouble))
    return float(min(max(1.0, wide[np.isfinite(wide)].max(initial=0.0)), 1e300))


def without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    axis %= len(shape)
    return shape[:axis] + shape[axis + 1 :]


def result_dtype(draw: Draw, options: dict[str, Any]) -> None:
    if draw.choice(0, 0, 0, 1):
        options["dtype"] = dtype_of(draw.choice(*FLOATING))


def both(name: str, *arguments: Any, **options: Any) -> tuple[Any, Any]:
    with np.errstate(all="ignore"):
        return (
            getattr(sf, name)(*arguments, **options),
            getattr(sf.reference, name)(*arguments, **options),
        )


@pytest.fixture(params=ISAS, scope="module", autouse=True)
def build(request: pytest.FixtureRequest) -> Any:
    """As the fixture `isa`, once for the module: Hypothesis wants fixtures that outlive a test."""
    if request.param not in _dispatch.available():
        pytest.skip(f"the {request.param} build is not here, or this machine cannot run it")
    with _dispatch.using(request.param):
        yield request.param


pytestmark = pytest.mark.filterwarnings("error")


@settings(max_examples=EXAMPLES)
@given(data=strategies.data())
def test_normalisers(data: Any) -> None:
    draw = Draw(data)
    name = draw.choice("softmax", "log_softmax", "logsumexp")
    shape = draw.shape()
    dtype = draw.choice(*DTYPES)
    x = draw.lay(draw.values(shape, dtype))
    ndim = len(shape)
    axis = draw.choice(None, *range(-ndim, ndim), (0, ndim - 1) if ndim > 1 else (0,))
    options: dict[str, Any] = {}
    if draw.chance():
        mask_shape = [n if draw.chance() else 1 for n in shape]
        options["where"] = draw.lay(draw.generator.random(mask_shape) < 0.8)
    if name == "logsumexp":
        options["keepdims"] = draw.chance()
    else:
        options["empty"] = draw.choice("nan", "zero")
        options["temperature"] = draw.choice(1.0, 1.0, 0.5, 3.0)
    result_dtype(draw, options)
    ours, theirs = both(name, x, axis, **options)
    assert_agree(ours, theirs, size_of(x))


@settings(max_examples=EXAMPLES)
@given(data=strategies.data())
def test_cross_entropy(data: Any) -> None:
    draw = Draw(data)
    shape = draw.shape()
    x = draw.lay(draw.values(shape, draw.choice(*DTYPES)))
    axis = draw.choice(*range(-len(shape), len(shape)))
    classes, row_shape = shape[axis], without(shape, axis)
    options: dict[str, Any] = {"reduction": draw.choice("none", "mean", "sum")}
    if classes == 0 or draw.choice(0, 1, 1):
        target = draw.generator.integers(0, max(classes, 1), row_shape)
        target = np.asarray(target)
        if classes == 0 or draw.chance():
            ignored = draw.choice(-100, 255, 0)
            options["ignore_index"] = ignored
            target[draw.generator.random(row_shape) < (0.3 if classes else 2)] = ignored
        if draw.chance() and target.min(initial=0) >= 0:
            target = target.astype(draw.choice("u1", "i2", "u8", ">i4"))
    else:
        target = draw.generator.gamma(0.5, size=shape)
        target[target < 0.05] = 0
        target = target.astype(draw.choice("f2", "f4", "f8"))
    if draw.chance():
        options["weight"] = draw.positive((classes,))
    if draw.chance():
        options["sample_weight"] = draw.positive(row_shape)
    options["label_smoothing"] = draw.choice(0.0, 0.0, 0.1, 1.0)
    options["z_loss"] = draw.choice(0.0, 0.0, 1e-2)
    options["temperature"] = draw.choice(1.0, 1.0, 0.5, 3.0)
    options["denominator"] = draw.choice(None, None, 3.0)
    options["empty"] = draw.choice("nan", "zero")
    result_dtype(draw, options)
    target = draw.lay(target)
    (loss, grad), (right, right_grad) = both("cross_entropy_with_grad", x, target, axis, **options)
    # A sum of losses is only as exact as its largest terms, which infinite ones may hide.
    terms = size_of(x) * max(1, classes if target.dtype.kind == "f" else 1) * max(1, right.size)
    terms *= max(1, size_of(np.asarray(right)))
    assert_agree(loss, right, terms)
    assert_agree(grad, right_grad, 10 * size_of(right_grad) * size_of(x))
    separate = np.asarray(sf.cross_entropy(x, target, axis, **options))
    np.testing.assert_array_equal(separate.astype(float), np.asarray(loss).astype(float))


@settings(max_examples=EXAMPLES)
@given(data=strategies.data())
def test_other_functions(data: Any) -> None:
    draw = Draw(data)
    shape = draw.shape()
    x = draw.lay(draw.values(shape, draw.choice(*FLOATING)))
    name = draw.choice("softmax", "log_softmax", "probabilities", "binary", "binary with logits")
    options: dict[str, Any] = {}
    if name in ("softmax", "log_softmax"):
        upstream = draw.lay(draw.values(shape, draw.choice(*DTYPES)))
        if name == "log_softmax":
            x = -np.abs(x)  # infinity times no gradient is NaN or 0
        ours, theirs = both(f"{name}_backward", upstream, x, draw.choice(*range(len(shape))))
        assert_agree(ours, theirs, size_of(theirs) * size_of(upstream))
        return
    options["reduction"] = draw.choice("none", "mean", "sum")
    result_dtype(draw, options)
    if name == "probabilities":
        axis = draw.choice(*range(len(shape)))
        if not shape[axis]:
            return
        target = np.asarray(draw.generator.integers(0, shape[axis], without(shape, axis)))
        function = draw.choice("nll_loss", "cross_entropy_from_probs")
        if draw.chance():
            options["weight"] = draw.positive((shape[axis],))
        ours, theirs = both(function, np.abs(x), draw.lay(target), axis, **options)
    else:
        target = draw.lay(draw.generator.random(shape))
        if draw.chance():
            options["weight"] = draw.positive(shape[-1:])
        if name == "binary with logits":
            ours, theirs = both("binary_cross_entropy_with_logits_with_grad", x, target, **options)
            assert_agree(ours[1], theirs[1], size_of(theirs[1]))
            ours, theirs = ours[0], theirs[0]
        else:
            probs = np.clip(np.abs(x).astype(np.float64), 0, 1)
            ours, theirs = both("binary_cross_entropy", probs, target, **options)
    assert_agree(ours, theirs, size_of(x) * max(1, x.size))
