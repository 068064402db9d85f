# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False
from cython.parallel cimport prange, threadid
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memset

cdef extern from "vector.h":
    ctypedef unsigned short storage     # of the arrays; vector.h knows its size
    ctypedef double real    # of the arithmetic
    void *memory_take(size_t size)
    void memory_give(void *memory)

cdef extern from "probe.h":
    int openmp_pause()

include "vector.pxi"
include "elementary.pxi"
include "rows.pxi"
include "tile.pxi"
include "engine.pxi"
include "entry.pxi"
include "pairs.pxi"
