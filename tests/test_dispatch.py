"""The choice of a build of the kernels."""

from __future__ import annotations

import subprocess

import pytest

from softce_fast import _dispatch
from softce_fast._kernels import probe
from subprocesses import run_python

VARIABLE = "SOFTCE_FAST_ISA"
SHOW_ISA = "import softce_fast as sf; print(sf.show_config('dicts')['isa']['in use'])"


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
    before, other = _dispatch.isa, _dispatch.available()[-1]
    with _dispatch.using(other):
        assert _dispatch.isa == other
    assert _dispatch.isa == before
    with pytest.raises(ZeroDivisionError), _dispatch.using(other):
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


def test_modules_of_another_version_are_refused() -> None:
    """A module that an earlier build left there may have structs laid out in another way."""
    code = (
        "import ctypes, numpy as np, softce_fast as sf\n"
        "from softce_fast._kernels import execute\n"
        "new = ctypes.pythonapi.PyCapsule_New\n"
        "new.restype = ctypes.py_object\n"
        "new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]\n"
        "table = new(1, b'softce_fast.kernels.0', None)\n"
        "try: execute.use(table, table)\n"
        "except ImportError as error: print(error)\n"
        "print(sf.softmax(np.zeros(2)))"
    )
    message, result = run_python(code).stdout.splitlines()
    assert message == "the compiled modules of softce_fast are not of one version: build it again"
    assert result == "[0.5 0.5]"
