"""What keeps the code readable: short functions and small structs in kernels; tests by name."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "softce_fast"
TOOLS = TESTS.parent / "tools"
KERNELS = PACKAGE / "_kernels"
CYTHON = sorted(KERNELS.rglob("*.px[id]")) + sorted(KERNELS.glob("*.pyx"))
HEADER = re.compile(r"^(?:cdef (?!struct|enum|extern|class).*\(|cpdef .*\(|def )")
MOST_LINES, MOST_PARAMETERS, MOST_FIELDS = 60, 8, 16


def blocks(path: Path, header: re.Pattern[str]) -> Iterator[list[str]]:
    """Yield the lines of each block that begins with a line at the margin that `header` matches."""
    lines = path.read_text().splitlines()
    for start, line in enumerate(lines):
        if not header.match(line):
            continue
        stop = start + 1
        while stop < len(lines) and (not lines[stop] or lines[stop][0] in " )#"):
            stop += 1
        yield "\n".join(lines[start:stop]).rstrip().splitlines()


def parameters(block: list[str]) -> list[str]:
    text = re.search(r"\((.*?)\)(?: except\S*(?: \S+)?| noexcept)?(?: nogil)?:?\s*$",
                     re.sub(r"#.*", "", " ".join(block_header(block))))  # fmt: skip
    inside = "" if text is None else text.group(1)
    inside = re.sub(r"[\[(][^\])]*[\])]", "", inside)
    return [part for part in inside.split(",") if part.strip() and part.strip() != "*"]


def block_header(block: list[str]) -> list[str]:
    for count, line in enumerate(block, 1):
        if line.rstrip().endswith(":"):
            return block[:count]
    return block


@pytest.mark.parametrize("path", CYTHON, ids=lambda path: path.relative_to(KERNELS).as_posix())
def test_functions_are_short(path: Path) -> None:
    long = [block[0] for block in blocks(path, HEADER) if len(block) > MOST_LINES]
    assert not long


@pytest.mark.parametrize("path", CYTHON, ids=lambda path: path.relative_to(KERNELS).as_posix())
def test_functions_have_few_parameters(path: Path) -> None:
    # What Python calls has a parameter for each of the contract's options.
    many = [
        block[0]
        for block in blocks(path, HEADER)
        if block[0].startswith("cdef") and len(parameters(block)) > MOST_PARAMETERS
    ]
    assert not many


@pytest.mark.parametrize("path", CYTHON, ids=lambda path: path.relative_to(KERNELS).as_posix())
def test_structs_are_small(path: Path) -> None:
    for block in blocks(path, re.compile(r"^cdef struct ")):
        fields = [line for line in block[1:] if line.strip() and not line.strip().startswith("#")]
        assert len(fields) <= MOST_FIELDS, block[0]


@pytest.mark.parametrize("path", CYTHON, ids=lambda path: path.relative_to(KERNELS).as_posix())
def test_files_say_what_they_are_for(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# cython:")]
    assert lines[0].startswith(("# ", '"""'))


@pytest.mark.parametrize("module", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_modules_have_tests_of_their_name(module: Path) -> None:
    if module.stem not in ("__init__", "_version"):
        assert (TESTS / f"test_{module.stem.strip('_')}.py").exists()


def test_planted_mistakes_have_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `make mutants` replaces stands in its file, once."""
    if not (TOOLS / "mutants.py").exists():
        pytest.skip("tools/mutants.py is not here")
    monkeypatch.syspath_prepend(TOOLS)
    planted = importlib.import_module("mutants")
    for mutant in planted.MUTANTS:
        assert (TOOLS.parent / mutant.path).read_text().count(mutant.old) == 1, mutant.name
