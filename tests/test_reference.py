"""softce_fast.reference against SciPy, PyTorch, exact arithmetic and finite differences."""

from __future__ import annotations

import decimal

import numpy as np
import pytest

import truth
from conftest import dtype_named
from softce_fast import reference

NAN, INF = np.nan, np.inf
SHAPE = (4, 5, 3)  # classes on axis 1
CLASSES = SHAPE[1]

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def strict_floating_point():
    """Turn floating-point warnings that escape into errors; underflow is no warning by default."""
    with np.errstate(all="raise", under="ignore"):
        yield


def normal(*shape: int, seed: int = 0, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=scale, size=shape)


def positive(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.2, 2.0, size=shape)


def class_probabilities(seed: int = 2) -> np.ndarray:
    return reference.softmax(normal(*SHAPE, seed=seed, scale=1.0), axis=1)


def class_labels(ignored: int | None = None) -> np.ndarray:
    labels = np.random.default_rng(3).integers(0, CLASSES, size=(SHAPE[0], SHAPE[2]))
    if ignored is not None:
        labels[1, :2] = ignored
    return labels


# Softmax, log_softmax, logsumexp against SciPy

AXES = [-1, 0, 1, (0, 2), (-1, 0, 1), None]


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.longdouble])
def test_matches_scipy(special, name, axis, dtype):
    x = normal(*SHAPE).astype(dtype)
    result = getattr(reference, name)(x, axis)
    assert result.dtype == dtype
    expected = getattr(special, name)(x.astype(np.float64), axis)
    tolerance = 1e-5 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(result.astype(np.float64), expected, tolerance)


@pytest.mark.parametrize(
    ("x", "b"),
    [
        (normal(4, 6), normal(4, 6, seed=1)),
        (normal(4, 6), normal(6, seed=1)),
        (normal(4, 6), np.float64(-2)),
        (normal(4, 6), [[1], [0], [-1], [2]]),
        ([[1.0, 1.0], [1.0, 0.0]], [[1, -1], [1, -1]]),
        ([[NAN, 0.0], [INF, 2.0], [-INF, -INF], [INF, INF]], [[0, 1], [0, 3], [1, 1], [1, -1]]),
        ([[INF, 0.0], [NAN, 0.0], [-INF, 5.0], [3e300, 1.0]], -1.0),
        ([[INF, 0.0], [NAN, 0.0], [-INF, -INF], [-INF, 5.0]], None),
    ],
)
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("return_sign", [False, True])
def test_logsumexp_matches_scipy(special, x, b, keepdims, return_sign):
    infinite = return_sign and np.isinf(x).any()
    if infinite and np.isnan(special.logsumexp([INF], return_sign=True)[1]):
        pytest.skip("this SciPy has no sign for an infinite sum")
    arguments = {"b": b, "keepdims": keepdims, "return_sign": return_sign}
    result = reference.logsumexp(x, 1, **arguments)
    expected = special.logsumexp(x, 1, **arguments)
    if not return_sign:
        result, expected = [result], [expected]
    for ours, theirs in zip(result, expected, strict=True):
        assert np.shape(ours) == np.shape(theirs)
        np.testing.assert_allclose(ours, theirs, 1e-12)


def test_logsumexp_keeps_the_digits_of_small_terms():
    result = reference.logsumexp([0.0, -50.0], b=[1.0, -1.0])
    np.testing.assert_allclose(result, -np.exp(-50.0), 1e-15)


@pytest.mark.parametrize("axis", [-1, 0, (0, 1)])
def test_where_is_the_same_as_minus_infinity(axis):
    x = normal(4, 6)
    where = np.random.default_rng(4).random((4, 6)) < 0.6
    poisoned, filled = np.where(where, x, NAN), np.where(where, x, -INF)
    for function in (reference.softmax, reference.log_softmax, reference.logsumexp):
        np.testing.assert_array_equal(function(poisoned, axis, where=where), function(filled, axis))
    b = np.where(where, 2.0, NAN)
    np.testing.assert_array_equal(
        reference.logsumexp(poisoned, axis, b=b, where=where),
        reference.logsumexp(filled, axis, b=np.full_like(b, 2.0)),
    )


