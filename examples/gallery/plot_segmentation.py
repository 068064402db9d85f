"""
Segmentation, and where it is unsure
====================================

A class for each pixel of a photograph, from a linear model on colours, and the entropy of its
probabilities: high along borders, where the model is unsure. Logits are of shape (classes,
height, width), and are read in that layout.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import load_sample_image

import softce_fast as sf

photograph = load_sample_image("flower.jpg")[40:360:2, 120:540:2] / 255.0
height, width, _ = photograph.shape
CLASSES = 4

# %%
# The classes are groups of colours. A third of the pixels is labelled, the others have the label
# 255 and do not count.

pixels = photograph.reshape(-1, 3)
groups = KMeans(CLASSES, n_init=3, random_state=0).fit(pixels).labels_.astype(np.uint8)
labels = np.where(np.random.default_rng(0).random(len(pixels)) < 1 / 3, groups, 255)
labels = labels.astype(np.uint8).reshape(height, width)

# %%
# Colours and their products, and a linear model of them.

red, green, blue = photograph.transpose(2, 0, 1) - 0.5
features = np.stack(
    [np.ones_like(red), red, green, blue, red * red, green * green, blue * blue,
     red * green, red * blue, green * blue]
)  # fmt: skip
weights = np.zeros((CLASSES, len(features)))
grad = np.empty((CLASSES, height, width))
for _ in range(400):
    logits = np.tensordot(weights, features, 1)
    loss, _ = sf.cross_entropy_with_grad(logits, labels, axis=0, ignore_index=255, grad_out=grad)
    weights -= 20.0 * np.tensordot(grad, features, ((1, 2), (1, 2)))

# %%
# Class and entropy of each pixel. Without any idea the entropy is log(4), about 1.39.

log_probs = sf.log_softmax(np.tensordot(weights, features, 1), axis=0)
classes = log_probs.argmax(axis=0)
entropy = -(np.exp(log_probs) * log_probs).sum(axis=0)

figure, axes = plt.subplots(1, 3, figsize=(10, 2.9), layout="constrained")
axes[0].imshow(photograph)
axes[0].set_title("photograph")
axes[1].imshow(classes, cmap="Set2", interpolation="nearest")
axes[1].set_title("class")
picture = axes[2].imshow(entropy, cmap="magma", vmin=0, vmax=np.log(CLASSES))
axes[2].set_title("entropy (bright: unsure)")
figure.colorbar(picture, ax=axes[2], label="nats")
for axis in axes:
    axis.set_axis_off()
assert (classes.reshape(-1) == groups).mean() > 0.9
