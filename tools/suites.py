"""Run the tests that other projects wrote for what the adapters stand in for, and print a table.

Where a project has no such tests, its own results are the oracle of ours. Each suite runs in a
process of its own: what it patches stays there. ``make suites`` installs what they need; what
cannot be had is shown as such.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

TESTS = Path(__file__).resolve().parent.parent / "tests"


class Count(NamedTuple):
    """What came of a suite."""

    passed: int
    failed: list[str]
    skipped: int = 0


class _Outcomes:
    """A pytest plugin that counts."""

    def __init__(self) -> None:
        self.passed, self.skipped = 0, 0
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.skipped:
            self.skipped += 1
        elif report.when == "call":
            self.passed += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append(f"{report.nodeid}: {report.longrepr}")


def run_pytest(*modules: str, options: tuple[str, ...] = ()) -> Count:
    """Run test modules, by the names of an installed package or by their paths."""
    outcomes = _Outcomes()
    shared = ["-q", "--tb=short", "--no-header", "-p", "no:cacheprovider", "-c", os.devnull]
    status = pytest.main([*shared, *options, "--pyargs", *modules], plugins=[outcomes])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not outcomes.failed:
        outcomes.failed.append(f"pytest ended with {status!r}")
    return Count(outcomes.passed, outcomes.failed, outcomes.skipped)


def run_cases(cases: Iterable[tuple[str, Callable[[], object]]]) -> Count:
    """Run cases that are given one by one."""
    passed, failed = 0, []
    for name, case in cases:
        try:
            case()
            passed += 1
        except Exception:
            traceback.print_exc()
            failed.append(name)
    return Count(passed, failed)


def scipy() -> Count:
    import scipy.special
    from scipy._lib._array_api import xp_capabilities_table

    import softce_fast.scipy as adapter

    for name in adapter.__all__:
        ours = getattr(adapter, name)
        xp_capabilities_table[ours] = xp_capabilities_table[getattr(scipy.special, name)]
        setattr(scipy.special, name, ours)
    return run_pytest("scipy.special.tests.test_logsumexp")


def sklearn() -> Count:
    import softce_fast.sklearn as adapter

    os.environ["SKLEARN_RUN_FLOAT32_TESTS"] = "1"  # left out otherwise
    adapter.patch()
    return run_pytest(
        "sklearn._loss",
        "sklearn.linear_model.tests.test_linear_loss",
        "sklearn.linear_model.tests.test_logistic",
        "sklearn.tests.test_calibration",
        "sklearn.ensemble.tests.test_gradient_boosting",
        "sklearn.ensemble._hist_gradient_boosting.tests.test_gradient_boosting",
    )


def onnx() -> Count:
    import ml_dtypes
    from onnx.backend.test.loader import load_model_tests
    from onnx.reference import ReferenceEvaluator

    import softce_fast.onnx as adapter

    operators = {operator.__name__ for operator in adapter.OPERATORS}

    def run(test: Any) -> None:
        evaluator = ReferenceEvaluator(test.model, new_ops=adapter.OPERATORS)
        for inputs, outputs in test.data_sets:
            names = [value.name for value in test.model.graph.input]
            results = evaluator.run(None, dict(zip(names, inputs, strict=True)))
            for result, expected in zip(results, outputs, strict=True):
                assert result.dtype == expected.dtype
                # What is expected of half types was itself rounded to them after every step.
                rounding = 2 * ml_dtypes.finfo(expected.dtype).eps if expected.itemsize == 2 else 0
                np.testing.assert_allclose(
                    result, expected, rtol=max(test.rtol, float(rounding)), atol=test.atol
                )

    return run_cases(
        (test.name, functools.partial(run, test))
        for test in load_model_tests(kind="node")
        if operators & {node.op_type for node in test.model.graph.node}
    )


def torch() -> Count:
    import torch
    from torch.testing._internal.common_methods_invocations import op_db

    import softce_fast.torch as adapter

    def derivatives(function: Any, inputs: list[Any], *arguments: Any, **options: Any) -> list[Any]:
        loss = function(*inputs, *arguments, **options)
        ones = torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
        return [loss, *torch.autograd.grad(loss, inputs, ones)]

    def compare(name: str, dtype: torch.dtype, sample: Any) -> None:
        """Compare with PyTorch's own in float64; gradients by finite differences there too."""
        function, theirs = getattr(adapter, name), getattr(torch.nn.functional, name)
        # Gradients by class probabilities are PyTorch's business.
        tensors = [sample.input, *(item.detach() for item in sample.args)]
        split = 1 if name == "cross_entropy" else 2
        inputs = [tensor.detach().requires_grad_() for tensor in tensors[:split]]
        rest = tensors[split:]

        def double(value: Any) -> Any:
            floating = isinstance(value, torch.Tensor) and value.is_floating_point()
            return value.detach().double() if floating else value

        options = {key: double(value) for key, value in sample.kwargs.items()}
        exact = [double(tensor).requires_grad_() for tensor in inputs]
        expected = derivatives(theirs, exact, *map(double, rest), **options)
        result = derivatives(function, inputs, *rest, **sample.kwargs)
        eps = torch.finfo(dtype).eps
        for ours, truth in zip(result, expected, strict=True):
            assert ours.dtype == dtype
            torch.testing.assert_close(ours.double(), truth, rtol=16 * eps, atol=16 * eps)
        if dtype == torch.float64:
            torch.autograd.gradcheck(lambda *x: function(*x, *rest, **sample.kwargs), inputs)

    def cases() -> Iterable[tuple[str, Callable[[], object]]]:
        names = {f"nn.functional.{name}": name for name in adapter.__all__}
        for operator in op_db:
            if operator.name not in names or operator.variant_test_name:
                continue  # the variants are about `options` of PyTorch's own
            for dtype in adapter.DTYPES:
                samples = operator.sample_inputs("cpu", dtype, requires_grad=True)
                for i, sample in enumerate(samples):
                    name = names[operator.name]
                    case = functools.partial(compare, name, dtype, sample)
                    yield f"{name}, {dtype}, sample {i}", case

    torch.manual_seed(0)
    return run_cases(cases())


