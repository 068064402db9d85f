"""The classes of a loss in four processes, which send each other row states and nothing else.

    python examples/sharded_classes.py
    mpirun -n 2 python examples/sharded_classes.py --mpi

Each process has a part of the class matrix and makes the logits of its classes. It sends what they
sum up to, some 230 bytes a row for 4096 classes, to all others; from the merged states each has the
loss, and the gradient by its own logits, with the bits of one process that has all classes.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
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


def loss_and_gradient(
    rank: int, processes: int, exchange: Callable[[Array], list[Array]]
) -> tuple[float, Array]:
    """Have the classes of one process; `exchange` sends states, and returns those of all."""
    hidden, matrix, target = inputs()
    count = CLASSES // processes
    offset = rank * count
    logits = hidden @ matrix[offset : offset + count].T
    states = sharded.merge(*exchange(sharded.row_states(logits, target, class_offset=offset)))
    loss = sharded.cross_entropy(states)
    return loss, sharded.cross_entropy_grad(logits, target, states, class_offset=offset)


def work(rank: int, pipe: Connection) -> None:
    def exchange(states: Array) -> list[Array]:
        pipe.send(states)
        everybodys: list[Array] = pipe.recv()
        return everybodys

    pipe.send(loss_and_gradient(rank, PROCESSES, exchange))


def by_multiprocessing() -> None:
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
    report([pipe.recv() for pipe in pipes])
    for process in processes:
        process.join()


def by_mpi() -> None:
    from mpi4py import MPI  # type: ignore[import-not-found, unused-ignore]

    everybody = MPI.COMM_WORLD
    found = loss_and_gradient(everybody.rank, everybody.size, everybody.allgather)
    results = everybody.gather(found)
    if results is not None:
        report(results)


def report(results: list[tuple[float, Array]]) -> None:
    """Compare with a process that has all classes."""
    losses, gradients = zip(*results, strict=True)
    gradient = np.concatenate(gradients, axis=1)
    hidden, matrix, target = inputs()
    logits = hidden @ matrix.T
    loss, whole = sf.cross_entropy_with_grad(logits, target)
    sent = sharded.row_states(logits[:, : sharded.SPLIT], target).nbytes // ROWS
    print(f"loss {losses[0]:.6f} in each process, {loss:.6f} in one; {sent} bytes sent a row")
    print(f"gradients have the same bits: {gradient.tobytes() == whole.tobytes()}")


if __name__ == "__main__":
    if "--mpi" in sys.argv:
        by_mpi()
    else:
        by_multiprocessing()
