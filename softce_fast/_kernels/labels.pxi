# What a mean divides by, and whether all labels are classes: one look at labels and weights before
# anything is written. Uses problem.pxd, layout.pxi, share.pxi.

cdef enum:
    # Rows of a task,
    SCAN_PER_TASK = 65536
    # and of labels that are converted together.
    SCAN_BLOCK = 256


cdef struct Scan:
    const Problem *problem
    const Kernels *kernels
    bint nothing_ignored    # the ignored label is none of those that there can be,
    uint64_t large_ignored  # or it is this one, above what int64 holds; else 0
    int power               # of two, that weights of rows are multiplied by
    double *sums            # of each task: the weight of the rows that count,
    int *bad                # and whether a label is no class


cdef int set_ignored(Scan *scan, Problem *problem, object ignore_index) except -1:
    """Set the ignored label; it may be any whole number."""
    cdef int kind = problem.arrays[<int>LABELS].kind
    cdef int overflow = 0
    cdef int64_t number = PyLong_AsLongLongAndOverflow(ignore_index, &overflow)
    scan.nothing_ignored = overflow != 0
    scan.large_ignored = 0
    problem.options.ignore_index = -1 if overflow else number
    if kind == KIND_UINT64 and ignore_index >= INT64_MAX and ignore_index <= UINT64_MAX:
        # Labels from INT64_MAX on come as that one.
        scan.nothing_ignored = False
        scan.large_ignored = ignore_index
        problem.options.ignore_index = INT64_MAX
    return 0


cdef int check_labels(const Array *labels) except -1:
    if is_float_kind(labels.kind) or labels.kind == KIND_BOOL:
        raise TypeError("labels are whole numbers")
    return 0


cdef void scan_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    cdef const Scan *scan = <const Scan *>context
    cdef const Problem *problem = scan.problem
    cdef Py_ssize_t first = task * SCAN_PER_TASK
    cdef Py_ssize_t stop = min(first + SCAN_PER_TASK, problem.layout.rows)
    cdef const Array *labels = &problem.arrays[<int>LABELS]
    cdef bint weighted = (
        has(problem, SAMPLE_WEIGHT)
        or (labels.data != NULL and problem.options.class_weight != NULL))
    if labels.data == NULL and not weighted:
        scan.sums[task] = stop - first
    elif not weighted and not scan.nothing_ignored and labels_are_plain(labels):
        scan.sums[task] = scan.kernels.labels_count(
            labels.data + first * labels.size, stop - first, labels.kind,
            problem.options.ignore_index, problem.layout.classes, scan.bad + task)
    else:
        scan.sums[task] = weights_sum(scan, weighted, first, stop, scan.bad + task)


cdef inline bint labels_are_plain(const Array *labels) noexcept nogil:
    return (
        (labels.kind == KIND_INT64 or labels.kind == KIND_INT32) and not labels.swapped
        and labels.row_stride == labels.size and <size_t>labels.data % <size_t>labels.size == 0)


cdef struct LaneSums:
    # A sum in eight lanes, each row's number in the one that the row's own number says.
    Sum[8] lane


cdef inline void lanes_add(
    LaneSums *sums, Py_ssize_t first, Py_ssize_t n, double *block
) noexcept nogil:
    """Add n numbers, of rows from `first` on, which begin at block[first % 8]."""
    cdef Py_ssize_t head = first % 8
    cdef Py_ssize_t i, k
    for k in range(8):
        if k < head:
            block[k] = 0
        block[head + n + k] = 0
    for i in range(0, head + n, 8):
        for k in range(8):
            sum_extend(&sums.lane[k], block[i + k])


cdef inline double lanes_sum(const LaneSums *sums) noexcept nogil:
    cdef Sum total = sums.lane[0]
    cdef Py_ssize_t k
    for k in range(1, 8):
        sum_extend(&total, sums.lane[k].total)
        total.rest += sums.lane[k].rest
    return sum_of(&total)