def test_where_broadcasts():
    where = np.array([True, False, True])
    result = reference.softmax([[0.0, 9.0, 0.0]] * 2, where=where)
    np.testing.assert_array_equal(result, [[0.5, 0, 0.5]] * 2)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_temperature_divides_the_logits(temperature):
    x, labels = normal(*SHAPE), class_labels()
    for name, arguments in [("softmax", ()), ("log_softmax", ()), ("cross_entropy", (labels,))]:
        function = getattr(reference, name)
        np.testing.assert_allclose(
            function(x, *arguments, axis=1, temperature=temperature),
            function(x / temperature, *arguments, axis=1),
            1e-12,
        )


@pytest.mark.parametrize("temperature", [1e-300, 1e300])
def test_extreme_temperature_in_float32(temperature):
    result = reference.softmax(np.float32([-INF, 1, 1, 0]), temperature=temperature)
    expected = [0, 0.5, 0.5, 0] if temperature < 1 else [0, 1 / 3, 1 / 3, 1 / 3]
    np.testing.assert_allclose(result, expected, 1e-6)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("axis", [1, 0])
def test_backward_matches_torch(torch, name, axis):
    x = torch.tensor(normal(4, 6), requires_grad=True)
    grad_output = normal(4, 6, seed=1)
    output = getattr(torch, name)(x, axis)
    output.backward(torch.tensor(grad_output))
    result = getattr(reference, f"{name}_backward")(grad_output, output.detach().numpy(), axis)
    np.testing.assert_allclose(result, x.grad.numpy(), 1e-10, 1e-13)


# Cross-entropy against PyTorch

TARGETS = {
    "labels": class_labels(),
    "ignored": class_labels(-100),
    "ignored label in range": class_labels(2),
    "probabilities": class_probabilities(),
}


def torch_loss(torch, function, values, target, **options):
    """Return PyTorch's loss, and the gradient of its sum, with the classes on axis 1."""
    tensor = torch.tensor(values, requires_grad=True)
    options = {
        key: torch.tensor(value) if isinstance(value, np.ndarray) else value
        for key, value in options.items()
    }
    loss = getattr(torch.nn.functional, function)(tensor, torch.tensor(target), **options)
    loss.sum().backward()
    return loss.detach().numpy(), tensor.grad.numpy()


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("target", TARGETS)
def test_cross_entropy_matches_torch(torch, target, weighted, label_smoothing, reduction):
    options = {"label_smoothing": label_smoothing, "reduction": reduction}
    if weighted:
        options["weight"] = positive(CLASSES)
    if target == "ignored label in range":
        options["ignore_index"] = 2
    logits = normal(*SHAPE)
    expected = torch_loss(torch, "cross_entropy", logits, TARGETS[target], **options)
    loss, grad = reference.cross_entropy_with_grad(logits, TARGETS[target], axis=1, **options)
    np.testing.assert_allclose(loss, expected[0], 1e-12)
    np.testing.assert_allclose(grad, expected[1], 1e-10, 1e-14)
    np.testing.assert_array_equal(
        reference.cross_entropy(logits, TARGETS[target], axis=1, **options), loss
    )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("target", ["labels", "ignored"])
def test_nll_loss_matches_torch(torch, target, weighted, reduction):
    options = {"reduction": reduction}
    if weighted:
        options["weight"] = positive(CLASSES)
    log_probs = reference.log_softmax(normal(*SHAPE), axis=1)
    expected, _ = torch_loss(torch, "nll_loss", log_probs, TARGETS[target], **options)
    result = reference.nll_loss(log_probs, TARGETS[target], axis=1, **options)
    np.testing.assert_allclose(result, expected, 1e-13)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("options", [(), ("weight",), ("sample_weight",), ("denominator",)])
