/* memory.h: memory on a cache line's boundary. */
#ifndef SOFTCE_FAST_MEMORY_H
#define SOFTCE_FAST_MEMORY_H

#include <stddef.h>
#include <stdlib.h>
#if defined(_WIN32)
#include <malloc.h>
#endif

/* Small calls need not ask for theirs: it is there, for one at a time. Not on the stack, which may
 * be small. */
enum { SMALL_MEMORY = 49152 };
static struct {
    char bytes[SMALL_MEMORY] __attribute__((aligned(64)));
    int taken;
} small;

/* NULL if there is none; memory_give() gives it back. */
static inline void *memory_take(size_t size) {
    if (size <= SMALL_MEMORY && !__atomic_exchange_n(&small.taken, 1, __ATOMIC_ACQUIRE))
        return small.bytes;
#if defined(_WIN32)
    return _aligned_malloc(size, 64);
#else
    void *memory = NULL;
    return posix_memalign(&memory, 64, size) == 0 ? memory : NULL;
#endif
}

static inline void memory_give(void *memory) {
    if (memory == small.bytes) {
        __atomic_store_n(&small.taken, 0, __ATOMIC_RELEASE);
        return;
    }
#if defined(_WIN32)
    _aligned_free(memory);
#else
    free(memory);
#endif
}

#endif
