/* share.h: what sharing work out among threads needs besides OpenMP. */
#ifndef SOFTCE_FAST_SHARE_H
#define SOFTCE_FAST_SHARE_H

#include <stddef.h>
#include <stdint.h>
#include <time.h>

#define SHARE static inline __attribute__((unused))

enum {
    /* Work, in vectors, that pays for one more thread. */
    WORK_PER_THREAD = 1000,
    /* Numbers below which no kernel shares its work: two threads' worth of the vectors that have
     * fewest. */
    SERIAL_SIZE = 2 * WORK_PER_THREAD * 8
};

/* What a counter that threads have in common was, and count on. */
SHARE ptrdiff_t counter_take(ptrdiff_t *counter) {
    return __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
}

/* Raise a flag that other threads may raise as well. */
SHARE void flag_raise(char *flag) {
    __atomic_store_n(flag, 1, __ATOMIC_RELAXED);
}

/* A clock, in nanoseconds; it may jump where the system has no better one. */
SHARE int64_t clock_now(void) {
    struct timespec now;
#if defined(CLOCK_MONOTONIC)
    clock_gettime(CLOCK_MONOTONIC, &now);
#else
    timespec_get(&now, TIME_UTC);
#endif
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* A time that threads have in common. */
SHARE int64_t time_get(const int64_t *time) {
    return __atomic_load_n(time, __ATOMIC_RELAXED);
}

SHARE int64_t time_exchange(int64_t *time, int64_t by) {
    return __atomic_exchange_n(time, by, __ATOMIC_RELAXED);
}

#endif
