"""target_scores: digits against long double, ranks against sorting in Python, bits, edge values."""

from __future__ import annotations

import importlib
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import softce_fast as sf
import truth
from softce_fast._kernels import execute
from test_digits import CLASS_COUNTS, LAYOUTS, Digits, moved, rows_with_gaps, target_for

pytestmark = [pytest.mark.usefixtures("isa"), pytest.mark.filterwarnings("error")]

NAN, INF = math.nan, math.inf
TIES = ("first", "min", "max")


def same_bits(found: sf.TargetScores, wanted: sf.TargetScores) -> None:
    for name, got, right in zip(found._fields, found, wanted, strict=True):
        assert (got is None) == (right is None), name
        if got is not None and right is not None:
            assert got.dtype == right.dtype, name
            assert np.asarray(got).tobytes() == np.asarray(right).tobytes(), name


# Digits


@LAYOUTS
@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.7, 3.0])
def test_digits(dtype: np.dtype, temperature: float, middle_axis: bool) -> None:
    options = {"temperature": temperature}
    with Digits(dtype) as digits:
        for classes in CLASS_COUNTS:
            logits = rows_with_gaps(classes, dtype)
            labels = target_for("labels", logits)
            found = sf.target_scores(
                moved(logits, middle_axis), moved(labels, middle_axis), 1, entropy=True,
                top_k=min(classes, 3), **options,
            )  # fmt: skip
            log_probs = truth.log_softmax(logits, **options)
            loss = -np.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0]
            assert found.entropy is not None
            assert found.top_log_probs is not None
            digits.check("loss", -found.log_prob.reshape(-1), loss, classes)
            entropy = truth.entropy(logits, **options)
            digits.check("loss", found.entropy.reshape(-1), entropy, "entropy", classes)
            digits.check(
                "logsumexp", found.logsumexp.reshape(-1), truth.logsumexp(logits, **options),
                classes, scale=truth.logsumexp_scale(logits, **options),
            )  # fmt: skip
            best = -np.sort(-log_probs, axis=1)[:, : min(classes, 3)]
            top = found.top_log_probs.reshape(best.shape)
            digits.check("log_softmax", top, best, classes)


def test_digits_of_long_rows(full_dtype: np.dtype) -> None:
    """Many chunks: the maximum before, in and after the chunk of the label."""
    with Digits(full_dtype) as digits:
        for seed, above in itertools.product(range(3), (0, 3, 30, 70)):
            random = np.random.default_rng(seed)
            logits = random.normal(scale=3, size=(6, 20_000))
            logits[np.arange(6), random.integers(0, 20_000, 6)] += above
            logits[::2] -= logits[::2].max(axis=1, keepdims=True)
            logits = logits.astype(full_dtype)
            labels = random.integers(0, 20_000, 6)
            found = sf.target_scores(logits, labels, entropy=True)
            log_probs = truth.log_softmax(logits)
            loss = -np.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0]
            digits.check("loss", -found.log_prob, loss, above)
            digits.check("loss", found.entropy, truth.entropy(logits), "entropy", above)
            scale = truth.logsumexp_scale(logits)
            digits.check("logsumexp", found.logsumexp, truth.logsumexp(logits), above, scale=scale)


# Ranks, by the definition


def python_scores(row: list[float], label: int, ties: str, top_k: int) -> tuple[Any, ...]:
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    above = sum(x > row[label] for x in row)
    equal = [i for i, x in enumerate(row) if x == row[label] and i != label]
    rank = above + {"first": sum(i < label for i in equal), "min": 0, "max": len(equal)}[ties]
    return rank, order[0], order[:top_k]


SHAPES = [(5, 1), (40, 3), (40, 10), (7, 70), (33, 130), (3, 1500), (2, 9000)]


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64", "int8", "uint64"])
@pytest.mark.parametrize("classes_first", [False, True])
def test_ranks_of_equal_logits(name: str, ties: str, classes_first: bool) -> None:
    dtype = np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name)
    random = np.random.default_rng(3)
    for shape in SHAPES:
        values = random.integers(0, 6, shape)
        labels = random.integers(0, shape[1], shape[0])
        for top_k in {0, 1, min(5, shape[1]), min(33, shape[1]), min(1500, shape[1])}:
            logits = (values.T.copy() if classes_first else values).astype(dtype)
            axis = 0 if classes_first else 1
            found = sf.target_scores(logits, labels, axis, ties=ties, top_k=top_k)
            for k, row in enumerate(values.tolist()):
                rank, argmax, top = python_scores(row, labels[k], ties, top_k)
                assert (found.rank[k], found.argmax[k]) == (rank, argmax)
                if found.top_indices is not None:
                    assert found.top_indices[k].tolist() == top


