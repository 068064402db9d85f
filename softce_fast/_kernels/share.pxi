# How work is shared out among threads: the one parallel loop there is.
#
# Work is cut into tasks, and these into shares, one for each thread. A thread begins with its own,
# which its caches may still hold from the call before, and then takes what others have left.
#
# OpenMP's threads wait awake for some milliseconds, then they sleep. To wake one, or to wait for
# one whose CPU has other work, can take a hundred times as long as a small call; and while they are
# awake they take the CPUs from what the program does next: from the threads of a matrix product,
# which then do the same to ours. So calls that come one right after the other are shared out over
# as many threads as there are CPUs, which stay awake in between. Where something else happens
# between calls, small ones do without other threads, and larger ones take one more, which lets all
# sleep at once. After a call that had to wait, calls do without other threads for a multiple of
# that time: small ones, and those that one thread has done before such a wait is over. Unless the
# program has set a number of threads.
# What was just now is known for each module, not for each of Python's threads: it is a guess.

from softce_fast._kernels.probe cimport threads_begun, threads_ready

cdef extern from "probe.h" nogil:
    const void *openmp_runtime()
    int threads_to_sleep(int count)

cdef extern from "share.h" nogil:
    Py_ssize_t counter_take(Py_ssize_t *counter)
    int64_t clock_now()
    int64_t time_get(const int64_t *time)
    int64_t time_exchange(int64_t *time, int64_t by)
    const Py_ssize_t WORK_PER_THREAD    # in vectors

cdef enum:
    # Numbers of a task: few enough to share out evenly, enough not to notice the sharing. Small
    # problems have some tasks nevertheless.
    WORK_PER_TASK = 32768
    SMALLEST_TASK = 8192
    SMALL_TASKS = 16
    # Work, in vectors, that pays for having to wait for another thread.
    WORK_TO_WAIT = 32768
    # Nanoseconds between calls that come one right after the other,
    BETWEEN_CALLS = 200000
    # and how many of them say that more will come: to start or to end a thread takes time.
    CALLS_IN_A_ROW = 4
    # Nanoseconds that threads usually stay awake for after such calls,
    AWAKE = 5000000
    # that the next one may have to wait for them,
    PATIENCE = 50000
    # how many times its wait small calls then do without them,
    PAUSE = 16
    # and larger ones, which lose more where nobody is to be waited for any more,
    SHORT_PAUSE = 4
    # and what counts of it at most: who was stopped meanwhile has waited for hours.
    LONGEST_WAIT = 20000000
    # Most shares; threads beyond that number begin in the middle of another's.
    SHARES = 64


cdef int64_t last_call = 0       # when one began or ended that could be shared out
cdef int64_t last_shared = 0     # when one ended that was
cdef int64_t calls_in_a_row = 0  # so many came right after the one before
cdef int64_t paused_until = 0    # when small ones may be again,
cdef int64_t briefly_until = 0   # and larger ones up to that work:
cdef int64_t paused_work = 0
cdef int64_t last_work = 0       # numbers of the last call that could be shared out


cdef struct Stage:
    # Tasks that may run at the same time; after them come those of the next stage.
    Task function
    Py_ssize_t tasks


cdef struct Share:
    # Tasks from `next`, which nobody has taken, to `stop`.
    Py_ssize_t next
    Py_ssize_t stop
    char[112] apart    # threads count in cache lines of their own


