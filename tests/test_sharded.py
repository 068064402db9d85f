"""softce_fast.sharded: classes in several arrays give what they give in one."""

from __future__ import annotations

import itertools
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import softce_fast as sf
import truth
from layouts import assert_same_bits
from shards import OF_LOGITS, Sharded
from softce_fast import sharded
from softce_fast._kernels import execute
from test_digits import Digits, rows_with_gaps, target_for
from truth import Array

pytestmark = [pytest.mark.usefixtures("isa"), pytest.mark.filterwarnings("error")]

SPLIT = sharded.SPLIT
OPTIONS: list[tuple[str, ...]] = [
    (), ("weight",), ("sample_weight",), ("z_loss",), ("temperature",),
    ("label_smoothing",), ("weight", "label_smoothing"), ("weight", "sample_weight", "z_loss"),
    ("softcap",), ("softcap", "temperature", "weight"), ("softcap", "label_smoothing"), ("where",),
    ("where", "label_smoothing"), ("where", "weight", "label_smoothing", "softcap", "z_loss"),
]  # fmt: skip
# Those that states are made with.
OF_STATES: list[tuple[str, ...]] = [
    (), ("where",), ("temperature",), ("target",), ("target", "weight"), ("target", "where"),
    ("target", "where", "weight", "temperature"),
]  # fmt: skip
VALUES = {"label_smoothing": 0.1, "z_loss": 1e-2, "temperature": 0.7, "softcap": 5.0}


def options_for(names: tuple[str, ...], target: Array, classes: int) -> dict[str, Any]:
    random, rows = np.random.default_rng(4), len(target)
    options = {name: VALUES.get(name) for name in names}
    if "weight" in options:
        options["weight"] = random.uniform(0.1, 5, classes)
    if "sample_weight" in options:
        options["sample_weight"] = np.append(0.0, random.uniform(0.1, 5, rows - 1))
    if "where" in options:
        options["where"] = random.random((rows, classes)) < 0.6
        options["where"][np.arange(rows), np.maximum(target, 0)] = True
    return options


def case(classes: int, dtype: np.dtype, offset: float = 0.0) -> tuple[Array, Array]:
    random = np.random.default_rng(classes)
    logits = random.normal(scale=3, size=(9, classes)) + offset
    target = random.integers(0, classes, 9)
    target[::2] = logits[::2].argmax(axis=1)
    target[3] = -100
    return logits.astype(dtype), target


# Bits


@pytest.mark.parametrize("names", OPTIONS, ids="-".join)
@pytest.mark.parametrize("offset", [0.0, 245.0, -300.0, 3e4])  # 245: some maxima are above 256
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_splits_at_multiples_have_the_bits_of_the_whole(
    full_dtype: np.dtype, names: tuple[str, ...], offset: float, reduction: str
) -> None:
    classes = 3 * SPLIT + 700
    logits, target = case(classes, full_dtype, offset)
    options = options_for(names, target, classes) | {"reduction": reduction}
    of_logits = {name: options[name] for name in OF_LOGITS if name in options}
    loss, gradient = sf.cross_entropy_with_grad(logits, target, **options)
    for cuts in ([SPLIT], [2 * SPLIT], [SPLIT, 2 * SPLIT, 3 * SPLIT]):
        found = Sharded(logits, target, cuts, **options)
        if not of_logits.keys() & {"softcap", "temperature"}:
            assert_same_bits(found.logsumexp, sf.logsumexp(logits, **of_logits))
        if "softcap" not in options:
            assert_same_bits(found.softmax, sf.softmax(logits, **of_logits))
            assert_same_bits(found.log_softmax, sf.log_softmax(logits, **of_logits))
        if "label_smoothing" in options:
            continue
        assert_same_bits(found.loss, loss)
        assert_same_bits(found.gradient, gradient)


