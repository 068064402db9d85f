"""softce_fast against textbook NumPy with pytest-benchmark, on the shapes of ``shapes.py``.

Run by ``make bench``. Each group is one operation on one shape and dtype, measured once for each
implementation. The number of rounds follows from the time of the first call, so that the slower
one does not stretch the whole run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import peers
import softce_fast
import timing
from shapes import BENCH_CASES, HALF_DTYPES, Case, Problem
from softce_fast import _textbook

SECONDS = 0.35  # spent on each implementation of each case, about
FEWEST_ROUNDS, MOST_ROUNDS = 3, 30

# Ours first: a case that it cannot compute yet is skipped before NumPy is measured.
IMPLEMENTATIONS = {"softce_fast": softce_fast, "textbook": _textbook}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", BENCH_CASES, ids=lambda case: case.identifier)
def test_speed(benchmark: Any, case: Case, implementation: str) -> None:
    benchmark.group = case.identifier
    benchmark.extra_info |= {**case.described(), "implementation": implementation}
    call = peers.call(IMPLEMENTATIONS[implementation], Problem.of(case))
    try:
        call()
    except TypeError as error:
        if case.dtype not in HALF_DTYPES:
            raise
        pytest.skip(f"{implementation} does not take {case.dtype}: {error}")
    seconds = timing.timed(call, 1)
    number = timing.repeats(seconds)
    rounds = min(max(int(SECONDS / (seconds * number)), FEWEST_ROUNDS), MOST_ROUNDS)
    benchmark.pedantic(call, rounds=rounds, iterations=number)
