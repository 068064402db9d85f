"""softce_fast against its peers: every operation and shape, alternating blocks, medians.

Each peer lives in a process of its own, so that no thread pool can slow another: a process whose
turn it is not is blocked in a read from its pipe. Some runtimes let their threads spin for a moment
after the work is done; the parent waits ``SETTLE_SECONDS`` between blocks for these, and the
environment below bounds the spinning of those that would go on for longer. Blocks alternate
(A B C A B C ...), so that a slow spell of the machine hits all alike.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

import machine
import shapes
from peers import (
    PACKAGES,
    PEERS,
    Result,
    UnsupportedError,
    Variant,
    available_peers,
    function_name,
    loss_reduction,
    make_peer,
)
from shapes import CASES, Case

RESULTS = Path(__file__).with_name("results")
SETTLE_SECONDS = 0.03
SHORTEST_TIMING = 2e-4
OURS = "softce_fast"
OURS_FLOAT32 = "softce_fast_float32"
MEMORY_LIMIT = "memory_limit"

# For all peers alike. Intel's and LLVM's OpenMP would spin for 200 ms after each parallel region;
# 10 ms spans the gaps between the calls of a block, so no peer has to wake its threads up.
ENVIRONMENT = {"KMP_BLOCKTIME": "10"}

# Distance from the right result that is still rounding, by dtype.
TOLERANCES = {"float16": 1e-2, "bfloat16": 6e-2, "float32": 1e-4, "float64": 1e-10}
SAMPLES = 20_011  # entries of each result that are compared; a prime, so strides meet all columns


@dataclass(frozen=True)
class Settings:
    """How long each case is measured."""

    rounds: int
    block_seconds: float
    calls_per_block: int  # at least


FULL = Settings(rounds=7, block_seconds=0.1, calls_per_block=3)
QUICK = Settings(rounds=3, block_seconds=0.03, calls_per_block=2)


# ------------------------------------------------------------------------------ the peer's process


def timed_call(variant: Variant, number: int) -> float:
    """Seconds per call over ``number`` calls; a fresh result is given up within the time."""
    run = variant.run
    start = time.perf_counter_ns()
    for _ in range(number):
        run()
    return (time.perf_counter_ns() - start) / number * 1e-9


def sample(result: Result) -> dict[str, np.ndarray[Any, Any]]:
    """Some entries of a result, enough to see a wrong one."""
    found = {}
    for name, values in (("loss", result.loss), ("array", result.array)):
        if values is not None:
            flat = np.asarray(values).reshape(-1)
            found[name] = flat[:: max(flat.size // SAMPLES, 1)].astype(np.float64)
    return found


class Worker:
    """Answers the parent's requests for one peer."""

    def __init__(self, name: str) -> None:
        self.peer = make_peer(name)
        self.variants: list[Variant] = []
        self.chosen: Variant
        self.number = 1

    def prepare(self, case: Case) -> None:
        """Makes the data, compiles, and calls each variant once."""
        self.release()
        self.variants = self.peer.variants(case)
        for variant in self.variants:
            variant.run()

    def choose(self) -> tuple[str, dict[str, np.ndarray[Any, Any]]]:
        """Finds the fastest variant; returns its name and a sample of its result."""
        times = []
        for variant in self.variants:
            seconds = min(timed_call(variant, 1) for _ in range(3))
            # Short calls are timed many at once, to be above the clock's noise.
            number = max(math.ceil(SHORTEST_TIMING / max(seconds, 1e-9)), 1)
            if number > 1:
                seconds = min(timed_call(variant, number) for _ in range(3))
            times.append((seconds, number, variant))
        _, self.number, self.chosen = min(times, key=lambda entry: entry[0])
        self.variants = []
        return self.chosen.name, sample(self.chosen.collect(self.chosen.run()))

    def block(self, seconds: float, calls: int) -> list[float]:
        """Times of the calls of one block, after one call that warms the caches."""
        timed_call(self.chosen, self.number)
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < calls or time.perf_counter() < end:
            times.append(timed_call(self.chosen, self.number))
        return times

    def release(self) -> None:
        self.variants = []
        self.__dict__.pop("chosen", None)


def serve(name: str, pipe: Connection) -> None:
    """The loop of a peer's process; ends when the parent closes the pipe."""
    try:
        worker = Worker(name)
        pipe.send(("ready", None))
    except Exception as error:
        pipe.send(("failed", describe_error(error)))
        return
    while True:
        try:
            request, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(("done", getattr(worker, request)(*arguments)))
        except UnsupportedError as error:
            pipe.send(("unsupported", str(error)))
        except Exception as error:
            pipe.send(("failed", describe_error(error)))


def describe_error(error: Exception) -> str:
    """One line for the table; the whole of it goes to stderr."""
    traceback.print_exception(error, file=sys.stderr)
    first_line = str(error).strip().splitlines()[:1]
    return f"{type(error).__name__}: {(first_line or [''])[0][:200]}"


# -------------------------------------------------------------------------------------- the parent


