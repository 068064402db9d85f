"""What the adapters to other libraries share: the error where a library is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


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