@pytest.mark.parametrize("target", TARGETS)
def test_three_ways_to_the_same_loss(target, options, reduction):
    values = {
        "weight": positive(CLASSES),
        "sample_weight": positive(SHAPE[0], SHAPE[2]),
        "denominator": 7,
    }
    chosen = {name: values[name] for name in options} | {"reduction": reduction, "axis": 1}
    logits = normal(*SHAPE)
    expected = reference.cross_entropy(logits, TARGETS[target], **chosen)
    log_probs = reference.log_softmax(logits, axis=1)
    for result in (
        reference.nll_loss(log_probs, TARGETS[target], **chosen),
        reference.cross_entropy_from_probs(np.exp(log_probs), TARGETS[target], **chosen),
    ):
        np.testing.assert_allclose(result, expected, 1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("target", ["labels", "probabilities"])
def test_sample_weight_repeats_rows(target, reduction):
    counts = np.array([2, 0, 1, 3])
    logits = normal(4, CLASSES)
    targets = class_labels()[:, 0] if target == "labels" else class_probabilities()[:, :, 0]
    options = {
        "reduction": reduction,
        "weight": positive(CLASSES),
        "label_smoothing": 0.2,
        "z_loss": 0.1,
    }
    loss, grad = reference.cross_entropy_with_grad(logits, targets, sample_weight=counts, **options)
    repeated = np.repeat(np.arange(4), counts)
    expected_loss, parts = reference.cross_entropy_with_grad(
        logits[repeated], targets[repeated], **options
    )
    expected_grad = np.zeros_like(logits)
    np.add.at(expected_grad, repeated, parts)
    np.testing.assert_allclose(loss, expected_loss, 1e-13)
    np.testing.assert_allclose(grad, expected_grad, 1e-12, 1e-15)


@pytest.mark.parametrize("target", TARGETS)
def test_denominator_replaces_the_divisor(target):
    logits, weight = normal(*SHAPE), positive(CLASSES)
    arguments = {"axis": 1, "weight": weight, "z_loss": 0.1}
    loss, grad = reference.cross_entropy_with_grad(
        logits, TARGETS[target], denominator=4, **arguments
    )
    total, total_grad = reference.cross_entropy_with_grad(
        logits, TARGETS[target], reduction="sum", **arguments
    )
    np.testing.assert_allclose(loss, total / 4, 1e-14)
    np.testing.assert_allclose(grad, total_grad / 4, 1e-14)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("target", TARGETS)
def test_gradient_is_the_difference_quotient(target, reduction):
    options = {
        "axis": 1,
        "weight": positive(CLASSES),
        "sample_weight": positive(SHAPE[0], SHAPE[2]),
        "label_smoothing": 0.1,
        "z_loss": 0.05,
        "temperature": 1.5,
        "reduction": reduction,
    }
    logits = normal(*SHAPE)
    _, grad = reference.cross_entropy_with_grad(logits, TARGETS[target], **options)
    expected = truth.difference_quotient(
        lambda point: np.sum(reference.cross_entropy(point, TARGETS[target], **options)), logits
    )
    np.testing.assert_allclose(grad, expected, 1e-6, 1e-8)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_z_loss_adds_the_squared_logsumexp(reduction):
    logits, labels = normal(*SHAPE), class_labels()
    squares = reference.logsumexp(logits, 1) ** 2
    reduced = {"none": squares, "mean": squares.mean(), "sum": squares.sum()}[reduction]
    options = {"axis": 1, "reduction": reduction}
    np.testing.assert_allclose(
        reference.cross_entropy(logits, labels, z_loss=0.5, **options),
        reference.cross_entropy(logits, labels, **options) + 0.5 * reduced,
        1e-13,
    )


# Binary cross-entropy


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("options", [(), ("weight",), ("pos_weight",), ("weight", "pos_weight")])
def test_binary_cross_entropy_with_logits_matches_torch(torch, options, reduction):
    values = {"weight": positive(5, 3), "pos_weight": positive(3)}
    chosen = {name: values[name] for name in options} | {"reduction": reduction}
    logits, target = normal(4, 5, 3, scale=10), np.random.default_rng(5).random((4, 5, 3))
    expected = torch_loss(torch, "binary_cross_entropy_with_logits", logits, target, **chosen)
    loss, grad = reference.binary_cross_entropy_with_logits_with_grad(logits, target, **chosen)
    np.testing.assert_allclose(loss, expected[0], 1e-12)
    np.testing.assert_allclose(grad, expected[1], 1e-9, 1e-14)
    np.testing.assert_array_equal(
        reference.binary_cross_entropy_with_logits(logits, target, **chosen), loss
    )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weight", [None, positive(3)])
def test_binary_cross_entropy_matches_torch(torch, weight, reduction):
    probs, target = np.random.default_rng(6).random((2, 4, 3))
    options = {"reduction": reduction, "weight": weight}
    expected, _ = torch_loss(torch, "binary_cross_entropy", probs, target, **options)
    np.testing.assert_allclose(
        reference.binary_cross_entropy(probs, target, **options), expected, 1e-12
    )


def test_binary_edge_values():
    probs, target = [0.0, 1.0, 0.0, 1.0, NAN], [0, 1, 1, 0, 1]
    result = reference.binary_cross_entropy(probs, target, reduction="none")
    np.testing.assert_array_equal(result, [0, 0, INF, INF, NAN])
    loss, grad = reference.binary_cross_entropy_with_logits_with_grad(
        [-INF, INF, -INF, INF, NAN], target, reduction="none"
    )
    np.testing.assert_array_equal(loss, result)
    np.testing.assert_array_equal(grad, [0, 0, -1, 1, NAN])
    assert np.isnan(reference.binary_cross_entropy([], []))
    assert reference.binary_cross_entropy([], [], reduction="sum") == 0


def test_binary_keeps_the_digits_of_confident_elements():
    loss, grad = reference.binary_cross_entropy_with_logits_with_grad(
        np.float32([40, -40]), [True, False], reduction="none"
    )
    np.testing.assert_allclose(loss, [4.248354255e-18] * 2, 1e-6)
    np.testing.assert_allclose(grad, [-4.248354255e-18, 4.248354255e-18], 1e-6)


# Digits


def exact(logits: list[float], coefficients: list[float]) -> tuple[float, list[float]]:
    """Return the loss and gradient in 60 digits, rounded to float64."""
    with decimal.localcontext() as context:
        context.prec = 60
        exponentials = [decimal.Decimal(value).exp() for value in logits]
        total = sum(exponentials)
        probs = [value / total for value in exponentials]
        weights = [decimal.Decimal(value) for value in coefficients]
        loss = -sum(k * p.ln() for k, p in zip(weights, probs, strict=True))
        grad = [p * sum(weights) - k for k, p in zip(weights, probs, strict=True)]
        return float(loss), [float(value) for value in grad]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize(
    "logits", [[20, 0, 0], [0, -40, -41], [0, 0, -30], [5, 4.5, 4], [-60, 0.5, -3], [7, 7, 7]]
)
def test_digits(logits, label, dtype):
    one_hot = np.eye(3)[label]
    loss, grad = exact(logits, list(one_hot))
    logits = np.array([logits], dtype)
    tolerance = 6 * np.finfo(dtype).eps
    for target in ([label], one_hot[None].astype(dtype)):
        result, result_grad = reference.cross_entropy_with_grad(logits, target)
        np.testing.assert_allclose(result, loss, tolerance)
        np.testing.assert_allclose(result_grad[0], grad, tolerance)
    np.testing.assert_allclose(-reference.log_softmax(logits)[0, label], loss, tolerance)


def test_digits_of_the_contract():
    logits = np.float32([[20, 0, 0]])
    loss = reference.cross_entropy(logits, [0])
    assert loss.dtype == np.float32
    np.testing.assert_allclose(loss, 4.122307e-09, 1e-6)


def test_digits_of_an_almost_one_hot_target():
    target = [1.0, 2.0**-40, 0.0]
    logits = [30.0, 0.0, -1.0]
    loss, grad = exact(logits, target)
    result, result_grad = reference.cross_entropy_with_grad(logits, target)
    np.testing.assert_allclose(result, loss, 1e-14)
    np.testing.assert_allclose(result_grad, grad, 1e-14)


# Data types


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_compute_in_float32(dtype):
    dtype = dtype_named(dtype)
    x = normal(*SHAPE).astype(dtype)
    single = x.astype(np.float32)
    labels = class_labels()
    pairs = [
        (reference.softmax(x, 1), reference.softmax(single, 1)),
        (reference.log_softmax(x, 1), reference.log_softmax(single, 1)),
        (reference.logsumexp(x, 1), reference.logsumexp(single, 1)),
        (reference.softmax_backward(x, x, 1), reference.softmax_backward(single, single, 1)),
        (reference.nll_loss(x, labels, 1), reference.nll_loss(single, labels, 1)),
        (reference.binary_cross_entropy_with_logits(x, x > 0),
         reference.binary_cross_entropy_with_logits(single, x > 0)),
    ]  # fmt: skip
    pairs += zip(
        reference.cross_entropy_with_grad(x, labels, 1),
        reference.cross_entropy_with_grad(single, labels, 1),
        strict=True,
    )
    for result, expected in pairs:
        assert result.dtype == dtype
        np.testing.assert_array_equal(
            result.astype(np.float32), expected.astype(dtype).astype(np.float32)
        )


def test_float16_overflow_is_silent():
    assert reference.cross_entropy(np.float16([6e4, -6e4]), 1) == INF
    assert reference.logsumexp([7e4, 0], dtype=np.float16) == INF


def test_backward_promotes():
    for dtype, other, expected in [("e", "f", "f"), ("f", "d", "d"), ("f", "i", "d")]:
        result = reference.softmax_backward(np.ones(3, dtype), np.ones(3, other))
        assert result.dtype == expected
    mixed = reference.softmax_backward(np.ones(3, dtype_named("bfloat16")), np.ones(3, np.float16))
    assert mixed.dtype == np.float32


def test_underflow_is_silent():
    with np.errstate(all="raise"):
        reference.cross_entropy_with_grad(np.float32([0, -100]), 0)
        reference.softmax(np.float16([0, -15]))


@pytest.mark.parametrize("x", [[[1, 2, 3]], np.array([[1, 2, 3]], np.uint8), [[True, False]]])
def test_integers_and_booleans_compute_in_float64(x):
    expected = reference.softmax(np.array(x, np.float64))
    for result in (reference.softmax(x), reference.softmax(np.array(x))):
        assert result.dtype == np.float64
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "longdouble", "bfloat16"])
def test_dtype_decides_the_result(dtype):
    dtype = dtype_named(dtype)
    x, labels = normal(3, 4).astype(np.float32), [0, 1, 2]
    for result in (
        reference.softmax(x, dtype=dtype),
        reference.log_softmax(x, dtype=dtype),
        reference.logsumexp(x, dtype=dtype),
        *reference.cross_entropy_with_grad(x, labels, dtype=dtype),
        reference.nll_loss(x, labels, dtype=dtype),
        *reference.binary_cross_entropy_with_logits_with_grad(x, x > 0, dtype=dtype),
    ):
        assert result.dtype == dtype


