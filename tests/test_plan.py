"""How a call is laid out and planned; that any plan gives the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

import softce_fast as sf
from layouts import assert_same_bits
from softce_fast import _dispatch
from softce_fast._kernels import execute

Array = NDArray[Any]
Plan = dict[str, Any]
Threshold = execute.Threshold

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
LANES = {"float32": 16, "float64": 8}
CHUNK = 4096

assert _dispatch.isa  # importing it makes its kernels serve


def classes_across(dtype: str) -> int:
    """Longest rows without neighbours that go across."""
    return Threshold.ACROSS_CLASSES * LANES[dtype] // LANES["float32"]


def one_thread(_: int) -> int:
    return 1


def plan_of(call: Callable[[], object]) -> Plan:
    with execute.recording() as plans:
        call()
    (plan,) = plans
    return plan


def softmax_plan(
    x: Array,
    axes: tuple[int, ...] = (-1,),
    out: Array | None = None,
    where: Array | None = None,
    *,
    log: bool = False,
    threads: int = 1,
) -> Plan:
    axes = tuple(sorted(axis % x.ndim for axis in axes))
    if out is None:
        out = np.empty(x.shape, np.float32 if x.dtype.itemsize < 8 else x.dtype)
    return plan_of(lambda: execute.softmax(x, out, where, axes, log, 1.0, False, lambda _: threads))


def loss_plan(
    logits: Array, gradient: Array | None = None, *, threads: int = 1, **options: Any
) -> Plan:
    """Plan of a cross-entropy along the last axis."""
    labels = None if "probabilities" in options else np.zeros(logits.shape[:-1], np.int64)
    return plan_of(
        lambda: execute.cross_entropy(
            logits, labels, options.get("probabilities"), None, options.get("losses"), gradient,
            None, logits.ndim - 1, options.get("class_weight"), options.get("sample_weight"),
            options.get("label_smoothing", 0.0), options.get("z_loss", 0.0), 1.0, 0.0, True,
            options.get("denominator"), -100, (0, 0, 0), lambda _: threads,
            options.get("dtype"),
        )
    )  # fmt: skip


def zeros(*shape: int, dtype: Any = np.float32) -> Array:
    return np.zeros(shape, dtype)


# ---- layout --------------------------------------------------------------------------------------


def layout(plan: Plan) -> tuple[int, int, tuple[int, ...]]:
    return plan["row_axes"], plan["class_axes"], plan["lengths"]


@pytest.mark.parametrize(
    ("x", "axes", "expected"),
    [
        # Neighbours join, however many there are.
        (zeros(2, 3, 4, 5), (3,), (1, 1, (24, 5))),
        (zeros(2, 3, 4, 5), (1,), (2, 1, (2, 20, 3))),
        (zeros(2, 3, 4, 5), (0,), (1, 1, (60, 2))),
        (zeros(2, 3, 4, 5), (2, 3), (1, 1, (6, 20))),
        (zeros(2, 3, 4, 5), (1, 3), (2, 2, (2, 4, 3, 5))),
        (zeros(2, 3, 4, 5), (0, 1, 2, 3), (0, 1, (120,))),
        # Axes of length 1 are not there.
        (zeros(1, 3, 1, 4, 1), (3,), (1, 1, (3, 4))),
        (zeros(3, 1), (1,), (1, 0, (3,))),
        (zeros(1, 1), (1,), (0, 0, ())),
        (zeros(1, 7), (1,), (0, 1, (7,))),
        # Gaps keep axes apart.
        (zeros(4, 6, 5)[:, :3], (2,), (2, 1, (4, 3, 5))),
        (zeros(4, 6, 5)[:, ::2], (2,), (1, 1, (12, 5))),
        (zeros(4, 3, 10)[:, :, ::2], (2,), (1, 1, (12, 5))),
        (zeros(4, 3, 10)[:, :, :5], (1, 2), (1, 2, (4, 3, 5))),
        # Axes that run backwards join as well; one that does alone stays alone.
        (zeros(4, 3, 5)[::-1, ::-1], (2,), (1, 1, (12, 5))),
        (zeros(4, 3, 5)[::-1], (2,), (2, 1, (4, 3, 5))),
        # Rows stay in C order: in Fortran's order no axes are neighbours.
        (zeros(5, 4, 3).T, (0,), (2, 1, (4, 5, 3))),
        # A window that slides over itself is an array like any other.
        (as_strided(zeros(9), (5, 4), (4, 4)), (1,), (1, 1, (5, 4))),
    ],
)
def test_axes_join(x: Array, axes: tuple[int, ...], expected: tuple[int, ...]) -> None:
    rows = np.empty([n for axis, n in enumerate(x.shape) if axis not in axes], np.float32)
    plan = plan_of(lambda: execute.logsumexp(x, None, rows, None, None, axes, one_thread))
    assert layout(plan) == expected
    assert plan["rows"] * plan["classes"] == x.size
    assert plan["inner"] == (plan["lengths"][plan["row_axes"] - 1] if plan["row_axes"] else 1)


def test_every_array_keeps_axes_apart() -> None:
    x = zeros(4, 3, 5)
    assert layout(softmax_plan(x)) == (1, 1, (12, 5))
    assert layout(softmax_plan(x, out=zeros(4, 6, 5)[:, :3])) == (2, 1, (4, 3, 5))
    assert layout(softmax_plan(x, (1, 2), out=zeros(4, 3, 10)[..., ::2])) == (1, 1, (4, 15))
    assert layout(softmax_plan(x, (1, 2), out=zeros(4, 3, 10)[..., :5])) == (1, 2, (4, 3, 5))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5,), (1, 1, (12, 5))),  # the same for all rows
        ((3, 1), (2, 1, (4, 3, 5))),
        ((4, 1, 1), (2, 1, (4, 3, 5))),
        ((4, 3, 1), (1, 1, (12, 5))),
        ((), (1, 1, (12, 5))),
    ],
)
def test_masks_are_broadcast_by_strides(shape: tuple[int, ...], expected: object) -> None:
    x = zeros(4, 3, 5)
    where = np.broadcast_to(np.ones(shape, bool), x.shape)
    assert layout(softmax_plan(x, where=where)) == expected


def test_binary_losses_take_the_last_joined_axis_as_classes() -> None:
    def binary_plan(x: Array, **weights: Array) -> Plan:
        weight, pos_weight = (
            None if name not in weights else np.broadcast_to(weights[name], x.shape)
            for name in ("weight", "pos_weight")
        )
        arguments = x, x, weight, pos_weight, None, None, True, 1.0, one_thread
        return plan_of(lambda: execute.binary(*arguments))

    assert layout(binary_plan(zeros(4, 3, 5))) == (0, 1, (60,))
    assert layout(binary_plan(zeros(4, 3, 5), weight=zeros(5))) == (1, 1, (12, 5))
    assert layout(binary_plan(zeros(4, 3, 5), pos_weight=zeros(3, 5))) == (1, 1, (4, 15))
    assert layout(binary_plan(zeros(1))) == (0, 0, ())
    # Sums are by task: chunks, whatever the number of threads.
    assert binary_plan(zeros(2 * CHUNK))["tasks"] == 2


# ---- what is computed in, and how exactly --------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "result", "compute"),
    [
        ("float32", "float32", "float32"),
        ("float16", "float16", "float32"),
        (BFLOAT16, BFLOAT16, "float32"),
        (BFLOAT16, "float32", "float32"),
        (">f4", "float32", "float32"),
        ("int16", "float32", "float32"),
        ("uint8", "float16", "float32"),
        ("bool", "float32", "float32"),
        ("int32", "float32", "float64"),
        ("uint64", "float16", "float64"),
        ("float64", "float32", "float64"),
        ("float32", "float64", "float64"),
    ],
)
def test_compute_type(given: Any, result: Any, compute: str) -> None:
    x = zeros(3, 4, dtype=given)
    plan = softmax_plan(x, out=zeros(3, 4, dtype=result))
    assert plan["compute"] == compute
    assert plan["few_digits"] == (np.dtype(result).itemsize == 2)
    # Half types are converted as they are read.
    assert plan["gather"] == (x.dtype != np.dtype(compute) and given not in ("float16", BFLOAT16))
    loss = loss_plan(x, dtype=np.dtype(result))
    assert (loss["compute"], loss["few_digits"]) == (compute, plan["few_digits"])


@pytest.mark.parametrize(("given", "compute"), [("float16", "float32"), ("int8", "float64")])
def test_without_a_dtype_results_have_that_of_the_logits(given: str, compute: str) -> None:
    assert loss_plan(zeros(3, 4, dtype=given))["compute"] == compute


@pytest.mark.parametrize("temperature", [0.9e-20, 1.1e20])
def test_extreme_temperatures_need_float64(temperature: float) -> None:
    x = zeros(3, 4)
    arguments = x, np.empty_like(x), None, (1,), False, temperature, False, one_thread
    assert plan_of(lambda: execute.softmax(*arguments))["compute"] == "float64"


def test_class_weights_far_apart_need_float64() -> None:
    x = zeros(3, 4)
    near = np.array([1.0, 2.0**60, 0.0, np.inf])
    far = np.array([1.0, 2.0**61, 0.0, np.inf])
    for smoothing in (0.0, 0.1):
        for weights, compute in ((near, "float32"), (far, "float64")):
            plan = loss_plan(x, class_weight=weights, label_smoothing=smoothing)
            assert plan["compute"] == compute


@pytest.mark.parametrize(
    "options",
    [
        {"class_weight": np.ones(4)},
        {"sample_weight": np.ones(3)},
        {"z_loss": 0.1},
        {"label_smoothing": 0.1},
        {"probabilities": zeros(3, 4, dtype=np.float16)},
    ],
)
def test_weights_and_dense_targets_need_all_digits(options: dict[str, Any]) -> None:
    x = zeros(3, 4, dtype=np.float16)
    assert loss_plan(x)["few_digits"]
    assert not loss_plan(x, **options)["few_digits"]


@pytest.mark.parametrize("sign", [-1, 1])
def test_few_digits_have_a_range(sign: int) -> None:
    """What multiplies gradients is put together with 1 / sum: both fit in one number."""
    x = zeros(8, 5, dtype="f2")
    for bits, few in ((Threshold.SCALE_BITS, True), (Threshold.SCALE_BITS + 1, False)):
        assert loss_plan(x, denominator=2.0 ** (sign * bits))["few_digits"] == few


# ---- thresholds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_packed_rows_go_across_up_to_a_length(dtype: str) -> None:
    lanes = LANES[dtype]
    longest = classes_across(dtype)
    for rows, classes, passes in (
        (lanes, longest, "across"),
        (lanes, longest + 1, "along"),
        (lanes - 1, longest, "along"),
        (Threshold.ACROSS_ROWS, lanes, "across"),
        (Threshold.ACROSS_ROWS - 1, lanes, "along"),
        (Threshold.ACROSS_ROWS, lanes + 1, "along"),
    ):
        assert softmax_plan(zeros(rows, classes, dtype=dtype))["passes"] == passes


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_taken_element_by_element_go_across_up_to_a_length(dtype: str) -> None:
    longest = classes_across(dtype)
    for rows, classes, passes in (
        (Threshold.ACROSS_ROWS, longest, "across"),
        (Threshold.ACROSS_ROWS - 1, longest, "along"),
        (Threshold.ACROSS_ROWS, longest + 1, "along"),
    ):
        plan = softmax_plan(zeros(rows, 2 * classes, dtype=dtype)[:, ::2])
        assert plan["passes"] == passes
        assert plan["gather"]


def test_neighbouring_rows_go_across_whatever_their_length() -> None:
    lanes = LANES["float32"]
    for inner, classes, passes in (
        (lanes, 9000, "across"),
        (lanes - 1, CHUNK + 1, "along"),
        (lanes - 1, CHUNK, "across"),
        (Threshold.SHORT_RUN, CHUNK, "across"),
        (Threshold.SHORT_RUN - 1, Threshold.SHORT_RUN_CLASSES, "across"),
        (Threshold.SHORT_RUN - 1, Threshold.SHORT_RUN_CLASSES + 1, "along"),
    ):
        with execute.forcing(pick=False):
            assert softmax_plan(zeros(3, classes, inner), (1,))["passes"] == passes
    for inner in (Threshold.FEWEST_NEIGHBOURS, Threshold.FEWEST_NEIGHBOURS - 1):
        plan = softmax_plan(zeros(5, 3, inner), (1,))
        assert plan["runs"] == (inner == Threshold.FEWEST_NEIGHBOURS)
    for inner in (lanes, lanes - 1):
        plan = softmax_plan(zeros(5, 3, inner, dtype=np.float16), (1,))
        assert plan["runs"] == (inner == lanes)
    assert softmax_plan(zeros(9000, Threshold.ACROSS_ROWS - 1), (0,))["passes"] == "along"


def test_rows_are_picked_out_of_few_neighbours() -> None:
    """As many as half a vector of bytes has elements, or fewer; long rows where registers do it."""
    permutes = _dispatch.isa == "avx512"
    for dtype, lanes in ("float32", 16), ("float16", 16), ("float64", 8):
        for inner in 2, lanes - 1:
            plan = softmax_plan(zeros(4, 100, inner, dtype=dtype), (1,))
            assert plan["pick"] == (permutes or inner < Threshold.SHORT_RUN)
            assert plan["gather"]
            assert plan["passes"] == "across"
        for inner in 1, lanes:
            assert not softmax_plan(zeros(4, 100, inner, dtype=dtype), (1,))["pick"]
    x = zeros(4, 100, 3)
    for few in zeros(4, 100, 5)[..., :3], zeros(4, 200, 3)[:, ::2], zeros(4, 100, 3, 3)[..., 0]:
        assert softmax_plan(few, (1,))["pick"]
    for none in x.astype(x.dtype.newbyteorder()), x[:, ::-1]:
        assert not softmax_plan(none, (1,))["pick"]
    assert not softmax_plan(x, (1,), where=np.ones(x.shape, bool))["pick"]
    for inner, more, picked in (
        (Threshold.SHORT_RUN - 1, 0, True),
        (Threshold.SHORT_RUN - 1, 1, permutes),
        (Threshold.SHORT_RUN, 0, permutes),
        (Threshold.SHORT_RUN, 1, True),
    ):
        for dtype in LANES:
            x = zeros(4, classes_across(dtype) + more, inner, dtype=dtype)
            assert softmax_plan(x, (1,))["pick"] == picked
    # Of long rows those of a block are read together, but for what would not be in a cache.
    assert softmax_plan(zeros(4, CHUNK + 1, 3), (1,))["rows_at_once"] == (3 if permutes else 1)
    most = Threshold.PANEL_BYTES // 4 // 3
    assert softmax_plan(zeros(1, most + 1, 3), (1,))["rows_at_once"] == 1


def test_neighbouring_rows_are_read_in_place() -> None:
    """Where no group, or few, would be short of rows."""
    lanes = LANES["float32"]
    for inner, gather in (
        (lanes, False),
        (lanes - 1, True),
        (lanes + 1, True),
        (2 * lanes, False),
        (Threshold.WHOLE_RUN * lanes - 1, True),
        (Threshold.WHOLE_RUN * lanes + 1, False),
    ):
        plan = softmax_plan(zeros(3, 1000, inner), (1,))
        assert (plan["passes"], plan["gather"]) == ("across", gather)
    x = zeros(3, 1000, Threshold.WHOLE_RUN * lanes)
    assert softmax_plan(x, (1,), where=np.ones(x.shape, bool))["gather"]
    assert softmax_plan(x.astype(np.float16), (1,))["gather"]


def test_batches_of_packed_rows() -> None:
    for classes, batch in (
        (2, Threshold.BATCH),
        (Threshold.BATCH_CLASSES // Threshold.BATCH, Threshold.BATCH),
        (Threshold.BATCH_CLASSES // Threshold.BATCH + 1, Threshold.BATCH - 1),
        (Threshold.BATCH_CLASSES // 2, 2),
        (Threshold.BATCH_CLASSES // 2 + 1, 1),
        (Threshold.ACROSS_CLASSES, 1),
    ):
        assert softmax_plan(zeros(64, classes))["batch"] == batch
    # Class probabilities, and what is added up, lie in the first cache, too.
    third = Threshold.BATCH_CLASSES // (3 * 2)
    for classes, batch in ((third, 2), (third + 1, 1)):
        x = zeros(64, classes)
        assert loss_plan(x, probabilities=x)["batch"] == batch


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_batches_of_rows_in_place(dtype: str) -> None:
    """As wide as memory likes it, but not so wide that threads get nothing to do."""
    lanes = LANES[dtype]
    enough = Threshold.MOST_BATCH * lanes * Threshold.FEWEST_TASKS
    second = Threshold.IN_PLACE_BYTES // 64  # classes of one group
    for rows, classes, threads, batch in (
        (enough, 3, 1, Threshold.MOST_BATCH),
        (enough - 1, 3, 1, Threshold.MOST_BATCH - 1),
        (lanes, 3, 1, 1),
        (enough, second // 12, 1, 12),
        (enough, second // Threshold.WIDE_BATCH + 1, 1, Threshold.WIDE_BATCH),
        (enough, CHUNK + 1, 1, Threshold.WIDE_BATCH),
        (8 * lanes - 1, CHUNK + 1, 2, 3),
        (8 * lanes, CHUNK + 1, 2, 4),
    ):
        plan = softmax_plan(zeros(classes, rows, dtype=dtype), (0,), threads=threads)
        assert not plan["gather"]
        assert plan["batch"] == batch
        assert plan["rows_per_task"] % (batch * lanes) == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_batches_of_copied_rows(dtype: str) -> None:
    """As wide as the cache holds them."""
    lanes = LANES[dtype]
    rows = Threshold.MOST_BATCH * lanes * Threshold.FEWEST_TASKS
    panel = Threshold.PANEL_BYTES // 64  # classes of one group
    for classes, log, batch in (
        (3, False, Threshold.MOST_BATCH),
        (panel // 12, False, 12),
        (panel // 12, True, 6),
        (CHUNK + 1, False, panel // CHUNK),
    ):
        x = zeros(classes, rows, dtype=dtype)
        assert softmax_plan(x, (0,), where=x == 0, log=log)["batch"] == batch
    target = zeros(rows, 100, dtype=dtype).copy(order="F")
    logits = target.copy(order="F")
    assert loss_plan(logits, probabilities=target)["batch"] == min(
        Threshold.MOST_BATCH, panel // 300
    )


def test_batches_of_short_runs_are_narrow() -> None:
    lanes = LANES["float32"]
    for inner, batch in (
        (lanes - 1, Threshold.BATCH),
        (lanes, Threshold.BATCH),
        (lanes + 1, Threshold.MOST_BATCH),
        (6 * lanes - 1, 6),
    ):
        assert softmax_plan(zeros(1000, 3, inner), (1,))["batch"] == batch


def test_rows_at_once_fit_the_first_level_cache() -> None:
    for classes in (121, 1000, Threshold.WORK_AT_ONCE, 2 * Threshold.WORK_AT_ONCE):
        plan = softmax_plan(zeros(3, classes))
        assert plan["rows_at_once"] == max(1, min(16, Threshold.WORK_AT_ONCE // classes))


def test_rows_left_over_go_along() -> None:
    assert softmax_plan(zeros(17, 17))["rest_along"]
    assert not softmax_plan(zeros(16, 17))["rest_along"]
    assert not softmax_plan(zeros(17, 16))["rest_along"]
    assert not softmax_plan(zeros(17, 17), (0,))["rest_along"]


def test_few_long_rows_are_shared_out_by_chunks() -> None:
    for rows, classes, threads, tasks in (
        (7, 2 * CHUNK, 2, 14),
        (7, 2 * CHUNK + 1, 2, 21),
        (11, CHUNK, 3, None),
        (8, 2 * CHUNK, 2, None),
        (7, 2 * CHUNK, 1, None),
    ):
        plan = softmax_plan(zeros(rows, classes), threads=threads)
        assert plan["by_chunks"] == (tasks is not None)
        assert tasks is None or plan["tasks"] == tasks


def test_exponentials_are_kept() -> None:
    half = np.float16
    row = Threshold.KEPT_CLASSES
    for shape, dtype, log, keep, in_output in (
        ((3, 500), np.float32, False, True, True),
        ((3, 500), np.float32, True, False, False),
        ((3, 500), half, False, True, False),
        ((16, 16), np.float32, False, False, False),  # they go across
        ((3, row), half, False, True, False),
        ((3, row + 1), half, False, False, False),
        ((3, row + 1), np.float32, False, True, True),
    ):
        x = zeros(*shape, dtype=dtype)
        plan = softmax_plan(x, out=np.empty_like(x), log=log)
        assert (plan["keep"], plan["keep_in_output"]) == (keep, in_output)
    x = zeros(3, 500)
    for plan in (
        softmax_plan(x, out=x),
        softmax_plan(x, where=np.ones(x.shape, bool)),
        softmax_plan(x, out=zeros(3, 1000)[:, ::2]),
        softmax_plan(x, out=zeros(3, 500, dtype=">f4")),
    ):
        assert (plan["keep"], plan["keep_in_output"]) == (True, False)
    weight = np.ones(500)
    logits, gradient = zeros(1, 500, dtype="f8"), weight[None]
    assert not loss_plan(logits, gradient, class_weight=weight)["keep_in_output"]


def test_large_outputs_are_written_past_the_caches() -> None:
    rows = Threshold.LARGE_BYTES // 4000 + 1
    x = zeros(rows, 1000)
    assert softmax_plan(x)["stream"]
    assert not softmax_plan(x[:-1])["stream"]
    assert not softmax_plan(x, out=x)["stream"]
    assert not softmax_plan(x, out=zeros(rows, 2000)[:, ::2])["stream"]
    assert not softmax_plan(x, out=zeros(rows, 1000, dtype=">f4"))["stream"]
    # Elements that no cache line begins with.
    unaligned = np.zeros(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    assert not softmax_plan(x, out=unaligned)["stream"]
    records = np.zeros((rows, 1001), "f4, u1")["f0"][:, :1000]
    assert not softmax_plan(x, out=records)["stream"]
    assert loss_plan(x, np.empty_like(x))["stream"]


def test_shards_that_are_large_together_are_written_past_the_caches() -> None:
    classes = Threshold.SHARD_STREAMED
    rows = Threshold.LARGE_BYTES // (4 * 2 * classes)
    for count, length, streamed in ((rows, classes, True), (rows - 1, classes, False),
                                    (2 * rows - 1, classes - 1, False)):  # fmt: skip
        x = zeros(count, length)
        states = sf.sharded.row_states(x)
        both = sf.sharded.merge(states, states)
        with execute.recording() as plans:
            sf.sharded.softmax(x, both)
        assert plans[0]["stream"] == streamed


def test_neighbouring_rows_are_written_past_the_caches_in_long_runs() -> None:
    lines = 64 // 4
    for inner, streamed in (
        (Threshold.LONG_RUN, True),
        (Threshold.LONG_RUN - lines, False),
        (Threshold.LONG_RUN + 1, False),  # classes that begin within a cache line
    ):
        x = zeros(Threshold.LARGE_BYTES // (4 * 1000 * inner) + 1, 1000, inner)
        assert softmax_plan(x, (1,))["stream"] == streamed


def test_large_outputs_of_long_rows_hold_what_is_kept_up_to_a_size() -> None:
    classes = Threshold.KEPT_CLASSES + 1
    rows = Threshold.KEPT_BYTES // (4 * classes)
    plan = softmax_plan(zeros(rows, classes))
    assert (plan["keep_in_output"], plan["stream"]) == (True, False)
    plan = softmax_plan(zeros(rows + 1, classes))
    assert (plan["keep_in_output"], plan["stream"]) == (False, True)


def test_large_inputs_are_fetched_ahead() -> None:
    rows = Threshold.FETCHED_BYTES // 4000 + 1
    plan = softmax_plan(zeros(rows, 1000))
    assert plan["ahead"] == 2 * plan["rows_at_once"] * 4000
    assert softmax_plan(zeros(rows - 1, 1000))["ahead"] == 0
    assert softmax_plan(zeros(300, CHUNK + 1))["ahead"] == 4 * CHUNK
    strided = softmax_plan(zeros(rows * 10, 200)[:, ::2])
    assert strided["ahead"] == 2 * strided["rows_at_once"] * strided["batch"] * 800
    beside = softmax_plan(zeros(200, rows * 10), (0,))
    assert beside["ahead"] == beside["batch"] * LANES["float32"] * 4
    x = zeros(rows * 25, 40)
    pairs = plan_of(lambda: sf.softmax_backward(x, x))
    assert pairs["ahead"] == 2 * pairs["rows_at_once"] * pairs["batch"] * 160
    assert (
        plan_of(lambda: sf.softmax_backward(x.reshape(-1, 1000), x.reshape(-1, 1000)))["ahead"] == 0
    )
    labels = np.zeros(len(x), np.int64)
    assert plan_of(lambda: sf.nll_loss(x, labels))["ahead"] == Threshold.ROWS_AHEAD * 160
    assert plan_of(lambda: sf.nll_loss(x[:1000], labels[:1000]))["ahead"] == 0


def test_tasks() -> None:
    """A number of rows that the threads do not change."""
    assert softmax_plan(zeros(100_000, 3))["rows_per_task"] == Threshold.ROWS_PER_TASK
    for threads in (1, 2, 5):
        assert softmax_plan(zeros(1000, 1000), threads=threads)["rows_per_task"] == 32
        assert softmax_plan(zeros(100, 9000), threads=threads)["rows_per_task"] == 3
    x = zeros(Threshold.LABELS_PER_TASK + 1, 3)
    labels = np.zeros(len(x), np.int64)
    arguments = x, labels, None, None, 1, None, None, -100, True, (0, 0, 0), one_thread
    assert plan_of(lambda: execute.negative_log(*arguments))["tasks"] == 2


# ---- forced --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("nothing", 1),
        ("tasks", 1),
        ("chunks", 1),
        ("passes", "up"),
        ("passes", 0),
        ("batch", 0),
        ("rows_per_task", 0),
        ("threads", 0),
        ("ahead", -1),
        ("keep", 1),
        ("batch", True),
    ],
)
def test_forcing_what_is_no_plan(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field), execute.forcing(**{field: value}):
        pass


@pytest.mark.parametrize(
    "fields",
    [
        {"rows_at_once": 17},
        {"batch": 17, "passes": "across"},
        {"batch": 2, "passes": "along"},
        {"passes": "across", "by_chunks": True},
        {"by_chunks": True},
        {"rest_along": True, "passes": "along"},
        {"gather": False},
        {"stream": True},
        {"keep": True},
        {"keep_in_output": True},
    ],
)
def test_forcing_what_is_not_possible(fields: dict[str, Any]) -> None:
    """Strided, in place, of logarithms."""
    x = zeros(40, 40)[:, ::2]
    x[...] = 1
    with (
        execute.forcing(**fields),
        pytest.raises(ValueError, match=next(iter(fields))),
    ):
        execute.softmax(x, x, None, (1,), True, 1.0, False, one_thread)
    assert (x == 1).all(), "written before the error"


def test_forced_plans_end() -> None:
    before = softmax_plan(zeros(40, 20))
    with execute.forcing(passes="along"):
        with execute.forcing(rows_at_once=3):
            plan = softmax_plan(zeros(40, 20))
            assert (plan["passes"], plan["rows_at_once"]) == ("along", 3)
        assert softmax_plan(zeros(40, 20))["rows_at_once"] == 16
    with pytest.raises(ZeroDivisionError), execute.forcing(passes="along"):
        raise ZeroDivisionError
    assert softmax_plan(zeros(40, 20)) == before
    with execute.recording() as plans:
        pass
    softmax_plan(zeros(40, 20))
    assert plans == []


FORCED: list[dict[str, Any]] = [
    {"passes": "along"},
    {"passes": "along", "rows_at_once": 1},
    {"passes": "along", "keep": False, "keep_in_output": False},
    {"passes": "along", "keep_in_output": False},
    {"passes": "along", "keep": False, "keep_in_output": False, "stream": True},
    {"passes": "along", "gather": True},
    {"passes": "across"},
    {"passes": "across", "batch": 1},
    {"passes": "across", "batch": 3},
    {"passes": "across", "rest_along": True},
    {"passes": "across", "rest_along": False},
    {"passes": "across", "stream": True},
    {"passes": "across", "gather": True},
    {"passes": "across", "rows_per_task": 48, "threads": 2},
    {"rows_per_task": 5},
    {"ahead": 4096},
]


@pytest.mark.parametrize(
    ("shape", "forced"),
    [
        *((shape, forced) for shape in ((37, 3), (37, 100), (19, 5000)) for forced in FORCED),
        ((19, 5000), {"passes": "along", "by_chunks": True, "threads": 3}),
        ((19, 5000), {"by_chunks": True, "keep": False, "keep_in_output": False}),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.usefixtures("isa")
def test_any_plan_gives_the_same_bits(
    forced: dict[str, Any], shape: tuple[int, int], dtype: str
) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(scale=3, size=shape).astype(dtype)
    labels = rng.integers(0, shape[1], shape[0])
    probabilities = rng.dirichlet(np.ones(shape[1]), shape[0]).astype(dtype)
    factors = rng.normal(size=shape).astype(dtype)
    where = rng.random(shape) < 0.7
    options: list[dict[str, Any]] = [
        {}, {"label_smoothing": 0.1}, {"target": probabilities}, {"where": where},
        {"where": where, "label_smoothing": 0.1}, {"softcap": 5.0},
        {"softcap": 5.0, "where": where, "target": probabilities},
    ]  # fmt: skip

    def results() -> list[Array]:
        outputs = [np.full_like(x, np.nan) for _ in range(2)]
        for log in (False, True):
            execute.softmax(x, outputs[log], None, (1,), log, 1.0, False, one_thread)
        with sf.num_threads(1):
            for chosen in options:
                call = {"target": labels, "reduction": "none", **chosen}
                outputs += sf.cross_entropy_with_grad(x, **call)
            for target in (labels, probabilities):
                outputs += sf.cross_entropy_with_grad_and_hessian(x, target, where=where)
        if "stream" not in forced:  # it has no output of that size
            outputs.extend(np.full((2, len(x)), np.nan, dtype))
            execute.logsumexp(x, factors, outputs[-2], outputs[-1], None, (1,), one_thread)
        return [np.asarray(item) for item in outputs]

    expected = results()
    with execute.forcing(**forced):
        found = results()
    for wanted, got in zip(expected, found, strict=True):
        assert_same_bits(got, wanted)


BORDERS = [k + near for k in (0, 8, 16, 32, 64, 128) for near in (-1, 0, 1) if k + near >= 0]


@pytest.mark.parametrize("forced", [FORCED[0], FORCED[2], FORCED[4]], ids=str)
@pytest.mark.parametrize("classes", [130, 133, 128])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.usefixtures("isa")
def test_classes_that_are_left_out_may_be_anywhere(
    dtype: str, classes: int, forced: dict[str, Any]
) -> None:
    """The label and the maximum, at and beside the borders of vectors and of runs of them."""
    rng = np.random.default_rng(2)
    labels, tops = (item.ravel() for item in np.meshgrid(BORDERS, BORDERS))
    labels, tops = labels % classes, tops % classes
    x = rng.normal(size=(len(labels), classes)).astype(dtype)
    x[np.arange(len(x)), tops] = 9
    probabilities = rng.dirichlet(np.ones(classes), len(x)).astype(dtype)
    calls: list[dict[str, Any]] = [
        {"target": labels}, {"target": labels, "label_smoothing": 0.1},
        {"target": labels, "label_smoothing": 1e-300}, {"target": probabilities},
        {"target": probabilities, "label_smoothing": 0.1},
    ]  # fmt: skip

    def results(**plan: Any) -> list[Array]:
        found: list[Any] = []
        with execute.forcing(**plan), sf.num_threads(1):
            for call in calls:
                found += sf.cross_entropy_with_grad_and_hessian(x, **call)
                found += sf.cross_entropy_with_grad(x, **call)
            if "stream" not in forced:  # they have no output of that size
                found += sf.target_scores(x, labels, entropy=True)[:5]
        return [np.asarray(item) for item in found]

    for wanted, got in zip(results(passes="across"), results(**forced), strict=True):
        assert_same_bits(got, wanted)


@pytest.mark.parametrize("classes", [3, 40])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", BFLOAT16], ids=str)
@pytest.mark.usefixtures("isa")
def test_fetching_elements_ahead_changes_no_loss(dtype: Any, classes: int) -> None:
    """Whatever the labels are, of rows to come or beyond the last one."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(101, classes)).astype(dtype)
    labels = rng.integers(0, classes, len(x))
    labels[::7] = -100
    expected = [0 if label < 0 else -row[label] for row, label in zip(x, labels, strict=True)]
    expected = np.array(expected, dtype)
    order = np.arange(0, 202, 2)
    strided = np.zeros(202, np.int64)
    strided[order] = labels
    spread = np.zeros((202, classes + 1), dtype)[::2, 1:]
    spread[...] = x
    for rows_ahead in (0, 1, 64, 1000):
        with execute.forcing(ahead=rows_ahead * x.strides[0]):
            for given, target in (
                (x, labels), (x, labels.astype(np.int8)), (x, strided[::2]), (spread, labels),
            ):  # fmt: skip
                assert_same_bits(sf.nll_loss(given, target, reduction="none"), expected)
            found = sf.nll_loss(x[::-1], labels[::-1], reduction="none")
            assert_same_bits(found, expected[::-1])


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("classes", [2, 10, 100, 512, CHUNK + 7])
@pytest.mark.usefixtures("isa")
def test_picked_rows_have_the_same_bits(classes: int, dtype: str) -> None:
    """Those of two axes, whose blocks are even, and of three; the last group is not full."""
    rng = np.random.default_rng(1)

    def calls(x: Array, labels: Array, probabilities: Array, out: Array) -> list[Array]:
        loss = sf.cross_entropy_with_grad
        found = [
            sf.softmax(x, axis=-2, out=out).copy(), sf.logsumexp(x, axis=-2),
            sf.softmax_backward(x, out, axis=-2),
            *loss(x, labels, axis=-2, reduction="none", ignore_index=1, grad_out=out),
            *loss(x, labels, axis=-2, reduction="none", label_smoothing=0.1, softcap=5.0),
            *loss(x, probabilities, axis=-2, reduction="none"),
            *sf.cross_entropy_with_grad_and_hessian(x, labels, axis=-2),
            sf.target_scores(x, labels, axis=-2).log_prob,
        ]  # fmt: skip
        return [np.asarray(item) for item in found]

    for lead, inner in ((23,), 2), ((3, 5), 3), ((4,), 7), ((2,), 15):
        x = rng.normal(scale=3, size=(*lead[:-1], lead[-1] + 1, classes, inner)).astype(dtype)
        x = x[..., :-1, :, :]
        labels = rng.integers(0, classes, (*lead, inner))
        probabilities = rng.random(x.shape).astype(dtype)
        # What is beside the rows of an output, and between blocks of them, stays.
        around = np.full((*lead, classes, inner + 1), 7, dtype)
        between = np.full((*lead[:-1], lead[-1] + 1, classes, inner), 7, dtype)
        found = calls(x, labels, probabilities, around[..., 1:])
        found += calls(x, labels, probabilities, between[..., :-1, :, :])
        assert (around[..., 0] == 7).all()
        assert (between[..., -1, :, :] == 7).all()
        with execute.forcing(pick=False):
            expected = calls(x, labels, probabilities, np.empty(x.shape, dtype)) * 2
        for wanted, got in zip(expected, found, strict=True):
            assert_same_bits(got, wanted)
