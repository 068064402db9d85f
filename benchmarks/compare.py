"""softce_fast against its peers: every operation and shape, alternating blocks, medians.

Each peer lives in a process of its own, so that no thread pool can slow another: a process whose
turn it is not waits for its next call. Some runtimes let their threads spin for a moment after the
work is done; blocks are ``SETTLE_SECONDS`` apart for these.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

import machine
import report
import shapes
import timing
from peers import PACKAGES, PEERS, UnsupportedError, Ways
from shapes import CASES, HALF_DTYPES, Array, Case, Problem
from softce_fast import reference
from timing import Timing

SETTLE_SECONDS = 0.03
OURS, OURS_FLOAT32, MEMORY_LIMIT = "softce_fast", "softce_fast_float32", "memory_limit"

# Distance from the right result that is still rounding, by dtype.
TOLERANCES = {"float16": 1e-2, "bfloat16": 6e-2, "float32": 1e-4, "float64": 1e-10}
SAMPLES = 20_011  # entries of each result that are compared; a prime, so strides meet all columns
Sample = dict[str, Array]

# How long each case is measured; of calls the least.
FULL = {"rounds": 7, "block_seconds": 0.1, "calls_per_block": 3}
QUICK = {"rounds": 3, "block_seconds": 0.03, "calls_per_block": 2}


# What a peer's process knows of the case that is measured.
ways: Ways = {}
number = 1  # of calls that are timed at once


def outcome(function: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
    """What a function returns, or what went wrong, in one line for the table."""
    try:
        return function(*arguments), ""
    except UnsupportedError as error:
        return None, str(error)
    except Exception as error:
        traceback.print_exception(error, file=sys.stderr)
        first_line = (str(error).strip().splitlines() or [""])[0]
        return None, f"failed: {type(error).__name__}: {first_line[:200]}"


def prepare(name: str, case: Case) -> None:
    """Makes the data, compiles, and calls each way once."""
    global ways
    ways = {}  # the case before gives up its memory
    ways = PEERS[name].prepared(Problem.of(case))


def choose(name: str, case: Case) -> tuple[str, Sample]:
    """Keeps the fastest way; returns its name and a sample of its result."""
    global ways, number
    fastest, number = timing.fastest(ways)
    ways = {fastest: ways[fastest]}
    result = ways[fastest]()
    return fastest, {} if name == MEMORY_LIMIT else sample(PEERS[name].parts(case, result))


def block(seconds: float, least: int) -> timing.Block:
    (way,) = ways.values()
    return timing.block(way, number, seconds, least)


def sample(parts: Sample) -> Sample:
    """Some entries of a result, enough to see a wrong one."""
    steps = {name: max(np.size(values) // SAMPLES, 1) for name, values in parts.items()}
    return {name: np.ravel(parts[name])[::step].astype(np.float64) for name, step in steps.items()}


class PeerProcess:
    """A process with one peer, and why it has no result for the case that is measured."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.begin()

    def begin(self) -> None:
        self.missing = ""
        # Intel's and LLVM's OpenMP would spin for 200 ms after each parallel region; 10 ms spans
        # the gaps between the calls of a block, so no peer has to wake its threads up.
        os.environ.setdefault("KMP_BLOCKTIME", "10")
        self.executor = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    def start(self, function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        """Have the process call a function; what waits for its result, None where there is none."""
        future = self.executor.submit(outcome, function, *arguments)

        def finish() -> Any:
            try:
                result, self.missing = future.result()
            except BrokenExecutor:
                self.begin()
                result, self.missing = None, "died: its process ended"
            return result

        return finish

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's result, unless the process has failed before."""
        return None if self.missing else self.start(function, *arguments)()


def expected(case: Case) -> Sample:
    """The sample of the case's result, by the NumPy reference in float64."""
    problem, pieces = Problem.of(case), []
    options = {"reduction": "none"} if case.takes_labels else {}
    # By parts of the first axis, so that the float64 copies stay small.
    for start in range(0, case.shape[0], step := max(case.shape[0] // 64, 1)):
        rows = slice(start, start + step)
        arguments = [problem.logits[rows].astype(np.float64)]
        arguments += [problem.labels[rows]] if case.takes_labels else []
        result = getattr(reference, case.function)(*arguments, case.axis, **options)
        pieces.append(PEERS[OURS].parts(case, result))
    parts = {name: np.concatenate([np.ravel(p[name]) for p in pieces]) for name in pieces[0]}
    if case.takes_labels and problem.reduction == "mean":
        parts["loss"] = parts["loss"].mean()
        if "array" in parts:
            parts["array"] /= case.rows
    return sample(parts)


def wrong(found: Sample, right: Sample, case: Case) -> str:
    """What of a result is not right, but for rounding."""
    for part, values in found.items():
        if values.shape != right[part].shape:
            return f"wrong result: {part} has another size"
        # Gradients at the label are differences; what counts is their size beside the largest.
        allowed = np.abs(right[part]) + 0.01 * np.abs(right[part]).max()
        if not np.all(np.abs(values - right[part]) <= TOLERANCES[case.dtype] * allowed):
            return f"wrong result: {part}"
    return ""


def measure(
    case: Case, processes: Iterable[PeerProcess], settings: dict[str, Any]
) -> tuple[dict[str, Timing], dict[str, str], dict[str, str]]:
    """Times, the ways chosen, and why peers are missing."""
    racing = [p for p in processes if p.name != OURS_FLOAT32 or case.dtype in HALF_DTYPES]
    for process in racing:
        process.missing = ""
    # All at once: compilers take their time, and nothing is measured yet.
    prepared = [process.start(prepare, process.name, case) for process in racing]
    right = expected(case)
    for finish in prepared:
        finish()
    chosen = {}
    for process in racing:
        time.sleep(SETTLE_SECONDS)
        if answer := process.ask(choose, process.name, case):
            chosen[process.name], found = answer
            process.missing = wrong(found, right, case)
    rounds, *of_block = settings.values()
    blocks = {p.name: partial(p.ask, block, *of_block) for p in racing if not p.missing}
    times = timing.interleaved(blocks, rounds, SETTLE_SECONDS)
    return times, chosen, {p.name: p.missing for p in racing if p.missing}


def summarise(
    case: Case, times: dict[str, Timing], chosen: dict[str, str], missing: dict[str, str]
) -> dict[str, Any]:
    """One entry of the results file."""
    entry: dict[str, Any] = {
        **case.described(), "classes": case.classes, "array_bytes": case.array_bytes,
        "seconds": {name: t._asdict() | {"variant": chosen[name]} for name, t in times.items()},
        "missing": missing,
    }  # fmt: skip
    medians = timing.medians(times)
    rivals = {name: median for name, median in medians.items() if PEERS[name].counted}
    if rivals:
        entry["best_peer"] = min(rivals, key=rivals.__getitem__)
    if ours := medians.get(OURS):
        entry["gigabytes_per_second"] = case.minimum_bytes / ours * 1e-9
        if rivals:
            entry["ratio"] = min(rivals.values()) / ours
        if OURS_FLOAT32 in medians:
            entry["ratio_to_float32"] = medians[OURS_FLOAT32] / ours
        if MEMORY_LIMIT in medians:
            # The labels are left out on both sides: the copy and the read do not move them.
            entry["limit_share"] = medians[MEMORY_LIMIT] / ours
            entry["limit_share_applies"] = case.limit_share_applies
    return entry


def run(
    cases: Iterable[Case], names: Iterable[str], settings: dict[str, Any]
) -> list[dict[str, Any]]:
    processes = [PeerProcess(name) for name in names]
    entries = []
    for case in (progress := tqdm(cases, unit="case", dynamic_ncols=True)):
        progress.set_description(case.identifier)
        entries.append(summarise(case, *measure(case, processes, settings)))
    for process in processes:
        process.executor.shutdown()
    return entries


def measure_all(options: Any) -> dict[str, Any]:
    every = shapes.QUICK_CASES if options.quick else CASES
    cases = report.chosen(options, {case.identifier: case for case in every})
    settings = QUICK if options.quick else FULL
    skipped = {name: PEERS[name].missing() for name in options.peers or PEERS}
    names = [name for name, missing in skipped.items() if not missing]

    description = machine.describe(PACKAGES)  # now: what is missing shows before the long run
    found = []
    if options.update:
        earlier = json.loads(options.json.read_text())
        for key in ("machine", "versions"):
            if earlier[key] != description[key]:
                raise ValueError(
                    f"the results are not of the same {key}: measure all of them again"
                )
        found = earlier["cases"]
    found += [{**e, "date": description["date"]} for e in run(cases, names, settings)]
    return {
        **description,
        "settings": {**settings, "settle_seconds": SETTLE_SECONDS},
        "skipped": {name: missing for name, missing in skipped.items() if missing},
        # Cases measured again take the place of the earlier ones.
        "cases": list({(e["operation"], e["shape"], e["dtype"]): e for e in found}.values()),
    }


if __name__ == "__main__":
    arguments: dict[str, dict[str, Any]] = {
        **report.ONLY,
        "--peers": {"nargs": "+", "choices": PEERS, "help": "default: all installed"},
        "--update": {"action": "store_true", "help": "keep what the file has of other cases"},
    }
    report.run("compare", __doc__, measure_all, PACKAGES, arguments)