def test_longdouble_has_its_own_digits():
    x = np.array([1, 0], np.longdouble)
    total = reference.softmax(x)[0] * (1 + np.exp(-x[0]))
    assert abs(total - 1) <= 2 * np.finfo(np.longdouble).eps


def test_layouts_of_the_input():
    x, labels = normal(*SHAPE).astype(np.float32), class_labels()
    read_only = x.copy()
    read_only.flags.writeable = False
    swapped = x.astype(x.dtype.newbyteorder())
    padded = np.zeros((4, 10, 3), np.float32)
    padded[:, ::-2] = x
    expected = reference.cross_entropy_with_grad(x, labels, 1)
    for values in (read_only, swapped, np.asfortranarray(x), padded[:, ::-2], x.tolist()):
        loss, grad = reference.cross_entropy_with_grad(values, labels, 1, dtype=np.float32)
        np.testing.assert_allclose(loss, expected[0], 1e-6)
        np.testing.assert_allclose(grad, expected[1], 1e-5, 1e-8)
        assert grad.dtype.isnative


@pytest.mark.parametrize("dtype", "bhilqBHILQ")
def test_integer_types_of_labels(dtype):
    x, labels = normal(3, 200), np.array([100, 0, 127])
    result = reference.cross_entropy(x, labels.astype(dtype))
    assert result == reference.cross_entropy(x, labels)


