"""States of rows as data: what they hold besides sums, whoever computes these."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import softce_fast as sf
import truth
from softce_fast import sharded

with_each_module = pytest.mark.parametrize(
    "module", [sharded, sf.reference.sharded], ids=["kernels", "reference"]
)


@with_each_module
def test_results_have_the_dtype_of_the_logits(module: ModuleType, dtype: np.dtype) -> None:
    """Also of no rows at all, and of states that come out of a file."""
    for rows in (0, 3):
        states = module.row_states(np.zeros((rows, 2), dtype), np.zeros(rows, int))
        for copy in (states, pickle.loads(pickle.dumps(states)), module.merge(states)):
            assert module.logsumexp(copy).dtype == dtype
            assert module.cross_entropy(copy).dtype == dtype


@with_each_module
def test_states_in_files(module: ModuleType, dtype: np.dtype, tmp_path: Path) -> None:
    states = module.row_states(np.ones((3, 4), dtype), [0, 2, 3])
    np.save(tmp_path / "states.npy", states)
    back = np.load(tmp_path / "states.npy")
    np.testing.assert_array_equal(module.logsumexp(back), module.logsumexp(states))
    assert module.cross_entropy(back) == module.cross_entropy(states)


@with_each_module
def test_states_of_the_other_byte_order(module: ModuleType, dtype: np.dtype) -> None:
    """They come from a machine of another kind."""
    states = module.row_states(np.eye(3, 4, dtype=dtype), [0, 2, 3])
    other = states.astype(states.dtype.newbyteorder())
    for copy in (other, module.merge(other)):
        np.testing.assert_array_equal(module.logsumexp(copy), module.logsumexp(states))
        for smoothing in (0.0, 0.1):
            found, right = (
                module.cross_entropy(item, label_smoothing=smoothing) for item in (copy, states)
            )
            assert found == right


@with_each_module
@pytest.mark.parametrize(
    "label", [-1, 2, 9, np.uint64(2**64 - 100), np.uint64(2**63), np.int8(-128)]
)
def test_labels_that_are_no_class(module: ModuleType, label: Any) -> None:
    """Among them one that is the number to be ignored if its bits are taken for an int64."""
    states = module.row_states(np.zeros((1, 2)), np.array([label]))
    with pytest.raises(IndexError, match=r"target\[0\].*\[0, 2\)"):
        module.cross_entropy(states)


@with_each_module
def test_states_of_another_kind(module: ModuleType) -> None:
    other = sharded if module is not sharded else sf.reference.sharded
    with pytest.raises(TypeError, match="row_states"):
        module.logsumexp(other.row_states(np.zeros(3)))


@with_each_module
def test_states_with_and_without_a_target(module: ModuleType, dtype: np.dtype) -> None:
    """They say unlike much about each row."""
    x = np.zeros((2, 3), dtype)
    plain, labelled = module.row_states(x), module.row_states(x, [0, 5])
    for states in ((plain, labelled), (labelled, plain)):
        with pytest.raises(ValueError, match="the same labelled"):
            module.merge(*states)
    with pytest.raises(ValueError, match="states must have a target"):
        module.cross_entropy(plain)


@with_each_module
def test_states_that_begin_with_something_else(module: ModuleType) -> None:
    """As those of a version that had other fields."""
    states = module.row_states(np.zeros((2, 3)))
    names = states.dtype.names
    assert names is not None
    for fields in (names[1:], names[::-1]):
        other = np.zeros(2, [(name, states.dtype[name]) for name in fields])
        with pytest.raises(TypeError, match="row_states"):
            module.logsumexp(other)


@with_each_module
def test_a_target_is_found_in_any_shard(module: ModuleType, dtype: np.dtype) -> None:
    """At both ends of each, of any integer dtype; others, however far, are in none."""
    x = np.arange(12.0).reshape(2, 6).astype(dtype)
    for kind in ("i1", "u2", "i8", "u8"):
        for label in (0, 1, 2, 3, 4, 5):
            target = np.full(2, label, kind)
            cuts = [(0, 2), (2, 5), (5, 6)]
            states = [
                module.row_states(x[:, start:stop], target, class_offset=start)
                for start, stop in cuts
            ]
            for item, (start, stop) in zip(states, cuts, strict=True):
                assert (item["found"] == (start <= label < stop)).all()
            whole = module.merge(*states)
            np.testing.assert_array_equal(whole["logit"], x[:, label].astype(float))
    for label in (-1, np.iinfo(np.int64).min, np.iinfo(np.int64).max):
        assert not module.row_states(x, np.full(2, label), class_offset=3)["found"].any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("size", [1e307, 1e-300])
def test_a_mean_of_extreme_weights(dtype: np.dtype, size: float, smoothing: float) -> None:
    """Their sum is beyond float64."""
    logits, target, share = np.zeros((4, 2), dtype), np.zeros(4, int), (1 - smoothing) / 8
    options = {"sample_weight": np.full(4, size), "label_smoothing": smoothing}
    states = sharded.row_states(logits, target, weight=[size, size])
    loss = sharded.cross_entropy(states, **options)
    assert truth.ulp_error(loss, np.log(np.longdouble(2)), dtype) <= 4
    grad = sharded.cross_entropy_grad(logits, target, states, weight=[size, size], **options)
    assert truth.ulp_error(grad, np.array([[-share, share]] * 4), dtype).max() <= 4


@pytest.mark.parametrize("rare", [0, 1, 2])
def test_class_weights_far_apart(dtype: np.dtype, rare: int) -> None:
    """Beyond float32 in another shard, whose logits are of float32 or less."""
    logits, target = np.array([[1.0, 0.5, -1.0]], dtype), np.array([1])
    weight = np.full(3, 1e-70)
    weight[rare] = 1e70
    options: dict[str, Any] = {"label_smoothing": 0.2, "z_loss": 1e-3}
    right = truth.cross_entropy_with_options(logits, target, weight=weight, **options)
    halves = [(logits[:, :1], weight[:1], 0), (logits[:, 1:], weight[1:], 1)]
    states = sharded.merge(
        *(sharded.row_states(x, target, weight=w, class_offset=start) for x, w, start in halves)
    )
    grads = [
        sharded.cross_entropy_grad(x, target, states, weight=w, class_offset=start, **options)
        for x, w, start in halves
    ]
    loss = sharded.cross_entropy(states, **options)
    assert truth.ulp_error(loss, right.loss, dtype) <= 4
    error = truth.ulp_error(
        np.concatenate(grads, axis=1), right.gradient, dtype, floor=right.gradient_scale
    )
    assert error.max() <= 4
