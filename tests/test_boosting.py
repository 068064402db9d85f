"""softce_fast.boosting: the libraries' own multiclass objectives are the oracle."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from softce_fast.boosting import objective

CLASSES = 5


@pytest.fixture(scope="module")
def data() -> tuple[Any, Any, Any]:
    random = np.random.default_rng(0)
    features = random.standard_normal((400, 8))
    labels = (features @ random.standard_normal((8, CLASSES))).argmax(axis=1)
    return features, labels, random.uniform(0.5, 2, 400)


def xgboost_train(features: Any, labels: Any, weights: Any, own: bool) -> tuple[Any, Any]:
    import xgboost

    data = xgboost.DMatrix(features, labels, weight=weights)
    parameters = {"num_class": CLASSES, "max_depth": 3, "base_score": 0.5, "nthread": 1}
    if own:
        booster = xgboost.train({**parameters, "objective": "multi:softprob"}, data, 5)
    else:
        booster = xgboost.train(parameters, data, 5, obj=objective("xgboost"))
    return booster, booster.predict(data, output_margin=True)


def xgboost_sklearn(features: Any, labels: Any, weights: Any, own: bool) -> tuple[Any, Any]:
    import xgboost

    pytest.importorskip("sklearn")
    model = xgboost.XGBClassifier(
        objective="multi:softprob" if own else objective("xgboost"), n_estimators=5, max_depth=3,
        base_score=0.5, n_jobs=1,
    )  # fmt: skip
    model.fit(features, labels, sample_weight=weights)
    return model.get_booster(), model.predict_proba(features)


LIGHTGBM = {
    "num_leaves": 7,
    "boost_from_average": False,
    "verbose": -1,
    "deterministic": True,
    "num_threads": 1,
}


def lightgbm_train(features: Any, labels: Any, weights: Any, own: bool) -> tuple[Any, Any]:
    import lightgbm

    function = "multiclass" if own else objective("lightgbm")
    parameters = {**LIGHTGBM, "num_class": CLASSES, "objective": function}
    booster = lightgbm.train(parameters, lightgbm.Dataset(features, labels, weight=weights), 5)
    return booster, booster.predict(features, raw_score=True)


def lightgbm_sklearn(features: Any, labels: Any, weights: Any, own: bool) -> tuple[Any, Any]:
    import lightgbm

    pytest.importorskip("sklearn")
    function = "multiclass" if own else objective("lightgbm")
    model = lightgbm.LGBMClassifier(objective=function, n_estimators=5, **LIGHTGBM)
    model.fit(features, labels, sample_weight=weights)
    return model.booster_, model.predict_proba(features, raw_score=True)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "train", [xgboost_train, xgboost_sklearn, lightgbm_train, lightgbm_sklearn]
)
def test_the_trees_are_the_librarys_own(
    train: Callable[..., tuple[Any, Any]], weighted: bool, data: tuple[Any, Any, Any]
) -> None:
    library = train.__name__.partition("_")[0]
    pytest.importorskip(library)
    pytest.importorskip("pandas")
    features, labels, weights = data
    models = [train(features, labels, weights if weighted else None, own) for own in (True, False)]
    structure = {
        "xgboost": ["Tree", "Node", "Feature", "Split", "Yes", "No"],
        "lightgbm": ["tree_index", "node_index", "split_feature", "threshold", "left_child"],
    }[library]
    trees = [booster.trees_to_dataframe()[structure] for booster, _ in models]
    assert trees[0].equals(trees[1])
    np.testing.assert_allclose(models[0][1], models[1][1], rtol=1e-4, atol=1e-5)


def derivatives(scores: Any, target: Any, rows: Any) -> tuple[Any, Any]:
    """Gradient and diagonal of the Hessian for the target's coefficients, in long double."""
    x = scores.astype(np.longdouble)
    p = np.exp(x - x.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    total = target.sum(axis=1, keepdims=True)
    return (p * total - target) * rows[:, None], total * p * (1 - p) * rows[:, None]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_smoothing_weights_and_soft_targets(library: str, order: Any) -> None:
    random = np.random.default_rng(1)
    scores = np.asarray(random.standard_normal((30, CLASSES)), order=order)
    labels, rows = random.integers(CLASSES, size=30), random.random(30)
    soft, weight = random.dirichlet(np.ones(CLASSES), 30), np.arange(1.0, CLASSES + 1)
    factor = 2 if library == "xgboost" else CLASSES / (CLASSES - 1)
    for soft_targets in (None, soft):
        options = {"label_smoothing": 0.1, "weight": weight, "soft_targets": soft_targets}
        gradient, hessian = objective(library, **options)(labels, scores, rows)
        target = np.eye(CLASSES)[labels] if soft_targets is None else soft
        true = derivatives(scores, (0.9 * target + 0.1 / CLASSES) * weight, rows)
        np.testing.assert_allclose(gradient, true[0].astype(float), rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(hessian, factor * true[1].astype(float), rtol=1e-11)
        assert gradient.strides == hessian.strides == scores.strides
        absolute = objective(library, hessian="absolute", **options)(labels, scores, rows)
        np.testing.assert_array_equal(absolute[1], np.abs(gradient))


def test_no_hessian_of_xgboost_is_zero() -> None:
    scores = np.array([[1e4, 0.0, 0.0]], dtype=np.float32)
    for hessian in ("diagonal", "absolute"):
        _, values = objective("xgboost", hessian=hessian)(np.array([0]), scores)
        np.testing.assert_array_equal(values, np.float32(1e-16))
    _, values = objective("lightgbm")(np.array([0]), scores)
    np.testing.assert_array_equal(values, 0)


def test_it_can_be_pickled() -> None:
    scores, labels = np.zeros((2, 3)), np.array([0, 2])
    function = objective("xgboost", label_smoothing=0.1)
    copy = pickle.loads(pickle.dumps(function))
    for ours, theirs in zip(copy(labels, scores), function(labels, scores), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_errors() -> None:
    with pytest.raises(ValueError, match="library must be 'xgboost' or 'lightgbm', got 'catboost'"):
        objective("catboost")
    with pytest.raises(ValueError, match="hessian must be 'diagonal' or 'absolute', got 'full'"):
        objective("xgboost", hessian="full")
    with pytest.raises(ValueError, match=r"shape \(4,\): set num_class"):
        objective("lightgbm")(np.zeros(4), np.zeros(4))
    with pytest.raises(IndexError, match="labels must be in"):
        objective("xgboost")(np.array([3]), np.zeros((1, 3)))