@pytest.mark.parametrize("order", ["rising", "falling", "random", "equal"])
@pytest.mark.parametrize("top_k", [1, 2, 16, 17, 33, 4096, 5000])
@pytest.mark.parametrize("threads", [1, 3])
def test_selecting_many(order: str, top_k: int, threads: int) -> None:
    row = np.arange(10_000, dtype=np.float64)
    if order == "random":
        np.random.default_rng(0).shuffle(row)
    row = {"falling": row[::-1], "equal": np.zeros(10_000)}.get(order, row)
    wanted = np.argsort(-row, kind="stable")[:top_k]
    for logits, axis in ((row[None], 1), (np.repeat(row[:, None], 5, axis=1), 0)):
        labels = np.zeros(logits.shape[1 - axis], int)
        with sf.num_threads(threads):
            found = sf.target_scores(logits, labels, axis, top_k=top_k)
        assert found.top_indices is not None
        assert (found.top_indices == wanted).all()


def test_numbers_next_to_each_other_are_told_apart(full_dtype: np.dtype) -> None:
    """Also around 0 and the smallest normal number; below that, all are 0."""
    smallest = np.finfo(full_dtype).tiny
    steps = [1.0, -1.0, 1.5, -1.5, float(smallest), -float(smallest), 3e5, -3e5, 1e-30]
    for value in [full_dtype.type(0), *(full_dtype.type(step) for step in steps)]:
        near = np.nextafter(value, full_dtype.type(INF)), np.nextafter(value, full_dtype.type(-INF))
        row = np.array([near[1], value, near[0], value], full_dtype)
        row[np.abs(row) < smallest] = 0
        for label, ties in itertools.product(range(4), TIES):
            rank, argmax, top = python_scores(row.tolist(), label, ties, 4)
            for rows in (1, 20):
                x = np.tile(row, (rows, 1))
                found = sf.target_scores(x, np.full(rows, label), ties=ties, top_k=4)
                assert (found.rank == rank).all()
                assert (found.argmax == argmax).all()
                assert found.top_indices is not None
                assert (found.top_indices == top).all()


def test_logits_are_compared_as_they_are_given() -> None:
    """Not as a result of fewer digits, or a division, leaves them."""
    x = np.array([[1.0, 1.0 + 2**-40, 1.0 - 2**-40]])
    found = sf.target_scores(x, [0], dtype=np.float16, top_k=3)
    assert (found.rank, found.argmax) == (1, 1)
    assert found.top_indices is not None
    assert found.top_indices.tolist() == [[1, 0, 2]]
    near = np.array([[1.0, 1 + 2**-23]], np.float32)
    assert sf.target_scores(near, [0], temperature=1e6).rank == 1


# Bits


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_prob_has_the_bits_of_the_loss(dtype: np.dtype, temperature: float) -> None:
    for classes in CLASS_COUNTS:
        logits = rows_with_gaps(classes, dtype)
        labels = target_for("labels", logits)
        options: dict[str, Any] = {"temperature": temperature}
        losses = sf.cross_entropy(logits, labels, reduction="none", **options)
        for more in ({}, {"entropy": True}, {"top_k": 2}):
            found = sf.target_scores(logits, labels, **options, **more)
            np.testing.assert_array_equal(found.log_prob, 0 - losses)


