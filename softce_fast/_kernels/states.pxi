# States of rows put together, and what they begin with: see operations/shards.pxi for the rest.
#
# Uses problem.pxd, layout.pxi, share.pxi, plan.pxi.

# What all states of a row have in common, or else cannot be merged, in the order of their checks.
COMMON = ("temperature", "softcap", "labelled", "target")

cdef enum:
    # Their places, and that of a target whose class was found twice.
    TEMPERATURE
    SOFTCAP
    LABELLED
    TARGET
    FOUND_TWICE

cdef enum:
    NOTE_BYTES = 64      # for the note of a thread
    MOST_SUMS = 2        # fields of sums


cpdef enum Note:
    # What is to be known of any row, bits:
    UNLABELLED = 1       # it has no target,
    MISPLACED = 2        # or another than was said,
    MISSING = 4          # which is neither a class nor ignored,
    WEIGHTED = 8         # or has class weights


cdef int noted(
    Task function, const void *context, Py_ssize_t rows, Py_ssize_t size, threads_for
) except -1:
    """Run tasks on rows of that many bytes; return what these noted in their memory, bits."""
    cdef Py_ssize_t work = rows * size // <Py_ssize_t>sizeof(float)
    cdef int k, notes = 0, n_threads = threads_of(work, tables[0].lanes, threads_for)
    cdef char *memory = aligned_memory(n_threads * NOTE_BYTES)
    memset(memory, 0, n_threads * NOTE_BYTES)
    share_out_tasks(
        function, task_count(rows, ROWS_PER_TASK), context, n_threads, memory, NOTE_BYTES,
        work <= WORK_PER_TASK)
    for k in range(n_threads):
        notes |= (<const int *>(memory + k * NOTE_BYTES))[0]
    memory_give(memory)
    return notes


# ---- merging -------------------------------------------------------------------------------------


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


cdef int states_open(States *states, ndarray array, tuple sums) except -1:
    """Find an array's sums; return whether it has them."""
    cdef int k
    states.rows = PyArray_BYTES(array)
    states.row_stride = PyArray_STRIDE(array, 0)
    fields = array.dtype.fields
    for k in range(len(sums)):
        if sums[k] not in fields:
            return False
        record, states.place[k] = fields[sums[k]][:2]
        states.size[k] = record.itemsize
    return True


def merge_states(tuple states not None, ndarray whole not None, tuple sums not None, threads_for):
    """Merge arrays of states into `whole`, their `sums` side by side; all have one axis.

    Return 0, or one more than the place in COMMON of what differs, or of what follows it where two
    have found the class of one target.
    """
    cdef Merge merge
    cdef Py_ssize_t[MOST_SUMS] left
    cdef int k, j, differ
    merge.count = <int>len(states)
    merge.sums = <int>len(sums)
    merge.rows = PyArray_DIM(whole, 0)
    merge.parts = <States *>aligned_memory((merge.count + 1) * sizeof(States))
    try:
        states_open(merge.parts + merge.count, whole, sums)
        for j in range(merge.sums):
            left[j] = merge.parts[merge.count].size[j]
        for k in range(merge.count):
            if not states_open(merge.parts + k, states[k], sums):
                return LABELLED + 1
            for j in range(merge.sums):
                left[j] -= merge.parts[k].size[j]
                if left[j] < 0:
                    return LABELLED + 1    # these have more to say of each chunk
        differ = noted(merge_task, &merge, merge.rows, PyArray_ITEMSIZE(whole), threads_for)
    finally:
        memory_give(merge.parts)
    return (differ & -differ).bit_length()


cdef void merge_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    cdef const Merge *merge = <const Merge *>context
    cdef Py_ssize_t row, start = task * ROWS_PER_TASK
    for row in range(start, min(start + ROWS_PER_TASK, merge.rows)):
        (<int *>memory)[0] |= row_merge(merge, row)


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


# ---- reading what states begin with --------------------------------------------------------------


cdef struct Heads:
    const char *rows
    Py_ssize_t row_stride
    Py_ssize_t count
    const int64_t *target    # what it should be; NULL for anything
    bint ignores             # some target
    int64_t ignore_index
    char *ignored            # to be filled in, a number each row:
    double *weight
    int64_t *allowed


def read_heads(
    ndarray states not None, ndarray target, ignore_index, ndarray ignored not None,
    ndarray weight not None, ndarray allowed not None, threads_for,
):
    """Fill arrays in, and return a Note of the rows; they are contiguous, and have one axis."""
    cdef Heads heads
    cdef int overflow
    heads.ignore_index = PyLong_AsLongLongAndOverflow(ignore_index, &overflow)
    heads.ignores = overflow == 0
    heads.rows = PyArray_BYTES(states)
    heads.row_stride = PyArray_STRIDE(states, 0)
    heads.count = PyArray_DIM(states, 0)
    heads.target = NULL if target is None else <const int64_t *>PyArray_BYTES(target)
    heads.ignored = PyArray_BYTES(ignored)
    heads.weight = <double *>PyArray_BYTES(weight)
    heads.allowed = <int64_t *>PyArray_BYTES(allowed)
    return noted(heads_task, &heads, heads.count, sizeof(RowHead), threads_for)


cdef void heads_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    cdef const Heads *heads = <const Heads *>context
    cdef Py_ssize_t row, start = task * ROWS_PER_TASK
    cdef int notes = 0
    cdef RowHead head
    for row in range(start, min(start + ROWS_PER_TASK, heads.count)):
        memcpy(&head, heads.rows + row * heads.row_stride, sizeof(RowHead))
        heads.ignored[row] = heads.ignores and head.target == heads.ignore_index
        heads.weight[row] = head.weight
        heads.allowed[row] = head.allowed
        notes |= (
            UNLABELLED * (not head.labelled) | WEIGHTED * (head.weighted != 0)
            | MISSING * (not (head.found or heads.ignored[row]))
            | MISPLACED * (heads.target != NULL and heads.target[row] != head.target))
    (<int *>memory)[0] |= notes
