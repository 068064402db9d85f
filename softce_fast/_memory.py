"""Fresh arrays for results.

The first touch of a page costs more than computing what is written to it. So the memory of a large
result, once nobody holds it any more, is kept for the next one of its size: two blocks at most,
which is what a loop needs that binds each result to the same name. The system is told that it may
take the pages back whenever it wants some (MADV_FREE); it then hands out zeros, and nothing else
changes.
"""

from __future__ import annotations

import math
import mmap
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Bytes from which on a result's memory is kept. NumPy itself keeps what is much smaller.
SMALLEST_BLOCK = 1 << 24
LARGEST_BLOCK = 1 << 30
MOST_BLOCKS = 2

_HUGE_PAGE = 1 << 21
_UNUSED = getattr(mmap, "MADV_FREE", 0)
_IS_SUPPORTED = hasattr(mmap, "MADV_FREE") and hasattr(mmap, "MAP_ANONYMOUS")

# Threads share it; appending to a list and taking from it need no lock.
_free: list[mmap.mmap] = []


class _Lease:
    """The memory of one array, which holds this object as its base and so decides how long."""

    def __init__(self, block: mmap.mmap, shape: tuple[int, ...]) -> None:
        self.block = block
        address = np.frombuffer(block, np.uint8).ctypes.data
        self.__array_interface__ = {
            "version": 3, "typestr": "|u1", "shape": shape, "data": (address, False),
        }  # fmt: skip

    # At exit the module's own names may be gone before an array is.
    def __del__(
        self, free: list[mmap.mmap] = _free, most: int = MOST_BLOCKS, advice: int = _UNUSED
    ) -> None:
        if len(free) < most:
            self.block.madvise(advice)
            free.append(self.block)


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an array like that of numpy.empty."""
    size = math.prod(shape) * dtype.itemsize
    if not SMALLEST_BLOCK <= size <= LARGEST_BLOCK or not _IS_SUPPORTED:
        return np.empty(shape, dtype)
    try:
        lease = _Lease(_block(-(-size // _HUGE_PAGE) * _HUGE_PAGE), (size,))
    except (OSError, ValueError):
        return np.empty(shape, dtype)
    return np.asarray(lease).view(dtype).reshape(shape)


def _block(size: int) -> mmap.mmap:
    """Return a kept block of that size, or a new one; drop those of other sizes."""
    while _free:
        try:
            block = _free.pop()
        except IndexError:  # another thread was quicker
            break
        if len(block) == size:
            return block
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    return block


if hasattr(os, "register_at_fork"):
    # A child would copy each page that it writes to: new ones are cheaper.
    os.register_at_fork(after_in_child=_free.clear)
