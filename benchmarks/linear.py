"""linear_cross_entropy_with_grad against its floor and PyTorch: time, and growth of the peak.

The floor is what no way can do without: three products of the same sizes by numpy.matmul, into
arrays that are there. Calls alternate. Memory is measured in a process of its own for each way.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import machine
import report
import softce_fast as sf
import timing
from report import FLOOR

OURS, OURS_HALF = "softce_fast", "softce_fast, half of the rows ignored"
IGNORE = -100

Array = np.ndarray[Any, Any]


class Arrays:
    """Inputs, and arrays for the gradients."""

    def __init__(self, rows: int, classes: int, features: int) -> None:
        generator = np.random.default_rng(0)
        self.hidden = generator.standard_normal((rows, features), dtype=np.float32)
        self.matrix = generator.standard_normal((classes, features), dtype=np.float32)
        self.matrix /= np.float32(features**0.5)
        self.target = generator.integers(0, classes, rows)
        self.hidden_grad = np.ones_like(self.hidden)
        self.matrix_grad = np.ones_like(self.matrix)


def floor(arrays: Arrays) -> Callable[[], Any]:
    logits = np.ones((len(arrays.hidden), len(arrays.matrix)), np.float32)

    def call() -> None:
        np.matmul(arrays.hidden, arrays.matrix.T, out=logits)
        np.matmul(logits, arrays.matrix, out=arrays.hidden_grad)
        np.matmul(logits.T, arrays.hidden, out=arrays.matrix_grad)

    return call


def ours(arrays: Arrays) -> Callable[[], Any]:
    return partial(
        sf.linear_cross_entropy_with_grad, arrays.hidden, arrays.matrix, arrays.target,
        hidden_grad_out=arrays.hidden_grad, weight_grad_out=arrays.matrix_grad,
    )  # fmt: skip


def ours_half(arrays: Arrays) -> Callable[[], Any]:
    call = ours(arrays)
    target = np.where(np.arange(len(arrays.target)) % 2, IGNORE, arrays.target)
    assert isinstance(call, partial)
    return partial(call.func, arrays.hidden, arrays.matrix, target, **call.keywords)


def ours_loss(arrays: Arrays) -> Callable[[], Any]:
    return partial(sf.linear_cross_entropy, arrays.hidden, arrays.matrix, arrays.target)


def torch_way(way: str, arrays: Arrays) -> Callable[[], Any]:
    import torch

    hidden, matrix = (torch.tensor(item) for item in (arrays.hidden, arrays.matrix))
    hidden.requires_grad_()
    matrix.requires_grad_()
    target = torch.tensor(arrays.target)

    def loss(hidden: Any, matrix: Any) -> Any:
        logits = torch.nn.functional.linear(hidden, matrix)
        return torch.nn.functional.cross_entropy(logits, target)

    function: Any = torch.compile(loss) if way == "compiled" else loss
    if way == "chunked":
        function = partial(
            torch.nn.functional.linear_cross_entropy,
            target=target,
            options=torch.nn.LinearCrossEntropyOptions(),
        )

    def call() -> None:
        hidden.grad = matrix.grad = None
        function(hidden, matrix).backward()

    return call


WAYS: dict[str, Callable[[Arrays], Callable[[], Any]]] = {
    FLOOR: floor,
    OURS: ours,
    OURS_HALF: ours_half,
    "softce_fast, loss alone": ours_loss,
}
if importlib.util.find_spec("torch"):
    WAYS |= {f"PyTorch, {way}": partial(torch_way, way) for way in ("eager", "compiled", "chunked")}


def usable(arrays: Arrays) -> dict[str, Callable[[], Any]]:
    """The ways that work here, ready to be called."""
    calls = {}
    for name, way in WAYS.items():
        try:
            calls[name] = way(arrays)
            calls[name]()
        except Exception as error:
            print(f"left out: {name}: {type(error).__name__}: {str(error)[:200]}")
            calls.pop(name, None)
    return calls


def growth(name: str, shape: tuple[int, int, int]) -> int:
    """Bytes by which the peak of a new process grows in a call; a small one comes before."""
    command = [sys.executable, __file__, "--grow", name, "--shape", *map(str, shape)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def grow(name: str, shape: tuple[int, int, int]) -> None:
    WAYS[name](Arrays(64, 64, shape[2]))()
    arrays = Arrays(*shape)
    before = peak()
    WAYS[name](arrays)()
    print(peak() - before)


def peak() -> int:
    """Bytes of memory that this process has had at most; Linux tells."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def main() -> None:
    parser = report.parser("linear", __doc__)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=32_000)
    parser.add_argument("--features", type=int, nargs="+", default=[128, 256, 512, 1024, 2048])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--grow", help=argparse.SUPPRESS)
    parser.add_argument("--shape", type=int, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.grow:
        grow(options.grow, tuple(options.shape))
        return
    seconds, peaks = {}, {}
    for features in options.features:
        shape = options.rows, options.classes, features
        title = "x".join(map(str, shape))
        calls = usable(Arrays(*shape))
        seconds[title] = timing.medians(
            timing.alternate(calls, rounds=1 if options.quick else options.rounds, seconds=0)
        )
        peaks[title] = {name: growth(name, shape) for name in calls}
    document = {
        **machine.describe(["numpy", "torch"]),
        "seconds": seconds,
        "peak_growth_bytes": peaks,
    }
    report.finish("linear", options.json, document)


if __name__ == "__main__":
    main()
