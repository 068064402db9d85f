"""The sdist, the wheel made from it, the metadata, and the Makefile's way to a first build."""

from __future__ import annotations

import email
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import softce_fast
from softce_fast import _dispatch

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "setup.py").exists():
    pytest.skip("runs in a checkout or an unpacked sdist only", allow_module_level=True)

sys.path.insert(0, str(ROOT / "tools"))

import wheels

posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist in a copy, which cannot profit from what earlier builds left behind."""
    pytest.importorskip("Cython")
    folder = tmp_path_factory.mktemp("sdist")
    unwanted = shutil.ignore_patterns(".*cache", ".git", ".venv*", "build", "dist", "*.egg-info")
    shutil.copytree(ROOT, folder / "copy", ignore=unwanted)
    code = "import sys; from setuptools import build_meta as b; b.build_sdist(sys.argv[1])"
    command = [sys.executable, "-c", code, str(folder)]
    subprocess.run(command, cwd=folder / "copy", check=True, capture_output=True)
    (path,) = folder.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel from the sdist in an isolated environment, with hasty kernels.

    What the wheel holds does not depend on how far the compiler goes; ``make wheel`` and
    ``make sdist-check`` build the real ones.
    """
    folder = tmp_path_factory.mktemp("wheel")
    environment = dict(os.environ)
    if os.name == "posix":
        compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
        environment["CC"] = str(script(folder / "hasty-cc", f'exec {compiler} "$@" -O1'))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(folder), str(sdist)]
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py, with nothing chosen."""
    monkeypatch.chdir(ROOT)
    for name in ("SOFTCE_FAST_BUILD", "SOFTCE_FAST_JOBS", "CFLAGS", "LIB"):
        monkeypatch.delenv(name, raising=False)
    return wheels.setup


def test_build_for_this_cpu_alone(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert setup.variants_to_build() == setup.variants()
    monkeypatch.setenv("SOFTCE_FAST_BUILD", "native")
    assert [v.name for v in setup.variants_to_build()] == [_dispatch.available()[0]]
    monkeypatch.setenv("SOFTCE_FAST_BUILD", "debug")
    assert {v.name for v in setup.variants_to_build()} >= set(_dispatch.available())
    monkeypatch.setenv("SOFTCE_FAST_BUILD", "fastest")
    with pytest.raises(SystemExit, match="must be one of all, native, debug, not 'fastest'"):
        setup.variants_to_build()


# What each build may use of the CPU, best first. What is not named here is not looked up at import.
FEATURES = {
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma", "f16c"},
    "avx2": {"avx2", "fma", "f16c"},
    "baseline": set(),
}


def test_builds_need_of_the_cpu_what_their_flags_allow(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_PYTHON_HOST_PLATFORM", "linux-x86_64")
    assert {v.name: set(v.features) for v in setup.variants()} == FEATURES
    assert [v.name for v in setup.variants()] == list(FEATURES), "not the best one first"
    for variant in setup.variants():
        allowed = {flag[2:] for flag in variant.flags if not flag.startswith("-mprefer")}
        assert allowed == FEATURES[variant.name]
    assert "-mprefer-vector-width=512" in setup.variants()[0].flags
    monkeypatch.setenv("_PYTHON_HOST_PLATFORM", "linux-aarch64")
    assert [v.name for v in setup.variants()] == ["baseline"]


def test_flags_keep_the_meaning_of_arithmetic(setup: ModuleType) -> None:
    """A multiply-add is fused where the source says so; what is NaN or infinite stays so."""
    assert {"-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno"} <= {*setup.COMPILE_FLAGS}
    for variant in setup.variants():
        flags = {*setup.COMPILE_FLAGS, *setup.DEBUG_FLAGS, *setup.KNOWN_TO_SOME, *variant.flags}
        assert not flags & {
            "-ffast-math",
            "-Ofast",
            "-ffinite-math-only",
            "-funsafe-math-optimizations",
        }


SHOWS_FEATURES = """
#include <stdio.h>
#include "cpu.h"
int main(void) {{
    const unsigned found = cpu_features();
    {lines}
    return 0;
}}
"""


@pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.platform != "linux", reason="as Linux tells of x86-64"
)
def test_features_of_the_cpu_are_those_that_the_system_tells(
    setup: ModuleType, tmp_path: Path
) -> None:
    told = re.findall(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[
        0
    ].split()
    lines = [
        f'if (found & CPU_{name.upper()}) puts("{name}");' for name in sorted(FEATURES["avx512"])
    ]
    source = tmp_path / "features.c"
    source.write_text(SHOWS_FEATURES.format(lines=" ".join(lines)))
    needs = [f"-D{name}={value}" for name, value in setup.needs()]
    command = [*setup.compiler(), f"-I{ROOT / setup.KERNELS}", *needs, str(source), "-o"]
    subprocess.run([*command, str(tmp_path / "features")], check=True)
    found = subprocess.run([tmp_path / "features"], capture_output=True, text=True, check=True)
    assert set(found.stdout.split()) == FEATURES["avx512"] & set(told)


def test_as_many_compilers_as_allowed(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.os, "sched_getaffinity", lambda _: {3, 5, 8}, raising=False)
    assert setup.jobs() == 3
    monkeypatch.setenv("SOFTCE_FAST_JOBS", "2")
    assert setup.jobs() == 2
    for wrong in ("0", "-1", "all", "1.5"):
        monkeypatch.setenv("SOFTCE_FAST_JOBS", wrong)
        with pytest.raises(SystemExit, match=f"a number from 1 on, not '{wrong}'"):
            setup.jobs()


def test_symbols_for_those_who_ask(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert setup.debug_flags() == ("-g0",)
    monkeypatch.setenv("CFLAGS", "-O2 -ggdb")
    assert setup.debug_flags() == ()
    monkeypatch.setenv("SOFTCE_FAST_BUILD", "debug")
    assert setup.debug_flags() == setup.DEBUG_FLAGS


def test_modules_are_made_anew_when_what_they_are_made_of_changed(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("Cython")
    kernels = shutil.copytree(ROOT / setup.KERNELS, tmp_path / "kernels")
    monkeypatch.setattr(setup, "KERNELS", kernels)
    monkeypatch.setattr(setup, "COPIES", tmp_path / "copies")

    def made(flags: list[str]) -> int:
        (source,) = setup.module("probe.pyx", "probe", flags).sources
        return Path(source).stat().st_mtime_ns

    first = made(["-O1"])
    assert made(["-O1"]) == first
    others = {first, made(["-O3"])}
    monkeypatch.setenv("CFLAGS", "-g")
    others.add(made(["-O3"]))
    with (kernels / "cpu.h").open("a") as header:
        header.write("\n")
    others.add(made(["-O3"]))
    assert len(others) == 4


def test_nothing_is_probed_on_windows(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SOFTCE_FAST_BUILD", "native")
    monkeypatch.setattr(setup.subprocess, "run", lambda *_, **__: pytest.fail("started a compiler"))
    monkeypatch.setattr(setup.sys, "platform", "win32")
    setup.check_compiler()
    assert setup.variants_to_build() == setup.variants()
    assert setup.openmp_flags() == ([], [])
    assert setup.spelled(["-O3"]) == ["/clang:-O3"]
    (tmp_path / "libomp.lib").touch()
    monkeypatch.setenv("LIB", os.pathsep.join(["nowhere", str(tmp_path)]))
    assert setup.openmp_flags() == (["/openmp"], ["libomp.lib"])


@posix
def test_the_compiler_that_is_probed_is_the_one_that_builds(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fails = str(script(tmp_path / "cc", "exit 1"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(sysconfig, "get_config_var", {"CC": fails}.get)
    assert not setup.builds(setup.ANY_PROGRAM, [], [])
    monkeypatch.setenv("CC", str(script(tmp_path / "other", "exit 0")))
    assert setup.builds(setup.ANY_PROGRAM, [], [])


@posix
def test_a_missing_compiler_is_told_at_once(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    setup.check_compiler()

    def assert_lacks(compiler: str, what: str) -> None:
        monkeypatch.setenv("CC", compiler)
        with pytest.raises(SystemExit) as caught:
            setup.check_compiler()
        message = str(caught.value)
        assert f"Missing: {what}" in message
        for part in ("Debian", "gcc libc6-dev", "Fedora", "macOS"):
            assert part in message

    assert_lacks(
        "no-such-compiler -pthread", "a C compiler (there is no command 'no-such-compiler'"
    )
    assert_lacks(str(script(tmp_path / "cc", "exit 1")), "a C compiler that works")
    real = shutil.which("gcc") or shutil.which("cc") or "cc"
    blind = f'for a; do grep -qs Python.h "$a" && exit 1; done; exec {real} "$@"'
    assert_lacks(str(script(tmp_path / "blind", blind)), "Python.h (for Python 3.")


@pytest.mark.parametrize("hook", ["prepare_metadata_for_build_wheel", "build_sdist"])
def test_metadata_takes_neither_cython_nor_compiler(hook: str, tmp_path: Path) -> None:
    """In a copy, without the modules that only a build needs."""
    unwanted = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "results")
    shutil.copytree(ROOT, tmp_path / "copy", ignore=unwanted)
    code = (
        "import sys; sys.modules.update(Cython=None, numpy=None)\n"
        f"from setuptools import build_meta; build_meta.{hook}(sys.argv[1])"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=tmp_path / "copy",
        env={**os.environ, "CC": "no-such-compiler"},
        check=True,
        capture_output=True,
    )
    assert list(tmp_path.glob("softce_fast-*"))


@pytest.mark.slow
def test_sdist_holds_all_sources_and_nothing_made_from_them(sdist: Path) -> None:
    assert wheels.sdist_problems(wheels.names_in(sdist)) == []


@pytest.mark.slow
def test_sdist_metadata(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        top = archive.getnames()[0].partition("/")[0]
        file = archive.extractfile(f"{top}/PKG-INFO")
        assert file is not None
        metadata = email.message_from_bytes(file.read())
    assert metadata["Version"] == softce_fast.__version__
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Requires-Python"] == ">=3.10"
    assert "bfloat16" in metadata.get_all("Provides-Extra", [])
    required = [name for name in metadata.get_all("Requires-Dist", []) if "extra" not in name]
    assert required == ["numpy>=1.26"]


@pytest.mark.slow
def test_wheel_from_the_sdist(wheel: Path) -> None:
    assert wheels.wheel_problems(wheels.names_in(wheel)) == []


def test_the_checks_of_archives_find_what_is_wrong(tmp_path: Path) -> None:
    found = wheels.sdist_problems({"build/cython/a.c", "softce_fast/_kernels/b.c", "setup.py"})
    assert "holds build/cython/a.c" in found
    assert "holds softce_fast/_kernels/b.c" in found
    assert "lacks softce_fast/_kernels/kernel.pyx" in found
    found = wheels.wheel_problems({"softce_fast/_kernels/kernel.pyx", "tests/test_a.py"})
    assert "holds softce_fast/_kernels/kernel.pyx" in found
    assert "holds tests/test_a.py" in found
    assert "lacks softce_fast/py.typed" in found
    assert "lacks softce_fast/_kernels/baseline_float32" in found
    assert "lacks LICENSE" in found
    assert "lacks licenses/NOTICE.txt" in found

    path = tmp_path / "big.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("zeros", bytes(wheels.LARGEST_WHEEL))
    with pytest.raises(SystemExit, match="are allowed"):
        wheels.check(path, [])


def test_version_is_the_installed_one() -> None:
    assert importlib.metadata.version("softce_fast") == softce_fast.__version__


@pytest.mark.parametrize("name", ["CITATION.cff", "recipe/recipe.yaml"])
def test_version_is_the_same_everywhere(name: str) -> None:
    if not (path := ROOT / name).exists():
        pytest.skip(f"{name} is in a checkout only")
    versions = re.findall(r'^ *version: "?(\d[^"\s]*)', path.read_text(), re.MULTILINE)
    assert versions == [softce_fast.__version__]


# ---------------------------------------------------------------------------------- the first build


def preflight(python: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the check for Python."""
    shell = shutil.which("sh")
    assert shell is not None
    return subprocess.run(
        [shell, str(ROOT / "tools" / "preflight.sh"), str(python)],
        capture_output=True,
        text=True,
        check=False,
    )


