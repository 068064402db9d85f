"""Check an installed softce_fast: the README's example, threads, fork, company of other packages.

``tools/wheels.py`` runs this file with each Python that it made a wheel for, away from the
checkout. It needs NumPy, and the packages that it is told to try it beside.
"""

from __future__ import annotations

import argparse
import doctest
import importlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SECONDS = 120  # a step that takes longer hangs


def check_example(readme: Path) -> str:
    """Run the first Python block of the README, and its numbers once more by hand."""
    block = re.search(r"^```(?:python|pycon)\n(.*?)^```", readme.read_text(), re.DOTALL | re.M)
    if block is None:
        raise AssertionError("README.md has no Python block")
    code = block[1]
    if ">>>" in code:
        flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
        test = doctest.DocTestParser().get_doctest(code, {}, "README.md", None, 0)
        runner = doctest.DocTestRunner(optionflags=flags)
        runner.run(test)
        if runner.summarize().failed:
            raise AssertionError("README.md: the first example prints something else")
    else:
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})

    import softce_fast

    row = [2.0, 1.0, 0.1]
    probabilities = softce_fast.softmax(row)
    loss = softce_fast.cross_entropy([row], [0])
    np.testing.assert_allclose(probabilities, [0.659, 0.242, 0.099], atol=5e-4)
    np.testing.assert_allclose(loss, 0.417, atol=5e-4)
    return f"softmax {np.round(probabilities, 3).tolist()}, cross-entropy {float(loss):.3f}"


def busy_threads() -> int:
    """Count the threads of this process that have used the CPU (Linux)."""
    busy = 0
    for path in Path("/proc/self/task").glob("*/stat"):
        fields = path.read_text().rpartition(")")[2].split()
        busy += int(fields[11]) + int(fields[12]) > 0  # user and system time, in ticks
    return busy


def openmp_runtimes() -> list[str]:
    """List the OpenMP runtimes that are loaded (Linux)."""
    maps = Path("/proc/self/maps").read_text()
    paths = set(re.findall(r"\S*/lib(?:g|i)?omp[^/\s]*\.so\S*", maps))
    return sorted("/".join(Path(path).parts[-2:]) for path in paths)


def check_threads(threads: int = 2) -> str:
    """Work for a second on some threads, then count those that worked."""
    import softce_fast

    logits = np.random.default_rng(0).normal(size=(4096, 1000)).astype(np.float32)
    out = np.empty_like(logits)
    before = busy_threads()
    with softce_fast.num_threads(threads):
        end = time.perf_counter() + 1
        while time.perf_counter() < end:
            softce_fast.softmax(logits, out=out)
    added = busy_threads() - before
    if added < threads - 1:
        raise AssertionError(f"{added} threads joined in, {threads - 1} should have")
    return f"{added + 1} threads worked, with {', '.join(openmp_runtimes())}"


def check_fork() -> str:
    """Fork after a parallel call: the child must work, give the same bits, and not hang."""
    import softce_fast

    logits = np.random.default_rng(1).normal(size=(2048, 1000))
    with softce_fast.num_threads(2):
        expected = softce_fast.softmax(logits)
        for _ in range(20):
            child = os.fork()
            if child == 0:
                signal.alarm(SECONDS // 2)  # ends a child that hangs
                same = np.array_equal(softce_fast.softmax(logits), expected)
                os._exit(0 if same else 1)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status:
                how = "hung" if status == -signal.SIGALRM else f"ended with {status}"
                raise AssertionError(f"a forked child {how}")
            assert np.array_equal(softce_fast.softmax(logits), expected)
    return "20 forked children gave the same bits"


def use(name: str) -> None:
    """Import a package and do something parallel with it."""
    logits = np.random.default_rng(2).normal(size=(4096, 500)).astype(np.float32)
    if name == "softce_fast":
        import softce_fast

        with softce_fast.num_threads(2):
            np.testing.assert_allclose(softce_fast.softmax(logits).sum(axis=1), 1, rtol=1e-5)
    elif name == "sklearn":
        from sklearn.ensemble import HistGradientBoostingClassifier

        model = HistGradientBoostingClassifier(max_iter=3)
        model.fit(logits[:500, :20], logits[:500, 0] > 0)
    elif name == "torch":
        import torch

        torch.softmax(torch.from_numpy(logits), -1).sum().item()
    else:
        raise ValueError(name)


def check_company(other: str) -> str:
    """Use softce_fast beside another package, in either order, in new processes."""
    for first, second in (("softce_fast", other), (other, "softce_fast")):
        command = [sys.executable, "-I", __file__, "--use", first, second]
        subprocess.run(command, check=True, timeout=2 * SECONDS)
    return f"{other}: works in either order, and with forks"


def main() -> None:
    """Run all checks, or with ``--use`` the part of one that has its own process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readme", type=Path, nargs="?")
    parser.add_argument("--beside", nargs="+", default=[], choices=["sklearn", "torch"])
    parser.add_argument("--use", nargs="+", help="import these packages, then use them")
    options = parser.parse_args()
    if options.use:
        # Imported before either is used: a runtime may be bound at the import or at the first call.
        for name in options.use:
            importlib.import_module(name)
        for name in 2 * options.use:
            use(name)
        if hasattr(os, "fork"):
            check_fork()
        return

    import softce_fast

    print(f"  {softce_fast.__version__} in {Path(softce_fast.__file__).parent.parent.name}")
    print(f"  {check_example(options.readme)}")
    if sys.platform == "linux":
        print(f"  {check_threads()}")
    if hasattr(os, "fork"):
        print(f"  {check_fork()}")
    for other in options.beside:
        print(f"  {check_company(other)}", flush=True)


if __name__ == "__main__":
    main()
