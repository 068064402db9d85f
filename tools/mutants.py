"""Plant small mistakes, one at a time, in a copy of the project: the tests must notice each.

    python tools/mutants.py [--list] [NAME ...]

PLANTED is the table: by file, what stands there, what is put in its place, and the tests that are
to fail then. A mistake in the sources of compiled modules has the copy built again, for this CPU
alone. A name, or a part of one, chooses mistakes; a file's path chooses those in it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from typing import NamedTuple

from sanitize import ROOT, copy_project

sys.path.insert(0, str(ROOT / "tests"))

from subprocesses import run_python

SCRATCH = ROOT / "build" / "mutants"
COMPILED = (".pyx", ".pxi", ".pxd", ".h")
SECONDS = 300  # a mistake that makes the tests hang is noticed, too


class Mutant(NamedTuple):
    """A small mistake."""

    path: str
    name: str
    old: str  # stands in its file exactly once
    new: str
    tests: str  # modules without test_ and .py, and pytest's options


PACKAGE, KERNELS = "softce_fast", "softce_fast/_kernels"

PLANTED = {
    f"{PACKAGE}/_threads.py": (
        ("the number of the body that was opened last is taken away",
         "tuple(other for other in _asked.get() if other is not own)", "_asked.get()[:-1]",
         "threads -k generators"),
        ("num_threads leaves its number", "if other is not own)", "if other)", "threads -k nests"),
        ("num_threads comes after set_num_threads", "    if asked:\n",
         "    if asked and not _requested:\n", "threads -k asked_for"),
        ("a number asked for looks as if nobody had", "return asked[-1][0]", "return -asked[-1][0]",
         "threads -k anybody_asked"),
        ("a forked child keeps its parent's quota", "    global _quota\n    _quota = None\n",
         "    global _quota\n", "threads -k own_quota"),
        ("quotas of the groups above are not read", "for folder in (group, *group.parents):",
         "for folder in (group,):", "threads -k group_quota"),
        ("the probe's OpenMP is not paused before a fork", "    probe.pause()\n", "",
         "limits -k child"),
        ("a kernel module's OpenMP is not paused before a fork", "    execute.pause()\n", "",
         "fork -k every_module"),
        ("LLVM's OpenMP is told not to renew itself", 'os.environ["KMP_INIT_AT_FORK"] = renewal',
         "pass", "fork -k renewing"),
        ("a stack size without a unit is in bytes", '("OMP_STACKSIZE", "k")',
         '("OMP_STACKSIZE", "b")', "limits -k stack_size"),
    ),
    f"{PACKAGE}/_dispatch.py": (
        ("the worst build first", "return usable[0]", "return usable[-1]",
         "dispatch -k best_of_all"),
        ("an unsupported build is taken all the same", "if request in usable:",
         "if request in probe.variants():", "dispatch -k cannot_run"),
    ),
    f"{PACKAGE}/_fresh_outputs.py": (
        ("any number of blocks is kept", "deque(maxlen=MOST_BLOCKS)", "deque()", "fresh_outputs"),
        ("one block more is kept", "deque(maxlen=MOST_BLOCKS)", "deque(maxlen=MOST_BLOCKS + 1)",
         "fresh_outputs"),
        ("a larger block serves a smaller result", "if len(block) == size:",
         "if len(block) >= size:", "fresh_outputs"),
        ("a refused MADV_FREE is an error in a destructor",
         "except OSError:\n            self.advice", "except KeyError:\n            self.advice",
         "fresh_outputs"),
        ("blocks go to a forked child", "after_in_child=_store.blocks.clear",
         "after_in_child=_store.blocks.copy", "fresh_outputs -k forked"),
    ),
    f"{PACKAGE}/_checks.py": (
        ("smoothing is subnormal", "value if value >= sys.float_info.min else 0.0", "value",
         "cases -k take_for_none"),
        ("an axis may be named twice", "if len(set(axes)) != len(axes):", "if False:",
         "checks softmax"),
        ("any number of threads", "return min(value, MOST_THREADS)", "return value",
         "threads -k too_many"),
        ("a subclass's word is taken for its shape",
         "    out = np.asarray(out)  # what is there, whatever a subclass says\n", "", "arrays"),
    ),
    f"{PACKAGE}/_arrays.py": (
        ("a subclass's own views are written to",
         "return array if type(array) is np.ndarray else np.asarray(array)", "return array",
         "arrays"),
        ("arrays whose overlap is hard to tell have none",
         "    except np.exceptions.TooHardError:\n        return True\n",
         "    except np.exceptions.TooHardError:\n        return False\n",
         "softmax losses -k overlap"),
    ),
    f"{PACKAGE}/_softmax.py": (
        ("empty= is left behind on the way to plain NumPy",
         "temperature=call.temperature, empty=empty,", "temperature=call.temperature,",
         "edges -k plain_numpy"),
        ("a gradient may be written over the output that it is made of",
         "call.dtype, call.gradient, call.output)", "call.dtype, call.gradient)",
         "softmax -k over_the_input"),
    ),
    f"{PACKAGE}/_binary.py": (
        ("a gradient may be written over the weights",
         "inputs = call.values, call.target, call.weight, call.pos_weight",
         "inputs = call.values, call.target", "binary -k another_input"),
    ),
    "setup.py": (
        ("a build that does not ask for F16C", '("avx2", "fma", "f16c")),\n)',
         '("avx2", "fma")),\n)', "packaging -k builds_need"),
        ("a build that may use what it does not ask for", '("-mavx2", "-mfma", "-mf16c"),',
         '("-mavx2", "-mfma", "-mf16c", "-mbmi2"),', "packaging -k builds_need"),
        ("AVX2 before AVX-512", "return (*X86_VARIANTS, BASELINE)",
         "return (*X86_VARIANTS[::-1], BASELINE)", "packaging -k builds_need"),
        ("multiply-adds fused where the compiler likes", '*("-O3", "-ffp-contract=off",',
         '*("-O3",', "packaging -k meaning"),
    ),
    f"{KERNELS}/cpu.h": (
        ("features of another register", "seventh = cpu_leaf(7).b", "seventh = cpu_leaf(7).c",
         "packaging -k features"),
    ),
    f"{KERNELS}/probe.h": (
        ("one CPU where OpenMP has bound the thread",
         "return spread > 0 ? spread : CPU_COUNT(&cpus);", "return CPU_COUNT(&cpus);",
         "threads -k bound"),
        ("all places, whoever has bound the thread",
         "if (k == own && !CPU_EQUAL(&place, allowed)) return 0;", "", "threads -k bound"),
    ),
    f"{KERNELS}/team.h": (
        ("threads are not proven", "    if (kept == 0) kept = 1;\n", "    return wanted;\n",
         "limits"),
        ("others that start threads are not waited for",
         "    pthread_mutex_lock(&starting);\n    runtime_add", "    runtime_add",
         "limits -k run_out"),
        ("a child waits for a thread that is not in it",
         "(void)pthread_atfork(starting_lock, starting_unlock, starting_unlock);", "(void)0;",
         "limits -k while_threads_start"),
        ("stacks of any size", "    if (stack_size > 0 && stack_size < SMALLEST_STACK) return 1;\n",
         "", "stacks -k small"),
    ),
    f"{KERNELS}/probe.pyx": (
        ("a child trusts in its parent's proof", "        teams_forget()\n", "", "limits -k child"),
    ),
    f"{KERNELS}/share.pxi": (
        ("the last task of each share is left out", "shares[k].stop = tasks * (k + 1) // count",
         "shares[k].stop = tasks * (k + 1) // count - 1", "threads -k many_python_threads_at_once"),
        ("a task too many", "while task < share.stop:", "while task <= share.stop:",
         "memory -k 'long_rows_at_a_guard_page and float32'"),
        ("a large call waits for the same threads again", "                calls_pause(",
         "                if team < 0: calls_pause(", "threads -k large_calls_do_without"),
        ("threads asked for are waited for as others", "if n_threads > 0 or count == 1:",
         "if count == 1:", "threads -k used_at_once"),
    ),
    f"{KERNELS}/layout.pxi": (
        ("axes are joined that do not follow each other in every array",
         "        if call.strides[k][outer] != ",
         "        if k == 0 and call.strides[k][outer] != ", "plan -k axes"),
    ),
    f"{KERNELS}/plan.pxi": (
        ("what counts as large is larger", "LARGE_BYTES = 16777216", "LARGE_BYTES = 33554432",
         "bits -k by_themselves"),
    ),
    f"{KERNELS}/numbers.pxd": (
        ("nothing times NaN is NaN",
         "vector_equal(coefficient, zero), zero, vector_multiply(coefficient, x))",
         "vector_equal(coefficient, zero), vector_multiply(coefficient, x),"
         " vector_multiply(coefficient, x))", "edges -k zero_times_log_zero"),
    ),
    f"{KERNELS}/passes/along.pxi": (
        ("the label stays in the sum where it is the last class of a chunk",
         "label < chunk_length(problem, chunk) else -1",
         "label < chunk_length(problem, chunk) - 1 else -1", "edges -k ends_of_chunks"),
        ("of two classes of their own the second is not looked for",
         "return min(n, second) if second >= i else n", "return n", "plan -k left_out"),
        ("whole runs are taken one class too far",
         "stop = 1 - RUN * LANES + next_place(\n            i, n, stretch.pivot",
         "stop = 2 - RUN * LANES + next_place(\n            i, n, stretch.pivot",
         "plan -k left_out"),
    ),
    f"{KERNELS}/passes/across.pxi": (
        ("the last row of a group that is not full is not written",
         "            batch_rows(groups, tiles) * n)",
         "            (batch_rows(groups, tiles) - (groups[tiles - 1].rows < LANES)) * n)",
         "bits -k 'outputs and not large'"),
        ("the label's logit is taken from the last of several chunks",
         "if leaves_out_label(problem.operation) and problem.plan.chunks == 1:",
         "if leaves_out_label(problem.operation):", "edges -k confident_row"),
        ("a run ends a row late", "length = min(length, problem.layout.inner - ",
         "length = min(length, problem.layout.inner + 1 - ", "bits -k axes"),
        ("blocks of rows are evenly spaced, whatever the axes",
         "count = (rows - done) // inner if problem.layout.row_axes == 2 else 1",
         "count = (rows - done) // inner", "plan -k picked"),
        ("a smoothed label has no coefficient of its own",
         "vector_equal(tile.label, number), tile.at_label, coefficient)",
         "vector_equal(tile.label, number), coefficient, coefficient)", "digits -k test_losses"),
    ),
    f"{KERNELS}/element.h": (
        ("the last element of a row is not picked", "(last - 1) * step + 1 - LANES_OF",
         "(last - 1) * step - LANES_OF", "plan -k picked"),
        ("more is written than a block has", "FIRST_LANES(bits, last * step - LANES_OF",
         "FIRST_LANES(bits, last * step + 1 - LANES_OF", "plan -k picked"),
    ),
    f"{KERNELS}/passes/state.pxi": (
        ("coefficients are summed where a mask excludes nothing",
         "<unsigned int>(allowed == problem.layout.classes) << k", "<unsigned int>False << k",
         "bits -k excludes_nothing"),
        ("rows are evenly spaced past the end of an axis",
         "if rows == LANES and within + rows <= layout.inner else 0", "if rows == LANES else 0",
         "bits -k four_dimensions"),
    ),
    f"{KERNELS}/passes/writer.pxi": (
        ("the last line in which rows meet is not written", "    joints_write(joints, 0)\n",
         "    joints_write(joints, 1)\n", "bits -k large_outputs"),
        ("stores past the caches are not finished", "        stores_finish()\n", "        pass\n",
         "machine_code -k finished"),
    ),
    f"{PACKAGE}/_losses.py": (
        ("subnormal weights are left to the kernels, which take them for 0",
         "least_sample, most_sample))) < _MODERATE", "least_sample, most_sample))) < 5000",
         "cases -k subnormal_weights_beside"),
        ("a sum is out of range where the weights' products are not",
         "while not self.moderate and", "while False and", "cases -k test_sizes"),
    ),
    f"{KERNELS}/operations/cross_entropy.pxi": (
        ("a logsumexp is rounded before it is squared",
         "Sum(numbers.logsumexp[k], numbers.lost[k])", "Sum(numbers.logsumexp[k], 0)",
         "cases -k z_loss_squares"),
        ("weights that lie far apart are multiplied as any others",
         "power != 0 or not parts_are_moderate(weight, share, numbers.log_share, rest)",
         "power != 0", "cases -k test_sizes"),
        ("sums of class probabilities are taken for 1",
         "factors.whole = double_double_product(sums, factors.whole)", "sums = sums",
         "losses digits"),
        ("what weights bring back is some powers of two too small",
         "most = EXPONENT_BIAS - HEADROOM", "most = EXPONENT_BIAS - HEADROOM - 8",
         "cases -k test_sizes"),
        ("a label that is the maximum counts among the others",
         "apart[k] = group.labels[k] != group.recipe.top[k]", "apart[k] = 1",
         "digits -k test_losses"),
        ("rows that are taken together have factors of another size",
         "power += exponent_of(number)\n        shift = headroom * two_to(-exponent_of(number))",
         "shift = headroom", "bits -k weights_of_any_size_beside"),
    ),
    f"{KERNELS}/fast.pxi": (
        ("the short way leaves sample weights out",
         "    if sample_weight is not None:\n        call_array",
         "    if False:\n        call_array",
         "bits -k weights_of_any"),
        ("the short way leaves label smoothing out",
         "call.problem.options.label_smoothing = label_smoothing",
         "call.problem.options.label_smoothing = 0", "bits -k numbers_of_any"),
    ),
    f"{KERNELS}/operations/scores.pxi": (
        ("the label is left out of the sum without the maximum",
         "tile_put(terms, n, label, exponential(",
         "tile_put(terms, n, vector_set(-1.0), exponential(", "scores -k test_digits"),
        ("an equal logit before the label is never above it",
         "vector_greater(split, number), own, above", "vector_greater(split, number), above, above",
         "scores"),
    ),
    f"{KERNELS}/operations/shards.pxi": (
        ("the label stays in the sums of its shard",
         "stretch.label = label_place(group, problem, chunk, k)", "stretch.label = -1",
         "sharded -k test_digits"),
        ("the maximum is left out of all sums of a tile's state",
         "tile_put(terms, n, state.position, exponential(",
         "tile_put(terms, n, vector_set(-1.0), exponential(", "sharded -k across"),
    ),
    f"{KERNELS}/share.h": (
        ("a counter that two threads may read at once",
         "return __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);",
         "return (*(volatile ptrdiff_t *)counter)++;", "threads -k many_python_threads_at_once"),
    ),
}  # fmt: skip
MUTANTS = tuple(Mutant(path, *planted) for path in PLANTED for planted in PLANTED[path])


def builds() -> bool:
    """Build the modules in place, for this CPU alone; tell whether that worked."""
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    environment = os.environ | {"SOFTCE_FAST_BUILD": "native"}
    done = subprocess.run(command, cwd=SCRATCH, env=environment, capture_output=True, check=False)
    return done.returncode == 0


def passes(tests: str) -> bool:
    """Run tests in the copy; tell whether they pass, in time."""
    code = "import os, sys, pytest; os.chdir(sys.argv[1]); sys.exit(pytest.main(sys.argv[2:]))"
    options = ["-q", "-x", "-p", "no:cacheprovider", "-o", "xfail_strict=false"]
    modules, dash, chosen = tests.partition(" -")
    files = [f"tests/test_{module}.py" for module in modules.split()]
    path = os.pathsep.join([str(SCRATCH), str(SCRATCH / "tests")])
    done = run_python(
        code, str(SCRATCH), *options, *files, *shlex.split(dash + chosen), timeout=SECONDS,
        environment={"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}, check=False,
    )  # fmt: skip
    if done.returncode > 1:  # below 0: a crash or a hang, which are ways to notice
        raise SystemExit(f"mutants: {tests!r} chooses no tests that run:\n{done.stdout}")
    return done.returncode == 0


def is_noticed(mutant: Mutant) -> bool:
    """Plant a mistake, run its tests, take it out; tell whether it was noticed."""
    path = SCRATCH / mutant.path
    original = path.read_text()
    count = original.count(mutant.old)
    if count != 1:
        raise SystemExit(f"mutants: {mutant.name!r}: {mutant.path} has it {count} times, not once")
    path.write_text(original.replace(mutant.old, mutant.new))
    try:
        return (needs_build(mutant) and not builds()) or not passes(mutant.tests)
    finally:
        path.write_text(original)
        for module in (ROOT / KERNELS).glob("*.so"):
            shutil.copy2(module, SCRATCH / KERNELS)


def needs_build(mutant: Mutant) -> bool:
    """Tell whether a mistake is in compiled modules. A test compiles cpu.h itself."""
    return mutant.path.endswith(COMPILED) and not mutant.path.endswith("/cpu.h")


def main() -> int:
    """Plant what is asked for; return 1 if something went unnoticed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="part of a name, or a path")
    parser.add_argument("--list", action="store_true", help="what there is to plant")
    arguments = parser.parse_args()
    names = arguments.names or [""]
    mutants = [m for m in MUTANTS if any(name in m.name or name == m.path for name in names)]
    if arguments.list or not mutants:
        for mutant in mutants:
            print(f"{mutant.path}: {mutant.name}")
        return not mutants
    shutil.rmtree(SCRATCH, ignore_errors=True)
    SCRATCH.mkdir(parents=True)
    copy_project(SCRATCH)  # with the modules that were built in place
    sound: set[str] = set()
    unnoticed = 0
    for mutant in sorted(mutants, key=needs_build):  # those in compiled sources last
        started = time.monotonic()
        if mutant.tests not in sound and not passes(mutant.tests):
            raise SystemExit(f"mutants: {mutant.tests!r} fails where nothing is planted")
        sound.add(mutant.tests)
        noticed = is_noticed(mutant)
        unnoticed += not noticed
        what = f"{'noticed' if noticed else 'UNNOTICED'}, {time.monotonic() - started:.0f} s"
        print(f"{what}: {mutant.path}: {mutant.name}", flush=True)
    print(f"{len(mutants)} planted, {unnoticed} unnoticed")
    return bool(unnoticed)


if __name__ == "__main__":
    raise SystemExit(main())