@pytest.mark.parametrize(
    "names", [names for names in OPTIONS if "label_smoothing" not in names], ids="-".join
)
def test_half_types_have_the_bits_of_the_whole(
    half_dtype: np.dtype, names: tuple[str, ...]
) -> None:
    """With options they are computed with more digits than without."""
    for offset in (0.0, -50.0):
        logits, target = case(2 * SPLIT + 5, half_dtype, offset)
        options = options_for(names, target, 2 * SPLIT + 5) | {"reduction": "sum"}
        of_logits = {name: options[name] for name in OF_LOGITS if name in options}
        loss, gradient = sf.cross_entropy_with_grad(logits, target, **options)
        found = Sharded(logits, target, [SPLIT], **options)
        assert_same_bits(found.loss, loss)
        assert_same_bits(found.gradient, gradient)
        if "softcap" not in names:
            assert_same_bits(found.softmax, sf.softmax(logits, **of_logits))
        if not names:
            assert_same_bits(found.logsumexp, sf.logsumexp(logits))


def test_bits_do_not_depend_on_threads_axis_or_grouping(full_dtype: np.dtype) -> None:
    logits, target = case(3 * SPLIT, full_dtype)
    states = [
        sharded.row_states(logits[:, k * SPLIT : (k + 1) * SPLIT], target, class_offset=k * SPLIT)
        for k in range(3)
    ]
    whole = sharded.merge(*states)
    loss = sharded.cross_entropy(whole, reduction="none")
    for other in (
        sharded.merge(states[0], sharded.merge(states[1], states[2])),
        sharded.merge(sharded.merge(states[0], states[1]), states[2]),
        sharded.row_states(np.asfortranarray(logits), target),
        sharded.row_states(logits.T, target, 0),
    ):
        np.testing.assert_array_equal(sharded.cross_entropy(other, reduction="none"), loss)
        np.testing.assert_array_equal(sharded.logsumexp(other), sharded.logsumexp(whole))
    with sf.num_threads(3):
        more = sharded.row_states(logits, target)
        np.testing.assert_array_equal(sharded.cross_entropy(more, reduction="none"), loss)
        probabilities = sharded.softmax(logits.T, whole, 0)
    np.testing.assert_array_equal(probabilities.T, sf.softmax(logits))


@pytest.mark.parametrize("names", OF_STATES, ids="-".join)
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 16, 17, 63, 65, 100, 200])
def test_states_are_the_same_along_and_across(
    dtype: np.dtype, classes: int, names: tuple[str, ...]
) -> None:
    """Those of rows that are not finite, and of labels elsewhere, too."""
    random = np.random.default_rng(classes)
    logits = random.normal(scale=5, size=(50, classes))
    logits[random.random((50, classes)) < 0.02] = -np.inf
    logits[0], logits[1], logits[2, -1], logits[3, 0] = -np.inf, np.nan, np.inf, np.nan
    logits[4] = 1e4 + logits[4]
    given: dict[str, Any] = {
        "target": random.integers(-1, classes + 2, 50), "weight": random.uniform(0.1, 5, classes),
        "where": random.random((50, classes)) < 0.7, "temperature": 0.7,
    }  # fmt: skip
    options = {name: given[name] for name in names}
    for x in (logits.astype(dtype), np.asfortranarray(logits.astype(dtype))):
        states = []
        for passes in ("along", "across"):
            with execute.forcing(passes=passes), execute.recording() as plans:
                states.append(sharded.row_states(x, **options))
            assert {plan["passes"] for plan in plans} == {passes}
        for item in states:
            # The sums of a row with +inf or NaN are none.
            for name in {"chunks", "more_digits"} & set(item.dtype.names):
                item[name][np.isnan(item[name]["all"][..., 0])] = 0
        assert states[0].tobytes() == states[1].tobytes()


# Digits, of any split


