"""What is installed and in use: show_config."""

from __future__ import annotations

import platform
import sys
import warnings
from typing import Any

import numpy as np

from . import _dispatch, _threads
from ._kernels import probe
from ._version import __version__


def warn_if_serial() -> None:
    """Warn where OpenMP was missing at the build: pip does not show what a build prints."""
    if not probe.openmp() and sys.platform not in ("emscripten", "wasi"):
        warnings.warn(
            "softce_fast was built without OpenMP and computes on one thread; the C compiler that "
            "builds it needs omp.h and its runtime",
            RuntimeWarning,
            stacklevel=3,
        )


def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Show the version, the build of the kernels in use, OpenMP, the threads and the compiler.

    Parameters
    ----------
    mode : {"stdout", "dicts"}, default "stdout"
        Print, or return a dictionary.

    Returns
    -------
    dict or None
        The dictionary with ``mode="dicts"``.

    Raises
    ------
    ValueError
        If `mode` is something else.

    Notes
    -----
    "openmp" is enabled unless the compiler that built the package had none; then everything runs on
    one thread, and import warns.

    "isa" names the builds of the kernels: the one in use, those that this machine can run, those in
    the package. The environment variable SOFTCE_FAST_ISA chooses one at import.

    Examples
    --------
    >>> import softce_fast as sf
    >>> sorted(sf.show_config(mode="dicts"))
    ['compiler', 'isa', 'numpy', 'openmp', 'python', 'threads', 'version']
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f"mode must be 'stdout' or 'dicts', got {mode!r}")
    config = {
        "version": __version__,
        "isa": {
            "in use": _dispatch.isa,
            "available": list(_dispatch.available()),
            "built": list(probe.variants()),
        },
        "openmp": {"enabled": bool(probe.openmp()), "version": probe.openmp()},
        "threads": _threads.get_num_threads(),
        "compiler": probe.compiler(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    if mode == "dicts":
        return config
    for name, value in config.items():
        if isinstance(value, dict):
            value = ", ".join(
                f"{key}: {' '.join(item) if isinstance(item, list) else item}"
                for key, item in value.items()
            )
        print(f"{name:9} {value}")
    return None
