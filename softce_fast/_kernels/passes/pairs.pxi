# The pass over two arrays: a sum over the classes of each row, then, if there is an output, what is
# made of both arrays and that sum.
#
# It knows an operation by its two functions, pair_sum() and pair_emit(), which get one chunk of one
# row. Where rows are closer to each other than classes, LANES rows are copied together, class by
# class; else each row goes through all steps before the next. Few long rows are shared out by
# chunks instead; the sums are the same ones.
#
# Uses problem.pxd, panel.pxi, writer.pxi, state.pxi; of across.pxi, runs; of tasks.pxi, results and
# memory. The operations are in operations/backward.pxi and operations/likelihood.pxi.

cdef struct PairSum:
    # What an operation sums over classes of a row.
    double sum
    double rest        # what the sum lost
    double left_out    # the sum of what is left out of it


cdef struct PairRows:
    # One chunk of rows that are worked on together, row by row.
    const real *input[16]
    const real *second[16]
    PairSum[16] sums


# ---- sums ----------------------------------------------------------------------------------------


cdef inline PairSum pair_sum_from(DoubleDouble total, vector left_out) noexcept nogil:
    """Add up the lanes."""
    cdef PairSum result
    cdef real[16] lane
    cdef real rest
    cdef Py_ssize_t k
    result.left_out = vector_reduce_compensated(left_out, vector_set(0.0), &rest)
    result.sum = vector_reduce_compensated(total.high, total.low, &rest)
    result.rest = rest
    if rest != rest:
        # What an infinite sum lost is no number.
        vector_store(lane, double_double_rounded(total))
        result.rest = 0
        result.sum = 0
        for k in range(LANES):
            result.sum += lane[k]
    return result


cdef inline PairSum pair_sum_merge(PairSum a, PairSum b) noexcept nogil:
    cdef PairSum result
    cdef double kept
    result.sum = a.sum + b.sum
    kept = result.sum - a.sum
    result.rest = (a.rest + b.rest) + (
        (a.sum - (result.sum - kept)) + (b.sum - kept))
    if result.rest != result.rest:
        result.rest = 0
    result.left_out = a.left_out + b.left_out
    return result


cdef inline DoubleDouble double_double_set(double number, double rest) noexcept nogil:
    """number + rest, in each lane."""
    cdef DoubleDouble result
    cdef real high = <real>(number + rest)
    cdef real low = <real>((number - high) + rest)
    result.high = vector_set(high)
    result.low = vector_set(low if low - low == 0 else <real>0)
    return result


# ---- operations ----------------------------------------------------------------------------------


cdef inline PairSum pair_sum(
    const Group *group, const Problem *problem, const PairRows *rows, Py_ssize_t k,
    Py_ssize_t start, Py_ssize_t n, const Scratch *scratch,
) noexcept nogil:
    """Sum n classes, from `start` on, of row k."""
    if problem.operation == SOFTMAX_BACKWARD:
        return softmax_backward_sum(rows.input[k], rows.second[k], n)
    if problem.operation == LOG_SOFTMAX_BACKWARD:
        return log_softmax_backward_sum(rows.input[k], rows.second[k], n)
    if problem.operation == CURVATURE:
        return curvature_sum(rows.input[k], n)
    return likelihood_sum(group, problem, rows, k, start, n, scratch)


cdef inline void pair_emit(
    const Group *group, const Problem *problem, const PairRows *rows, Py_ssize_t k, Py_ssize_t n,
    const Scratch *scratch, real *to,
) noexcept nogil:
    """Make n classes of the output of row k."""
    cdef const PairSum *total = &rows.sums[k]
    if problem.operation == CURVATURE:
        curvature_emit(group, problem, rows.input[k], k, total, n, to)
    elif problem.operation == SOFTMAX_BACKWARD:
        softmax_backward_emit(problem, rows.input[k], rows.second[k], total, n, to)
    else:
        log_softmax_backward_emit(
            problem, rows.input[k], rows.second[k], total, n, &scratch.scale, to)


# ---- rows together -------------------------------------------------------------------------------


cdef inline bint pairs_go_by_class(const Problem *problem) noexcept nogil:
    """Whether rows are copied together: those of any array are closer than its classes."""
    return not problem.plan.by_chunks and (
        pair_goes_by_class(problem, INPUT) or pair_goes_by_class(problem, SECOND)
        or pair_goes_by_class(problem, OUTPUT))


cdef inline bint pair_goes_by_class(const Problem *problem, Role role) noexcept nogil:
    return has(problem, role) and goes_by_class(&problem.layout, &problem.arrays[<int>role])


