"""Ctrl-C during a call, exits while threads compute, imports in unusual places."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

import softce_fast as sf
from subprocesses import run_function, run_python

# A free-threaded Python says on stderr that it turns the GIL on for these modules, unless it is.
WITH_GIL = {"PYTHON_GIL": "1"}

on_posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


def endless_logits(seconds_about: float) -> np.ndarray:
    """Return logits that keep one thread busy for a while, but take no memory."""
    row = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    return np.broadcast_to(row, (int(seconds_about * 500_000), 1000))


# Cases: functions with names that do not start with test_ run in a process of their own.


def interrupted(threads: str) -> None:
    """Send SIGINT to this process in the middle of a call."""
    sf.set_num_threads(int(threads))
    # A shell that starts the tests in the background has SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    x = endless_logits(1)
    labels = np.zeros(len(x), np.int64)
    inside = threading.Event()

    def sender() -> None:
        inside.wait()
        time.sleep(0.1)
        # To the process, as a terminal does: any thread may get it, OpenMP's included.
        os.kill(os.getpid(), signal.SIGINT)

    for call in (lambda: sf.logsumexp(x), lambda: sf.cross_entropy(x, labels)):
        inside.clear()
        thread = threading.Thread(target=sender)
        thread.start()

        def work(call: Callable[[], object] = call) -> None:
            inside.set()
            call()
            # The call has run to its end: Python looks for signals between two instructions.
            time.sleep(5)

        with pytest.raises(KeyboardInterrupt):
            work()
        thread.join()
    small = np.random.default_rng(1).normal(size=(500, 700))
    with sf.num_threads(1):
        expected = sf.softmax(small)
    assert np.array_equal(sf.softmax(small), expected)


def daemon_at_exit(threads: str) -> None:
    """Leave with threads in the middle of calls, long and short ones."""
    sf.set_num_threads(int(threads))
    x = endless_logits(2)
    short = np.zeros((200, 1000), np.float32)
    started = threading.Barrier(4)

    def long_call() -> None:
        started.wait()
        while True:
            sf.logsumexp(x)

    def short_calls() -> None:
        started.wait()
        while True:
            sf.cross_entropy_with_grad(short, np.zeros(200, np.int64))

    for function in (long_call, short_calls, short_calls):
        threading.Thread(target=function, daemon=True).start()
    started.wait()
    time.sleep(0.05)


def exits_in_a_thread() -> None:
    """Leave by os._exit and by an exception while another thread computes."""
    thread = threading.Thread(target=sf.logsumexp, args=(endless_logits(2),), daemon=True)
    thread.start()
    time.sleep(0.05)
    raise SystemExit(7)


@on_posix
@pytest.mark.parametrize("threads", ["1", "2"])
def test_interrupt_leaves_the_process_usable(threads):
    run_function(interrupted, threads)


@pytest.mark.parametrize("threads", ["1", "3"])
def test_exit_while_daemon_threads_compute(threads):
    for _ in range(5):
        result = run_function(daemon_at_exit, threads, environment=WITH_GIL)
        assert result.stderr == ""


def test_exit_status_while_a_daemon_thread_computes():
    result = run_function(exits_in_a_thread, check=False, environment=WITH_GIL)
    assert result.returncode == 7
    assert result.stderr == ""


# Imports

USE = "assert abs(sf.softmax(np.array([0.0, 0.0]))[0] - 0.5) < 1e-15"


def test_second_import_after_removal():
    run_python(
        f"import sys, numpy as np, softce_fast as first; sf = first; {USE}\n"
        "x = np.random.default_rng(0).normal(size=(300, 500))\n"
        "expected = first.softmax(x)\n"
        "for name in [name for name in sys.modules if name.startswith('softce_fast')]:\n"
        "    del sys.modules[name]\n"
        "import softce_fast as sf\n"
        f"assert sf is not first; {USE}\n"
        "assert (sf.softmax(x) == expected).all() and (first.softmax(x) == expected).all()\n"
        "import os\n"
        "if hasattr(os, 'fork'):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os._exit(int(not (sf.softmax(x) == expected).all()))\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
    )


def test_reload():
    run_python(
        "import importlib, numpy as np, softce_fast as sf, softce_fast._threads\n"
        "importlib.reload(softce_fast._threads)\n"
        f"assert importlib.reload(sf) is sf; {USE}\n"
    )


def test_import_in_threads_at_once():
    code = (
        "import sys, threading\n"
        "problems = []\n"
        "def work():\n"
        "    try:\n"
        "        import numpy as np, softce_fast as sf\n"
        f"        {USE}\n"
        "    except BaseException as error:\n"
        "        problems.append(error)\n"
        "threads = [threading.Thread(target=work) for _ in range(8)]\n"
        "[thread.start() for thread in threads]\n"
        "[thread.join() for thread in threads]\n"
        "assert not problems, problems\n"
    )
    for _ in range(3):
        run_python(code)


SUBINTERPRETER = f"""
import sys

IMPORT = '''
try:
    import numpy as np, softce_fast as sf
    {USE}
except ImportError as error:
    assert str(error), 'an ImportError without a word'
    print('ImportError:', error)
else:
    print('works')
'''

def run(code):
    if sys.version_info >= (3, 14):
        from concurrent import interpreters
        interpreters.create().exec(code)
    elif sys.version_info >= (3, 13):
        import _interpreters
        problem = _interpreters.exec(_interpreters.create(), code)
        assert problem is None, problem
    else:
        import _xxsubinterpreters
        _xxsubinterpreters.run_string(_xxsubinterpreters.create(), code)

if sys.argv[1] == "after":
    import numpy as np, softce_fast as sf
run(IMPORT)
exec(IMPORT)
if sys.argv[1] == "after":
    sf.softmax(np.zeros((1000, 1000)))
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_import_in_a_subinterpreter_gives_a_clear_result(when):
    """It works, or it is an ImportError: NumPy's own where that takes one interpreter only.

    Whichever interpreter came first goes on working.
    """
    result = run_python(SUBINTERPRETER, when, environment={"PYTHONWARNINGS": "ignore"}, check=False)
    if np.lib.NumpyVersion(np.__version__) < "2.0.0" and "SystemError" in result.stderr:
        pytest.skip("this NumPy itself cannot be imported a second time")
    assert result.returncode == 0, result.stdout + result.stderr
    in_subinterpreter, in_main = result.stdout.splitlines()
    for line in (in_subinterpreter, in_main):
        assert line == "works" or line.startswith("ImportError: ")
    assert "works" in (in_subinterpreter, in_main)
    assert in_main == "works" or when == "before"
