"""Whoever adds an option learns who does not know it yet: reference, fuzzer, table of errors."""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
from pathlib import Path

import pytest

import softce_fast as sf
import test_checks

HERE = Path(__file__).resolve().parent
TOOLS = HERE.parent / "tools"
if not TOOLS.exists():
    pytest.skip("tools/fuzz.py is not here", allow_module_level=True)
pytest.importorskip("hypothesis")
pytest.importorskip("ml_dtypes")
sys.path.insert(0, str(TOOLS))

from hypothesis import Phase, find, settings
from hypothesis.errors import NoSuchExample

import fuzz

FLAGS = {"accumulate", "entropy", "keepdims", "return_sign"}  # anything is true or false
# Functions put together from others are not in the table; they have tests of their own.
COMPOSED = {
    "cross_entropy_with_grad_and_hessian": "test_hessian.py",
    "linear_cross_entropy": "test_linear.py",
    "linear_cross_entropy_with_grad": "test_linear.py",
    "linear_target_scores": "test_scores.py",
}
FUNCTIONS = [
    name
    for name in sf.__all__
    if inspect.isfunction(getattr(sf, name)) and name in sf.reference.__all__
]
SHARDED = [name for name in sf.sharded.__all__ if inspect.isfunction(getattr(sf.sharded, name))]
SINGLE = [name for name in FUNCTIONS if name not in COMPOSED]


def options_of(name: str, module: object = sf) -> set[str]:
    """Return the arguments that have a default."""
    parameters = inspect.signature(getattr(module, name)).parameters.values()
    return {item.name for item in parameters if item.default is not item.empty}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_reference_knows_every_option(name: str) -> None:
    assert options_of(name) <= options_of(name, sf.reference)


@pytest.mark.parametrize("name", SHARDED)
def test_the_reference_of_shards_knows_every_option(name: str) -> None:
    assert options_of(name, sf.sharded) <= options_of(name, sf.reference.sharded)


@pytest.mark.parametrize("name", fuzz.FUNCTIONS)
def test_the_fuzzer_gives_every_option(name: str) -> None:
    missing = options_of(name)

    def are_all_given(options: set[str]) -> bool:
        missing.difference_update(options)
        return not missing

    calls = fuzz.calls((name,), spoiled=0).map(lambda case: set(case.options))
    once = settings(max_examples=1000, phases=[Phase.generate], database=None)
    with contextlib.suppress(NoSuchExample):
        find(calls, are_all_given, settings=once)
    assert not missing


@pytest.mark.parametrize("name", fuzz.FUNCTIONS)
def test_the_fuzzer_has_wrong_values_of_every_option(name: str) -> None:
    assert options_of(name) - FLAGS <= set(fuzz.BAD_OPTIONS)


@pytest.mark.parametrize("name", SINGLE)
def test_the_table_of_errors_has_every_option(name: str) -> None:
    named = {
        word
        for row in test_checks.TABLE
        for case in row()
        if case.function == name
        for word in case.words
    }
    if name == "logsumexp":
        named.add("out")  # test_output_of_logsumexp
    assert options_of(name) - FLAGS <= named


@pytest.mark.parametrize("name", COMPOSED)
def test_functions_put_together_have_tests_of_every_option(name: str) -> None:
    assert options_of(name) <= named_in(COMPOSED[name])


@pytest.mark.parametrize("name", SHARDED)
def test_functions_on_shards_have_tests_of_every_option(name: str) -> None:
    assert options_of(name, sf.sharded) <= named_in("test_sharded.py")


def named_in(file: str) -> set[str]:
    """What a file names: as a keyword, or as a word."""
    source = (HERE / file).read_text(encoding="utf-8")
    return {a or b for a, b in re.findall(r'\b(\w+)=|"(\w+)"', source)}
