"""Run the tests that other projects wrote for what the adapters stand in for, and print a table.

Where a project has no such tests, its own results are the oracle of ours. Each suite runs in a
process of its own: what it patches stays there. ``make suites`` installs what they need; what
cannot be had is shown as such.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from tabulate import tabulate

TESTS = Path(__file__).resolve().parent.parent / "tests"


class Count(NamedTuple):
    """What came of a suite."""

    passed: int
    failed: list[str]
    skipped: int = 0


class _Outcomes:
    """A pytest plugin that keeps what came of each test."""

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        self.stats = terminalreporter.stats

    def count(self, *outcomes: str) -> list[str]:
        return [report.nodeid for name in outcomes for report in self.stats.get(name, ())]


def run_pytest(*modules: str, options: tuple[str, ...] = ()) -> Count:
    """Run test modules, by the names of an installed package or by their paths."""
    outcomes = _Outcomes()
    shared = ["-q", "--tb=short", "--no-header", "-p", "no:cacheprovider", "-c", os.devnull]
    status = pytest.main([*shared, *options, "--pyargs", *modules], plugins=[outcomes])
    failed, skipped = outcomes.count("failed", "error"), outcomes.count("skipped", "xfailed")
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not failed:
        failed.append(f"pytest ended with {status!r}")
    return Count(len(outcomes.count("passed", "xpassed")), failed, len(skipped))


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
        (test.name, partial(run, test))
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
                    case = partial(compare, name, dtype, sample)
                    yield f"{name}, {dtype}, sample {i}", case

    torch.manual_seed(0)
    return run_cases(cases())


class Suite(NamedTuple):
    """How it runs, the distributions it needs, of which the first one's version counts."""

    run: Callable[[], Count]
    needs: str
    about: str


def version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


XGBOOST = next(filter(version, ("xgboost", "xgboost-cpu")), "xgboost")
SAME_TREES = "trees equal to those of its own objective"
OF_BOOSTING = partial(run_pytest, str(TESTS / "test_boosting.py"))
SUITES = {
    "scipy": Suite(scipy, "scipy hypothesis", "special: logsumexp, softmax, log_softmax"),
    "sklearn": Suite(sklearn, "scikit-learn",
                     "losses, linear losses, logistic, calibration, gradient boosting"),
    "onnx": Suite(onnx, "onnx ml_dtypes", "node tests with the operators, expanded functions too"),
    "torch": Suite(torch, "torch ml_dtypes expecttest", "OpInfo samples of the losses, gradcheck"),
    "xgboost": Suite(partial(OF_BOOSTING, options=("-k", "xgboost")), f"{XGBOOST} pandas",
                     SAME_TREES),
    "lightgbm": Suite(partial(OF_BOOSTING, options=("-k", "lightgbm")), "lightgbm pandas",
                      SAME_TREES),
    "dask": Suite(partial(run_pytest, str(TESTS / "test_dask.py")), "dask distributed",
                  "assert_eq against whole arrays, clusters, peak memory"),
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="*", default=list(SUITES), help=", ".join(SUITES))
    failed: list[str] = []
    rows: list[list[Any]] = []
    for suite in (SUITES[name] for name in parser.parse_args().suites):
        project, *others = suite.needs.split()
        rows.append([project, version(project)])
        if missing := [name for name in (project, *others) if not version(name)]:
            rows[-1].append(f"not installed: {', '.join(missing)}")
            continue
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
            try:
                count = executor.submit(suite.run).result()
            except BrokenExecutor:
                count = Count(0, [f"{suite.needs}: the process ended"])
        rows[-1] += [suite.about, count.passed, len(count.failed), count.skipped]
        failed += count.failed
    headers = ["project", "version", "tests", "passed", "failed", "skipped"]
    print(tabulate(rows, headers, "pipe", disable_numparse=[1]))  # a version is no number
    print(*(f"failed: {case}" for case in failed), sep="\n")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
