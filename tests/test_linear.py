"""linear_cross_entropy: the composition of a product and a loss, whatever the blocks."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import softce_fast as sf
import tolerances
import truth
from conftest import ISAS, dtype_named
from layouts import STRIDES, WRITABLE, Array
from softce_fast import _dispatch, _linear
from subprocesses import peak_memory, run_function

hypothesis = pytest.importorskip("hypothesis")
strategies = pytest.importorskip("hypothesis.strategies")

from hypothesis import given, settings

pytestmark = pytest.mark.filterwarnings("error")

MB = 2**20
NAMES = ("hidden", "weight", "bias")


@pytest.fixture(params=ISAS, scope="module", autouse=True)
def build(request: pytest.FixtureRequest) -> Any:
    if request.param not in _dispatch.available():
        pytest.skip(f"the {request.param} build is not here, or this machine cannot run it")
    with _dispatch.using(request.param):
        yield request.param


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(28)


def least_memory(hidden: Any, matrix: Any, target: Any, **options: Any) -> int:
    """What the error about too little memory says to be enough."""
    with pytest.raises(ValueError, match="memory must be at least") as caught:
        sf.linear_cross_entropy_with_grad(hidden, matrix, target, **{**options, "memory": 1})
    found = re.search(r"at least (\d+) bytes", str(caught.value))
    assert found
    return int(found.group(1))


def counting(target: Array, options: dict[str, Any], shape: tuple[int, ...]) -> Array:
    """Tell which rows count."""
    counts = np.ones(shape, bool)
    if target.dtype.kind in "iu":
        counts &= target != options.get("ignore_index", -100)
    if options.get("sample_weight") is not None:
        counts &= options["sample_weight"] != 0
    return counts


def composed(
    hidden: Array,
    matrix: Array,
    target: Array,
    bias: Array | None = None,
    dtype: Any = np.float64,
    loss_of: Callable[..., Any] = sf.reference.cross_entropy_with_grad,
    **options: Any,
) -> tuple[Any, dict[str, Array], Array]:
    """Loss, gradients and logits, all whole; rows that do not count are taken as 0."""
    counts = counting(target, options, hidden.shape[:-1])
    hidden = np.where(counts[..., None], hidden.astype(dtype), 0)
    matrix = matrix.astype(dtype)
    logits = hidden @ matrix.T
    if bias is not None:
        logits = logits + bias.astype(dtype)
    loss, gradient = loss_of(logits, target, **options)
    gradient[~counts] = 0
    rows = gradient.reshape(counts.size, len(matrix))
    gradients = {
        "hidden": gradient @ matrix,
        "weight": rows.T @ hidden.reshape(counts.size, hidden.shape[-1]),
        "bias": rows.sum(axis=0),
    }
    return loss, gradients, logits


# Against the composition


class Draw:
    """A call, drawn from a Hypothesis example."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.generator = np.random.default_rng(data.draw(strategies.integers(0, 2**32 - 1)))
        self.options: dict[str, Any] = {}
        row_shape = self.choice((), (1,), (7,), (40,), (0,), (3, 5), (2, 0), (2, 3, 4))
        self.classes, features = self.choice(1, 2, 7, 33, 100), self.choice(0, 1, 4, 19)
        hidden_dtype = self.choice("f4", "f4", "f8", "f2", "bfloat16", ">f4", "i2")
        matrix_dtype = self.choice(hidden_dtype, hidden_dtype, "f4", "f8")
        self.hidden = self.lay(self.numbers((*row_shape, features), hidden_dtype))
        self.matrix = self.lay(self.numbers((self.classes, features), matrix_dtype))
        self.bias = None
        if self.chance():
            self.bias = self.lay(self.numbers((self.classes,), self.choice("f4", hidden_dtype)))
        self.target = self.lay(self.targets(row_shape))
        self.draw_options(row_shape)

    def choice(self, *values: Any) -> Any:
        return self.data.draw(strategies.sampled_from(values))

    def chance(self) -> bool:
        return bool(self.choice(False, True))

    def numbers(self, shape: tuple[int, ...], dtype: str) -> Array:
        values = self.generator.normal(scale=2.0, size=shape)
        return values.astype(dtype_named(dtype) if dtype == "bfloat16" else dtype)

    def lay(self, array: Array) -> Array:
        return STRIDES[self.choice(*STRIDES)](array) if self.chance() else array

    def targets(self, row_shape: tuple[int, ...]) -> Array:
        if self.choice(0, 0, 0, 1):
            return self.generator.gamma(0.5, size=(*row_shape, self.classes))
        labels = np.asarray(self.generator.integers(0, self.classes, row_shape))
        if self.chance():
            ignored = self.choice(-100, 255, 0)
            self.options["ignore_index"] = ignored
            labels[self.generator.random(row_shape) < self.choice(0.3, 1.0)] = ignored
        return (
            labels.astype(self.choice("i8", "i4", "u8")) if labels.min(initial=0) >= 0 else labels
        )

    def draw_options(self, row_shape: tuple[int, ...]) -> None:
        options = self.options
        options["reduction"] = self.choice("none", "mean", "sum")
        if self.chance():
            options["weight"] = self.generator.uniform(0.2, 2.0, self.classes)
        if self.chance():
            weights = np.asarray(self.generator.uniform(0.2, 2.0, row_shape))
            if options["reduction"] != "mean" and self.chance():
                weights -= 1
            weights[self.generator.random(row_shape) < 0.2] = 0
            if row_shape:  # a weight for each sequence, or each place in it
                weights = self.choice(weights, weights, weights[:1], weights[..., :1])
            options["sample_weight"] = weights
        options["label_smoothing"] = self.choice(0.0, 0.0, 0.1, 1.0)
        options["z_loss"] = self.choice(0.0, 0.0, 1e-2)
        options["temperature"] = self.choice(1.0, 1.0, 0.5, 3.0)
        options["softcap"] = self.choice(None, None, 5.0)
        if self.chance():
            options["where"] = self.generator.random(self.classes) < 0.8
        options["denominator"] = self.choice(None, None, 3.0)
        options["empty"] = self.choice("nan", "zero")

    def memory(self, **options: Any) -> int:
        least = least_memory(self.hidden, self.matrix, self.target, **options)
        return self.choice(least, 2 * least, 7 * least, 64 * MB)