@pytest.mark.parametrize(
    "forced",
    [
        {"passes": "along", "rows_at_once": 1},
        {"passes": "across", "batch": 1},
        {"passes": "across", "batch": 4, "rest_along": True},
        {"gather": True},
        {"rows_per_task": 16, "threads": 2},
        {"passes": "along", "by_chunks": True, "threads": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(37, 3), (37, 100), (19, 9000)])
def test_any_plan_gives_the_same_bits(
    full_dtype: np.dtype, shape: tuple[int, int], forced: dict[str, Any]
) -> None:
    if "by_chunks" in forced and shape[1] < 9000:
        pytest.skip("one chunk")
    random = np.random.default_rng(1)
    logits = random.normal(scale=3, size=shape).astype(full_dtype)
    logits[::3, 1] += 20
    labels = random.integers(0, shape[1], shape[0])
    labels[::2] = logits[::2].argmax(axis=1)
    options: dict[str, Any] = {"entropy": True, "top_k": 3}
    with sf.num_threads(1):
        expected = sf.target_scores(logits, labels, **options)
        with execute.forcing(**forced):
            same_bits(sf.target_scores(logits, labels, **options), expected)


@pytest.mark.parametrize("classes", [3, 100, 9000])
def test_bits_do_not_depend_on_what_is_asked_for_or_on_the_layout(
    dtype: np.dtype, classes: int
) -> None:
    logits = rows_with_gaps(classes, dtype)
    labels = target_for("labels", logits)
    full = sf.target_scores(logits, labels, entropy=True, top_k=2)
    plain = full._replace(entropy=None, top_indices=None, top_log_probs=None)
    same_bits(sf.target_scores(logits, labels), plain)
    same_bits(sf.target_scores(logits.T.copy(), labels, 0, entropy=True, top_k=2), full)
    with sf.num_threads(3):
        same_bits(sf.target_scores(logits[:, ::-1].copy()[:, ::-1], labels), plain)
        swapped = logits if dtype.name == "bfloat16" else logits.astype(dtype.newbyteorder())
        same_bits(sf.target_scores(swapped, labels, entropy=True, top_k=2), full)
        for k in range(0, len(logits), 3):
            one = sf.target_scores(logits[k], labels[k])
            assert [one.log_prob, one.rank, one.logsumexp] == [
                full.log_prob[k], full.rank[k], full.logsumexp[k]
            ]  # fmt: skip


# Edge values

BOTH = pytest.mark.parametrize("function", [sf.target_scores, sf.reference.target_scores])
ROWS = pytest.mark.parametrize("rows", [1, 20])  # along and across


@BOTH
@ROWS
@pytest.mark.parametrize(
    ("row", "logsumexp"),
    [
        ([0.0, NAN, 1.0], NAN),
        ([NAN, 0.0, 1.0], NAN),
        ([0.0, 1.0, NAN], NAN),
        ([INF, 0.0, 1.0], INF),
        ([0.0, INF, INF], INF),
        ([INF, NAN, 1.0], NAN),
        ([-INF, -INF, -INF], -INF),
        ([-INF, NAN, -INF], NAN),
        ([NAN, NAN, NAN], NAN),
    ],
)
def test_rows_that_are_not_finite(
    function: Any, row: list[float], logsumexp: float, rows: int, dtype: np.dtype
) -> None:
    x = np.tile(np.array(row).astype(dtype), (rows, 1))
    for label in range(3):
        found = function(x, np.full(rows, label), entropy=True, top_k=2)
        for values in (found.log_prob, found.entropy, found.top_log_probs):
            assert np.isnan(values.astype(float)).all()
        for indices in (found.rank, found.argmax, found.top_indices):
            assert (indices == -1).all()
        np.testing.assert_array_equal(found.logsumexp.astype(float), logsumexp)
        ignored = function(x, np.full(rows, -100))
        assert (ignored.log_prob == 0).all()
        assert (ignored.rank == -1).all()


@BOTH
@ROWS
def test_ignored_targets(function: Any, rows: int) -> None:
    x = np.tile([2.0, 5.0, 1.0], (rows, 1))
    for ignored in (-100, 1):
        target = np.full(rows, ignored)
        found = function(x, target, ignore_index=ignored, entropy=True, top_k=1)
        assert not np.signbit(found.log_prob).any()
        assert (found.log_prob == 0).all()
        assert (found.rank == -1).all()
        assert (found.argmax == 1).all()
        assert (found.top_indices == 1).all()
        np.testing.assert_allclose(found.logsumexp, truth.logsumexp(x).astype(float), 1e-15)
        np.testing.assert_allclose(found.entropy, truth.entropy(x).astype(float), 1e-15)


@BOTH
@ROWS
@pytest.mark.parametrize("ties", TIES)
def test_classes_at_minus_infinity(function: Any, rows: int, ties: str) -> None:
    row = [-INF, 1.0, -INF, 0.5, -INF]
    x = np.tile(row, (rows, 1))
    for label in range(5):
        found = function(x, np.full(rows, label), ties=ties, top_k=5)
        rank, argmax, top = python_scores(row, label, ties, 5)
        assert (found.rank == rank).all()
        assert (found.argmax == argmax).all()
        assert (found.top_indices == top).all()
        assert (found.top_log_probs[:, 2:] == -INF).all()
        assert ((found.log_prob == -INF) == (row[label] == -INF)).all()


@BOTH
@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("shape", [(2, 5), (20, 5), (40, 70), (3, 5000)])
def test_where_leaves_the_others_out(function: Any, shape: tuple[int, int], ties: str) -> None:
    """As if the excluded classes were not there; they may hold anything."""
    random = np.random.default_rng(7)
    x = random.integers(0, 4, shape).astype(float)
    x[random.random(shape) < 0.3] = -INF
    allowed = random.random(shape) < 0.6
    allowed[:, 0], x[:, 0] = True, 1.5
    dirty = np.where(allowed, x, random.choice([NAN, INF, 1e30, -INF], shape))
    labels = random.integers(0, shape[1], shape[0])
    top_k = 5
    found = function(
        dirty, labels, where=allowed, ties=ties, top_k=top_k, entropy=True, temperature=2.0
    )
    for k, (row, kept, label) in enumerate(zip(x, allowed, labels, strict=True)):
        classes = np.flatnonzero(kept)
        place = int((classes < label).sum()) if kept[label] else 0
        rank, argmax, top = python_scores(row[kept].tolist(), place, ties, top_k)
        wanted = [*classes[top], *[-1] * (top_k - len(top))]
        assert found.top_indices[k].tolist() == wanted
        assert found.argmax[k] == classes[argmax]
        assert found.rank[k] == (rank if kept[label] else -1)
        right = truth.log_softmax(row[kept], temperature=2.0)
        wanted_log_prob = float(right[place]) if kept[label] else -INF
        np.testing.assert_allclose(found.log_prob[k], wanted_log_prob, 1e-14)
        np.testing.assert_allclose(
            found.entropy[k], float(truth.entropy(row[kept], temperature=2.0)), 1e-14
        )
        found_top = found.top_log_probs[k]
        np.testing.assert_allclose(found_top[: len(top)], right[top].astype(float), 1e-14)
        assert (found_top[len(top) :] == -INF).all()


@BOTH
def test_a_mask_that_allows_nothing(function: Any) -> None:
    found = function(np.zeros((2, 3)), [0, -100], where=False, entropy=True, top_k=1)
    np.testing.assert_array_equal(found.log_prob, [NAN, 0])
    np.testing.assert_array_equal(found.logsumexp, [-INF, -INF])
    np.testing.assert_array_equal(found.entropy, [NAN, NAN])
    assert found.argmax.tolist() == [-1, -1]
    assert found.rank.tolist() == [-1, -1]
    assert found.top_indices.tolist() == [[-1], [-1]]


@BOTH
def test_no_rows_and_no_classes(function: Any) -> None:
    found = function(np.zeros((0, 3)), np.zeros(0, int), top_k=2, entropy=True)
    assert found.log_prob.shape == found.entropy.shape == (0,)
    assert found.top_indices.shape == found.top_log_probs.shape == (0, 2)
    found = function(np.zeros((2, 0)), [-100, -100])
    assert found.logsumexp.tolist() == [-INF, -INF]
    assert found.rank.tolist() == found.argmax.tolist() == [-1, -1]
    with pytest.raises(IndexError, match=r"target\[1\] is 0"):
        function(np.zeros((2, 0)), [-100, 0])


@BOTH
def test_a_single_row_gives_scalars(function: Any) -> None:
    found = function(np.array([1.0, 3.0, 2.0]), 2, entropy=True, top_k=2)
    assert all(np.ndim(item) == 0 for item in found[:5])
    assert (found.rank, found.argmax) == (1, 1)
    assert found.rank.dtype == found.argmax.dtype == found.top_indices.dtype == np.int64
    assert found.top_indices.tolist() == [1, 2]


@BOTH
def test_confident_rows_keep_their_digits(function: Any) -> None:
    """A gap of 20: everything is made of exp(-20), which a float32 of 1 would swallow."""
    found = function(np.array([[20.0, 0.0]], np.float32), [0], entropy=True, top_k=2)
    small = math.exp(-20)
    assert math.isclose(found.log_prob[0], -small, rel_tol=1e-6)
    assert math.isclose(found.entropy[0], 21 * small, rel_tol=1e-6)
    assert math.isclose(found.top_log_probs[0, 0], -small, rel_tol=1e-6)
    low = function(np.array([[0.0, -20.0]], np.float32), [1])
    assert math.isclose(low.logsumexp[0], small, rel_tol=1e-6)


def test_scores_are_those_of_pytorch(torch: Any) -> None:
    random = np.random.default_rng(0)
    x = random.normal(scale=3, size=(50, 300))
    labels = random.integers(0, 300, 50)
    found = sf.target_scores(x, labels, top_k=7, entropy=True)
    logits = torch.from_numpy(x)
    log_probs = logits.log_softmax(-1)
    values, indices = log_probs.topk(7)
    np.testing.assert_array_equal(found.top_indices, indices.numpy())
    np.testing.assert_allclose(found.top_log_probs, values.numpy(), 1e-13)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    np.testing.assert_allclose(found.entropy, entropy.numpy(), 1e-13)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="none")
    np.testing.assert_allclose(found.log_prob, -loss.numpy(), 1e-13)


