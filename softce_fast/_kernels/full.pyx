# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False
# The kernels of float32 and float64; vector.h knows which.
cdef extern from "vector.h":
    ctypedef double storage

include "kernels.pxi"
