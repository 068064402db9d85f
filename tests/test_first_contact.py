"""What goes wrong in a first call, and that its error says what to write instead."""

from __future__ import annotations

import functools
import inspect
import pickle
from typing import Any

import numpy as np
import pytest

import softce_fast as sf

X = np.random.default_rng(0).normal(size=(4, 3))
IMAGES = np.zeros((2, 3, 4, 5))
Y = np.array([0, 2, 1, 0])
ONE_HOT = np.eye(3, dtype=int)[Y]
NAMES = np.array(["cat", "dog", "cat", "bird"])
LOSSES = ("cross_entropy", "cross_entropy_with_grad", "nll_loss", "cross_entropy_from_probs")

# Arguments, options, the error, and the remedy that it names.
CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "class axis in the middle": ((IMAGES, np.zeros((2, 4, 5), int)), {}, ValueError, "axis=1"),
    "class axis in front": ((X.T, Y), {}, ValueError, "pass target with axis=0"),
    "integer one-hot": ((X, ONE_HOT), {}, ValueError, "target.astype(float)"),
    "integer one-hot, as labels": ((X, ONE_HOT), {}, ValueError, "target.argmax(1)"),
    "whole floats": ((X, Y.astype(float)), {}, ValueError, "target.astype(numpy.int64)"),
    "whole floats, another axis": (
        (IMAGES, np.zeros((2, 4, 5))), {}, ValueError, "target.astype(numpy.int64) with axis=1"
    ),
    "a column of labels": ((X, Y[:, None]), {}, ValueError, "target.ravel()"),
    "a column of floats": (
        (X, Y[:, None].astype(float)), {}, ValueError, "target.astype(numpy.int64).ravel()"
    ),
    "labels without an axis of length 1": (
        (IMAGES[..., :1], np.zeros((2, 4), int), 1), {}, ValueError, "target.reshape(2, 4, 1)"
    ),
    "a weight for each row": ((X, Y), {"weight": np.ones(4)}, ValueError, "sample_weight="),
    "names of classes": ((X, NAMES), {}, TypeError, "numpy.unique(target, return_inverse=True)"),
    "names, as objects": ((X, NAMES.astype(object)), {}, TypeError, "numpy.unique(target"),
    "weights by name": (
        (X, Y), {"weight": "balanced"}, TypeError,
        "pass len(target) / (classes * numpy.bincount(target))",
    ),
    "weights of rows in a column": (
        (X, Y), {"sample_weight": np.ones((4, 1))}, ValueError, "pass sample_weight.ravel()"
    ),
    "boolean one-hot": ((X, ONE_HOT == 1), {}, TypeError, "pass target.argmax(1)"),
    "yes or no": ((X, Y == 1), {}, TypeError, "pass target.astype(int)"),
    "numbers as objects": ((X.astype(object), Y), {}, TypeError, ".astype(float)"),
    "weights in a dict": (
        (X, Y), {"weight": {0: 1.0, 1: 2.0, 2: 1.0}}, TypeError,
        "numpy.array([weight[label] for label in range(classes)])",
    ),
    "labels first": ((Y, X), {}, ValueError, "first and the target second"),
    "labels first, with an axis": ((Y, X, 1), {}, ValueError, "first and the target second"),
    "a mask": (
        (np.ma.masked_less(X, 0), Y), {}, TypeError,
        "with where=~mask, or ignore_index= or sample_weight=",
    ),
}  # fmt: skip


@pytest.mark.parametrize("module", [sf, sf.reference], ids=["softce_fast", "reference"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("call", CALLS)
def test_the_error_names_the_remedy(call: str, name: str, module: Any) -> None:
    arguments, options, error, remedy = CALLS[call]
    with pytest.raises(error) as caught:
        getattr(module, name)(*arguments, **options)
    assert remedy in str(caught.value)


def test_what_the_errors_say_to_write_works() -> None:
    loss = sf.cross_entropy(X, Y)
    assert sf.cross_entropy(X.T, Y, axis=0) == pytest.approx(loss)
    assert sf.cross_entropy(X, ONE_HOT.astype(float)) == pytest.approx(loss)
    assert sf.cross_entropy(X, ONE_HOT.argmax(1)) == loss
    assert sf.cross_entropy(X, Y[:, None].astype(float).astype(np.int64).ravel()) == loss
    names, target = np.unique(NAMES, return_inverse=True)
    assert [str(names[label]) for label in target] == list(NAMES)
    assert np.isfinite(sf.cross_entropy(X, target))
    weight = {0: 1.0, 1: 2.0, 2: 1.0}
    of_dict = np.array([weight[label] for label in range(3)])
    assert sf.cross_entropy(X, Y, weight=of_dict) != loss
    balanced = len(Y) / (3 * np.bincount(Y))
    assert balanced == pytest.approx([4 / 6, 4 / 3, 4 / 3])  # scikit-learn's formula
    assert sf.cross_entropy(X, Y, weight=balanced) != loss


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((X, Y + 0.5), {}),  # no labels, whatever is done to them
        ((X, np.full(4, np.nan)), {}),
        ((X, np.zeros(5, int)), {}),
        ((X, np.zeros((4, 2), int)), {}),
        ((X, Y), {"weight": np.ones(5)}),
    ],
    ids=["halves", "NaN", "too many", "two columns", "weights of neither"],
)
def test_no_remedy_is_named_that_would_not_help(
    arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="must have") as caught:
        sf.cross_entropy(*arguments, **options)
    for remedy in ("pass ", "sample_weight"):
        assert remedy not in str(caught.value)


