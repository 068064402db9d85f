"""``python -m softce_fast``: the configuration; ``python -m softce_fast bench``: a quick race."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
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
        cases: dict[str, Callable[[Any], Any]] = {
            "softmax": lambda m, x=logits, o=out: m.softmax(x, out=o),
            "cross_entropy": lambda m, x=logits, t=target: m.cross_entropy(x, t),
            "cross_entropy_with_grad": (
                lambda m, x=logits, t=target, o=out: m.cross_entropy_with_grad(x, t, grad_out=o)
            ),
        }
        for name, case in cases.items():
            slow = _median_time(lambda case=case: case(sf.reference))
            fast = _median_time(lambda case=case: case(sf))
            print(
                f"{name:26}{'x'.join(map(str, shape)):>16}{slow * 1e6:>11.1f} us{fast * 1e6:>11.1f} us"
                f"{slow / fast:>8.1f}"
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