def xgboost() -> Count:
    return run_pytest(str(TESTS / "test_boosting.py"), options=("-k", "xgboost"))


def lightgbm() -> Count:
    return run_pytest(str(TESTS / "test_boosting.py"), options=("-k", "lightgbm"))


def dask() -> Count:
    return run_pytest(str(TESTS / "test_dask.py"))


class Suite(NamedTuple):
    """The distributions it needs, first the one whose version counts; what its tests are."""

    needs: tuple[str, ...]
    about: str

    def missing(self) -> list[str]:
        return [name for name in self.needs if not version(name)]


def version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


XGBOOST = next(filter(version, ("xgboost", "xgboost-cpu")), "xgboost")
SUITES = {
    scipy: Suite(("scipy", "hypothesis"), "special: logsumexp, softmax, log_softmax"),
    sklearn: Suite(
        ("scikit-learn",), "losses, linear losses, logistic, calibration, gradient boosting"
    ),
    onnx: Suite(("onnx", "ml_dtypes"), "node tests with the operators, expanded functions too"),
    torch: Suite(("torch", "ml_dtypes", "expecttest"), "OpInfo samples of the losses, gradcheck"),
    xgboost: Suite((XGBOOST, "pandas"), "trees equal to those of its own objective"),
    lightgbm: Suite(("lightgbm", "pandas"), "trees equal to those of its own objective"),
    dask: Suite(("dask", "distributed"), "assert_eq against whole arrays, clusters, peak memory"),
}
NAMES = {suite.__name__: suite for suite in SUITES}


def in_new_process(name: str) -> Count:
    """Run a suite in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "count.json"
        status = subprocess.run([sys.executable, __file__, name, "--json", path], check=False)
        if not path.exists():
            return Count(0, [f"the process ended with {status.returncode}"])
        return Count(**json.loads(path.read_text()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="*", default=list(NAMES), help=", ".join(NAMES))
    parser.add_argument("--json", type=Path, help="run one suite, in this process")
    arguments = parser.parse_args()
    if arguments.json:
        count = NAMES[arguments.suites[0]]()
        arguments.json.write_text(json.dumps(count._asdict()))
        return 0
    suites = {name: SUITES[NAMES[name]] for name in arguments.suites}
    counts = {name: in_new_process(name) for name, suite in suites.items() if not suite.missing()}
    print("| project | version | tests | passed | failed | skipped |")
    print("| --- | --- | --- | ---: | ---: | ---: |")
    failed: list[str] = []
    for name, suite in suites.items():
        project = suite.needs[0]
        if name not in counts:
            missing = ", ".join(suite.missing())
            print(f"| {project} | {version(project)} | not installed: {missing} | | | |")
            continue
        passed, failures, skipped = counts[name]
        numbers = f"{passed} | {len(failures)} | {skipped}"
        print(f"| {project} | {version(project)} | {suite.about} | {numbers} |")
        failed += failures
    for case in failed:
        print(f"failed: {case}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
