"""How many threads a call may use, and what happens around a fork.

No setting of OpenMP is ever changed: kernels are told their number of threads call by call.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from . import _checks
from ._kernels import execute, probe

# Elements below which the number of threads is not looked up.
_SERIAL_SIZE = probe.serial_size()
_OPENMP = bool(probe.openmp())


# All the state there is, with that in _dispatch.py and _fresh_outputs.py. It needs no lock, with a
# GIL or without: each name is bound in one step, and what two threads may find out at once is the
# same.

# What num_threads() asked for in this context: a list of one number for each body that is open, the
# last of which counts. Each takes its own away in the end, so those of generators may overlap.
_asked: ContextVar[tuple[list[int], ...]] = ContextVar("softce_fast.num_threads", default=())
_requested: int | None = None  # what set_num_threads() asked for
_quota: int | None = None  # of the control group; None: not read yet


def set_num_threads(n: int) -> None:
    """Set how many threads every later call may use, in all Python threads.

    Parameters
    ----------
    n : int
        At least 1. More than the CPUs at hand is allowed, but of no use; more than 1024 count as
        1024.

    Raises
    ------
    ValueError
        If `n` is below 1.
    TypeError
        If `n` is not an integer.

    Notes
    -----
    Results do not depend on the number of threads. Very small calls use one thread anyway, and no
    other library's setting is changed.

    Examples
    --------
    >>> import softce_fast as sf
    >>> before = sf.get_num_threads()
    >>> sf.set_num_threads(1)
    >>> sf.get_num_threads()
    1
    >>> sf.set_num_threads(before)
    """
    global _requested
    _requested = _checks.check_num_threads(n)


def get_num_threads() -> int:
    """Return how many threads a large call from this Python thread would use now.

    Returns
    -------
    int
        What :func:`num_threads` or :func:`set_num_threads` asked for. Without either, the least of
        ``omp_get_max_threads()`` (which heeds OMP_NUM_THREADS and threadpoolctl), the CPUs of the
        thread's affinity mask, and the CPU quota of the control group. 1 in a serial build.

    Notes
    -----
    A call takes fewer where there is too little work to share. Unless a number of threads was set
    with :func:`set_num_threads` or :func:`num_threads`, calls that something else comes between
    leave the CPUs to that: those of less than some tenths of a millisecond use one thread, since
    others sleep by then, and larger ones one more than there are CPUs, since GNU's OpenMP lets idle
    threads sleep at once then. Small calls also use one for a while after a call that had to wait
    for others: where the CPUs have other work these can take milliseconds.

    Examples
    --------
    >>> import softce_fast as sf
    >>> sf.get_num_threads() >= 1
    True
    """
    return abs(_count())


def _count() -> int:
    """Return how many threads a large call may use; negative if none were asked for."""
    if not _OPENMP:
        return 1
    asked = _asked.get()
    if asked:
        return asked[-1][0]
    return _requested or -probe.max_threads(_group_quota())


@contextmanager
def num_threads(n: int) -> Iterator[None]:
    """Use up to `n` threads for the calls in the body, in this context alone.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    ValueError
        If `n` is below 1.
    TypeError
        If `n` is not an integer.

    Notes
    -----
    It goes before :func:`set_num_threads`. Other Python threads and other asyncio tasks are not
    affected: as with :class:`numpy.errstate`, the number belongs to the context (module
    contextvars). A generator shares the context of the code that runs it.

    Beside processes that keep the CPUs busy, a call on several threads waits for the last of them
    to get its turn: ``num_threads(1)`` is steadier there, and often faster.

    Examples
    --------
    >>> import softce_fast as sf
    >>> with sf.num_threads(1):
    ...     sf.get_num_threads()
    1
    """
    own = [_checks.check_num_threads(n)]
    _asked.set((*_asked.get(), own))
    try:
        yield
    finally:
        _asked.set(tuple(other for other in _asked.get() if other is not own))


def threads_for(size: int) -> int:
    """Return how many threads a call on `size` elements may use; negative if none were asked for.

    A small call then does without those that it would have to wait for (share.pxi).
    """
    return 1 if size < _SERIAL_SIZE else _count()


def _group_quota() -> int:
    global _quota
    if _quota is None:
        _quota = read_group_quota(Path("/"))
    return _quota


def read_group_quota(root: Path) -> int:
    """Return the CPUs that the control group may use, rounded up; a large number for no limit.

    Both layouts are read below `root`, version 2 (``cpu.max``) and version 1
    (``cpu.cfs_quota_us``), in the group of this process and in every group above it.
    """
    limits: list[float] = [1 << 30]
    for folder in _group_folders(root):
        limits += _quota_of(folder)
    return max(1, math.ceil(min(limits)))


def _group_folders(root: Path) -> Iterator[Path]:
    try:
        # Names of groups are paths: any bytes.
        text = (root / "proc/self/cgroup").read_text(errors="surrogateescape")
    except OSError:
        return
    for line in text.splitlines():
        _, separator, rest = line.partition(":")
        controllers, second_separator, path = rest.partition(":")
        if not (separator and second_separator):
            continue
        if controllers == "":
            mount = root / "sys/fs/cgroup"
        elif "cpu" in controllers.split(","):
            mount = root / "sys/fs/cgroup/cpu"
        else:
            continue
        # Inside a container the path may be the host's: the mount point is then the group.
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            yield mount / folder
        yield mount


def _quota_of(folder: Path) -> list[float]:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return [] if quota == "max" or int(quota) <= 0 else [int(quota) / int(period)]
    except (OSError, ValueError, ZeroDivisionError):
        return []


def _before_fork() -> None:
    # A child inherits none of OpenMP's threads but would wait for them. Given back before the
    # fork, they are started anew when needed, on both sides. Both modules are asked: beside another
    # copy of OpenMP they need not be bound to the same one.
    probe.pause()
    execute.pause()


def _after_fork_in_child() -> None:
    global _quota
    _quota = None


def stack_size(environment: Mapping[str, str]) -> int:
    """Return the bytes that OpenMP gives to the stack of a thread; 0 if nobody chose any."""
    for name, default_unit in (("OMP_STACKSIZE", "k"), ("GOMP_STACKSIZE", "k"),
                               ("KMP_STACKSIZE", "b")):  # fmt: skip
        match = re.fullmatch(r"\s*(\d{1,12})\s*([bkmg]?)\s*", environment.get(name, "").lower())
        if match:
            return int(match[1]) << 10 * "bkmg".index(match[2] or default_unit)
    return 0


def _start_openmp() -> None:
    # LLVM's runtime renews itself in a forked child, unless this variable, read once at its start,
    # says no: which scikit-learn tells every runtime, for the sake of one of Intel's.
    renewal = os.environ.pop("KMP_INIT_AT_FORK", None)
    probe.max_threads(1)
    if renewal is not None:
        os.environ["KMP_INIT_AT_FORK"] = renewal
    probe.prepare(stack_size(os.environ))


_start_openmp()
if hasattr(os, "register_at_fork") and probe.openmp():
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
