"""Calls from many Python threads; how many threads a call uses; nobody else's setting changes."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import softce_fast as sf
from softce_fast import _row_states, _threads
from softce_fast._kernels import execute, probe
from subprocesses import run_function, run_python, thread_count

needs_openmp = pytest.mark.skipif(not probe.openmp(), reason="a serial build")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")


def dtypes() -> list[np.dtype]:
    names = [np.float16, np.float32, np.float64]
    try:
        import ml_dtypes
    except ImportError:
        return [np.dtype(name) for name in names]
    return [np.dtype(name) for name in (*names, ml_dtypes.bfloat16)]


Call = Callable[[], list[np.ndarray]]


def calls() -> list[Call]:
    """Return a call of every kernel for every dtype: rows, tiles, few long rows, a middle axis."""
    random = np.random.default_rng(0)
    result: list[Call] = []

    def add(x: np.ndarray, axis: int) -> None:
        row_shape = x.shape[:axis] + x.shape[axis + 1 :]
        labels = random.integers(0, x.shape[axis], row_shape)
        labels.flat[0] = -100

        if axis == x.ndim - 1:
            axis = -1  # by its usual name: so small calls take their short way

        def with_gradient() -> list[np.ndarray]:
            loss, gradient = sf.cross_entropy_with_grad(x, labels, axis)
            return [np.asarray(loss), gradient]

        def reduced() -> list[np.ndarray]:
            return [np.asarray(sf.cross_entropy(x, labels, axis, temperature=0.7))]

        def not_reduced() -> list[np.ndarray]:
            return [sf.cross_entropy(x, labels, axis, reduction="none")]

        result.extend([with_gradient, reduced, not_reduced])
        output = sf.softmax(x, axis)
        result.extend(
            [
                lambda: [sf.softmax_backward(x, output, axis)],
                lambda: [sf.log_softmax_backward(x, output, axis)],
                lambda: [sf.nll_loss(x, labels, axis, reduction="none")],
                lambda: [sf.cross_entropy_from_probs(output, labels, axis, reduction="none")],
                lambda: [np.asarray(sf.binary_cross_entropy(output, output))],
                lambda: list(sf.binary_cross_entropy_with_logits_with_grad(x, output)),
            ]
        )
        result.extend(
            lambda function=function: [function(x, axis)]  # type: ignore[misc]
            for function in (sf.softmax, sf.log_softmax, sf.logsumexp)
        )

    for dtype in dtypes():
        for shape, axis in [((200, 700), 1), ((9000, 10), 1), ((2, 150_000), 1), ((3, 90, 400), 1)]:
            add(random.normal(size=shape).astype(dtype), axis)
    # More labels than one task of the label check takes.
    add(random.normal(size=(140_000, 2)).astype(np.float32), 1)
    x = random.normal(size=(1000, 100))
    target = sf.softmax(x[::-1])
    result.append(lambda: [np.asarray(sf.cross_entropy(x, target, label_smoothing=0.1))])
    return result


def many_callers(repetitions: str) -> None:
    """Call everything from six Python threads at once; compare with one caller and one thread."""
    cases = calls()
    with sf.num_threads(1):
        expected = [[result.tobytes() for result in case()] for case in cases]
    sf.set_num_threads(3)
    start = threading.Barrier(6)
    problems: list[object] = []

    def caller(seed: int) -> None:
        try:
            order = np.random.default_rng(seed)
            start.wait()
            for _ in range(int(repetitions)):
                for index in order.permutation(len(cases)):
                    results = [result.tobytes() for result in cases[index]()]
                    if results != expected[index]:
                        problems.append(f"case {index}: the bits differ")
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=caller, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems, problems


def test_many_python_threads_at_once():
    run_function(many_callers, "3", timeout=120)


@pytest.mark.slow
def test_many_python_threads_many_times():
    run_function(many_callers, "50", timeout=1200)


# The GIL


def ticks_during_calls() -> None:
    """Count how often another Python thread gets a turn during one call.

    The interpreter asks for no turns of its own accord here, so one turn proves that the call let
    the GIL go.
    """
    sys.setswitchinterval(1000)
    stop = threading.Event()
    ticks = [0]

    def ticker() -> None:
        while not stop.is_set():
            time.sleep(0.0005)
            ticks[0] += 1

    x = np.random.default_rng(0).normal(size=(20_000, 256))
    labels = np.zeros(len(x), np.int64)
    many_labels = np.zeros(x.size // 2, np.int64)
    thread = threading.Thread(target=ticker)
    thread.start()
    silent = []
    try:
        for dtype in dtypes():
            values = x.astype(dtype)
            out = np.empty_like(values)
            for name, call in {
                "softmax": partial(sf.softmax, values, out=out),
                "log_softmax": partial(sf.log_softmax, values, out=out),
                "logsumexp": partial(sf.logsumexp, values),
                "softmax of less": partial(sf.softmax, values[:4000]),
                "cross_entropy": partial(sf.cross_entropy, values, labels),
                "cross_entropy of less": partial(sf.cross_entropy, values[:4000], labels[:4000]),
                "cross_entropy_with_grad": partial(
                    sf.cross_entropy_with_grad, values, labels, grad_out=out
                ),
                "softmax_backward": partial(sf.softmax_backward, values, values, out=out),
                "log_softmax_backward": partial(sf.log_softmax_backward, values, values, out=out),
                "nll_loss of probabilities": partial(sf.nll_loss, values, values),
                "cross_entropy_from_probs": partial(sf.cross_entropy_from_probs, values, values),
                "nll_loss": partial(sf.nll_loss, values.reshape(-1, 2), many_labels),
                "binary_cross_entropy": partial(sf.binary_cross_entropy, values, values),
                "binary_cross_entropy_with_logits_with_grad": partial(
                    sf.binary_cross_entropy_with_logits_with_grad, values, values, grad_out=out
                ),
            }.items():
                for threads in (1, 2):
                    with sf.num_threads(threads):
                        call()  # pages of `out` are touched, OpenMP's threads started
                        before = ticks[0]
                        patience = time.monotonic() + 10  # other work may hold the CPUs
                        while ticks[0] == before and time.monotonic() < patience:
                            call()
                    if ticks[0] == before:
                        silent.append(f"{name}, {dtype}, {threads} threads")
    finally:
        stop.set()
        sys.setswitchinterval(0.005)
        thread.join()
    assert not silent, f"no other thread got a turn during: {silent}"


def test_the_gil_is_released():
    run_function(ticks_during_calls, timeout=200)


def loss_without_checks(
    x: np.ndarray,
    labels: np.ndarray | None = None,
    probabilities: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    sample_weight: np.ndarray | None = None,
    label_smoothing: float = 0.0,
) -> tuple[float, float] | None:
    """Return the sum of the losses, and what a mean divides by; None if a label is no class."""
    return execute.cross_entropy(
        x, labels, probabilities, None, None, None, None, 1, weight, sample_weight,
        label_smoothing, 0.0, 1.0, 0.0, False, None, -100, (0, 0, 0), lambda size: 1,
    )  # fmt: skip


Read = tuple[np.ndarray, float, Callable[[], object]]


def reads_before_kernels() -> dict[str, Read]:
    """Return an array that is read first, another last number of it, and the call that reads it.

    That number changes the result; what kernels read of the array later does not.
    """
    x = np.zeros((1_000_000, 2), np.float32)
    labels, weight, sample_weight = np.zeros(len(x), np.int64), np.ones(2), np.ones(len(x))
    label, class_weight = labels[:1], np.ones(x.size)

    def divisor() -> float:
        found = loss_without_checks(x, probabilities=x, sample_weight=sample_weight)
        assert found is not None
        return found[1]

    return {
        "labels": (labels, 2, partial(loss_without_checks, x, labels)),
        "weights of labels": (labels, 2, partial(loss_without_checks, x, labels, weight=weight)),
        "labels of probabilities": (
            labels, 2,
            lambda: execute.negative_log(
                x, labels, None, None, 1, None, None, -100, True, (0, 0, 0), lambda size: 1
            ),
        ),
        "sample weights": (sample_weight, 3.0, divisor),
        "sample weights of states": (
            sample_weight, 3.0, partial(_row_states.sum_of, sample_weight)
        ),
        "range of class weights": (  # what is computed in depends on it
            class_weight, 1e30,
            partial(loss_without_checks, x.reshape(1, -1), label, weight=class_weight),
        ),
        "sums of class weights": (
            class_weight, 3.0,
            partial(
                loss_without_checks, np.zeros((1, x.size)), label, weight=class_weight,
                label_smoothing=0.1,
            ),
        ),
    }  # fmt: skip


def keep_changing(array: np.ndarray, number: float, stop: threading.Event) -> None:
    while not stop.is_set():
        time.sleep(0.0002)
        array[-1] = number


def changes_before_kernels() -> None:
    """Have another Python thread change what a call reads, right after it began.

    The interpreter asks for no turns here: that the change is seen proves that the call let the GIL
    go before it had read all.
    """
    sys.setswitchinterval(1000)
    unseen = []
    for name, (array, changed, call) in reads_before_kernels().items():
        usual, expected = array[-1], call()
        stop = threading.Event()
        thread = threading.Thread(target=keep_changing, args=(array, changed, stop))
        thread.start()
        patience, found = time.monotonic() + 20, expected
        while found == expected and time.monotonic() < patience:
            array[-1] = usual
            found = call()
        stop.set()
        thread.join()
        array[-1] = usual
        if found == expected:
            unseen.append(name)
    assert not unseen, f"no other thread got a turn during the read of: {unseen}"


def test_the_gil_is_released_before_the_kernels():
    run_function(changes_before_kernels, timeout=200)


def labels_that_change() -> None:
    """Call losses while another thread makes a label a wrong one, and a right one again."""
    sys.setswitchinterval(1e-5)
    stop = threading.Event()
    many, few = np.zeros(3_000_000, np.int64), np.zeros(1000, np.int64)

    def flip() -> None:
        while not stop.is_set():
            for labels in (many, few):
                labels[-1] = 0
                labels[-1] = 1 << 44

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        for labels in (many, few):
            x = np.broadcast_to(np.array([-1.0, -2.0, -3.0], np.float32), (len(labels), 3))
            for function in (
                sf.nll_loss, sf.cross_entropy_from_probs, sf.cross_entropy,
                sf.cross_entropy_with_grad,
            ):  # fmt: skip
                until = time.monotonic() + 1.5
                while time.monotonic() < until:
                    with contextlib.suppress(IndexError):
                        values = np.exp(x) if "probs" in function.__name__ else x
                        result = function(values, labels)
                        loss = result[0] if isinstance(result, tuple) else result
                        expected = 1.0 if values is not x or "nll" in function.__name__ else 0.408
                        assert abs(loss - expected) < 0.01, (function.__name__, loss)
    finally:
        stop.set()
        thread.join()


def test_labels_that_another_thread_changes():
    """A wrong label is an error, or not seen; it never leads outside of the arrays."""
    run_function(labels_that_change, timeout=120)


# How many threads a call uses


def print_threads_of_a_call() -> None:
    """Print what get_num_threads() says, and the threads that a large call ran on."""
    before = thread_count()
    promised = sf.get_num_threads()
    sf.softmax(np.zeros((1000, 1000), np.float32))
    print(promised, thread_count() - before + 1)


def threads_of_a_call(**options) -> tuple[int, int]:
    promised, used = run_function(print_threads_of_a_call, **options).stdout.split()
    return int(promised), int(used)


def cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def used_alone(count: int) -> int:
    """Threads of a large call that comes alone, of `count` that it may use; none is bound."""
    gnu = probe.compiler().startswith("GCC")
    return count + (gnu and count == len(cpus()) > 1)


@needs_openmp
@on_linux
@pytest.mark.parametrize("count", ["1", "2", "7"])
def test_omp_num_threads_is_honoured(count):
    expected = min(int(count), len(cpus()), _threads.read_group_quota(Path("/")))
    environment = {"OMP_NUM_THREADS": count}
    assert threads_of_a_call(environment=environment) == (expected, used_alone(expected))


@needs_openmp
@on_linux
def test_affinity_is_honoured():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import test_threads; test_threads.print_threads_of_a_call()"
    )
    for environment in ({}, {"OMP_NUM_THREADS": "4"}):
        output = run_python(code, environment=environment).stdout
        assert output.split() == ["1", "1"]


@needs_openmp
@pytest.mark.skipif(shutil.which("taskset") is None, reason="needs taskset")
def test_affinity_given_from_outside_is_honoured():
    chosen = cpus()[-1]
    assert threads_of_a_call(prefix=("taskset", "--cpu-list", str(chosen))) == (1, 1)


# Each spreads OpenMP's threads over all CPUs and binds the calling one to its share of them.
SPREAD = (
    {"OMP_PROC_BIND": "true"},
    {"OMP_PROC_BIND": "spread"},
    {"OMP_PLACES": "threads"},
    {"OMP_PLACES": "cores"},
    {"GOMP_CPU_AFFINITY": "0-1023"},
    {"OMP_PROC_BIND": "close", "OMP_PLACES": "{0}:1024"},
)


@needs_openmp
@on_linux
@pytest.mark.parametrize("environment", SPREAD, ids=str)
def test_threads_bound_to_places_are_all_counted(environment):
    expected = min(len(cpus()), _threads.read_group_quota(Path("/")))
    assert threads_of_a_call(environment=environment) == (expected, expected)


@needs_openmp
@on_linux
def test_threads_bound_to_one_place_are_as_many_as_it_has_cpus():
    for environment in (
        {"OMP_PROC_BIND": "master", "OMP_PLACES": f"{{{cpus()[0]}}},{{{cpus()[-1]}}}"},
        {"OMP_PLACES": f"{{{cpus()[-1]}}}"},
    ):
        assert threads_of_a_call(environment=environment) == (1, 1)


@needs_openmp
@on_linux
def test_affinity_set_after_openmp_bound_the_thread_is_honoured():
    if len(cpus()) < 2:
        pytest.skip("one CPU is all there is")
    code = (
        "import os, test_threads; cpus = os.sched_getaffinity(0)\n"
        "os.sched_setaffinity(0, {int(os.environ['LAST'])})\n"
        "test_threads.print_threads_of_a_call()"
    )
    environment = {"OMP_PROC_BIND": "true", "LAST": str(cpus()[-1])}
    assert run_python(code, environment=environment).stdout.split() == ["1", "1"]


@needs_openmp
@on_linux
def test_affinity_set_after_the_import_is_honoured():
    code = (
        "import os, test_threads; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "test_threads.print_threads_of_a_call()"
    )
    assert run_python(code).stdout.split() == ["1", "1"]


def asked_for() -> None:
    before = thread_count()
    x = np.zeros((2000, 1000), np.float32)
    # LLVM's OpenMP, which comes with Clang, does.
    keeps_idle_threads = probe.compiler().startswith("Clang")
    counts = []

    def check(count: int) -> None:
        assert sf.get_num_threads() == count
        sf.softmax(x)
        counts.append(count)
        alive = max(counts) if keeps_idle_threads else count
        deadline = time.monotonic() + 10  # those too many take a while to end
        while thread_count() - before + 1 > alive and time.monotonic() < deadline:
            time.sleep(0.001)
        assert thread_count() - before + 1 == alive

    for count in (1, 3, 2, 5):
        sf.set_num_threads(count)
        check(count)
        with sf.num_threads(count + 1):
            check(count + 1)


@needs_openmp
@on_linux
def test_what_is_asked_for_is_used():
    run_function(asked_for)
    run_function(asked_for, environment={"OMP_NUM_THREADS": "1"})


@needs_openmp
def test_num_threads_is_for_one_python_thread_and_nests():
    seen = []
    outside = sf.get_num_threads()
    with sf.num_threads(3):
        thread = threading.Thread(target=lambda: seen.append(sf.get_num_threads()))
        thread.start()
        thread.join()
        with sf.num_threads(2):
            assert sf.get_num_threads() == 2
        assert sf.get_num_threads() == 3
        with pytest.raises(RuntimeError, match="on purpose"), sf.num_threads(5):
            raise RuntimeError("on purpose")
        assert sf.get_num_threads() == 3
    assert sf.get_num_threads() == outside
    assert seen == [outside]


@needs_openmp
def test_num_threads_of_asyncio_tasks_that_overlap():
    """Each has its own, whichever ends first; a task or thread made of it goes on with it."""
    outside = sf.get_num_threads()
    seen: list[tuple[int, int]] = []

    async def task(count: int, pauses: int) -> None:
        with sf.num_threads(count):
            for _ in range(pauses):
                await asyncio.sleep(0)
                seen.append((count, sf.get_num_threads()))
            seen.append((count, await asyncio.to_thread(sf.get_num_threads)))
        seen.append((outside, sf.get_num_threads()))

    async def tasks() -> None:
        await asyncio.gather(task(3, 4), task(5, 1), task(7, 3))
        seen.append((outside, sf.get_num_threads()))

    asyncio.run(tasks())
    assert len(seen) == 15
    assert all(wanted == got for wanted, got in seen)


@needs_openmp
@pytest.mark.parametrize("first", [0, 1])
def test_num_threads_of_generators_that_overlap_leaves_nothing(first):
    outside = sf.get_num_threads()

    def generator(count: int) -> Iterator[int]:
        with sf.num_threads(count):
            yield sf.get_num_threads()

    both = [generator(3), generator(5)]
    assert [next(one) for one in both] == [3, 5]
    both[first].close()
    assert sf.get_num_threads() == (5, 3)[first]
    both[1 - first].close()
    assert sf.get_num_threads() == outside


@needs_openmp
def test_no_number_of_threads_is_too_many():
    """More than 1024 count as 1024: so many threads may not start, and OpenMP would end it all."""
    x = np.zeros((3000, 100), np.float32)
    for count in (1025, 2**31, 2**64):
        with sf.num_threads(count):
            assert sf.get_num_threads() == 1024
            assert np.array_equal(sf.softmax(x), np.full_like(x, 0.01))


@needs_openmp
def test_set_num_threads_is_for_all_python_threads():
    run_python(
        "import threading, softce_fast as sf\n"
        "seen = []; sf.set_num_threads(3)\n"
        "thread = threading.Thread(target=lambda: seen.append(sf.get_num_threads()))\n"
        "thread.start(); thread.join(); assert seen == [3]"
    )


@needs_openmp
@pytest.mark.parametrize(
    "environment",
    [{"OMP_THREAD_LIMIT": "2"}, {"OMP_DYNAMIC": "true"}, {"OMP_PROC_BIND": "true"}],
    ids=lambda environment: next(iter(environment)),
)
def test_fewer_threads_than_asked_for_do(environment):
    run_function(many_callers, "1", timeout=120, environment=environment)


def unasked_calls_beside_busy_threads() -> None:
    """Calls that are shared out now and again, as the threads have a CPU or not: the same bits."""
    cases = [np.random.default_rng(0).normal(size=(rows, 400)) for rows in (70, 160, 400, 2000)]
    with sf.num_threads(1):
        expected = [sf.softmax(x).tobytes() for x in cases]
    stop = threading.Event()

    def busy() -> None:
        x = np.zeros((4000, 400))
        while not stop.is_set():
            np.exp(x, out=x)

    threads = [threading.Thread(target=busy) for _ in cpus()]
    for thread in threads:
        thread.start()
    try:
        end = time.monotonic() + 2
        while time.monotonic() < end:
            for x, bits in zip(cases, expected, strict=True):
                for _ in range(5):
                    assert sf.softmax(x).tobytes() == bits
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@needs_openmp
@on_linux
def test_bits_beside_busy_threads():
    run_function(unasked_calls_beside_busy_threads, timeout=120)


def calls_beside_threads_without_a_cpu() -> None:
    """One has to wait for them; so some of the next ones, large as they are, do without."""
    x = np.zeros((2000, 1000), np.float32)
    tasks = Path("/proc/self/task")
    before = {task.name for task in tasks.iterdir()}
    cpu = {min(cpus())}

    def crowd(process: int | str) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.sched_setaffinity(int(process), cpu)

    with contextlib.ExitStack() as stack:
        for _ in range(3):
            command = [sys.executable, "-c", "while True: pass"]
            process = stack.enter_context(subprocess.Popen(command))
            stack.callback(process.kill)
            crowd(process.pid)
        plans = stack.enter_context(execute.recording())
        deadline = time.monotonic() + 60
        while not any(plan["threads"] == 1 for plan in plans):
            assert time.monotonic() < deadline
            sf.softmax(x, out=x)
            for task in tasks.iterdir():
                if task.name not in before:
                    crowd(task.name)
    assert any(plan["threads"] > 1 for plan in plans)


@needs_openmp
@on_linux
def test_large_calls_do_without_threads_that_had_to_be_waited_for():
    if len(cpus()) < 2:
        pytest.skip("one CPU")
    run_function(calls_beside_threads_without_a_cpu, timeout=120)


@needs_openmp
def test_kernels_know_whether_anybody_asked_for_threads():
    """Then they use them; else a small call does without those that it would have to wait for."""
    large = 1 << 20
    with sf.num_threads(3):
        assert _threads.threads_for(large) == 3
        assert _threads.threads_for(100) == 1
    count = int(
        run_python("from softce_fast import _threads; print(_threads.threads_for(1 << 20))").stdout
    )
    assert count == -sf.get_num_threads()


def first_calls_use_threads() -> None:
    """However small what is shared out at all, where threads were asked for: none is awake yet."""
    sf.set_num_threads(3)
    before = thread_count()
    sf.softmax(np.zeros((120, 1000), np.float32))
    assert thread_count() - before == 2


@needs_openmp
@on_linux
def test_threads_asked_for_are_used_at_once():
    run_function(first_calls_use_threads)


def first_small_call_wakes_nobody() -> None:
    before = thread_count()
    sf.softmax(np.zeros((120, 1000), np.float32))
    assert thread_count() == before
    sf.softmax(np.zeros((1000, 1000), np.float32))
    assert thread_count() - before == min(used_alone(sf.get_num_threads()), 31) - 1


def calls_in_a_row() -> None:
    """One that comes alone takes a thread more than those that follow at once."""
    count = sf.get_num_threads()
    before = thread_count()
    x = np.zeros((600, 1000), np.float32)
    for pause in (0.0, 0.01):
        time.sleep(pause)
        sf.softmax(x, out=x)
        assert thread_count() - before + 1 == used_alone(count)
    deadline = time.monotonic() + 10  # the one too many takes a while to end
    while thread_count() - before + 1 > count:
        assert time.monotonic() < deadline
        sf.softmax(x, out=x)


@needs_openmp
@on_linux
def test_calls_in_a_row_leave_no_thread_over():
    run_function(calls_in_a_row, timeout=120)


@needs_openmp
@on_linux
def test_a_small_call_alone_wakes_nobody():
    run_function(first_small_call_wakes_nobody)


@needs_openmp
@on_linux
def test_small_calls_start_no_threads():
    run_python(
        "import numpy as np, softce_fast as sf\n"
        "from subprocesses import thread_count\n"
        "before = thread_count(); sf.set_num_threads(4)\n"
        "sf.softmax(np.zeros((10, 100))); assert thread_count() == before"
    )


@needs_openmp
@on_linux
def test_threadpoolctl_limits_are_honoured():
    run_function(limited_by_threadpoolctl)


def limited_by_threadpoolctl() -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")
    before = thread_count()
    with threadpoolctl.threadpool_limits(1, user_api="openmp"):
        assert sf.get_num_threads() == 1
        sf.softmax(np.zeros((1000, 1000)))
        assert thread_count() == before


# Quotas of control groups


def group_tree(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    """Make a small /proc and /sys below `root`."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


