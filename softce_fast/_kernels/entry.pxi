# What Python calls. Arguments were checked before (softce_fast/_validate.py); here a call is planned,
# memory for it is taken once, and the GIL is released while it runs.

cdef enum:
    # Work (exponentials) that pays for waking one more thread.
    WORK_PER_THREAD = 32768
    # Elements of a task: small enough to share out evenly, large enough not to notice the sharing.
    WORK_PER_TASK = 32768
    ROWS_PER_TASK = 2048
    # Contiguous rows up to this length go by tiles.
    TILE_CLASSES = 64
    # Elements of a group of rows: they fit the first-level cache.
    WORK_PER_GROUP = 4096
    # Longest row whose exponentials are kept for writing; they fit the second-level cache.
    KEPT_CLASSES = 131072
    # Outputs from this size on are written past the caches.
    STREAM_BYTES = 16777216
    # Labels of a task that checks them.
    SCAN_PER_TASK = 65536


cdef Array array_from(const char *data, const Py_ssize_t *shape, const Py_ssize_t *strides) noexcept:
    """Describe a 3-d array (outer, class, inner)."""
    cdef Array array
    array.data = <char *>data
    array.inner_length = shape[2]
    array.outer_stride = strides[0]
    array.class_stride = strides[1] if shape[1] > 1 else <Py_ssize_t>sizeof(storage)
    array.inner_stride = strides[2]
    array.row_stride = 0
    if shape[2] == 1:
        array.row_stride = strides[0]
    elif shape[0] == 1 or strides[0] == shape[2] * strides[2]:
        array.row_stride = strides[2]
    return array


cdef Array rows_from(const char *data, const Py_ssize_t *shape, const Py_ssize_t *strides) noexcept:
    """Describe a 2-d array (outer, inner): one number a row."""
    cdef Py_ssize_t[3] shape_3
    cdef Py_ssize_t[3] strides_3
    shape_3[0], shape_3[1], shape_3[2] = shape[0], 1, shape[1]
    strides_3[0], strides_3[1], strides_3[2] = strides[0], 0, strides[1]
    return array_from(data, shape_3, strides_3)


cdef Problem problem_for(
    Operation operation, const storage[:, :, :] logits, double temperature, bint empty_is_zero
) noexcept:
    cdef Problem problem
    memset(&problem, 0, sizeof(problem))
    problem.operation = operation
    problem.rows = logits.shape[0] * logits.shape[2]
    problem.classes = logits.shape[1]
    problem.chunks = (problem.classes + CHUNK - 1) // CHUNK
    problem.scale = scale_for(temperature)
    problem.empty_is_zero = empty_is_zero
    problem.logits = array_from(
        <const char *>&logits[0, 0, 0], logits.shape, logits.strides)
    return problem


cdef void set_output(Problem *problem, storage[:, :, :] output) noexcept:
    problem.output = array_from(<const char *>&output[0, 0, 0], output.shape, output.strides)
    problem.stream = (
        problem.output.data != problem.logits.data
        and problem.rows * problem.classes * <Py_ssize_t>sizeof(storage) >= STREAM_BYTES)


