"""The loss of hidden states and a class matrix: time, and how far the memory of the process grows.

Against the matrix products that no way can do without, PyTorch eager, compiled and chunked, and
JAX. Each way lives in a process of its own, as in compare.py.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

import report
import softce_fast as sf
import timing
from compare import SETTLE_SECONDS, PeerProcess
from report import PRODUCTS
from timing import LONG, Call

GRADIENTS, LOSS = "loss and gradients", "loss alone"
OURS, OURS_HALF = "softce_fast", "softce_fast, half of the rows ignored"
COMPILED, CHUNKED = "PyTorch, compiled", "PyTorch, chunked"
WHOLE = ("PyTorch, eager", COMPILED, "JAX")  # those that make the logits whole
PEERS = (*WHOLE, CHUNKED)
IGNORE = -100
# So many multiplications for the logits, and a call takes a second or more: no more rounds then.
MANY, FEW_ROUNDS = 5e10, 3
MEMORY_FEATURES = 512


class Settings(NamedTuple):
    rows: int
    classes: int
    rounds: int
    features: tuple[int, ...]
    memory_rows: tuple[int, ...]


FULL = Settings(2048, 32_000, 5, (128, 256, 512, 1024, 2048), (1024, 4096, 16_384))
QUICK = Settings(256, 2000, 1, (128, 256), (256, 1024))

Shape = tuple[int, int, int]  # rows, classes, features


class Arrays:
    """Inputs, and arrays for the gradients, whose memory nothing has touched yet."""

    def __init__(self, rows: int, classes: int, features: int) -> None:
        generator = np.random.default_rng(0)
        self.hidden = generator.standard_normal((rows, features), dtype=np.float32)
        self.matrix = generator.standard_normal((classes, features), dtype=np.float32)
        self.matrix /= np.float32(features**0.5)
        self.target = generator.integers(0, classes, rows)
        self.hidden_grad = np.empty_like(self.hidden)
        self.matrix_grad = np.empty_like(self.matrix)


def products(task: str, arrays: Arrays) -> Call:
    logits = np.empty((len(arrays.hidden), len(arrays.matrix)), np.float32)

    def call() -> float:
        np.matmul(arrays.hidden, arrays.matrix.T, out=logits)
        if task == GRADIENTS:
            np.matmul(logits, arrays.matrix, out=arrays.hidden_grad)
            np.matmul(logits.T, arrays.hidden, out=arrays.matrix_grad)
        return math.nan

    return call


def ours(task: str, arrays: Arrays, every: int = 0) -> Call:
    """With every second row ignored, or so."""
    target = arrays.target.copy()
    if every:
        target[::every] = IGNORE
    given = arrays.hidden, arrays.matrix, target
    if task == LOSS:
        return partial(sf.linear_cross_entropy, *given)
    return partial(
        sf.linear_cross_entropy_with_grad, *given, hidden_grad_out=arrays.hidden_grad,
        weight_grad_out=arrays.matrix_grad,
    )  # fmt: skip


def torch_way(way: str, task: str, arrays: Arrays) -> Call:
    import torch

    functional, target = torch.nn.functional, torch.tensor(arrays.target)
    hidden = torch.tensor(arrays.hidden, requires_grad=task == GRADIENTS)
    matrix = torch.tensor(arrays.matrix, requires_grad=task == GRADIENTS)

    def whole(hidden: Any, matrix: Any) -> Any:
        return functional.cross_entropy(functional.linear(hidden, matrix), target)

    loss: Callable[..., Any] = torch.compile(whole) if way == COMPILED else whole
    if way == CHUNKED:
        chunks = torch.nn.LinearCrossEntropyOptions()
        loss = partial(functional.linear_cross_entropy, target=target, options=chunks)

    def call() -> Any:
        hidden.grad = matrix.grad = None
        found = loss(hidden, matrix)
        if task == GRADIENTS:
            found.backward()
        return found.detach()

    return call


def jax(task: str, arrays: Arrays) -> Call:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    def loss(hidden: Any, matrix: Any, target: Any) -> Any:
        logits = hidden @ matrix.T
        at_label = jax.numpy.take_along_axis(logits, target[:, None], 1)[:, 0]
        return (jax.nn.logsumexp(logits, axis=1) - at_label).mean()

    function = jax.jit(loss if task == LOSS else jax.value_and_grad(loss, argnums=(0, 1)))
    given = arrays.hidden, arrays.matrix, arrays.target.astype(np.int32)
    inputs = [jax.numpy.asarray(item) for item in given]
    return lambda: jax.block_until_ready(function(*inputs))


WAYS: dict[str, Callable[[str, Arrays], Call]] = {
    PRODUCTS: products,
    OURS: ours,
    OURS_HALF: partial(ours, every=2),
    **{name: partial(torch_way, name) for name in ("PyTorch, eager", COMPILED, CHUNKED)},
    "JAX": jax,
}


call: Call  # of the way and the shape that this process measures


def prepare(way: str, task: str, shape: Shape) -> float:
    """The loss, by the call that is measured next."""
    global call
    call = WAYS[way](task, Arrays(*shape))
    result = call()
    return float(result[0] if isinstance(result, tuple) else result)


def block() -> timing.Block:
    """The time of a call, after another where that says more than it costs."""
    seconds = timing.timed(call, 1)
    return [seconds if seconds > LONG else timing.timed(call, 1)]


def growth(way: str, shape: Shape) -> int:
    """Bytes by which the peak of this process grows in a call; a small one comes before."""
    WAYS[way](GRADIENTS, Arrays(64, 64, shape[2]))()
    call = WAYS[way](GRADIENTS, Arrays(*shape))
    before = peak()
    call()
    return peak() - before


def peak() -> int:
    """Bytes of memory that this process has had at most; Linux tells."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def times(task: str, settings: Settings) -> Iterator[dict[str, Any]]:
    processes = [PeerProcess(way) for way in WAYS]
    for features in tqdm(settings.features, desc=task):
        shape = settings.rows, settings.classes, features
        blocks, losses = {}, []
        for process in processes:
            time.sleep(SETTLE_SECONDS)
            process.missing = ""
            loss = process.ask(prepare, process.name, task, shape)
            if process.missing:
                print(f"left out: {process.name}, {shape}: {process.missing}")
                continue
            blocks[process.name] = partial(process.ask, block)
            if process.name in (OURS, *PEERS):
                losses.append(loss)
        np.testing.assert_allclose(losses, losses[0], rtol=1e-4)
        rounds = min(settings.rounds, FEW_ROUNDS) if math.prod(shape) >= MANY else settings.rounds
        found = timing.medians(timing.interleaved(blocks, rounds, SETTLE_SECONDS))
        for way, seconds in found.items():
            yield {"task": task, "features": features, "way": way, "seconds": seconds}
    for process in processes:
        process.executor.shutdown()


