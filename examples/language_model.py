"""The output layer of a language model, trained in NumPy alone on real text.

The text is the source of Python's standard library, the tokens its words and marks. The hidden
state is the sum of embeddings of the words before; the output layer gives a probability to each of
the vocabulary's words. Its logits, one for each token of a step and each word, are by far the
largest array of such a training: `linear_cross_entropy_with_grad` never makes them whole.

    python examples/language_model.py
    python examples/language_model.py --steps 20 --vocabulary 5000    # for a look
    python examples/language_model.py --naive     # with whole logits: the memory that they take
"""

from __future__ import annotations

import argparse
import collections
import itertools
import math
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import softce_fast as sf

try:
    from tqdm import tqdm
except ImportError:

    def tqdm(steps: Iterable[int], **_: Any) -> Any:
        """Go without a progress bar."""
        return steps


Array = np.ndarray[Any, np.dtype[Any]]

CONTEXT = 4  # words that the next one is guessed from
WORD = re.compile(r"[A-Za-z_]+|[0-9]+|\n|[^\sA-Za-z_0-9]")
UNKNOWN = 0
IGNORE = -100
MIB = 2**20


def words(most: int) -> list[str]:
    """Return the first words of the standard library's sources."""
    folder = Path(sysconfig.get_paths()["stdlib"])

    def read() -> Iterator[str]:
        for path in sorted(folder.glob("*.py")):
            yield from WORD.findall(path.read_text(encoding="utf-8", errors="replace"))

    return list(itertools.islice(read(), most))


def numbered(text: list[str], vocabulary: int) -> tuple[Array, int]:
    """Return the words as numbers, most frequent first, rare ones as UNKNOWN; and how many."""
    frequent = collections.Counter(text).most_common(vocabulary - 1)
    numbers = {word: number for number, (word, _) in enumerate(frequent, start=1)}
    return np.array([numbers.get(word, UNKNOWN) for word in text]), len(numbers) + 1


class Adam:
    """Arrays, and the steps they take along their gradients."""

    def __init__(self, parameters: list[Array], rate: float) -> None:
        self.parameters, self.rate, self.time = parameters, rate, 0
        self.means = [np.zeros_like(array) for array in parameters]
        self.squares = [np.zeros_like(array) for array in parameters]

    def step(self, gradients: list[Array]) -> None:
        self.time += 1
        rate = self.rate * math.sqrt(1 - 0.99**self.time) / (1 - 0.9**self.time)
        for array, gradient, mean, square in zip(
            self.parameters, gradients, self.means, self.squares, strict=True
        ):
            mean += 0.1 * (gradient - mean)
            square += 0.01 * (gradient**2 - square)
            array -= rate * mean / (np.sqrt(square) + 1e-8)


