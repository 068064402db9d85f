"""Where threads or memory cannot be had a call does without, or raises MemoryError."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import softce_fast as sf
from softce_fast import _threads
from softce_fast._kernels import probe
from subprocesses import run_function, run_python, thread_count

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="limits and preloading as on Linux"),
    pytest.mark.skipif(not probe.openmp(), reason="a serial build"),
]

THREADS = 8
PATTERN = -7.0
ROWS, CLASSES = 700, 500


def build_limits(folder: Path) -> Path:
    """Build the library in which threads and memory run out."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()
    path, source = folder / "limits.so", Path(__file__).with_name("limits.c")
    flags = ["-O1", "-shared", "-fPIC", "-pthread", str(source), "-o", str(path), "-ldl"]
    subprocess.run([*compiler, *flags], capture_output=True, text=True, check=True)
    return path


@pytest.fixture(scope="module")
def limits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return build_limits(tmp_path_factory.mktemp("limits"))
    except FileNotFoundError:
        pytest.skip("needs a C compiler")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"needs glibc: {error.stderr[-300:]}")


# Cases: functions with names that do not start with test_ run in a process of their own.


def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(ROWS, CLASSES)).astype(np.float32)


Call = Callable[[], tuple[Any, ...]]


def calls(x: np.ndarray) -> dict[str, tuple[Call, tuple[np.ndarray, ...]]]:
    """Return a call of every kind, and the arrays that it writes to."""
    labels = np.arange(ROWS) % CLASSES
    probs, weight = sf.softmax(x), np.linspace(0.5, 2, CLASSES)
    out, other = np.empty_like(x), np.empty_like(x)
    losses = np.empty(ROWS, np.float32)
    return {
        "softmax": (lambda: (sf.softmax(x, out=out),), (out,)),
        "log_softmax of columns": (lambda: (sf.log_softmax(x, 0, out=out),), (out,)),
        "masked softmax": (lambda: (sf.softmax(x, where=x < 1, out=out),), (out,)),
        "logsumexp": (lambda: (sf.logsumexp(x, out=losses),), (losses,)),
        "softmax_backward": (lambda: (sf.softmax_backward(x, probs, out=out),), (out,)),
        "log_softmax_backward": (lambda: (sf.log_softmax_backward(x, probs, out=out),), (out,)),
        "loss": (lambda: (sf.cross_entropy(x, labels),), ()),
        "gradient": (lambda: sf.cross_entropy_with_grad(x, labels, grad_out=out), (out,)),
        "gradient of probabilities": (
            lambda: sf.cross_entropy_with_grad(x, probs, weight=weight, grad_out=out), (out,)
        ),
        "smoothed gradient": (
            lambda: sf.cross_entropy_with_grad(
                x, labels, weight=weight, label_smoothing=0.1, reduction="none", grad_out=out
            ),
            (out,),
        ),
        "hessian": (
            lambda: sf.cross_entropy_with_grad_and_hessian(
                x, labels, grad_out=out, hessian_out=other
            ),
            (out, other),
        ),
        "scores": (lambda: sf.target_scores(x, labels, top_k=3, entropy=True), ()),
        "capped gradient of columns": (
            lambda: sf.cross_entropy_with_grad(
                x, labels[:CLASSES], 0, softcap=5.0, where=x < 1, grad_out=out
            ),
            (out,),
        ),
        "nll_loss": (lambda: (sf.nll_loss(x, labels),), ()),
        "cross_entropy_from_probs": (lambda: (sf.cross_entropy_from_probs(probs, probs),), ()),
        "binary gradient": (
            lambda: sf.binary_cross_entropy_with_logits_with_grad(x, probs, grad_out=out), (out,)
        ),
        "long row": (lambda: (sf.softmax(x.ravel()),), ()),
    }  # fmt: skip


def bits(results: tuple[Any, ...]) -> list[bytes]:
    return [np.asarray(result).tobytes() for result in results]


def serial_bits(cases: dict[str, tuple[Call, tuple[np.ndarray, ...]]]) -> dict[str, list[bytes]]:
    with sf.num_threads(1):
        return {name: bits(call()) for name, (call, _) in cases.items()}


