# cython: language_level=3, boundscheck=False, wraparound=False
"""Faults on purpose: tools/sanitize.py shows with them that a sanitizer sees what it is there for."""

from cython.parallel cimport prange


def overrun(const float[:] x):
    """Read one number behind the end of an array."""
    return x[x.shape[0]]


def overflow(int n):
    """Add 1 to an int."""
    return n + 1


def race(int[:] counter, int n_threads):
    """Count in several threads, without a lock."""
    cdef int i
    cdef int *count = &counter[0]
    for i in prange(100000, num_threads=n_threads, nogil=True, schedule="dynamic"):
        count[0] += 1
    return count[0]


def no_race(int n_threads):
    """Count in several threads, as OpenMP wants it."""
    cdef int i
    cdef int count = 0
    for i in prange(100000, num_threads=n_threads, nogil=True, schedule="dynamic"):
        count += 1
    return count
