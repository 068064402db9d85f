"""What the adapters share: the error where a library is missing, and its number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from ._threads import get_num_threads, num_threads


@contextmanager
def requires(libraries: str, *, extra: str) -> Iterator[None]:
    """Turn a failing import in the body into an error that says what to install."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"softce_fast.{extra} needs {libraries}: pip install 'softce_fast[{extra}]' ({error})",
            name=error.name,
        ) from error


def at_most(threads: int) -> AbstractContextManager[None]:
    """Use no more threads in the body than a library says.

    Where it says no less than would be used anyway, that stays unasked for: small calls then do not
    wait for threads whose CPUs the library's own are spinning on.
    """
    return num_threads(threads) if threads < get_num_threads() else nullcontext()