cdef inline Py_ssize_t task_work(Py_ssize_t work, int lanes) noexcept nogil:
    """How many of that many numbers make a task: whole vectors."""
    return max(<Py_ssize_t>SMALLEST_TASK, min(
        <Py_ssize_t>WORK_PER_TASK, work // SMALL_TASKS // lanes * lanes))


cdef inline Py_ssize_t task_count(Py_ssize_t size, Py_ssize_t per_task) noexcept nogil:
    """How many tasks `size` rows or numbers make, the last of which may be smaller."""
    return (size + per_task - 1) // per_task


cdef inline int threads_worth(int n_threads, Py_ssize_t work, int lanes) noexcept nogil:
    """How many of n_threads that many numbers pay for."""
    return <int>max(1, min(<Py_ssize_t>n_threads, work // (WORK_PER_THREAD * lanes)))


cdef inline bint parts_pay(Py_ssize_t rows, Py_ssize_t parts, int n_threads) noexcept nogil:
    """Whether to share out the parts of rows: where whole rows are too few."""
    return parts > 1 and n_threads > 1 and rows < 4 * n_threads


cdef int threads_for_call(int n_threads, Py_ssize_t work, int lanes) noexcept nogil:
    """How many threads a call on that many numbers uses, of those that it may use.

    That number is negative where nobody asked for threads. A small call then does without those
    that it would have to wait for, and a larger one may use one more. To be asked once for a call,
    since the answer depends on when it was asked before.
    """
    cdef int count = threads_worth(abs(n_threads), work, lanes)
    cdef int64_t now, row
    if n_threads > 0 or count == 1:
        return count
    now = clock_now()
    row = time_get(&calls_in_a_row) + 1
    if now - time_exchange(&last_call, now) > BETWEEN_CALLS:
        row = 0
    time_exchange(&calls_in_a_row, min(row, <int64_t>CALLS_IN_A_ROW))
    time_exchange(&last_work, work)
    if work < time_get(&paused_work) and now < time_get(&briefly_until):
        return 1
    if work < WORK_TO_WAIT * lanes:
        return 1 if row < CALLS_IN_A_ROW or now < time_get(&paused_until) else count
    return threads_to_sleep(count) if row < CALLS_IN_A_ROW else count


cdef void share_out(
    const Stage *stages, int count, const void *context, int n_threads, char *memory,
    size_t per_thread, bint brief,
) noexcept:
    """Run all tasks of all stages, without the GIL unless they are `brief` and for one thread.

    Each gets the `per_thread` bytes of memory of the thread that it runs in.
    """
    cdef Share *shares = NULL    # not on the stack, which may be small
    cdef const void *runtime
    cdef int shared, stage, team
    cdef int64_t begun, worked, waited, ended
    if brief and n_threads == 1:
        # Over before another thread could take the GIL.
        for stage in range(count):
            run_stage(stages + stage, context, memory)
        return
    if n_threads > 1:
        shares = <Share *>memory_take(SHARES * sizeof(Share))
    with nogil:
        runtime = openmp_runtime()
        for stage in range(count):
            team = 1
            if shares != NULL and stages[stage].tasks > 1:
                team = threads_ready(runtime, n_threads)
            if team == 1:
                run_stage(stages + stage, context, memory)
                time_exchange(&last_call, clock_now())
                continue
            shared = <int>min(<Py_ssize_t>min(team, <int>SHARES), stages[stage].tasks)
            shares_fill(shares, shared, stages[stage].tasks)
            begun = clock_now()
            worked = 0
            with parallel(num_threads=team):
                if threadid() == 0:
                    threads_begun(runtime, team)
                work_off(
                    shares, shared, threadid(), stages[stage].function, context,
                    memory + threadid() * per_thread, &worked if threadid() == 0 else NULL)
            ended = clock_now()
            waited = ended - begun - worked
            # Others were at their last tasks when this thread had no more: less than it had done.
            if (
                begun - time_exchange(&last_shared, ended) < AWAKE
                and waited > worked + PATIENCE
            ):
                calls_pause(ended, worked, min(waited, <int64_t>LONGEST_WAIT), team)
            time_exchange(&last_call, ended)
    memory_give(shares)


cdef inline void calls_pause(
    int64_t ended, int64_t worked, int64_t waited, int team
) noexcept nogil:
    """Have calls do without other threads that are done sooner so than after such a wait."""
    cdef double of_one_thread = <double>worked * team
    time_exchange(&paused_until, ended + PAUSE * waited)
    time_exchange(&briefly_until, ended + SHORT_PAUSE * waited)
    time_exchange(&paused_work, <int64_t>(
        <double>time_get(&last_work) * (<double>waited / max(1.0, of_one_thread))))


cdef inline void share_out_tasks(
    Task function, Py_ssize_t tasks, const void *context, int n_threads, char *memory,
    size_t per_thread, bint brief,
) noexcept:
    """share_out() of a single stage."""
    cdef Stage stage
    stage.function = function
    stage.tasks = tasks
    share_out(
        &stage, 1, context, <int>max(1, min(<Py_ssize_t>n_threads, tasks)), memory, per_thread,
        brief)


cdef void run_stage(const Stage *stage, const void *context, char *memory) noexcept nogil:
    cdef Py_ssize_t task
    for task in range(stage.tasks):
        stage.function(context, task, memory)


cdef void shares_fill(Share *shares, int count, Py_ssize_t tasks) noexcept nogil:
    cdef int k
    for k in range(count):
        shares[k].next = tasks * k // count
        shares[k].stop = tasks * (k + 1) // count


cdef void work_off(
    Share *shares, int count, int first, Task function, const void *context, char *memory,
    int64_t *worked,
) noexcept nogil:
    """Run the tasks of a share, then what is left of others; add up how long if asked to."""
    cdef int64_t begun = clock_now()
    cdef int k
    cdef Share *share
    cdef Py_ssize_t task
    for k in range(count):
        share = shares + (first + k) % count
        task = counter_take(&share.next)
        while task < share.stop:
            function(context, task, memory)
            task = counter_take(&share.next)
    if worked != NULL:
        worked[0] += clock_now() - begun