@pytest.mark.parametrize("names", OPTIONS, ids="-".join)
def test_digits(full_dtype: np.dtype, names: tuple[str, ...]) -> None:
    with Digits(full_dtype) as digits:
        for classes, cuts in (
            (2, [1]), (3, [1, 2]), (10, [3, 4, 9]), (100, [0, 50]), (1000, [1, 999]),
            (5000, [4095, 4097]), (10_000, list(range(500, 10_000, 500))),
        ):  # fmt: skip
            logits = rows_with_gaps(classes, full_dtype)
            target = target_for("labels", logits)
            options = options_for(names, target, classes)
            of_logits = {name: options[name] for name in OF_LOGITS if name in options}
            right = truth.cross_entropy_with_options(logits, target, reduction="none", **options)
            found = Sharded(logits, target, cuts, reduction="none", **options)
            digits.check("loss", found.loss, right.loss, classes, doubt=right.loss_doubt)
            digits.check("gradient", found.gradient, right.gradient, classes,
                         scale=right.gradient_scale, doubt=right.gradient_doubt)  # fmt: skip
            # A capped logit is rounded: so much may each be off by.
            doubt = options.get("softcap", 0.0) / options.get("temperature", 1.0)
            probabilities = truth.softmax(logits, **of_logits)
            digits.check(
                "softmax", found.softmax, probabilities, classes, doubt=2 * doubt * probabilities
            )
            log_probs = truth.log_softmax(logits, **of_logits)
            digits.check("log_softmax", found.log_softmax, log_probs, classes, doubt=2 * doubt)
            total, scale = (
                function(logits, **of_logits)
                for function in (truth.logsumexp, truth.logsumexp_scale)
            )
            digits.check("logsumexp", found.logsumexp, total, classes, scale=scale, doubt=doubt)


@pytest.mark.parametrize("ignore_index", [-100, 3])
@pytest.mark.parametrize("denominator", [None, 2.5, -3.0])
def test_reductions(full_dtype: np.dtype, ignore_index: int, denominator: float | None) -> None:
    logits, target = case(40, full_dtype)
    target = np.where(target == -100, ignore_index, target)
    options: dict[str, Any] = options_for(("weight", "sample_weight"), target, 40)
    options |= {"ignore_index": ignore_index, "denominator": denominator}
    with Digits(full_dtype) as digits:
        for reduction in ("mean", "sum"):
            options["reduction"] = reduction
            right = truth.cross_entropy_with_options(logits, target, **options)
            found = Sharded(logits, target, [7, 30], **options)
            digits.check("loss", found.loss, right.loss, reduction)
            digits.check("gradient", found.gradient, right.gradient, reduction,
                         scale=right.gradient_scale)  # fmt: skip


@pytest.mark.parametrize("empty", ["nan", "zero"])
@pytest.mark.parametrize("denominator", [None, 0.0])
@pytest.mark.parametrize("ignored", [0, 1, 9])
@pytest.mark.parametrize("names", [(), ("weight",), ("where",)], ids="-".join)
def test_division_by_zero(
    names: tuple[str, ...], ignored: int, denominator: float | None, empty: str
) -> None:
    """As in the undivided call: the gradient is infinite or NaN where the loss is."""
    logits, target = case(20, np.dtype(np.float64))
    target[:ignored], target[3] = -100, 5
    if ignored == 9:
        target[:] = -100
    options = options_for(names, target, 20) | {"empty": empty, "denominator": denominator}
    if "weight" in options:
        options["weight"][:] = 0
    found = Sharded(logits, target, [11], **options)
    loss, gradient = sf.cross_entropy_with_grad(logits, target, **options)
    np.testing.assert_allclose(found.loss, loss, 1e-15)
    np.testing.assert_allclose(found.gradient, gradient, 1e-14)