def assert_close(ours: Any, theirs: Any, scale: float) -> None:
    """Compare what two orders of summation give; `scale`: of the largest terms."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    tolerance = 64 * tolerances.epsilon(ours.dtype)
    with np.errstate(over="ignore"):
        held = theirs.astype(ours.dtype).astype(np.float64)  # infinite beyond the range of ours
    theirs = np.where(np.isfinite(held), theirs.astype(np.float64), held)
    np.testing.assert_allclose(ours.astype(np.float64), theirs, tolerance, tolerance * scale)


@settings(max_examples=250)
@given(data=strategies.data())
def test_linear_is_the_composition(data: Any) -> None:
    draw = Draw(data)
    call: dict[str, Any] = {"linear_bias": draw.bias, **draw.options}
    grads = draw.choice(NAMES, NAMES, ("hidden",), ("weight",), ("bias",), ())
    if draw.choice(0, 0, 1):
        call["dtype"] = draw.choice("f2", "f4", "f8")
    call["memory"] = draw.memory(**call, grads=grads)
    loss, gradients = sf.linear_cross_entropy_with_grad(
        draw.hidden, draw.matrix, draw.target, **call, grads=grads
    )
    right, right_gradients, logits = composed(
        draw.hidden, draw.matrix, draw.target, draw.bias, **draw.options
    )
    size = max(1.0, float(np.abs(logits).max(initial=0))) * max(1.0, draw.target.size)
    finite = np.nan_to_num(right, posinf=0, neginf=0)
    assert_close(loss, right, size * max(1.0, float(np.abs(finite).max(initial=0))))
    for name, array in zip(NAMES, (draw.hidden, draw.matrix, draw.bias), strict=True):
        gradient = getattr(gradients, name)
        if name not in grads or array is None:
            assert gradient is None
            continue
        own = np.float64 if array.dtype.kind == "i" else array.dtype.newbyteorder("=")
        assert gradient.dtype == np.dtype(call.get("dtype", own))
        assert_close(gradient, right_gradients[name], size)
    alone = sf.linear_cross_entropy(draw.hidden, draw.matrix, draw.target, **call)
    if grads:  # without any, blocks may be larger
        assert_close(alone, loss, size)
    else:
        np.testing.assert_array_equal(alone, loss)


@settings(max_examples=60)
@given(data=strategies.data())
def test_reference_is_the_composition(data: Any) -> None:
    draw = Draw(data)
    right, right_gradients, _ = composed(
        draw.hidden, draw.matrix, draw.target, draw.bias, **draw.options
    )
    loss, gradients = sf.reference.linear_cross_entropy_with_grad(
        draw.hidden, draw.matrix, draw.target, linear_bias=draw.bias, dtype="f8", **draw.options
    )
    np.testing.assert_allclose(loss, right, 1e-12)
    for name in NAMES:
        if name != "bias" or draw.bias is not None:
            np.testing.assert_allclose(getattr(gradients, name), right_gradients[name], 1e-9, 1e-9)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_torch_agrees(
    torch: Any, generator: np.random.Generator, reduction: str, with_bias: bool
) -> None:
    hidden = generator.normal(size=(50, 12))
    matrix = generator.normal(size=(37, 12))
    bias = generator.normal(size=37) if with_bias else None
    target = generator.integers(0, 37, 50)
    target[::4] = -100
    weight = generator.uniform(0.5, 2, 37)
    tensors = [
        None if array is None else torch.tensor(array, requires_grad=True)
        for array in (hidden, matrix, bias)
    ]
    logits = torch.nn.functional.linear(*tensors)
    right = torch.nn.functional.cross_entropy(
        logits, torch.tensor(target), torch.tensor(weight), reduction=reduction,
        label_smoothing=0.1,
    )  # fmt: skip
    right.sum().backward()
    options: dict[str, Any] = {"linear_bias": bias, "weight": weight, "label_smoothing": 0.1}
    memory = 3 * least_memory(hidden, matrix, target, **options)
    loss, gradients = sf.linear_cross_entropy_with_grad(
        hidden, matrix, target, reduction=reduction, memory=memory, **options
    )
    np.testing.assert_allclose(loss, right.detach().numpy(), 1e-12, 1e-14)
    for gradient, tensor in zip(gradients, tensors, strict=True):
        if tensor is not None:
            np.testing.assert_allclose(gradient, tensor.grad.numpy(), 1e-11, 1e-14)


# Bits


def integers(generator: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    return generator.integers(-3, 4, shape).astype(dtype)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("blocks", [1, 5])
def test_exact_logits_give_the_bits_of_cross_entropy(
    generator: np.random.Generator, full_dtype: Any, reduction: str, blocks: int
) -> None:
    """A class matrix of ones and zeros hands the gradient of the logits through as it is."""
    rows, classes = 60, 21
    hidden = integers(generator, (rows, classes), full_dtype)
    matrix = np.eye(classes, dtype=full_dtype)
    bias = integers(generator, (classes,), full_dtype)
    target = generator.integers(0, classes, rows)
    target[3::7] = -100
    options: dict[str, Any] = {
        "reduction": reduction, "label_smoothing": 0.1, "z_loss": 1e-3, "temperature": 0.7,
        "weight": np.arange(1, classes + 1).astype(full_dtype),
        "sample_weight": np.arange(rows) % 4 + 1.0,
    }  # fmt: skip
    memory = 64 * MB
    if blocks > 1:
        memory = least_memory(hidden, matrix, target, linear_bias=bias) + 3000
    loss, gradients = sf.linear_cross_entropy_with_grad(
        hidden, matrix, target, linear_bias=bias, memory=memory, **options
    )
    right, right_gradient = sf.cross_entropy_with_grad(hidden + bias, target, **options)
    np.testing.assert_array_equal(gradients.hidden, right_gradient)
    if full_dtype == np.float64 and reduction != "none":
        # The sum of so many numbers depends on their order.
        np.testing.assert_allclose(loss, right, 4 * np.finfo(np.float64).eps)
    else:
        np.testing.assert_array_equal(loss, right)


def test_two_calls_alike_give_the_same_bits(generator: np.random.Generator) -> None:
    hidden = generator.normal(size=(700, 64)).astype(np.float32)
    matrix = generator.normal(size=(3000, 64)).astype(np.float32)
    target = generator.integers(0, 3000, 700)
    first = sf.linear_cross_entropy_with_grad(hidden, matrix, target, memory=2 * MB)
    for _ in range(3):
        again = sf.linear_cross_entropy_with_grad(hidden, matrix, target, memory=2 * MB)
        assert again[0] == first[0]
        np.testing.assert_array_equal(again[1].hidden, first[1].hidden)
        np.testing.assert_array_equal(again[1].weight, first[1].weight)


def test_loss_alone_has_the_bits_of_the_loss_with_gradients(
    generator: np.random.Generator,
) -> None:
    hidden = generator.normal(size=(300, 32)).astype(np.float32)
    matrix = generator.normal(size=(500, 32)).astype(np.float32)
    target = generator.integers(0, 500, 300)
    for reduction in ("none", "mean", "sum"):
        loss, _ = sf.linear_cross_entropy_with_grad(hidden, matrix, target, reduction=reduction)
        alone = sf.linear_cross_entropy(hidden, matrix, target, reduction=reduction)
        np.testing.assert_array_equal(alone, loss)


# Where others have failed


def test_loss_of_half_types_is_summed_in_more_digits(
    generator: np.random.Generator, half_dtype: Any
) -> None:
    """PyTorch 2.13's chunked loss gave 9.375 for 9.086."""
    hidden = generator.normal(size=(512, 16)).astype(half_dtype)
    matrix = generator.normal(size=(2000, 16)).astype(half_dtype)
    target = generator.integers(0, 2000, 512)
    memory = least_memory(hidden, matrix, target) * 8
    loss, gradients = sf.linear_cross_entropy_with_grad(hidden, matrix, target, memory=memory)
    right, _, _ = composed(hidden, matrix, target)
    assert loss.dtype == half_dtype
    assert loss == np.asarray(right).astype(half_dtype)
    wide = np.empty(matrix.shape, np.float32)
    sf.linear_cross_entropy_with_grad(hidden, matrix, target, weight_grad_out=wide, memory=memory)
    right_gradient = composed(hidden, matrix, target)[1]["weight"]
    error = np.linalg.norm(wide - right_gradient) / np.linalg.norm(right_gradient)
    assert error < 1e-6
    # Without such an array it is rounded once.
    np.testing.assert_array_equal(gradients.weight, wide.astype(half_dtype))


