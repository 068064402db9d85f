"""A call does with the small stacks that programs of many threads give to them."""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import numpy as np
import pytest

import softce_fast as sf
import stacks
from softce_fast._kernels import probe
from subprocesses import run_function, thread_count

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="stacks are found in /proc")

# What a thread of Python's can be relied on to have, what a call takes of it, or of all that an
# OpenMP thread has, and what a signal takes besides: such threads are used from both on (team.h).
CALLER, CALL, SIGNAL = 64 << 10, 16 << 10, 8 << 10


@pytest.fixture(scope="module")
def depths() -> dict[str, stacks.Depth]:
    """Measure every call."""
    result = run_function(stacks.print_measured, timeout=200, environment=stacks.ENVIRONMENT)
    return {name: stacks.Depth(*taken) for name, taken in json.loads(result.stdout).items()}


def test_depth_of_calling_threads(depths):
    limit = min(depths[stacks.NOTHING].caller + CALL, CALLER - SIGNAL)
    assert limit > CALL
    assert not {name: taken for name, taken in depths.items() if taken.caller > limit}


@pytest.mark.skipif(not probe.openmp(), reason="a serial build")
def test_depth_of_openmp_threads(depths):
    assert max(taken.worker for taken in depths.values()) > 0
    assert not {name: taken for name, taken in depths.items() if taken.worker > CALL}


def bits(result: Any) -> list[bytes]:
    results = result if isinstance(result, tuple) else (result,)
    return [np.asarray(part).tobytes() for part in results]


def calls_on_small_stacks() -> None:
    sf.set_num_threads(1)
    expected = [bits(call()) for _, call in stacks.all_calls()]
    sf.set_num_threads(2)
    problems: list[object] = []

    def caller() -> None:
        try:
            for (name, call), wanted in zip(stacks.all_calls(), expected, strict=True):
                assert bits(call()) == wanted, name
        except BaseException as error:
            problems.append(error)

    threading.stack_size(CALLER)
    threads = [threading.Thread(target=caller) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems, problems


@pytest.mark.parametrize("size", ["16k", "24k"])
def test_calls_on_small_stacks(size):
    environment = {"OMP_STACKSIZE": size, "OMP_WAIT_POLICY": "passive"}
    run_function(calls_on_small_stacks, timeout=120, environment=environment)


def print_threads_started() -> None:
    sf.set_num_threads(2)
    before = thread_count()
    sf.softmax(np.zeros((1000, 1000), np.float32))
    print(thread_count() - before)


@pytest.mark.skipif(not probe.openmp(), reason="a serial build")
@pytest.mark.parametrize(("size", "started"), [("16k", 0), ("24k", 1)])
def test_threads_of_too_small_stacks_are_not_used(size, started):
    environment = {"OMP_STACKSIZE": size, "OMP_WAIT_POLICY": "passive"}
    assert int(run_function(print_threads_started, environment=environment).stdout) == started