def test_class_weights_far_apart() -> None:
    """States are finished without the weights: in what they were computed in."""
    random = np.random.default_rng(5)
    logits = random.normal(scale=9, size=(6, 40)).astype(np.float32)
    weight = 10.0 ** random.uniform(-27, 27, 40)
    target = random.integers(0, 40, 6)
    right = truth.cross_entropy_with_options(logits, target, weight=weight, reduction="none")
    found = Sharded(logits, target, [11], weight=weight, reduction="none")
    with Digits(logits.dtype) as digits:
        digits.check("loss", found.loss, right.loss)
        digits.check("gradient", found.gradient, right.gradient, scale=right.gradient_scale)
        digits.check("softmax", found.softmax, truth.softmax(logits))


@pytest.mark.parametrize("weight", [[1e284, 2.0, 1e-47], [1e-47, 1e17, 1e284], [1.0, 1e-30, 1e30]])
@pytest.mark.parametrize("sample_weight", [None, [1.0, 1e-297, 1e295]])
@pytest.mark.parametrize("names", [("label_smoothing",), ("denominator",), ()], ids="-".join)
def test_classes_and_rows_whose_weights_are_far_apart(
    full_dtype: np.dtype, names: tuple[str, ...], sample_weight: Any, weight: Any
) -> None:
    """Each shard has a class; a row that counts for nothing in the sum has its own gradient."""
    logits = np.random.default_rng(3).normal(size=(3, 3)).astype(full_dtype)
    target = np.array([0, 1, 2])
    options: dict[str, Any] = {"sample_weight": sample_weight, "reduction": "sum"}
    options |= {"label_smoothing": 0.3} if "label_smoothing" in names else {}
    if "denominator" in names:
        options |= {"reduction": "mean", "denominator": 1e20}
    found = Sharded(logits, target, [1, 2], weight=np.array(weight), **options)
    right = truth.cross_entropy_with_options(logits, target, weight=weight, **options)
    with Digits(full_dtype) as digits:
        digits.check("gradient", found.gradient, right.gradient, scale=right.gradient_scale)


@pytest.mark.parametrize("least", [1e-216, 1.0])
@pytest.mark.parametrize("most", [1e100, 1e235])
def test_label_weights_far_apart(least: float, most: float) -> None:
    """So large that float32 does not hold what multiplies a row."""
    random = np.random.default_rng(6)
    logits = random.normal(size=(2, 4)).astype(np.float32)
    weight, target = np.array([most, least, 1, 1]), np.array([0, 1])
    found = Sharded(logits, target, [2], weight=weight, reduction="sum")
    right = truth.cross_entropy_with_options(logits, target, weight=weight, reduction="sum")
    with Digits(logits.dtype) as digits:
        digits.check("gradient", found.gradient, right.gradient, scale=right.gradient_scale)


def test_z_loss_of_a_logsumexp_near_zero(full_dtype: np.dtype) -> None:
    """Where the label, which is not the maximum, counts for nothing."""
    logits = np.array([[0.76, 2.3e-3, -60], [-70, 1e-5, -80], [-0.7, -1e-4, -40]])
    logits = logits.astype(full_dtype)
    where = np.array([[False, True, True], [True, True, True], [False, True, True]])
    options: dict[str, Any] = {"weight": np.zeros(3), "z_loss": 0.5, "reduction": "none"}
    target = np.array([2, 0, 2])
    right = truth.cross_entropy_with_options(logits, target, where=where, **options)
    for cuts in ([1], [2], [1, 2]):
        found = Sharded(logits, target, cuts, where=where, **options)
        with Digits(full_dtype) as digits:
            digits.check("loss", found.loss, right.loss)


def test_class_weights_whose_sums_are_not_asked_for() -> None:
    """The smallest of all is the label's: what is taken out of it would make the sums infinite."""
    logits = np.array([[0.5, 1.0, -2.0]])
    weight = np.array([1e-280, 1e280, 1.0])
    right = truth.cross_entropy_with_options(logits, [0], weight=weight, reduction="none")
    found = Sharded(logits, np.array([0]), [1], weight=weight, reduction="none")
    with Digits(logits.dtype) as digits:
        digits.check("loss", found.loss, right.loss)
        digits.check("gradient", found.gradient, right.gradient, scale=right.gradient_scale)