@pytest.mark.parametrize("axis", [0, -1, None, ()])
def test_zero_dimensions(axis):
    for function, expected in [("softmax", 1.0), ("log_softmax", 0.0), ("logsumexp", 3.0)]:
        result = getattr(reference, function)(3.0, axis)
        assert isinstance(result, np.float64)
        assert result == expected


def test_one_row_gives_a_scalar():
    for reduction in ("none", "mean", "sum"):
        loss, grad = reference.cross_entropy_with_grad([1.0, 2.0], 1, reduction=reduction)
        assert isinstance(loss, np.float64)
        np.testing.assert_allclose(loss, np.log1p(np.exp(-1.0)), 1e-15)
        assert grad.shape == (2,)


# Edge values


@pytest.mark.parametrize("empty", ["nan", "zero"])
@pytest.mark.parametrize(
    ("x", "softmax", "log_softmax", "logsumexp"),
    [
        ([NAN, 0], [NAN] * 2, [NAN] * 2, NAN),
        ([INF, 0], [NAN] * 2, [NAN] * 2, INF),
        ([INF, INF], [NAN] * 2, [NAN] * 2, INF),
        ([INF, NAN], [NAN] * 2, [NAN] * 2, NAN),
        ([-INF, -INF], None, None, -INF),
        ([-INF, 2], [0, 1], [-INF, 0], 2),
        ([], [], [], -INF),
    ],
)
def test_edge_values(x, softmax, log_softmax, logsumexp, empty):
    if softmax is None:
        softmax = [NAN] * 2 if empty == "nan" else [0] * 2
        log_softmax = [NAN] * 2 if empty == "nan" else [-INF] * 2
    np.testing.assert_array_equal(reference.softmax(x, empty=empty), softmax)
    np.testing.assert_array_equal(reference.log_softmax(x, empty=empty), log_softmax)
    np.testing.assert_array_equal(reference.logsumexp(x), logsumexp)


