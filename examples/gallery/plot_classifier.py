"""
A classifier, trained in NumPy
==============================

Two layers, 1,300 images of handwritten digits, and no framework: the loss and its gradient by the
logits come from :func:`softce_fast.cross_entropy_with_grad`, the rest of the backward pass is
four products.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import softce_fast as sf

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
train, test, train_labels, test_labels = train_test_split(images, labels, random_state=0)

# %%
# Weights are drawn at random. The gradient by the logits has an array of its own, which every
# step overwrites.

random = np.random.default_rng(0)
HIDDEN, CLASSES, BATCH, RATE = 64, 10, 100, 0.5
first = random.normal(0, 0.15, (images.shape[1], HIDDEN)).astype(np.float32)
second = random.normal(0, 0.15, (HIDDEN, CLASSES)).astype(np.float32)
grad = np.empty((BATCH, CLASSES), np.float32)


def logits_of(batch):
    hidden = np.maximum(batch @ first, 0)
    return hidden, hidden @ second


# %%
# A step: logits, loss and gradient, and from there back through the layers.

train_losses, test_losses = [], []
for _ in range(30):
    order = random.permutation(len(train))
    losses = []
    for start in range(0, len(train) - BATCH + 1, BATCH):
        batch = order[start : start + BATCH]
        hidden, logits = logits_of(train[batch])
        loss = sf.cross_entropy_with_grad(
            logits, train_labels[batch], label_smoothing=0.05, grad_out=grad
        )[0]
        hidden_grad = (grad @ second.T) * (hidden > 0)
        second -= RATE * hidden.T @ grad
        first -= RATE * train[batch].T @ hidden_grad
        losses.append(float(loss))
    train_losses.append(np.mean(losses))
    test_losses.append(
        float(sf.cross_entropy(logits_of(test)[1], test_labels, label_smoothing=0.05))
    )

accuracy = float((logits_of(test)[1].argmax(axis=1) == test_labels).mean())

# %%
# The loss cannot reach 0, as the smoothed targets have an entropy of their own.

figure, axis = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
epochs = np.arange(1, len(train_losses) + 1)
axis.plot(epochs, train_losses, label="training images")
axis.plot(epochs, test_losses, label="other images")
axis.set(
    xlabel="epoch", ylabel="cross-entropy (lower is better)", ylim=(0, None),
    title=f"{accuracy:.1%} of the other images are right in the end",
)  # fmt: skip
axis.legend()
assert accuracy > 0.95
