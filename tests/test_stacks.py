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
from subprocesses import run_function

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="stacks are found in /proc")

# What a thread of Python's can be relied on to have, an OpenMP thread that is used (team.h), and
# what a signal takes of either.
CALLER, WORKER, SIGNAL = 64 << 10, 40 << 10, 8 << 10


@pytest.fixture(scope="module")
def depths() -> dict[str, stacks.Depth]:
    """Measure every call."""
    result = run_function(stacks.print_measured, timeout=200, environment=stacks.ENVIRONMENT)
    return {name: stacks.Depth(*taken) for name, taken in json.loads(result.stdout).items()}


def test_depth_of_calling_threads(depths):
    assert min(taken.caller for taken in depths.values()) > 0
    assert not {name: taken for name, taken in depths.items() if taken.caller > CALLER - SIGNAL}


@pytest.mark.skipif(not probe.openmp(), reason="a serial build")
def test_depth_of_openmp_threads(depths):
    assert max(taken.worker for taken in depths.values()) > 0
    assert not {name: taken for name, taken in depths.items() if taken.worker > WORKER - SIGNAL}


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


@pytest.mark.parametrize("size", ["16k", "40k"])
def test_calls_on_small_stacks(size):
    environment = {"OMP_STACKSIZE": size, "OMP_WAIT_POLICY": "passive"}
    run_function(calls_on_small_stacks, timeout=120, environment=environment)
