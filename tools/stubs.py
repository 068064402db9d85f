"""Compare the stubs of the compiled modules with the modules, built in place, by mypy's stubtest.

Kernel modules have nothing that Python calls, and no stubs.
"""

from __future__ import annotations

import subprocess
import sys

import wheels

MODULES = ("probe", "execute")


def main() -> None:
    """Run stubtest."""
    names = [f"softce_fast._kernels.{name}" for name in MODULES]
    command = [sys.executable, "-m", "mypy.stubtest", *names]
    raise SystemExit(subprocess.run(command, cwd=wheels.ROOT, check=False).returncode)


if __name__ == "__main__":
    main()
