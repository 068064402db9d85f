"""Small inputs that once failed, each for a kind: digits, sizes, zeros, bits, rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import softce_fast as sf
import truth
from conftest import dtype_named
from layouts import Array, assert_same_bits
from shards import Sharded
from softce_fast import reference, sharded
from tolerances import assert_ulp

pytestmark = [
    pytest.mark.usefixtures("isa"),
    pytest.mark.filterwarnings("error"),
    pytest.mark.skipif(not truth.HAS_EXTENDED, reason="long double is float64 here"),
]

INF, NAN = np.inf, np.nan


def check(dtype: Any, logits: Any, target: Any, **options: Any) -> None:
    """Compare loss and gradient of a call with the truth, at the sizes the promise is made for."""
    x = np.asarray(logits, dtype_named(dtype) if isinstance(dtype, str) else dtype)
    target = np.asarray(target)
    if target.dtype.kind == "f":
        target = target.astype(dtype)
    right = truth.cross_entropy_with_options(x, target, **options)
    loss, grad = sf.cross_entropy_with_grad(x, target, **options)
    assert_ulp(loss, right.loss, "loss", x.dtype)
    assert_ulp(grad, right.gradient, "gradient", x.dtype, right.gradient_scale)
    assert_same_bits(sf.cross_entropy(x, target, **options), loss)


# Digits of the true class of a confident row


@pytest.mark.parametrize("gap", [1, 5, 9.5, 20, 60, 80])
@pytest.mark.parametrize("classes", [2, 3, 40])
@pytest.mark.parametrize("place", [0, -1])
def test_one_hot_is_as_its_label(dtype: np.dtype, place: int, classes: int, gap: float) -> None:
    logits, target = np.zeros((1, classes)), np.zeros((1, classes))
    logits[0, place], target[0, place] = gap, 1
    check(dtype, logits, target)
    check(dtype, logits, target, weight=np.linspace(1, 3, classes))
    label = np.array([place % classes])
    of_label = sf.cross_entropy_with_grad(logits.astype(dtype), label)[1]
    right = truth.gradient(logits.astype(dtype), label)
    assert_ulp(of_label, right, "gradient", dtype)


@pytest.mark.parametrize("options", [{"z_loss": 0.1}, {"where": np.arange(40) > 3}, {}], ids=str)
@pytest.mark.usefixtures("isa")
def test_smoothing_that_kernels_take_for_none(options: dict[str, Any]) -> None:
    """What was not set because there is none was read because there is."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(33, 40)), rng.integers(4, 40, 33)
    expected = sf.cross_entropy_with_grad(logits, labels, **options)
    for smoothing in (5e-324, 1e-310):
        found = sf.cross_entropy_with_grad(logits, labels, label_smoothing=smoothing, **options)
        for wanted, got in zip(expected, found, strict=True):
            assert_same_bits(np.asarray(got), np.asarray(wanted))


@pytest.mark.parametrize("label", [0, 1, 2])
@pytest.mark.parametrize("smoothing", [1e-9, 0.1, 1.0])
@pytest.mark.parametrize("weight", [[1, 0, 0], [0, 1, 0], [1, 1e-9, 0], [1e-20, 1, 1e3]], ids=str)
def test_smoothing_of_classes_without_weight(
    full_dtype: np.dtype, weight: Any, smoothing: float, label: int
) -> None:
    for logits in ([[20, 0, 0]], [[0, 70, 1]]):
        options = {"weight": weight, "label_smoothing": smoothing}
        check(full_dtype, logits, [label], reduction="sum", **options)
        check(full_dtype, logits, np.eye(3)[[label]], reduction="sum", **options)


@pytest.mark.parametrize("gap", [5, 20, 80])
@pytest.mark.parametrize("others", [0.0, 1e-12, 0.5])
def test_log_softmax_backward_at_the_true_class(dtype: np.dtype, others: float, gap: int) -> None:
    log_probs = truth.log_softmax(np.array([gap, 0, 0], dtype)).astype(dtype)
    for sign in (1, -1):
        given = np.array([-1, sign * others, -others], dtype)
        found = sf.log_softmax_backward(given, log_probs)
        right = truth.log_softmax_backward(given, log_probs)
        assert_ulp(found, right.values, "gradient", dtype, right.scale)


# Sizes of weights: dtype, logits, target, options