cdef void choose_plan(Problem *problem) noexcept:
    """Decide how rows are grouped. Any choice gives the same bits."""
    cdef bint contiguous = problem.logits.class_stride == sizeof(storage)
    cdef bint neighbours = (
        problem.logits.row_stride == sizeof(storage)
        or problem.logits.inner_stride == sizeof(storage))
    problem.by_tiles = problem.rows >= 4 and (
        problem.classes <= TILE_CLASSES or (neighbours and not contiguous))
    problem.keep = (
        not problem.by_tiles and problem.output.data != NULL
        and problem.operation != LOG_SOFTMAX and problem.classes <= KEPT_CLASSES)
    problem.kept_stride = (problem.classes + 3 * LANES) // LANES * LANES
    problem.rows_per_group = LANES
    if not problem.by_tiles:
        problem.rows_per_group = max(
            1, min(<Py_ssize_t>LANES, WORK_PER_GROUP // problem.classes))
    problem.rows_per_task = max(
        <Py_ssize_t>LANES if problem.classes <= CHUNK else 1,
        min(<Py_ssize_t>ROWS_PER_TASK, WORK_PER_TASK // problem.classes // LANES * LANES))


cdef double run(Problem *problem, int n_threads, bint sum_results) except? -1.0:
    """Run a problem; return the sum of its results if asked to, in float64 and in a fixed order."""
    cdef Py_ssize_t task, tasks, row, work
    cdef Py_ssize_t per_thread
    cdef double total = 0
    cdef char *memory = NULL
    cdef double *sums = NULL
    cdef ChunkState *states = NULL
    cdef Group *groups = NULL
    cdef bint long_rows
    choose_plan(problem)
    work = problem.rows * problem.classes
    n_threads = <int>max(1, min(<Py_ssize_t>n_threads, work // WORK_PER_THREAD))
    long_rows = problem.chunks > 1 and problem.rows < 4 * n_threads and n_threads > 1
    if long_rows:
        problem.by_tiles = False
        problem.keep = False
        problem.rows_per_group = 1
        problem.rows_per_task = 1
    tasks = (problem.rows + problem.rows_per_task - 1) // problem.rows_per_task
    n_threads = <int>min(<Py_ssize_t>n_threads, tasks * (problem.chunks if long_rows else 1))
    try:
        if sum_results:
            sums = <double *>aligned_memory(tasks * sizeof(double))
            problem.task_losses = sums
        per_thread = scratch_size(problem)
        memory = aligned_memory(n_threads * per_thread)
        if long_rows:
            states = <ChunkState *>aligned_memory(
                problem.rows * problem.chunks * sizeof(ChunkState))
            groups = <Group *>aligned_memory(problem.rows * sizeof(Group))
            with nogil:
                for task in prange(
                    problem.rows * problem.chunks, num_threads=n_threads, schedule="static"
                ):
                    forward_chunk_task(problem, task, states, memory + threadid() * per_thread)
                for row in range(problem.rows):
                    merge_row(problem, row, states, groups + row)
                if problem.output.data != NULL:
                    for task in prange(
                        problem.rows * problem.chunks, num_threads=n_threads, schedule="static"
                    ):
                        write_chunk_task(
                            problem, task, states, groups, memory + threadid() * per_thread)
        elif n_threads > 1:
            with nogil:
                for task in prange(tasks, num_threads=n_threads, schedule="dynamic"):
                    run_task(problem, task, memory + threadid() * per_thread)
        elif work > WORK_PER_TASK:
            with nogil:
                for task in range(tasks):
                    run_task(problem, task, memory)
        else:
            # Over before another thread could take the GIL.
            for task in range(tasks):
                run_task(problem, task, memory)
        if sum_results:
            for task in range(tasks):
                total += sums[task]
    finally:
        free(memory)
        free(sums)
        free(states)
        free(groups)
    return total


cdef char *aligned_memory(size_t size) except NULL:
    cdef char *memory = <char *>memory_take(size)
    if memory == NULL:
        raise MemoryError(f"no memory for {size} bytes of work space")
    return memory


def softmax(
    const storage[:, :, :] logits, storage[:, :, :] output, bint log, double temperature,
    bint empty_is_zero, int n_threads,
):
    """Write softmax or log_softmax along axis 1 to `output`."""
    cdef Problem problem = problem_for(
        LOG_SOFTMAX if log else SOFTMAX, logits, temperature, empty_is_zero)
    set_output(&problem, output)
    run(&problem, n_threads, False)


def logsumexp(const storage[:, :, :] logits, storage[:, :] result, int n_threads):
    """Write the logsumexp along axis 1 to `result`."""
    cdef Problem problem = problem_for(LOGSUMEXP, logits, 1.0, False)
    problem.result = rows_from(<const char *>&result[0, 0], result.shape, result.strides)
    run(&problem, n_threads, False)


cdef int scan_task(
    const Array *target, Py_ssize_t first, Py_ssize_t stop, Py_ssize_t classes,
    int64_t ignore_index, Py_ssize_t *active,
) noexcept nogil:
    """Count the labels that are not ignored; return whether one of them is not a class."""
    cdef Py_ssize_t row, count = 0
    cdef int bad = 0
    cdef int64_t label
    for row in range(first, stop):
        memcpy(&label, target.data + row_offset(target, row), sizeof(label))
        count += label != ignore_index
        bad |= (label < 0 or label >= classes) and label != ignore_index
    active[0] = count
    return bad


cdef Py_ssize_t scan_labels(
    const Problem *problem, int n_threads, int *bad
) noexcept nogil:
    """Return how many labels are not ignored; set `bad` if one of them is not a class."""
    cdef Py_ssize_t tasks = (problem.rows + SCAN_PER_TASK - 1) // SCAN_PER_TASK
    cdef Py_ssize_t task, active = 0, count
    cdef int found = 0
    if tasks == 1 or n_threads == 1:
        bad[0] = scan_task(
            &problem.target, 0, problem.rows, problem.classes, problem.ignore_index, &active)
        return active
    for task in prange(tasks, num_threads=n_threads, schedule="static"):
        count = 0
        found += scan_task(
            &problem.target, task * SCAN_PER_TASK, min((task + 1) * SCAN_PER_TASK, problem.rows),
            problem.classes, problem.ignore_index, &count)
        active += count
    bad[0] = found
    return active


def cross_entropy(
    const storage[:, :, :] logits, const int64_t[:, :] target, storage[:, :] losses,
    storage[:, :, :] gradient, bint mean, double denominator, int64_t ignore_index,
    double temperature, int n_threads,
):
    """Return the sum of the losses and what their mean divides by; None if a label is no class.

    `losses` and `gradient` are written where they are given, but not if a label is no class. The
    gradient is that of the sum, or with `mean` that of the mean; `denominator` is what the mean
    divides by, 0 for the number of labels that are not ignored.
    """
    cdef Problem problem = problem_for(CROSS_ENTROPY, logits, temperature, False)
    cdef Py_ssize_t active
    cdef int bad = 0
    problem.target = rows_from(<const char *>&target[0, 0], target.shape, target.strides)
    problem.ignore_index = ignore_index
    active = scan_labels(&problem, n_threads, &bad)
    if bad:
        return None
    if denominator == 0:
        denominator = active
    problem.gradient_scale = <real>(1.0 / denominator) if mean else 1
    if losses is not None:
        problem.result = rows_from(<const char *>&losses[0, 0], losses.shape, losses.strides)
    if gradient is not None:
        set_output(&problem, gradient)
    return run(&problem, n_threads, True), denominator
