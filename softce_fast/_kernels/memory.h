/* memory.h: memory on a cache line's boundary. */
#ifndef SOFTCE_FAST_MEMORY_H
#define SOFTCE_FAST_MEMORY_H

#include <stddef.h>
#include <stdlib.h>
#if defined(_WIN32)
#include <malloc.h>
#endif

/* NULL if there is none; memory_give() gives it back. */
static inline void *memory_take(size_t size) {
#if defined(_WIN32)
    return _aligned_malloc(size, 64);
#else
    void *memory = NULL;
    return posix_memalign(&memory, 64, size) == 0 ? memory : NULL;
#endif
}

static inline void memory_give(void *memory) {
#if defined(_WIN32)
    _aligned_free(memory);
#else
    free(memory);
#endif
}

#endif