HALVES = [[0.5, 0.5], [0.25, 0.75]]
SIZES: list[tuple[str, Any, Any, dict[str, Any]]] = [
    ("f4", [[1, 2], [3, 4]], target, {"sample_weight": [size] * 2, "reduction": reduction})
    for target in ([0, 1], HALVES)
    for size in (1e-50, 1e39, 1e-300, 1e300)
    for reduction in ("mean", "sum")
]
SIZES += [
    ("f8", [[1, 2], [3, 4]], target, {"sample_weight": [first, second]})
    for target in ([0, 1], [-100, 1], HALVES)
    for first, second in [(1e250, 1e-250), (1e300, 1e300), (1e-300, 1e-308), (0, 1e-250)]
]
SIZES += [
    (dtype, [[1, 2], [1, 2], [3, 4]], [0, -100, 1], {"sample_weight": weights})
    for dtype, weights in [
        ("f8", [0, 1e250, 1e-250]),
        ("f8", [1e-250, 1e250, 0]),
        ("f8", [1, INF, 1]),
        ("f8", [1, NAN, 1]),
        ("f4", [0, 1e30, 1e-30]),
        ("f4", [0, 1e250, 1e-250]),
        ("f2", [0, 1e30, 1e-30]),
        ("f4", [1, INF, 1]),
    ]
]
SIZES += [
    (dtype, [[1, 2, 0], [0, 4, 1]], target, {"weight": weight, "reduction": reduction} | more)
    for dtype, weight in [
        ("f4", [1e-60, 1e-60, 1e-60]),
        ("f4", [1e60, 1e60, 1e60]),
        ("f4", [1e-30, 1e30, 0]),
        ("f8", [1e-250, 1e250, 0]),
    ]
    for target, reduction in [([0, 1], "mean"), ([0, 1], "none"), ([[0.5, 0.5, 0]] * 2, "sum")]
    for more in ({}, {"label_smoothing": 0.1}, {"sample_weight": [1e-30, 1e30]})
]
# Weights whose products leave even the range of float64, on both sides of it.
SIZES += [
    (
        dtype,
        [[0.5, 1, -2, 0], [1, 2, 3, -1]],
        target,
        {"weight": [7.2e-88, 4.2e241, 0, 1.0e200], "sample_weight": [3.06e143, 8.4e-267]} | more,
    )
    for dtype in ("f4", "f8")
    for target in ([1, 0], [3, 3], [3, 1])
    for more in ({}, {"label_smoothing": 0.1}, {"reduction": "sum"}, {"reduction": "none"})
]
# Weights of both kinds that lie far apart: a row's product is in range, those between may not be.
SIZES += [
    ("f8", [[1, 2], [3, 0], [3, 1], [40, 0]], target,
     {"weight": weight, "sample_weight": sample_weight, "reduction": "none"} | more)
    for target in ([0, 1, 0, 0], [[1, 0.0], [0, 1], [0.5, 0.5], [1, 0]])
    for weight in ([1e250, 1e-250], [1e300, 1e-200], [1e-300, 1.0])
    for sample_weight in ([1, 1e300, 1e-300, 1e-250], [1e-5, 1, 1e-250, 1e300])
    for more in ({}, {"label_smoothing": 0.1}, {"z_loss": 0.1})
]  # fmt: skip
SIZES += [
    ("f8", [[1e300, 0], [0, 1e-10]], target,
     {"weight": [1e80, 1e-80], "sample_weight": sample_weight, "reduction": "none"})
    for target in ([1, 0], [0, 0], [[0, 1.0], [1, 0]])
    for sample_weight in ([1e80, 1], [1e-80, 1e80])
]  # fmt: skip
SIZES += [
    ("f8", logits, target, {"weight": weights, "sample_weight": factors, "reduction": "none"})
    for logits, target, weights, factors in [
        ([[0, 1e300]], [0], [1e80, 1e-80], [1e-80]),
        ([[0, 1e300], [1, 2]], [0, 1], [1e80, 1e-80], [1e-80, 1e80]),
        ([[0, 40], [1, 2]], [1, 0], [1e300, 1e-300], [1e300, 1e-300]),
    ]
]
# A tiny logarithm beside a large weight.
SIZES += [
    ("f8", [[gap, 0]] * 2, [0, 0], {name: [1e250, 1e-250], "reduction": "none"})
    for name in ("weight", "sample_weight")
    for gap in (40, 50, 300)
]
# The same beside large sums of class probabilities.
SIZES += [
    (dtype, [[gap, 0]], [[size, 0]], {"reduction": reduction})
    for dtype, size in [("f8", 1e250), ("f8", 1e-250), ("f4", 1e30), ("f4", 1e-30)]
    for gap in (40, 100)
    for reduction in ("sum", "none")
]
# Neither is extreme, but for the product.
SIZES += [
    ("f8", [[1, 2], [3, 4]], [0, 1], {"weight": [1e-262, 5e282], "sample_weight": [1e-20, 4e25]})
]
SIZES += [
    (
        "f8",
        [[3, 1, 2]],
        [0],
        {"weight": [4.8e-300, 1e298, 1e-292], "sample_weight": [sample], "reduction": "none"},
    )
    for sample in (1e-3, 1, 9.7e18, 9.7e30)
]
# A loss, and a gradient, that are below the smallest normal number before they are weighted.
SIZES += [
    (dtype, [[gap, 0]], target, {"weight": [weight, 1], "reduction": "sum"})
    for dtype, gap, weight in [
        ("f4", 88, 1e20),
        ("f4", 100, 1e30),
        ("f4", 130, 1e30),
        ("f8", 720, 1e200),
        ("f8", 760, 1e250),
    ]
    for target in ([0], [[1.0, 0.0]])
]
SIZES += [
    ("f4", [[88, 0], [0, 1]], [0, 1], {"sample_weight": [1e20, 1], "reduction": "none"}),
    ("f4", [[88, 0], [0, 1]], [0, 1], {"sample_weight": [1e20, 1], "denominator": 1e-3}),
    ("f4", [[88, 0], [0, 100]], [0, 1], {"denominator": 1e-30}),
    ("f4", [[27, 0]], [0], {"temperature": 0.3, "denominator": 1e-20}),
    ("f2", [[12, 0]], [0], {"sample_weight": [1e5], "reduction": "sum"}),
    # The same for denominators: powers that a float32 does not hold, results that it does.
    ("f4", [[1, 2]], [0], {"sample_weight": [1e100], "denominator": 1e99}),
    ("f4", [[1, 2]], [0], {"sample_weight": [1e-100], "denominator": 1e-99}),
    ("f8", [[1, 2]], [0], {"sample_weight": [1e300], "denominator": 1e299}),
]
# Class weights whose quotient float64 does not hold; small ones in plain NumPy.
SIZES += [
    (
        "f8",
        [[0, 2000, 3]],
        [[0.5, 0.5, 0]],
        {"weight": [5e-287, 1e241, 1], "reduction": reduction},
    )
    for reduction in ("none", "sum", "mean")
]
# The same, of what float32 does not hold.
SIZES += [("f4", [[1, 2]], [0], {"weight": [1e-60, 1e-60], "softcap": 1e-150})]
SIZES += [
    (
        dtype,
        [[1, 2], [3, 1], [0, 0.5]],
        [0, 1, 1],
        {"weight": [1e99, 1], "sample_weight": [1e-283, 0, 1e282], "softcap": softcap},
    )
    for dtype in ("bfloat16", "f2", "f4")
    for softcap in (1e150, 1e-150)
]
# Small probabilities of rows that count far more than others.
SIZES += [
    (
        dtype,
        [[0, -86, -100], [1, 2, 3]],
        [0, 1],
        {"sample_weight": [most, 1], "reduction": reduction, "denominator": denominator},
    )
    for dtype in ("bfloat16", "f4")
    for most in (6e74, 1e-74)
    for reduction, denominator in (("none", None), ("sum", None), ("mean", None), ("mean", 1e40))
]
# What z_loss adds is far more than class weights have.
SIZES += [
    (dtype, [[1, 2, -200]], target, {"z_loss": z_loss, **options})
    for dtype in ("bfloat16", "f4", "f8")
    for target in ([1], [[0.5, 0.25, 0.25]])
    for z_loss, options in (
        (1e10, {"weight": [3e-301, 1e-301, 0], "reduction": "sum"}),
        (1e70, {}),
        (1e80, {"label_smoothing": 0.1}),
        (1e300, {"reduction": "none"}),
    )
]
# Probabilities that are tiny, of classes that weigh less than others.
SIZES += [
    (
        dtype,
        [[0, top], [1, 2]],
        [[0, tiny], [0.5, 0.5]],
        {"weight": [1e12, 1e4], "reduction": "none", "label_smoothing": smoothing},
    )
    for dtype, tiny in (("f4", 1e-30), ("f8", 1e-260))
    for top in (-1, 2, 12)
    for smoothing in (0, 1e-25)
]
# A logsumexp whose square is large, beside class weights that are tiny.
SIZES += [
    (
        "f8",
        [[38], [25], [34]],
        target,
        {"weight": [7e-301], "temperature": 1e-30, "z_loss": 1e-3, "reduction": reduction},
    )
    for target in ([0, 0, 0], [[0.7], [0.3], [1]])
    for reduction in ("none", "sum")
]
# Rows that count for nothing in the sum of all, and whose entries are normal numbers.
SIZES += [
    (
        "f8",
        [[1, 2], [2, 0.5], [0, 1]],
        target,
        {"sample_weight": [1e295, 1e-297, 1], "weight": weight, **options},
    )
    for target in ([0, 1, 1], [[0.25, 0.75], [0.5, 0.25], [0, 1]])
    for weight in (None, [3, 0.5], [1e-8, 1e4])
    for options in (
        {"reduction": "sum"},
        {"reduction": "mean", "denominator": 10.0},
        {"label_smoothing": 0.1, "reduction": "sum"},
        {"z_loss": 0.5, "reduction": "sum"},
    )
]
# Weights that differ by more than float64 holds, of which the rows have some.
SIZES += [
    ("f8", logits, target, {"weight": [1.5e-292, 7e293, 1e-292], "sample_weight": sample} | more)
    for logits, target, sample in (
        ([[1, 2, 3]], [0], [0.0169]),
        ([[1, 2, 3], [2, 1, 0]], [0, 2], [0.0169, 0.3]),
        ([[1, 2, 3], [2, 1, 0]], [0, 1], [0.0169, 0.3]),
        ([[1, 2, 3], [2, 1, 0]], [1, -100], [0.0169, 0.3]),
    )
    for more in ({}, {"reduction": "sum"}, {"reduction": "none"}, {"z_loss": 0.1})
]
# Sums of coefficients whose lower halves are subnormal, where multiply-adds are not fused.
SIZES += [
    ("f8", [[-1.2, 2.75, -0.3]], [[0, tiny, left]], {"weight": [1e203, 1e-267, 1e-267]})
    for tiny in (1e-28, 1e-30, 1e-36)
    for left in (0, tiny)
]
# Weights that lie far apart, and rows whose two make a number near 1.
FAR_APART = {"weight": [1e250, 1e-250], "sample_weight": [1e-250, 2e250]}
SIZES += [
    ("f8", [[1, 2], [2, 0.5]], target, FAR_APART | more)
    for target in ([0, 1], [[1.0, 0], [0, 1]], [[1, 0], [1e-30, 1]])
    for more in (
        {},
        {"reduction": "sum"},
        {"reduction": "none"},
        {"z_loss": 1e-250, "reduction": "none"},
        {"denominator": 1e-300},
        {"denominator": -1e250},
        {"temperature": 1e-30},
    )
]
# The same of large losses and of small ones.
SIZES += [
    ("f8", logits, [0, 1], options | {"reduction": "sum"})
    for logits in ([[0, 1e300], [1e299, 0]], [[700, 0], [0, 650]])
    for options in (FAR_APART, {"weight": [1e80, 1e-80], "sample_weight": [1e-80, 1e80]})
]
# Probabilities next to nothing, which weights bring back.
LEAST = [[0, -87, -87.3]]
SIZES += [
    ("f4", LEAST, target, {"sample_weight": [weight]} | more)
    for target in ([0], [1], [[1.0, 0, 0]], [[0.5, 0, 0.5]])
    for weight in (1e75, 7e75, 1.4e76, -1.3e76)
    for more in ({"reduction": "sum"}, {"denominator": -0.9}, {"z_loss": 1e-30, "temperature": 1.1})
    if target in ([0], [[1.0, 0, 0]]) or more.get("denominator")
]
# Smoothing gives all that it gives to the only class: what z_loss adds is the gradient.
SIZES += [
    (dtype, [[-0.03], [0.13]], [0, 0], {"z_loss": 1e-51, "denominator": 1e-80} | more)
    for dtype in ("bfloat16", "f4", "f8")
    for more in ({"label_smoothing": 0.1}, {"label_smoothing": 1.0, "weight": [2e40]})
]
# Nothing is left of the gradient but what z_loss adds, far less than the class weighs.
SIZES += [
    (
        dtype,
        [[3.9, *[below] * others]],
        target if target == [0] else [[1.0, *[0.0] * others]],
        {"weight": [weight, *[1.0] * others], "z_loss": 0.5, "reduction": "none"},
    )
    for dtype, weight in (("bfloat16", 4e37), ("f4", 4e37), ("f4", 4e167), ("f8", 4e250))
    for others, below in ((0, 0), (1, -2000), (20, -2000))
    for target in ([0], "one-hot")
]
# The one class left is not the target's.
ONE_LEFT = {"where": [True, False, False], "z_loss": 0.5, "reduction": "none"}
SIZES += [
    (dtype, [[1, 2, 3]], [2], {"label_smoothing": smoothing} | ONE_LEFT)
    for dtype in ("bfloat16", "f4", "f8")
    for smoothing in (0.1, 1.0)
]
SIZES += [
    (dtype, [[1, 2, 3]], [0], {"denominator": denominator})
    for dtype in ("bfloat16", "f4", "f8")
    for denominator in (1e35, 1e-30, 1e13, 1e-13)
]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("weight", [None, [0.25, 3.0]])
@pytest.mark.parametrize("most", [1.0, 1e200, 1e296])
def test_an_infinite_loss_of_a_row_that_counts_for_nothing(
    full_dtype: np.dtype, most: float, weight: Any, reduction: str
) -> None:
    """It is infinite all the same; times 0 it would be none, or no number."""
    logits = np.array([[1, -np.inf], [0, 1], [1, 1]]).astype(full_dtype)
    target = np.array([1, 1, 0])
    options = {"weight": weight, "reduction": reduction, "sample_weight": [1e-299, most, 1.0]}
    assert sf.cross_entropy(logits, target, **options) == np.inf
    assert sf.cross_entropy_with_grad(logits, target, **options)[0] == np.inf
    with np.errstate(invalid="ignore"):
        log_probs = sf.log_softmax(logits)
    assert sf.nll_loss(log_probs, target, **options) == np.inf
    assert sf.cross_entropy_from_probs(np.exp(log_probs), target, **options) == np.inf
    options = {"sample_weight": options["sample_weight"], "reduction": reduction}
    states = sharded.merge(
        *(sharded.row_states(logits[:, c : c + 1], target, class_offset=c) for c in range(2))
    )
    assert sharded.cross_entropy(states, **options) == np.inf


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_an_infinite_loss_of_class_probabilities_whose_weights_vanish_together(
    full_dtype: np.dtype, rows: int, reduction: str
) -> None:
    logits = np.tile(np.array([-np.inf, 0, 1], dtype=full_dtype), (rows, 1))
    target = np.tile(np.array([0.25, 0.5, 0.25], dtype=full_dtype), (rows, 1))
    options = {
        "weight": [1e-250, 1e250, 1.0],
        "sample_weight": np.geomspace(1e-250, 1e250, rows),
        "reduction": reduction,
    }
    with np.errstate(invalid="ignore"):
        log_probs = sf.log_softmax(logits)
    losses = (
        sf.cross_entropy(logits, target, **options),
        sf.cross_entropy_with_grad(logits, target, **options)[0],
        sf.nll_loss(log_probs, target, **options),
        sf.cross_entropy_from_probs(np.exp(log_probs), target, **options),
    )
    for loss in losses:
        np.testing.assert_array_equal(loss, np.inf)