cdef inline Py_ssize_t pair_chunk_length(const Problem *problem, Py_ssize_t chunk) noexcept nogil:
    return min(<Py_ssize_t>PAIR_CHUNK, problem.layout.classes - chunk * PAIR_CHUNK)


cdef void rows_turn(
    const Group *group, const Problem *problem, Role role, Py_ssize_t start, Py_ssize_t n,
    real *to, Scratch *scratch,
) noexcept nogil:
    """Copy n classes of a group's rows, a class of all rows after the other."""
    cdef const Array *array = &problem.arrays[<int>role]
    cdef vector[QUARTER_LANES] columns
    cdef Py_ssize_t c, i
    runs_fill(&scratch.runs, &problem.layout, array, group.first, group.rows)
    for i in range(QUARTER_LANES):
        columns[i] = vector_set(0.0)
    c = 0
    while c < n:
        for i in range(min(<Py_ssize_t>QUARTER_LANES, n - c)):
            columns[i] = vector_load(run_read(
                array, &scratch.runs, class_offset(&problem.layout, array, start + c + i),
                group.rows, scratch))
        # What it writes too much is room behind each row.
        columns_store(
            <char *>(to + c), scratch.staged_stride * <Py_ssize_t>sizeof(real), columns)
        c += QUARTER_LANES


cdef void rows_turn_back(
    const Group *group, const Problem *problem, Py_ssize_t start, Py_ssize_t n, Scratch *scratch
) noexcept nogil:
    """Write n classes of a group's output, which is kept, a class of all rows after the other."""
    cdef const Array *array = &problem.arrays[<int>OUTPUT]
    cdef vector[QUARTER_LANES] columns
    cdef Py_ssize_t c, i
    runs_fill(&scratch.runs, &problem.layout, array, group.first, group.rows)
    c = 0
    while c < n:
        columns_load(
            columns, <const char *>(scratch.kept + c),
            scratch.staged_stride * <Py_ssize_t>sizeof(real))
        for i in range(min(<Py_ssize_t>QUARTER_LANES, n - c)):
            vector_store(scratch.packed, columns[i])
            run_write(
                array, &scratch.runs, class_offset(&problem.layout, array, start + c + i),
                scratch.packed, scratch)
        c += QUARTER_LANES


cdef inline void rows_read(
    const Group *group, const Problem *problem, Role role, Py_ssize_t first, Py_ssize_t rows,
    Py_ssize_t chunk, const real **x, Scratch *scratch,
) noexcept nogil:
    """Point x at a chunk of rows `first` and on: at themselves if they are plain, else at copies."""
    cdef const Array *array = &problem.arrays[<int>role]
    cdef Py_ssize_t start = chunk * PAIR_CHUNK
    cdef Py_ssize_t n = pair_chunk_length(problem, chunk)
    cdef real *staged = scratch.target if role == SECOND else scratch.staged
    cdef Py_ssize_t k
    if rows > 1 and goes_by_class(&problem.layout, array):
        rows_turn(group, problem, role, start, n, staged, scratch)
        for k in range(rows):
            x[k] = staged + k * scratch.staged_stride
        return
    for k in range(rows):
        x[first + k] = row_read(
            &problem.layout, array, in_group(group, problem, role, first + k), start, n,
            staged + k * scratch.staged_stride, scratch.raw)


# ---- one chunk of some rows ----------------------------------------------------------------------


cdef inline void pair_rows_read(
    const Group *group, const Problem *problem, Py_ssize_t first, Py_ssize_t rows,
    Py_ssize_t chunk, PairRows *at, Scratch *scratch,
) noexcept nogil:
    rows_read(group, problem, INPUT, first, rows, chunk, at.input, scratch)
    if has(problem, SECOND):
        rows_read(group, problem, SECOND, first, rows, chunk, at.second, scratch)


cdef void pair_rows_sum(
    const Group *group, const Problem *problem, Py_ssize_t first, Py_ssize_t rows,
    PairRows *at, Scratch *scratch,
) noexcept nogil:
    """Sum all chunks of a group's rows from `first` on; the last one stays where it was read."""
    cdef Py_ssize_t chunk, k
    cdef PairSum part
    for chunk in range(problem.plan.chunks):
        pair_rows_read(group, problem, first, rows, chunk, at, scratch)
        for k in range(first, first + rows):
            part = pair_sum(
                group, problem, at, k, chunk * PAIR_CHUNK, pair_chunk_length(problem, chunk),
                scratch)
            at.sums[k] = part if chunk == 0 else pair_sum_merge(at.sums[k], part)


