"""Which build of the kernels serves this machine."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ._kernels import execute, probe

ENVIRONMENT_VARIABLE = "SOFTCE_FAST_ISA"


def available() -> tuple[str, ...]:
    """Return the builds that are in this package and that the machine can run, best first."""
    return tuple(name for name in probe.variants() if probe.supported(name))


def choose(request: str | None) -> str:
    """Return the build to use: the best one, or the one asked for.

    Raises
    ------
    ImportError
        If a build was asked for that does not exist, is not in this package, or that this machine
        cannot run. A choice made by name is never replaced by another one.
    """
    usable = available()
    if not request:
        return usable[0]
    if request in usable:
        return request
    problem = (
        "this CPU cannot run it"
        if request in probe.variants()
        else "this package has no such build"
    )
    raise ImportError(
        f"{ENVIRONMENT_VARIABLE}={request}: {problem}; "
        f"it takes one of {', '.join(usable)}, or unset"
    )


def _load(name: str) -> None:
    """Have a build's kernels serve all calls from now on."""
    tables = (
        importlib.import_module(f"._kernels.{name}_{real}", __package__).table
        for real in ("float32", "float64")
    )
    execute.use(*tables)


# Outside of tests it never changes. The modules have constant tables only: memory to work in is
# taken for each call.
isa = choose(os.environ.get(ENVIRONMENT_VARIABLE))
_load(isa)


@contextmanager
def using(name: str) -> Iterator[None]:
    """Use another build in the body. For tests: it is not meant for several threads."""
    global isa
    before = isa
    isa = choose(name)
    _load(isa)
    try:
        yield
    finally:
        isa = before
        _load(isa)
