"""Every public name in typed use: mypy --strict and pyright read this, pytest runs it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import softce_fast as sf

logits: NDArray[np.float32] = np.array([[2, 1, 0.1], [0, 0, 5]], dtype=np.float32)
labels: NDArray[np.int64] = np.array([0, 2])
targets: NDArray[np.float32] = np.full((2, 3), 1 / 3, dtype=np.float32)
keep: NDArray[np.bool_] = np.array([True, True, False])


def test_softmaxes() -> None:
    out = np.empty_like(logits)
    probabilities: NDArray[Any] = sf.softmax(
        logits, -1, where=keep, temperature=0.5, empty="zero", dtype=np.float32, out=out
    )
    of_a_list: NDArray[Any] = sf.log_softmax([[2.0, 1.0]], axis=(0, 1), dtype="float64")
    backward: NDArray[Any] = sf.softmax_backward(logits, probabilities, axis=None)
    log_backward: NDArray[Any] = sf.log_softmax_backward(logits, probabilities, out=out)
    total: NDArray[Any] = sf.logsumexp(logits, b=2, where=keep, keepdims=True)
    size, sign = sf.logsumexp(logits, return_sign=True)
    assert of_a_list.shape == (1, 2)
    assert backward.shape == log_backward.shape == logits.shape
    assert total.shape == (2, 1)
    assert np.shape(size) == np.shape(sign) == (2,)


def test_losses() -> None:
    options: dict[str, Any] = {"reduction": "sum", "denominator": None, "empty": "zero"}
    mean = float(sf.cross_entropy(logits, labels, label_smoothing=0.1, z_loss=1e-4))
    assert mean > 0
    assert float(sf.cross_entropy(logits, targets, axis=1, temperature=2, **options)) > 0
    loss, grad = sf.cross_entropy_with_grad(
        logits, labels, weight=[1, 2, 3], sample_weight=[1, 2], grad_out=np.empty_like(logits)
    )
    assert float(loss) > 0
    assert grad.shape == logits.shape
    assert sf.nll_loss(sf.log_softmax(logits), labels, reduction="none").shape == (2,)
    assert float(sf.cross_entropy_from_probs(sf.softmax(logits), targets, ignore_index=-1)) > 0


def test_linear_losses() -> None:
    matrix = np.ones((5, 3), np.float32)
    out = np.zeros_like(matrix)
    assert float(sf.linear_cross_entropy(logits, matrix, [0, 4], memory=1 << 20)) > 0
    loss, grads = sf.linear_cross_entropy_with_grad(
        logits, matrix, labels, linear_bias=[0] * 5, accumulate=True, grads=("weight",),
        weight_grad_out=out,
    )  # fmt: skip
    weight_grad: NDArray[Any] | None = grads.weight
    found: sf.LinearGrads = grads
    assert float(loss) > 0
    assert weight_grad is out
    assert found.bias is None


def test_binary_losses() -> None:
    assert float(sf.binary_cross_entropy(targets, np.ones((2, 3)), weight=2)) > 0
    assert float(sf.binary_cross_entropy_with_logits(logits, targets, pos_weight=[1, 2, 3])) > 0
    loss, grad = sf.binary_cross_entropy_with_logits_with_grad(logits, targets, reduction="sum")
    assert float(loss) > 0
    assert grad.shape == logits.shape


def test_configuration() -> None:
    count: int = sf.get_num_threads()
    sf.set_num_threads(count)
    with sf.num_threads(1):
        assert sf.get_num_threads() == 1
    version: str = sf.__version__
    sf.show_config()
    configuration = sf.show_config(mode="dicts")
    assert configuration is not None
    assert configuration["version"] == version
    reference: NDArray[Any] = sf.reference.softmax(logits)
    assert reference.shape == logits.shape
