/* probe.h: what OpenMP says, which compiler was used. */
#ifndef SOFTCE_FAST_PROBE_H
#define SOFTCE_FAST_PROBE_H

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

#if defined(__GNUC__)
#define PROBE static __attribute__((unused))
#else
#define PROBE static
#endif

#ifdef _OPENMP
PROBE int openmp_version(void) { return _OPENMP; }
PROBE int openmp_max_threads(void) { return omp_get_max_threads(); }
/* How many CPUs the calling thread may run on. */
PROBE int cpus_allowed(void) {
#if defined(CPU_COUNT)
    /* Asked directly: a runtime may know only what it was started with. */
    cpu_set_t cpus;
    if (sched_getaffinity(0, sizeof cpus, &cpus) == 0) return CPU_COUNT(&cpus);
#endif
    return omp_get_num_procs();
}
/* Give OpenMP's idle threads back, so that a process forked now does not wait for them. */
PROBE int openmp_pause(void) {
/* GCC has it since version 9, though it declares an older OpenMP. */
#if _OPENMP >= 201811 || (defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 9)
    return omp_pause_resource_all(omp_pause_soft);
#else
    return -1;
#endif
}
#else
PROBE int openmp_version(void) { return 0; }
PROBE int openmp_max_threads(void) { return 1; }
PROBE int cpus_allowed(void) { return 1; }
PROBE int openmp_pause(void) { return 0; }
#endif

#if defined(__clang__)
#define COMPILER "Clang " __clang_version__
#elif defined(__GNUC__)
#define COMPILER "GCC " __VERSION__
#else
#define COMPILER "unknown"
#endif

#endif
