/* limits.c: a library to preload, in which threads and memory run out when a test says so. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- threads: `limit_threads` beside the first one; -1: no limit ------------------------------ */

static int threads_alive = 0;
int limit_threads = -1;
int threads_refused = 0;
int thread_delay = 0; /* microseconds before each starts */

typedef struct {
    void *(*run)(void *);
    void *argument;
} Start;

static void count_end(void *unused) {
    (void)unused;
    __atomic_fetch_sub(&threads_alive, 1, __ATOMIC_SEQ_CST);
}

static void *run_counted(void *given) {
    Start start = *(Start *)given;
    void *result;
    free(given);
    pthread_cleanup_push(count_end, NULL);
    result = start.run(start.argument);
    pthread_cleanup_pop(1);
    return result;
}

int pthread_create(
    pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument) {
    static int (*create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) = NULL;
    const int alive = __atomic_add_fetch(&threads_alive, 1, __ATOMIC_SEQ_CST);
    Start *start = malloc(sizeof *start);
    int status = EAGAIN;
    usleep(thread_delay);
    if (create == NULL) *(void **)&create = dlsym(RTLD_NEXT, "pthread_create");
    if (start != NULL && (limit_threads < 0 || alive <= limit_threads)) {
        *start = (Start){run, argument};
        status = create(thread, attributes, run_counted, start);
    }
    if (status != 0) {
        __atomic_fetch_sub(&threads_alive, 1, __ATOMIC_SEQ_CST);
        __atomic_fetch_add(&threads_refused, 1, __ATOMIC_SEQ_CST);
        free(start);
    }
    return status;
}

/* ---- memory: the allocation of the calling thread that fails, from 1 on; 0: none -------------- */

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static __thread long until_failure __attribute__((tls_model("initial-exec"))) = 0;

void fail_allocation(long which) { until_failure = which; }
/* Whether it has failed. */
int allocation_failed(void) { return until_failure == 0; }

/* OpenMP's own are left alone: it ends the process, and no caller can help that. */
static int fails(const void *caller) {
    Dl_info module;
    if (until_failure <= 0) return 0;
    if (dladdr(caller, &module) && strstr(module.dli_fname, "omp")) return 0;
    return --until_failure == 0;
}
#define FAILS fails(__builtin_return_address(0))

void *malloc(size_t size) {
    if (FAILS) {
        errno = ENOMEM;
        return NULL;
    }
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size) {
    if (FAILS) {
        errno = ENOMEM;
        return NULL;
    }
    return __libc_calloc(count, size);
}

void *realloc(void *memory, size_t size) {
    if (FAILS) {
        errno = ENOMEM;
        return NULL;
    }
    return __libc_realloc(memory, size);
}

int posix_memalign(void **memory, size_t alignment, size_t size) {
    void *taken = FAILS ? NULL : __libc_memalign(alignment, size);
    if (taken == NULL) return ENOMEM;
    *memory = taken;
    return 0;
}

void *aligned_alloc(size_t alignment, size_t size) {
    return FAILS ? NULL : __libc_memalign(alignment, size);
}