@pytest.mark.parametrize(("dtype", "logits", "target", "options"), SIZES, ids=str)
def test_sizes(dtype: str, logits: Any, target: Any, options: dict[str, Any]) -> None:
    check(dtype, logits, target, **options)


# Temperature, z_loss, label smoothing, logits, target.
SQUARES: list[tuple[float, float, float, list[float], Any]] = [
    (0.1, 0.5, 0, [-1.5707967288715305, 1.1208282242885867], 1),
    (0.1, 0.5, 0, [4.483649106604018, 1.8100709080534971], 0),
    (0.1, 0.5, 0, [0.27746210151488027, -0.34914365904547847], 0),
    (0.2, 0.1, 0, [3.147672113803054, 3.501098510846858, 0.986073940909596], 1),
    (0.3, 0.1, 0, [-0.23398499535279382, -0.5297826012219989, 5.340501430158394], 2),
    (0.3, 0.1, 0.1, [0.6345295883163549, 5.114566110819132, 1.6410393185431613], 1),
    (0.3, 0.1, 0.5, [4.858401003135501, 3.465001721732615], 0),
    (0.1, 0.1, 0.1, [1.690430975568313, -3.6928031991730794, 0.8197528996097606], 0),
    (0.3, 0.1, 0, [5.045502879290693, 4.37258620415013],
     [0.023215393323645316, 0.9767846066763547]),
    (0.2, 0.1, 0, [-0.13239747160117646, 0.8529949653008824],
     [0.0287135276342886, 0.9712864723657115]),
    # Its gradient.
    (0.3, 2.0, 0, [-0.5416552723400807, -0.5345787914543426],
     [0.8389999651276855, 0.1610000348723146]),
]  # fmt: skip


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("option", ["sample_weight", "weight"])
@pytest.mark.parametrize("smallest", [1e-319, -5e-324])
def test_subnormal_weights_beside_huge_ones(smallest: float, option: str, reduction: str) -> None:
    """However small it is, a row that counts has its infinite loss, and its Hessian a floor."""
    options: dict[str, Any] = {option: np.array([1e298, smallest]), "reduction": reduction}
    logits = np.array([[1.0, 2], [0, -INF]])
    loss, _, hessian = sf.cross_entropy_with_grad_and_hessian(
        logits, [0, 1], hessian_floor=0.25, **options
    )
    assert (loss if reduction != "none" else loss[1]) == np.copysign(INF, smallest)
    assert (hessian[1] == 0.25).all()


