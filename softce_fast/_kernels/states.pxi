# States of rows put together: see operations/shards.pxi for what they are, and who reads them.
#
# Uses problem.pxd, layout.pxi, share.pxi.

# What all states of a row have in common, or else cannot be merged, in the order of their checks.
COMMON = ("temperature", "softcap", "labelled", "target")

cdef enum:
    # Their places, and that of a target whose class was found twice.
    TEMPERATURE
    SOFTCAP
    LABELLED
    TARGET
    FOUND_TWICE
    ROWS_MERGED = 256      # rows of a task
    MOST_SUMS = 2          # fields of sums


cdef struct States:
    # An array of states.
    char *rows
    Py_ssize_t row_stride
    Py_ssize_t[MOST_SUMS] place    # of each field of sums, in a row,
    Py_ssize_t[MOST_SUMS] size     # and its bytes


cdef struct Merge:
    States *parts          # the last is the whole
    int count              # of the others
    int sums
    Py_ssize_t rows
    int *differ            # of each task, bits


cdef int states_open(States *states, ndarray array, tuple sums) except -1:
    cdef int k
    states.rows = PyArray_BYTES(array)
    states.row_stride = PyArray_STRIDE(array, 0)
    fields = array.dtype.fields
    for k in range(len(sums)):
        record, states.place[k] = fields[sums[k]][:2]
        states.size[k] = record.itemsize
    return 0


def merge_states(tuple states not None, ndarray whole not None, tuple sums not None, threads_for):
    """Merge arrays of states into `whole`, their `sums` side by side; all have one axis.

    Return 0, or one more than the place in COMMON of what differs, or of what follows it where two
    have found the class of one target.
    """
    cdef Merge merge
    cdef Py_ssize_t work, tasks, task
    cdef Py_ssize_t[MOST_SUMS] left
    cdef int k, j, differ = 0
    merge.count = <int>len(states)
    merge.sums = <int>len(sums)
    merge.rows = PyArray_DIM(whole, 0)
    tasks = task_count(merge.rows, ROWS_MERGED)
    merge.parts = <States *>aligned_memory(
        (merge.count + 1) * sizeof(States) + tasks * sizeof(int))
    merge.differ = <int *>(merge.parts + merge.count + 1)
    try:
        states_open(merge.parts + merge.count, whole, sums)
        for j in range(merge.sums):
            left[j] = merge.parts[merge.count].size[j]
        for k in range(merge.count):
            states_open(merge.parts + k, states[k], sums)
            for j in range(merge.sums):
                left[j] -= merge.parts[k].size[j]
                if left[j] < 0:
                    return LABELLED + 1    # these have more to say of each chunk
        work = merge.rows * PyArray_ITEMSIZE(whole) // <Py_ssize_t>sizeof(float)
        share_out_tasks(
            merge_task, tasks, &merge, threads_of(work, tables[0].lanes, threads_for), NULL, 0,
            work <= WORK_PER_TASK)
        for task in range(tasks):
            differ |= merge.differ[task]
    finally:
        memory_give(merge.parts)
    return (differ & -differ).bit_length()


cdef void merge_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    cdef const Merge *merge = <const Merge *>context
    cdef Py_ssize_t row, start = task * ROWS_MERGED
    merge.differ[task] = 0
    for row in range(start, min(start + ROWS_MERGED, merge.rows)):
        merge.differ[task] |= row_merge(merge, row)


cdef inline int row_merge(const Merge *merge, Py_ssize_t row) noexcept nogil:
    """Merge the states of one row; return what differs, bits."""
    cdef const States *whole = merge.parts + merge.count
    cdef const States *part
    cdef char *to = whole.rows + row * whole.row_stride
    cdef const char *start
    cdef Py_ssize_t[MOST_SUMS] place
    cdef int k, j, differ = 0
    cdef RowHead all_, head
    for j in range(merge.sums):
        place[j] = whole.place[j]
    for k in range(merge.count):
        part = merge.parts + k
        start = part.rows + row * part.row_stride
        memcpy(&head, start, sizeof(RowHead))
        if k == 0:
            all_ = head
        else:
            differ |= head_merge(&all_, &head)
        for j in range(merge.sums):
            memcpy(to + place[j], start + part.place[j], part.size[j])
            place[j] += part.size[j]
    memcpy(to, &all_, sizeof(RowHead))
    return differ


cdef inline int head_merge(RowHead *all_, const RowHead *head) noexcept nogil:
    """Add what states of other classes begin with; return what differs, bits."""
    cdef int differ = (
        (head.temperature != all_.temperature) << TEMPERATURE
        | (head.softcap != all_.softcap) << SOFTCAP
        | (head.labelled != all_.labelled) << LABELLED
        | (head.target != all_.target) << TARGET
        | (head.found & all_.found) << FOUND_TWICE)
    all_.classes += head.classes
    all_.allowed += head.allowed
    if head.found:
        all_.logit = head.logit
        all_.weight = head.weight
    all_.found |= head.found
    all_.weighted |= head.weighted
    all_.has_nan |= head.has_nan
    return differ
