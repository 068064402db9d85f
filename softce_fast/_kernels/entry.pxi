# What Python calls. Arguments were checked before (softce_fast/_checks.py); here a call is
# planned, memory for it is taken once, and the GIL is released while it runs.

cdef enum:
    # Most rows of a task: their results are kept until its end.
    ROWS_PER_TASK = 2048
    # Longest rows that go by tiles where they are not packed (else TILE_CLASSES): their numbers
    # are taken one by one then.
    STRIDED_CLASSES = 48
    # Classes of all tiles of a batch.
    BATCH_CLASSES = 256
    # Elements of rows worked on together: they fit the first-level cache.
    WORK_AT_ONCE = 4096
    # Longest row whose exponentials are kept in memory that the second-level cache has,
    KEPT_CLASSES = 131072
    # and largest array of those for which the output is worth it: they come back from a cache.
    KEPT_BYTES = 33554432
    # Arrays from this size on are larger than the caches; outputs are written past them.
    LARGE_BYTES = 16777216
    # Smaller arrays are in the caches already: fetching ahead would take lines from other threads.
    FETCHED_BYTES = 4194304
    # Labels of a task that checks them.
    SCAN_PER_TASK = 65536


cdef Array array_from(
    const char *data, const Py_ssize_t *shape, const Py_ssize_t *strides
) noexcept:
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


cdef Problem problem_for(Operation operation, Array logits, Py_ssize_t classes, Py_ssize_t rows,
                         double temperature) noexcept:
    cdef Problem problem
    memset(&problem, 0, sizeof(problem))
    problem.operation = operation
    problem.logits = logits
    problem.rows = rows
    problem.classes = classes
    problem.chunks = (classes + CHUNK - 1) // CHUNK
    problem.scale = scale_for(temperature)
    return problem


cdef Problem problem_3d(
    Operation operation, const storage[:, :, :] logits, double temperature
) noexcept:
    return problem_for(
        operation,
        array_from(<const char *>&logits[0, 0, 0], logits.shape, logits.strides),
        logits.shape[1], logits.shape[0] * logits.shape[2], temperature)


cdef Array array_2d(const char *data, const Py_ssize_t *shape, const Py_ssize_t *strides) noexcept:
    """Describe a 2-d array (row, class)."""
    cdef Py_ssize_t[3] shape_3
    cdef Py_ssize_t[3] strides_3
    shape_3[0], shape_3[1], shape_3[2] = shape[0], shape[1], 1
    strides_3[0], strides_3[1], strides_3[2] = strides[0], strides[1], 0
    return array_from(data, shape_3, strides_3)


cdef void set_output(Problem *problem, Array output) noexcept:
    problem.output = output
    problem.stream = output.data != problem.logits.data and is_large(problem)


cdef inline bint is_large(const Problem *problem) noexcept:
    return problem.rows * problem.classes * <Py_ssize_t>sizeof(storage) >= LARGE_BYTES


cdef void set_output_3d(Problem *problem, storage[:, :, :] output) noexcept:
    set_output(problem, array_from(<const char *>&output[0, 0, 0], output.shape, output.strides))


cdef Passes passes_for(const Problem *problem, bint contiguous) noexcept:
    """Choose what the rows go by. `contiguous`: the classes of the logits are neighbours."""
    cdef bint neighbours = (
        problem.logits.row_stride == sizeof(storage)
        or problem.logits.inner_stride == sizeof(storage))
    cdef bint packed = problem.logits.row_stride != 0 and (
        problem.output.data == NULL or (
            problem.output.class_stride == sizeof(storage)
            and problem.output.row_stride == problem.classes * <Py_ssize_t>sizeof(storage)))
    cdef Py_ssize_t tile_classes = TILE_CLASSES
    if not contiguous or not packed:
        if problem.rows >= 4 and (
            (neighbours and not contiguous) or problem.classes <= STRIDED_CLASSES
        ):
            return BY_TILES
        return BY_ROWS
    if not is_large(problem):
        tile_classes = TILE_CLASSES * LANES // 16
    if problem.classes <= tile_classes and problem.rows >= (
        4 if problem.classes <= LANES else LANES
    ):
        return BY_TILES
    return BY_ROWS