def test_merging_in_any_order() -> None:
    logits, target = case(40, np.dtype(np.float64))
    right = truth.cross_entropy_with_options(logits, target, reduction="none").loss
    states = Sharded(logits, target, [7, 8, 30]).each
    for order in itertools.permutations(states):
        merged = sharded.merge(order[0], sharded.merge(*order[1:]))
        loss = sharded.cross_entropy(merged, reduction="none")
        np.testing.assert_allclose(loss, right.astype(float), 1e-15)


def test_states_can_be_sent_saved_and_indexed(tmp_path: Any) -> None:
    logits, target = case(30, np.dtype(np.float32))
    states = Sharded(logits, target, [10]).each
    loss = sharded.cross_entropy(sharded.merge(*states), reduction="none")
    np.save(tmp_path / "states.npy", states[0])
    back = np.load(tmp_path / "states.npy"), pickle.loads(pickle.dumps(states[1]))
    np.testing.assert_array_equal(
        sharded.cross_entropy(sharded.merge(*back), reduction="none"), loss
    )
    again = sharded.merge(*(np.concatenate([item[:4], item[4:]]) for item in states))
    np.testing.assert_array_equal(sharded.cross_entropy(again, reduction="none"), loss)
    stacked = np.asfortranarray(np.stack([sharded.merge(*states)] * 2))
    assert sharded.logsumexp(stacked).shape == (2, 9)
    for part in (stacked, stacked[:, ::-1][:, ::-1], stacked.T.copy().T):
        of_all = sharded.cross_entropy(part, reduction="none")
        np.testing.assert_array_equal(of_all, [loss, loss])


# Masks and edge values


def test_excluded_classes(full_dtype: np.dtype) -> None:
    logits, target = case(50, full_dtype)
    allowed = np.random.default_rng(0).random(logits.shape) < 0.5
    allowed[:2] = True
    allowed[4] = False
    dirty = np.where(allowed, logits, full_dtype.type(np.nan))
    found = Sharded(dirty, target, [20, 21], where=allowed, reduction="none")
    for k, (row, kept, label) in enumerate(zip(logits, allowed, target, strict=True)):
        if label == -100:
            assert found.loss[k] == 0
            assert not found.gradient[k].any()
        elif not kept.any() or not kept[label]:
            assert found.loss[k] == np.inf
            assert not found.gradient[k, label]
        else:
            right = float(truth.log_softmax(row[kept])[int(kept[:label].sum())])
            np.testing.assert_allclose(found.loss[k], -right, 1e-5)
        if kept.any():
            right_probs = truth.softmax(row[kept]).astype(float)
            np.testing.assert_allclose(found.softmax[k, kept], right_probs, 1e-5)
            assert not found.softmax[k, ~kept].any()
    assert not found.gradient[~allowed].any()


def test_rows_that_are_not_finite() -> None:
    nan, inf = np.nan, np.inf
    x = np.array([
        [-inf] * 4, [inf, 0, 0, 0], [0, 0, 0, inf], [inf, 0, 0, nan], [0, 0, nan, 0],
        [-inf, -inf, 1, 2],
    ])  # fmt: skip
    target = np.full(6, 3)
    found = Sharded(x, target, [2], reduction="none")
    np.testing.assert_array_equal(found.logsumexp, sf.logsumexp(x))
    np.testing.assert_array_equal(found.softmax, sf.softmax(x))
    loss, gradient = sf.cross_entropy_with_grad(x, target, reduction="none")
    np.testing.assert_array_equal(found.loss, loss)
    np.testing.assert_array_equal(found.gradient, gradient)


