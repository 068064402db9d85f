"""show_config, the choice of a build, and ``python -m softce_fast``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import softce_fast as sf
from softce_fast import __main__ as command
from softce_fast import _bench, _config, _dispatch
from softce_fast._kernels import probe
from subprocesses import run_python

VARIABLE = "SOFTCE_FAST_ISA"
SHOW_ISA = "import softce_fast as sf; print(sf.show_config('dicts')['isa']['in use'])"


# show_config


def test_dictionary() -> None:
    config = sf.show_config(mode="dicts")
    assert config is not None
    assert config["version"] == sf.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", sf.__version__)
    assert config["isa"]["in use"] in config["isa"]["available"]
    assert set(config["isa"]["available"]) <= set(config["isa"]["built"])
    assert "baseline" in config["isa"]["available"]
    assert config["threads"] == sf.get_num_threads()
    assert config["openmp"]["enabled"] == bool(config["openmp"]["version"])
    assert config["numpy"] == np.__version__
    assert config["compiler"]


def test_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert sf.show_config() is None
    printed = capsys.readouterr().out
    for word in (sf.__version__, _dispatch.isa, "openmp", "threads", "compiler", np.__version__):
        assert word in printed


def test_threads_shown_are_those_in_use() -> None:
    with sf.num_threads(3):
        config = sf.show_config("dicts")
        assert config is not None
        assert config["threads"] == sf.get_num_threads()


# A build that lacks something


def test_a_build_without_openmp_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _config.warn_if_serial()
    serial = SimpleNamespace(openmp=lambda: 0, variants=tuple, compiler=lambda: "cc")
    monkeypatch.setattr(_config, "probe", serial)
    with pytest.warns(RuntimeWarning, match="built without OpenMP and computes on one thread"):
        _config.warn_if_serial()
    config = sf.show_config("dicts")
    assert config is not None
    assert config["openmp"] == {"enabled": False, "version": 0}


def test_import_where_nothing_is_built_says_what_to_do(tmp_path: Path) -> None:
    source, copy = Path(sf.__file__).parent, tmp_path / "softce_fast"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
    result = run_python(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import softce_fast",
                        check=False)  # fmt: skip
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: softce_fast is not built here")
    assert "`pip install .`" in last


def test_import_out_of_an_archive_says_what_to_do(tmp_path: Path) -> None:
    """With its compiled modules or without them: Python loads none from there."""
    package = Path(sf.__file__).parent
    archive = tmp_path / "packages.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in package.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                file.write(path, path.relative_to(package.parent))
    code = f"import sys; sys.path.insert(0, {str(archive)!r}); import softce_fast"
    result = run_python(code, check=False)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: softce_fast cannot be imported out of an archive (")
    assert str(archive) in last
    assert "unpack it" in last


# The choice of a build


def show_isa(value: str | None, check: bool = True) -> subprocess.CompletedProcess[str]:
    if value is None:
        return run_python(f"import os; os.environ.pop('{VARIABLE}', None); {SHOW_ISA}")
    return run_python(SHOW_ISA, environment={VARIABLE: value}, check=check)


@pytest.mark.parametrize("name", ["avx512", "avx2", "baseline"])
def test_override(name: str) -> None:
    if name in _dispatch.available():
        assert show_isa(name).stdout.strip() == name
        return
    result = show_isa(name, check=False)
    assert result.returncode != 0
    assert f"ImportError: {VARIABLE}={name}: " in result.stderr
    assert ("this CPU cannot run it" in result.stderr) == (name in probe.variants())


@pytest.mark.parametrize("value", ["sse9", "AVX2", "avx2,baseline", " "])
def test_unknown_override_raises(value: str) -> None:
    result = show_isa(value, check=False)
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    usable = ", ".join(_dispatch.available())
    assert last == (
        f"ImportError: {VARIABLE}={value}: this package has no such build; "
        f"it takes one of {usable}, or unset"
    )


@pytest.mark.parametrize("value", [None, ""])
def test_the_best_build_without_override(value: str | None) -> None:
    assert show_isa(value).stdout.strip() == _dispatch.available()[0]


def test_overridden_build_computes() -> None:
    code = (
        "import numpy as np, softce_fast as sf\n"
        "print(sf.softmax(np.array([2.0, 1.0, 0.1])).round(3).tolist())"
    )
    for name in _dispatch.available():
        result = run_python(code, environment={VARIABLE: name})
        assert result.stdout.strip() == "[0.659, 0.242, 0.099]"


class SmallMachine:
    """A stand-in for the compiled probe, on a CPU that has nothing beyond the baseline."""

    variants = staticmethod(lambda: ("avx512", "avx2", "baseline"))
    supported = staticmethod(lambda name: name == "baseline")


def test_a_build_this_machine_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "probe", SmallMachine)
    assert _dispatch.available() == ("baseline",)
    assert _dispatch.choose(None) == "baseline"
    with pytest.raises(ImportError, match=f"{VARIABLE}=avx2: this CPU cannot run it"):
        _dispatch.choose("avx2")
    with pytest.raises(ImportError, match="no such build; it takes one of baseline, or unset"):
        _dispatch.choose("neon")


def test_the_best_of_all_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SmallMachine, "supported", staticmethod(lambda _: True))
    monkeypatch.setattr(_dispatch, "probe", SmallMachine)
    assert _dispatch.choose(None) == "avx512"
    assert _dispatch.choose("avx2") == "avx2"


def test_using_returns_to_the_build_before() -> None:
    before = _dispatch.isa
    with _dispatch.using("baseline"):
        assert _dispatch.isa == "baseline"
    assert _dispatch.isa == before
    with pytest.raises(ZeroDivisionError), _dispatch.using("baseline"):
        raise ZeroDivisionError
    assert _dispatch.isa == before
    with pytest.raises(ImportError, match="no such build"), _dispatch.using("sse9"):
        pass
    assert _dispatch.isa == before


def test_only_the_modules_needed_are_loaded() -> None:
    code = (
        "import sys, numpy as np, softce_fast as sf\n"
        "sf.softmax(np.ones((2, 3), np.float32))\n"
        "print(sorted(name for name in sys.modules if '_kernels.' in name))"
    )
    needed = ["execute", "probe", *(f"{_dispatch.isa}_{real}" for real in ("float32", "float64"))]
    expected = [f"softce_fast._kernels.{name}" for name in needed]
    result = run_python(code, environment={VARIABLE: _dispatch.isa})
    assert result.stdout.strip() == str(sorted(expected))


# The command line


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


@pytest.fixture
def quick_bench(monkeypatch: pytest.MonkeyPatch) -> tuple[tuple[int, int], ...]:
    """On small shapes, so that it takes no time."""
    shapes = ((1, 10), (32, 100))
    monkeypatch.setattr(_bench, "SHAPES", shapes)
    monkeypatch.setattr(_bench, "SECONDS", 0.002)
    monkeypatch.setattr(sys, "argv", ["softce_fast", "bench"])
    return shapes


def test_bench(
    quick_bench: tuple[tuple[int, int], ...], capsys: pytest.CaptureFixture[str]
) -> None:
    command.main()
    captured = capsys.readouterr()
    assert captured.err == ""  # no bar where there is no terminal
    first, _, head, *lines = captured.out.strip().splitlines()
    assert first.startswith(f"softce_fast {sf.__version__}: {_dispatch.isa} build")
    for title in ("textbook NumPy", "reference", "softce_fast", "times as fast as NumPy"):
        assert title in head
    table, (summary, *reasons) = lines[: lines.index("")], lines[lines.index("") + 1 :]
    found = [tuple(line.split()[:2]) for line in table]
    assert found == [(name, f"{a}x{b}") for a, b in quick_bench for name in _bench.OPERATIONS]
    units = {"s": 1, "ms": 1e-3, "us": 1e-6}
    for line in table:
        _, _, *times, ratio = line.split()
        numpy, _, ours = (float(n) * units[u] for n, u in zip(times[::2], times[1::2], strict=True))
        assert numpy / ours == pytest.approx(float(ratio), rel=0.02, abs=0.06)
    assert re.match(
        r"softce_fast is [\d.]+ to [\d.]+ times as fast here as NumPy code out of a", summary
    )
    assert reasons


def test_bench_shows_a_bar_on_a_terminal(
    quick_bench: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    _bench.run()
    drawn = capsys.readouterr().err
    steps = re.findall(r"\r\[#*\.*\] (\d) of 6  (\w+) (\d+x\d+)", drawn)
    assert [int(step[0]) for step in steps] == [1, 2, 3, 4, 5, 6]
    assert drawn.endswith(" \r")  # nothing is left of it


def race(ratio: float, share: float = 1.0) -> _bench.Race:
    return _bench.Race("softmax", "2x3", {"textbook NumPy": ratio, "softce_fast": 1.0}, share)


def test_bench_says_what_was_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    config: dict[str, Any] = {
        "isa": {"in use": "avx2", "available": ["avx2", "baseline"], "built": ["avx2", "baseline"]},
        "openmp": {"enabled": True},
        "threads": 4,
    }
    monkeypatch.setattr(sf, "show_config", lambda mode: config)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)

    def said(load: float = 0.0, share: float = 1.0) -> str:
        return " ".join(_bench._reasons([race(2.0), race(1.5, share)], load))

    assert said().startswith("Nothing was in the way: the avx2 build")
    assert said(load=0.5).startswith("Busy machine: other programs were running (load 2.0 on 4")
    assert "NumPy had a CPU for 50% of its time" in said(share=0.5)
    config["threads"] = 1
    assert said() == (
        "Threads: 1 of 4 CPUs may be used: OMP_NUM_THREADS, the CPU affinity or a quota says so."
    )
    config["openmp"]["enabled"] = False
    assert said().startswith("Threads: built without OpenMP")
    config["isa"]["in use"] = "baseline"
    assert said().startswith("Build: baseline is in use, avx2 would be faster: unset SOFTCE_FAST_")
    config["isa"]["available"] = ["baseline"]
    assert said().startswith("Build: baseline, as this CPU has no AVX2")


def test_bench_names_what_was_slower() -> None:
    assert "gains least in softmax of 2x3." in _bench._summary([race(2.0), race(3.0)])
    assert "0.5 to 2.0 times" in _bench._summary([race(2.0), race(0.5)])
    assert "it was slower in softmax of 2x3." in _bench._summary([race(2.0), race(0.5)])


def test_bench_needs_nothing_but_numpy() -> None:
    code = (
        "import sys\n"
        "class Only:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        root = name.partition('.')[0]\n"
        "        if root in {'scipy', 'torch', 'matplotlib', 'tqdm', 'sklearn', 'ml_dtypes'}:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Only())\n"
        "from softce_fast import _bench\n"
        "_bench.SHAPES, _bench.SECONDS = ((2, 3),), 0.01\n"
        "_bench.run()\n"
    )
    assert "cross_entropy" in run_python(code).stdout