cdef inline void pair_make(
    const Group *group, const Problem *problem, const PairRows *at, Py_ssize_t k, Py_ssize_t n,
    const Scratch *scratch, real *to,
) noexcept nogil:
    """Compute n classes of the output of row k, at most a chunk."""
    cdef Py_ssize_t i
    if group.ignored >> k & 1:
        for i in range(n):
            to[i] = 0
    else:
        pair_emit(group, problem, at, k, n, scratch, to)


cdef void pair_rows_emit(
    const Group *group, const Problem *problem, Py_ssize_t first, Py_ssize_t rows,
    Py_ssize_t chunk, const PairRows *at, Scratch *scratch,
) noexcept nogil:
    """Write one chunk of the output of rows that are read."""
    cdef const Array *output = &problem.arrays[<int>OUTPUT]
    cdef Py_ssize_t start = chunk * PAIR_CHUNK
    cdef Py_ssize_t n = pair_chunk_length(problem, chunk)
    cdef Py_ssize_t k, offset
    cdef char *to
    if rows > 1 and goes_by_class(&problem.layout, output):
        for k in range(rows):
            pair_make(
                group, problem, at, k, n, scratch, scratch.kept + k * scratch.staged_stride)
        rows_turn_back(group, problem, start, n, scratch)
        return
    for k in range(first, first + rows):
        offset = in_group(group, problem, OUTPUT, k)
        to = output.data + offset + start * output.size
        if not has_neighbours(&problem.layout, output):
            pair_make(group, problem, at, k, n, scratch, scratch.kept)
            row_scatter(&problem.layout, output, offset, start, n, scratch.kept, scratch.raw)
        elif output.kind == REAL_KIND and not problem.plan.stream:
            pair_make(group, problem, at, k, n, scratch, <real *>to)
        else:
            pair_make(group, problem, at, k, n, scratch, writer_room(&scratch.writer, to))
            writer_take(&scratch.writer, n)


cdef inline void pair_results(
    Group *group, const Problem *problem, const PairRows *at, double *results
) noexcept nogil:
    """What is known of rows when they are summed, if the sum is the result."""
    cdef Py_ssize_t k
    if problem.operation == PROBABILITY_LOSS:
        for k in range(group.rows):
            group.result[k] = likelihood_loss(group, &at.sums[k], k)
        group_results(group, problem, results)


cdef void pair_group(
    Group *group, const Problem *problem, double *results, Scratch *scratch
) noexcept nogil:
    """All steps for the rows of a group."""
    cdef Py_ssize_t rows = group.rows if pairs_go_by_class(problem) else 1
    cdef Py_ssize_t first, chunk
    cdef PairRows at
    first = 0
    while first < group.rows:
        pair_rows_sum(group, problem, first, rows, &at, scratch)
        if has(problem, OUTPUT):
            for chunk in range(problem.plan.chunks):
                if problem.plan.chunks > 1:
                    pair_rows_read(group, problem, first, rows, chunk, &at, scratch)
                pair_rows_emit(group, problem, first, rows, chunk, &at, scratch)
        first += rows
    pair_results(group, problem, &at, results)


# ---- tasks ---------------------------------------------------------------------------------------


cdef size_t pair_scratch_place(
    const Problem *problem, char *memory, Scratch *scratch
) noexcept nogil:
    """Lay the parts of a thread's scratch memory out; return how many bytes they take."""
    cdef Py_ssize_t columns = min(<Py_ssize_t>PAIR_CHUNK, problem.layout.classes)
    # Room for whole vectors, and rows that do not fall onto the same places of a cache.
    cdef Py_ssize_t padded = (columns + 2 * LANES) // LANES * LANES
    cdef size_t rows = LANES if pairs_go_by_class(problem) else 1
    cdef size_t size = rows * padded * sizeof(real)
    cdef char *start = memory
    scratch.staged_stride = padded
    scratch.groups = <Group *>part_take(&memory, sizeof(Group))
    scratch.staged = <real *>part_take(&memory, size)
    scratch.target = <real *>part_take(&memory, size if has(problem, SECOND) else 0)
    scratch.kept = <real *>part_take(&memory, size)
    scratch.packed = <real *>part_take(&memory, MOST_ROWS * sizeof(real))
    scratch.writer.buffer = <real *>part_take(
        &memory, (max(padded, <Py_ssize_t>MOST_ROWS) + 2 * LANES) * sizeof(real))
    scratch.raw = part_take(&memory, max(padded, <Py_ssize_t>MOST_ROWS) * 8)
    scratch.results = <double *>part_take(
        &memory, 0 if problem.task_sums == NULL
        else (problem.plan.rows_per_task + LANES) * sizeof(double))
    return memory - start


