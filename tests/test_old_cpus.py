"""Each build by name; and what an older CPU chooses: emulated, it meets no unknown instruction."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import softce_fast as sf
from softce_fast import _dispatch
from softce_fast import _kernels as kernels
from softce_fast._kernels import probe
from subprocesses import run_function, run_python

VARIABLE = _dispatch.ENVIRONMENT_VARIABLE
NO_WISH = {VARIABLE: ""}  # whatever build the tests themselves run with
EMULATOR = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")

# The CPU model of QEMU, and the build that it shall get.
CPUS = {"Nehalem": "baseline", "SandyBridge": "baseline", "Haswell": "avx2"}


def results_as_json() -> None:
    """Print the build in use and the results of a call of every kernel."""
    results = {}
    names = ["float16", "float32", "float64"]
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        types = [np.dtype(name) for name in names]
    else:
        types = [np.dtype(name) for name in (*names, bfloat16)]
    random = np.random.default_rng(0)
    for shape, axis in (((40, 10), 1), ((3, 700), 1), ((4, 30, 20), 1), ((1, 70_000), 1)):
        x = random.normal(scale=4, size=shape)
        labels = np.argmin(x, axis)
        # None is subnormal in float16: QEMU takes those for 0 where a CPU does not.
        given = random.uniform(0.01, 1, size=shape)
        for dtype in types:
            values, probabilities = x.astype(dtype), given.astype(dtype)
            loss, gradient = sf.cross_entropy_with_grad(values, labels, axis)
            binary_loss, binary_gradient = sf.binary_cross_entropy_with_logits_with_grad(
                values, probabilities
            )
            for name, result in {
                "softmax": sf.softmax(values, axis),
                "log_softmax": sf.log_softmax(values, axis),
                "logsumexp": sf.logsumexp(values, axis),
                "loss": loss,
                "gradient": gradient,
                "softmax_backward": sf.softmax_backward(values, probabilities, axis),
                "log_softmax_backward": sf.log_softmax_backward(probabilities, values, axis),
                "nll_loss": sf.nll_loss(values, labels, axis),
                "cross_entropy_from_probs": sf.cross_entropy_from_probs(
                    probabilities, probabilities, axis
                ),
                "binary_cross_entropy": sf.binary_cross_entropy(probabilities, probabilities),
                "binary_loss": binary_loss,
                "binary_gradient": binary_gradient,
            }.items():
                numbers = np.asarray(result).astype(np.float64)
                # Numbers that are not normal may be 0; of float16 there are many here.
                numbers[np.abs(numbers) < 6.2e-5] = 0
                # A few of them, and a sum that all of them go into.
                results[f"{name} {dtype} {shape}"] = [
                    *numbers.ravel()[:50].tolist(),
                    float(np.abs(numbers).sum()),
                ]
    print(json.dumps({"isa": _dispatch.isa, "results": results}))


def assert_close(results: dict[str, list[float]], expected: dict[str, list[float]]) -> None:
    assert results.keys() == expected.keys()
    for name, numbers in results.items():
        # Builds with and without fused multiply-adds may round the last place differently.
        tolerance = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 3e-6, "float64": 1e-13}
        np.testing.assert_allclose(
            numbers, expected[name], rtol=tolerance[name.split()[1]], atol=6.3e-5, err_msg=name
        )


@pytest.fixture(scope="module")
def expected() -> dict[str, list[float]]:
    results = json.loads(run_function(results_as_json, environment=NO_WISH).stdout)
    assert results["isa"] == _dispatch.available()[0], "without a wish the best build is taken"
    return dict(results["results"])


@pytest.mark.parametrize("name", probe.variants())
def test_build_asked_for_by_name(name, expected):
    if name not in _dispatch.available():
        pytest.skip(f"this CPU cannot run the {name} build")
    results = json.loads(run_function(results_as_json, environment={VARIABLE: name}).stdout)
    assert results["isa"] == name
    assert_close(results["results"], expected)


@pytest.mark.parametrize("name", ["sse9", "AVX2", "avx512 ", "auto"])
def test_unknown_build_is_an_import_error(name):
    result = run_python("import softce_fast", environment={VARIABLE: name}, check=False)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: {VARIABLE}={name}")
    assert "baseline" in last, "it says what could be asked for"


def test_no_wish_is_the_same_as_an_empty_one():
    code = (
        f"import os; os.environ.pop({VARIABLE!r}); import softce_fast._dispatch as d; print(d.isa)"
    )
    assert run_python(code, environment=NO_WISH).stdout.split() == [_dispatch.available()[0]]


def vector_registers(path: Path) -> set[str]:
    """Return the kinds of vector registers that the code of a module names: xmm, ymm, zmm."""
    command = ["objdump", "--disassemble", "--no-show-raw-insn", str(path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {kind for kind in ("xmm", "ymm", "zmm") if f"%{kind}" in output}


@pytest.mark.skipif(
    shutil.which("objdump") is None or platform.machine() != "x86_64" or sys.platform != "linux",
    reason="needs objdump (Debian and Ubuntu: binutils), and code for x86-64",
)
@pytest.mark.parametrize("real", ["float32", "float64"])
def test_each_build_has_the_instructions_of_its_name(real):
    folder = Path(kernels.__file__).parent
    registers = {}
    for name in probe.variants():
        (path,) = folder.glob(f"{name}_{real}.*.so")
        registers[name] = vector_registers(path)
    assert "zmm" in registers.pop("avx512")
    assert registers == {"avx2": {"xmm", "ymm"}, "baseline": {"xmm"}}


needs_emulator = pytest.mark.skipif(
    EMULATOR is None or platform.machine() not in ("x86_64", "AMD64") or sys.platform != "linux",
    reason="qemu-x86_64 is missing (Debian and Ubuntu: qemu-user)",
)


def emulated(cpu: str) -> tuple[str, ...]:
    return (str(EMULATOR), "-cpu", cpu)


@pytest.fixture(scope="module")
def emulator_runs() -> None:
    """Skip where the emulator cannot run NumPy itself."""
    result = run_python("import numpy", prefix=emulated("Haswell"), timeout=100, check=False)
    if result.returncode:
        pytest.skip(f"the emulator cannot run NumPy here: {result.stderr[-300:]}")


@needs_emulator
@pytest.mark.usefixtures("emulator_runs")
@pytest.mark.parametrize("cpu", CPUS)
def test_emulated_cpu_gets_its_build(cpu, expected):
    probing = run_python("import numpy", prefix=emulated(cpu), timeout=100, check=False)
    if probing.returncode:
        pytest.skip(f"NumPy itself does not run on {cpu}: {probing.stderr.strip()[-200:]}")
    output = run_function(
        results_as_json,
        prefix=emulated(cpu),
        timeout=200,
        environment={"OMP_NUM_THREADS": "2", **NO_WISH},
    ).stdout
    results = json.loads(output)
    assert results["isa"] == CPUS[cpu]
    assert_close(results["results"], expected)


@needs_emulator
@pytest.mark.usefixtures("emulator_runs")
def test_emulated_cpu_refuses_a_build_that_it_cannot_run():
    result = run_python(
        "import softce_fast",
        prefix=emulated("Haswell"),
        timeout=100,
        environment={VARIABLE: "avx512"},
        check=False,
    )
    assert result.returncode == 1
    assert f"ImportError: {VARIABLE}=avx512: this CPU cannot run it" in result.stderr
