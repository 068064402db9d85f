"""show_config, and what is said where something is missing from the build."""

from __future__ import annotations

import re
import shutil
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import softce_fast as sf
from softce_fast import _config, _dispatch
from subprocesses import run_python


def test_dictionary() -> None:
    config = sf.show_config(mode="dicts")
    assert config is not None
    assert config["version"] == sf.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", sf.__version__)
    assert config["isa"]["in use"] in config["isa"]["available"]
    assert set(config["isa"]["available"]) <= set(config["isa"]["built"])
    assert config["isa"]["available"]
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
