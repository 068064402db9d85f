"""Run the tests on sanitized builds of the extension modules, made in a scratch copy.

    python tools/sanitize.py [address] [thread] [-- PYTEST ARGUMENTS]

address  GCC's address sanitizer and undefined-behaviour sanitizer, over the quick tests.
thread   GCC's thread sanitizer, over all kernels called from several Python threads at once. It
         cannot see how GCC's own OpenMP runtime orders things, so LLVM's takes its place and tells
         the sanitizer, through its tool archer. Needs libomp (Debian: libomp-dev).

Before a sanitizer is believed it has to find planted faults (planted_faults.pyx).
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SCRATCH = ROOT / "build" / "sanitize"
COPIED = ("setup.py", "pyproject.toml", "LICENSE", "README.md", "softce_fast", "tests", "tools")
EXIT_STATUS = 66  # what a sanitizer ends a process with

# These emulate a CPU, measure time or memory, limit it, or look at the machine code of the real
# build. And GCC's address sanitizer by itself hangs in a child that is forked while another thread
# ends, as OpenMP's do before a fork: 3 of 601 times in 20 lines of C, never without the sanitizer.
NOT_SANITIZED = (
    "tests/test_benchmarks.py",
    "tests/test_fork.py",
    "tests/test_limits.py",
    "tests/test_linear.py::test_memory_stays_within_the_limit",
    "tests/test_machine_code.py",
    "tests/test_memory.py::test_memory_mapped_training_step",
    "tests/test_memory.py::test_nothing_leaks",
    "tests/test_memory.py::test_no_copy_of_the_input",
    "tests/test_old_cpus.py",
    "tests/test_packaging.py",
    "tests/test_stacks.py",
)


class Sanitizer(NamedTuple):
    """How to build with a sanitizer and to run with it, and what it has to find."""

    compile_flags: str
    libraries: tuple[str, ...]
    environment: dict[str, str]
    planted: dict[str, str]  # a statement, and what the report on it says; "" for none
    prefix: tuple[str, ...] = ()
    build_environment: Mapping[str, str] = {}


def library(name: str) -> str:
    """Return the path of a library that comes with GCC or with LLVM's OpenMP."""
    command = [*(os.environ.get("CC") or "gcc").split(), f"-print-file-name={name}"]
    of_gcc = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    found = [of_gcc, *sorted(map(str, Path("/usr/lib").glob(f"llvm-*/lib/{name}")))]
    if not Path(found[-1]).is_absolute():
        raise SystemExit(
            f"sanitize: {name} is missing: GCC and its sanitizers are needed, and LLVM's OpenMP "
            "(Debian and Ubuntu: libomp-dev)"
        )
    return found[-1]


def address() -> Sanitizer:
    return Sanitizer(
        # Python's own flags may define signed overflow, which would hide it.
        "-fopenmp -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all "
        "-fno-wrapv -fno-omit-frame-pointer",
        # libstdc++ so that the exceptions of other packages are seen as they are.
        libraries=(library("libasan.so"), library("libstdc++.so")),
        environment={
            "PYTHONMALLOC": "malloc",
            # Python does not free everything at exit; NumPy reserves more than there is.
            "ASAN_OPTIONS": (
                f"detect_leaks=0:exitcode={EXIT_STATUS}:allocator_may_return_null=1:handle_segv=0"
            ),
            "UBSAN_OPTIONS": f"print_stacktrace=1:exitcode={EXIT_STATUS}",
        },
        planted={
            "p.overrun(np.zeros(1000, np.float32))": "heap-buffer-overflow",
            "p.overflow(2**31 - 1)": "signed integer overflow",
        },
    )


def thread() -> Sanitizer:
    suppressions = Path(__file__).with_name("thread.supp")
    return Sanitizer(
        "-fopenmp -fsanitize=thread -fno-omit-frame-pointer",
        libraries=(library("libtsan.so"), library("libomp.so.5")),
        environment={
            "OMP_TOOL_LIBRARIES": library("libarcher.so"),
            "TSAN_OPTIONS": (
                f"exitcode={EXIT_STATUS}:ignore_noninstrumented_modules=1:halt_on_error=1"
                f":suppressions={suppressions}"
            ),
            "OPENBLAS_NUM_THREADS": "1",
        },
        planted={
            "p.race(np.zeros(1, np.int32), 4)": "data race",
            "assert p.no_race(4) == 100000": "",
        },
        # The sanitizer wants the addresses where they are without randomisation.
        prefix=("setarch", platform.machine(), "--addr-no-randomize"),
        # How threads share the work is the same in every build: one, for any CPU, will do.
        build_environment={"_PYTHON_HOST_PLATFORM": "linux-any"},
    )


SANITIZERS = {"address": address, "thread": thread}


