"""Gradient boosting with soft targets, label smoothing and class weights: XGBoost and LightGBM.

The digits' labels are spoilt: a quarter of the training images has a label drawn at random. Several
annotators of each image, as class probabilities, or label smoothing make up for some of it.
"""

from __future__ import annotations

from typing import Any

import lightgbm
import numpy as np
import xgboost
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from softce_fast.boosting import objective

CLASSES = 10


def main() -> dict[str, float]:
    images, labels = load_digits(return_X_y=True)
    train, test, train_labels, test_labels = train_test_split(
        images, labels, random_state=0, stratify=labels
    )
    # Four annotators, each wrong on a quarter of the images.
    random = np.random.default_rng(0)
    shape = len(train_labels), 4
    wrong = random.random(shape) < 0.25
    annotations = np.where(wrong, random.integers(CLASSES, size=shape), train_labels[:, None])
    annotations[:CLASSES, 0] = np.arange(CLASSES)  # every class occurs
    first = annotations[:, 0]
    soft = np.eye(CLASSES)[annotations].mean(axis=1)
    rare = np.where(np.arange(CLASSES) == 8, 2.0, 1.0)

    objectives: dict[str, dict[str, Any]] = {
        "labels of one annotator": {},
        "label smoothing": {"label_smoothing": 0.2},
        "class weights": {"weight": rare},
        "all annotators": {"soft_targets": soft},
    }
    accuracies = {}
    for name, options in objectives.items():
        booster = xgboost.XGBClassifier(
            objective=objective("xgboost", **options), n_estimators=20, max_depth=4
        )
        booster.fit(train, first)
        accuracies[f"xgboost, {name}"] = float((booster.predict(test) == test_labels).mean())

        model = lightgbm.train(
            {
                "objective": objective("lightgbm", **options),
                "num_class": CLASSES,
                "num_leaves": 15,
                "verbose": -1,
            },
            lightgbm.Dataset(train, first),
            num_boost_round=20,
        )
        scores = np.asarray(model.predict(test))
        accuracies[f"lightgbm, {name}"] = float((scores.argmax(axis=1) == test_labels).mean())
    return accuracies


if __name__ == "__main__":
    for name, accuracy in main().items():
        print(f"{accuracy:.3f}  {name}")
