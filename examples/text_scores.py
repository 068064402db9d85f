"""Perplexity and accuracy of a text by a language model, from logits in a file.

    python examples/text_scores.py [--positions 4096] [--classes 32000]

The logits, one row of float16 for each token, are in a memory map that may be larger than the
memory at hand: target_scores reads each row once and keeps a few numbers of it. Here they are made
up: a model that gives the next token a good chance.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import softce_fast as sf

# Positions that are looked at together: their rows are all of the file that is in memory.
BLOCK = 256


def write_logits(path: Path, positions: int, classes: int) -> np.ndarray[Any, Any]:
    """Write the logits block by block; return the tokens."""
    random = np.random.default_rng(0)
    tokens = random.integers(0, classes, positions)
    logits = np.lib.format.open_memmap(path, "w+", np.float16, (positions, classes))
    for start in range(0, positions, BLOCK):
        block = random.normal(scale=2, size=(len(tokens[start : start + BLOCK]), classes))
        rows = np.arange(len(block))
        block[rows, tokens[start : start + BLOCK]] += random.uniform(0, 20, len(block))
        logits[start : start + BLOCK] = block
    logits.flush()
    return tokens


def scores_of(path: Path, tokens: np.ndarray[Any, Any]) -> dict[str, float]:
    """Return what the text's tokens score, and how sure the model is."""
    logits = np.load(path, mmap_mode="r")
    found = []
    for start in range(0, len(tokens), BLOCK):
        rows = slice(start, start + BLOCK)
        found.append(
            sf.target_scores(logits[rows], tokens[rows], entropy=True, top_k=5, dtype=np.float32)
        )
    log_prob, rank, entropy = (
        np.concatenate([getattr(block, name) for block in found])
        for name in ("log_prob", "rank", "entropy")
    )
    return {
        "perplexity": float(np.exp(-log_prob.mean(dtype=np.float64))),
        "accuracy": float((rank == 0).mean()),
        "top-5 accuracy": float((rank < 5).mean()),
        "mean entropy, nats": float(entropy.mean(dtype=np.float64)),
    }


def main(positions: int = 4096, classes: int = 32000) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "logits.npy"
        tokens = write_logits(path, positions, classes)
        scores = scores_of(path, tokens)
    for name, value in scores.items():
        print(f"{name:20} {value:.4f}")
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--positions", type=int, default=4096)
    parser.add_argument("--classes", type=int, default=32000)
    options = parser.parse_args()
    main(options.positions, options.classes)
