/* team.h: how many threads OpenMP can be asked for.
 *
 * Where it cannot start one, or has no memory for its own needs, OpenMP ends the process: libgomp
 * says "Thread creation failed", LLVM's runtime "unable to allocate necessary resources". Limits do
 * that: RLIMIT_NPROC, RLIMIT_AS, a container's number of processes, too small an OMP_STACKSIZE. So
 * before OpenMP has to start threads, as many are started and ended here, where a failure is just a
 * number. It keeps the threads of the last region for the next one of the same thread, which then
 * costs a look at that number and nothing else. */
#ifndef SOFTCE_FAST_TEAM_H
#define SOFTCE_FAST_TEAM_H

#if defined(_OPENMP) && !defined(_WIN32)
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/syscall.h>
#endif
#include "share.h"

enum {
    /* Copies of OpenMP in the process that are told apart. */
    RUNTIMES = 8,
    /* Bytes that a region takes at most, and each of its threads besides its stack. */
    TEAM_MEMORY = 1 << 16,
    THREAD_MEMORY = 1 << 12,
    /* Bytes of a stack from which on a thread can run the kernels, and take a signal. */
    SMALLEST_STACK = 24 << 10,
    /* Nanoseconds for which no threads are started after some could not be. */
    SHORTAGE = 100000000,
};

typedef struct {
    const void *address;
    pthread_key_t team; /* of each thread: how many OpenMP keeps for it, itself included */
} Runtime;

typedef struct {
    pthread_t thread;
    pthread_mutex_t *gate;
    long id;
} Trial;

static Runtime runtimes[RUNTIMES];
static int known_runtimes = 0;
static int64_t shortage_until = 0;
/* Held from the proof that threads can be started until OpenMP has started them. */
static pthread_mutex_t starting = PTHREAD_MUTEX_INITIALIZER;
static size_t stack_size = 0; /* that OpenMP gives its threads; 0: the system's */

static Runtime *runtime_at(const void *address) {
    const int count = __atomic_load_n(&known_runtimes, __ATOMIC_ACQUIRE);
    for (int k = 0; k < count; ++k)
        if (runtimes[k].address == address) return runtimes + k;
    return NULL;
}

static void runtime_add(const void *address) {
    const int k = known_runtimes;
    if (address == NULL || k == RUNTIMES || runtime_at(address)) return;
    if (pthread_key_create(&runtimes[k].team, NULL) != 0) return;
    runtimes[k].address = address;
    __atomic_store_n(&known_runtimes, k + 1, __ATOMIC_RELEASE);
}

static int runtime_team(const Runtime *runtime) {
    return runtime ? (int)(intptr_t)pthread_getspecific(runtime->team) : 0;
}

static void *trial_run(void *given) {
    Trial *trial = given;
#if defined(__linux__)
    trial->id = syscall(SYS_gettid);
#endif
    pthread_mutex_lock(trial->gate);
    pthread_mutex_unlock(trial->gate);
    return NULL;
}

/* Wait for a thread to count no more: it does for a moment after it was joined. */
static void trial_end(Trial *trial) {
    pthread_join(trial->thread, NULL);
#if defined(__linux__)
    for (int patience = 1000; patience > 0; --patience) {
        if (syscall(SYS_tgkill, getpid(), trial->id, 0) != 0) return;
        sched_yield();
    }
#endif
}

/* How many of `wanted` threads the system runs besides the `kept` ones; -1: no memory for all. */
static int threads_startable(int wanted, int kept) {
    const size_t memory = TEAM_MEMORY + (size_t)(kept + wanted) * THREAD_MEMORY;
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    pthread_attr_t attributes;
    int count = 0;
    Trial *trials = malloc(memory);
    if (trials == NULL) return -1;
    if (wanted > 0 && pthread_attr_init(&attributes) == 0) {
        /* A little more than OpenMP takes, LLVM's some bytes more a thread: the C library keeps
         * these stacks mapped, for the next threads that they are large enough for. */
        size_t size = stack_size;
        if (size > 0 || pthread_attr_getstacksize(&attributes, &size) == 0)
            (void)pthread_attr_setstacksize(&attributes, size + size / 64);
        pthread_mutex_lock(&gate);
        for (; count < wanted; ++count) {
            trials[count].gate = &gate;
            if (pthread_create(&trials[count].thread, &attributes, trial_run, trials + count) != 0)
                break;
        }
        pthread_mutex_unlock(&gate);
        for (int k = 0; k < count; ++k) trial_end(trials + k);
        pthread_attr_destroy(&attributes);
    }
    free(trials);
    return count;
}

/* Return how many threads OpenMP can run now, `wanted` at most. Above 1, run that many and call
 * team_begun() from among them. `address`: of a function of the runtime; NULL if it keeps nothing
 * from one region to the next. */
static int team_open(const void *address, int wanted) {
    int kept = runtime_team(runtime_at(address)), more;
    if (wanted == kept || wanted <= 1) return wanted;
    if (stack_size > 0 && stack_size < SMALLEST_STACK) return 1;
    if (kept == 0) kept = 1;
    pthread_mutex_lock(&starting);
    runtime_add(address);
    more = wanted > kept ? wanted - kept : 0;
    if (more > 0 && clock_now() < __atomic_load_n(&shortage_until, __ATOMIC_RELAXED)) {
        more = 0;
        wanted = kept;
    }
    const int found = threads_startable(more, kept);
    if (found < more) {
        __atomic_store_n(&shortage_until, clock_now() + SHORTAGE, __ATOMIC_RELAXED);
        wanted = found < 0 ? 1 : kept + found / 2; /* others want some, too */
    }
    if (wanted == 1 || wanted == runtime_team(runtime_at(address)))
        pthread_mutex_unlock(&starting);
    return wanted;
}

/* Tell that all threads of a team are there. */
static void team_begun(const void *address, int team) {
    const Runtime *runtime = runtime_at(address);
    if (runtime_team(runtime) == team) return;
    if (runtime) (void)pthread_setspecific(runtime->team, (const void *)(intptr_t)team);
    pthread_mutex_unlock(&starting);
}

/* Tell that OpenMP keeps no threads for the calling one. */
static void teams_forget(void) {
    const int count = __atomic_load_n(&known_runtimes, __ATOMIC_ACQUIRE);
    for (int k = 0; k < count; ++k) (void)pthread_setspecific(runtimes[k].team, NULL);
}

static void starting_lock(void) { pthread_mutex_lock(&starting); }
static void starting_unlock(void) { pthread_mutex_unlock(&starting); }

static void forks_prepare(void) {
    /* A child must not wait for a thread that is not in it. */
    (void)pthread_atfork(starting_lock, starting_unlock, starting_unlock);
}

/* Say how large the stacks of OpenMP's threads are. A module may be imported more than once. */
static void teams_prepare(size_t size) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    stack_size = size;
    (void)pthread_once(&once, forks_prepare);
}
#else
static int team_open(const void *address, int wanted) {
    (void)address;
    return wanted;
}
static void team_begun(const void *address, int team) {
    (void)address;
    (void)team;
}
static void teams_forget(void) {}
static void teams_prepare(size_t size) { (void)size; }
#endif

#endif