@pytest.mark.parametrize(("empty", "expected"), [("nan", (NAN, NAN)), ("zero", (0, -INF))])
def test_all_excluded(empty, expected):
    arguments = {"where": False, "empty": empty}
    np.testing.assert_array_equal(reference.softmax([1.0, 2.0], **arguments), [expected[0]] * 2)
    np.testing.assert_array_equal(reference.log_softmax([1.0, 2.0], **arguments), [expected[1]] * 2)
    assert reference.logsumexp([1.0, 2.0], where=False) == -INF


@pytest.mark.parametrize("row", [[NAN, 0, 1], [INF, 0, 1], [-INF, -INF, -INF]])
@pytest.mark.parametrize("target", [[0, 1], [[0.5, 0.5, 0], [0, 1, 0]]])
def test_poisoned_row_stays_alone(row, target):
    loss, grad = reference.cross_entropy_with_grad([row, [0, 0, 0]], target, reduction="none")
    np.testing.assert_array_equal(np.isnan(loss), [True, False])
    np.testing.assert_array_equal(np.isnan(grad), [[True] * 3, [False] * 3])


@pytest.mark.parametrize("row", [[NAN, 0], [INF, INF], [-INF, -INF], [3, 4]])
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.5, "z_loss": 0.1, "weight": [1, 2], "temperature": 2}]
)
def test_ignored_rows_are_not_read(row, options):
    loss, grad = reference.cross_entropy_with_grad([row, [1, 0]], [-100, 1], **options)
    expected = reference.cross_entropy_with_grad([[1, 0]], [1], **options)
    assert loss == expected[0]
    np.testing.assert_array_equal(grad, [[0, 0], expected[1][0]])
    rows = reference.cross_entropy([row, [1, 0]], [-100, 1], reduction="none", **options)
    assert rows[0] == 0
    assert reference.nll_loss([row, [1, 0]], [-100, 0]) == -1
    assert reference.cross_entropy_from_probs([row, [1, 0]], [-100, 0]) == 0


