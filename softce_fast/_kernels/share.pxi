# How work is shared out among threads: the one parallel loop there is.
#
# Work is cut into tasks, and these into shares, one for each thread. A thread begins with its own,
# which its caches may still hold from the call before, and then takes what others have left.
#
# OpenMP's threads wait awake for some milliseconds, then they sleep. To wake one, or to wait for one
# whose CPU has other work, can take a thousand times as long as a small call. So a small call is
# shared out only where the one before was just now; and after one that had to wait, small calls do
# without other threads for a multiple of that time. Unless somebody has asked for threads.

cdef extern from "share.h" nogil:
    Py_ssize_t counter_take(Py_ssize_t *counter)
    int64_t clock_now()
    int64_t time_get(const int64_t *time)
    int64_t time_exchange(int64_t *time, int64_t by)

cdef enum:
    # Numbers of a task: few enough to share out evenly, enough not to notice the sharing. Small
    # problems have some tasks nevertheless.
    WORK_PER_TASK = 32768
    SMALLEST_TASK = 8192
    SMALL_TASKS = 16
    # Work, in vectors, that pays for one more thread,
    WORK_PER_THREAD = 2000
    # and for having to wait for one.
    WORK_TO_WAIT = 32768
    # Nanoseconds that threads are surely awake for after a call,
    AWAKE = 1000000
    # that they may then keep the next one waiting,
    PATIENCE = 50000
    # and how many times the wait small calls do without them.
    PAUSE = 16
    # Most shares; threads beyond that number begin in the middle of another's.
    SHARES = 64


cdef int64_t last_call = 0       # when a call could last have been shared out
cdef int64_t last_shared = 0     # when one that was had ended
cdef int64_t paused_until = 0    # when small ones may be again


ctypedef void (*Task)(const void *context, Py_ssize_t task, char *memory) noexcept nogil


cdef struct Share:
    # Tasks from `next`, which nobody has taken, to `stop`.
    Py_ssize_t next
    Py_ssize_t stop
    char[112] apart    # threads count in cache lines of their own


cdef inline Py_ssize_t task_work(Py_ssize_t work) noexcept nogil:
    """How many of that many numbers make a task."""
    return max(<Py_ssize_t>SMALLEST_TASK, min(<Py_ssize_t>WORK_PER_TASK, work // SMALL_TASKS))


cdef int threads_worth(int n_threads, Py_ssize_t work) noexcept nogil:
    """How many of n_threads that many numbers pay for; where it is negative, of -n_threads awake."""
    cdef Py_ssize_t worth = min(
        <Py_ssize_t>abs(n_threads), work // (WORK_PER_THREAD * LANES))
    cdef int64_t now
    if worth < 2:
        return 1
    if n_threads > 0:
        return <int>worth
    now = clock_now()
    if (
        (now - time_exchange(&last_call, now) > AWAKE or now < time_get(&paused_until))
        and work < WORK_TO_WAIT * LANES
    ):
        return 1
    return <int>worth


cdef void share_out(
    Task function, const void *context, Py_ssize_t tasks, int n_threads, char *memory,
    size_t per_thread,
) noexcept nogil:
    """Run all tasks; each gets the `per_thread` bytes of memory of the thread that it runs in."""
    cdef Share[SHARES] shares
    cdef int count, thread, k
    cdef int64_t begun, worked, now
    cdef Py_ssize_t task
    n_threads = <int>min(<Py_ssize_t>n_threads, tasks)
    if n_threads <= 1:
        for task in range(tasks):
            function(context, task, memory)
        return
    count = min(n_threads, <int>SHARES)
    for k in range(count):
        shares[k].next = tasks * k // count
        shares[k].stop = tasks * (k + 1) // count
    begun = clock_now()
    worked = begun
    for thread in prange(n_threads, num_threads=n_threads, schedule="static"):
        work_off(
            shares, count, thread, function, context, memory + threadid() * per_thread,
            &worked if threadid() == 0 else NULL)
    now = clock_now()
    # What others were still at when this thread had no more to do took less than what it had done.
    if (
        begun - time_exchange(&last_shared, now) < AWAKE
        and now - worked > worked - begun + PATIENCE
    ):
        time_exchange(&paused_until, now + PAUSE * (now - worked))


cdef void work_off(
    Share *shares, int count, int first, Task function, const void *context, char *memory,
    int64_t *end,
) noexcept nogil:
    """Run the tasks of a share, then those that are left of the others; note the end if asked."""
    cdef int k
    cdef Share *share
    cdef Py_ssize_t task
    for k in range(count):
        share = shares + (first + k) % count
        task = counter_take(&share.next)
        while task < share.stop:
            function(context, task, memory)
            task = counter_take(&share.next)
    if end != NULL:
        end[0] = clock_now()