@pytest.mark.parametrize("weight", [1e75, 7e75, 1.4e76])
@pytest.mark.parametrize("target", [[0], [[1.0, 0, 0]], [[0.25, 0.5, 0.25]]], ids=str)
def test_curvature_where_probabilities_are_next_to_nothing(target: Any, weight: float) -> None:
    logits, target = np.float32(LEAST), np.asarray(target)
    target = target.astype("f4") if target.dtype.kind == "f" else target
    options: dict[str, Any] = {"sample_weight": [weight], "reduction": "sum"}
    right = truth.cross_entropy_with_options(logits, target, **options)
    _, _, hessian = sf.cross_entropy_with_grad_and_hessian(logits, target, **options)
    assert_ulp(hessian, right.hessian, "hessian", logits.dtype)


@pytest.mark.parametrize("sample_weight", [[1, 1e300, 1e-300], [1e-5, 1, 1e-250]])
@pytest.mark.parametrize("weight", [[1e250, 1e-250], [1e300, 1e-200], [1e-300, 1.0]])
def test_likelihoods_of_weights_far_apart(
    isa: str, weight: list[float], sample_weight: list[float]
) -> None:
    log_probs = np.array([[-1.5, -2], [-3, -1e-10], [-0.25, -1]])
    right = -np.array([-1.5, -1e-10, -0.25], np.longdouble) * np.array(sample_weight)
    right *= np.array(weight, np.longdouble)[[0, 1, 0]]
    options: dict[str, Any] = {"weight": weight, "sample_weight": sample_weight}
    loss = sf.nll_loss(log_probs, [0, 1, 0], reduction="none", **options)
    assert_ulp(loss, right, "loss", np.dtype("f8"))


@pytest.mark.parametrize(("temperature", "z_loss", "smoothing", "logits", "target"), SQUARES)
def test_z_loss_squares_no_rounding_of_the_logsumexp(
    temperature: float, z_loss: float, smoothing: float, logits: list[float], target: Any
) -> None:
    """Of some tens of millions of rows these had the largest errors, up to 5, when it did."""
    check("f8", [logits], [target], temperature=temperature, z_loss=z_loss,
          label_smoothing=smoothing, reduction="none")  # fmt: skip