# Of hidden states and a class matrix


@pytest.mark.parametrize("memory", [20_000, 256 * 2**20])
@pytest.mark.parametrize("bias", [False, True])
def test_scores_of_hidden_states(dtype: np.dtype, memory: int, bias: bool) -> None:
    """Small integers: the logits are exact, so the bits are those of the scores of logits."""
    random = np.random.default_rng(0)
    hidden = random.integers(-3, 4, (4, 15, 6)).astype(dtype)
    matrix = random.integers(-3, 4, (200, 6)).astype(dtype)
    linear_bias = random.integers(-3, 4, 200).astype(dtype) if bias else None
    target = random.integers(0, 200, (4, 15))
    target[0, 3] = target[2] = -1
    compute = np.promote_types(np.float32, np.float32 if dtype.itemsize == 2 else dtype)
    logits = hidden.astype(compute) @ matrix.astype(compute).T
    if linear_bias is not None:
        logits = logits + linear_bias.astype(compute)
    allowed = random.random(200) < 0.8
    for options in (
        {}, {"entropy": True, "top_k": 5, "ties": "max"}, {"temperature": 0.5, "where": allowed},
        {"softcap": 4.0, "entropy": True, "top_k": 3},
    ):  # fmt: skip
        found = sf.linear_target_scores(
            hidden, matrix, target, linear_bias=linear_bias, memory=memory, ignore_index=-1,
            **options,
        )  # fmt: skip
        wanted = sf.target_scores(logits, target, ignore_index=-1, **options)
        for name, got, right in zip(found._fields, found, wanted, strict=True):
            if right is None:
                assert got is None
                continue
            assert got is not None
            right = right if right.dtype == np.int64 else right.astype(dtype)
            assert (got.dtype, got.shape) == (right.dtype, right.shape), name
            np.testing.assert_array_equal(got, right)
    losses = sf.linear_cross_entropy(
        hidden, matrix, target, linear_bias=linear_bias, ignore_index=-1, reduction="none"
    )
    plain = sf.linear_target_scores(
        hidden, matrix, target, linear_bias=linear_bias, ignore_index=-1, memory=memory
    )
    np.testing.assert_array_equal(plain.log_prob, 0 - losses)