class PeerProcess:
    """The parent's handle on a peer's process."""

    def __init__(self, name: str) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(name, other), daemon=True)
        self.process.start()
        other.close()  # or a process that died would never show as the end of the pipe

    def send(self, request: str, *arguments: Any) -> None:
        # Where the process has died, ``receive`` tells.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send((request, arguments))

    def receive(self) -> tuple[str, Any]:
        try:
            answer: tuple[str, Any] = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            return "died", "its process ended"
        return answer

    def ask(self, request: str, *arguments: Any) -> tuple[str, Any]:
        self.send(request, *arguments)
        return self.receive()

    def close(self) -> None:
        self.pipe.close()
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.terminate()


def expected(case: Case) -> dict[str, np.ndarray[Any, Any]]:
    """The sample of the case's result, from the textbook's formulas in float64."""
    logits, labels = shapes.inputs(case)
    function, axis = function_name(case), case.axis
    index = np.expand_dims(labels, axis)
    whole = Result()
    arrays, losses = [], []
    # By parts of the first axis, so that the float64 copies stay small.
    for rows in np.array_split(np.arange(case.shape[0]), min(case.shape[0], 64)):
        part = logits[rows[0] : rows[-1] + 1].astype(np.float64)
        shifted = part - part.max(axis, keepdims=True)
        exponentials = np.exp(shifted)
        total = exponentials.sum(axis, keepdims=True)
        if function == "logsumexp":
            arrays.append((part - shifted + np.log(total)).take(0, axis).reshape(-1))
            continue
        if function == "log_softmax":
            arrays.append((shifted - np.log(total)).reshape(-1))
            continue
        if function != "cross_entropy":
            result = exponentials / total
        if function != "softmax":
            at_label = index[rows[0] : rows[-1] + 1]
            losses.append((np.log(total) - np.take_along_axis(shifted, at_label, axis)).reshape(-1))
        if function == "cross_entropy_with_grad":
            less_one = np.take_along_axis(result, at_label, axis) - 1
            np.put_along_axis(result, at_label, less_one, axis)
            if loss_reduction(case) == "mean":
                result /= case.rows
        if function != "cross_entropy":
            arrays.append(result.reshape(-1))
    if losses:
        rows_losses = np.concatenate(losses)
        whole.loss = rows_losses.mean() if loss_reduction(case) == "mean" else rows_losses
    if arrays:
        whole.array = np.concatenate(arrays)
    return sample(whole)


def wrong_results(
    samples: dict[str, dict[str, np.ndarray[Any, Any]]],
    right: dict[str, np.ndarray[Any, Any]],
    case: Case,
) -> dict[str, str]:
    """Peers whose results are not those, but for rounding; what they lack does not count."""
    reasons = {}
    tolerance = TOLERANCES[case.dtype]
    for name, found in samples.items():
        for part, values in found.items():
            # Gradients at the label are differences; what counts is their size beside the largest.
            allowed = tolerance * (np.abs(right[part]) + 0.01 * np.abs(right[part]).max())
            if values.shape != right[part].shape:
                reasons[name] = f"wrong result: {part} has another size"
            elif not np.all(np.abs(values - right[part]) <= allowed):
                reasons[name] = f"wrong result: {part}"
    return reasons


def measure(
    case: Case, processes: dict[str, PeerProcess], settings: Settings
) -> tuple[dict[str, list[list[float]]], dict[str, str], dict[str, str]]:
    """Blocks of times, the variants chosen, and why peers are missing."""
    missing: dict[str, str] = {}
    variants: dict[str, str] = {}
    samples: dict[str, dict[str, np.ndarray[Any, Any]]] = {}

    # All at once: compilers take their time, and nothing is measured yet.
    for process in processes.values():
        process.send("prepare", case)
    right = expected(case)
    for name, process in processes.items():
        status, answer = process.receive()
        if status != "done":
            missing[name] = answer if status == "unsupported" else f"{status}: {answer}"
    for name, process in processes.items():
        if name in missing:
            continue
        time.sleep(SETTLE_SECONDS)
        status, answer = process.ask("choose")
        if status == "done":
            variants[name], samples[name] = answer
        else:
            missing[name] = f"{status}: {answer}"
    missing.update(wrong_results(samples, right, case))
    if case.dtype not in shapes.HALF_DTYPES:
        missing.pop(OURS_FLOAT32, None)  # it is there for the half types only

    measured = [name for name in samples if name not in missing]
    blocks: dict[str, list[list[float]]] = {name: [] for name in measured}
    for _ in range(settings.rounds):
        for name in measured:
            time.sleep(SETTLE_SECONDS)
            status, answer = processes[name].ask(
                "block", settings.block_seconds, settings.calls_per_block
            )
            if status == "done":
                blocks[name].append(answer)
            else:
                missing[name] = f"{status}: {answer}"
    for process in processes.values():
        process.ask("release")
    return {name: found for name, found in blocks.items() if found}, variants, missing