cdef double weights_sum(
    const Scan *scan, bint weighted, Py_ssize_t first, Py_ssize_t stop, int *bad
) noexcept nogil:
    """The weight of the rows that count, of labels of any kind, or of none."""
    cdef const Problem *problem = scan.problem
    cdef bint labelled = has(problem, LABELS)
    cdef int64_t[SCAN_BLOCK] labels
    cdef double[SCAN_BLOCK + 16] weights
    cdef LaneSums sums
    cdef Py_ssize_t n, count = 0
    memset(&sums, 0, sizeof(sums))
    while first < stop:
        n = min(<Py_ssize_t>SCAN_BLOCK, stop - first)
        if labelled:
            n = labels_block(problem, first, n, labels)
            if scan.nothing_ignored or scan.large_ignored != 0:
                labels_tell_apart(scan, first, n, labels)
            count += scan.kernels.labels_count(
                <const char *>labels, n, KIND_INT64, problem.options.ignore_index,
                problem.layout.classes, bad)
        if weighted:
            weights_of_rows(
                problem, first, n, labels if labelled else NULL, scan.power, weights + first % 8)
            lanes_add(&sums, first, n, weights)
        first += n
    return lanes_sum(&sums) if weighted else <double>count


cdef inline void weights_of_rows(
    const Problem *problem, Py_ssize_t first, Py_ssize_t n, const int64_t *labels, int power,
    double *weights,
) noexcept nogil:
    """The weights of n rows, 0 of those that do not count; any where a label is no class."""
    cdef const double *class_weight = problem.options.class_weight
    cdef int64_t last = problem.layout.classes - 1
    cdef double weight
    cdef Py_ssize_t k
    if has(problem, SAMPLE_WEIGHT):
        sample_weights_read(weights, problem, first, n)
    else:
        for k in range(n):
            weights[k] = 1
    if labels == NULL:
        for k in range(n if power != 0 else 0):
            weights[k] = power_apply(weights[k], power)
        return
    for k in range(n):
        weight = 0 if labels[k] == problem.options.ignore_index else 1
        if weight != 0 and class_weight != NULL:
            weight = class_weight[max(<int64_t>0, min(labels[k], last))]
        # One of 0 takes the other out, whatever it is.
        weights[k] = (
            product_apply(weight, weights[k], power) if weight != 0 and weights[k] != 0 else 0)


cdef inline Py_ssize_t labels_block(
    const Problem *problem, Py_ssize_t first, Py_ssize_t n, int64_t *labels
) noexcept nogil:
    """Read up to n labels from row `first` on; return how many."""
    cdef const Array *array = &problem.arrays[<int>LABELS]
    cdef Py_ssize_t step = array.row_stride
    if step == 0:
        n = min(n, problem.layout.inner - first % problem.layout.inner)
        step = array.inner_stride
    labels_read(
        labels, array.data + row_offset(&problem.layout, array, first), step, n, array.kind,
        array.swapped)
    return n


cdef void labels_tell_apart(
    const Scan *scan, Py_ssize_t first, Py_ssize_t n, int64_t *labels
) noexcept nogil:
    """Make those no class that look like the ignored one only."""
    cdef const Array *array = &scan.problem.arrays[<int>LABELS]
    cdef uint64_t label = 0
    cdef Py_ssize_t k
    for k in range(n):
        if labels[k] != scan.problem.options.ignore_index:
            continue
        if scan.large_ignored != 0:
            memcpy(
                &label, array.data + row_offset(&scan.problem.layout, array, first + k),
                sizeof(label))
            if (label_swapped(label) if array.swapped else label) == scan.large_ignored:
                continue
        labels[k] = INT64_MIN


cdef extern from *:
    uint64_t label_swapped "__builtin_bswap64"(uint64_t) nogil


cdef double scan_rows(
    Scan *scan, Problem *problem, const Kernels *kernels, int n_threads, int *bad
) except? -1.0:
    """Return what the mean divides by; set `bad` if a label is no class."""
    cdef Py_ssize_t tasks = task_count(problem.layout.rows, SCAN_PER_TASK)
    cdef Py_ssize_t task
    cdef double single = 0
    cdef Sum total
    scan.problem = problem
    scan.kernels = kernels
    if tasks == 1:
        scan.sums = &single
        scan.bad = bad
        scan_task(scan, 0, NULL)
        return single
    scan.sums = <double *>aligned_memory(tasks * (sizeof(double) + sizeof(int)))
    scan.bad = <int *>(scan.sums + tasks)
    memset(scan.bad, 0, tasks * sizeof(int))
    share_out_tasks(scan_task, tasks, scan, n_threads, NULL, 0, False)
    total.total = total.rest = 0
    for task in range(tasks):
        sum_extend(&total, scan.sums[task])
        bad[0] |= scan.bad[task]
    memory_give(scan.sums)
    return sum_of(&total)
