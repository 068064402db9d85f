# cython: language_level=3
"""What the CPU can do, what OpenMP says, which compiler was used."""

cdef extern from "cpu.h":
    bint supports_avx2()
    bint supports_avx512()

cdef extern from "share.h":
    const Py_ssize_t SERIAL_SIZE

cdef extern from "team.h" nogil:
    int team_open(const void *address, int wanted)
    void team_begun(const void *address, int team)
    void teams_forget()
    void teams_prepare(size_t stack_size)

cdef extern from "probe.h":
    int openmp_version()
    int openmp_max_threads()
    int openmp_pause() nogil
    int cpus_allowed()
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


def max_threads(int quota):
    """Return how many threads the calling one may use, but for what Python was asked for.

    That is the least of omp_get_max_threads(), the CPUs it may run on, and `quota`; 1 in a serial
    build.
    """
    return max(1, min(openmp_max_threads(), cpus_allowed(), quota))


def serial_size():
    """Return the number of elements below which no kernel would share its work."""
    return SERIAL_SIZE


def pause():
    """Give OpenMP's idle threads back; return whether the runtime could."""
    cdef int status
    with nogil:
        status = openmp_pause()
        teams_forget()
    return status == 0


def prepare(size_t stack_size):
    """Tell how large the stacks of OpenMP's threads are; 0: as the system makes them."""
    teams_prepare(stack_size)


cdef int threads_ready(const void *runtime, int wanted) noexcept nogil:
    """How many threads OpenMP can run; team.h says how to go on."""
    return team_open(runtime, wanted)


cdef void threads_begun(const void *runtime, int team) noexcept nogil:
    """To be called from among the threads that were asked for."""
    team_begun(runtime, team)


def compiler():
    """Return the name and version of the C compiler."""
    return COMPILER.decode()
