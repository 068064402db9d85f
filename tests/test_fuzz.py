"""A short run of tools/fuzz.py; `make fuzz SECONDS=...` runs it for longer."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from softce_fast import reference
from subprocesses import PACKAGE

FUZZ = Path(__file__).resolve().parent.parent / "tools" / "fuzz.py"

pytestmark = pytest.mark.skipif(not FUZZ.exists(), reason="tools/fuzz.py is not here")


def run_fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FUZZ), *arguments],
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
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
import runpy
import sys
import numpy as np
import softce_fast as sf
{fault}
fuzz, note = sys.argv[1:]
sys.argv = [fuzz, "--seed", "0", "--seconds", "200", "--note", note]
runpy.run_path(fuzz, run_name="__main__")
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
def test_the_fuzzer_finds(fault, tmp_path):
    note = tmp_path / "note"
    note.write_bytes(b" " * 20)
    code = SABOTAGE.format(fault=FAULTS[fault] + "setattr(sf, right.__name__, wrong)\n")
    done = subprocess.run(
        [sys.executable, "-c", code, str(FUZZ), str(note)],
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "20 failures" in done.stdout, done.stdout + done.stderr
