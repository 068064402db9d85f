"""Fresh arrays for results.

The first touch of a page costs more than computing what is written to it. So the memory of a large
result, once nobody holds it any more, is kept for the next one of its size: two blocks at most,
which is what a loop needs that binds each result to the same name. The system is told that it may
take the pages back whenever it wants some (MADV_FREE); it then hands out zeros, and nothing else
changes. Where it will not be told (memory that is locked, a sandbox), nothing is kept.
"""

from __future__ import annotations

import math
import mmap
import os
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Bytes from which on a result's memory is kept. NumPy itself keeps what is much smaller.
SMALLEST_BLOCK = 1 << 24
LARGEST_BLOCK = 1 << 30
MOST_BLOCKS = 2

_HUGE_PAGE = 1 << 21


class _Store:
    """The blocks that are kept. Threads share it; each of its steps is whole without a lock."""

    def __init__(self) -> None:
        self.blocks: deque[mmap.mmap] = deque(maxlen=MOST_BLOCKS)  # one more drops the oldest
        self.advice: int | None = getattr(mmap, "MADV_FREE", None)  # None: keeps nothing
        if not hasattr(mmap, "MAP_ANONYMOUS"):
            self.advice = None

    def take(self, size: int) -> mmap.mmap | None:
        """Return a block of that size if there is one; drop those of other sizes."""
        while self.blocks:
            try:
                block = self.blocks.pop()
            except IndexError:  # another thread was quicker
                break
            if len(block) == size:
                return block
        return None

    def give(self, block: mmap.mmap) -> None:
        """Keep a block, or drop it and keep nothing from now on if its pages cannot be freed."""
        if self.advice is None:
            return
        try:
            block.madvise(self.advice)
        except OSError:
            self.advice = None
            self.blocks.clear()
        else:
            self.blocks.append(block)


_store = _Store()


class _Lease:
    """The memory of one array, which holds this object as its base and so decides how long."""

    def __init__(self, block: mmap.mmap, shape: tuple[int, ...]) -> None:
        self.block = block
        address = np.frombuffer(block, np.uint8).ctypes.data
        self.__array_interface__ = {
            "version": 3, "typestr": "|u1", "shape": shape, "data": (address, False),
        }  # fmt: skip

    # At exit the module's own names may be gone before an array is.
    def __del__(self, store: _Store = _store) -> None:
        store.give(self.block)


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an array like that of numpy.empty."""
    size = math.prod(shape) * dtype.itemsize
    if not SMALLEST_BLOCK <= size <= LARGEST_BLOCK or _store.advice is None:
        return np.empty(shape, dtype)
    try:
        lease = _Lease(_block(-(-size // _HUGE_PAGE) * _HUGE_PAGE), (size,))
    except (OSError, ValueError):
        return np.empty(shape, dtype)
    return np.asarray(lease).view(dtype).reshape(shape)


def _block(size: int) -> mmap.mmap:
    """Return a kept block of that size, or a new one."""
    block = _store.take(size)
    if block is None:
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            block.madvise(mmap.MADV_HUGEPAGE)
    return block


if hasattr(os, "register_at_fork"):
    # A child would copy each page that it writes to: new ones are cheaper.
    os.register_at_fork(after_in_child=_store.blocks.clear)
