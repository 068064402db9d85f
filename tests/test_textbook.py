"""The NumPy lines that every comparison is against compute what they are compared with."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special

from softce_fast import _textbook

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("shape", "axis"), [((5, 7), -1), ((3, 4, 2), 1), ((4, 3), 0)])
def test_against_scipy(shape: tuple[int, ...], axis: int) -> None:
    x = RNG.standard_normal(shape) * 5
    labels = RNG.integers(0, shape[axis], np.delete(shape, axis))
    right = scipy.special.softmax(x, axis)
    logarithms = scipy.special.log_softmax(x, axis)
    losses = -np.take_along_axis(logarithms, np.expand_dims(labels, axis), axis).squeeze(axis)
    np.testing.assert_allclose(_textbook.softmax(x, axis), right)
    np.testing.assert_allclose(_textbook.log_softmax(x, axis), logarithms)
    np.testing.assert_allclose(_textbook.logsumexp(x, axis), scipy.special.logsumexp(x, axis))
    for reduction, expected, rows in (("mean", losses.mean(), labels.size), ("none", losses, 1)):
        loss = _textbook.cross_entropy(x, labels, axis, reduction=reduction)
        np.testing.assert_allclose(loss, expected)
        out = np.empty_like(x)
        loss, gradient = _textbook.cross_entropy_with_grad(
            x, labels, axis, reduction=reduction, grad_out=out
        )
        one_hot = np.moveaxis(np.eye(shape[axis])[labels], -1, axis)
        np.testing.assert_allclose(loss, expected)
        np.testing.assert_allclose(gradient, (right - one_hot) / rows, atol=1e-15)
        assert gradient is out