def test_zero_probabilities():
    logits = [[0.0, -INF, 0.0]]
    half = np.log(2.0)
    for function, values in [
        (reference.cross_entropy, logits),
        (reference.nll_loss, [[-half, -INF, -half]]),
        (reference.cross_entropy_from_probs, [[0.5, 0.0, 0.5]]),
    ]:
        np.testing.assert_allclose(function(values, [[0.5, 0.0, 0.5]]), half, 1e-15)
        assert function(values, [[0.5, 0.25, 0.25]]) == INF
        assert function(values, [1]) == INF
        assert function(values, [1], weight=[1, 0, 1], reduction="sum") == 0
        assert function(values, [1], sample_weight=[0], reduction="sum") == 0
        np.testing.assert_allclose(function(values, [0]), half, 1e-15)
    _, grad = reference.cross_entropy_with_grad(logits, [1])
    np.testing.assert_array_equal(grad, [[0.5, -1, 0.5]])
    assert reference.cross_entropy(logits, [0], label_smoothing=0.1) == INF


@pytest.mark.parametrize(("empty", "expected"), [("nan", NAN), ("zero", 0)])
@pytest.mark.parametrize(
    ("values", "target", "options"),
    [
        ([[1, 2], [3, 4]], [-100, -100], {}),
        ([[1, 2], [3, 4]], [0, 1], {"sample_weight": [0, 0]}),
        ([[-1, -2], [-3, -4]], [-100, -100], {"denominator": 0}),
        (np.empty((0, 2)), [], {}),
        (np.empty((0, 2)), np.empty((0, 2)), {}),
        (np.empty((2, 0)), [-100, -100], {}),
    ],
)
def test_mean_of_nothing(values, target, options, empty, expected):
    for function in (
        reference.cross_entropy,
        reference.nll_loss,
        reference.cross_entropy_from_probs,
    ):
        np.testing.assert_array_equal(function(values, target, empty=empty, **options), expected)
        assert function(values, target, reduction="sum", **options) == 0
        if not options:
            assert function(values, target, denominator=3) == 0
    loss, grad = reference.cross_entropy_with_grad(values, target, empty=empty, **options)
    np.testing.assert_array_equal(loss, expected)
    np.testing.assert_array_equal(grad, np.zeros_like(grad))  # no row counts


def test_zero_classes():
    assert reference.softmax(np.empty((2, 0))).shape == (2, 0)
    np.testing.assert_array_equal(reference.logsumexp(np.empty((2, 0))), [-INF, -INF])
    with pytest.raises(IndexError, match="no classes"):
        reference.cross_entropy(np.empty((1, 0)), [0])
    assert reference.cross_entropy(np.empty((1, 0)), np.empty((1, 0)), label_smoothing=0.1) == 0


# Output arrays


def in_own_array(x):
    return np.empty_like(x)


def in_place(x):
    return x


def overlapping(x):
    return np.lib.stride_tricks.as_strided(x.base[1:], x.shape, x.strides)


def strided(x):
    return np.empty((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)[..., ::-2]


def swapped(x):
    return np.empty(x.shape, x.dtype.newbyteorder())


@pytest.mark.parametrize("make_out", [in_own_array, in_place, overlapping, strided, swapped])
@pytest.mark.parametrize(
    ("name", "out_name", "arguments"),
    [
        ("softmax", "out", ()),
        ("log_softmax", "out", ()),
        ("softmax_backward", "out", (normal(3, 4, seed=1),)),
        ("log_softmax_backward", "out", (normal(3, 4, seed=1),)),
        ("cross_entropy_with_grad", "grad_out", ([0, 1, 3],)),
        ("binary_cross_entropy_with_logits_with_grad", "grad_out", (np.ones((3, 4)),)),
    ],
)
def test_out(name, out_name, arguments, make_out):
    function = getattr(reference, name)
    memory = np.zeros(20)
    x = memory[:12].reshape(3, 4)
    x[...] = normal(3, 4)
    expected = function(x, *arguments)
    out = make_out(x)
    result = function(x, *arguments, **{out_name: out})
    if out_name == "grad_out":
        np.testing.assert_array_equal(result[0], expected[0])
        result, expected = result[1], expected[1]
    assert result is out
    np.testing.assert_array_equal(out, expected)