cdef size_t pair_scratch_size(const Problem *problem) noexcept nogil:
    cdef Scratch scratch
    return pair_scratch_place(problem, NULL, &scratch)


cdef environment pair_open(
    const Problem *problem, char *memory, Scratch *scratch
) noexcept nogil:
    pair_scratch_place(problem, memory, scratch)
    scratch.scale = scale_for(1.0, False)
    if has(problem, OUTPUT):
        writer_open(
            &scratch.writer, &problem.arrays[<int>OUTPUT], problem.plan.stream,
            scratch.writer.buffer)
        return environment_enter()
    # A logarithm is to see the smallest probabilities.
    return 0


cdef void pair_close(
    const Problem *problem, Scratch *scratch, environment before
) noexcept nogil:
    if has(problem, OUTPUT):
        writer_close(&scratch.writer)
        environment_leave(before)


cdef void pair_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    """Work through the rows of a task."""
    cdef const Problem *problem = <const Problem *>context
    cdef Py_ssize_t first = task * problem.plan.rows_per_task
    cdef Py_ssize_t stop = min(first + problem.plan.rows_per_task, problem.layout.rows)
    cdef Py_ssize_t row = first
    cdef double *results = NULL
    cdef Scratch scratch
    cdef environment before = pair_open(problem, memory, &scratch)
    if problem.row_results != NULL:
        results = problem.row_results + first
    elif problem.task_sums != NULL:
        results = scratch.results
    while row < stop:
        group_open(scratch.groups, problem, row, min(<Py_ssize_t>LANES, stop - row))
        pair_group(
            scratch.groups, problem, NULL if results == NULL else results + (row - first),
            &scratch)
        row += scratch.groups.rows
    if problem.task_sums != NULL:
        problem.task_sums[task] = sum_of(results, stop - first)
    pair_close(problem, &scratch, before)


# Few long rows: a task is one chunk of one row. The sum of a row's chunks takes the place of the
# first one's.


cdef void pair_sums_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    cdef const Problem *problem = <const Problem *>context
    cdef Py_ssize_t chunk = task % problem.plan.chunks
    cdef PairSum *parts = <PairSum *>problem.parts
    cdef PairRows at
    cdef Scratch scratch
    cdef environment before = pair_open(problem, memory, &scratch)
    group_open(scratch.groups, problem, task // problem.plan.chunks, 1)
    pair_rows_read(scratch.groups, problem, 0, 1, chunk, &at, &scratch)
    parts[task] = pair_sum(
        scratch.groups, problem, &at, 0, chunk * PAIR_CHUNK, pair_chunk_length(problem, chunk),
        &scratch)
    pair_close(problem, &scratch, before)


cdef void pair_merge_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    """Add the sums of each row's chunks up, in order: a single task."""
    cdef const Problem *problem = <const Problem *>context
    cdef PairSum *parts = <PairSum *>problem.parts
    cdef Py_ssize_t row, chunk
    cdef PairRows at
    cdef Scratch scratch
    cdef environment before = pair_open(problem, memory, &scratch)
    for row in range(problem.layout.rows):
        for chunk in range(1, problem.plan.chunks):
            parts[0] = pair_sum_merge(parts[0], parts[chunk])
        group_open(scratch.groups, problem, row, 1)
        at.sums[0] = parts[0]
        pair_results(
            scratch.groups, problem, &at,
            NULL if problem.row_results == NULL else problem.row_results + row)
        parts += problem.plan.chunks
    pair_close(problem, &scratch, before)


cdef void pair_emit_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    cdef const Problem *problem = <const Problem *>context
    cdef Py_ssize_t row = task // problem.plan.chunks
    cdef PairRows at
    cdef Scratch scratch
    cdef environment before = pair_open(problem, memory, &scratch)
    group_open(scratch.groups, problem, row, 1)
    at.sums[0] = (<const PairSum *>problem.parts)[row * problem.plan.chunks]
    pair_rows_read(scratch.groups, problem, 0, 1, task % problem.plan.chunks, &at, &scratch)
    pair_rows_emit(scratch.groups, problem, 0, 1, task % problem.plan.chunks, &at, &scratch)
    pair_close(problem, &scratch, before)