def address_space(megabytes: str, threads: str) -> None:
    """Compute where so much may be mapped besides what is."""
    import resource

    cases = calls(logits())
    expected = serial_bits(cases)
    sf.set_num_threads(int(threads))
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = mapped + int(megabytes) * 2**20
    unlimited = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (limit, unlimited))
    computed: list[tuple[str, list[bytes]]] = []
    for name, (call, _) in cases.items():
        for _ in range(2):
            try:
                computed.append((name, bits(call())))
            except MemoryError:
                continue
    resource.setrlimit(resource.RLIMIT_AS, (unlimited, unlimited))
    for name, result in computed:
        assert result == expected[name], name
    assert {name: bits(call()) for name, (call, _) in cases.items()} == expected


@pytest.mark.parametrize("threads", ["8", "64"])
@pytest.mark.parametrize("megabytes", ["1", "10", "30", "100", "300"])
def test_limited_address_space(megabytes, threads):
    run_function(address_space, megabytes, threads)


def number_of_processes(limit: str) -> None:
    import resource

    cases = calls(logits())
    expected = serial_bits(cases)
    sf.set_num_threads(THREADS)
    nobody = 1_000_000 + os.getpid()
    os.setresgid(nobody, nobody, nobody)
    os.setresuid(nobody, nobody, nobody)
    resource.setrlimit(resource.RLIMIT_NPROC, (int(limit), int(limit)))
    for _ in range(3):
        assert {name: bits(call()) for name, (call, _) in cases.items()} == expected
    print(thread_count())


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0,
    reason="whose number of processes is small enough to limit, root alone can become",
)
@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8, 9])
def test_limited_number_of_processes(limit):
    used = int(run_function(number_of_processes, str(limit)).stdout)
    assert used <= max(limit, 1)
    if limit > 3:
        assert used > 1, "those that could be started should have been"


@pytest.fixture
def group_of_few_threads() -> Iterator[Path]:
    """Yield a control group of at most four threads."""
    for base in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")):
        group = base / f"softce_fast_test_{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            try:
                (group / "pids.max").write_text("4")
            except OSError:
                continue
            yield group
            return
        finally:
            group.rmdir()
    pytest.skip("no control group that limits threads can be made here")


def in_group(tasks: str) -> None:
    cases = calls(logits())
    expected = serial_bits(cases)
    sf.set_num_threads(THREADS)
    Path(tasks).write_text(str(os.getpid()))
    for _ in range(3):
        assert {name: bits(call()) for name, (call, _) in cases.items()} == expected
    assert 1 < thread_count() <= 4


def test_limited_control_group(group_of_few_threads):
    run_function(in_group, str(group_of_few_threads / "cgroup.procs"))


def library() -> ctypes.CDLL:
    preloaded = ctypes.CDLL(os.environ["LD_PRELOAD"])
    preloaded.fail_allocation.argtypes = [ctypes.c_long]
    return preloaded


def threads_run_out(callers: str) -> None:
    """Compute from so many Python threads, as threads run out and come back."""
    limit = ctypes.c_int.in_dll(library(), "limit_threads")
    refused = ctypes.c_int.in_dll(library(), "threads_refused")
    x = logits()
    with sf.num_threads(1):
        expected = sf.softmax(x).tobytes()
    problems: list[object] = []
    start = threading.Barrier(int(callers))

    def caller(index: int) -> None:
        try:
            start.wait()
            for repetition in range(30):
                # Teams grow and shrink, each caller's at its own time.
                with sf.num_threads(2 + (repetition + index) % THREADS):
                    assert sf.softmax(x).tobytes() == expected
        except BaseException as error:
            problems.append(error)

    for room in range(2 * THREADS):
        threads = [threading.Thread(target=caller, args=(k,)) for k in range(int(callers))]
        limit.value = int(callers) + room
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        time.sleep(0.11)  # so that it is tried again to start some
    assert not problems, problems
    assert refused.value > 0, "the limit should have been met"


def threads_run_out_in_a_child() -> None:
    """What could be started in the parent says nothing of its child."""
    limit = ctypes.c_int.in_dll(library(), "limit_threads")
    x = logits()
    sf.set_num_threads(THREADS)
    expected = sf.softmax(x).tobytes()
    assert thread_count() == THREADS
    child = os.fork()
    if child == 0:
        limit.value = 2
        os._exit(int(sf.softmax(x).tobytes() != expected))
    assert os.waitpid(child, 0)[1] == 0
    assert sf.softmax(x).tobytes() == expected


