"""softce_fast against the NumPy reference with pytest-benchmark, on the shapes of ``shapes.py``.

Run by ``make bench``. Each group is one operation on one shape and dtype, measured once for each
implementation. The number of rounds follows from the time of the first call, so that the slow
reference does not stretch the whole run.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import softce_fast
from shapes import HALF_DTYPES, OPERATIONS, Case, bench_cases, faulted_output, inputs

SECONDS = 0.35  # spent on each implementation of each case, about
FEWEST_ROUNDS, MOST_ROUNDS = 3, 30
SHORTEST_ROUND = 5e-4  # shorter calls are repeated within a round, to be above the clock's noise

# Ours first: a case that it cannot compute yet is skipped before the reference is measured.
IMPLEMENTATIONS = {"softce_fast": softce_fast, "reference": softce_fast.reference}


def make_call(module: Any, case: Case) -> Callable[[], Any]:
    """A call without arguments that does the case; outputs given to it are faulted in."""
    logits, labels = inputs(case)
    axis = case.axis
    name = case.operation.removesuffix("_out").removesuffix("_fresh")
    function = getattr(module, name)
    takes_labels = OPERATIONS[case.operation].takes_labels
    arguments = (logits, labels, axis) if takes_labels else (logits, axis)
    if not case.operation.endswith("_out"):
        return lambda: function(*arguments)
    output = faulted_output(case)
    if name == "cross_entropy_with_grad":
        return lambda: function(*arguments, grad_out=output)
    return lambda: function(*arguments, out=output)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", bench_cases(), ids=lambda case: case.identifier)
def test_speed(benchmark: Any, case: Case, implementation: str) -> None:
    benchmark.group = case.identifier
    benchmark.extra_info.update(
        operation=case.operation,
        shape=case.shape_name,
        column=case.column,
        dtype=case.dtype,
        minimum_bytes=case.minimum_bytes,
        implementation=implementation,
    )
    call = make_call(IMPLEMENTATIONS[implementation], case)
    try:
        call()
    except TypeError as error:
        if case.dtype not in HALF_DTYPES:
            raise
        pytest.skip(f"{implementation} does not take {case.dtype}: {error}")
    start = time.perf_counter()
    call()
    seconds = max(time.perf_counter() - start, 1e-9)
    iterations = max(math.ceil(SHORTEST_ROUND / seconds), 1)
    rounds = min(max(int(SECONDS / (seconds * iterations)), FEWEST_ROUNDS), MOST_ROUNDS)
    benchmark.pedantic(call, rounds=rounds, iterations=iterations)
