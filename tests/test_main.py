"""The command line: ``python -m softce_fast``."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import softce_fast as sf
from subprocesses import run_python


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import runpy, sys; sys.argv[0] = 'softce_fast'\n"
        "runpy.run_module('softce_fast', run_name='__main__', alter_sys=True)"
    )
    return run_python(code, *arguments, check=False)


@pytest.mark.parametrize("arguments", [(), ("config",)])
def test_command_prints_the_configuration(arguments: tuple[str, ...]) -> None:
    result = run_command(*arguments)
    assert result.returncode == 0, result.stderr
    assert sf.__version__ in result.stdout
    assert "compiler" in result.stdout


def test_python_m() -> None:
    """As a user calls it."""
    package_parent = os.path.dirname(os.path.dirname(sf.__file__))
    environment = {**os.environ, "PYTHONPATH": package_parent}
    result = subprocess.run(
        [sys.executable, "-m", "softce_fast"], capture_output=True, text=True, check=True,
        env=environment, timeout=60,
    )  # fmt: skip
    assert result.stdout.splitlines()[0].split() == ["version", sf.__version__]


def test_unknown_command() -> None:
    result = run_command("nonsense")
    assert result.returncode == 2
    assert "bench" in result.stderr
