"""Run the tests that other projects wrote for what the adapters stand in for, and print a table.

Each suite runs in a process of its own: what it patches stays there. ``make suites`` installs what
they need; a project that cannot be had is shown as such.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest


class Count(NamedTuple):
    """What came of a suite."""

    passed: int
    failed: list[str]
    skipped: int = 0


class Suite(NamedTuple):
    """A project's tests, and how to run them on an adapter."""

    distribution: str  # that they come with
    about: str
    run: Callable[[], Count]


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
    """Run the test modules of an installed package."""
    outcomes = _Outcomes()
    shared = ["-q", "--tb=short", "--no-header", "-p", "no:cacheprovider", "-c", os.devnull]
    status = pytest.main([*shared, *options, "--pyargs", *modules], plugins=[outcomes])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not outcomes.failed:
        outcomes.failed.append(f"pytest ended with {status!r}")
    return Count(outcomes.passed, outcomes.failed, outcomes.skipped)


def run_cases(cases: Iterator[tuple[str, Callable[[], None]]]) -> Count:
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
    from onnx.backend.test.loader import load_model_tests
    from onnx.reference import ReferenceEvaluator

    import softce_fast.onnx as adapter

    names = {operator.__name__ for operator in adapter.OPERATORS}

    def read(path: Path) -> Any:
        import onnx
        from onnx import numpy_helper

        return numpy_helper.to_array(onnx.load_tensor(str(path)))

    def case(model: Any, folder: Path) -> None:
        evaluator = ReferenceEvaluator(model, new_ops=adapter.OPERATORS)
        for data in sorted(folder.glob("test_data_set_*")):
            inputs = {
                value.name: read(data / f"input_{i}.pb") for i, value in enumerate(model.graph.input)
            }
            for i, result in enumerate(evaluator.run(None, inputs)):
                expected = read(data / f"output_{i}.pb")
                assert result.dtype == expected.dtype
                np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-7)

    def cases() -> Iterator[tuple[str, Callable[[], None]]]:
        import onnx

        for test in load_model_tests(kind="node"):
            folder = Path(test.model_dir)
            model = onnx.load(folder / "model.onnx")
            if names & {node.op_type for node in model.graph.node}:
                yield test.name, lambda model=model, folder=folder: case(model, folder)

    return run_cases(cases())
