"""The classes of a loss in four processes, which send each other row states and nothing else.

    python examples/sharded_classes.py

Each process has a quarter of the class matrix and makes the logits of its classes. It sends what
they sum up to, some 150 bytes a row, to all others; from the merged states each has the loss, and
the gradient by its own logits, with the bits of one process that has all classes.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

import softce_fast as sf
from softce_fast import sharded

PROCESSES, ROWS, FEATURES = 4, 32, 16
CLASSES = PROCESSES * sharded.SPLIT  # shards that begin at multiples of SPLIT keep the bits

Array = np.ndarray[Any, Any]


def inputs() -> tuple[Array, Array, Array]:
    """Return hidden states, the class matrix and the target."""
    random = np.random.default_rng(0)
    hidden = random.integers(-3, 4, (ROWS, FEATURES)).astype(np.float32)
    matrix = random.integers(-3, 4, (CLASSES, FEATURES)).astype(np.float32)
    return hidden, matrix, random.integers(0, CLASSES, ROWS)


def work(rank: int, pipe: Connection) -> None:
    """Have the classes of one process."""
    hidden, matrix, target = inputs()
    offset = rank * sharded.SPLIT
    logits = hidden @ matrix[offset : offset + sharded.SPLIT].T
    pipe.send(sharded.row_states(logits, target, class_offset=offset))
    states = sharded.merge(*pipe.recv())
    loss = sharded.cross_entropy(states)
    gradient = sharded.cross_entropy_grad(logits, target, states, class_offset=offset)
    pipe.send((loss, gradient))


def main() -> tuple[float, Array]:
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for rank in range(PROCESSES):
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(rank, theirs))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    # What a collective operation does (allgather of MPI): each gets the states of all.
    states = [pipe.recv() for pipe in pipes]
    for pipe in pipes:
        pipe.send(states)
    losses, gradients = zip(*(pipe.recv() for pipe in pipes), strict=True)
    for process in processes:
        process.join()
    gradient = np.concatenate(gradients, axis=1)

    hidden, matrix, target = inputs()
    loss, whole = sf.cross_entropy_with_grad(hidden @ matrix.T, target)
    sent = sum(item.nbytes for item in states) // (PROCESSES * ROWS)
    print(f"loss {losses[0]:.6f} in each process, {loss:.6f} in one; {sent} bytes sent a row")
    print(f"gradients have the same bits: {gradient.tobytes() == whole.tobytes()}")
    return float(losses[0]), gradient


if __name__ == "__main__":
    main()