@pytest.mark.parametrize("options", [{"label_smoothing": 1.0}, {"weight": [0.0, 1.0]}])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_rows_that_nothing_is_left_of(options: dict[str, Any], z_loss: float) -> None:
    """Without a coefficient above 0 a row counts for nothing, also where no class is allowed."""
    x, y, allowed = np.zeros((2, 2)), np.zeros(2, int), np.array([[True, True], [False, False]])
    options = {name: np.asarray(value) for name, value in options.items()}
    options |= {"where": allowed, "z_loss": z_loss, "reduction": "none"}
    options["sample_weight"] = np.array([1.0, -2.0])
    found = Sharded(x, y, [1], **options)
    loss, gradient = sf.cross_entropy_with_grad(x, y, **options)
    np.testing.assert_allclose(found.loss, loss, 1e-15)
    np.testing.assert_allclose(found.gradient, gradient, 1e-15)
    assert found.loss[1] == (-np.inf if z_loss else 0)


def test_shards_without_classes_and_rows() -> None:
    logits, target = case(5, np.dtype(np.float64))
    found = Sharded(logits, target, [0, 5, 5])
    np.testing.assert_array_equal(found.softmax, sf.softmax(logits))
    empty = sharded.row_states(np.zeros((2, 0)))
    assert sharded.logsumexp(sharded.merge(empty, empty)).tolist() == [-np.inf, -np.inf]
    none = sharded.row_states(np.zeros((0, 3)), np.zeros(0, int))
    assert sharded.logsumexp(none).shape == (0,)
    assert np.isnan(sharded.cross_entropy(none))
    assert sharded.cross_entropy(none, empty="zero") == 0


def test_integers_and_a_single_row() -> None:
    row = np.array([3, 1, 2], np.int16)
    states = sharded.merge(sharded.row_states(row[:1], 2), sharded.row_states(
        row[1:], 2, class_offset=1))  # fmt: skip
    assert states.shape == ()
    assert sharded.cross_entropy(states) == sf.cross_entropy(row, 2)
    assert sharded.cross_entropy(states).dtype == np.float64


def test_results_go_where_they_are_wanted() -> None:
    logits, target = case(30, np.dtype(np.float32))
    states = sharded.row_states(logits, target)
    for function, right in (
        (lambda out: sharded.softmax(logits, states, out=out), sf.softmax(logits)),
        (
            lambda out: sharded.cross_entropy_grad(logits, target, states, grad_out=out),
            sf.cross_entropy_with_grad(logits, target)[1],
        ),
    ):
        out = np.empty_like(logits)
        assert function(out) is out
        np.testing.assert_array_equal(out, right)
    sharded.softmax(logits, states, out=logits)
    np.testing.assert_array_equal(logits, sf.softmax(case(30, np.dtype(np.float32))[0]))


# Errors