@pytest.mark.parametrize("empty", ["nan", "zero"])
def test_gradients_are_zero_when_all_rows_are_ignored(empty: str) -> None:
    """PyTorch 2.13's chunked way gave NaN."""
    hidden, matrix = np.full((6, 3), np.nan), np.ones((4, 3))
    loss, gradients = sf.linear_cross_entropy_with_grad(
        hidden, matrix, np.full(6, -100), linear_bias=np.ones(4), empty=empty
    )
    np.testing.assert_equal(loss, np.nan if empty == "nan" else 0.0)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("out", ["ignored", "weight 0"])
def test_nan_in_a_row_that_does_not_count_reaches_nothing(
    generator: np.random.Generator, out: str
) -> None:
    """PyTorch 2.13's chunked way let it poison all."""
    hidden, matrix = generator.normal(size=(30, 5)), generator.normal(size=(11, 5))
    target = generator.integers(0, 11, 30)
    options: dict[str, Any] = {"reduction": "sum"}
    bad = np.arange(30) % 3 == 1
    if out == "ignored":
        target[bad] = -100
    else:
        options["sample_weight"] = np.where(bad, 0.0, 1.0)
    clean, clean_gradients = sf.linear_cross_entropy_with_grad(hidden, matrix, target, **options)
    hidden[bad] = np.nan
    loss, gradients = sf.linear_cross_entropy_with_grad(hidden, matrix, target, **options)
    assert loss == clean
    np.testing.assert_array_equal(gradients.hidden, clean_gradients.hidden)
    np.testing.assert_array_equal(gradients.hidden[bad], 0)
    np.testing.assert_array_equal(gradients.weight, clean_gradients.weight)


