"""``python -m softce_fast``: the configuration; ``python -m softce_fast bench``: a quick race."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import softce_fast as sf

SHAPES = ((1, 10), (32, 1000), (100_000, 10), (4096, 1000), (32, 32768))


def _median_time(function: Callable[[], Any], budget: float = 0.4) -> float:
    function()
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < budget:
        before = time.perf_counter()
        function()
        times.append(time.perf_counter() - before)
    return statistics.median(times)


def bench() -> None:
    """Race the package against its own NumPy reference on this machine."""
    generator = np.random.default_rng(0)
    print(f"{'operation':26}{'shape':>16}{'reference':>14}{'softce_fast':>14}{'ratio':>8}")
    for shape in SHAPES:
        logits = generator.standard_normal(shape).astype(np.float32)
        target = generator.integers(0, shape[1], shape[0])
        out = np.empty_like(logits)
        grad = {"grad_out": out}
        cases: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
            ("softmax", (logits,), {"out": out}),
            ("cross_entropy", (logits, target), {}),
            ("cross_entropy_with_grad", (logits, target), grad),
        ]
        for name, arguments, options in cases:
            slow = _median_time(partial(getattr(sf.reference, name), *arguments, **options))
            fast = _median_time(partial(getattr(sf, name), *arguments, **options))
            print(
                f"{name:26}{'x'.join(map(str, shape)):>16}{slow * 1e6:>11.1f} us"
                f"{fast * 1e6:>11.1f} us{slow / fast:>8.1f}"
            )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m softce_fast", description=__doc__)
    parser.add_argument(
        "command", nargs="?", choices=["config", "bench"], default="config", help="what to do"
    )
    if parser.parse_args().command == "bench":
        bench()
    else:
        sf.show_config()


if __name__ == "__main__":
    main()
