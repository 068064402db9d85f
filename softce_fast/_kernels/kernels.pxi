# All of a kernel module, for storage types of any kind.
from cpython.float cimport PyFloat_AS_DOUBLE
from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.ref cimport Py_INCREF, PyObject
from cython.parallel cimport prange, threadid
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport abs
from libc.string cimport memcpy, memset
from numpy cimport import_array, ndarray

cdef extern from "vector.h":
    ctypedef double real    # of the arithmetic; vector.h knows its size
    void *memory_take(size_t size)
    void memory_give(void *memory)

cdef extern from "probe.h":
    int openmp_pause()

include "vector.pxi"
include "elementary.pxi"
include "rows.pxi"
include "tile.pxi"
include "engine.pxi"
include "share.pxi"
include "entry.pxi"
include "pairs.pxi"
include "ordinary.pxi"

import_array()
