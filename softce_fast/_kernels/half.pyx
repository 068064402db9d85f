# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False
# The kernels of float16 and bfloat16, which are taken as integers; vector.h knows which.
cdef extern from "vector.h":
    ctypedef unsigned short storage

include "kernels.pxi"