class Model:
    """Embeddings of the words before, and the output layer."""

    def __init__(self, vocabulary: int, features: int, memory: int, naive: bool) -> None:
        generator = np.random.default_rng(0)
        self.embeddings = generator.standard_normal(
            (CONTEXT, vocabulary, features), dtype=np.float32
        )
        self.embeddings *= 0.3 / math.sqrt(CONTEXT)
        self.matrix = np.zeros((vocabulary, features), np.float32)
        self.bias = np.zeros(vocabulary, np.float32)
        self.memory, self.naive = memory, naive
        self.optimizer = Adam([self.embeddings, self.matrix, self.bias], rate=0.01)
        self.embeddings_grad = np.empty_like(self.embeddings)
        self.matrix_grad, self.bias_grad = np.empty_like(self.matrix), np.empty_like(self.bias)

    def hidden(self, before: Array) -> Array:
        states: Array = sum(self.embeddings[i, before[:, i]] for i in range(CONTEXT))
        return states

    def loss(self, before: Array, target: Array) -> float:
        """Mean loss of a word that is known, in nats."""
        return float(
            sf.linear_cross_entropy(
                self.hidden(before), self.matrix, target, linear_bias=self.bias,
                ignore_index=IGNORE, memory=self.memory,
            )
        )  # fmt: skip

    def train(self, before: Array, target: Array) -> float:
        """Take one step; return the loss before it."""
        hidden = self.hidden(before)
        if self.naive:
            logits = hidden @ self.matrix.T + self.bias
            loss, gradient = sf.cross_entropy_with_grad(logits, target, ignore_index=IGNORE)
            hidden_grad = gradient @ self.matrix
            np.matmul(gradient.T, hidden, out=self.matrix_grad)
            gradient.sum(axis=0, out=self.bias_grad)
        else:
            loss, grads = sf.linear_cross_entropy_with_grad(
                hidden, self.matrix, target, linear_bias=self.bias, ignore_index=IGNORE,
                memory=self.memory, weight_grad_out=self.matrix_grad, bias_grad_out=self.bias_grad,
            )  # fmt: skip
            hidden_grad = np.asarray(grads.hidden)
        self.embeddings_grad[...] = 0
        for i in range(CONTEXT):
            np.add.at(self.embeddings_grad[i], before[:, i], hidden_grad)
        self.optimizer.step([self.embeddings_grad, self.matrix_grad, self.bias_grad])
        return float(loss)


def examples(numbers: Array) -> tuple[Array, Array]:
    """Return the words before each word, and it; rare words are not to be guessed."""
    windows = np.lib.stride_tricks.sliding_window_view(numbers, CONTEXT + 1)
    target = windows[:, -1]
    return windows[:, :-1], np.where(target == UNKNOWN, IGNORE, target)


def peak() -> float:
    """Return the most memory that this process has had so far, in MiB; NaN where none tells."""
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def train(
    steps: int, batch: int, vocabulary: int, features: int, memory: int, naive: bool = False
) -> dict[str, float]:
    """Train, and return losses of the first steps, of the last ones, and of text kept back."""
    numbers, vocabulary = numbered(words(1_000_000), vocabulary)
    before, target = examples(numbers)
    kept_back = max(batch, len(target) // 50)
    generator = np.random.default_rng(1)
    model = Model(vocabulary, features, memory, naive)
    print(f"{len(numbers)} words, {vocabulary} of them different; {batch} a step")
    print(f"whole logits and their gradient take {2 * 4 * batch * vocabulary / MIB:.0f} MiB")
    without = peak()
    losses = []
    bar = tqdm(range(steps), unit="step", desc="training")
    for _ in bar:
        rows = generator.integers(0, len(target) - kept_back, batch)
        losses.append(model.train(before[rows], target[rows]))
        if hasattr(bar, "set_postfix"):
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
    way = "with whole logits" if naive else f"with memory={memory / MIB:.0f} MiB"
    print(f"training took {peak() - without:.0f} MiB more than was there before, {way}")
    few = max(1, steps // 10)
    return {
        "first": float(np.mean(losses[:few])),
        "last": float(np.mean(losses[-few:])),
        "kept back": model.loss(before[-kept_back:], target[-kept_back:]),
        "vocabulary": float(vocabulary),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4096, help="words of a step")
    parser.add_argument("--vocabulary", type=int, default=20_000, help="words at most")
    parser.add_argument("--features", type=int, default=64, help="length of a hidden state")
    parser.add_argument("--memory", type=int, default=64, help="MiB for the loss")
    parser.add_argument("--naive", action="store_true", help="make the logits whole")
    options = parser.parse_args()
    results = train(
        options.steps, options.batch, options.vocabulary, options.features, options.memory * MIB,
        options.naive,
    )  # fmt: skip
    print(f"loss {results['first']:.3f} in the first steps, {results['last']:.3f} in the last")
    print(
        f"perplexity {math.exp(results['kept back']):.1f} on text kept back "
        f"({results['vocabulary']:.0f} before training)"
    )


if __name__ == "__main__":
    main()
