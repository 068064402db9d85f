"""
Perplexity of a text, token by token
====================================

How surprising is each letter of a sentence to a small language model? The surprise is the
cross-entropy of the letter; the exponential of the mean is the perplexity, the number of letters
that the model hesitates between.
"""

import asyncio
import datetime
import inspect
import random
import statistics
import string
import textwrap

import matplotlib.pyplot as plt
import numpy as np

import softce_fast as sf

# %%
# The model: which letter follows three others, counted in English text that is at hand
# everywhere, the docstrings of Python's standard library. Log-counts are its logits.

ALPHABET = string.ascii_lowercase + " "
NUMBER = {letter: number for number, letter in enumerate(ALPHABET)}
CONTEXT = 3


def tokens_of(text):
    words = "".join(c if c in NUMBER else " " for c in text.lower()).split()
    return np.array([NUMBER[c] for c in " ".join(words)])


def text_to_learn():
    for module in (asyncio, datetime, inspect, random, statistics, string, textwrap):
        for value in (module, *vars(module).values()):
            yield inspect.getdoc(value) or ""


learned = tokens_of(" ".join(text_to_learn()))
counts = [np.full((len(ALPHABET),) * (n + 1), 0.0) for n in range(CONTEXT + 1)]
for n, table in enumerate(counts):
    windows = np.lib.stride_tricks.sliding_window_view(learned, n + 1)
    np.add.at(table, tuple(windows.T), 1)


# %%
# Probabilities after three letters, mixed with those after two, one and none, so that nothing is
# impossible.


def logits_after(tokens):
    mixed = np.full((len(tokens), len(ALPHABET)), 1e-4)
    for n, table in enumerate(counts):
        context = [np.concatenate([np.zeros(k, int) + NUMBER[" "], tokens])[: len(tokens)]
                   for k in range(n, 0, -1)]  # fmt: skip
        seen = table[tuple(context)] if n else np.broadcast_to(table, mixed.shape)
        share = seen.sum(axis=1, keepdims=True)
        mixed += 10.0**n * seen / np.maximum(share, 1) * share / (share + 5)
    return np.log(mixed)


# %%
# The surprise of each letter, from the logits and the letters themselves.

sentence = "the function returns the sum of all zebras in the iterable"
tokens = tokens_of(sentence)
surprise = sf.cross_entropy(logits_after(tokens), tokens, reduction="none")
perplexity = float(np.exp(surprise.mean()))

figure, axis = plt.subplots(figsize=(10, 3), layout="constrained")
places = np.arange(len(tokens))
axis.bar(places, surprise)
axis.set_xticks(places, [letter if letter != " " else "␣" for letter in sentence])
axis.axhline(np.log(len(ALPHABET)), color="0.6", linewidth=1, linestyle="--")
axis.text(
    len(tokens) - 0.5, np.log(len(ALPHABET)), "any letter, equally likely", ha="right", va="bottom"
)
axis.set(
    ylabel="surprise (nats)", xlim=(-0.7, len(tokens) - 0.3),
    title=f"Perplexity {perplexity:.1f}: as if {perplexity:.0f} letters were equally likely",
)  # fmt: skip
assert perplexity < 10
