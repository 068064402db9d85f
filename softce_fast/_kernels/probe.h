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
#if defined(CPU_COUNT)
/* How many CPUs OpenMP's threads are spread over, where it has bound the calling one to its share
 * of them (OMP_PROC_BIND, OMP_PLACES, GOMP_CPU_AFFINITY); else 0. */
PROBE int cpus_of_places(const cpu_set_t *allowed) {
#if _OPENMP >= 201511
    const int own = omp_get_place_num(), binding = omp_get_proc_bind();
    const int to_own = binding == omp_proc_bind_master;
    cpu_set_t places, place;
    if (binding == omp_proc_bind_false || own < 0) return 0;
    CPU_ZERO(&places);
    for (int k = to_own ? own : 0; k < (to_own ? own + 1 : omp_get_num_places()); ++k) {
        int cpus[CPU_SETSIZE];
        const int count = omp_get_place_num_procs(k);
        if (count > CPU_SETSIZE) return 0;
        omp_get_place_proc_ids(k, cpus);
        CPU_ZERO(&place);
        for (int i = 0; i < count; ++i) CPU_SET(cpus[i], &place);
        /* Somebody else has bound the thread since, or another copy of OpenMP. */
        if (k == own && !CPU_EQUAL(&place, allowed)) return 0;
        CPU_OR(&places, &places, &place);
    }
    return CPU_COUNT(&places);
#else
    return 0;
#endif
}
#endif
/* How many CPUs the calling thread and those that it starts may run on. */
PROBE int cpus_allowed(void) {
#if defined(CPU_COUNT)
    /* Asked directly: a runtime may know only what it was started with. */
    cpu_set_t cpus;
    if (sched_getaffinity(0, sizeof cpus, &cpus) == 0) {
        const int spread = cpus_of_places(&cpus);
        return spread > 0 ? spread : CPU_COUNT(&cpus);
    }
#endif
    return omp_get_num_procs();
}
/* How many threads at least let idle ones sleep at once, instead of waiting awake for more work: with
 * GNU's runtime, one more than there are CPUs (see GOMP_SPINCOUNT in its manual). `count` itself where
 * that is less, or where threads are bound and one more would have no place of its own. */
PROBE int threads_to_sleep(int count) {
#if defined(__GNUC__) && !defined(__clang__)
    if (omp_get_proc_bind() == omp_proc_bind_false && count == cpus_allowed()) return count + 1;
#endif
    return count;
}
/* A function that tells this copy of OpenMP from others in the process; NULL within somebody's
 * parallel region, where what is started for another one ends with it. */
PROBE const void *openmp_runtime(void) {
    return omp_in_parallel() ? NULL : (const void *)omp_get_max_threads;
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
PROBE int threads_to_sleep(int count) { return count; }
PROBE const void *openmp_runtime(void) { return NULL; }
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
