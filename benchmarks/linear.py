"""The loss of hidden states and a class matrix: time, and how far the memory of the process grows.

Against the matrix products that no way can do without, PyTorch eager, compiled and chunked, and
JAX. Each way lives in a process of its own, as in compare.py.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import machine
import report
import softce_fast as sf
import timing
from compare import ENVIRONMENT, SETTLE_SECONDS, PeerProcess
from report import PRODUCTS
from timing import Call

GRADIENTS, LOSS = "loss and gradients", "loss alone"
OURS, OURS_HALF = "softce_fast", "softce_fast, half of the rows ignored"
COMPILED, CHUNKED = "PyTorch, compiled", "PyTorch, chunked"
WHOLE = ("PyTorch, eager", COMPILED, "JAX")  # those that make the logits whole
PEERS = (*WHOLE, CHUNKED)
IGNORE = -100
LONG = 0.1  # seconds of a call that needs no other before it to be warm
# So many multiplications for the logits, and a call takes a second or more: no more rounds then.
MANY, FEW_ROUNDS = 5e10, 3

Array = np.ndarray[Any, Any]
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


# ---------------------------------------------------------------------------------------- the ways


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
    if task == LOSS:
        return partial(sf.linear_cross_entropy, arrays.hidden, arrays.matrix, target)
    return partial(
        sf.linear_cross_entropy_with_grad, arrays.hidden, arrays.matrix, target,
        hidden_grad_out=arrays.hidden_grad, weight_grad_out=arrays.matrix_grad,
    )  # fmt: skip


def torch_way(way: str, task: str, arrays: Arrays) -> Call:
    import torch

    target = torch.tensor(arrays.target)
    hidden, matrix = (
        torch.tensor(item, requires_grad=task == GRADIENTS)
        for item in (arrays.hidden, arrays.matrix)
    )

    def whole(hidden: Any, matrix: Any) -> Any:
        logits = torch.nn.functional.linear(hidden, matrix)
        return torch.nn.functional.cross_entropy(logits, target)

    loss: Callable[..., Any] = torch.compile(whole) if way == COMPILED else whole
    if way == CHUNKED:
        loss = partial(
            torch.nn.functional.linear_cross_entropy, target=target,
            options=torch.nn.LinearCrossEntropyOptions(),
        )  # fmt: skip

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


# --------------------------------------------------------------------------------- measurements


class Measured:
    """What a process measures, one call after the other."""

    call: Call


def prepare(way: str, task: str, shape: Shape) -> float:
    """Return the loss."""
    Measured.call = WAYS[way](task, Arrays(*shape))
    result = Measured.call()
    return float(result[0] if isinstance(result, tuple) else result)


def block() -> timing.Block:
    """Time a call, after another where that says more than it costs."""
    seconds = timing.timed(Measured.call, 1)
    return [seconds if seconds > LONG else timing.timed(Measured.call, 1)]


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


def times(task: str, shapes: Iterable[Shape], rounds: int) -> Iterator[dict[str, Any]]:
    processes = [PeerProcess(way) for way in WAYS]
    for shape in tqdm(list(shapes), desc=task):
        blocks, losses = {}, {}
        for process in processes:
            time.sleep(SETTLE_SECONDS)
            process.missing = ""
            losses[process.name] = process.ask(prepare, process.name, task, shape)
            if process.missing:
                print(f"left out: {process.name}, {shape}: {process.missing}")
            else:
                blocks[process.name] = partial(process.ask, block)
        whole = [losses[way] for way in (OURS, *PEERS) if losses[way] is not None]
        np.testing.assert_allclose(whole, whole[0], rtol=1e-4)
        repeated = rounds if math.prod(shape) < MANY else min(rounds, FEW_ROUNDS)
        found = timing.medians(timing.interleaved(blocks, repeated, SETTLE_SECONDS))
        for way, seconds in found.items():
            yield {"task": task, "features": shape[2], "way": way, "seconds": seconds}
    for process in processes:
        process.executor.shutdown()


def peaks(shapes: Iterable[Shape]) -> Iterator[dict[str, Any]]:
    for shape in tqdm(list(shapes), desc="memory"):
        for way in WAYS:
            process = PeerProcess(way)
            if found := process.ask(growth, way, shape):
                yield {"rows": shape[0], "way": way, "bytes": found}
            process.executor.shutdown()


# -------------------------------------------------------------------------------------- the targets

# By number of features.
SHARE_OF_PRODUCTS = {128: 0.75, 256: 0.75, 512: 0.85, 1024: 0.85, 2048: 0.85}
OVER_WHOLE = {128: 1.4, 256: 1.1, 512: 1.1, 1024: 1.0, 2048: 1.0}
OVER_WHOLE_LOSS = {128: 1.8, 512: 1.3, 2048: 1.0}
OVER_CHUNKED = dict.fromkeys(OVER_WHOLE, 1.3)
OVER_ALL_ROWS = dict.fromkeys(OVER_WHOLE, 1.8)


def compared(found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Ratios of times that there is a target for."""
    by_key = {(e["task"], e["features"], e["way"]): e["seconds"] for e in found}
    whole = "the best that makes the logits whole"
    wanted = (
        (GRADIENTS, OURS, "the products alone", (PRODUCTS,), SHARE_OF_PRODUCTS),
        (GRADIENTS, OURS, whole, WHOLE, OVER_WHOLE),
        (GRADIENTS, OURS, CHUNKED, (CHUNKED,), OVER_CHUNKED),
        (GRADIENTS, OURS_HALF, "all of the rows", (OURS,), OVER_ALL_ROWS),
        (LOSS, OURS, whole, WHOLE, OVER_WHOLE_LOSS),
    )
    for task, way, rival, names, targets in wanted:
        for features, target in targets.items():
            keys = [(task, features, name) for name in names]
            others = [by_key[key] for key in keys if key in by_key]
            if others and (task, features, way) in by_key:
                yield {
                    "what": f"{task}: {way} over {rival}", "features": features, "target": target,
                    "ratio": min(others) / by_key[task, features, way],
                }  # fmt: skip


def main() -> None:
    parser = report.parser("linear", __doc__)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=32_000)
    parser.add_argument("--features", type=int, nargs="+", default=[128, 256, 512, 1024, 2048])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-rows", type=int, nargs="+", default=[1024, 4096, 16_384])
    parser.add_argument("--memory-features", type=int, default=512)
    options = parser.parse_args()
    if options.quick:
        options.rows, options.classes, options.rounds = 256, 2000, 1
        options.features, options.memory_rows = [128, 256], [256, 1024]
    os.environ.update({key: os.environ.get(key, value) for key, value in ENVIRONMENT.items()})
    shapes = [(options.rows, options.classes, features) for features in options.features]
    found = [entry for task in (GRADIENTS, LOSS) for entry in times(task, shapes, options.rounds)]
    document = {
        **machine.describe(["numpy", "torch", "jax"]),
        "rows": options.rows, "classes": options.classes, "times": found,
        "compared": list(compared(found)), "memory_features": options.memory_features,
        "peaks": list(peaks(
            (rows, options.classes, options.memory_features) for rows in options.memory_rows
        )),
    }  # fmt: skip
    report.finish("linear", options.json, document)


if __name__ == "__main__":
    main()
