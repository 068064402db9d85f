"""The command line: ``python -m softce_fast``."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

import softce_fast as sf
from softce_fast import __main__ as command
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


def test_bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On small shapes, so that it takes no time."""
    shapes = ((1, 10), (32, 100))
    monkeypatch.setattr(command, "SHAPES", shapes)
    median = command._median_time
    monkeypatch.setattr(command, "_median_time", lambda function: median(function, 0.002))
    monkeypatch.setattr(sys, "argv", ["softce_fast", "bench"])
    command.main()
    head, *lines = capsys.readouterr().out.strip().splitlines()
    assert head.split() == ["operation", "shape", "reference", "softce_fast", "ratio"]
    operations = ("softmax", "cross_entropy", "cross_entropy_with_grad")
    found = [(line.split()[0], line.split()[1]) for line in lines]
    assert sorted(found) == sorted((name, f"{a}x{b}") for a, b in shapes for name in operations)
    for line in lines:
        match = re.fullmatch(r"\S+ +\S+ +([\d.]+) us +([\d.]+) us +([\d.]+)", line)
        assert match, line
        assert float(match[1]) / float(match[2]) == pytest.approx(float(match[3]), rel=0.2, abs=0.1)


def test_bench_needs_nothing_but_numpy() -> None:
    code = (
        "import sys\n"
        "class Only:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        root = name.partition('.')[0]\n"
        "        if root in {'scipy', 'torch', 'matplotlib', 'tqdm', 'sklearn', 'ml_dtypes'}:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Only())\n"
        "from softce_fast import __main__ as command\n"
        "command.SHAPES = ((2, 3),)\n"
        "command.bench()\n"
    )
    assert "cross_entropy" in run_python(code).stdout