@pytest.mark.parametrize(
    ("dtype_name", "power"), [("float16", -20), ("bfloat16", -130), ("float32", -140)]
)
def test_subnormal_weights(dtype_name: str, power: int) -> None:
    weights = np.array([2.0**power, 1]).astype(dtype_named(dtype_name))
    check("f8", [[1, 2], [3, 4]], [0, 1], sample_weight=weights, reduction="none")


@pytest.mark.parametrize("weight", [0, 1e-30, 1e-9, 1e-3])
@pytest.mark.parametrize("gap", [10, 20, 37, 60, 73])
def test_z_loss_of_a_logsumexp_near_zero(full_dtype: np.dtype, gap: float, weight: float) -> None:
    """Where it outweighs a label that is not the maximum."""
    logits = [[0, -gap, -gap - 3], [-gap, 0, -gap - 1]]
    for temperature in (1.0, 0.7):
        check(full_dtype, logits, [1, 0], weight=[weight, weight, 1], z_loss=1.0,
              temperature=temperature, reduction="none")  # fmt: skip


@pytest.mark.parametrize("dtype_name", ["float32", "float64"])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("z_loss", [1e-4, 1e-45, 1e-30, 0.4])
@pytest.mark.parametrize("target", [[0, 1], [[1.0, 0.0], [0.5, 0.5]]], ids=str)
def test_z_loss_at_the_ends_of_the_range(
    target: Any, z_loss: float, sign: int, dtype_name: str
) -> None:
    largest = sign * np.finfo(dtype_name).max
    options = {"z_loss": z_loss, "reduction": "none"}
    check(dtype_name, [[largest, largest], [1, 2]], target, **options)
    check(dtype_name, [[largest, -largest], [1, 2]], target, **options)


def test_z_loss_of_half_types_at_the_ends_of_the_range(half_dtype: np.dtype) -> None:
    largest = 65504.0 if half_dtype.name == "float16" else 3.38953e38
    options: dict[str, Any] = {"z_loss": 1e-4, "reduction": "none"}
    check(half_dtype, [[largest, largest], [1, 2]], [0, 1], **options)
    check(half_dtype, [[-largest, -largest], [1, 2]], [0, 1], **options)


@pytest.mark.parametrize(
    ("dtype_name", "largest", "temperature"),
    [
        ("float32", 3e38, 1000.0),
        ("float32", 3e38, 1e30),
        ("float32", 3e38, 1e39),
        ("float64", 1.5e308, 1000.0),
        ("float64", 1.5e308, 1e300),
        ("bfloat16", 3e38, 1000.0),
        ("float16", 6e4, 1000.0),
    ],
)
def test_temperature_at_the_ends_of_the_range(
    dtype_name: str, largest: float, temperature: float
) -> None:
    dtype = dtype_named(dtype_name)
    x = np.array([[largest, -largest], [-largest, 0]]).astype(dtype)
    for name in ("softmax", "log_softmax"):
        found = getattr(sf, name)(x, temperature=temperature)
        assert_ulp(found, getattr(truth, name)(x, temperature=temperature), name, dtype)
    for labels in ([0, 0], [1, 1]):
        check(dtype, x, labels, temperature=temperature, reduction="none")


BINARY: list[tuple[str, float, float, dict[str, Any]]] = [
    ("f4", 88, 1, {"weight": 1e20}),
    ("f4", -88, 0, {"weight": 1e20}),
    ("f4", 130, 1, {"weight": 1e30}),
    ("f4", 88, 1, {"pos_weight": 1e20}),
    ("f4", 1, 1, {"weight": 1e-30, "pos_weight": 1e30}),
    ("f4", 1, 0.5, {"weight": 1e-100, "pos_weight": 1e100}),
    ("f4", 1, 0.5, {"weight": 1e100, "pos_weight": 1e-100}),
    ("f8", 720, 1, {"weight": 1e200}),
    ("f8", -720, 0, {"weight": 1e200}),
    ("f8", 1, 0.5, {"weight": 1e-300, "pos_weight": 1e300}),
    ("f2", 12, 1, {"weight": 1e5}),
]


@pytest.mark.parametrize(("dtype", "logit", "yes", "options"), BINARY, ids=str)
def test_sizes_of_binary_losses(
    dtype: str, logit: float, yes: float, options: dict[str, Any]
) -> None:
    x, target = np.array([logit], dtype), np.array([yes], dtype)
    options = {name: np.array([value]) for name, value in options.items()}
    for reduction in ("none", "sum", "mean"):
        right = truth.binary_cross_entropy_with_logits(x, target, reduction=reduction, **options)
        loss, grad = sf.binary_cross_entropy_with_logits_with_grad(
            x, target, reduction=reduction, **options
        )
        assert_ulp(loss, right.loss, "loss", x.dtype)
        assert_ulp(grad, right.gradient, "gradient", x.dtype, right.gradient_scale)


WIDE = [1e-280, 1e300]  # so far apart that a power of two is taken out
LIKELIHOODS: list[tuple[str, Any, Any, dict[str, Any]]] = [
    ("f4", [[0, 1]], [[0.5, 0.5]], {"weight": [1e-30, 1e30]}),
    ("f8", [[0, 1]], [[0.5, 0.5]], {"weight": [1e-300, 1e300]}),
    ("f4", [[0, 1]], [[1e-30, 1]], {"weight": [1e-30, 1]}),
    ("f4", [[0.5, 0.5]], [[0.5, 0.5]], {"weight": [1e-30, 1e30]}),
    ("f4", [[0.25, 0.75]], [[0.5, 0.5]], {"weight": [1e-60, 1e-60], "sample_weight": [1e60]}),
    ("f4", [[0.25, 0.75]], [0], {"weight": [1e-60, 1e60], "sample_weight": [1e60]}),
    ("f4", [[0, 1]], [0], {"weight": [1e-60, 1]}),
    ("f8", [[0.25, 0.75]], [1], {"weight": [1, 1e-300], "sample_weight": [1e300]}),
    ("f8", [[0.25, 0.75]] * 2, [[0.5, 0.5]] * 2, {"sample_weight": WIDE}),
    ("f8", [[0.25, 0.75]] * 2, [0, 1], {"weight": WIDE}),
]
LIKELIHOODS += [
    ("f8", [[0.25, 0.75]] * 2, target, FAR_APART | more)
    for target in ([0, 1], [[1.0, 0], [0, 1]], [[1, 1e-300], [0, 1]])
    for more in ({}, {"denominator": 1e-300})
]


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize(("dtype", "probs", "target", "options"), LIKELIHOODS, ids=str)
def test_sizes_of_likelihoods(
    dtype: str, probs: Any, target: Any, options: dict[str, Any], reduction: str
) -> None:
    options = options | {"reduction": reduction}
    x, target = np.array(probs, dtype), np.array(target)
    if target.dtype.kind == "f":
        target = target.astype(dtype)
    found = sf.cross_entropy_from_probs(x, target, **options)
    assert_ulp(found, truth.cross_entropy_from_probs(x, target, **options), "loss", x.dtype)
    with np.errstate(divide="ignore"):
        x = np.log(x)
    found = sf.nll_loss(x, target, **options)
    assert_ulp(found, truth.negative_log_likelihood(x, target, **options), "loss", x.dtype)


