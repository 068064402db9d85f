"""Attack the package for a while, and print a table of trials and findings.

    python tools/attack.py [--seconds 7200] [--seed N] [KIND ...]

A trial is a process of its own in which something is short, hostile or going on besides: limits
on threads and memory, allocations that fail, environment variables, small stacks, forks at any
moment, 64 threads, busy neighbours. It must end in time, by itself, with the bits that one thread
gives undisturbed, or with MemoryError where there is no memory. What it does comes from the tests,
with arguments drawn at random. A finding is printed with what repeats it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import numpy as np
from tabulate import tabulate

import softce_fast as sf
import subprocesses
import test_fork
import test_limits
import test_stacks
import test_threads
import timing
import waiting
from softce_fast import _dispatch

PASSIVE = {"OMP_WAIT_POLICY": "passive"}
PRELOADED: dict[str, str] = {}  # with the library in which threads and memory run out


class Trial(NamedTuple):
    """What a process is to do, and in what surroundings."""

    function: Callable[..., object]
    arguments: tuple[object, ...] = ()
    environment: Mapping[str, str] = {}


# ---- what a trial does, where no test does it ---------------------------------------------------


def every_call(repetitions: str) -> None:
    """Compare every call with what one thread gives."""
    cases = test_limits.calls(test_limits.logits())
    expected = test_limits.serial_bits(cases)
    for _ in range(int(repetitions)):
        for name, (call, _) in cases.items():
            assert test_limits.bits(call()) == expected[name], name


def many_threads(count: str) -> None:
    """Call from so many Python threads at once, each with a number of threads of its own."""
    x, number = test_limits.logits(), int(count)
    with sf.num_threads(1):
        expected = sf.softmax(x).tobytes()
    start = threading.Barrier(number)

    def caller(index: int) -> None:
        start.wait()
        for repetition in range(5):
            with sf.num_threads(1 + (index + repetition) % 5):
                assert sf.softmax(x).tobytes() == expected

    with ThreadPoolExecutor(number) as pool:
        list(pool.map(caller, range(number)))


def beside_busy_processes(count: str) -> None:
    """Compare the times of calls beside busy processes with those on the machine as it is."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2000, 1000)).astype(np.float32)
    images = rng.normal(size=(8, 100, 2500)).astype(np.float32)
    mask, labels = rows < 1, np.zeros(2000, int)
    cases: dict[str, timing.Call] = {
        "rows": lambda: sf.softmax(rows),
        "small rows": lambda: sf.softmax(rows[:150]),
        "middle axis": lambda: sf.softmax(images, 1),
        "masked": lambda: sf.softmax(rows, where=mask),
        "wider": lambda: sf.softmax(rows, dtype=np.float64),
        "gradient": lambda: sf.cross_entropy_with_grad(rows, labels),
    }
    allowed = 3 if count == "1" else 5
    for _ in range(3):  # a finding is what is found three times: others use the machine, too
        quiet = timing.medians(timing.alternate(cases, rounds=5, seconds=0))
        with contextlib.ExitStack() as neighbours:
            for _ in range(int(count)):
                neighbours.enter_context(waiting.busy_process())
            busy = timing.medians(timing.alternate(cases, rounds=5, seconds=0))
        slow = {name: ratio for name in cases if (ratio := busy[name] / quiet[name]) > allowed}
        if not slow:
            return
        cases = {name: cases[name] for name in slow}
    raise AssertionError(f"times longer beside {count} busy processes: {slow}")


# ---- kinds of trials ----------------------------------------------------------------------------

VALUES: dict[str, tuple[str, ...]] = {
    "OMP_NUM_THREADS": ("1", "2", "3", "64", "2,2", "0", "-1", "many", "99999999999"),
    "OMP_THREAD_LIMIT": ("1", "2", "3", "1000", "0"),
    "OMP_DYNAMIC": ("true", "false", "perhaps"),
    "OMP_NESTED": ("true", "false"),
    "OMP_MAX_ACTIVE_LEVELS": ("0", "1", "4"),
    "OMP_WAIT_POLICY": ("active", "passive"),
    "OMP_PROC_BIND": ("true", "false", "close", "spread", "master", "close,spread"),
    "OMP_PLACES": ("threads", "cores", "sockets", "{0}", "{0},{1}", "{0:2}", "{7}", "nowhere"),
    "OMP_STACKSIZE": ("1", "16k", "17k", "64k", "1G", "100000G", "much"),
    "OMP_SCHEDULE": ("dynamic,1", "guided", "static,7"),
    "OMP_CANCELLATION": ("true",),
    "OMP_DISPLAY_ENV": ("true", "verbose"),
    "OMP_TOOL": ("disabled",),
    "OMP_TARGET_OFFLOAD": ("mandatory", "disabled"),
    "GOMP_CPU_AFFINITY": ("0", "0-1", "1 0", "0-100"),
    "GOMP_SPINCOUNT": ("0", "1", "infinity"),
    "GOMP_STACKSIZE": ("16", "100000"),
    "KMP_AFFINITY": ("disabled", "compact"),
    "KMP_BLOCKTIME": ("0", "infinite"),
    "KMP_INIT_AT_FORK": ("true", "false"),
    "KMP_STACKSIZE": ("16k", "1m"),
    "MALLOC_ARENA_MAX": ("1",),
    "MALLOC_PERTURB_": ("165",),
    "MALLOC_TOP_PAD_": ("0",),
    "PYTHONMALLOC": ("malloc", "debug"),
    "PYTHONDEVMODE": ("1",),
    "GLIBC_TUNABLES": ("glibc.pthread.rseq=0", "glibc.malloc.tcache_count=0"),
    "SOFTCE_FAST_ISA": (*_dispatch.available(), ""),
}

