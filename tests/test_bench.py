"""``python -m softce_fast bench``: the race against textbook NumPy."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

import pytest

import softce_fast as sf
from softce_fast import __main__ as command
from softce_fast import _bench, _dispatch
from subprocesses import run_python


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
    assert "0.042 to 2.0 times" in _bench._summary([race(2.0), race(0.042)])
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