def test_errors() -> None:
    x, y = np.zeros((2, 3)), np.array([0, 2])
    states = sharded.row_states(x, y)
    plain = sharded.row_states(x)
    far = sharded.row_states(x, [0, 3])
    other = sharded.row_states(x, y, class_offset=3)
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: sharded.cross_entropy(far), IndexError, r"target\[1\] is 3.*\[0, 3\).*-100"),
        (lambda: sharded.cross_entropy(plain), ValueError, "states must have a target"),
        (lambda: sharded.merge(), TypeError, "merge must be given states"),
        (lambda: sharded.merge(states, x), TypeError, "row_states, got ndarray"),
        (lambda: sharded.logsumexp([1.0]), TypeError, "row_states, got list"),
        (lambda: sharded.merge(states, other[:1]), ValueError, r"one shape, got \(2,\) and \(1,\)"),
        (lambda: sharded.merge(states, plain), ValueError, "the same labelled"),
        (lambda: sharded.merge(states, far), ValueError, "the same target"),
        (lambda: sharded.merge(states, states), ValueError, "class twice"),
        (
            lambda: sharded.merge(plain, sharded.row_states(x.astype("f4"))),
            ValueError, "the same dtype",
        ),
        (
            lambda: sharded.merge(plain, sharded.row_states(x, temperature=2)),
            ValueError, "the same temperature",
        ),
        (lambda: sharded.row_states(x, x), NotImplementedError, "class probabilities"),
        (lambda: sharded.row_states(x.astype("g")), NotImplementedError, "longdouble"),
        (lambda: sharded.row_states(x, class_offset=-1), ValueError, "class_offset must be >= 0"),
        (lambda: sharded.row_states(x, class_offset=1.5), TypeError, "class_offset must be an int"),
        (lambda: sharded.row_states(x, temperature=0), ValueError, "temperature must be"),
        (lambda: sharded.row_states(x, weight=[1, 2]), ValueError, r"weight must have.*\(3,\)"),
        (lambda: sharded.row_states(x, y, 2), np.exceptions.AxisError, "axis"),
        (lambda: sharded.row_states(x, y, where=[1, 0, 1]), TypeError, "where must hold booleans"),
        (lambda: sharded.softmax(x[:1], states), ValueError, r"states must have.*\(1,\)"),
        (lambda: sharded.softmax(x, states, out=x[:1]), ValueError, "out must have shape"),
        (lambda: sharded.cross_entropy(states, reduction="all"), ValueError, "reduction must be"),
        (lambda: sharded.cross_entropy(states, empty=0), ValueError, "empty must be"),
        (lambda: sharded.cross_entropy(states, label_smoothing=2), ValueError, r"in \[0, 1\]"),
        (
            lambda: sharded.cross_entropy_grad(x, y[::-1], states),
            ValueError, "target must be that of the states",
        ),
        (
            lambda: sharded.merge(plain, sharded.row_states(x, softcap=2)),
            ValueError, "the same softcap",
        ),
        (lambda: sharded.row_states(x, softcap=-1), ValueError, "softcap must be"),
        (
            lambda: sharded.softmax(x, states, softcap=3.0),
            ValueError, "softcap must be that of the states, None, got 3.0",
        ),
        (
            lambda: sharded.log_softmax(x, states, temperature=3.0),
            ValueError, "temperature must be that of the states, 1.0, got 3.0",
        ),
        (
            lambda: sharded.softmax(x.astype("f4"), states),
            ValueError, "dtype must be that of the states, float64, got float32",
        ),
        (lambda: sharded.row_states(x, temperature=1e-250), NotImplementedError, "temperature"),
        (lambda: sharded.row_states(x, softcap=1e150), NotImplementedError, "softcap"),
    ]  # fmt: skip
    for call, error, words in cases:
        with pytest.raises(error, match=words):
            call()


def test_nothing_is_written_before_an_error() -> None:
    x = np.zeros((2, 3))
    states = sharded.row_states(x, [0, 5])
    out = np.full_like(x, 7)
    with pytest.raises(IndexError, match="target"):
        sharded.cross_entropy_grad(x, [0, 5], states, grad_out=out)
    assert (out == 7).all()


# The example


EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "sharded_classes.py"


@pytest.mark.parametrize("launcher", ["", "mpirun"])
def test_example_of_several_processes(launcher: str) -> None:
    if not EXAMPLE.exists():
        pytest.skip("the examples are not beside the tests")
    command = [sys.executable, str(EXAMPLE)]
    if launcher:
        pytest.importorskip("mpi4py")
        command = [shutil.which(launcher) or pytest.skip("no MPI"), "-n", "2", *command, "--mpi"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "gradients have the same bits: True" in done.stdout
    in_each, in_one = done.stdout.split()[1], done.stdout.split()[5]
    assert in_each == in_one


@pytest.mark.parametrize("rows", [2, 20])
def test_a_sum_of_losses_that_overflows_is_infinite(rows: int) -> None:
    states = sharded.row_states(np.tile([0, -1.5e308], (rows, 1)), np.ones(rows, int))
    assert sharded.cross_entropy(states, reduction="sum") == np.inf