FORKS: tuple[tuple[Callable[..., object], tuple[object, ...]], ...] = (
    (test_fork.during_call, (40,)),
    (test_fork.while_others_call_for_the_first_time, ()),
    (test_fork.during_a_long_call, ()),
    (test_fork.from_another_thread, ()),
    (test_fork.grandchild, ()),
    (test_fork.pool, ("fork",)),
    (test_fork.pool, ("forkserver",)),
)


def address_space(rng: random.Random) -> Trial:
    megabytes, threads = int(2 ** rng.uniform(0, 10)), int(2 ** rng.uniform(1, 7))
    stack = {"OMP_STACKSIZE": rng.choice(["64k", "1M", "64M", "1G"])} if rng.random() < 0.5 else {}
    return Trial(test_limits.address_space, (megabytes, threads), stack)


def threads(rng: random.Random) -> Trial:
    policy = {"OMP_WAIT_POLICY": rng.choice(["active", "passive"])}
    if rng.random() < 0.2:
        return Trial(test_threads.many_callers, (1,), policy)
    return Trial(many_threads, (rng.choice([8, 32, 64]),), policy)


KINDS: dict[str, Callable[[random.Random], Trial]] = {
    "address_space": address_space,
    "processes": lambda rng: Trial(test_limits.number_of_processes, (rng.randint(1, 12),)),
    "threads_run_out": lambda rng: Trial(
        test_limits.threads_run_out, (rng.randint(1, 6),), PRELOADED | PASSIVE
    ),
    "allocations": lambda rng: Trial(
        test_limits.allocations_fail, (),
        PRELOADED | PASSIVE | {"PYTHONMALLOC": rng.choice(["pymalloc", "malloc"])},
    ),
    "environment": lambda rng: Trial(
        every_call, (2,),
        {name: rng.choice(VALUES[name]) for name in rng.sample(sorted(VALUES), rng.randint(1, 6))},
    ),
    "stacks": lambda rng: Trial(
        test_stacks.calls_on_small_stacks, (),
        PASSIVE | {"OMP_STACKSIZE": f"{rng.randint(16, 100)}k"},
    ),
    "forks": lambda rng: Trial(*rng.choice(FORKS)),
    "forks_while_threads_start": lambda _: Trial(
        test_limits.fork_while_threads_start, (), PRELOADED
    ),
    "threads": threads,
    "neighbours": lambda rng: Trial(beside_busy_processes, (rng.choice([1, 2]),)),
}  # fmt: skip


# ---- the campaign -------------------------------------------------------------------------------


def finding(trial: Trial) -> str:
    """Run a trial; return what was found, nothing if all was well."""
    arguments = map(str, trial.arguments)
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), **trial.environment}
    try:
        subprocesses.run_function(trial.function, *arguments, timeout=180, environment=environment)
    except AssertionError as error:
        lines = str(error).strip().splitlines()
        return f"{lines[0]}: {lines[-1]}"
    return ""


def main() -> int:
    """Run trials of all kinds, or of those asked for, in turn; return 1 if something was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--seconds", type=float, default=7200)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    kinds = arguments.kinds or list(KINDS)
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"no kind is called {sorted(unknown)}")
    if os.name != "posix" or os.geteuid() != 0:
        kinds = [kind for kind in kinds if kind != "processes"]  # root alone can become nobody
    rng = random.Random(arguments.seed)
    counts: dict[str, Any] = defaultdict(lambda: np.zeros(3))
    print(f"seed {arguments.seed}", flush=True)
    end = time.monotonic() + arguments.seconds
    with tempfile.TemporaryDirectory() as folder:
        PRELOADED["LD_PRELOAD"] = str(test_limits.build_limits(Path(folder)))
        while time.monotonic() < end:
            for kind in kinds:
                trial, started = KINDS[kind](rng), time.monotonic()
                found = finding(trial)
                counts[kind] += 1, bool(found), time.monotonic() - started
                if found:
                    what = f"{trial.function.__name__}{trial.arguments} {dict(trial.environment)}"
                    print(f"FOUND by {kind}: {what}: {found}", flush=True)
    rows = [[kind.replace("_", " "), *count] for kind, count in counts.items()]
    headers = ["kind of trial", "trials", "findings", "seconds"]
    print(tabulate(rows, headers, "pipe", floatfmt=".0f"))
    return int(any(findings for _, findings, _ in counts.values()))


if __name__ == "__main__":
    import attack  # by this name the processes of the trials import it, too

    raise SystemExit(attack.main())