def copy_project(folder: Path, *but: str) -> None:
    """Copy what is built and tested, but for files of those patterns."""
    ignored = shutil.ignore_patterns(*but, "__pycache__", "*.egg-info")
    for source in (ROOT / item for item in COPIED):
        if source.is_dir():
            shutil.copytree(source, folder / source.name, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copy2(source, folder)


def build(name: str, sanitizer: Sanitizer) -> Path:
    """Build the package and the planted faults in a scratch copy; return its folder."""
    folder = SCRATCH / name
    folder.mkdir(parents=True, exist_ok=True)
    copy_project(folder, "*.so", "*.c")
    environment = os.environ | sanitizer.build_environment
    environment |= dict.fromkeys(("CFLAGS", "LDFLAGS"), sanitizer.compile_flags)
    # With line numbers in the reports, and in a time that can be waited for.
    environment["SOFTCE_FAST_BUILD"] = "debug"
    setup = ["setup.py", "--quiet", "build_ext", "--inplace"]
    planted = ["-m", "Cython.Build.Cythonize", "--quiet", "--inplace", "tools/planted_faults.pyx"]
    for arguments in (setup, planted):
        subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, check=True)
    return folder


def start(
    command: list[str], folder: Path, sanitizer: Sanitizer, log: str = "", **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run Python sanitized; reports go to files whose names begin with `log`, if that is given."""
    environment = os.environ | sanitizer.environment | {
        "LD_PRELOAD": ":".join(sanitizer.libraries),
        # The scratch copy comes before an installed package.
        "PYTHONPATH": os.pathsep.join([str(folder), f"{folder}/tests", f"{folder}/tools"]),
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    for variable in ("ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS"):
        if log and variable in environment:
            environment[variable] += f":log_path={log}"
    words = [*sanitizer.prefix, sys.executable, *command]
    return subprocess.run(words, cwd=folder, env=environment, text=True, check=False, **options)


def prove(folder: Path, sanitizer: Sanitizer) -> None:
    """Stop unless every planted fault is found, and nothing where there is none."""
    for code, report in sanitizer.planted.items():
        command = ["-c", f"import numpy as np, planted_faults as p; {code}"]
        done = start(command, folder, sanitizer, capture_output=True, timeout=300)
        if done.returncode != (EXIT_STATUS if report else 0) or report not in done.stderr:
            print(done.stdout + done.stderr, file=sys.stderr)
            wanted = f"a report of {report!r}" if report else "no report"
            raise SystemExit(
                f"sanitize: {code!r}: wanted {wanted}, exit status {done.returncode}: "
                "this sanitizer cannot be trusted here"
            )
        print(f"  {'found' if report else 'passed'}: {code}", flush=True)


def run(name: str, pytest_arguments: list[str]) -> bool:
    """Build, prove and run; return whether nothing was found."""
    sanitizer = SANITIZERS[name]()
    started = time.monotonic()
    print(f"{name}: building in {SCRATCH / name}", flush=True)
    folder = build(name, sanitizer)
    print(f"{name}: built in {time.monotonic() - started:.0f} s; planted faults:", flush=True)
    prove(folder, sanitizer)
    if name == "thread" and not pytest_arguments:
        command = ["-c", "import test_threads; test_threads.many_callers('1')"]
    else:
        left_out = [f"--{'deselect' if '::' in n else 'ignore'}={n}" for n in NOT_SANITIZED]
        processes = ["--numprocesses", str(os.cpu_count())]
        chosen = pytest_arguments or [*processes, "-m", "not slow", *left_out, "tests"]
        # Only so much is captured that the last words of a dying process are seen.
        command = ["-m", "pytest", "-q", "--capture=sys", "-p", "no:cacheprovider", *chosen]
    started = time.monotonic()
    # The processes that tests start have their output captured: reports go to a file as well.
    with tempfile.TemporaryDirectory() as reports:
        done = start(command, folder, sanitizer, f"{reports}/report")
        found = sorted(Path(reports).iterdir())
        for path in found:
            print(path.read_text(errors="replace"), file=sys.stderr)
    seconds = f"{time.monotonic() - started:.0f} s"
    print(f"{name}: exit status {done.returncode}, {len(found)} reports, {seconds}", flush=True)
    return done.returncode == 0 and not found


def main() -> int:
    """Run the sanitizers asked for; return 1 if one of them found something."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="|".join(SANITIZERS))
    arguments = [*sys.argv[1:], "--"]
    at = arguments.index("--")
    names = parser.parse_args(arguments[:at]).names or list(SANITIZERS)
    if unknown := set(names) - set(SANITIZERS):
        parser.error(f"no sanitizer is called {sorted(unknown)}")
    results = [run(name, arguments[at + 1 : -1]) for name in names]
    return int(not all(results))


if __name__ == "__main__":
    raise SystemExit(main())
