"""Which build of the kernels serves this machine, and which of its modules a dtype."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ._kernels import probe

if TYPE_CHECKING:
    from ._kernels import Kernels  # a module with the functions of _kernels/entry.pxi

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


# Outside of tests `isa` never changes, and modules are only added, by any thread the same ones. The
# modules themselves have constant tables only: memory to work in is taken for each call.
isa = choose(os.environ.get(ENVIRONMENT_VARIABLE))
loaded_kernels: dict[np.dtype[Any], Kernels] = {}
# Held while a module is imported: a child forked then would wait for ever for the lock that Python
# has on the module, since the thread that had it is not in the child.
_importing = threading.RLock()


# Beyond these the kernels' constants, multiples of the temperature, leave the range of what is
# computed in: float32, or float64.
TEMPERATURES = {4: (1e-20, 1e20), 8: (1e-200, 1e200)}


def takes(temperature: float, dtype: np.dtype[Any]) -> bool:
    """Tell whether the kernels for `dtype` take a temperature."""
    lowest, highest = TEMPERATURES[8 if dtype.itemsize >= 8 else 4]
    return lowest <= temperature <= highest


def dtype_for(temperature: float, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype to compute in: `dtype`, or float64 if that alone takes the temperature.

    What float64 does not take, either, is left to plain NumPy.
    """
    if takes(temperature, dtype) or dtype.itemsize >= 8:
        return dtype
    return np.dtype(np.float64)


def kernels_for(dtype: np.dtype[Any]) -> Kernels | Any:
    """Return the kernels for a dtype in native byte order, None if there are none.

    They are imported when first asked for.
    """
    module = loaded_kernels.get(dtype)
    if (
        module is None
        and dtype.isnative
        and dtype.name
        in (
            "float16",
            "bfloat16",
            "float32",
            "float64",
        )
    ):
        name = f"._kernels.{isa}_{dtype.name}"
        with _importing:
            module = cast("Kernels", importlib.import_module(name, __package__))
        loaded_kernels[dtype] = module
    return module


@contextmanager
def using(name: str) -> Iterator[None]:
    """Use another build in the body. For tests: it is not meant for several threads."""
    global isa
    before = isa
    isa = choose(name)
    _load_again()
    try:
        yield
    finally:
        isa = before
        _load_again()


def _load_again() -> None:
    """Load the chosen build's kernels for all dtypes that have any loaded."""
    dtypes = list(loaded_kernels)
    loaded_kernels.clear()
    for dtype in dtypes:
        kernels_for(dtype)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_importing.acquire,
        after_in_parent=_importing.release,
        after_in_child=_importing.release,
    )