cdef void choose_plan(Problem *problem, int n_threads) noexcept:
    """Decide how rows are grouped and shared out. Any choice gives the same bits."""
    cdef bint contiguous = problem.logits.class_stride == sizeof(storage)
    cdef Py_ssize_t rows = task_work(problem.rows * problem.classes) // problem.classes
    problem.by_chunks = parts_pay(problem.rows, problem.chunks, n_threads)
    problem.passes = BY_ROWS if problem.by_chunks else passes_for(problem, contiguous)
    problem.rows_per_task = max(
        1 if problem.classes > CHUNK and problem.passes == BY_ROWS else <Py_ssize_t>LANES,
        min(<Py_ssize_t>ROWS_PER_TASK, rows // LANES * LANES))
    problem.tasks = task_count(problem.rows, problem.rows_per_task)
    if problem.by_chunks:
        problem.tasks = problem.rows * problem.chunks
    plan_groups(problem, contiguous)


cdef void plan_by_rows(Problem *problem, Problem *by_rows) noexcept:
    """Plan what tiles leave over of contiguous rows, once all the rest is decided."""
    if (
        problem.passes != BY_ROWS and problem.logits.class_stride == sizeof(storage)
        and problem.classes > LANES and problem.rows % LANES != 0
    ):
        by_rows[0] = problem[0]
        by_rows.passes = BY_ROWS
        plan_groups(by_rows, True)
        problem.by_rows = by_rows


cdef inline void keep_in_output_if_possible(Problem *problem) noexcept nogil:
    """Keep exponentials in the output if they fit, and it holds nothing that is read once more.

    Since they are read back, it is not written past the caches then.
    """
    cdef const char *output = problem.output.data
    if (
        STORAGE_IS_REAL and output != NULL and problem.operation != LOG_SOFTMAX
        and problem.output.class_stride == sizeof(storage)
        and problem.rows * problem.classes * <Py_ssize_t>sizeof(storage) <= KEPT_BYTES
        and output != problem.logits.data and output != problem.target.data
        # The gradient of a single row may take the place of the weights.
        and output != <char *>problem.class_weight
    ):
        problem.keep = True
        problem.keep_in_output = True
        problem.stream = False


cdef void plan_groups(Problem *problem, bint contiguous) noexcept:
    """Decide all that follows from what the rows go by."""
    cdef Py_ssize_t columns = min(<Py_ssize_t>CHUNK, problem.classes)
    cdef bint long_rows = problem.by_chunks or problem.classes > KEPT_CLASSES
    problem.keep_in_output = False
    problem.keep = (
        problem.passes == BY_ROWS and problem.output.data != NULL
        and problem.operation != LOG_SOFTMAX and not long_rows)
    if problem.passes == BY_ROWS and (long_rows or not problem.stream):
        keep_in_output_if_possible(problem)
    problem.batch = 1
    problem.rows_per_group = LANES
    problem.rows_at_once = LANES
    if problem.passes == BY_TILES:
        problem.batch = max(1, min(<Py_ssize_t>BATCH, BATCH_CLASSES // columns))
        problem.kept_stride = columns * LANES
        if problem.operation == LOG_SOFTMAX or problem.dense:
            # What is added up, behind the logits; and behind probabilities.
            problem.kept_stride *= 3 if problem.operation == SOFT_CROSS_ENTROPY else 2
    else:
        problem.kept_stride = (problem.classes + 3 * LANES) // LANES * LANES
    if problem.passes == BY_ROWS:
        problem.rows_at_once = max(1, min(<Py_ssize_t>LANES, WORK_AT_ONCE // problem.classes))
        if (
            problem.output.data != NULL or problem.dense or problem.chunks > 1 or not contiguous
        ):
            # What is kept of a group is to fit as well, and dense targets read all its rows twice.
            # Else many are finished together.
            problem.rows_per_group = problem.rows_at_once
    problem.by_lines = (
        problem.passes == BY_TILES and problem.stream
        and problem.output.inner_stride == sizeof(storage) and problem.output.inner_length > 1
        and problem.output.class_stride % <Py_ssize_t>(LANES * sizeof(storage)) == 0)
    problem.ahead = 0
    problem.ahead_stride = LANES * sizeof(storage)
    if problem.rows * problem.classes * <Py_ssize_t>sizeof(storage) < FETCHED_BYTES:
        return
    if problem.passes == BY_TILES and not contiguous:
        problem.ahead = problem.batch * LANES * <Py_ssize_t>sizeof(storage)
        problem.ahead_stride = problem.logits.class_stride
    elif contiguous:
        problem.ahead = CHUNK * sizeof(storage)
        if problem.chunks == 1:
            problem.ahead = 2 * problem.rows_at_once * problem.batch * problem.logits.row_stride


cdef double run(Problem *problem, int n_threads, bint sum_results) except? -1.0:
    """Run a problem; return the sum of its results if asked to, in float64 and in a fixed order."""
    cdef Py_ssize_t task
    cdef Py_ssize_t work = problem.rows * problem.classes
    cdef size_t per_thread
    cdef double total = 0
    cdef char *memory = NULL
    cdef double *sums = NULL
    cdef real *row_losses = NULL
    cdef real *coefficient_sums = NULL
    cdef LongRows long_rows
    cdef Problem by_rows
    n_threads = threads_for_call(n_threads, work)
    choose_plan(problem, n_threads)
    n_threads = <int>min(<Py_ssize_t>n_threads, problem.tasks)
    long_rows.problem = problem
    long_rows.states = NULL
    long_rows.groups = NULL
    try:
        if sum_results and problem.classes > CHUNK:
            # How long rows are shared out may depend on the threads; their sum may not.
            row_losses = <real *>aligned_memory(problem.rows * sizeof(real))
            problem.row_losses = row_losses
        elif sum_results:
            sums = <double *>aligned_memory(problem.tasks * sizeof(double))
            problem.task_losses = sums
        if problem.dense and problem.operation == CROSS_ENTROPY:
            coefficient_sums = <real *>aligned_memory(
                (problem.chunks + problem.classes) * sizeof(real))
            problem.coefficient_sums = coefficient_sums
            problem.other_coefficients = NULL
            if problem.class_weight != NULL and problem.output.data != NULL:
                problem.other_coefficients = coefficient_sums + problem.chunks
            sum_coefficients(problem, coefficient_sums, <real *>problem.other_coefficients)
        plan_by_rows(problem, &by_rows)
        per_thread = scratch_size(problem)
        memory = aligned_memory(n_threads * per_thread)
        if problem.by_chunks:
            long_rows.states = <ChunkState *>aligned_memory(
                problem.tasks * sizeof(ChunkState))
            long_rows.groups = <Group *>aligned_memory(problem.rows * sizeof(Group))
            share_out_parts(
                forward_chunk_task, merge_rows_task, write_chunk_task,
                problem.output.data != NULL, problem.tasks, &long_rows, n_threads, memory,
                per_thread)
        else:
            share_out_tasks(
                run_task, problem.tasks, problem, n_threads, memory, per_thread,
                work <= WORK_PER_TASK)
        if row_losses != NULL:
            total = sum_in_double(row_losses, problem.rows)
        elif sums != NULL:
            for task in range(problem.tasks):
                total += sums[task]
    finally:
        memory_give(memory)
        memory_give(sums)
        memory_give(row_losses)
        memory_give(coefficient_sums)
        memory_give(long_rows.states)
        memory_give(long_rows.groups)
    return total


cdef struct Sum:
    # A sum of float64 numbers, and what it lost by rounding.
    double total
    double rest


cdef inline void sum_add(Sum *sum_, double x) noexcept nogil:
    cdef double total = sum_.total + x
    cdef double kept = total - sum_.total
    sum_.rest += (sum_.total - (total - kept)) + (x - kept)
    sum_.total = total


cdef inline double sum_value(const Sum *sum_) noexcept nogil:
    cdef double total = sum_.total + sum_.rest
    # What an infinite sum lost is no number.
    return total if total == total else sum_.total


cdef void sum_coefficients(const Problem *problem, real *sums, real *others) noexcept nogil:
    """What label smoothing gives to the classes of any row.

    `sums`: to all of each chunk. `others`: for each class, to all but that one; NULL if not wanted.
    """
    cdef double even = problem.label_smoothing / <double>problem.classes
    cdef Py_ssize_t chunk, c
    cdef Sum total
    for chunk in range(problem.chunks):
        total.total = total.rest = 0
        for c in range(chunk_length(problem, chunk)):
            sum_add(&total, class_weight_of(problem, chunk * CHUNK + c))
        sums[chunk] = <real>(even * (total.total + total.rest))
    if others == NULL:
        return
    # The classes before each, and those behind it: nothing is taken off a larger sum.
    total.total = total.rest = 0
    for c in range(problem.classes):
        others[c] = <real>(even * (total.total + total.rest))
        sum_add(&total, problem.class_weight[c])
    total.total = total.rest = 0
    for c in range(problem.classes - 1, -1, -1):
        others[c] = <real>(others[c] + even * (total.total + total.rest))
        sum_add(&total, problem.class_weight[c])


cdef inline double class_weight_of(const Problem *problem, Py_ssize_t c) noexcept nogil:
    return problem.class_weight[c] if problem.class_weight != NULL else 1


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
    cdef Problem problem = problem_3d(LOG_SOFTMAX if log else SOFTMAX, logits, temperature)
    problem.empty_is_zero = empty_is_zero
    set_output_3d(&problem, output)
    run(&problem, n_threads, False)


def logsumexp(const storage[:, :, :] logits, storage[:, :] result, int n_threads):
    """Write the logsumexp along axis 1 to `result`."""
    cdef Problem problem = problem_3d(LOGSUMEXP, logits, 1.0)
    problem.result = rows_from(<const char *>&result[0, 0], result.shape, result.strides)
    run(&problem, n_threads, False)


cdef struct LabelScan:
    const Problem *problem
    double *sums      # of each task: the weight of the rows that count,
    int *bad          # and whether a label is no class


cdef void scan_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    cdef const LabelScan *scan = <const LabelScan *>context
    scan.sums[task] = scan_rows(
        scan.problem, task * SCAN_PER_TASK,
        min((task + 1) * SCAN_PER_TASK, scan.problem.rows), scan.bad + task)


cdef double scan_rows(
    const Problem *problem, Py_ssize_t first, Py_ssize_t stop, int *bad
) noexcept nogil:
    """Return the weight of the rows that count; set `bad` if a label is no class."""
    cdef Py_ssize_t row, count = 0
    cdef double weight
    cdef Sum total
    cdef int64_t found = 0
    cdef const int64_t *labels
    cdef int64_t label, counts
    cdef real sample_weight = 1
    cdef bint weighted = problem.class_weight != NULL or problem.sample_weight.data != NULL
    cdef bint aligned = <size_t>problem.target.data % sizeof(int64_t) == 0
    if not weighted and aligned and problem.target.row_stride == sizeof(int64_t):
        # A loop without branches, for the compiler to make vectors of.
        labels = <const int64_t *>problem.target.data
        for row in range(first, stop):
            counts = labels[row] != problem.ignore_index
            count += counts
            found |= counts & (<uint64_t>labels[row] >= <uint64_t>problem.classes)
        bad[0] |= found != 0
        return <double>count
    total.total = total.rest = 0
    for row in range(first, stop):
        memcpy(&label, problem.target.data + row_offset(&problem.target, row), sizeof(label))
        if label == problem.ignore_index:
            continue
        count += 1
        if label < 0 or label >= problem.classes:
            found = 1
        elif weighted:
            weight = problem.class_weight[label] if problem.class_weight != NULL else 1
            if problem.sample_weight.data != NULL:
                memcpy(&sample_weight, problem.sample_weight.data
                       + row_offset(&problem.sample_weight, row), sizeof(real))
                weight *= sample_weight
            sum_add(&total, weight)
    bad[0] |= found != 0
    return sum_value(&total) if weighted else <double>count


cdef double scan_labels(const Problem *problem, int n_threads, int *bad) except? -1.0:
    """Return what the mean over labels divides by; set `bad` if a label is no class."""
    cdef Py_ssize_t tasks = task_count(problem.rows, SCAN_PER_TASK)
    cdef Py_ssize_t task
    cdef Sum total
    cdef LabelScan scan
    if tasks == 1:
        return scan_rows(problem, 0, problem.rows, bad)
    scan.problem = problem
    scan.sums = <double *>aligned_memory(tasks * (sizeof(double) + sizeof(int)))
    scan.bad = <int *>(scan.sums + tasks)
    memset(scan.bad, 0, tasks * sizeof(int))
    share_out_tasks(
        scan_task, tasks, &scan, threads_worth(n_threads, problem.rows), NULL, 0, False)
    total.total = total.rest = 0
    for task in range(tasks):
        sum_add(&total, scan.sums[task])
        bad[0] |= scan.bad[task]
    memory_give(scan.sums)
    return sum_value(&total)


cdef double sum_of_weights(const Problem *problem) noexcept:
    """What the mean over class probabilities divides by."""
    cdef Py_ssize_t row
    cdef Sum total
    cdef real weight = 1
    if problem.sample_weight.data == NULL:
        return <double>problem.rows
    total.total = total.rest = 0
    for row in range(problem.rows):
        memcpy(&weight, problem.sample_weight.data
               + row_offset(&problem.sample_weight, row), sizeof(real))
        sum_add(&total, weight)
    return sum_value(&total)


def cross_entropy(
    const storage[:, :, :] logits, const int64_t[:, :] labels,
    const storage[:, :, :] probabilities, storage[:, :] losses, storage[:, :, :] gradient,
    const real[:] class_weight, const real[:, :] sample_weight, double label_smoothing,
    double z_loss, bint mean, denominator, ignore_index, double temperature, int n_threads,
):
    """Return the sum of the losses and what their mean divides by; None if a label is no class.

    Of `labels` and `probabilities` one is None. `losses` and `gradient` are written where they are
    given, but not if a label is no class. The gradient is that of the sum, or with `mean` that of
    the mean, which divides by `denominator` if that is not None. Dividing by 0 is left to the
    caller.
    """
    cdef Problem problem = problem_3d(
        CROSS_ENTROPY if labels is not None else SOFT_CROSS_ENTROPY, logits, temperature)
    cdef int bad = 0
    cdef double divisor
    n_threads = threads_for_call(n_threads, problem.rows * problem.classes)
    problem.label_smoothing = <real>label_smoothing
    problem.z_loss = <real>z_loss
    problem.dense = labels is None or label_smoothing != 0
    if class_weight is not None:
        problem.class_weight = &class_weight[0]
    if sample_weight is not None:
        problem.sample_weight = rows_from(
            <const char *>&sample_weight[0, 0], sample_weight.shape, sample_weight.strides)
    if labels is not None:
        problem.target = rows_from(<const char *>&labels[0, 0], labels.shape, labels.strides)
        problem.ignore_index = ignore_index
        divisor = scan_labels(&problem, n_threads, &bad)
        if bad:
            return None
    else:
        problem.target = array_from(
            <const char *>&probabilities[0, 0, 0], probabilities.shape, probabilities.strides)
        divisor = sum_of_weights(&problem)
    if denominator is not None:
        divisor = denominator
    # Rounded once to the numbers that are computed with.
    problem.gradient_scale = <real>(
        (1.0 / divisor if mean and divisor != 0 else 1.0) / temperature)
    if losses is not None:
        problem.result = rows_from(<const char *>&losses[0, 0], losses.shape, losses.strides)
    if gradient is not None:
        set_output_3d(&problem, gradient)
    return run(&problem, n_threads, True), divisor


def pause():
    """Give back the idle threads of the OpenMP that this module is bound to, before a fork."""
    openmp_pause()
