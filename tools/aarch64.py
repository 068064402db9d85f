"""Build the kernels for aarch64 on another machine, and run tests of them there under qemu-user.

Debian's Python for arm64 is fetched into ``build/aarch64`` and unpacked there; nothing is installed
into this system. It must be of the version that runs this file, whose Cython and setuptools build.
"""

from __future__ import annotations

import shutil
import sys

from wheels import ROOT, run

FOLDER = ROOT / "build" / "aarch64"
SYSTEM = FOLDER / "system"  # what qemu takes for /
PACKAGES = FOLDER / "packages"  # NumPy, pytest and softce_fast
TOOLS = ("aarch64-linux-gnu-gcc", "qemu-aarch64", "apt-get", "dpkg-deb")
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
DEBIAN = f"""
    python{VERSION}-minimal libpython{VERSION}-minimal libpython{VERSION}-stdlib
    libpython{VERSION}-dev libc6 libgcc-s1 libstdc++6 libgomp1 zlib1g libexpat1 libffi8 libbz2-1.0
    liblzma5 libcrypt1 libuuid1
""".split()
# Not those that start another Python: the kernel of this machine could not run it.
TESTS = ("accuracy", "checks", "edges", "softmax", "typing")


def fetch_system() -> None:
    """Unpack Debian's Python for arm64, with lists of packages of our own."""
    state, debs = FOLDER / "apt", FOLDER / "debs"
    for folder in (state / "lists" / "partial", debs):
        folder.mkdir(parents=True)
    (state / "status").touch()
    apt = [
        *("apt-get", "--quiet", "--option=APT::Architecture=arm64"),
        *("--option=APT::Architectures::=arm64", f"--option=Dir::State={state}"),
        *(f"--option=Dir::State::status={state}/status", f"--option=Dir::Cache={state}"),
        "--option=APT::Sandbox::User=",  # another user could not write here
    ]
    run(*apt, "update")
    run(*apt, "download", *DEBIAN, cwd=debs)
    for package in sorted(debs.glob("*.deb")):
        run("dpkg-deb", "--extract", package, SYSTEM)


def fetch_packages() -> None:
    """Install the wheels that the tests need."""
    platforms = [f"--platform={name}_aarch64" for name in ("manylinux2014", "manylinux_2_28")]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", *platforms]
    needed = ["numpy", "--group", f"{ROOT}/pyproject.toml:wheel-test"]
    run(*pip, f"--python-version={VERSION}", "--target", PACKAGES, *needed)


def build() -> None:
    """Build the package with the flags of Debian's Python for arm64."""
    flags = FOLDER / "sysconfig"
    flags.mkdir(exist_ok=True)
    name = "_sysconfigdata__aarch64-linux-gnu"
    shutil.copy(SYSTEM / "usr" / "lib" / f"python{VERSION}" / f"{name}.py", flags)
    headers = SYSTEM / "usr" / "include"
    command = [sys.executable, "setup.py", "--quiet", "build"]
    run(
        *command, "--build-base", FOLDER / "work", "--build-lib", PACKAGES, shown=True,
        CC="aarch64-linux-gnu-gcc", CFLAGS=f"-I{headers}/python{VERSION} -I{headers}",
        PYTHONPATH=str(flags), _PYTHON_HOST_PLATFORM="linux-aarch64",
        _PYTHON_SYSCONFIGDATA_NAME=name,
    )  # fmt: skip


def test(*arguments: str) -> None:
    """Run tests in copies of their files: the package that they meet is the one built here."""
    for name in ("tests", "benchmarks"):
        shutil.copytree(ROOT / name, FOLDER / name, dirs_exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", FOLDER)
    chosen = arguments or [f"tests/test_{name}.py" for name in TESTS]
    for module in (["softce_fast"], ["pytest", "-q", "-m", "not slow", *chosen]):
        run(
            "qemu-aarch64", "-L", SYSTEM, SYSTEM / "usr" / "bin" / f"python{VERSION}",
            "-m", *module, cwd=FOLDER, shown=True, PYTHONHOME=str(SYSTEM / "usr"),
            PYTHONPATH=str(PACKAGES), PYTHONDONTWRITEBYTECODE="1",
            CI="true",  # Hypothesis without deadlines
        )  # fmt: skip


def main() -> None:
    """Fetch what is missing, build, test."""
    missing = [name for name in TOOLS if shutil.which(name) is None]
    if missing:
        raise SystemExit(
            f"Missing: {', '.join(missing)}. This needs Debian or Ubuntu, and: "
            "apt-get install gcc-aarch64-linux-gnu qemu-user"
        )
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not SYSTEM.exists():
        fetch_system()
    if not PACKAGES.exists():
        fetch_packages()
    build()
    test(*sys.argv[1:])


if __name__ == "__main__":
    main()
