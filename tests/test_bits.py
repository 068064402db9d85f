"""A row's bits depend on that row alone: not on threads, neighbours, layout, axis or output."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest

import softce_fast as sf
from conftest import dtype_named
from layouts import STRIDES, WRITABLE, Array, assert_same_bits
from softce_fast import _dispatch
from softce_fast._kernels import execute
from softce_fast._threads import threads_for

CLASS_COUNTS = (1, 2, 3, 5, 10, 15, 16, 17, 23, 24, 31, 33, 47, 48, 60, 61, 63, 64, 65, 100)
CLASS_COUNTS += (120, 121, 127, 129, 255, 256, 257, 511, 512, 513, 1000)
CLASS_COUNTS += (4095, 4096, 4097, 10_000, 131_072)
THREAD_COUNTS = (1, 2, 3, 5, 8)

Operation = Callable[..., Array]


def _loss(x: Array, labels: Array, axis: int) -> Array:
    losses: Array = sf.cross_entropy(x, labels, axis, reduction="none")
    return losses


def _gradient(x: Array, labels: Array, axis: int, out: Array | None = None) -> Array:
    return sf.cross_entropy_with_grad(x, labels, axis, reduction="none", grad_out=out)[1]


def _smoothed(x: Array, labels: Array, axis: int, out: Array | None = None) -> Array:
    weight = np.linspace(0.5, 2, x.shape[axis])
    return sf.cross_entropy_with_grad(
        x, labels, axis, weight=weight, label_smoothing=0.1, reduction="none", grad_out=out
    )[1]


def _classes_allowed(x: Array) -> Array:
    """Excludes whole rows, too."""
    return np.asarray(np.abs(x) < 7)


def _allowed(x: Array, labels: Array, axis: int, out: Array | None = None) -> Array:
    return sf.cross_entropy_with_grad(
        x, labels, axis, where=_classes_allowed(x), label_smoothing=0.1, reduction="none",
        grad_out=out,
    )[1]  # fmt: skip


def _capped(x: Array, labels: Array, axis: int, out: Array | None = None) -> Array:
    return sf.cross_entropy_with_grad(
        x, labels, axis, softcap=20.0, reduction="none", grad_out=out
    )[1]


def _hessian(x: Array, labels: Array, axis: int, out: Array | None = None, **options: Any) -> Array:
    return sf.cross_entropy_with_grad_and_hessian(
        x, labels, axis, reduction="none", hessian_out=out, **options
    )[2]


def _gradient_beside_hessian(x: Array, labels: Array, axis: int, out: Array | None = None) -> Array:
    return sf.cross_entropy_with_grad_and_hessian(x, labels, axis, reduction="none", grad_out=out)[
        1
    ]


def _smoothed_hessian(x: Array, labels: Array, axis: int, out: Array | None = None) -> Array:
    weight = np.linspace(0.5, 2, x.shape[axis])
    return _hessian(x, labels, axis, out, weight=weight, label_smoothing=0.1, hessian_floor=1e-9)


def _dense_target(x: Array) -> Array:
    """Numbers in the layout of x, 0 where x is infinite."""
    return (np.abs(x) < 3).astype(x.dtype)


def _dense_gradient(x: Array, labels: Array, axis: int, out: Array | None = None) -> Array:
    target = _dense_target(x)
    return sf.cross_entropy_with_grad(x, target, axis, reduction="none", grad_out=out)[1]


OPERATIONS: dict[str, Operation] = {
    "softmax": lambda x, labels, axis, out=None: sf.softmax(x, axis, out=out),
    "log_softmax": lambda x, labels, axis, out=None: sf.log_softmax(x, axis, out=out),
    "gradient": _gradient,
    "logsumexp": lambda x, labels, axis: sf.logsumexp(x, axis),
    "loss": _loss,
    "smoothed_loss": lambda x, labels, axis: sf.cross_entropy(
        x, labels, axis, label_smoothing=0.3, reduction="none"
    ),
    "smoothed_gradient": _smoothed,
    "dense_loss": lambda x, labels, axis: sf.cross_entropy(
        x, _dense_target(x), axis, reduction="none"
    ),
    "dense_gradient": _dense_gradient,
    "allowed_loss": lambda x, labels, axis: sf.cross_entropy(
        x, labels, axis, where=_classes_allowed(x), label_smoothing=0.1, reduction="none"
    ),
    "allowed_gradient": _allowed,
    "capped_loss": lambda x, labels, axis: sf.cross_entropy(
        x, labels, axis, softcap=20.0, reduction="none"
    ),
    "capped_gradient": _capped,
    "hessian": _hessian,
    "smoothed_hessian": _smoothed_hessian,
    "allowed_hessian": lambda x, labels, axis, out=None: _hessian(
        x, labels, axis, out, where=_classes_allowed(x)
    ),
    "gradient_beside_hessian": _gradient_beside_hessian,
    # The second array of these may be any numbers: the logits will do.
    "softmax_backward": lambda x, labels, axis, out=None: sf.softmax_backward(x, x, axis, out=out),
    "log_softmax_backward": lambda x, labels, axis, out=None: sf.log_softmax_backward(
        x, x, axis, out=out
    ),
    "nll_loss": lambda x, labels, axis: sf.nll_loss(x, labels, axis, reduction="none"),
    "dense_nll_loss": lambda x, labels, axis: sf.nll_loss(x, x, axis, reduction="none"),
}
# Results of the input's shape.
WITH_OUTPUT = (
    *("softmax", "log_softmax", "gradient", "smoothed_gradient", "dense_gradient"),
    *("allowed_gradient", "capped_gradient", "softmax_backward", "log_softmax_backward"),
    *("hessian", "smoothed_hessian", "allowed_hessian", "gradient_beside_hessian"),
)
# Those that may not take the place of the logits.
BESIDE = ("hessian", "smoothed_hessian", "allowed_hessian")

with_classes = pytest.mark.parametrize("classes", CLASS_COUNTS)
HALF_CLASS_COUNTS = (2, 3, 10, 16, 17, 33, 47, 48, 64, 65, 100, 255, 256, 512, 513, 1000, 4097)
with_half_classes = pytest.mark.parametrize("classes", HALF_CLASS_COUNTS)


def batch(
    classes: int, dtype: Any, elements: int, fewest_rows: int = 1, seed: int = 0
) -> tuple[Array, Array]:
    """Return logits (rows, classes) with a few special rows, and labels."""
    generator = np.random.default_rng(seed)
    rows = max(fewest_rows, elements // classes)
    logits = generator.normal(scale=6.0, size=(rows, classes)).astype(dtype)
    labels = generator.integers(0, classes, rows)
    logits[rows // 3, classes // 2] = 60  # confident
    logits[rows // 2] = 1  # uniform
    logits[rows // 2, 0] = -np.inf
    if rows > 4:
        logits[1] += 3000  # far out
        logits[3, :] = -200
        logits[3, -1] = 0  # next to nothing but one
        labels[rows // 4 :: 7] = -100
    return logits, labels


def fewest(classes: int, rows: int) -> int:
    """Return a number of rows that is `rows` unless the rows are long."""
    return rows if classes < 10_000 else 4 if classes < 100_000 else 2


def check_thread_counts(logits: Array, labels: Array) -> None:
    for name, operation in OPERATIONS.items():
        with sf.num_threads(1):
            expected = operation(logits, labels, -1)
        for count in THREAD_COUNTS[1:]:
            with sf.num_threads(count):
                assert_same_bits(operation(logits, labels, -1), expected, name, count)


@with_classes
def test_thread_counts(isa: str, full_dtype: np.dtype, classes: int) -> None:
    check_thread_counts(*batch(classes, full_dtype, 280_000))


@pytest.mark.parametrize("classes", [3, 64, 1000, 10_000])
def test_thread_counts_of_half_types(isa: str, half_dtype: np.dtype, classes: int) -> None:
    check_thread_counts(*batch(classes, half_dtype, 280_000))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    "shape", [(150_000, 2), (70_000, 5), (3001, 100), (300, 1000), (31, 8193), (7, 40_000)]
)
def test_reduced_losses_on_thread_counts(
    isa: str, full_dtype: np.dtype, shape: tuple[int, int], axis: int
) -> None:
    logits, labels = batch(shape[1], full_dtype, shape[0] * shape[1])
    if axis == 0:
        logits = np.ascontiguousarray(logits.T)
    for reduction in ("mean", "sum"):
        with sf.num_threads(1):
            expected = sf.cross_entropy_with_grad(logits, labels, axis, reduction=reduction)
        for count in THREAD_COUNTS[1:]:
            with sf.num_threads(count):
                loss, grad = sf.cross_entropy_with_grad(logits, labels, axis, reduction=reduction)
                assert_same_bits(loss, expected[0], reduction, count)
                assert_same_bits(grad, expected[1], reduction, count)
                alone = sf.cross_entropy(logits, labels, axis, reduction=reduction)
                assert_same_bits(alone, expected[0], reduction, count)


def test_binary_losses_on_thread_counts(isa: str, full_dtype: np.dtype) -> None:
    logits, labels = batch(10, full_dtype, 300_000)
    target = np.asarray(labels[:, None] == np.arange(10), full_dtype)
    for name in ("binary_cross_entropy_with_logits", "binary_cross_entropy"):
        for reduction in ("mean", "none"):
            function = functools.partial(getattr(sf, name), reduction=reduction)
            values = sf.softmax(logits) if name == "binary_cross_entropy" else logits
            with sf.num_threads(1):
                expected = function(values, target)
            for count in THREAD_COUNTS[1:]:
                with sf.num_threads(count):
                    assert_same_bits(function(values, target), expected, name, count)
            if reduction == "none":
                result = function(np.asfortranarray(values), target)
                assert_same_bits(result, expected, name, "columns")


def check_slices(logits: Array, labels: Array) -> None:
    rows = len(logits)
    slices = [slice(i, i + 1) for i in (0, 1, rows // 2, rows - 1)]
    slices += [slice(1, 3), slice(2, 5), slice(rows // 3, None), slice(1, 18), slice(0, rows, 3)]
    shuffled = np.random.default_rng(1).permutation(rows)
    for name, operation in OPERATIONS.items():
        expected = operation(logits, labels, -1)
        for chosen in [*slices, shuffled, 0, rows // 3, rows // 2]:
            result = operation(logits[chosen], labels[chosen], -1)
            assert_same_bits(result, expected[chosen], name, chosen)


@with_classes
def test_slices_of_a_batch(isa: str, full_dtype: np.dtype, classes: int) -> None:
    check_slices(*batch(classes, full_dtype, 4000, fewest(classes, 7)))


@with_half_classes
def test_slices_of_a_batch_of_half_types(isa: str, half_dtype: np.dtype, classes: int) -> None:
    check_slices(*batch(classes, half_dtype, 4000, fewest(classes, 7)))


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("classes", [4, 7, 16, 40, 100, 300])
def test_class_probabilities_of_any_size_beside_a_row(
    isa: str, full_dtype: np.dtype, classes: int, axis: int
) -> None:
    """What a gradient is multiplied by follows from the row's own sum, whatever the others are."""
    random = np.random.default_rng(classes)
    rows = 45
    logits = random.normal(0, 60, (rows, classes)).astype(full_dtype)
    target = random.uniform(-0.5, 1, (rows, classes)).astype(full_dtype)
    target[random.random((rows, classes)) < 0.3] = 0
    sizes = [1, 1, 1, 2.0**30, 2.0**-30, np.nan, np.inf, 0]
    with np.errstate(invalid="ignore"):
        target *= random.choice(sizes, (rows, 1)).astype(full_dtype)
    options: dict[str, Any] = {"reduction": "none", "axis": axis}
    found = sf.cross_entropy_with_grad_and_hessian(
        *(np.moveaxis(item, -1, axis) for item in (logits, target)), **options
    )
    for row in range(rows):
        alone = sf.cross_entropy_with_grad_and_hessian(
            *(np.moveaxis(item[row : row + 1], -1, axis) for item in (logits, target)), **options
        )
        names = ("loss", "gradient", "hessian")
        for name, of_all, of_one in zip(names, found, alone, strict=True):
            of_all = of_all if of_all.ndim == 1 else np.moveaxis(of_all, axis, -1)
            of_one = of_one if of_one.ndim == 1 else np.moveaxis(of_one, axis, -1)
            assert_same_bits(of_all[row], of_one[0], name, row)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss", [0.0, 1e-3])