def test_threads_run_out_in_a_child(limits):
    run_function(threads_run_out_in_a_child, environment={"LD_PRELOAD": str(limits)})


def fork_while_threads_start() -> None:
    delay = ctypes.c_int.in_dll(library(), "thread_delay")
    x = logits()
    expected = sf.softmax(x).tobytes()
    sf.set_num_threads(THREADS)
    begin = threading.Event()

    def work() -> None:
        begin.wait()
        sf.softmax(x)

    caller = threading.Thread(target=work)
    caller.start()
    delay.value = 20_000
    begin.set()
    time.sleep(0.05)
    child = os.fork()
    delay.value = 0
    if child == 0:
        signal.alarm(10)
        os._exit(int(sf.softmax(x).tobytes() != expected))
    assert os.waitpid(child, 0)[1] == 0
    caller.join()


def test_fork_while_threads_start(limits):
    for _ in range(3):
        run_function(fork_while_threads_start, environment={"LD_PRELOAD": str(limits)})


@pytest.mark.parametrize("callers", ["1", "3"])
def test_threads_run_out(limits, callers):
    run_function(
        threads_run_out, callers, timeout=120,
        environment={"LD_PRELOAD": str(limits), "OMP_WAIT_POLICY": "passive"},
    )  # fmt: skip


def fail_no_allocation(memory: ctypes.CDLL) -> None:
    while True:
        try:
            memory.fail_allocation(0)
            return
        except (MemoryError, ctypes.ArgumentError):  # it was one of this call's own
            continue


def allocations_fail() -> None:
    """In each call let each allocation fail, one at a time."""
    memory = library()
    small_objects = os.environ["PYTHONMALLOC"] == "malloc"  # else they come from larger blocks
    x = logits()
    sf.set_num_threads(2)
    cases = calls(x)
    expected = {name: bits(call()) for name, (call, _) in cases.items()}
    failures = 0
    for name, (call, written) in cases.items():
        before = x.tobytes()
        for which in range(1, 10_000):
            for array in written:
                array[...] = PATTERN
            result, failed = None, True
            try:
                memory.fail_allocation(which)
                result = call()
                failed = bool(memory.allocation_failed())
            except MemoryError:
                pass
            except SystemError as error:  # of NumPy's own sums and maxima
                if "exception" not in str(error):  # "an error without an exception"
                    raise
            fail_no_allocation(memory)
            if result is not None:
                assert bits(result) == expected[name], (name, which)
            else:
                for array in written:
                    # Small objects of Python's are made in the end, too.
                    done = small_objects and array.tobytes() in expected[name]
                    untouched = bool((array == PATTERN).all())
                    assert done or untouched, f"{name}: written before allocation {which}"
            failures += failed
            assert x.tobytes() == before
            assert bits(call()) == expected[name], f"{name}, the call after allocation {which}"
            if not failed:
                break
    assert failures > len(cases)


@pytest.mark.parametrize("allocator", ["pymalloc", "malloc"])
def test_allocations_fail(limits, allocator):
    environment = {
        "LD_PRELOAD": str(limits), "PYTHONMALLOC": allocator, "OMP_WAIT_POLICY": "passive",
    }  # fmt: skip
    run_function(allocations_fail, timeout=120, environment=environment)


@pytest.mark.parametrize(
    ("environment", "size"),
    [
        ({}, 0),
        ({"OMP_STACKSIZE": "16"}, 16 << 10),
        ({"OMP_STACKSIZE": " 16 k "}, 16 << 10),
        ({"OMP_STACKSIZE": "3M"}, 3 << 20),
        ({"OMP_STACKSIZE": "100b"}, 100),
        ({"GOMP_STACKSIZE": "1g"}, 1 << 30),
        ({"KMP_STACKSIZE": "65536"}, 65536),
        ({"OMP_STACKSIZE": "much"}, 0),
    ],
)
def test_stack_size_is_read_as_openmp_reads_it(environment, size):
    assert _threads.stack_size(environment) == size


def test_stacks_that_no_memory_is_large_enough_for():
    """OpenMP itself would end the process."""
    code = (
        "import numpy as np, softce_fast as sf; sf.set_num_threads(4)\n"
        "assert np.allclose(sf.softmax(np.zeros((1000, 1000))), 1e-3)"
    )
    run_python(code, environment={"OMP_STACKSIZE": "200000G"})