@pytest.mark.parametrize("out", ["ignored", "weight 0"])
def test_rows_that_do_not_count_are_left_out_of_the_products(
    generator: np.random.Generator, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    hidden, matrix = generator.normal(size=(40, 5)), generator.normal(size=(11, 5))
    target, options = generator.integers(0, 11, 40), {}
    if out == "ignored":
        target[1::2] = -100
    else:
        options["sample_weight"] = np.arange(40) % 2
    products = []
    matmul = np.matmul

    def counted(first: Array, second: Array, **options: Any) -> Array:
        products.append((*first.shape, second.shape[1]))
        return matmul(first, second, **options)

    monkeypatch.setattr(_linear.np, "matmul", counted)
    sf.linear_cross_entropy_with_grad(hidden, matrix, target, **options)
    assert products == [(20, 5, 11), (11, 20, 5), (20, 11, 5)]


def test_negative_infinite_bias_excludes_a_class(generator: np.random.Generator) -> None:
    hidden, matrix = generator.normal(size=(9, 4)), generator.normal(size=(6, 4))
    bias = generator.normal(size=6)
    bias[4] = -np.inf
    keep = np.arange(6) != 4
    target = np.array([0, 1, 2, 3, 5, 0, 1, 2, 3])
    loss, gradients = sf.linear_cross_entropy_with_grad(hidden, matrix, target, linear_bias=bias)
    right, right_gradients = sf.linear_cross_entropy_with_grad(
        hidden, matrix[keep], np.where(target > 4, 4, target), linear_bias=bias[keep]
    )
    np.testing.assert_allclose(loss, right, 1e-15)
    np.testing.assert_allclose(gradients.hidden, right_gradients.hidden, 1e-12)
    np.testing.assert_array_equal(gradients.weight[4], 0)
    assert gradients.bias[4] == 0


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("excluded", [False, True])
def test_soft_caps_and_allowed_classes(
    generator: np.random.Generator, softcap: float | None, excluded: bool
) -> None:
    """The gradient by difference quotients of the truth of the logits; NaN where excluded."""
    hidden, matrix = generator.normal(size=(9, 4)), generator.normal(size=(6, 4))
    where = np.array([True, True, not excluded, True, True, True])
    target = np.array([0, 1, 3, 4, 5, 0, 1, 3, 4])

    def right(point: Array) -> Any:
        return truth.cross_entropy_with_options(
            point @ matrix.T, target, softcap=softcap, where=where
        ).loss

    quotient = truth.difference_quotient(right, hidden)
    expected = right(hidden)
    given = np.where(where[:, None], matrix, np.nan)
    loss, gradients = sf.linear_cross_entropy_with_grad(
        hidden, given, target, softcap=softcap, where=where
    )
    np.testing.assert_allclose(loss, float(expected), 1e-13)
    np.testing.assert_allclose(gradients.hidden, quotient, *tolerances.DIFFERENCE_QUOTIENT)
    np.testing.assert_array_equal(gradients.weight[~where], 0)


# Outputs


def test_signed_sample_weight_gives_the_vector_jacobian_product(
    generator: np.random.Generator,
) -> None:
    """The upstream gradient of each row's loss; checked by difference quotients."""
    hidden, matrix = generator.normal(size=(8, 3)), generator.normal(size=(5, 3))
    target, upstream = generator.integers(0, 5, 8), generator.normal(size=8)
    _, gradients = sf.linear_cross_entropy_with_grad(
        hidden, matrix, target, sample_weight=upstream, reduction="sum"
    )
    step = 1e-6
    for array, gradient in ((hidden, gradients.hidden), (matrix, gradients.weight)):
        for index in np.ndindex(array.shape):
            around = []
            for sign in (1, -1):
                kept = array[index]
                array[index] += sign * step
                losses = sf.linear_cross_entropy(hidden, matrix, target, reduction="none")
                around.append(upstream @ losses)
                array[index] = kept
            quotient = (around[0] - around[1]) / (2 * step)
            np.testing.assert_allclose(gradient[index], quotient, *tolerances.DIFFERENCE_QUOTIENT)


@pytest.mark.parametrize("layout", list(WRITABLE))
@pytest.mark.parametrize("few", [False, True])
def test_accumulate_adds_to_arrays_of_any_layout(
    generator: np.random.Generator, dtype: Any, layout: str, few: bool
) -> None:
    hidden = integers(generator, (4, 15, 6), dtype)
    matrix, bias = integers(generator, (9, 6), dtype), integers(generator, (9,), dtype)
    target = generator.integers(0, 9, (4, 15))
    target[1, ::2] = -100
    call: dict[str, Any] = {"linear_bias": bias, "reduction": "sum"}
    call["memory"] = least_memory(hidden, matrix, target, **call) + 900 if few else MB
    _, fresh = sf.linear_cross_entropy_with_grad(hidden, matrix, target, **call)
    _, right, _ = composed(hidden, matrix, target, bias, reduction="sum")
    for accumulate in (False, True):
        outs = {
            f"{name}_grad_out": WRITABLE[layout](np.full(gradient.shape, 2, dtype))
            for name, gradient in zip(NAMES, fresh, strict=True)
        }
        _, gradients = sf.linear_cross_entropy_with_grad(
            hidden, matrix, target, accumulate=accumulate, **call, **outs
        )
        for name, gradient in zip(NAMES, gradients, strict=True):
            assert gradient is outs[f"{name}_grad_out"]
            wanted = right[name] + (2 if accumulate else 0)
            assert_close(gradient, wanted, max(1.0, float(np.abs(wanted).max())))


def test_hidden_gradient_may_overwrite_the_hidden_states(generator: np.random.Generator) -> None:
    hidden, matrix = generator.normal(size=(30, 5)), generator.normal(size=(11, 5))
    target = generator.integers(0, 11, 30)
    memory = least_memory(hidden, matrix, target) * 2
    loss, right = sf.linear_cross_entropy_with_grad(hidden, matrix, target, memory=memory)
    again, gradients = sf.linear_cross_entropy_with_grad(
        hidden, matrix, target, memory=memory, hidden_grad_out=hidden
    )
    assert gradients.hidden is hidden
    assert again == loss
    np.testing.assert_array_equal(hidden, right.hidden)
    np.testing.assert_array_equal(gradients.weight, right.weight)


def test_results_are_named(generator: np.random.Generator) -> None:
    hidden, matrix = generator.normal(size=(2, 5)), generator.normal(size=(11, 5))
    _, gradients = sf.linear_cross_entropy_with_grad(hidden, matrix, [0, 1], grads=["weight"])
    assert isinstance(gradients, sf.LinearGrads)
    assert gradients._fields == NAMES
    assert gradients.hidden is None
    assert gradients.weight is not None
    assert gradients.bias is None


def test_longdouble(generator: np.random.Generator) -> None:
    hidden = generator.normal(size=(7, 3)).astype(np.longdouble)
    matrix, target = generator.normal(size=(5, 3)), generator.integers(0, 5, 7)
    loss, gradients = sf.linear_cross_entropy_with_grad(hidden, matrix, target)
    right, right_gradients, _ = composed(hidden, matrix, target, dtype=np.longdouble)
    assert loss.dtype == np.longdouble
    np.testing.assert_allclose(loss, right, 1e-17)
    np.testing.assert_allclose(gradients.hidden, right_gradients["hidden"], 1e-15, 1e-18)
    assert gradients.weight.dtype == np.float64


# Memory

ROWS, CLASSES, FEATURES = 4096, 20_000, 64  # logits of 328 MB in float32


def grow(dtype: str, memory: str, pattern: str) -> None:
    """Print by how much the peak grows in a call."""
    generator = np.random.default_rng(0)
    kind = dtype_named(dtype)
    hidden = generator.standard_normal((ROWS, FEATURES), np.float32).astype(kind)
    matrix = generator.standard_normal((CLASSES, FEATURES), np.float32).astype(kind)
    target = generator.integers(0, CLASSES, ROWS)
    if pattern == "ignored":
        target[::3] = -100
    options: dict[str, Any] = {}
    if pattern == "strided":
        hidden = np.repeat(hidden, 2, axis=0)[::2]
        matrix = np.repeat(matrix, 2, axis=1)[:, ::2]
    if pattern == "turned, some classes":
        hidden, matrix = np.asfortranarray(hidden)[::-1], matrix[::-1, ::-1]
        options["where"] = np.isin(np.arange(CLASSES), target)
        options["linear_bias"] = np.zeros(CLASSES, kind)
    outs: dict[str, Any] = {
        "hidden_grad_out": np.ones(hidden.shape, np.float32),
        "weight_grad_out": np.ones(matrix.shape, np.float32),
    }
    # What is loaded once, and threads that stay.
    first = {name: array[:5000] for name, array in options.items()}
    sf.linear_cross_entropy_with_grad(hidden[:9], matrix[:5000], target[:9] % 5000, **first)
    before = peak_memory()
    sf.linear_cross_entropy_with_grad(hidden, matrix, target, memory=int(memory), **outs, **options)
    sf.linear_target_scores(hidden, matrix, target, memory=int(memory), **options)
    print(peak_memory() - before)


# Blocks are made in Python, alike for all builds.
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux tells it")
@pytest.mark.parametrize("build", _dispatch.available()[:1], indirect=True)
@pytest.mark.parametrize("memory", [4 * MB, 64 * MB])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pattern", ["plain", "ignored", "strided", "turned, some classes"])
def test_memory_stays_within_the_limit(build: str, dtype: str, memory: int, pattern: str) -> None:
    result = run_function(grow, dtype, str(memory), pattern, environment={"SOFTCE_FAST_ISA": build})
    assert int(result.stdout) <= memory + 32 * MB


def test_more_than_2_to_the_31_logits() -> None:
    """3 million rows of one kind, of which a few count, by 2000 classes."""
    rows, classes = 3_000_000, 2000
    generator = np.random.default_rng(1)
    hidden = np.broadcast_to(generator.normal(size=4).astype(np.float32), (rows, 4))
    matrix = generator.normal(size=(classes, 4)).astype(np.float32)
    target = np.full(rows, -100, np.int16)
    few = [0, 1, 70_000, 1_500_000, rows - 1]
    target[few] = [0, 1999, 5, 6, 7]
    loss, gradients = sf.linear_cross_entropy_with_grad(
        hidden, matrix, target, memory=8 * MB, grads=("weight",)
    )
    right, right_gradients = sf.linear_cross_entropy_with_grad(hidden[:5], matrix, target[few])
    assert loss == right
    np.testing.assert_allclose(gradients.weight, right_gradients.weight, 1e-5, 1e-7)


@pytest.mark.slow
def test_more_than_2_to_the_31_logits_that_count() -> None:
    """Rows of one kind, whose labels are the classes in turn."""
    rows, classes = 2**16, 2**15 + 2**10
    matrix = np.linspace(-1, 1, classes, dtype=np.float32)[:, None]
    target = (np.arange(rows) % classes).astype(np.int32)
    scores = matrix[:, 0].astype(np.float64)
    losses = np.log(np.exp(scores).sum()) - scores
    loss, gradients = sf.linear_cross_entropy_with_grad(
        np.broadcast_to(np.float32(1), (rows, 1)), matrix, target, reduction="sum",
        weight_grad_out=np.empty(matrix.shape, np.float32),
    )  # fmt: skip
    np.testing.assert_allclose(loss, losses[target].sum(), 1e-6)
    expected = rows * sf.reference.softmax(scores) - np.bincount(target, minlength=classes)
    np.testing.assert_allclose(gradients.weight[:, 0], expected, 1e-4, 1e-3)
    hidden = scores @ sf.reference.softmax(scores) - scores[target]
    np.testing.assert_allclose(gradients.hidden[:, 0], hidden, 1e-4, 1e-4)


# Training


def test_language_model_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example, on a little of its text; with whole logits it takes the same way."""
    folder = Path(__file__).resolve().parent.parent / "examples"
    if not folder.is_dir():
        pytest.skip("the examples are not beside the tests")
    monkeypatch.syspath_prepend(str(folder))
    example = importlib.import_module("language_model")
    words = example.words
    monkeypatch.setattr(example, "words", lambda most: words(30_000))
    results = example.train(20, 256, 700, 16, MB)
    assert results["last"] < results["first"] - 1
    assert results["kept back"] < np.log(results["vocabulary"]) - 1
    naive = example.train(20, 256, 700, 16, MB, naive=True)
    np.testing.assert_allclose(naive["kept back"], results["kept back"], 1e-2)


# Errors

HIDDEN, MATRIX, TARGET = np.ones((3, 2)), np.ones((4, 2)), np.array([0, 1, 2])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"hidden": 1.0}, ValueError, "hidden must have at least one axis"),
        ({"hidden": np.ones((3, 2), complex)}, TypeError, "hidden must hold real numbers"),
        ({"linear_weight": np.ones((4, 3))}, ValueError, "linear_weight must have shape"),
        ({"linear_weight": np.ones(2)}, ValueError, "linear_weight must have shape"),
        ({"linear_weight": np.ma.ones((4, 2))}, TypeError, "linear_weight is a masked array"),
        ({"linear_bias": np.ones(3)}, ValueError, "linear_bias must have one value for each"),
        ({"target": np.array([0, 4, 1])}, IndexError, r"target\[1\] is 4"),
        ({"target": np.array([0, -1, 1])}, IndexError, r"target\[1\] is -1"),
        ({"target": np.array([0, 1])}, ValueError, "target of class indices must have the shape"),
        ({"target": np.ones((3, 3))}, ValueError, "target of class probabilities"),
        ({"target": np.array([True] * 3)}, TypeError, "got booleans"),
        ({"weight": np.ones(3)}, ValueError, "weight must have one value for each class"),
        ({"sample_weight": np.ones(4)}, ValueError, "sample_weight must"),
        ({"label_smoothing": 2}, ValueError, "label_smoothing must be in"),
        ({"z_loss": np.inf}, ValueError, "z_loss must be finite"),
        ({"temperature": 0}, ValueError, "temperature must be finite"),
        ({"ignore_index": 0.5}, TypeError, "ignore_index must be an integer"),
        ({"reduction": "all"}, ValueError, "reduction must be"),
        ({"denominator": np.nan}, ValueError, "denominator must be finite"),
        ({"empty": "one"}, ValueError, "empty must be"),
        ({"dtype": "int32"}, TypeError, "dtype must be"),
        ({"memory": 0}, ValueError, "memory must be > 0"),
        ({"memory": 2.5}, TypeError, "memory must be an integer"),
        ({"grads": ("logits",)}, ValueError, "grads must be a collection of names"),
        ({"grads": "weight"}, ValueError, "grads must be a collection of names"),
        ({"accumulate": True, "bias_grad_out": None}, ValueError, "accumulate=True must have"),
        ({"grads": ("hidden",)}, ValueError, "weight_grad_out must be None where grads is"),
        ({"linear_bias": None}, ValueError, "bias_grad_out must be None where linear_bias"),
        ({"weight_grad_out": np.ones((4, 3))}, ValueError, "weight_grad_out must have shape"),
        ({"weight_grad_out": np.ones((4, 2), "f4")}, TypeError, "weight_grad_out must have dtype"),
        ({"hidden_grad_out": [[1.0]]}, TypeError, "hidden_grad_out must be a numpy.ndarray"),
    ],
)
def test_errors(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    outs = {
        "hidden_grad_out": np.full((3, 2), 5.0), "weight_grad_out": np.full((4, 2), 5.0),
        "bias_grad_out": np.full(4, 5.0),
    }  # fmt: skip
    call = {"hidden": HIDDEN, "linear_weight": MATRIX, "target": TARGET, "linear_bias": np.ones(4)}
    arguments = {**call, **outs, **changes}
    for module in (sf, sf.reference):
        with pytest.raises(error, match=message):
            module.linear_cross_entropy_with_grad(**arguments)
    for name, out in outs.items():
        np.testing.assert_array_equal(out, 5.0, f"{name} was written")


def test_too_little_memory_names_the_least() -> None:
    least = least_memory(HIDDEN, MATRIX, TARGET)
    out = np.full((4, 2), 5.0)
    with pytest.raises(ValueError, match=f"{least} bytes for 4 classes and 2 features, got"):
        sf.linear_cross_entropy_with_grad(
            HIDDEN, MATRIX, TARGET, memory=least - 1, weight_grad_out=out
        )
    np.testing.assert_array_equal(out, 5.0)
    loss, _ = sf.linear_cross_entropy_with_grad(
        HIDDEN, MATRIX, TARGET, memory=least, weight_grad_out=out
    )
    np.testing.assert_allclose(loss, np.log(4), 1e-15)


def test_outputs_share_no_memory() -> None:
    square = np.ones((4, 4))
    target = np.arange(4)
    weights = np.ones(4)
    both = np.full((4, 4), 5.0)
    cases: list[dict[str, Any]] = [
        {"hidden_grad_out": square},
        {"weight_grad_out": square},
        {"hidden_grad_out": both, "weight_grad_out": both},
        {"linear_bias": weights, "bias_grad_out": weights},
        {"sample_weight": weights, "linear_bias": np.ones(4), "bias_grad_out": weights},
    ]
    for case in cases:
        with pytest.raises(ValueError, match="must not share memory"):
            sf.linear_cross_entropy_with_grad(np.ones((4, 4)), square, target, **case)
    rows = np.ones((6, 4))
    with pytest.raises(ValueError, match="hidden_grad_out must not share memory"):
        sf.linear_cross_entropy_with_grad(rows[:4], square, target, hidden_grad_out=rows[1:5])
    np.testing.assert_array_equal(both, 5.0)
    np.testing.assert_array_equal(weights, 1.0)
    # Columns of one array lie between one another, and share nothing.
    pair = np.zeros((4, 8))
    sf.linear_cross_entropy_with_grad(
        np.ones((4, 4)), square, target, hidden_grad_out=pair[:, :4], weight_grad_out=pair[:, 4:]
    )


# Classes that are excluded


@pytest.mark.parametrize("dtype", ["f4", "f2"])
def test_excluded_classes_are_not_there(generator: np.random.Generator, dtype: str) -> None:
    hidden, matrix = generator.normal(size=(50, 6)), generator.normal(size=(20, 6))
    allowed = np.arange(20) % 3 != 0
    target = generator.integers(0, allowed.sum(), 50)
    hidden, matrix = hidden.astype(dtype), matrix.astype(dtype)
    options: dict[str, Any] = {"label_smoothing": 0.1, "softcap": 3.0}
    right, right_gradients = sf.linear_cross_entropy_with_grad(
        hidden, matrix[allowed], target, **options
    )
    matrix[~allowed] = np.nan
    loss, gradients = sf.linear_cross_entropy_with_grad(
        hidden, matrix, np.flatnonzero(allowed)[target], where=allowed, **options
    )
    assert_close(loss, right, 1)
    assert_close(gradients.hidden, right_gradients.hidden, 1)
    assert_close(gradients.weight[allowed], right_gradients.weight, 1)
    np.testing.assert_array_equal(gradients.weight[~allowed], 0)


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        (np.ones(4, bool), ValueError, r"where must have one value for each class, shape \(5,\)"),
        (True, ValueError, r"where must have one value for each class.*got \(\)"),
        (np.ones(5), TypeError, "where must hold booleans, got dtype float64"),
    ],
)
@pytest.mark.parametrize("module", [sf, sf.reference], ids=["kernels", "reference"])
def test_errors_of_where(module: Any, where: Any, error: type, message: str) -> None:
    out = np.full((2, 3), 7.0)
    with pytest.raises(error, match=message):
        module.linear_cross_entropy_with_grad(
            np.ones((2, 3)), np.ones((5, 3)), np.zeros(2, int), where=where, hidden_grad_out=out
        )
    np.testing.assert_array_equal(out, 7)