# Sizes and bits: what a row's weight does to others, what a factor of all weights does


ROWS = 160


def a_batch(dtype: np.dtype, target_kind: str) -> tuple[Array, Array]:
    random = np.random.default_rng(0)
    logits = random.normal(scale=4, size=(ROWS, 21)).astype(dtype)
    if target_kind == "labels":
        return logits, random.integers(0, 21, ROWS)
    target = random.gamma(0.5, size=(ROWS, 21))
    return logits, (target / target.sum(axis=1, keepdims=True)).astype(dtype)


MORE_OPTIONS: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.1},
    {"z_loss": 1e-3},
    {"temperature": 0.7},
    {"weight": np.linspace(0, 2, 21)},
    {"weight": np.linspace(0, 2, 21), "label_smoothing": 0.1, "z_loss": 1e-3},
]
with_more_options = pytest.mark.parametrize(
    "options", MORE_OPTIONS, ids=lambda options: "+".join(options) or "plain"
)
with_targets = pytest.mark.parametrize("target_kind", ["labels", "probabilities"])


@with_more_options
@with_targets
@pytest.mark.parametrize("extreme", [0.0, 1e-30, 1e30, 1e-250, 1e250, INF, NAN])
def test_no_weight_moves_the_bits_of_another_row(
    dtype: np.dtype, extreme: float, target_kind: str, options: dict[str, Any]
) -> None:
    logits, target = a_batch(dtype, target_kind)
    ordinary = np.random.default_rng(1).uniform(0.2, 2, ROWS)
    beside = ordinary.copy()
    beside[[0, 7, ROWS - 1]] = extreme
    others = np.setdiff1d(np.arange(ROWS), [0, 7, ROWS - 1])
    found = [
        sf.cross_entropy_with_grad(
            logits, target, sample_weight=weights, reduction="none", **options
        )
        for weights in (ordinary, beside)
    ]
    for before, after in zip(*found, strict=True):
        assert_same_bits(after[others], before[others])
    alone = sf.cross_entropy_with_grad(
        logits[5:6], target[5:6], sample_weight=ordinary[5:6], reduction="none", **options
    )
    for before, after in zip(found[0], alone, strict=True):
        assert_same_bits(after, before[5:6])


@pytest.mark.parametrize("name", ["nll_loss", "cross_entropy_from_probs"])
@with_targets
@pytest.mark.parametrize("extreme", [1e-30, 1e30, 1e-250, 1e250])
def test_no_weight_moves_the_likelihood_of_another_row(
    dtype: np.dtype, extreme: float, target_kind: str, name: str
) -> None:
    logits, target = a_batch(dtype, target_kind)
    values = sf.softmax(logits) if name == "cross_entropy_from_probs" else sf.log_softmax(logits)
    ordinary = np.random.default_rng(1).uniform(0.2, 2, ROWS)
    beside = ordinary.copy()
    beside[7] = extreme
    before, after = (
        getattr(sf, name)(values, target, sample_weight=weights, reduction="none")
        for weights in (ordinary, beside)
    )
    assert_same_bits(np.delete(after, 7), np.delete(before, 7))


@pytest.mark.parametrize(
    "factor", [2.0**10, 2.0**-60, 2.0**130, 2.0**-900, 2.0**900, 3.7, 1e30, 1e-250, 1e250]
)
@pytest.mark.parametrize("name", ["sample_weight", "weight"])
@with_targets
def test_a_factor_of_all_weights_leaves_the_mean(
    dtype: np.dtype, target_kind: str, name: str, factor: float
) -> None:
    """To the bit where the factor is a power of two."""
    if name == "weight" and target_kind == "probabilities":
        return  # the mean divides by the number of rows
    logits, target = a_batch(dtype, target_kind)
    weights = np.random.default_rng(1).uniform(0.2, 2, ROWS if name == "sample_weight" else 21)
    weights[3] = 0
    right = truth.cross_entropy_with_options(logits, target, **{name: weights})
    expected = sf.cross_entropy_with_grad(logits, target, **{name: weights})
    loss, grad = sf.cross_entropy_with_grad(logits, target, **{name: weights * factor})
    assert_ulp(loss, right.loss, "loss", dtype)
    assert_ulp(grad, right.gradient, "gradient", dtype, right.gradient_scale)
    if np.frexp(factor)[0] == 0.5:
        assert_same_bits(loss, expected[0])
        assert_same_bits(grad, expected[1])


# Zeros take out what they stand before


@pytest.mark.parametrize("odd", [NAN, INF, -INF])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@with_targets
def test_sample_weight_0_takes_out_a_row(
    dtype: np.dtype, target_kind: str, reduction: str, odd: float
) -> None:
    for row in ([odd, 0], [odd, odd]):
        logits = np.array([row, [1, 2]], dtype)
        target = np.array([0, 1]) if target_kind == "labels" else np.array(HALVES, dtype)
        options: dict[str, Any] = {"sample_weight": [0, 1], "reduction": reduction}
        right = truth.cross_entropy_with_options(logits, target, **options)
        loss, grad = sf.cross_entropy_with_grad(logits, target, z_loss=0.0, **options)
        assert_ulp(loss, right.loss, "loss", dtype)
        assert_ulp(grad, right.gradient, "gradient", dtype, right.gradient_scale)
        loss, grad = sf.cross_entropy_with_grad(logits, target, z_loss=0.1, **options)
        assert np.isfinite(loss).all()
        np.testing.assert_array_equal(grad[0], 0)
        for function in (sf.nll_loss, sf.cross_entropy_from_probs):
            found = function(logits, target, **options)
            assert np.isfinite(found).all()
            assert reduction != "none" or found[0] == 0


