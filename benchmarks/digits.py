"""Multinomial logistic regression on scikit-learn's digits, with softce_fast and with NumPy.

The same training runs twice, in step: the loss and its gradient come from softce_fast, and from the
lines of NumPy that a textbook has. Both must end at the same loss and accuracy; what differs is the
time.
"""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

import report
import softce_fast
from shapes import Array
from softce_fast import _textbook

CLASSES = 10
LEARNING_RATE = 0.5


class Classifier:
    """Linear classifier, trained by gradient descent on all images at once."""

    def __init__(self, module: ModuleType, features: int) -> None:
        self.module, self.seconds = module, 0.0  # in loss and gradient
        self.weights = np.zeros((features, CLASSES), np.float32)
        self.bias = np.zeros(CLASSES, np.float32)

    def step(self, images: Array, labels: Array, gradient: Array) -> None:
        logits = images @ self.weights + self.bias
        start = time.perf_counter()
        self.module.cross_entropy_with_grad(logits, labels, grad_out=gradient)
        self.seconds += time.perf_counter() - start
        self.weights -= LEARNING_RATE * (images.T @ gradient)
        self.bias -= LEARNING_RATE * gradient.sum(axis=0)

    def evaluate(self, part: str, images: Array, labels: Array) -> dict[str, float]:
        logits = images @ self.weights + self.bias
        return {
            f"{part}_loss": float(self.module.cross_entropy(logits, labels)),
            f"{part}_accuracy": float(np.mean(logits.argmax(axis=1) == labels)),
        }


def train(steps: int) -> dict[str, dict[str, float]]:
    """Trains both and returns losses, accuracies and times; raises if they differ."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
    scale = StandardScaler().fit(parts[0]).transform
    training, testing = ((scale(x).astype(np.float32), y) for x, y in (parts[::2], parts[1::2]))
    gradient = np.empty((len(training[1]), CLASSES), np.float32)
    modules = {"softce_fast": softce_fast, "textbook": _textbook}
    classifiers = {name: Classifier(m, images.shape[1]) for name, m in modules.items()}
    for _ in tqdm(range(steps), unit="step", desc="training on digits"):
        for classifier in classifiers.values():
            classifier.step(*training, gradient)
    results = {
        name: classifier.evaluate("train", *training)
        | classifier.evaluate("test", *testing)
        | {"seconds": classifier.seconds}
        for name, classifier in classifiers.items()
    }
    # They agree but for float32 rounding, which the steps pass on, and which may flip one image
    # that lies on the border between two classes.
    ours, textbook = results.values()
    for loss in ("train_loss", "test_loss"):
        np.testing.assert_allclose(ours[loss], textbook[loss], rtol=1e-4)
    flipped = len(testing[1]) * abs(ours["test_accuracy"] - textbook["test_accuracy"])
    assert flipped <= 1.5, results
    assert ours["test_accuracy"] > 0.9, results
    return results


def measure(options: Any) -> dict[str, Any]:
    steps = 200 if options.quick else 2000
    results = train(steps)
    ratio = results["textbook"]["seconds"] / results["softce_fast"]["seconds"]
    print(f"same loss and accuracy; loss and gradient {ratio:.1f} times as fast as textbook NumPy")
    return {"steps": steps, "results": results}


if __name__ == "__main__":
    report.run("digits", __doc__, measure, ("numpy", "softce_fast", "scikit-learn"))
