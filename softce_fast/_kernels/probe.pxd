# What the kernels need of the probe: one place that knows which threads there are.
cdef int threads_ready(const void *runtime, int wanted) noexcept nogil
cdef void threads_begun(const void *runtime, int team) noexcept nogil