def test_weights_of_any_size_beside_a_row(
    isa: str, full_dtype: np.dtype, smoothing: float, z_loss: float
) -> None:
    """Rows are taken together where their numbers are near 1; that gives each the same digits."""
    for classes in (3, 24, 29, 100):
        random = np.random.default_rng(classes)
        rows = 900
        logits = random.normal(0, 3, (rows, classes)).astype(full_dtype)
        labels = random.integers(0, classes, rows)
        sample_weight = random.uniform(0.01, 1, rows)
        alike = sample_weight.copy()
        # Every fifth row is one that the others cannot be taken together with.
        sample_weight[::5] *= random.choice([2.0**30, 2.0**-30], rows // 5)
        options: dict[str, Any] = {
            "weight": random.uniform(0.01, 1, classes), "label_smoothing": smoothing,
            "z_loss": z_loss, "temperature": 0.7, "reduction": "none",
        }  # fmt: skip
        beside = sf.cross_entropy_with_grad(logits, labels, sample_weight=sample_weight, **options)
        together = sf.cross_entropy_with_grad(logits, labels, sample_weight=alike, **options)
        chosen = np.arange(rows) % 5 != 0
        for name, of_some, of_all in zip(("loss", "gradient"), beside, together, strict=True):
            assert_same_bits(of_some[chosen], of_all[chosen], name, classes)


@pytest.mark.parametrize("dense", [False, True], ids=["labels", "probabilities"])
@pytest.mark.parametrize("classes", [1, 3, 24, 300, 5000])
def test_a_mask_that_excludes_nothing_of_a_row(
    isa: str, full_dtype: np.dtype, classes: int, dense: bool
) -> None:
    """The row is the same as without a mask, whatever that excludes of others."""
    random = np.random.default_rng(classes)
    rows = max(40, 4000 // classes)
    logits = random.normal(0, 3, (rows, classes)).astype(full_dtype)
    target: Array = random.integers(0, classes, rows)
    if dense:
        target = random.dirichlet(np.ones(classes), rows).astype(full_dtype)
    where = np.ones((rows, classes), bool)
    where[::3] = random.random((len(where[::3]), classes)) < 0.5
    whole = where.all(1)
    weight = random.uniform(0.1, 2, classes)
    functions = (sf.cross_entropy_with_grad, sf.cross_entropy_with_grad_and_hessian)
    for function, name, value in itertools.product(
        functions, ("temperature", "weight", "z_loss"), (0.0, 0.1, 1.0)
    ):
        if function is functions[1] and name == "z_loss":
            continue
        options = {"temperature": 0.7, "weight": weight, "z_loss": 1e-3}
        options = {name: options[name], "label_smoothing": value, "reduction": "none"}
        expected = function(logits, target, **options)
        for mask in (where, np.ones(classes, bool)):
            found = function(logits, target, where=mask, **options)
            chosen = whole if mask is where else slice(None)
            for one, other in zip(found, expected, strict=True):
                assert_same_bits(one[chosen], other[chosen], function.__name__, name, value)


def check_layouts(logits: Array, labels: Array) -> None:
    for name, operation in OPERATIONS.items():
        expected = operation(logits, labels, -1)
        for layout_name, layout in STRIDES.items():
            result = operation(layout(logits), layout(labels), -1)
            assert_same_bits(result, expected, name, layout_name)


@with_classes
def test_layouts(isa: str, full_dtype: np.dtype, classes: int) -> None:
    check_layouts(*batch(classes, full_dtype, 3000, fewest(classes, 5)))


@with_half_classes
def test_layouts_of_half_types(isa: str, half_dtype: np.dtype, classes: int) -> None:
    check_layouts(*batch(classes, half_dtype, 3000, fewest(classes, 5)))


@pytest.mark.parametrize("inner", [5, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100, 257])
@pytest.mark.parametrize("classes", [3, 65, 130, 4097])
def test_runs_of_neighbouring_rows(
    isa: str, full_dtype: np.dtype, classes: int, inner: int
) -> None:
    """Groups that end where runs do, and groups that go over their ends."""
    logits, labels = batch(classes, full_dtype, 0, fewest_rows=3 * inner)
    columns = np.ascontiguousarray(logits.reshape(3, inner, classes).swapaxes(1, 2))
    for name, operation in OPERATIONS.items():
        expected = operation(logits, labels, -1)
        result = operation(columns, labels.reshape(3, inner), 1)
        if result.ndim == 3:
            result = result.swapaxes(1, 2)
        assert_same_bits(result.reshape(expected.shape), expected, name)


@pytest.mark.parametrize("classes", [5, 40, 70, 130, 4097])
def test_two_arrays_of_different_layouts(isa: str, full_dtype: np.dtype, classes: int) -> None:
    logits, _ = batch(classes, full_dtype, 3000, fewest_rows=70)
    second = _dense_target(logits)
    operations: dict[str, Callable[[Array, Array], Array]] = {
        "gradient": lambda x, y: sf.cross_entropy_with_grad(x, y, reduction="none")[1],
        "hessian": lambda x, y: sf.cross_entropy_with_grad_and_hessian(x, y, reduction="none")[2],
        "softmax_backward": sf.softmax_backward,
        "log_softmax_backward": sf.log_softmax_backward,
        "nll_loss": lambda x, y: sf.nll_loss(x, y, reduction="none"),
    }
    for name, operation in operations.items():
        expected = operation(logits, second)
        for first_order, second_order in ("CF", "FC", "FF"):
            x, y = logits.copy(order=first_order), second.copy(order=second_order)
            assert_same_bits(operation(x, y), expected, name, first_order, second_order)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_four_dimensions(isa: str, full_dtype: np.dtype, axis: int, name: str) -> None:
    """Among them layouts whose axes cannot be merged to (outer, class, inner)."""
    shape = [3, 4, 5, 2]
    shape[axis] = 19
    generator = np.random.default_rng(2)
    logits = generator.normal(scale=4.0, size=shape).astype(full_dtype)
    labels = generator.integers(0, 19, [n for i, n in enumerate(shape) if i != axis])
    operation = OPERATIONS[name]
    rows = np.moveaxis(logits, axis, -1).reshape(-1, 19)
    expected = operation(rows, labels.reshape(-1), -1)
    for layout_name, layout in STRIDES.items():
        result = operation(layout(logits), layout(labels), axis)
        if name in WITH_OUTPUT:
            result = np.moveaxis(result, axis, -1)
        assert_same_bits(result.reshape(expected.shape), expected, layout_name)


def check_axes(logits: Array, labels: Array) -> None:
    half = len(logits) // 2
    classes = logits.shape[1]
    logits, labels = logits[: 2 * half], labels[: 2 * half]
    columns = np.ascontiguousarray(logits.T)
    halves = np.ascontiguousarray(logits.reshape(2, half, classes).transpose(0, 2, 1))
    for name, operation in OPERATIONS.items():
        expected = operation(logits, labels, -1)
        assert_same_bits(operation(columns, labels, 0).T, expected, name, "first axis")
        result = operation(halves, labels.reshape(2, half), 1)
        if name in WITH_OUTPUT:
            result = result.transpose(0, 2, 1)
        assert_same_bits(result.reshape(expected.shape), expected, name, "middle axis")


@with_classes
def test_axes(isa: str, full_dtype: np.dtype, classes: int) -> None:
    """Classes on the last, the first, and a middle axis."""
    check_axes(*batch(classes, full_dtype, 4000, fewest(classes, 8)))


@with_half_classes
def test_axes_of_half_types(isa: str, half_dtype: np.dtype, classes: int) -> None:
    check_axes(*batch(classes, half_dtype, 4000, fewest(classes, 8)))


def check_outputs(logits: Array, labels: Array) -> None:
    for name in WITH_OUTPUT:
        operation = OPERATIONS[name]
        expected = operation(logits, labels, -1)
        for layout_name, layout in WRITABLE.items():
            out = layout(np.full_like(logits, 7))
            assert operation(logits, labels, -1, out=out) is out
            assert_same_bits(out, expected, name, layout_name)
            if name in BESIDE:
                continue
            in_place = layout(logits)
            assert operation(in_place, labels, -1, out=in_place) is in_place
            assert_same_bits(in_place, expected, name, layout_name, "in place")


@with_classes
def test_outputs(isa: str, full_dtype: np.dtype, classes: int) -> None:
    """Fresh, given (in any layout), and in place."""
    check_outputs(*batch(classes, full_dtype, 3000, fewest(classes, 5)))


@with_half_classes
def test_outputs_of_half_types(isa: str, half_dtype: np.dtype, classes: int) -> None:
    check_outputs(*batch(classes, half_dtype, 3000, fewest(classes, 5)))


@pytest.mark.parametrize("classes", [count for count in CLASS_COUNTS if count <= 10_000])
def test_ordinary_calls(isa: str, full_dtype: np.dtype, classes: int) -> None:
    """With ``axis=-1`` they take a short way, with ``axis=1`` the general one."""
    for rows in (1, 2, 3, 4, 5, 16, 17, 33) if classes < 1000 else (1, 5):
        check_ordinary_calls(*batch(classes, full_dtype, 0, rows, seed=rows))


@pytest.mark.parametrize("count", THREAD_COUNTS)
@pytest.mark.parametrize(
    "shape", [(70_000, 3), (9000, 10), (1100, 64), (70, 1000), (17, 4097), (1, 100_000)]
)
def test_ordinary_calls_on_threads(isa: str, shape: tuple[int, int], count: int) -> None:
    with sf.num_threads(count):
        check_ordinary_calls(*batch(shape[1], np.float32, 0, shape[0]))


def check_ordinary_calls(logits: Array, labels: Array) -> None:
    """The short way gives the bits of the general one."""
    rows = len(logits)
    for function in (sf.softmax, sf.log_softmax, sf.logsumexp):
        assert_same_bits(function(logits), function(logits, 1), function.__name__, rows)
    loss, grad = sf.cross_entropy_with_grad(logits, labels)
    right, right_grad = sf.cross_entropy_with_grad(logits, labels, 1)
    assert_same_bits(loss, right, rows)
    assert_same_bits(grad, right_grad, rows)
    assert_same_bits(sf.cross_entropy(logits, labels), right, rows)
    for layout in WRITABLE.values():
        out, x, target = layout(np.zeros_like(logits)), layout(logits), layout(labels)
        assert_same_bits(sf.logsumexp(x), sf.logsumexp(logits, 1))
        assert sf.softmax(x, out=out) is out
        assert_same_bits(out, sf.softmax(logits, 1))
        loss, same = sf.cross_entropy_with_grad(x, target, grad_out=out)
        assert same is out
        assert_same_bits(loss, right)
        assert_same_bits(out, right_grad)


def streamed(name: str) -> AbstractContextManager[None]:
    """Write past the caches, as the plan has it for large outputs; backward passes never do."""
    if name.endswith("backward"):
        return nullcontext()
    return execute.forcing(stream=True, keep=False, keep_in_output=False)


@pytest.mark.parametrize("offset", [1, 4, 40])
@pytest.mark.parametrize("classes", [10, 27, 61, 64, 1000])
def test_large_outputs_at_any_address(isa: str, dtype: np.dtype, classes: int, offset: int) -> None:
    """Past the caches go whole cache lines; and no elements that lie across them."""
    logits, labels = batch(classes, dtype, 0, 60_000 // classes + 18)
    memory = np.zeros(logits.nbytes + 64, np.uint8)
    out = memory[offset : offset + logits.nbytes].view(dtype).reshape(logits.shape)
    for name in ("softmax", "gradient"):
        expected = OPERATIONS[name](logits, labels, -1)
        with streamed(name) if out.flags.aligned else nullcontext():
            OPERATIONS[name](logits, labels, -1, out=out)
        assert_same_bits(out, expected, name)
        assert not memory[:offset].any()
        assert not memory[offset + logits.nbytes :].any()


@pytest.mark.parametrize("name", WITH_OUTPUT)
@pytest.mark.parametrize(
    ("classes", "dtype"),
    [*((n, np.float32) for n in (3, 10, 17, 65, 120, 1000, 10_000)), (61, np.float64)],
)
def test_large_outputs(isa: str, name: str, classes: int, dtype: type) -> None:
    """Outputs beyond the caches, which may be written past them."""
    logits, labels = batch(classes, dtype, 60_000, fewest_rows=5)
    operation = OPERATIONS[name]
    expected = operation(logits, labels, -1)
    memory = np.empty(logits.size + 16, dtype)
    for start in (0, 3):
        out = memory[start : start + logits.size].reshape(logits.shape)
        with streamed(name):
            operation(logits, labels, -1, out=out)
        assert_same_bits(out, expected, start)


@pytest.mark.parametrize("name", WITH_OUTPUT)
@pytest.mark.parametrize("classes", [3, 21, 70])
@pytest.mark.parametrize("past_a_line", [0, 3])
def test_large_outputs_by_columns(isa: str, name: str, classes: int, past_a_line: int) -> None:
    """The class axis in the middle: cache lines start in every row, or never where a row does."""
    inner = 60_000 // classes // 16 * 16 + past_a_line
    operation = OPERATIONS[name]
    rows, labels = batch(classes, np.float32, 0, fewest_rows=2 * inner)
    expected = operation(rows, labels, -1).reshape(2, inner, classes)
    columns = np.ascontiguousarray(rows.reshape(2, inner, classes).swapaxes(1, 2))
    memory = np.empty(columns.size + 16, np.float32)
    for start in (0, 3, 12):
        out = memory[start : start + columns.size].reshape(columns.shape)
        with streamed(name):
            operation(columns, labels.reshape(2, inner), 1, out=out)
        assert_same_bits(out.swapaxes(1, 2), expected, start)


@pytest.mark.parametrize("name", ["softmax", "gradient"])
def test_large_outputs_by_themselves(isa: str, name: str) -> None:
    """Without being forced to, a batch so large is written past the caches; the bits stay."""
    part, part_labels = batch(1000, np.float32, 0, fewest_rows=400)
    logits, labels = np.resize(part, (4300, 1000)), np.resize(part_labels, 4300)
    operation = OPERATIONS[name]
    expected = np.resize(operation(part, part_labels, -1), logits.shape)
    with execute.recording() as plans:
        found = operation(logits, labels, -1, out=np.empty_like(logits))
    assert plans[0]["stream"]
    assert_same_bits(found, expected)


@pytest.mark.parametrize("name", WITH_OUTPUT)
@pytest.mark.parametrize("classes", [3, 17, 65, 120, 333, 1000, 5001, 140_001])
def test_what_lies_between_the_rows_of_an_output(
    isa: str, full_dtype: np.dtype, name: str, classes: int
) -> None:
    """Rows that are parts of longer ones: what follows them may be another thread's."""
    logits, labels = batch(classes, full_dtype, 0, fewest_rows=5)
    memory = np.full((len(logits), classes + 19), 7, full_dtype)
    for count in (1, 2):
        with sf.num_threads(count):
            out = memory[:, 3 : 3 + classes]
            OPERATIONS[name](logits, labels, -1, out=out)
            assert_same_bits(out, OPERATIONS[name](logits, labels, -1), count)
        assert np.all(memory[:, :3] == 7)
        assert np.all(memory[:, 3 + classes :] == 7)


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        *((name, 300_001) for name in WITH_OUTPUT),
        *((name, 9_000_001) for name in ("softmax", "gradient", "loss", "nll_loss")),
    ],
)
def test_one_very_long_row(isa: str, name: str, classes: int) -> None:
    """Longer than caches, or taken for it: one thread, two, and one for each of two such rows."""
    part, _ = batch(10_000, np.float32, 0, fewest_rows=5)
    logits, labels = np.resize(part, (2, classes)), np.array([classes - 1, 5])
    operation = OPERATIONS[name]
    with sf.num_threads(1):
        expected = operation(logits, labels, -1)
    with sf.num_threads(2), streamed(name) if classes < 1_000_000 else nullcontext():
        assert_same_bits(operation(logits[:1], labels[:1], -1)[0], expected[0], "alone")
        assert_same_bits(operation(logits, labels, -1), expected, "together")


@pytest.mark.parametrize("name", OPERATIONS)
def test_one_long_row(isa: str, full_dtype: np.dtype, name: str) -> None:
    """300,000 classes: alone, shared out over threads, and among others."""
    classes = 300_000
    logits, labels = batch(classes, full_dtype, 0, fewest_rows=5)
    operation = OPERATIONS[name]
    with sf.num_threads(1):
        expected = operation(logits, labels, -1)
    for count in (1, 2, 8):
        with sf.num_threads(count):
            for row in (0, 2):
                alone = operation(logits[row : row + 1], labels[row : row + 1], -1)
                assert_same_bits(alone[0], expected[row], count)
            assert_same_bits(operation(logits[:3], labels[:3], -1), expected[:3], count)
    assert_same_bits(operation(np.asfortranarray(logits), labels, -1), expected, "columns")


@with_classes
@pytest.mark.parametrize("dtype_name", ["float32", "float64"])
def test_avx2_and_avx512_agree(classes: int, dtype_name: str) -> None:
    """Both have fused multiply-adds and vectors of the same logical length."""
    for build in ("avx2", "avx512"):
        if build not in _dispatch.available():
            pytest.skip(f"the {build} build is not in this package, or this machine cannot run it")
    logits, labels = batch(classes, dtype_name, 20_000)
    for name, operation in OPERATIONS.items():
        found = {}
        for build in ("avx2", "avx512"):
            with _dispatch.using(build):
                found[build] = operation(logits, labels, -1)
        assert_same_bits(found["avx2"], found["avx512"], name)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("classes", [1, 3, 64, 1000])
def test_numbers_of_any_kind_are_the_same_option(dtype: str, classes: int) -> None:
    """Calls with Python's own go a shorter way, if they are ordinary otherwise."""
    x, labels = batch(classes, np.dtype(dtype), 0)
    for value in (1e-9, 0.1, 1.0, 1e9):
        options = {"label_smoothing": min(value, 1.0), "z_loss": value, "temperature": value}
        for names in (*options, tuple(options)):
            given = {name: options[name] for name in np.atleast_1d(names)}
            short = sf.cross_entropy_with_grad(x, labels, **given)
            numbers = {name: np.float64(value) for name, value in given.items()}
            for result, expected in zip(
                short, sf.cross_entropy_with_grad(x, labels, **numbers), strict=True
            ):
                assert_same_bits(result, expected, given)


WEIGHTED = (sf.cross_entropy_with_grad, sf.cross_entropy, sf.nll_loss, sf.cross_entropy_from_probs)


@pytest.mark.parametrize("dtype_name", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("classes", [1, 3, 64])
@pytest.mark.parametrize("smallest", [0.0, 1e-20, 1e-40, 1e-310, np.nan, np.inf, -1.0])
def test_weights_of_any_kind_are_the_same_option(
    dtype_name: str, classes: int, smallest: float
) -> None:
    """Those in arrays go a shorter way, if they are ordinary: lists never do."""
    x, labels = batch(classes, dtype_named(dtype_name), 0, fewest_rows=40)
    x = sf.softmax(x)
    rng = np.random.default_rng(1)
    of_class, of_row = rng.uniform(0.5, 2, classes), rng.uniform(0.5, 2, len(x))
    of_class[0] = of_row[1] = smallest
    for kind in ("float64", "float32"):
        with np.errstate(under="ignore"):
            arrays = {"weight": of_class.astype(kind), "sample_weight": of_row.astype(kind)}
        for names in (("weight",), ("sample_weight",), ("weight", "sample_weight")):
            short = {name: arrays[name] for name in names}
            lists = {name: arrays[name].tolist() for name in names}
            for function in WEIGHTED:
                found, right = (function(x, labels, **given) for given in (short, lists))
                is_pair = isinstance(found, tuple)
                for result, expected in zip(
                    found if is_pair else (found,), right if is_pair else (right,), strict=True
                ):
                    assert_same_bits(result, expected, function.__name__, names)


def test_ordinary_weights_go_the_short_way() -> None:
    x, labels = batch(3, np.dtype("f4"), 0, fewest_rows=40)
    rows = np.ones(len(x))

    def is_short(weight: Any, sample_weight: Any, out: Any = None) -> bool:
        results = (
            execute.cross_entropy_fast(
                x, labels, -1, weight, sample_weight, -100, 0.0, 0.0, 1.0, "mean", "nan",
                out is not None, out, threads_for,
            ),
            execute.negative_log_fast(
                x, labels, -1, weight, sample_weight, -100, "mean", "nan", True, threads_for
            ),
        )  # fmt: skip
        return results[0] is not None and (out is not None or results[1] is not None)

    for weight in (None, np.ones(3), np.float32([1, 0, 1e9]), np.array([1e-26, 1, 1e26])):
        for sample_weight in (None, rows, rows.astype("f4"), rows.astype("f2")):
            assert is_short(weight, sample_weight)
    for weight in ([1.0] * 3, np.ones(2), np.ones((3, 1)), np.ones(3, int), np.ones(6)[::2],
                   np.array([1e28, 1, 1]), np.array([1e-28, 1, 1]), np.array([np.nan, 1, 1]),
                   np.ma.ones(3)):  # fmt: skip
        assert not is_short(weight, None)
    for sample_weight in (1.0, rows[:-1], rows[:, None], rows.astype("g"), rows[::-1]):
        assert not is_short(None, sample_weight)
    # They might share memory.
    assert is_short(None, None, np.empty_like(x))
    assert not is_short(np.ones(3), None, np.empty_like(x))