def test_scores_of_hidden_states_by_the_reference() -> None:
    random = np.random.default_rng(0)
    hidden, matrix = random.normal(size=(9, 5)), random.normal(size=(30, 5))
    target = random.integers(0, 30, 9)
    for dtype in (None, np.float32, np.longdouble):
        found = sf.linear_target_scores(hidden, matrix, target, top_k=3, dtype=dtype)
        wanted = sf.reference.linear_target_scores(hidden, matrix, target, top_k=3, dtype=dtype)
        for got, right in zip(found, wanted, strict=True):
            assert (got is None) == (right is None)
            if got is not None and right is not None:
                assert got.dtype == right.dtype
                np.testing.assert_allclose(got, right, 1e-5)
    row = sf.linear_target_scores(hidden[0], matrix, 3)
    assert row.rank.ndim == 0
    none = sf.linear_target_scores(hidden[:0], matrix, target[:0], top_k=2)
    assert none.top_indices is not None
    assert none.top_indices.shape == (0, 2)


@pytest.mark.parametrize("module", [sf, sf.reference])
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"where": [True, False]}, ValueError, r"where must have one value.*\(3,\).*\(2,\)"),
        ({"where": np.ones((2, 3), bool)}, ValueError, "where must have one value"),
        ({"where": [1, 0, 1]}, TypeError, "where must hold booleans"),
        ({"memory": 0}, ValueError, "memory must be > 0"),
        ({"top_k": 4}, ValueError, r"top_k must be in \[0, 3\]"),
        ({"ties": "last"}, ValueError, "ties must be"),
        ({"temperature": 0}, ValueError, "temperature must be"),
        ({"softcap": -1}, ValueError, "softcap must be"),
        ({"target": [0, 3]}, IndexError, r"target\[1\] is 3"),
        ({"target": np.zeros((2, 3))}, TypeError, "class probabilities"),
        ({"target": [0]}, ValueError, "target of class indices must have"),
        ({"linear_weight": np.zeros((3, 4))}, ValueError, "linear_weight must have"),
        ({"linear_bias": np.zeros(2)}, ValueError, "linear_bias must have"),
        ({"dtype": "int32"}, TypeError, "dtype must be"),
    ],
)
def test_errors_of_hidden_states(
    module: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    given = {"hidden": np.zeros((2, 5)), "linear_weight": np.zeros((3, 5)), "target": [0, 2]}
    with pytest.raises(error, match=words):
        module.linear_target_scores(**(given | options))


def test_too_little_memory_says_how_much_it_takes() -> None:
    with pytest.raises(ValueError, match=r"memory must be at least \d+ bytes"):
        sf.linear_target_scores(np.zeros((2, 5)), np.zeros((3, 5)), [0, 2], memory=10)


def test_softcap(full_dtype: np.dtype) -> None:
    """All by the capped logits, but comparisons, which see more than what saturates."""
    random = np.random.default_rng(1)
    for classes in (3, 60, 9000):
        logits = random.normal(scale=8, size=(21, classes)).astype(full_dtype)
        logits[:, :3] = [1e6, 3e6, 2e6]
        logits[::3, 1] = -INF
        labels = random.integers(0, min(classes, 5), 21)
        found = sf.target_scores(logits, labels, entropy=True, top_k=2, softcap=5.0)
        plain = sf.target_scores(logits, labels, top_k=2)
        for name in ("rank", "argmax", "top_indices"):
            np.testing.assert_array_equal(getattr(found, name), getattr(plain, name))
        log_probs = truth.log_softmax(logits, softcap=5.0)
        close = {"rtol": 0, "atol": 40 * float(np.finfo(full_dtype).eps)}
        label_log_probs = np.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0]
        np.testing.assert_allclose(found.log_prob, label_log_probs, **close)
        np.testing.assert_allclose(found.logsumexp, truth.logsumexp(logits, softcap=5.0), **close)
        np.testing.assert_allclose(found.entropy, truth.entropy(logits, softcap=5.0), **close)
        best = np.take_along_axis(log_probs, plain.top_indices, axis=1)
        np.testing.assert_allclose(found.top_log_probs, best, **close)


# The example


def test_example_of_a_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = Path(__file__).resolve().parent.parent / "examples"
    if not folder.is_dir():
        pytest.skip("the examples are not beside the tests")
    monkeypatch.syspath_prepend(str(folder))
    example = importlib.import_module("text_scores")
    path = tmp_path / "logits.npy"
    tokens = example.write_logits(path, 300, 500)
    found = example.scores_of(path, tokens)
    logits = np.load(path)
    log_probs = truth.log_softmax(logits)
    own = np.take_along_axis(log_probs, tokens[:, None], axis=1)
    order = np.argsort(-logits, axis=1, kind="stable")
    right = {
        "perplexity": np.exp(-own.mean()),
        "accuracy": (order[:, 0] == tokens).mean(),
        "top-5 accuracy": (order[:, :5] == tokens[:, None]).any(axis=1).mean(),
        "mean entropy, nats": truth.entropy(logits).mean(),
    }
    assert found == pytest.approx({name: float(value) for name, value in right.items()}, rel=1e-5)
