"""What holds for every adapter: imported only when asked for, a clear error, examples that run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from subprocesses import run_python

LIBRARIES = {
    "scipy": ["scipy"],
    "sklearn": ["sklearn"],
    "torch": ["torch"],
    "dask": ["dask"],
    "onnx": ["onnx"],
}
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def test_importing_the_package_imports_no_other_library() -> None:
    libraries = {name for names in LIBRARIES.values() for name in names} | {"xgboost", "lightgbm"}
    code = f"import softce_fast, sys; print({libraries!r} & set(sys.modules))"
    assert run_python(code).stdout == "set()\n"


def test_boosting_imports_neither_library() -> None:
    code = "import softce_fast.boosting, sys; print({'xgboost', 'lightgbm'} & set(sys.modules))"
    assert run_python(code).stdout == "set()\n"


@pytest.mark.parametrize("adapter", LIBRARIES)
def test_a_missing_library_is_named_with_what_to_install(adapter: str) -> None:
    code = f"""
import sys
for name in {LIBRARIES[adapter]!r}:
    sys.modules[name] = None
try:
    import softce_fast.{adapter}
except ImportError as error:
    print(error)
"""
    message = run_python(code).stdout
    assert f"softce_fast.{adapter} needs" in message
    assert f"pip install 'softce_fast[{adapter}]'" in message


@pytest.mark.parametrize("adapter", LIBRARIES)
def test_an_adapter_does_not_stand_in_the_way_of_its_library(adapter: str) -> None:
    """Its module has the library's name, one level down."""
    library = LIBRARIES[adapter][0]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    code = f"""
import sys
import softce_fast.{adapter}
print(sys.modules["{library}"].__name__, softce_fast.{adapter}.__name__)
"""
    assert run_python(code).stdout == f"{library} softce_fast.{adapter}\n"


def test_every_adapter_has_an_extra() -> None:
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        extras = metadata("softce_fast").get_all("Provides-Extra") or []
    except PackageNotFoundError:
        pytest.skip("the package is not installed, it runs from a checkout")
    assert {*LIBRARIES, "boosting"} <= set(extras)


def example(name: str) -> object:
    path = EXAMPLES / f"{name}.py"
    if not path.exists():
        pytest.skip("the examples are not beside the tests")
    specification = importlib.util.spec_from_file_location(f"example_{name}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_example_of_boosting() -> None:
    for library in ("sklearn", "xgboost", "lightgbm"):
        pytest.importorskip(library)
    accuracies = example("boosting").main()
    for library in ("xgboost", "lightgbm"):
        one, all_of_them = (
            accuracies[f"{library}, {name}"]
            for name in ("labels of one annotator", "all annotators")
        )
        assert all_of_them > one > 0.85


def test_example_of_torch(torch: object) -> None:
    """The same curve with this package's loss as with PyTorch's."""
    pytest.importorskip("sklearn")
    curves = example("torch_digits").main()
    ours, theirs = curves["softce_fast.torch"], curves["torch.nn"]
    assert ours[-1] < 0.8 < 2 < ours[0]
    assert ours == pytest.approx(theirs, rel=1e-3)
