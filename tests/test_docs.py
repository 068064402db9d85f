"""Docstrings are complete, and what they and the README show is what happens."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import softce_fast as sf

FUNCTIONS = [name for name in sf.__all__ if inspect.isfunction(getattr(sf, name))]
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def module_names() -> list[str]:
    found = pkgutil.walk_packages(sf.__path__, "softce_fast.")
    return ["softce_fast", *(item.name for item in found if "._kernels." not in item.name)]


def imported(name: str) -> ModuleType:
    """Import a module; an adapter whose library is not installed skips the test."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if "pip install" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("name", module_names())
def test_doctests(name: str) -> None:
    failed, _ = doctest.testmod(imported(name), optionflags=OPTIONS)
    assert not failed


def test_there_are_doctests() -> None:
    finder = doctest.DocTestFinder()
    for name in FUNCTIONS:
        function = getattr(sf, name)
        module = inspect.getmodule(function)
        examples = [test.examples for test in finder.find(function, name, module=module)]
        assert any(examples), f"{name} has no example that runs"


# numpydoc


def sections(function: Callable[..., Any]) -> dict[str, str]:
    """Return the text below each underlined heading of a docstring."""
    text = inspect.getdoc(function) or ""
    parts = re.split(r"^(\w[\w ]+)\n-{3,}$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


MODULES = ("boosting", "dask", "scipy", "sharded", "sklearn", "torch")


@pytest.mark.parametrize("module_name", MODULES)
def test_docstrings_of_a_module(module_name: str) -> None:
    module = imported(f"softce_fast.{module_name}")
    for name in filter(lambda item: callable(getattr(module, item)), module.__all__):
        documented = getattr(module, name)
        found = sections(documented)
        assert {"Notes", "Examples"} <= set(found), name
        if inspect.signature(documented).parameters:
            assert {"Parameters", "Raises"} <= set(found), name
            if not inspect.isclass(documented):
                assert "Returns" in found, name
                # In an order of their own: PyTorch's signature parts what belongs together.
                parameters = sorted(inspect.signature(documented).parameters)
                assert sorted(described_parameters(documented)) == parameters, name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_has_every_section(name: str) -> None:
    function = getattr(sf, name)
    parameters = inspect.signature(function).parameters
    required = {"Notes", "Examples"}
    if parameters:
        required |= {"Parameters", "Raises"}
    if name not in ("set_num_threads", "num_threads"):
        required.add("Returns")
    found = sections(function)
    assert required <= set(found), f"{name} lacks {sorted(required - set(found))}"
    for title, text in found.items():
        assert text.strip(), f"{title} of {name} is empty"


def described_parameters(function: Callable[..., Any]) -> list[str]:
    described: list[str] = []
    for line in sections(function).get("Parameters", "").splitlines():
        # "a, b : type", or names alone where another function describes them
        if line and not line.startswith(" "):
            described += [item.strip() for item in line.partition(" :")[0].split(",")]
    return described


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_describes_each_parameter(name: str) -> None:
    function = getattr(sf, name)
    assert described_parameters(function) == list(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_summary_is_one_sentence(name: str) -> None:
    first, *rest = (inspect.getdoc(getattr(sf, name)) or "").splitlines()
    assert first.endswith(".")
    assert not rest or not rest[0]


@pytest.mark.parametrize("name", sf.reference.__all__)
def test_reference_has_the_same_signature(name: str) -> None:
    ours, theirs = getattr(sf, name), getattr(sf.reference, name)
    assert inspect.signature(ours) == inspect.signature(theirs)
    assert inspect.getdoc(theirs)


@pytest.mark.parametrize("name", [name for name in sf.sharded.__all__ if name != "SPLIT"])
def test_reference_of_shards_has_the_same_signature(name: str) -> None:
    ours, theirs = getattr(sf.sharded, name), getattr(sf.reference.sharded, name)
    assert inspect.signature(ours) == inspect.signature(theirs)
    assert inspect.getdoc(theirs)


def test_reference_has_the_same_names() -> None:
    assert sf.reference.sharded.__all__ == sf.sharded.__all__
    threads_and_configuration = {
        "get_num_threads", "num_threads", "set_num_threads", "show_config"
    }  # fmt: skip
    assert set(sf.reference.__all__) == set(FUNCTIONS) - threads_and_configuration


def test_names_of_the_contract() -> None:
    """The public names and the defaults that users rely on."""
    keyword_only = {
        "softmax": ["where=None", "temperature=1.0", "empty='nan'", "dtype=None", "out=None"],
        "cross_entropy": [
            "weight=None", "sample_weight=None", "ignore_index=-100", "label_smoothing=0.0",
            "z_loss=0.0", "temperature=1.0", "softcap=None", "where=None", "reduction='mean'",
            "denominator=None", "empty='nan'", "dtype=None",
        ],
        "nll_loss": [
            "weight=None", "sample_weight=None", "ignore_index=-100", "reduction='mean'",
            "denominator=None", "empty='nan'", "dtype=None",
        ],
        "binary_cross_entropy": ["weight=None", "reduction='mean'", "dtype=None"],
    }  # fmt: skip
    keyword_only["log_softmax"] = keyword_only["softmax"]
    keyword_only["cross_entropy_from_probs"] = keyword_only["nll_loss"]
    keyword_only["cross_entropy_with_grad"] = [*keyword_only["cross_entropy"], "grad_out=None"]
    keyword_only["binary_cross_entropy_with_logits"] = [
        "weight=None", "pos_weight=None", "reduction='mean'", "dtype=None"
    ]  # fmt: skip
    keyword_only["binary_cross_entropy_with_logits_with_grad"] = [
        *keyword_only["binary_cross_entropy_with_logits"], "grad_out=None"
    ]  # fmt: skip
    for backward in ("softmax_backward", "log_softmax_backward"):
        keyword_only[backward] = ["temperature=1.0", "out=None"]
    for name, expected in keyword_only.items():
        found = [
            f"{parameter.name}={parameter.default!r}"
            for parameter in inspect.signature(getattr(sf, name)).parameters.values()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        ]
        assert found == expected, name
        axis = inspect.signature(getattr(sf, name)).parameters.get("axis")
        assert axis is None or axis.default == -1


# Pages and programs

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    if "```python\n" in path.read_text(encoding="utf-8")
)
PROGRAMS = sorted(ROOT.glob("examples/gallery/*.py"))


def code_blocks(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_code_of_a_page_runs(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The Python blocks of a page, one after the other, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    missing = []
    for number, block in enumerate(code_blocks(path)):
        try:
            if ">>>" in block:
                test = doctest.DocTestParser().get_doctest(block, names, str(path), None, 0)
                assert not runner.run(test, clear_globs=False).failed, block
                names.update(test.globs)
            else:
                exec(compile(block, f"{path}, block {number}", "exec"), names)
        except ImportError as error:
            missing.append(f"block {number}: {error}")
    if missing:
        pytest.skip("; ".join(missing))


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_of_the_gallery_runs(path: Path) -> None:
    """It draws, and asserts what its text says."""
    pytest.importorskip("sklearn")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    runpy.run_path(str(path))
    assert pyplot.get_fignums()
    pyplot.close("all")


FOLDERS = ("softce_fast", "tests", "tools", "benchmarks", "docs", "examples")


def sources() -> dict[str, str]:
    """The text of what contributors may look for, by path."""
    found = [ROOT / "Makefile", *ROOT.glob("*.*")]
    found += [path for folder in FOLDERS for path in (ROOT / folder).glob("**/*.*")]
    suffixes = {"", ".py", ".pyx", ".pyi", ".pxd", ".pxi", ".h", ".c", ".md", ".toml"}
    return {
        f"/{path.relative_to(ROOT).as_posix()}": path.read_text(encoding="utf-8")
        for path in found
        if path.suffix in suffixes and path.is_file()
    }


@pytest.mark.parametrize("page", ["/CONTRIBUTING.md", "/docs/design.md"])
def test_what_a_page_for_contributors_names_exists(page: str) -> None:
    """Files, wherever they are named, and words in backticks, which may be patterns."""
    files = sources()
    if page not in files:
        pytest.skip(f"{page[1:]} is not beside the tests")
    file = re.compile(r"(?<![\w/.*])(?!\w*NAME)[\w/]+\.(?:pyx|pyi?|pxd|pxi|h|md|toml)\b")
    named = file.findall(files[page])
    assert [name for name in named if not any(path.endswith(f"/{name}") for path in files)] == []

    code = "\n".join(text for path, text in files.items() if not path.endswith(".md"))
    text = re.sub(r"```.*?```", "", files[page], flags=re.DOTALL)
    inline = [item for item in re.findall(r"`([^`\n]+)`", text) if " -" not in item]  # no commands
    words = {
        word
        for token in " ".join(inline).split()
        if re.fullmatch(r"[\w\\?*+.\[\]]+", token) and not file.fullmatch(token)
        for word in token.split(".")
    }
    assert len(words) > 20
    assert sorted(word for word in words if not re.search(rf"\b{word}\b", code)) == []


def test_the_tree_has_every_file() -> None:
    files = sources()
    if "/CONTRIBUTING.md" not in files:
        pytest.skip("CONTRIBUTING.md is not beside the tests")
    named = set(re.findall(r"[\w.]+", files["/CONTRIBUTING.md"]))
    there = {
        path.rpartition("/")[2]
        for path in files
        if re.fullmatch(r"/softce_fast/(_kernels/)?(?!__|_version)\w+\.(py|pyx|px[di]|h)", path)
    }
    assert len(there) > 30
    assert sorted(there - named) == []


def test_every_page_can_be_reached() -> None:
    """From the table of contents of the page above it."""
    docs = ROOT / "docs"
    if not docs.exists():
        pytest.skip("docs is not beside the tests")
    linked = {docs / "index.md"}
    for page in docs.glob("**/*.md"):
        for entries in re.findall(r"```{toctree}\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            linked |= {page.parent / f"{name}.md" for name in entries.split() if name[0] != ":"}
    assert set(docs.glob("**/*.md")) <= linked


def test_readme_is_for_newcomers() -> None:
    if not (ROOT / "docs").exists():
        pytest.skip("what README.md links to is not beside the tests")
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    assert "targets" not in re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
    first = code_blocks(README)[0]
    for number in ("[2.0, 1.0, 0.1]", "0.659", "0.242", "0.099", "0.417"):
        assert number in first


def test_help_begins_with_use() -> None:
    """The page of help(softce_fast): an example before anything about how it is made."""
    text = inspect.getdoc(sf) or ""
    assert ">>> sf.softmax(" in text[:600]
    assert "_kernels" not in text