def python_with(tmp_path: Path, change: str) -> Path:
    """Make a command that is this Python, changed by a statement that runs first."""
    code = f"import sys; {change}; exec(sys.argv[1])"
    return script(tmp_path / "python", f'exec "{sys.executable}" -c "{code}" "$2"')


def assert_lacks(result: subprocess.CompletedProcess[str], what: str, package: str) -> None:
    """Assert that exactly this is missing and that Debian's package for it is named."""
    assert result.returncode == 1
    assert result.stderr.count("Missing:") == 1
    assert f"Missing: {what}" in result.stderr
    for system in ("Debian", "Fedora", "macOS"):
        assert system in result.stderr
    (line,) = (line for line in result.stderr.splitlines() if "Debian" in line)
    assert package in line


@posix
def test_preflight_is_silent_where_all_is_there(tmp_path: Path) -> None:
    result = preflight(python_with(tmp_path, "pass"))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@posix
def test_preflight_without_python(tmp_path: Path) -> None:
    assert_lacks(preflight(tmp_path / "absent"), "Python 3.10 or later", "python3.11-venv")


@posix
@pytest.mark.parametrize("version", [(2, 7, 18), (3, 9, 20)])
def test_preflight_with_an_old_python(tmp_path: Path, version: tuple[int, ...]) -> None:
    result = preflight(python_with(tmp_path, f"sys.version_info = {version}"))
    assert_lacks(result, "Python 3.10 or later", "python3.11-dev")
    assert f"is {version[0]}.{version[1]}; name another" in result.stderr


