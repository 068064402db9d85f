"""Outputs of subclasses of numpy.ndarray that say something else than the array underneath.

A kernel that believed them would write past an array: each case runs in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import softce_fast as sf
from subprocesses import run_function

PATTERN = -7.0
SHAPE = (40, 50)

# What a lie tells of: an array much smaller than the one that is there, and its surroundings.
surroundings = np.full(4000, PATTERN, np.float32)


def decoy() -> np.ndarray:
    return surroundings[2000:2002].reshape(1, 1, 2)


class Honest(np.ndarray):
    """Adds nothing."""


class Slices(Honest):
    def __getitem__(self, _: Any) -> Any:
        return decoy()


class Turns(Honest):
    def transpose(self, *_: Any) -> Any:  # type: ignore[override]
        return decoy()

    @property
    def T(self) -> Any:  # type: ignore[override]
        return decoy()


class Shapes(Honest):
    def reshape(self, *_: Any, **__: Any) -> Any:  # type: ignore[override]
        return decoy()

    def view(self, *_: Any, **__: Any) -> Any:  # type: ignore[override]
        return decoy()


class Sizes(Honest):
    """Of the shape and strides of its neighbour, which is larger."""

    shape = SHAPE  # type: ignore[assignment]
    strides = (200, 4)  # type: ignore[assignment]
    ndim = 2  # type: ignore[assignment]
    size = 2000  # type: ignore[assignment]


class Converts(Honest):
    def __array__(self, *_: Any, **__: Any) -> Any:
        return decoy()

    def __array_finalize__(self, _: Any) -> None:
        return None


LIARS = (Honest, Slices, Turns, Shapes, Converts)


def calls(x: np.ndarray) -> dict[str, Callable[[np.ndarray, np.ndarray], Any]]:
    """Return calls of every function with an output; some write to two."""
    labels, probs = np.arange(len(x)), sf.softmax(x)
    return {
        "softmax": lambda out, _: sf.softmax(x, out=out),
        "columns": lambda out, _: sf.softmax(x, 0, out=out),
        "masked": lambda out, _: sf.log_softmax(x, where=x < 1, out=out),
        "all axes": lambda out, _: sf.softmax(x, None, out=out),
        "softmax_backward": lambda out, _: sf.softmax_backward(x, probs, out=out),
        "log_softmax_backward": lambda out, _: sf.log_softmax_backward(x, probs, out=out),
        "gradient": lambda out, _: sf.cross_entropy_with_grad(x, labels, grad_out=out)[1],
        "gradient of columns": lambda out, _: sf.cross_entropy_with_grad(
            x, np.zeros(SHAPE[1], int), 0, grad_out=out
        )[1],
        "hessian": lambda out, other: sf.cross_entropy_with_grad_and_hessian(
            x, labels, grad_out=out, hessian_out=other
        )[1],
        "binary gradient": lambda out, _: sf.binary_cross_entropy_with_logits_with_grad(
            x, probs, grad_out=out
        )[1],
        "linear gradient": lambda out, _: (
            sf.linear_cross_entropy_with_grad(
                x, np.ascontiguousarray(x[:9]), labels % 9, grads=("hidden",), hidden_grad_out=out
            )[1].hidden
        ),
    }


def write_to_liars(name: str) -> None:
    """Write to an array behind a liar: all of it, nothing else, and the liar is returned."""
    kind = {kind.__name__: kind for kind in LIARS}[name]
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    for title, call in calls(x).items():
        plain = np.empty(SHAPE, np.float32), np.empty(SHAPE, np.float32)
        behind = np.empty(SHAPE, np.float32), np.empty(SHAPE, np.float32)
        call(*plain)
        liars = tuple(np.ndarray.view(array, kind) for array in behind)
        result = call(*liars)
        assert result is liars[0], title
        assert behind[0].tobytes() == plain[0].tobytes(), title
        if title == "hessian":
            assert behind[1].tobytes() == plain[1].tobytes()
        assert (surroundings == PATTERN).all(), f"{title}: written elsewhere"


@pytest.mark.parametrize("kind", LIARS)
def test_outputs_that_lie(kind):
    run_function(write_to_liars, kind.__name__)


def write_to_a_smaller_one() -> None:
    """What is there counts, not the size that is told."""
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    for title, call in calls(x).items():
        liar = np.ndarray.view(surroundings[2000:2002].reshape(1, 2), Sizes)
        with pytest.raises(ValueError, match=r"must have shape \(40, 50\).*got \(1, 2\)"):
            call(liar, np.empty(SHAPE, np.float32))
        assert (surroundings == PATTERN).all(), f"{title}: written all the same"


def test_outputs_smaller_than_they_say():
    run_function(write_to_a_smaller_one)


def read_from_liars(name: str) -> None:
    kind = {kind.__name__: kind for kind in LIARS}[name]
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    labels = np.arange(len(x))
    liar, lying_labels = np.ndarray.view(x, kind), np.ndarray.view(labels, kind)
    assert np.array_equal(sf.softmax(liar), sf.softmax(x))
    assert np.array_equal(sf.logsumexp(liar, 0), sf.logsumexp(x, 0))
    loss, gradient = sf.cross_entropy_with_grad(liar, lying_labels)
    expected_loss, expected = sf.cross_entropy_with_grad(x, labels)
    assert loss == expected_loss
    assert np.array_equal(gradient, expected)


@pytest.mark.parametrize("kind", LIARS)
def test_inputs_that_lie(kind):
    run_function(read_from_liars, kind.__name__)