ZERO_TERMS: list[tuple[Any, Any, dict[str, Any]]] = [
    ([[-1e-9, 1]], [[0.0, 1]], {}),
    ([[NAN, 0.5]], [[0.0, 1]], {}),
    ([[INF, 0.5]], [[0.0, 1]], {}),
    ([[-1.0, 0.5]], [[0.5, 0.5]], {"weight": [0, 1]}),
    ([[NAN, 0.5]], [0], {"weight": [0, 1]}),
    ([[-1.0, 0.5]], [0], {"weight": [0, 1]}),
    ([[-1.0, 0.5], [0.25, 0.75]], [0, 1], {"sample_weight": [0, 1]}),
]


@pytest.mark.parametrize(("probs", "target", "options"), ZERO_TERMS, ids=str)
def test_coefficient_0_takes_out_a_likelihood(
    dtype: np.dtype, probs: Any, target: Any, options: dict[str, Any]
) -> None:
    x, given = np.array(probs, dtype), np.array(target)
    given = given.astype(dtype) if given.dtype.kind == "f" else given
    found = sf.cross_entropy_from_probs(x, given, reduction="sum", **options)
    right = truth.cross_entropy_from_probs(x, given, reduction="sum", **options)
    assert np.isfinite(right)
    assert_ulp(found, right, "loss", dtype)
    found = sf.nll_loss(x, given, reduction="sum", **options)
    right = truth.negative_log_likelihood(x, given, reduction="sum", **options)
    assert_ulp(found, right, "loss", dtype)


@pytest.mark.parametrize("odd", [NAN, INF, -INF])
def test_class_weight_0_takes_out_a_label(dtype: np.dtype, odd: float) -> None:
    logits = np.array([[odd, 0], [1, 2]], dtype)
    options: dict[str, Any] = {"weight": [0, 1], "reduction": "none"}
    right = truth.cross_entropy_with_options(logits[1:], [1], **options)
    for library in (sf, sf.reference):
        loss, grad = library.cross_entropy_with_grad(logits, [0, 1], **options)
        assert loss[0] == 0
        np.testing.assert_array_equal(grad[0], 0)
        assert_ulp(loss[1:], right.loss, "loss", dtype)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("gap", [65519, 65520, 131008])
@pytest.mark.filterwarnings("error")
def test_a_loss_beyond_float16_is_infinite(gap: int, reduction: str) -> None:
    logits = np.array([[-65504, gap - 65504]], np.float16)
    right = float(logits[0, 1]) - float(logits[0, 0])
    loss = sf.cross_entropy(logits, np.array([0]), reduction=reduction)
    assert loss.dtype == np.float16
    with np.errstate(over="ignore"):
        assert loss == np.float16(right)


def test_losses_near_the_largest_number(full_dtype: np.dtype) -> None:
    # The first class is so far above the others that its loss is lifted for weights to act on.
    largest = float(np.finfo(full_dtype).max) / 1e8
    logits = np.array([[largest, -largest, 0, 5]] * 3, full_dtype)
    weights = np.array([0.7, 0.3, 0.9])
    for labels in (np.array([0, 1, 2]), np.eye(4, dtype=full_dtype)[[0, 1, 2]]):
        for more in ({"label_smoothing": 0.1}, {"z_loss": 1e-3 / largest}):
            options: dict[str, Any] = {"sample_weight": weights, "reduction": "none", **more}
            right = truth.cross_entropy_with_options(logits, labels, **options)
            assert (right.loss > 0).all()
            found = sf.cross_entropy(logits, labels, **options)
            assert_ulp(found, right.loss, "loss", full_dtype)


@with_targets
@pytest.mark.parametrize("factor", [1.0, 2.0**970])
def test_the_mean_divides_by_an_exact_sum(factor: float, target_kind: str) -> None:
    # Each of the many is less than half a unit of the first: a plain sum would miss all of them.
    rows = 3000
    weights = np.full(rows, 2.0**-54 * factor)
    weights[0] = factor
    logits = np.zeros((rows, 2))
    target: Array = np.zeros(rows, int)
    if target_kind == "probabilities":
        target = np.eye(2)[target]
    right = truth.cross_entropy_with_options(logits, target, sample_weight=weights)
    _, grad = sf.cross_entropy_with_grad(logits, target, sample_weight=weights)
    assert_ulp(grad, right.gradient, "gradient", np.float64, right.gradient_scale)


ZERO_BINARY: list[tuple[float, float, dict[str, Any]]] = [
    (1 + 2.0**-7, 1, {}),
    (1 + 2.0**-23, 1, {}),
    (-1e-3, 0, {}),
    (-1.0, 0.5, {"weight": [0]}),
    (NAN, 0.5, {"weight": [0]}),
]


@pytest.mark.parametrize(("prob", "yes", "options"), ZERO_BINARY, ids=str)
def test_coefficient_0_takes_out_a_binary_term(
    dtype: np.dtype, prob: float, yes: float, options: dict[str, Any]
) -> None:
    probs, target = np.array([prob], dtype), np.array([yes], dtype)
    right = truth.binary_cross_entropy(probs, target, **options)
    assert_ulp(sf.binary_cross_entropy(probs, target, **options), right, "loss", dtype)


@pytest.mark.parametrize("logit", [NAN, INF, -INF])
def test_weight_0_takes_out_a_logit(dtype: np.dtype, logit: float) -> None:
    logits, target = np.array([logit, 1], dtype), np.array([0.5, 0], dtype)
    loss, grad = sf.binary_cross_entropy_with_logits_with_grad(
        logits, target, weight=[0, 1], reduction="none"
    )
    right = truth.binary_cross_entropy_with_logits(logits[1:], target[1:], reduction="none")
    assert loss[0] == 0
    assert grad[0] == 0
    assert_ulp(loss[1:], right.loss, "loss", dtype)
    assert_ulp(grad[1:], right.gradient, "gradient", dtype, right.gradient_scale)


# Bits