UNLIMITED = 1 << 20
VERSION_1 = "9:name=systemd:/\n4:memory:/x\n2:cpu,cpuacct:/user/job\n0::/\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, UNLIMITED),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "5000 100000\n"}, 1),
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000\n", "a/cpu.max": "max 100000\n"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": "900000 100000\n", "a/cpu.max": "200000 100000\n"}, 2),
        ("0::/host/path\n", {"cpu.max": "100000 50000\n"}, 2),
        (
            VERSION_1,
            {
                "cpu/user/job/cpu.cfs_quota_us": "250000\n",
                "cpu/user/job/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            VERSION_1,
            {
                "cpu/user/job/cpu.cfs_quota_us": "-1\n",
                "cpu/user/job/cpu.cfs_period_us": "100000\n",
                "cpu/cpu.cfs_quota_us": "100000\n",
                "cpu/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (VERSION_1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "5\n"}, UNLIMITED),
        ("0::/\n", {"cpu.max": ""}, UNLIMITED),
        ("0::/\n", {"cpu.max": "nonsense\n"}, UNLIMITED),
        ("0::/\n", {"cpu.max": "100 0\n"}, UNLIMITED),
        ("", {}, UNLIMITED),
        ("no such format\n", {}, UNLIMITED),
        ("0::/\\377\n", {}, UNLIMITED),
    ],
)
def test_group_quota(tmp_path, cgroup, files, expected):
    quota = _threads.read_group_quota(group_tree(tmp_path, cgroup, files))
    assert min(quota, UNLIMITED) == expected


def test_no_proc_means_no_quota(tmp_path):
    assert _threads.read_group_quota(tmp_path) >= UNLIMITED


def test_proc_that_is_no_text_means_no_quota(tmp_path):
    root = group_tree(tmp_path, "", {})
    (root / "proc/self/cgroup").write_bytes(b"0::/\xff\n")
    assert _threads.read_group_quota(root) >= UNLIMITED


@pytest.fixture
def group_of_one_cpu() -> Iterator[Path]:
    """Yield a new control group, of either version, with the quota of one CPU."""
    version_1, version_2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    base = version_1 if (version_1 / "cpu.cfs_quota_us").exists() else version_2
    group = base / f"softce_fast_test_{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        try:
            if base == version_1:
                (group / "cpu.cfs_quota_us").write_text("100000")
            else:
                (group / "cpu.max").write_text("100000 100000")
        except OSError as error:
            pytest.skip(f"no quota can be set here: {error}")
        yield group
    finally:
        group.rmdir()


@needs_openmp
@on_linux
def test_a_real_group_quota_is_honoured(group_of_one_cpu):
    code = (
        "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "import test_threads; test_threads.print_threads_of_a_call()"
    )
    environment = {"OMP_NUM_THREADS": "2"}
    output = run_python(code, str(group_of_one_cpu / "cgroup.procs"), environment=environment)
    assert output.stdout.split() == ["1", "1"]


def quota_of_a_forked_child(tasks: str) -> None:
    """The child joins a control group; what the parent read is not the child's."""
    assert sf.get_num_threads() > 1
    child = os.fork()
    if child == 0:
        Path(tasks).write_text(str(os.getpid()))
        os._exit(sf.get_num_threads() != 1)
    assert os.waitpid(child, 0)[1] == 0


@needs_openmp
@on_linux
def test_a_forked_child_has_its_own_quota(group_of_one_cpu):
    if min(len(cpus()), _threads.read_group_quota(Path("/"))) < 2:
        pytest.skip("one CPU is all there is")
    run_function(quota_of_a_forked_child, str(group_of_one_cpu / "cgroup.procs"))


# Nobody else's setting changes


def openmp_settings() -> dict[str, int]:
    """Return omp_get_max_threads() of every OpenMP runtime in this process."""
    settings = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split()[-1]
        if "omp" in Path(path).name and ".so" in path and path not in settings:
            settings[path] = ctypes.CDLL(path).omp_get_max_threads()
    return settings


def settings_before_and_after() -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def settings() -> list[object]:
        found: list[object] = [openmp_settings(), threadpoolctl.threadpool_info()]
        if "torch" in sys.modules:
            found.append(sys.modules["torch"].get_num_threads())
        return found

    if sys.argv[1:] == ["torch"]:
        torch = pytest.importorskip("torch")
        torch.set_num_threads(3)
        torch.zeros(1000, 1000).softmax(-1)
    x = np.zeros((2000, 1000), np.float32)
    sf.softmax(x)
    before = settings()
    assert before[0]
    sf.set_num_threads(5)
    sf.softmax(x)
    with sf.num_threads(1):
        sf.cross_entropy_with_grad(x, np.zeros(2000, np.int64))
    with sf.num_threads(7):
        sf.logsumexp(x)
    if hasattr(os, "fork"):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
    assert settings() == before
    # NumPy's and OpenBLAS's switches for denormal numbers and rounding are the process's, too.
    assert np.float64(5e-324) * 1 == 5e-324
    assert np.float32(1) + np.float32(2**-24) == 1


@needs_openmp
@on_linux
@pytest.mark.parametrize("peer", ["", "torch"])
def test_no_setting_of_others_changes(peer):
    pytest.importorskip("threadpoolctl")
    if peer:
        pytest.importorskip(peer)
    code = "import sys, test_threads; test_threads.settings_before_and_after()"
    run_python(code, *([peer] if peer else []), timeout=120)
