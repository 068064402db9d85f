"""Multinomial logistic regression on scikit-learn's digits, with softce_fast and with NumPy.

The same training runs twice, in step: the loss and its gradient come from softce_fast, and from its
pure-NumPy reference. Both must end at the same loss and accuracy; what differs is the time.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

import machine
import softce_fast

CLASSES = 10
LEARNING_RATE = 0.5
SEED = 0

Array = np.ndarray[Any, Any]


class Classifier:
    """Linear classifier, trained by gradient descent on all images at once."""

    def __init__(self, module: Any, images: Array, labels: Array) -> None:
        self.module, self.images, self.labels = module, images, labels
        self.weights = np.zeros((images.shape[1], CLASSES), np.float32)
        self.bias = np.zeros(CLASSES, np.float32)
        self.gradient = np.empty((len(images), CLASSES), np.float32)
        self.loss = float("nan")
        self.seconds = 0.0  # in loss and gradient

    def logits(self, images: Array) -> Array:
        result: Array = images @ self.weights + self.bias
        return result

    def step(self) -> None:
        logits = self.logits(self.images)
        start = time.perf_counter()
        loss, gradient = self.module.cross_entropy_with_grad(
            logits, self.labels, grad_out=self.gradient
        )
        self.seconds += time.perf_counter() - start
        self.loss = float(loss)
        self.weights -= LEARNING_RATE * (self.images.T @ gradient)
        self.bias -= LEARNING_RATE * gradient.sum(axis=0)

    def evaluate(self, images: Array, labels: Array) -> tuple[float, float]:
        """Loss and accuracy."""
        logits = self.logits(images)
        loss = float(self.module.cross_entropy(logits, labels))
        return loss, float(np.mean(logits.argmax(axis=1) == labels))


def load() -> tuple[Array, Array, Array, Array]:
    """Standardised images and labels: train images, test images, train labels, test labels."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=0.25, random_state=SEED, stratify=labels)
    train, test, train_labels, test_labels = parts
    scaler = StandardScaler().fit(train)
    return (
        scaler.transform(train).astype(np.float32),
        scaler.transform(test).astype(np.float32),
        train_labels.astype(np.int64),
        test_labels.astype(np.int64),
    )


def train(steps: int, progress: bool = True) -> dict[str, Any]:
    """Trains both and returns losses, accuracies and times; raises if they differ."""
    images, test_images, labels, test_labels = load()
    classifiers = {
        "softce_fast": Classifier(softce_fast, images, labels),
        "reference": Classifier(softce_fast.reference, images, labels),
    }
    bar = tqdm(range(steps), unit="step", desc="training on digits", disable=not progress)
    for step in bar:
        for classifier in classifiers.values():
            classifier.step()
        if step % 100 == 0:
            bar.set_postfix({name: f"{c.loss:.4f}" for name, c in classifiers.items()})

    results: dict[str, Any] = {}
    for name, classifier in classifiers.items():
        train_loss, train_accuracy = classifier.evaluate(images, labels)
        test_loss, test_accuracy = classifier.evaluate(test_images, test_labels)
        results[name] = {
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "seconds": classifier.seconds,
        }
    check(results, len(test_labels))
    return results


def check(results: dict[str, Any], test_images: int) -> None:
    """Both trainings must agree but for float32 rounding, which the steps pass on."""
    ours, reference = results["softce_fast"], results["reference"]
    for part in ("train", "test"):
        difference = abs(ours[f"{part}_loss"] - reference[f"{part}_loss"])
        assert difference <= 1e-4 * reference[f"{part}_loss"], (part, ours, reference)
    # Rounding may flip one image that lies on the border between two classes.
    difference = abs(ours["test_accuracy"] - reference["test_accuracy"])
    assert difference <= 1.5 / test_images, (ours, reference)
    assert ours["test_accuracy"] > 0.9, ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--json", type=Path, help="where to save the results")
    options = parser.parse_args()

    results = train(options.steps)
    print(f"{'':12}  train loss  test loss  test accuracy  loss + gradient")
    for name, result in results.items():
        print(
            f"{name:12}  {result['train_loss']:10.6f}  {result['test_loss']:9.6f}  "
            f"{result['test_accuracy']:13.2%}  {result['seconds'] * 1e3:12.1f} ms"
        )
    ratio = results["reference"]["seconds"] / results["softce_fast"]["seconds"]
    print(f"same loss and accuracy; loss and gradient {ratio:.1f} times faster than NumPy")
    if options.json:
        packages = ("numpy", "softce_fast", "scikit-learn")
        document = {"kind": "digits", **machine.describe(packages), "steps": options.steps}
        machine.record({**document, "results": results}, options.json)


if __name__ == "__main__":
    main()
