"""softce_fast.dask against the calls on whole arrays, for every way to chunk."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("dask.array")

import dask
import dask.array as da
from dask.array.utils import assert_eq

import softce_fast as sf
import softce_fast.dask as adapter
from subprocesses import peak_memory, run_function

SHAPE = (4, 3)  # of the rows
CLASSES = 12
CHUNKS = [((4,), (3,)), ((2, 2), (1, 2)), ((1, 0, 3), (3,))]  # of the rows


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    with dask.config.set(scheduler="synchronous"):
        yield


def problem(axis: int, dtype: Any = np.float64) -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    logits = (3 * random.standard_normal((*SHAPE, CLASSES))).astype(dtype)
    labels = random.integers(CLASSES, size=SHAPE)
    labels[0, 1] = -100
    return np.moveaxis(logits, -1, axis).copy(), labels


def chunked(logits: Any, axis: int, chunks: Any) -> Any:
    all_chunks = list(chunks)
    all_chunks.insert(axis % 3, (CLASSES,))
    return da.from_array(logits, chunks=tuple(all_chunks))


def tolerance(dtype: Any) -> float:
    return 16 * float(np.finfo(dtype).eps)


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_softmaxes_and_logsumexp(chunks: Any, axis: int, dtype: Any) -> None:
    logits, _ = problem(axis, dtype)
    x = chunked(logits, axis, chunks)
    result = sf.softmax(logits, axis)
    options = {"rtol": tolerance(result.dtype), "atol": tolerance(result.dtype)}
    for temperature in (1.0, 0.7):
        for name in ("softmax", "log_softmax"):
            ours = getattr(adapter, name)(x, axis, temperature=temperature)
            expected = getattr(sf, name)(logits, axis, temperature=temperature)
            assert ours.chunks == x.chunks
            assert_eq(ours, expected, **options)
    for keepdims in (False, True):
        ours = adapter.logsumexp(x, axis, keepdims=keepdims)
        assert_eq(ours, sf.logsumexp(logits, axis, keepdims=keepdims), **options)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.1, "z_loss": 1e-3, "temperature": 0.5},
    {"weight": np.linspace(0, 2, CLASSES), "ignore_index": 3},
    {"sample_weight": np.linspace(0, 2, 12).reshape(SHAPE), "weight": np.linspace(1, 2, CLASSES)},
    {"denominator": 7.0},
]


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("axis", [1, -1])
def test_cross_entropy(chunks: Any, options: dict[str, Any], axis: int) -> None:
    logits, labels = problem(axis)
    if "ignore_index" in options:
        labels[labels == -100] = 3
    x = chunked(logits, axis, chunks)
    target = da.from_array(labels, chunks=(2, 3))
    for reduction in ("none", "sum", "mean"):
        expected = sf.cross_entropy_with_grad(logits, labels, axis, reduction=reduction, **options)
        for given in (target, labels):
            ours = adapter.cross_entropy_with_grad(x, given, axis, reduction=reduction, **options)
            for result, true in zip(ours, expected, strict=True):
                assert_eq(result, np.asarray(true), rtol=1e-12, atol=1e-14)
            assert ours[1].chunks == x.chunks
        loss = adapter.cross_entropy(x, target, axis, reduction=reduction, **options)
        assert_eq(loss, ours[0])


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("sample_weight", [None, np.linspace(0, 2, 12).reshape(SHAPE)])
def test_class_probabilities(chunks: Any, sample_weight: Any) -> None:
    logits, _ = problem(-1)
    target = np.random.default_rng(1).dirichlet(np.ones(CLASSES), SHAPE)
    for reduction in ("none", "sum", "mean"):
        options = {"reduction": reduction, "sample_weight": sample_weight}
        expected = sf.cross_entropy_with_grad(logits, target, **options)
        x = chunked(logits, -1, chunks)
        for given in (target, da.from_array(target, chunks=(3, 2, 5))):
            ours = adapter.cross_entropy_with_grad(x, given, **options)
            for result, true in zip(ours, expected, strict=True):
                assert_eq(result, np.asarray(true), rtol=1e-12, atol=1e-14)
            assert ours[1].chunks == x.chunks


def test_one_row() -> None:
    logits = da.from_array(np.array([2.0, 1.0, 0.1]))
    expected = sf.cross_entropy_with_grad(logits.compute(), 1)
    for target in (1, da.from_array(np.array(1)), np.array([0.0, 1.0, 0.0])):
        for result, true in zip(
            adapter.cross_entropy_with_grad(logits, target), expected, strict=True
        ):
            assert_eq(result, np.asarray(true), rtol=1e-15)


def test_unknown_chunks_of_rows() -> None:
    logits, labels = problem(-1)
    logits, labels = logits[0], labels[1]
    keep = np.array([True, False, True])
    mask = da.from_array(keep, chunks=2)
    x = da.from_array(logits, chunks=(2, CLASSES))[mask]
    target = da.from_array(labels, chunks=2)[mask]
    ours = adapter.cross_entropy_with_grad(x, target)
    expected = sf.cross_entropy_with_grad(logits[keep], labels[keep])
    for result, true in zip(ours, expected, strict=True):
        np.testing.assert_allclose(result.compute(), true, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(adapter.softmax(x).compute(), sf.softmax(logits[keep]), rtol=1e-12)
    with pytest.raises(ValueError, match="target must be a Dask array where chunks of logits are"):
        adapter.cross_entropy(x, labels[keep])


def test_where_every_row_is_ignored() -> None:
    logits, labels = problem(-1)
    x = chunked(logits, -1, CHUNKS[1])
    loss, grad = adapter.cross_entropy_with_grad(x, np.full_like(labels, -100))
    assert np.isnan(loss.compute())
    assert_eq(grad, np.zeros_like(logits))


def test_nothing_is_computed_before_it_is_asked_for() -> None:
    def explode(_: Any) -> Any:
        raise AssertionError("computed")

    x = da.zeros((4, 6), chunks=(2, 6)).map_blocks(explode, dtype=float, meta=np.empty((0, 0)))
    adapter.cross_entropy_with_grad(x, da.zeros(4, dtype=int, chunks=2))
    adapter.softmax(x)
    adapter.logsumexp(x)


def test_every_task_computes_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    softmax = sf.softmax

    def watched(*arguments: Any, **options: Any) -> Any:
        seen.append(sf.get_num_threads())
        return softmax(*arguments, **options)

    x = adapter.softmax(da.zeros((4, 6), chunks=(2, 6)))
    monkeypatch.setattr(sf, "softmax", watched)
    x.compute()
    assert seen == [1, 1]


def test_the_graph_grows_with_the_chunks_alone() -> None:
    """A few tasks for each chunk of the logits, and the trees of the sums."""
    for parts in (8, 32, 128):
        x = da.zeros((parts, 4), chunks=(1, 4))
        labels = da.zeros(parts, chunks=1, dtype=int)
        graph = dask.optimize(*adapter.cross_entropy_with_grad(x, labels))[0].__dask_graph__()
        assert len(dict(graph)) < 8 * parts


# The class axis in several chunks

CLASS_CHUNKS = [(7, 5), (1, 2, 0, 9), (4, 4, 4)]


@pytest.mark.parametrize("class_chunks", CLASS_CHUNKS)
@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_softmaxes_of_classes_in_chunks(
    class_chunks: Any, chunks: Any, axis: int, dtype: Any
) -> None:
    logits, _ = problem(axis, dtype)
    x = chunked(logits, axis, chunks).rechunk({axis: class_chunks})
    result = sf.softmax(logits, axis)
    options = {"rtol": tolerance(result.dtype), "atol": tolerance(result.dtype)}
    for temperature in (1.0, 0.7):
        for name in ("softmax", "log_softmax"):
            ours = getattr(adapter, name)(x, axis, temperature=temperature)
            assert ours.chunks == x.chunks
            assert_eq(ours, getattr(sf, name)(logits, axis, temperature=temperature), **options)
    for keepdims in (False, True):
        ours = adapter.logsumexp(x, axis, keepdims=keepdims)
        assert_eq(ours, sf.logsumexp(logits, axis, keepdims=keepdims), **options)


@pytest.mark.parametrize("class_chunks", CLASS_CHUNKS)
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    "names", [(), ("weight", "sample_weight"), ("label_smoothing", "z_loss"), ("temperature",)]
)
def test_losses_of_classes_in_chunks(
    class_chunks: Any, axis: int, reduction: str, names: tuple[str, ...]
) -> None:
    logits, labels = problem(axis)
    x = chunked(logits, axis, CHUNKS[1]).rechunk({axis: class_chunks})
    random = np.random.default_rng(1)
    values = {
        "weight": random.uniform(0.5, 2, CLASSES), "sample_weight": random.uniform(0, 2, SHAPE),
        "label_smoothing": 0.1, "z_loss": 0.1, "temperature": 0.5,
    }  # fmt: skip
    options: Any = {name: values[name] for name in names} | {"reduction": reduction}
    for target in (labels, da.from_array(labels, chunks=(3, 1))):
        ours = adapter.cross_entropy_with_grad(x, target, axis, **options)
        right = sf.cross_entropy_with_grad(logits, labels, axis, **options)
        for found, wanted in zip(ours, right, strict=True):
            assert_eq(found, wanted, rtol=1e-13, atol=1e-15)
        assert ours[1].chunks == x.chunks
        assert_eq(adapter.cross_entropy(x, target, axis, **options), right[0], rtol=1e-13)


def test_classes_in_chunks_and_rows_in_unknown_ones() -> None:
    logits, labels = problem(-1)
    x = da.from_array(logits, chunks=(2, 3, 5))
    keep = np.array([True, False, True, True])
    kept, target = x[da.from_array(keep, chunks=2)], da.from_array(labels, chunks=2)
    target = target[da.from_array(keep, chunks=2)].rechunk({1: 3})
    loss, gradient = adapter.cross_entropy_with_grad(kept, target)
    right = sf.cross_entropy_with_grad(logits[keep], labels[keep])
    np.testing.assert_allclose(loss.compute(), right[0], 1e-14)
    np.testing.assert_allclose(gradient.compute(), right[1], 1e-13, 1e-16)


def test_states_go_from_process_to_process() -> None:
    logits, labels = problem(-1)
    x = da.from_array(logits, chunks=(2, 3, 5))
    with dask.config.set(scheduler="processes", num_workers=2):
        loss = adapter.cross_entropy(x, labels).compute()
    assert loss == pytest.approx(sf.cross_entropy(logits, labels), rel=1e-14)


def test_the_graph_of_classes_in_chunks_grows_with_these_alone() -> None:
    for parts in (8, 32, 128):
        x = da.zeros((4, 4 * parts), chunks=(4, 4))
        labels = da.zeros(4, chunks=4, dtype=int)
        graph = dask.optimize(*adapter.cross_entropy_with_grad(x, labels))[0].__dask_graph__()
        assert len(dict(graph)) < 8 * parts


def test_a_label_in_no_chunk() -> None:
    x = da.zeros((4, 6), chunks=(2, 4))
    with pytest.raises(IndexError, match=r"target\[1\] is 6.*\[0, 6\)"):
        adapter.cross_entropy(x, np.array([0, 1, 2, 6])).compute()


@pytest.mark.parametrize("name", adapter.__all__)
def test_chunks_of_the_class_axis_must_be_known(name: str) -> None:
    logits, labels = problem(1)
    x = da.from_array(logits, chunks=(2, 7, 3))
    more = (labels,) if name.startswith("cross") else ()
    function = getattr(adapter, name)
    unknown = x[:, da.from_array(np.arange(CLASSES) > 2, chunks=7)]
    with pytest.raises(ValueError, match="along the class axis, 1, must be known"):
        function(unknown, *more, axis=-2)


def test_class_probabilities_take_classes_in_one_chunk() -> None:
    logits, _ = problem(1)
    x = da.from_array(logits, chunks=(2, 7, 3))
    target = sf.softmax(logits, 1)
    with pytest.raises(NotImplementedError, match=r"\.rechunk\({1: -1}\), got 2 chunks"):
        adapter.cross_entropy(x, target, axis=-2)
    ours = adapter.cross_entropy(x.rechunk({1: -1}), target, axis=-2)  # as the message says
    assert_eq(ours, sf.cross_entropy(logits, target, 1), rtol=1e-13)


def test_errors() -> None:
    x = da.zeros((4, 6), chunks=(2, 6))
    with pytest.raises(TypeError, match=r"x must be a dask.array.Array, got ndarray"):
        adapter.softmax(np.zeros((4, 6)))
    with pytest.raises(TypeError, match=r"softce_fast\.dask"):
        sf.softmax(x)
    with pytest.raises(TypeError, match=r"target.*softce_fast\.dask"):
        sf.cross_entropy(np.zeros((4, 6)), da.zeros(4, dtype=int))
    with pytest.raises(np.exceptions.AxisError):
        adapter.softmax(x, 2)
    labels = np.zeros(4, dtype=int)
    with pytest.raises(ValueError, match="temperature"):
        adapter.cross_entropy(x, labels, temperature=0)
    with pytest.raises(ValueError, match="reduction"):
        adapter.cross_entropy(x, labels, reduction="median")
    with pytest.raises(ValueError, match=r"target must have shape \(4,\)"):
        adapter.cross_entropy(x, labels[:3])
    with pytest.raises(ValueError, match=r"weight must have shape \(6,\)"):
        adapter.cross_entropy(x, labels, weight=np.ones(5))
    with pytest.raises(TypeError, match="target must hold class indices"):
        adapter.cross_entropy(x, labels.astype(float))
    with pytest.raises(IndexError, match="is 6"):
        adapter.cross_entropy(x, labels + 6).compute()


def cluster(processes: bool, **options: Any) -> Any:
    from dask.distributed import LocalCluster

    return LocalCluster(
        n_workers=2, threads_per_worker=1, processes=processes, dashboard_address=None, **options
    )


def on_a_cluster(processes: str) -> None:
    """In a process of its own: workers outlive what starts them."""
    from dask.distributed import Client

    logits, labels = problem(-1)
    target = da.from_array(labels, chunks=(2, 3))
    expected = sf.cross_entropy_with_grad(logits, labels)
    with cluster(processes == "yes") as workers, Client(workers):
        for classes in ((CLASSES,), (7, 5)):
            x = chunked(logits, -1, CHUNKS[2]).rechunk({2: classes})
            results = dask.compute(*adapter.cross_entropy_with_grad(x, target))
            for result, true in zip(results, expected, strict=True):
                np.testing.assert_allclose(result, true, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["yes", "no"])
def test_on_a_cluster(processes: str) -> None:
    pytest.importorskip("distributed")
    run_function(on_a_cluster, processes, timeout=120)


def reduce_more_than_fits(rows_of_chunk: str, classes_of_chunk: str) -> None:
    """Print the most memory of a worker that reduced its part of an array made by its chunks."""
    from dask.distributed import Client

    rows, classes = 2**15, 2**16  # 8 GiB of float32
    ramp = np.linspace(-1, 1, classes, dtype=np.float32)

    def make(block_info: Any = None) -> Any:
        (first, last), (left, right) = block_info[None]["array-location"]
        return np.broadcast_to(ramp[left:right], (last - first, right - left)).copy()

    chunks: Any = da.core.normalize_chunks(
        (int(rows_of_chunk), int(classes_of_chunk)), (rows, classes)
    )
    x = da.map_blocks(make, chunks=chunks, dtype=np.float32, meta=np.empty((0, 0), np.float32))
    labels = da.zeros(rows, chunks=chunks[0], dtype=np.int64)
    with cluster(True, memory_limit="1GB") as workers, Client(workers) as client:
        result = adapter.cross_entropy(x, labels).compute()
        peaks = client.run(peak_memory)
    true = np.log(np.exp(ramp.astype(np.float64)).sum()) - ramp[0]
    assert abs(result - true) < 1e-5, (result, true)
    assert len(peaks) == 2
    print(max(peaks.values()))


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 1])
def test_blocks_are_not_copied(axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = da.from_array(np.zeros((6, 6)), chunks=(6, 3) if axis == 0 else (3, 6))
    blocks = dask.compute(*x.to_delayed().ravel())
    shared = []

    def seen(function: Any) -> Any:
        def call(block: Any, *arguments: Any, **options: Any) -> Any:
            shared.append(any(np.shares_memory(block, other) for other in blocks))
            return function(block, *arguments, **options)

        return call

    results = adapter.logsumexp(x, axis), adapter.cross_entropy(x, np.zeros(6, np.int64), axis)
    for name in ("logsumexp", "cross_entropy"):
        monkeypatch.setattr(sf, name, seen(getattr(sf, name)))
    dask.compute(results)
    assert shared == [True] * 4


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux tells it")
@pytest.mark.parametrize("chunk", [(64, 2**16), (1024, 2**12)])
def test_an_array_of_8_gb_is_reduced_in_less_than_one(chunk: tuple[int, int]) -> None:
    """By rows, and with the classes in 16 chunks."""
    pytest.importorskip("distributed")
    result = run_function(reduce_more_than_fits, *map(str, chunk), timeout=600)
    assert int(result.stdout) < 10**9
