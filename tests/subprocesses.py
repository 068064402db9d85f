"""Code that must run in a process of its own: it may crash, hang, fork, or change global state."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import softce_fast

PACKAGE = Path(softce_fast.__file__).resolve().parent
TESTS = Path(__file__).resolve().parent

# What chooses a number of threads or a build must come from the test, not from whoever runs it.
UNSET = (
    *("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OMP_DYNAMIC", "OMP_STACKSIZE"),
    *("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY"),
)

# Sanitized and emulated processes are slow.
PATIENCE = 5 if "LD_PRELOAD" in os.environ else 1


class Result(subprocess.CompletedProcess[str]):
    """What a process wrote and how it ended."""


def run_python(
    code: str,
    *arguments: str,
    timeout: float = 60,
    environment: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    check: bool = True,
) -> Result:
    """Run Python code in a new process that sees the same softce_fast as this one.

    The code is given `arguments` as ``sys.argv[1:]``. The process and what it started are killed
    after `timeout` seconds. With `check` a time-out, a signal or an exit status other than 0 fails
    the calling test.
    """
    variables = {name: value for name, value in os.environ.items() if name not in UNSET}
    variables["PYTHONPATH"] = os.pathsep.join([str(PACKAGE.parent), str(TESTS)])
    variables["PYTHONSAFEPATH"] = "1"
    variables["OPENBLAS_NUM_THREADS"] = "1"  # so that threads are easy to count
    variables.update(environment or {})
    command = [*prefix, sys.executable, "-X", "faulthandler", "-c", code, *arguments]
    process = subprocess.Popen(
        command,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    problem = None
    try:
        output, errors = process.communicate(timeout=timeout * PATIENCE)
    except subprocess.TimeoutExpired:
        problem = f"hung: killed after {timeout * PATIENCE:.0f} s"
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
    result = Result(command, process.returncode, output, errors)
    if problem is None and process.returncode:
        problem = ending(process.returncode)
    if problem and check:
        raise AssertionError(f"{problem}\n--- stdout\n{output}\n--- stderr\n{errors[-6000:]}")
    return result


def run_function(
    function: Callable[..., object],
    *arguments: str,
    timeout: float = 60,
    environment: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    check: bool = True,
) -> Result:
    """Run a function of a test module as `run_python` runs code."""
    module, name = function.__module__.rpartition(".")[2], function.__name__
    code = f"import sys, {module}; {module}.{name}(*sys.argv[1:])"
    return run_python(
        code, *arguments, timeout=timeout, environment=environment, prefix=prefix, check=check
    )


def ending(status: int) -> str:
    """Say how a process ended."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}"


def thread_count() -> int:
    """Return the number of threads of this process."""
    return len(os.listdir("/proc/self/task"))


def peak_memory() -> int:
    """The most memory that this process has had so far, in bytes, as Linux tells it.

    What getrusage tells is at least that of the process that started this one.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
