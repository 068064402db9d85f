# cython: language_level=3
"""What the CPU can do, what OpenMP says, which compiler was used."""

cdef extern from "cpu.h":
    bint supports_avx2()
    bint supports_avx512()

cdef extern from "probe.h":
    int openmp_version()
    int openmp_max_threads()
    int openmp_pause() nogil
    const Py_ssize_t SERIAL_SIZE
    const char *COMPILER
    const char *SOFTCE_FAST_VARIANTS


def variants():
    """Return the names of the builds in this package, best first."""
    return tuple(SOFTCE_FAST_VARIANTS.decode().split(","))


def supported(str variant):
    """Tell whether this CPU and operating system can run a build."""
    if variant == "avx512":
        return bool(supports_avx512())
    if variant == "avx2":
        return bool(supports_avx2())
    return variant == "baseline"


def openmp():
    """Return OpenMP's version as yyyymm, 0 for a serial build."""
    return openmp_version()


def max_threads():
    """Return omp_get_max_threads() of the calling thread, 1 in a serial build."""
    return openmp_max_threads()


def serial_size():
    """Return the number of elements below which no kernel would share its work."""
    return SERIAL_SIZE


def pause():
    """Give OpenMP's idle threads back; return whether the runtime could."""
    cdef int status
    with nogil:
        status = openmp_pause()
    return status == 0


def compiler():
    """Return the name and version of the C compiler."""
    return COMPILER.decode()