def summarise(
    case: Case,
    blocks: dict[str, list[list[float]]],
    variants: dict[str, str],
    missing: dict[str, str],
) -> dict[str, Any]:
    """One entry of the results file."""
    times: dict[str, dict[str, Any]] = {}
    for name, found in blocks.items():
        medians = [statistics.median(block) for block in found]
        times[name] = {
            "median": statistics.median(medians),
            "fastest_block": min(medians),
            "slowest_block": max(medians),
            "blocks": len(medians),
            "variant": variants[name],
        }
    entry: dict[str, Any] = {
        "operation": case.operation,
        "shape": case.shape_name,
        "column": case.column,
        "dtype": case.dtype,
        "classes": case.classes,
        "array_bytes": case.array_bytes,
        "minimum_bytes": case.minimum_bytes,
        "seconds": times,
        "missing": missing,
        "target": case.target,
        "target_against": OURS_FLOAT32 if case.dtype in shapes.HALF_DTYPES else "best peer",
    }
    ours = times.get(OURS, {}).get("median")
    rivals = {name: found["median"] for name, found in times.items() if PEERS[name].counted}
    if rivals:
        entry["best_peer"] = min(rivals, key=lambda name: rivals[name])
    if ours is not None:
        entry["gigabytes_per_second"] = case.minimum_bytes / ours * 1e-9
        if rivals:
            entry["ratio"] = min(rivals.values()) / ours
        if OURS_FLOAT32 in times:
            entry["ratio_to_float32"] = times[OURS_FLOAT32]["median"] / ours
        if MEMORY_LIMIT in times:
            # The labels are left out on both sides: the copy and the read do not move them.
            entry["limit_share"] = times[MEMORY_LIMIT]["median"] / ours
            entry["limit_share_applies"] = case.limit_share_applies
    return entry


def run(
    cases: Sequence[Case], names: Iterable[str], settings: Settings
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Measures the cases; returns the entries and the peers that could not start."""
    from tqdm import tqdm

    os.environ.update({key: os.environ.get(key, value) for key, value in ENVIRONMENT.items()})
    processes = {name: PeerProcess(name) for name in names}
    failed = {}
    try:
        for name, process in list(processes.items()):
            status, answer = process.receive()
            if status != "ready":
                failed[name] = str(answer)
                processes.pop(name).close()
        entries = []
        progress = tqdm(cases, unit="case", dynamic_ncols=True)
        for case in progress:
            progress.set_description(case.identifier)
            entries.append(summarise(case, *measure(case, processes, settings)))
        return entries, failed
    finally:
        for process in processes.values():
            process.close()


def earlier_cases(path: Path, description: dict[str, Any]) -> list[dict[str, Any]]:
    """The cases of a file; ValueError unless they are of the machine and versions described."""
    earlier = json.loads(path.read_text())
    for key in ("machine", "versions"):
        if earlier[key] != description[key]:
            raise ValueError(f"the results are not of the same {key}: measure all of them again")
    return list(earlier["cases"])


def updated(earlier: list[dict[str, Any]], later: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The earlier cases in their order, those measured again replaced by the later."""

    def name(entry: dict[str, Any]) -> tuple[str, str, str]:
        return entry["operation"], entry["shape"], entry["dtype"]

    return list({name(entry): entry for entry in (*earlier, *later)}.values())


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one float32 shape per column")
    parser.add_argument("--operation", nargs="+", choices=sorted(shapes.OPERATIONS))
    parser.add_argument(
        "--shape", nargs="+", metavar="SHAPE", help="16384x1000, or a column: few, medium, ..."
    )
    parser.add_argument("--dtype", nargs="+", choices=sorted(shapes.ITEM_SIZES))
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), help="default: all installed")
    parser.add_argument("--rounds", type=int, help="blocks of each peer")
    parser.add_argument(
        "--json", type=Path, default=RESULTS / "local" / "compare.json", help="where results go"
    )
    parser.add_argument(
        "--update", action="store_true", help="keep what the file has of other cases"
    )
    parser.add_argument("--no-plots", action="store_true")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse_arguments()
    cases = shapes.select(
        shapes.quick_cases() if options.quick else CASES,
        options.operation,
        options.shape,
        options.dtype,
    )
    if not cases:
        sys.exit("no case has that operation, shape and dtype")
    settings = QUICK if options.quick else FULL
    if options.rounds:
        settings = Settings(options.rounds, settings.block_seconds, settings.calls_per_block)
    names, skipped = available_peers(options.peers)
    for name, reason in skipped.items():
        print(f"skipped {PEERS[name].title}: {reason}")

    description = machine.describe(PACKAGES)  # now: what is missing shows before the long run
    earlier = earlier_cases(options.json, description) if options.update else []
    entries, failed = run(cases, names, settings)
    document = {
        "kind": "compare",
        **description,
        "settings": {**vars(settings), "settle_seconds": SETTLE_SECONDS},
        "skipped": {**skipped, **failed},
        "cases": updated(earlier, [{**entry, "date": description["date"]} for entry in entries]),
    }
    machine.record(document, options.json)

    import report

    print(report.compare_table(document))
    if not options.no_plots:
        for path in report.plot_compare(document, options.json.parent):
            print(f"saved {path}")


if __name__ == "__main__":
    main()
