"""What each mechanism of the kernels gains: the time without it over the time with it.

A mechanism is taken out by forcing the plan of a call (execute.forcing). Where a plan does not use
it, or has no other way, the cell is left out. A forced plan takes some microseconds to make: the
plan as it is, is forced, too, and that time, known from a call that does little else, subtracted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from tqdm import tqdm

import peers
import report
import softce_fast
import timing
from report import PLANNED
from shapes import ITEM_SIZES, MEBIBYTE, Case, Problem
from softce_fast import _dispatch
from softce_fast._kernels import execute
from timing import Call

Fields = dict[str, Any]

BUILDS = ("avx512", "avx2")
DTYPES = ("float32", "float64", "float16")
OPERATIONS = ("softmax_out", "cross_entropy", "cross_entropy_with_grad_out")
CLASSES = (3, 10, 16, 64, 128, 256, 1000, 32_768, 131_072)  # of 64 MB each
# The last leaves rows over that fill no group.
OTHER_SHAPES = ((1, 2**22), (100, 30_000), (32, 1000), (100, 100))


IN_A_ROW = 5  # calls after which a plan is that of one of many
NOT_KEPT: Fields = {"keep": False, "keep_in_output": False}
# What a plan has where it is in use, and how to do without: the first way that is possible.
MECHANISMS: dict[str, tuple[Fields, ...]] = {
    "across": ({"passes": "across"}, {"passes": "along"}),
    "batches of tiles": ({"passes": "across"}, {"batch": 1}),
    "rest along": ({"rest_along": True}, {"rest_along": False}),
    "several rows at once": ({"passes": "along"}, {"rows_at_once": 1}),
    "long rows shared out by chunks": ({"by_chunks": True}, {"by_chunks": False}),
    "read in place": ({"gather": False}, {"gather": True}),
    "few digits": ({"few_digits": True}, {"few_digits": False}),
    "stores past the caches": ({"stream": True}, {"stream": False}),
    "exponentials kept": ({"keep": True}, NOT_KEPT),
    # Else in memory of the thread's own; chunks have none, and can be written past the caches.
    "kept in the output": (
        {"keep_in_output": True}, {"keep_in_output": False}, {**NOT_KEPT, "stream": True}
    ),
    "fetching ahead": ({}, {"ahead": 0}),
}  # fmt: skip


def planned(call: Call, fields: Fields) -> Fields | None:
    """The plan of a call with some fields forced; None if that is not possible."""
    try:
        with execute.recording() as plans:
            forced(call, fields)
    except ValueError:
        return None
    (plan,) = plans
    return plan


def forced(call: Call, fields: Fields) -> None:
    with execute.forcing(**fields):
        call()


def ways(call: Call) -> dict[str, Call]:
    """The call as planned, and without each mechanism that its plan uses."""
    for _ in range(IN_A_ROW):
        call()
    plan = planned(call, {})
    assert plan is not None
    # A call by itself has another number of threads than one of many: all are to use as many.
    threads = {"threads": plan["threads"]}
    found: dict[str, Call] = {PLANNED: partial(forced, call, threads)}
    for name, (used, *without) in MECHANISMS.items():
        if used.items() <= plan.items():
            for fields in without:
                other = planned(call, fields | threads)
                if other not in (None, plan):
                    found[name] = partial(forced, call, fields | threads)
                    break
    return found


def forcing_seconds(rounds: int) -> float:
    """How much longer a call takes because its plan is forced."""
    call = peers.call(softce_fast, Problem.of(Case("softmax_out", (1, 10), "float32")))
    calls: dict[str, Call] = {"plain": call, "forced": partial(forced, call, {"threads": 1})}
    seconds = timing.medians(timing.alternate(calls, rounds))
    return seconds["forced"] - seconds["plain"]


def cells(build: str, dtype: str, cases: Iterable[Case], rounds: int) -> Iterator[Fields]:
    """Seconds of each case, by mechanism that is left out."""
    with _dispatch.using(build):
        forcing = forcing_seconds(rounds)
        for case in tqdm(list(cases), desc=f"{build} {dtype}", unit="case"):
            call = peers.call(softce_fast, Problem.of(case))
            seconds = timing.medians(timing.alternate(ways(call), rounds, seconds=0))
            yield {
                "build": build, "dtype": dtype, "operation": case.operation,
                "shape": case.shape_name,
                "seconds": {name: taken - forcing for name, taken in seconds.items()},
            }  # fmt: skip


def measure(options: Any) -> dict[str, Any]:
    every = {}
    for dtype in DTYPES:
        size = 64 * MEBIBYTE // ITEM_SIZES[dtype]
        shapes = *((size // classes, classes) for classes in CLASSES), *OTHER_SHAPES
        for shape, operation in itertools.product(shapes, OPERATIONS):
            case = Case(operation, shape, dtype)
            every[case.identifier] = case
    cases = report.chosen(options, every)
    found: list[Fields] = []
    for build in BUILDS:
        if build in _dispatch.available():
            for dtype, of_dtype in itertools.groupby(cases, lambda case: case.dtype):
                found += cells(build, dtype, of_dtype, 3 if options.quick else 15)
    return {"cells": found}


if __name__ == "__main__":
    report.run("ablation", __doc__, measure, ["numpy"], report.ONLY)
