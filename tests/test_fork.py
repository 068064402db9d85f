"""A child forked before, after or during a call computes the right bits, in parallel, never hangs.

Every case runs in a process of its own, under a time limit.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

import softce_fast as sf
from softce_fast._kernels import execute, probe
from subprocesses import run_function, run_python, thread_count

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

THREADS = 4
ROWS, CLASSES = 256, 1000  # enough for four threads
SECONDS_OF_A_CHILD = 30
VARIABLE = "KMP_INIT_AT_FORK"


def counts_threads() -> bool:
    return sys.platform == "linux" and bool(probe.openmp())


@functools.cache
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(ROWS, CLASSES)).astype(np.float32)


def computed_bits() -> list[int]:
    """Run a call of every kind; return checksums of all bits of the results.

    Little else takes time, so that what happens at any moment happens during a call.
    """
    x = logits()
    loss, gradient = sf.cross_entropy_with_grad(x, np.arange(ROWS) % CLASSES)
    results = [sf.softmax(x), sf.log_softmax(x), sf.logsumexp(x), np.asarray(loss), gradient]
    return [zlib.crc32(result) for result in results]


def serial_bits() -> list[int]:
    with sf.num_threads(1):
        return computed_bits()


def in_child(work: Callable[[], None]) -> None:
    """Fork; do the work in the child; fail if it fails or is not done in time."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS_OF_A_CHILD)
            work()
            status = 0
        except BaseException as error:
            print(f"child: {error!r}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        raise AssertionError(f"child killed by {signal.Signals(os.WTERMSIG(status)).name}")
    assert os.WEXITSTATUS(status) == 0


def check_bits(expected: list[int]) -> Callable[[], None]:
    def work() -> None:
        assert computed_bits() == expected, "the child's bits differ"

    return work


# Cases: functions with names that do not start with test_ run in the process of their own.


def after_call() -> None:
    expected = serial_bits()
    sf.set_num_threads(THREADS)
    for _ in range(20):
        assert computed_bits() == expected
        in_child(check_bits(expected))
    assert computed_bits() == expected


def without_call() -> None:
    expected = serial_bits()
    sf.set_num_threads(THREADS)
    in_child(check_bits(expected))
    assert computed_bits() == expected


def check_bits_in_parallel(expected: list[int]) -> Callable[[], None]:
    def work() -> None:
        assert sf.get_num_threads() == THREADS
        before = thread_count()
        assert computed_bits() == expected, "the child's bits differ"
        assert thread_count() - before == THREADS - 1, "the child is serial"

    return work


def child_is_parallel() -> None:
    expected = serial_bits()
    sf.set_num_threads(THREADS)
    computed_bits()
    assert thread_count() == THREADS, "the parent should have run in parallel"
    for _ in range(5):
        in_child(check_bits_in_parallel(expected))
        computed_bits()
        assert thread_count() == THREADS, "the parent became serial"


def grandchild() -> None:
    expected = serial_bits()
    sf.set_num_threads(THREADS)
    computed_bits()

    def work() -> None:
        assert computed_bits() == expected
        in_child(check_bits(expected))
        assert computed_bits() == expected

    in_child(work)


def during_call(repetitions: str) -> None:
    expected = serial_bits()
    sf.set_num_threads(THREADS)
    stop = threading.Event()
    wrong: list[list[int]] = []
    calls = [0, 0]

    def caller(index: int) -> None:
        while not stop.is_set():
            bits = computed_bits()
            calls[index] += 1
            if bits != expected:
                wrong.append(bits)

    threads = [threading.Thread(target=caller, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    random = np.random.default_rng(1)
    try:
        for repetition in range(int(repetitions)):
            time.sleep(random.uniform(0, 0.01))
            if repetition % 2:
                computed_bits()
            in_child(check_bits(expected))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert min(calls) > 0


def during_a_long_call() -> None:
    """One call, of another thread, goes on while this one forks."""
    expected = serial_bits()
    sf.set_num_threads(THREADS)
    computed_bits()
    row = logits()[0]
    x = np.broadcast_to(row, (5_000_000, CLASSES))  # a second or so of work, and no memory
    results: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: results.append(sf.logsumexp(x)))
    thread.start()
    time.sleep(0.05)
    forks = 0
    while thread.is_alive():
        in_child(check_bits(expected))
        forks += thread.is_alive()
    thread.join()
    assert forks > 0
    assert (results[0] == sf.logsumexp(row)).all()
    assert computed_bits() == expected


def from_another_thread() -> None:
    expected = serial_bits()
    sf.set_num_threads(THREADS)
    problems: list[BaseException] = []

    def forker() -> None:
        try:
            computed_bits()
            in_child(check_bits(expected))
        except BaseException as error:
            problems.append(error)

    computed_bits()
    threads = [threading.Thread(target=forker) for _ in range(3)]
    for thread in threads:
        thread.start()
        computed_bits()
    for thread in threads:
        thread.join()
    assert not problems, problems


def bits_of_task(_: int) -> list[int]:
    return computed_bits()


def pool(method: str) -> None:
    import multiprocessing

    expected = serial_bits()
    sf.set_num_threads(THREADS)
    computed_bits()
    with multiprocessing.get_context(method).Pool(3) as processes:
        asynchronous = processes.map_async(bits_of_task, range(12))
        computed_bits()
        results = asynchronous.get(timeout=SECONDS_OF_A_CHILD)
    assert results == [expected] * 12


def executor() -> None:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    expected = serial_bits()
    sf.set_num_threads(THREADS)
    computed_bits()
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(2, mp_context=context) as processes:
        assert list(processes.map(bits_of_task, range(6))) == [expected] * 6


def forks_beside(peer_works: Callable[[], object]) -> None:
    """Fork after calls of both, and while another thread calls both."""
    expected = serial_bits()
    sf.set_num_threads(THREADS)
    check = check_bits_in_parallel if counts_threads() else check_bits
    for _ in range(5):
        peer_works()
        assert computed_bits() == expected
        in_child(check(expected))
    stop = threading.Event()

    def caller() -> None:
        while not stop.is_set():
            peer_works()
            computed_bits()

    thread = threading.Thread(target=caller)
    thread.start()
    try:
        for _ in range(20):
            computed_bits()
            in_child(check(expected))
    finally:
        stop.set()
        thread.join()


def with_torch() -> None:
    """PyTorch works in parallel, too; then its DataLoader forks."""
    import torch

    torch.set_num_threads(3)
    x = torch.from_numpy(logits())
    forks_beside(lambda: torch.softmax(x, -1))
    assert torch.get_num_threads() == 3
    data_loader()


def with_sklearn() -> None:
    """scikit-learn works in parallel, too."""
    from sklearn.cluster import KMeans
    from sklearn.ensemble import HistGradientBoostingClassifier

    data = logits()
    HistGradientBoostingClassifier(max_iter=1).fit(data[:, :5], np.arange(ROWS) % 2)
    forks_beside(lambda: KMeans(3, n_init=1, random_state=0).fit(data))


class Rows:
    """A data set whose workers use softce_fast, as a PyTorch DataLoader sees it."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> np.ndarray:
        x = logits() + index
        return np.array(sf.cross_entropy(x, np.zeros(ROWS, np.int64), reduction="none"))


def data_loader() -> None:
    from torch.utils.data import DataLoader

    sf.set_num_threads(THREADS)
    expected = [Rows()[index] for index in range(8)]
    loader = DataLoader(
        Rows(),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=2,
        multiprocessing_context="fork",
        timeout=SECONDS_OF_A_CHILD,
    )
    for _ in range(2):
        for index, batch in enumerate(loader):
            assert np.array_equal(batch, expected[index])
            computed_bits()  # between batches the parent works, too


def subprocess_works() -> None:
    """Starting a program forks as well."""
    import subprocess

    expected = serial_bits()
    sf.set_num_threads(THREADS)
    for options in ({}, {"close_fds": False}, {"preexec_fn": os.getpid}):
        computed_bits()
        subprocess.run([sys.executable, "-c", ""], check=True, timeout=30, **options)  # type: ignore[call-overload]
    assert computed_bits() == expected


def while_others_call_for_the_first_time() -> None:
    """Fork at any moment of the first calls of many threads, each for a dtype of its own."""
    names = ("float16", "float32", "float64")
    start = threading.Barrier(len(names) + 1)

    def call(name: str) -> None:
        sf.softmax(np.zeros((300, 1000), name))

    def caller(name: str) -> None:
        start.wait()
        call(name)

    threads = [threading.Thread(target=caller, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    start.wait()
    forks = 0
    while forks < 5 or any(thread.is_alive() for thread in threads):
        for name in names:
            in_child(partial(call, name))
            forks += 1
    for thread in threads:
        thread.join()


def every_module_is_told() -> None:
    """Each is bound to a copy of OpenMP of its own where others brought theirs in between."""
    told: list[str] = []
    for module in (execute, probe):
        module.pause = partial(told.append, module.__name__)  # type: ignore[attr-defined]
    in_child(lambda: None)
    assert told == [probe.__name__, execute.__name__]


def test_every_module_is_told_of_a_fork():
    run_function(every_module_is_told)


def test_fork_during_first_calls():
    for _ in range(3):
        run_function(while_others_call_for_the_first_time)


@pytest.mark.parametrize(
    "case",
    [after_call, without_call, grandchild, from_another_thread, executor, subprocess_works],
    ids=lambda case: case.__name__,
)
def test_child_computes_the_right_bits(case):
    run_function(case)


@pytest.mark.parametrize("value", ["FALSE", "TRUE"])
def test_llvm_is_not_kept_from_renewing_itself(value):
    """scikit-learn sets the variable, and whoever starts this process may have imported it."""
    code = f"test_fork.after_call(); assert os.environ[{VARIABLE!r}] == {value!r}"
    run_python(f"import os, test_fork; {code}", environment={VARIABLE: value})


@pytest.mark.skipif(
    not counts_threads(), reason="a serial build, or no /proc where threads are counted"
)
def test_child_and_parent_stay_parallel():
    run_function(child_is_parallel)


def test_fork_during_calls_of_other_threads():
    run_function(during_call, "100", timeout=100)


def test_fork_during_a_long_call_of_another_thread():
    run_function(during_a_long_call, timeout=100)


@pytest.mark.slow
def test_fork_during_calls_of_other_threads_many_times():
    run_function(during_call, "800", timeout=600)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing_pool(method):
    run_function(pool, method)


@pytest.mark.parametrize("first", ["peer", "softce_fast"])
@pytest.mark.parametrize("peer", ["torch", "sklearn"])
def test_with_a_peer_that_has_its_own_openmp(peer, first):
    pytest.importorskip(peer)
    imports = [f"import {peer}", "import softce_fast"]
    order = imports if first == "peer" else imports[::-1]
    run_python("\n".join([*order, f"import test_fork; test_fork.with_{peer}()"]), timeout=120)