def test_errors_of_other_functions_name_the_remedy() -> None:
    with pytest.raises(ValueError, match="first and the target second"):
        sf.target_scores(Y, X)
    with pytest.raises(ValueError, match=r"pass linear_weight\.T"):
        sf.linear_cross_entropy(np.ones((4, 8)), np.ones((8, 3)), Y)
    with pytest.raises(TypeError, match=r"pass where\.astype\(bool\)"):
        sf.softmax(X, where=np.ones(3, int))


def test_a_column_of_probabilities() -> None:
    with pytest.raises(ValueError, match=r"pass target\.reshape\(4, 1\)"):
        sf.binary_cross_entropy(np.full((4, 1), 0.5), np.ones(4))
    with pytest.raises(ValueError, match=r"pass target\.ravel\(\)"):
        sf.binary_cross_entropy_with_logits(np.zeros(4), np.ones((4, 1)))


# Calls that do not fit the signature

MISFITS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any], str]] = {
    "class_weight": ("cross_entropy", (X, Y), {"class_weight": np.ones(3)}, "write weight="),
    "dim": ("softmax", (X,), {"dim": 1}, "write axis="),
    "dim of a loss": ("cross_entropy", (X, Y), {"dim": 1}, "write axis="),
    "input": ("cross_entropy", (), {"input": X, "target": Y}, "write logits="),
    "input of nll_loss": ("nll_loss", (), {"input": X, "target": Y}, "write log_probs="),
    "a": ("logsumexp", (), {"a": X}, "write x="),
    "bias": (
        "linear_cross_entropy", (X, np.ones((5, 3)), Y), {"bias": np.ones(5)}, "write linear_bias="
    ),
    "k": ("target_scores", (X, Y), {"k": 2}, "write top_k="),
    "keepdim": ("logsumexp", (X, 1), {"keepdim": True}, "write keepdims="),
    "y_true": ("cross_entropy", (X,), {"y_true": Y}, "write target="),
    "positional option": ("softmax", (X, -1, None), {}, "written by name, where="),
    "positional weight": ("cross_entropy", (X, Y, -1, np.ones(3)), {}, "by name, weight="),
}  # fmt: skip


@pytest.mark.parametrize("module", [sf, sf.reference], ids=["softce_fast", "reference"])
@pytest.mark.parametrize("call", MISFITS)
def test_a_call_that_does_not_fit_is_told_what_does(call: str, module: Any) -> None:
    name, arguments, options, remedy = MISFITS[call]
    function = getattr(module, name)
    with pytest.raises(TypeError, match=rf"{name}\(\) .*{remedy}"):
        function(*arguments, **options)
    with pytest.raises(TypeError, match=remedy):  # another way in
        functools.partial(function, *arguments)(**options)


def test_what_is_not_known_elsewhere_is_left_as_python_says_it() -> None:
    for call in (
        functools.partial(sf.softmax, X, nonsense=1),
        functools.partial(sf.softmax, X, class_weight=np.ones(3)),  # it has no weights
        functools.partial(sf.cross_entropy, X),
        functools.partial(sf.get_num_threads, 1),
    ):
        with pytest.raises(TypeError, match=r"\(\) ") as caught:
            call()
        assert "written by name" not in str(caught.value)
        assert "write " not in str(caught.value)


def test_functions_stay_functions() -> None:
    for name in sf.reference.__all__:
        function = getattr(sf, name)
        assert inspect.isfunction(function)
        assert pickle.loads(pickle.dumps(function)) is function


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("softmax", "SciPy's default"),
        ("logsumexp", "SciPy's default"),
        ("cross_entropy", "bits.view(ml_dtypes.bfloat16)"),
        ("cross_entropy", "wrapped round"),
        ("cross_entropy_from_probs", "nor checked to be in [0, 1]"),
        ("num_threads", "processes that keep the CPUs busy"),
    ],
)
def test_what_no_error_can_tell_is_documented(name: str, words: str) -> None:
    assert words in " ".join((inspect.getdoc(getattr(sf, name)) or "").split())
