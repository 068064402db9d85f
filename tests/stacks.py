"""How much of a thread's stack each call takes: ``python tests/stacks.py`` prints a table.

Each call runs in a new thread of a new process, whose stack is of pages that were never touched.
How far down there are bytes other than zero, there and on the stack of OpenMP's thread, is how far
the call went. Python's own frames and the data that every thread has at the top of its stack are
included.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

# Sizes that no other stack has.
CALLER_STACK, OPENMP_STACK = 48 << 20, 96 << 20
ENVIRONMENT = {"OMP_STACKSIZE": f"{OPENMP_STACK >> 10}k", "OMP_WAIT_POLICY": "passive"}


NOTHING = "nothing at all"  # what takes what a thread has at the top of its stack


class Depth(NamedTuple):
    """Bytes of stack that a call took."""

    caller: int
    worker: int  # the deepest of OpenMP's threads


def stacks(size: int) -> Iterator[tuple[int, int]]:
    """Yield where the stacks of that size are: behind a guard page, and before anything else."""
    guarded = False
    with open("/proc/self/maps") as file:
        for line in file:
            addresses, permissions, *_ = line.split()
            start, stop = (int(address, 16) for address in addresses.split("-"))
            # What comes next may be mapped as one with it; such large sizes are nobody else's.
            if (
                guarded
                and permissions == "rw-p"
                and size <= stop - start < size + CALLER_STACK // 3
            ):
                yield start, start + size
            guarded = permissions == "---p" and stop - start == mmap.PAGESIZE


def depth(start: int, stop: int) -> int:
    """Return how far from its top a stack was written to."""
    import numpy as np

    pages = (stop - start) // mmap.PAGESIZE
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(start // mmap.PAGESIZE * 8)
        entries = np.frombuffer(file.read(8 * pages), np.uint64)
    touched = np.flatnonzero(entries >> np.uint64(62))
    if not touched.size:
        return 0
    lowest = start + int(touched[0]) * mmap.PAGESIZE
    words = np.frombuffer(ctypes.string_at(lowest, stop - lowest), np.uint64)
    return stop - lowest - 8 * int(np.flatnonzero(words)[0])


def measure(call: Callable[[], object]) -> Depth:
    """Run a call in a new thread of a new process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, json.dumps(measure_here(call)).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as file:
        text = file.read()
    os.waitpid(child, 0)
    return Depth(*json.loads(text))


def measure_here(call: Callable[[], object]) -> Depth:
    """Run a call in a new thread, and look at its stack from this one."""
    called, measured = threading.Event(), threading.Event()

    def run() -> None:
        call()
        called.set()
        measured.wait()

    threading.stack_size(CALLER_STACK)
    threading.Thread(target=run, daemon=True).start()
    called.wait()
    ((start, stop),) = stacks(CALLER_STACK)
    workers = [depth(*found) for found in stacks(OPENMP_STACK)]
    return Depth(depth(start, stop), max(workers, default=0))


SHAPES = {
    "small": ((20, 50), 1),
    "few classes": ((9000, 10), 1),
    "short rows": ((2000, 70), 1),
    "long rows": ((3, 150_000), 1),
    "columns": ((90, 3000), 0),
    "long middle axis": ((2, 5000, 40), 1),
}


