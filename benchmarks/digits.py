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

import machine
import report
import softce_fast
from shapes import Array
from softce_fast import _textbook

CLASSES = 10
LEARNING_RATE = 0.5


class Classifier:
    """Linear classifier, trained by gradient descent on all images at once."""

    def __init__(self, module: ModuleType, images: Array, labels: Array) -> None:
        self.module, self.images, self.labels = module, images, labels
        self.weights = np.zeros((images.shape[1], CLASSES), np.float32)
        self.bias = np.zeros(CLASSES, np.float32)
        self.gradient = np.empty((len(images), CLASSES), np.float32)
        self.seconds = 0.0  # in loss and gradient

    def step(self) -> None:
        logits = self.images @ self.weights + self.bias
        start = time.perf_counter()
        self.module.cross_entropy_with_grad(logits, self.labels, grad_out=self.gradient)
        self.seconds += time.perf_counter() - start
        self.weights -= LEARNING_RATE * (self.images.T @ self.gradient)
        self.bias -= LEARNING_RATE * self.gradient.sum(axis=0)

    def evaluate(self, part: str, images: Array, labels: Array) -> dict[str, float]:
        logits = images @ self.weights + self.bias
        return {
            f"{part}_loss": float(self.module.cross_entropy(logits, labels)),
            f"{part}_accuracy": float(np.mean(logits.argmax(axis=1) == labels)),
        }


def train(steps: int) -> dict[str, dict[str, float]]:
    """Trains both and returns losses, accuracies and times; raises if they differ."""
    images, labels = load_digits(return_X_y=True)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=0.25, random_state=0, stratify=labels
    )
    scaler = StandardScaler().fit(train_images)
    train_images, test_images = (
        scaler.transform(part).astype(np.float32) for part in (train_images, test_images)
    )
    classifiers = {
        name: Classifier(module, train_images, train_labels)
        for name, module in (
            ("softce_fast", softce_fast),
            ("textbook", _textbook),
        )
    }
    for _ in tqdm(range(steps), unit="step", desc="training on digits"):
        for classifier in classifiers.values():
            classifier.step()
    results = {
        name: {
            **classifier.evaluate("train", train_images, train_labels),
            **classifier.evaluate("test", test_images, test_labels),
            "seconds": classifier.seconds,
        }
        for name, classifier in classifiers.items()
    }
    check(results["softce_fast"], results["textbook"], len(test_labels))
    return results


def check(ours: dict[str, float], textbook: dict[str, float], test_images: int) -> None:
    """Both trainings must agree but for float32 rounding, which the steps pass on."""
    for loss in ("train_loss", "test_loss"):
        assert abs(ours[loss] - textbook[loss]) <= 1e-4 * textbook[loss], (ours, textbook)
    # Rounding may flip one image that lies on the border between two classes.
    difference = abs(ours["test_accuracy"] - textbook["test_accuracy"])
    assert difference <= 1.5 / test_images, (ours, textbook)
    assert ours["test_accuracy"] > 0.9, ours


def main() -> None:
    options = report.parser("digits", __doc__).parse_args()
    steps = 200 if options.quick else 2000
    results = train(steps)
    ratio = results["textbook"]["seconds"] / results["softce_fast"]["seconds"]
    packages = ("numpy", "softce_fast", "scikit-learn")
    document: dict[str, Any] = {**machine.describe(packages), "steps": steps, "results": results}
    report.finish("digits", options.json, document)
    print(f"same loss and accuracy; loss and gradient {ratio:.1f} times as fast as textbook NumPy")


if __name__ == "__main__":
    main()