def peaks(settings: Settings) -> Iterator[dict[str, Any]]:
    for rows in tqdm(settings.memory_rows, desc="memory"):
        for way in WAYS:
            process = PeerProcess(way)
            if found := process.ask(growth, way, (rows, settings.classes, MEMORY_FEATURES)):
                yield {"rows": rows, "way": way, "bytes": found}
            process.executor.shutdown()


BEST_WHOLE = "the best that makes the logits whole"
# Task, way, what it is compared with, the ways of that; so many times as fast, by features.
TARGETS = (
    (GRADIENTS, OURS, "the products alone", (PRODUCTS,),
     {128: 0.75, 256: 0.75, 512: 0.85, 1024: 0.85, 2048: 0.85}),
    (GRADIENTS, OURS, BEST_WHOLE, WHOLE, {128: 1.4, 256: 1.1, 512: 1.1, 1024: 1.0, 2048: 1.0}),
    (GRADIENTS, OURS, CHUNKED, (CHUNKED,), dict.fromkeys(FULL.features, 1.3)),
    (GRADIENTS, OURS_HALF, "all of the rows", (OURS,), dict.fromkeys(FULL.features, 1.8)),
    (LOSS, OURS, BEST_WHOLE, WHOLE, {128: 1.8, 512: 1.3, 2048: 1.0}),
)  # fmt: skip


def compared(found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Ratios of times that there is a target for."""
    by_key = {(e["task"], e["features"], e["way"]): e["seconds"] for e in found}
    for task, way, rival, names, targets in TARGETS:
        for features, target in targets.items():
            others = [by_key.get((task, features, name), math.inf) for name in names]
            ratio = min(others) / by_key.get((task, features, way), math.inf)
            if 0 < ratio < math.inf:  # else one of both was not measured
                what = f"{task}: {way} over {rival}"
                yield {"what": what, "features": features, "target": target, "ratio": ratio}


def measure(options: Any) -> dict[str, Any]:
    settings = QUICK if options.quick else FULL
    found = [entry for task in (GRADIENTS, LOSS) for entry in times(task, settings)]
    return {
        "rows": settings.rows, "classes": settings.classes, "times": found,
        "compared": list(compared(found)), "memory_features": MEMORY_FEATURES,
        "peaks": list(peaks(settings)),
    }  # fmt: skip


if __name__ == "__main__":
    report.run("linear", __doc__, measure, ["numpy", "torch", "jax"])