def calls(dtype: Any, shape: tuple[int, ...], axis: int) -> dict[str, Callable[[], object]]:
    """Return a call of every function on an array."""
    import numpy as np

    import softce_fast as sf
    from softce_fast import sharded

    random = np.random.default_rng(0)
    x = random.normal(size=shape).astype(dtype)
    out, other = np.empty_like(x), np.empty_like(x)
    classes = shape[axis]
    labels = random.integers(0, classes, shape[:axis] + shape[axis + 1 :])
    if axis == x.ndim - 1:
        axis = -1  # by its usual name: so small calls take their short way
    probs, weight = sf.softmax(x, axis), np.linspace(0.5, 2, classes)
    states = sharded.row_states(x, labels, axis, weight=weight)
    options: dict[str, Any] = {"weight": weight, "label_smoothing": 0.1, "z_loss": 0.01}
    return {
        "softmax": lambda: sf.softmax(x, axis, out=out),
        "log_softmax": lambda: sf.log_softmax(x, axis, out=out),
        "masked softmax": lambda: sf.softmax(x, axis, where=x < 1, out=out),
        "logsumexp": lambda: sf.logsumexp(x, axis),
        "logsumexp, b": lambda: sf.logsumexp(x, axis, b=probs),
        "softmax_backward": lambda: sf.softmax_backward(x, probs, axis, out=out),
        "log_softmax_backward": lambda: sf.log_softmax_backward(x, probs, axis, out=out),
        "cross_entropy": lambda: sf.cross_entropy(x, labels, axis),
        "with_grad": lambda: sf.cross_entropy_with_grad(x, labels, axis, grad_out=out),
        "with_grad, options": lambda: sf.cross_entropy_with_grad(
            x, labels, axis, grad_out=out, **options
        ),
        "with_grad, probabilities": lambda: sf.cross_entropy_with_grad(
            x, probs, axis, grad_out=out, **options
        ),
        "with_grad, capped and masked": lambda: sf.cross_entropy_with_grad(
            x, labels, axis, grad_out=out, softcap=5.0, where=x < 1, **options
        ),
        "with_grad_and_hessian": lambda: sf.cross_entropy_with_grad_and_hessian(
            x, labels, axis, grad_out=out, hessian_out=other
        ),
        "target_scores": lambda: sf.target_scores(x, labels, axis, top_k=5, entropy=True),
        "row_states": lambda: sharded.row_states(x, labels, axis, weight=weight),
        "sharded gradient": lambda: sharded.cross_entropy_grad(
            x, labels, states, axis, weight=weight, label_smoothing=0.1, grad_out=out
        ),
        "nll_loss": lambda: sf.nll_loss(x, labels, axis),
        "nll_loss, probabilities": lambda: sf.nll_loss(x, probs, axis),
        "cross_entropy_from_probs": lambda: sf.cross_entropy_from_probs(probs, labels, axis),
        "binary_cross_entropy": lambda: sf.binary_cross_entropy(probs, probs),
        "binary_with_grad": lambda: sf.binary_cross_entropy_with_logits_with_grad(
            x, probs, grad_out=out
        ),
    }


def all_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield a call of every function for every dtype and way through the kernels, with its name."""
    for dtype in dtypes():
        for title, (shape, axis) in SHAPES.items():
            for name, call in calls(dtype, shape, axis).items():
                yield f"{name}, {title}, {dtype}", call


def dtypes() -> Iterator[Any]:
    """Yield the dtypes that have kernels."""
    import numpy as np

    for name in ("float32", "float64", "float16"):
        yield np.dtype(name)
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        return
    yield np.dtype(bfloat16)


def measured() -> Iterator[tuple[str, Depth]]:
    """Yield the name and the depth of nothing at all, then of each call."""
    import softce_fast as sf

    yield NOTHING, measure(lambda: None)
    sf.set_num_threads(2)
    for name, call in all_calls():
        with sf.num_threads(1):
            call()  # imports, and whatever is done once, need not be counted
        yield name, measure(call)


def print_measured() -> None:
    """Print the depths of all calls as JSON."""
    print(json.dumps(dict(measured())))


def main() -> None:
    """Print for each function the call that takes most, deepest first."""
    os.environ.update(ENVIRONMENT)  # OpenMP reads it when it is loaded
    found = dict(measured())
    print(f"Nothing at all: {found.pop(NOTHING).caller} bytes of the calling thread's stack")
    print("| call | calling thread | OpenMP's thread |\n| --- | ---: | ---: |")
    seen = set()
    for name, taken in sorted(found.items(), key=lambda item: -item[1].worker):
        function = name.split(",")[0]
        if function not in seen:
            seen.add(function)
            print(f"| {name} | {taken.caller} | {taken.worker} |")
    for who in Depth._fields:
        most, name = max((getattr(taken, who), name) for name, taken in found.items())
        print(f"Most of the {who}'s: {most}, {name}")


if __name__ == "__main__":
    main()