@pytest.mark.parametrize("classes", [3, 9, 100, 1000])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "cross_entropy"])
def test_long_doubles_have_the_same_bits_in_any_order(name: str, classes: int) -> None:
    x = np.random.default_rng(0).normal(scale=4, size=(30, classes)).astype(np.longdouble)
    labels = np.arange(30) % classes
    function = getattr(sf, name)
    arguments = [labels] if name == "cross_entropy" else []
    options: dict[str, Any] = {"reduction": "none"} if arguments else {}
    expected = function(x, *arguments, axis=-1, **options)
    for other in (np.asfortranarray(x), x[:, ::-1].copy()[:, ::-1]):
        # Long doubles have bytes that mean nothing.
        np.testing.assert_array_equal(function(other, *arguments, axis=-1, **options), expected)
    by_columns = function(x.T.copy(), *arguments, axis=0, **options)
    np.testing.assert_array_equal(by_columns.T, expected)
    alone = function(x[3:4], *(item[3:4] for item in arguments), axis=-1, **options)
    np.testing.assert_array_equal(alone, expected[3:4])


@pytest.mark.parametrize("classes", [1, 3, 9, 100, 1000, 5000])
@pytest.mark.parametrize("order", ["C", "F"])
def test_logsumexp_is_one_function(dtype: np.dtype, order: Any, classes: int) -> None:
    """With weights of 1, or with the sign asked for, it has the plain bits."""
    x = np.random.default_rng(0).normal(scale=4, size=(30, classes)).astype(dtype, order=order)
    expected = sf.logsumexp(np.ascontiguousarray(x))
    for b in (np.ones_like(x), np.ones(classes, dtype), np.ones((30, 1), dtype), dtype.type(1)):
        assert_same_bits(sf.logsumexp(x, b=b), expected, np.shape(b))
    found, sign = sf.logsumexp(x, return_sign=True)
    assert_same_bits(found, expected)
    np.testing.assert_array_equal(sign, 1)


# Rules


@pytest.mark.parametrize(
    ("x_shape", "b_shape", "axis"),
    [
        ((4, 1, 2, 1), (3, 1, 5), -1),
        ((4, 1, 2, 1), (3, 1, 5), (0, 2)),
        ((2, 3), (4, 2, 3), -1),
        ((3,), (4, 3), 0),
        ((1,), (5,), 0),
        ((4, 3), (1, 3), None),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtypes", [("f4", "f4"), ("f4", "f8"), ("f8", "f4")], ids=str)
def test_b_broadcasts_and_promotes_as_in_scipy(
    special: Any, dtypes: tuple[str, str], x_shape: Any, b_shape: Any, axis: Any
) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=x_shape).astype(dtypes[0])
    b = random.uniform(0.5, 2, b_shape).astype(dtypes[1])
    found, sign = sf.logsumexp(x, axis, b=b, return_sign=True)
    right, right_sign = special.logsumexp(x, axis, b=b, return_sign=True)
    assert np.asarray(found).dtype == right.dtype
    epsilon = 8 * np.finfo(right.dtype).eps
    np.testing.assert_allclose(found, right, epsilon, epsilon)
    np.testing.assert_array_equal(sign, right_sign)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_a_binary_loss_of_a_number_is_a_number(full_dtype: np.dtype, reduction: str) -> None:
    for logit in (1.0, np.array(1.0, full_dtype)):
        for found in sf.binary_cross_entropy_with_logits_with_grad(logit, 1, reduction=reduction):
            assert isinstance(found, np.floating), type(found)


@pytest.mark.parametrize("function", [sf.cross_entropy, sf.cross_entropy_with_grad, sf.nll_loss])
def test_integer_one_hot_targets_name_the_remedy(function: Any) -> None:
    logits, target = np.zeros((4, 3)), np.eye(3, dtype=int)[[0, 1, 2, 0]]
    with pytest.raises(ValueError, match=r"^target .*\.astype\(float\)"):
        function(logits, target)
    with pytest.raises(ValueError, match=r"^target .*\.astype\(float\)"):
        function(logits.reshape(2, 3, 2), target.reshape(2, 3, 2), axis=1)


def test_a_sample_weight_of_zero_takes_an_infinite_class_weight_out_of_the_mean() -> None:
    """Neither 0 * inf in what is divided by, nor a warning of it."""
    logits = np.random.default_rng(0).standard_normal((4, 6))
    target = np.array([0, 1, 2, 3])
    weight, sample_weight = np.array([np.inf, 1, 2, 3, 1, 1.0]), np.array([0, 1, 1, 2.0])
    expected = sf.cross_entropy(
        logits[1:], target[1:], weight=np.where(weight == np.inf, 1, weight),
        sample_weight=sample_weight[1:],
    )  # fmt: skip
    options = {"weight": weight, "sample_weight": sample_weight}
    assert sf.cross_entropy(logits, target, **options) == pytest.approx(expected, rel=1e-15)
    assert reference.cross_entropy(logits, target, **options) == pytest.approx(expected, rel=1e-15)
    for module in (sharded, reference.sharded):
        parts = [
            module.row_states(logits[:, part], target, weight=weight[part], class_offset=part.start)
            for part in (slice(0, 3), slice(3, 6))
        ]
        loss = module.cross_entropy(module.merge(*parts), sample_weight=sample_weight)
        assert loss == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(("of_class", "of_row"), [(0.0, INF), (INF, 0.0)])
def test_a_weight_of_zero_takes_an_infinite_one_out_of_a_linear_loss(
    of_class: float, of_row: float
) -> None:
    hidden, matrix = np.eye(3), np.arange(6.0).reshape(2, 3)
    options = {"weight": [of_class, 1.0], "sample_weight": [1.0, 2, of_row]}
    loss = sf.linear_cross_entropy(hidden, matrix, np.array([1, 1, 0]), **options)
    expected = sf.cross_entropy((hidden @ matrix.T)[:2], [1, 1], sample_weight=[1.0, 2])
    assert loss == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weights_far_apart_of_shards(reduction: str, smoothing: float) -> None:
    logits, target = np.array([[1.0, 2], [2, 0.5]]), np.array([0, 1])
    options: dict[str, Any] = FAR_APART | {"reduction": reduction, "label_smoothing": smoothing}
    options = {name: np.asarray(v) if "weight" in name else v for name, v in options.items()}
    right = truth.cross_entropy_with_options(logits, target, **options)
    shards = Sharded(logits, target, [1], **options)
    assert_ulp(shards.loss, right.loss, "loss", logits.dtype)
    assert_ulp(shards.gradient, right.gradient, "gradient", logits.dtype, right.gradient_scale)
