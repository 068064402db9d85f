"""
Calibration by temperature
==========================

A model that was trained for too long says 99 % where it is right nine times in ten. One number,
the temperature that the logits are divided by, mends that and changes no decision. It is found on
images that were not trained on, as the one of the least cross-entropy.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

import softce_fast as sf

images, labels = load_digits(return_X_y=True)
images = images / 16 + np.random.default_rng(0).normal(0, 0.35, images.shape)  # noise makes it hard
train, held, train_labels, held_labels = train_test_split(
    images, labels, test_size=0.6, random_state=0
)
model = MLPClassifier((100,), alpha=0, max_iter=1000, random_state=0).fit(train, train_labels)

# %%
# The log-probabilities serve as logits: they differ from them by a number for each row. Half of
# the images are for finding the temperature, the other half is for looking at it.

logits = np.log(np.maximum(model.predict_proba(held), 1e-300))
half = len(logits) // 2
temperatures = np.geomspace(0.5, 20, 200)
losses = [
    float(sf.cross_entropy(logits[:half], held_labels[:half], temperature=t)) for t in temperatures
]
best = float(temperatures[np.argmin(losses)])
logits, held_labels = logits[half:], held_labels[half:]

# %%
# A reliability diagram: of all answers of about the same confidence, how many are right? On the
# diagonal the confidence can be believed. The expected calibration error is the mean distance
# from it.


def reliability(temperature, bins=8):
    probs = sf.softmax(logits, temperature=temperature)
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == held_labels
    parts = np.array_split(np.argsort(confidence), bins)  # as many answers in each
    means = np.array([(confidence[part].mean(), right[part].mean()) for part in parts])
    return means, float(np.abs(means[:, 0] - means[:, 1]).mean())


figure, axis = plt.subplots(figsize=(5.6, 4.6), layout="constrained")
axis.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="as sure as right")
errors = []
for name, temperature in (("before", 1.0), (f"after, at temperature {best:.1f}", best)):
    points, error = reliability(temperature)
    errors.append(error)
    axis.plot(*points.T, "o-", label=f"{name}: off by {error:.1%} in the mean")
axis.set(
    xlabel="confidence", ylabel="share of right answers", xlim=(0.2, 1.02), ylim=(0.2, 1.02),
    title="Reliability before and after temperature scaling",
)  # fmt: skip
axis.legend()
assert errors[1] < errors[0] / 2

# %%
# The cross-entropy on the images that found it, by temperature.

figure, axis = plt.subplots(figsize=(5.6, 3), layout="constrained")
axis.plot(temperatures, losses)
axis.axvline(best, color="0.6", linewidth=1, linestyle="--", label=f"least at {best:.1f}")
axis.set(xlabel="temperature", ylabel="cross-entropy", ylim=(0, None), xlim=(0, None))
axis.legend()