@posix
@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_preflight_without_venv(tmp_path: Path, module: str) -> None:
    result = preflight(python_with(tmp_path, f"sys.modules['{module}'] = None"))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert_lacks(result, "Python's modules venv and ensurepip", f"python{version}-venv")


@posix
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_builds_again_exactly_when_a_source_changed(tmp_path: Path) -> None:
    stamps = tmp_path / "venv" / "stamps"
    stamps.mkdir(parents=True)
    (stamps / "venv").touch()
    (stamps / "built").touch()

    def commands(*options: str) -> str:
        make = ["make", "--dry-run", f"VENV={tmp_path / 'venv'}", *options, "build"]
        return subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    # The sources may bear dates in the future, as unpacked archives sometimes do.
    sources = [path for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts]
    newest = max(path.stat().st_mtime for path in sources)
    os.utime(stamps / "venv", (newest, newest))
    os.utime(stamps / "built", (newest + 1, newest + 1))
    assert "install" not in commands()
    for source in ("_kernels/passes/along.pxi", "_kernels/vector.h", "_kernels/kernel.pyx"):
        assert "install" in commands(f"--what-if=softce_fast/{source}")
    assert "install" in commands("--what-if=setup.py")
    assert "install" not in commands("--what-if=softce_fast/reference.py")
