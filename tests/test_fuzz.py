"""A short run of tools/fuzz.py; `make fuzz SECONDS=...` runs it for longer."""

from __future__ import annotations

import math
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from softce_fast import reference
from subprocesses import PACKAGE

HERE = Path(__file__).resolve().parent
FUZZ = HERE.parent / "tools" / "fuzz.py"

pytestmark = pytest.mark.skipif(not FUZZ.exists(), reason="tools/fuzz.py is not here")
pytest.importorskip("hypothesis")
pytest.importorskip("ml_dtypes")


def run_fuzz(*arguments: str, path: Path = HERE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FUZZ), *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(path), str(PACKAGE.parent)])},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_random_calls_end_in_a_right_answer_or_a_documented_error():
    # Where a red run must be the change's fault, the calls are always the same ones.
    same = ["--seed", "0", "--calls", "2000", "--seconds", "300"]
    done = run_fuzz(*(same if os.environ.get("CI") else ["--seconds", "10"]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.splitlines()[-1].split()[0]) > 100


def test_every_function_is_called():
    # These are tested against what they are put together from, in test_linear.py.
    composed = {"linear_cross_entropy", "linear_cross_entropy_with_grad", "linear_target_scores"}
    assert set(runpy.run_path(str(FUZZ))["FUNCTIONS"]) == set(reference.__all__) - composed


SABOTAGE = """
import sys
import types
import numpy as np
import softce_fast as sf
sys.path.insert(0, sys.argv[1])
import fuzz
{fault}
setattr(sf, right.__name__, wrong)
fuzz.SECONDS_OF_SHRINKING, fuzz.MOST_FAILURES = 5, 3
fuzz.work(0, 200, range(3000), types.SimpleNamespace())
"""

FAULTS = {
    "a wrong answer": "right = sf.softmax\n"
    "def wrong(*a, **k):\n"
    "    result = right(*a, **k)\n"
    "    if isinstance(result, np.ndarray) and result.size > 3: result.flat[3] *= 1.001\n"
    "    return result\n",
    "an undocumented error": "right = sf.softmax\n"
    "def wrong(*a, **k): raise RuntimeError('on purpose')\n",
    "a warning": "import warnings\nright = sf.softmax\n"
    "def wrong(*a, **k):\n"
    "    warnings.warn('on purpose')\n"
    "    return right(*a, **k)\n",
    "an input that changes": "right = sf.softmax\n"
    "def wrong(x, *a, **k):\n"
    "    result = right(x, *a, **k)\n"
    "    if isinstance(x, np.ndarray) and x.flags.writeable: x[...] = 1\n"
    "    return result\n",
    "a wrong loss of shards": "sf = sf.sharded\nright = sf.cross_entropy\n"
    "def wrong(*a, **k): return right(*a, **k) * 1.001\n",
    "a wrong gradient": "right = sf.cross_entropy_with_grad\n"
    "def wrong(*a, **k):\n"
    "    loss, gradient = right(*a, **k)\n"
    "    gradient *= 1.01\n"
    "    return loss, gradient\n",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_fuzzer_finds(fault: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SABOTAGE.format(fault=FAULTS[fault]), str(FUZZ.parent)],
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "3 failures" in done.stdout, done.stdout + done.stderr
    calls = re.findall(r"argument 0: ndarray \S+ \((.*?)\)", done.stdout)
    assert len(calls) == done.stdout.count("--seed 0 --case ") == 3
    # Made as small as it can be in the time, but for chance.
    assert min(math.prod(map(int, re.findall(r"\d+", shape))) for shape in calls) <= 8


def test_a_crash_is_reported_with_its_case(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nimport softce_fast as sf\nsf.softmax = lambda *a, **k: os.abort()\n"
    )
    done = run_fuzz("--seed", "0", path=tmp_path)
    found = re.search(r"exit status \S+ in (--seed 0 --case \d+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert done.returncode == 1
    again = run_fuzz(*found[1].split(), path=tmp_path)
    assert "softce_fast.softmax," in again.stdout
    assert found[0] in again.stdout
