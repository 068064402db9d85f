"""Compare the stubs of the compiled modules with the modules, built in place, by mypy's stubtest.

Each kernel module has the functions of the protocol in ``_kernels/__init__.pyi``: from that a stub
is made for every one of them that this machine can run.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import wheels
from softce_fast import _dispatch


def module_stub(source: str) -> str:
    """Turn the methods of the protocol, which comes last, into the functions of a module."""
    tree = ast.parse(source)
    protocol = tree.body.pop()
    assert isinstance(protocol, ast.ClassDef)
    for function in protocol.body:
        assert isinstance(function, ast.FunctionDef)
        del function.args.args[0]  # self
    tree.body += protocol.body
    return ast.unparse(tree)


def main() -> None:
    """Run stubtest with a copy of the package's sources that has a stub for each kernel module."""
    with tempfile.TemporaryDirectory() as folder:
        sources = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
        package = Path(folder, "softce_fast")
        shutil.copytree(wheels.ROOT / package.name, package, ignore=sources)
        stub = module_stub((package / "_kernels" / "__init__.pyi").read_text())
        storages = wheels.load_setup().STORAGES
        modules = [f"{isa}_{storage}" for isa in _dispatch.available() for storage in storages]
        for module in modules:
            (package / "_kernels" / f"{module}.pyi").write_text(stub)
        names = [f"softce_fast._kernels.{module}" for module in ["probe", *modules]]
        command = [sys.executable, "-m", "mypy.stubtest", *names]
        environment = {**os.environ, "MYPYPATH": folder}
        raise SystemExit(subprocess.run(command, env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
