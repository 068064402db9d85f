"""softce_fast.sklearn: the loss as scikit-learn calls it, and what is fitted with it.

scikit-learn's own tests run under the patch in tools/suites.py.
"""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

import sklearn._loss.loss as sklearn_loss
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

import softce_fast.sklearn as adapter
from subprocesses import run_python

METHODS = {
    "loss": [()],
    "loss_gradient": [(), (1,)],
    "gradient": [(1,)],
    "gradient_hessian": [(1,), (1,)],
    "gradient_proba": [(1,), (1,)],
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("predicted", "written"), list(itertools.product([np.float32, np.float64], repeat=2))
)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_method_writes_what_scikit_learn_writes(
    method: str, predicted: Any, written: Any, order: Any, weighted: bool
) -> None:
    random = np.random.default_rng(0)
    raw = np.asarray(4 * random.standard_normal((50, 7)), predicted, order=order)
    labels = random.integers(7, size=50).astype(predicted)
    weights = random.random(50).astype(predicted) if weighted else None
    results = []
    for kernels in (adapter.CyHalfMultinomialLoss(), adapter.SklearnKernels()):
        shapes = METHODS[method]
        outputs = [np.empty(raw.shape if kept else 50, written, order=order) for kept in shapes]
        getattr(kernels, method)(labels, raw, weights, *outputs, 2)
        results.append(outputs)
    tolerance = 1e-5 if np.float32 in (predicted, written) else 1e-13
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def test_a_label_that_is_no_class_is_an_error() -> None:
    loss = adapter.HalfMultinomialLoss(3)
    with pytest.raises(IndexError, match=r"target\[1\] is 3"):
        loss.loss(np.array([0.0, 3.0]), np.zeros((2, 3)))


def test_logistic_regression_under_the_patch() -> None:
    X, y = load_iris(return_X_y=True)
    for solver in ("lbfgs", "newton-cg", "newton-cholesky", "saga"):
        model = LogisticRegression(C=0.01, tol=1e-8, max_iter=10_000, solver=solver)
        theirs = model.fit(X, y).coef_
        with adapter.patched():
            ours = clone(model).fit(X, y).coef_
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_gradient_boosting_with_the_loss() -> None:
    X, y = load_iris(return_X_y=True)
    theirs = HistGradientBoostingClassifier(max_iter=10).fit(X, y).predict_proba(X)
    model = clone(HistGradientBoostingClassifier(loss=adapter.HalfMultinomialLoss(3), max_iter=10))
    model = pickle.loads(pickle.dumps(model.fit(X, y)))
    assert type(model.loss.closs) is adapter.CyHalfMultinomialLoss
    np.testing.assert_allclose(model.predict_proba(X), theirs, rtol=1e-5)


def test_patching() -> None:
    def kernels() -> type:
        return type(sklearn_loss.HalfMultinomialLoss(n_classes=3).closs)

    assert kernels() is adapter.SklearnKernels
    with adapter.patched():
        assert kernels() is adapter.CyHalfMultinomialLoss
        with adapter.patched():
            adapter.patch()
        assert kernels() is adapter.CyHalfMultinomialLoss
    assert kernels() is adapter.SklearnKernels
    with pytest.raises(ZeroDivisionError), adapter.patched():
        1 / 0  # noqa: B018
    assert kernels() is adapter.SklearnKernels
    adapter.patch()
    adapter.unpatch()
    assert kernels() is adapter.SklearnKernels


def test_a_version_without_the_name_is_named() -> None:
    code = """
import sklearn._loss.loss as loss
del loss.CyHalfMultinomialLoss
try:
    import softce_fast.sklearn
except ImportError as error:
    print(error)
"""
    message = run_python(code).stdout
    assert "needs scikit-learn" in message
    assert "CyHalfMultinomialLoss" in message
