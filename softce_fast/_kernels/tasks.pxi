# The steps of a row's way, put together: what one thread does with the rows of a task.
#
#   absorb   the classes into the state of their row, chunk by chunk; the chunks merged
#   finish   what the operation makes of the state: a result, and the recipe of the output
#   emit     the output, if there is one, chunk by chunk
#
# Both passes give the same bits, so which one serves a group is a matter of speed alone. Few long
# rows are shared out by chunks instead of rows; the chunks are the same ones.
#
# Uses along.pxi, across.pxi, operations/.

cdef void groups_finish(
    Group *groups, const Problem *problem, Py_ssize_t count, const Scratch *scratch
) noexcept nogil:
    """What the operation makes of the states: the one place that knows all operations.

    Each step is done for all groups: few instructions wait for the one before them then.
    """
    cdef Py_ssize_t k
    if problem.operation == SOFTMAX:
        for k in range(count):
            finish_softmax(groups + k, problem, scratch)
    elif problem.operation == LOG_SOFTMAX:
        for k in range(count):
            finish_log_softmax(groups + k, problem, scratch)
    elif problem.operation == LOGSUMEXP:
        for k in range(count):
            finish_logsumexp(groups + k, problem, scratch)
    elif problem.operation == SCORES:
        for k in range(count):
            finish_scores(groups + k, problem, row_best(problem, k, 0, scratch), scratch)
    else:
        for k in range(count):
            finish_total(groups + k, problem, scratch)
        for k in range(count):
            finish_loss(groups + k, problem, scratch)
        if has(problem, OUTPUT):
            for k in range(count):
                finish_gradient(groups + k, problem, scratch)
        if has(problem, HESSIAN):
            for k in range(count):
                finish_hessian(groups + k, problem, scratch)


cdef inline void group_results(
    Group *group, const Problem *problem, double *results
) noexcept nogil:
    """Hand the results of the group's rows over: to the array of them, and to the task's sum."""
    cdef Py_ssize_t k
    if results != NULL:
        if group.rows == LANES:
            memcpy(results, group.result, LANES * sizeof(double))
        else:
            memcpy(results, group.result, group.rows * sizeof(double))
    if not has(problem, RESULT):
        return
    group_write(group, problem, RESULT, group.result)


cdef inline void group_write(
    const Group *group, const Problem *problem, Role role, const double *values
) noexcept nogil:
    """Write one number for each of the group's rows."""
    cdef const Array *array = &problem.arrays[<int>role]
    cdef real[16] lane
    cdef Py_ssize_t k
    if (
        group.rows == LANES and array.kind == REAL_KIND and array.row_stride == sizeof(real)
        and not array.swapped
    ):
        for k in range(LANES):
            lane[k] = <real>values[k]
        vector_store(<real *>(array.data + group.first * sizeof(real)), vector_load(lane))
    else:
        for k in range(group.rows):
            number_write(
                array.data + row_offset(&problem.layout, array, group.first + k),
                values[k], array.kind, array.swapped)


# ---- memory --------------------------------------------------------------------------------------


cdef inline size_t round_up(size_t size) noexcept nogil:
    return (size + 63) // 64 * 64


cdef inline char *part_take(char **memory, size_t size) noexcept nogil:
    """Take the next part of a thread's memory."""
    cdef char *part = memory[0]
    memory[0] = part + round_up(size)
    return part


cdef inline bint any_goes(const Problem *problem, bint by_class) noexcept nogil:
    """Whether tiles are filled from an array, or emptied into one, class by class, or by row."""
    cdef int role
    for role in range(<int>LABELS):
        if problem.arrays[role].data != NULL and by_class == goes_by_class(
            problem, &problem.arrays[role]
        ):
            return True
    return False


cdef inline Py_ssize_t kept_row_stride(const Problem *problem) noexcept nogil:
    """Numbers from one kept row to the next: whole vectors, and room for what is written."""
    return (problem.layout.classes + 3 * LANES) // LANES * LANES


cdef inline Py_ssize_t staged_row_stride(const Problem *problem) noexcept nogil:
    """The same of rows that are copied, a chunk at most."""
    return (min(<Py_ssize_t>CHUNK, problem.layout.classes) + 2 * LANES) // LANES * LANES


cdef size_t scratch_place(const Problem *problem, Scratch *scratch) noexcept nogil:
    """Lay the other parts of a thread's memory out; return how many bytes all of it takes."""
    cdef const Plan *plan = &problem.plan
    cdef Py_ssize_t columns = min(<Py_ssize_t>CHUNK, problem.layout.classes)
    cdef Py_ssize_t padded = staged_row_stride(problem)
    cdef Py_ssize_t classes = kept_row_stride(problem)
    cdef bint across = plan.passes == ACROSS
    cdef bint along = not across or plan.rest_along
    cdef size_t results = 0, sums = 0, kept = 0, staged = 0
    cdef size_t packed = padded, buffer = padded + 2 * LANES
    cdef Py_ssize_t raw_rows = plan.batch * LANES if plan.pick and across else 1
    cdef char *memory = <char *>scratch
    part_take(&memory, sizeof(Scratch))
    scratch.kept_stride = classes
    if problem.task_sums != NULL:
        results = (plan.rows_per_task + LANES) * sizeof(double)
    if along:
        sums = sizeof(DenseSums)
        if plan.keep and not plan.keep_in_output:
            kept = LANES * classes
        if plan.gather:
            staged = plan.rows_at_once * padded
    if across:
        kept = max(kept, <size_t>(plan.batch * tile_stride(problem)))
        sums = max(sums, <size_t>plan.batch * sizeof(TileTerms))
        packed = max(packed, <size_t>(MOST_ROWS + LANES))
        buffer = max(buffer, <size_t>(MOST_ROWS + 2 * LANES))
        if any_goes(problem, False):
            staged = max(staged, <size_t>(plan.batch * LANES * padded))
            buffer = max(buffer, <size_t>(plan.batch * LANES * columns + 2 * LANES))
    scratch.results = <double *>part_take(&memory, results)
    scratch.groups = <Group *>part_take(&memory, plan.batch * sizeof(Group))
    scratch.states = <RowState *>part_take(
        &memory, plan.batch * plan.chunks * sizeof(RowState))
    scratch.sums = part_take(&memory, sums)
    scratch.kept = <real *>part_take(&memory, kept * sizeof(real))
    scratch.staged = <real *>part_take(&memory, staged * sizeof(real))
    scratch.packed = <real *>part_take(&memory, packed * sizeof(real))
    scratch.writers.output.lines.buffer = <real *>part_take(&memory, buffer * sizeof(real))
    scratch.writers.hessian.lines.buffer = <real *>part_take(
        &memory, buffer * sizeof(real) if has(problem, HESSIAN) else 0)
    scratch.target = <real *>part_take(
        &memory, max(padded, <Py_ssize_t>MOST_ROWS + LANES) * sizeof(real))
    scratch.raw = part_take(&memory, max(padded * raw_rows, <Py_ssize_t>MOST_ROWS) * 8)
    scratch.beside = <Beside *>part_take(
        &memory, sizeof(Beside) if across and (plan.pick or any_goes(problem, True)) else 0)
    scratch.best = part_take(&memory, best_size(problem))
    return memory - <char *>scratch


cdef size_t scratch_size(const Problem *problem) noexcept nogil:
    cdef Scratch scratch
    if problem.operation == BINARY_LOSS:
        return binary_scratch_size(problem)
    if problem.operation == LABEL_LOSS:
        return label_scratch_size(problem)
    return scratch_place(problem, &scratch)


cdef inline void scratch_take(const Problem *problem, Scratch *scratch) noexcept nogil:
    """Lay a thread's memory out where it is; nothing is known yet of rows to be picked."""
    scratch_place(problem, scratch)
    if problem.plan.pick and problem.plan.passes == ACROSS:
        scratch.beside.picking.n = scratch.beside.weaving.n = 0


cdef void scratch_open(const Problem *problem, Scratch *scratch) noexcept nogil:
    scratch_take(problem, scratch)
    scratch.scale = scale_for(problem.options.temperature, problem.plan.few_digits)
    if problem.options.softcap != 0:
        scratch.softcap = softcap_for(problem.options.softcap)
    if is_weighted(problem):
        scratch.scale.headroom = 0    # their factors may need all of the range
    if is_dense(problem.operation):
        scratch.common.even = even_target(problem)
    if is_cross_entropy(problem.operation) and has(problem, OUTPUT):
        scratch.common.factors[0] = common_factors(
            problem, scale_of_gradients(problem), is_dense(problem.operation))
        if has(problem, HESSIAN):
            scratch.common.factors[1] = common_factors(problem, scale_of_hessian(problem), False)
    writer_open(
        &scratch.writers.output, &problem.arrays[<int>OUTPUT], problem.plan.stream,
        scratch.writers.output.lines.buffer)
    if has(problem, HESSIAN):
        writer_open(
            &scratch.writers.hessian, &problem.arrays[<int>HESSIAN], problem.plan.stream,
            scratch.writers.hessian.lines.buffer)


cdef inline void scratch_close(const Problem *problem, Scratch *scratch) noexcept nogil:
    if has(problem, OUTPUT):
        writer_close(&scratch.writers.output)
    if has(problem, HESSIAN):
        writer_close(&scratch.writers.hessian)


# ---- tasks of rows -------------------------------------------------------------------------------


cdef void rows_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    """Work through the rows of one task."""
    cdef const Problem *problem = <const Problem *>context
    cdef Py_ssize_t first = task * problem.plan.rows_per_task
    cdef Py_ssize_t stop = min(first + problem.plan.rows_per_task, problem.layout.rows)
    cdef Py_ssize_t across = first
    cdef double *results = NULL
    cdef Scratch *scratch = <Scratch *>memory
    cdef environment before = environment_enter()
    scratch_open(problem, scratch)
    if problem.row_results != NULL:
        results = problem.row_results + first
    elif problem.task_sums != NULL:
        results = scratch.results
    if problem.plan.passes == ACROSS:
        across = stop
        if problem.plan.rest_along:
            across -= (stop - first) % LANES
        rows_across(problem, first, across, results, scratch)
    if across < stop:
        scratch.kept_stride = kept_row_stride(problem)
        rows_along(
            problem, across, stop, NULL if results == NULL else results + (across - first),
            scratch)
    scratch_close(problem, scratch)
    if problem.task_sums != NULL:
        problem.task_sums[task] = sum_in_lanes(results, stop - first)
    environment_leave(before)


cdef void rows_along(
    const Problem *problem, Py_ssize_t first, Py_ssize_t stop, double *results, Scratch *scratch
) noexcept nogil:
    cdef Py_ssize_t row = first, chunk
    cdef Py_ssize_t rows_per_group = LANES
    cdef Group *group = scratch.groups
    cdef RowState *state
    if (
        has(problem, OUTPUT) or is_dense(problem.operation) or merges_chunks(problem)
        or problem.plan.gather
    ):
        # What is kept of a group is to fit the first-level cache as well, and dense targets read
        # all its rows twice. Else many are finished together.
        rows_per_group = problem.plan.rows_at_once
    while row < stop:
        group_open(group, problem, row, min(rows_per_group, stop - row))
        for chunk in range(problem.plan.chunks):
            chunk_absorb(
                group, problem, chunk, chunk_state(group, problem, 0, chunk, scratch), scratch)
        row += group.rows
        if not rows_merge(group, problem, scratch.states, scratch):
            continue
        groups_finish(group, problem, 1, scratch)
        group_results(
            group, problem, NULL if results == NULL else results + (group.first - first))
        if has(problem, OUTPUT):
            for chunk in range(problem.plan.chunks):
                state = chunk_state(group, problem, 0, chunk, scratch)
                along_emit(group, problem, chunk, state, scratch)


cdef inline bint rows_merge(
    Group *group, const Problem *problem, RowState *states, const Scratch *scratch
) noexcept nogil:
    """Merge the chunks of a group's rows; False where they are wanted as they are, not results."""
    if problem.shard.exported != NULL:
        return False
    if problem.shard.given:
        shard_merge(group, problem, states, &scratch.scale)
    else:
        group_merge(group, problem, states, &scratch.scale)
    return True


cdef void rows_across(
    const Problem *problem, Py_ssize_t first, Py_ssize_t stop, double *results, Scratch *scratch
) noexcept nogil:
    """A batch of tiles goes through each step before the next."""
    cdef Py_ssize_t row = first, chunk, k, tiles
    cdef Group *groups = scratch.groups
    scratch.kept_stride = tile_stride(problem)
    while row < stop:
        tiles = batch_open(groups, problem, row, stop)
        row += batch_rows(groups, tiles)
        for chunk in range(problem.plan.chunks):
            tiles_open(groups, problem, tiles, chunk, scratch)
            tiles_exponentials(groups, problem, tiles, chunk, scratch)
            if is_scored(problem.operation):
                for k in range(tiles):
                    tile_compare(groups + k, problem, k, chunk, scratch)
            for k in range(tiles if problem.shard.exported != NULL else 0):
                tile_export(groups + k, problem, k, chunk, scratch)
        if problem.shard.exported != NULL:
            continue
        if problem.plan.chunks > 1 or notes_maximum(problem.operation):
            for k in range(tiles):
                group_merge(
                    groups + k, problem, scratch.states + k * problem.plan.chunks,
                    &scratch.scale)
        groups_finish(groups, problem, tiles, scratch)
        for k in range(tiles):
            group_results(
                groups + k, problem,
                NULL if results == NULL else results + (groups[k].first - first))
        if has(problem, OUTPUT):
            for chunk in range(problem.plan.chunks):
                tiles_emit(groups, problem, tiles, chunk, scratch)


# ---- few long rows: a task is one chunk of one row -----------------------------------------------


cdef size_t states_size(const Problem *problem) noexcept nogil:
    return round_up(
        problem.layout.rows * problem.plan.chunks * sizeof(RowState)
    ) + round_up(problem.layout.rows * sizeof(Group)) + (
        problem.layout.rows * problem.plan.chunks * chunk_best(problem) * sizeof(Candidate))


cdef inline RowState *shared_states(const Problem *problem, Py_ssize_t row) noexcept nogil:
    return <RowState *>problem.states + row * problem.plan.chunks


cdef inline Group *shared_group(const Problem *problem, Py_ssize_t row) noexcept nogil:
    return <Group *>(problem.states + round_up(
        problem.layout.rows * problem.plan.chunks * sizeof(RowState))) + row


cdef inline char *shared_best(const Problem *problem, Py_ssize_t task) noexcept nogil:
    """What is selected of a chunk of a row."""
    return <char *>shared_group(problem, 0) + round_up(
        problem.layout.rows * sizeof(Group)) + task * chunk_best(problem) * sizeof(Candidate)


cdef void absorb_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    cdef const Problem *problem = <const Problem *>context
    cdef Scratch *scratch = <Scratch *>memory
    cdef environment before = environment_enter()
    scratch_open(problem, scratch)
    group_open(scratch.groups, problem, task // problem.plan.chunks, 1)
    scratch.best = shared_best(problem, task)
    chunk_absorb(
        scratch.groups, problem, task % problem.plan.chunks, <RowState *>problem.states + task,
        scratch)
    environment_leave(before)


cdef void finish_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    """Merge the chunks of all rows, and finish them: a single task."""
    cdef const Problem *problem = <const Problem *>context
    cdef Py_ssize_t row
    cdef Group *group
    cdef Scratch *scratch = <Scratch *>memory
    cdef environment before = environment_enter()
    scratch_open(problem, scratch)
    for row in range(problem.layout.rows):
        group = shared_group(problem, row)
        group_open(group, problem, row, 1)
        if not rows_merge(group, problem, shared_states(problem, row), scratch):
            continue
        best_merge(problem, shared_best(problem, row * problem.plan.chunks), scratch)
        groups_finish(group, problem, 1, scratch)
        group_results(
            group, problem, NULL if problem.row_results == NULL else problem.row_results + row)
    environment_leave(before)


cdef void emit_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    cdef const Problem *problem = <const Problem *>context
    cdef Scratch *scratch = <Scratch *>memory
    cdef environment before = environment_enter()
    scratch_open(problem, scratch)
    along_emit(
        shared_group(problem, task // problem.plan.chunks), problem, task % problem.plan.chunks,
        <RowState *>problem.states + task, scratch)
    scratch_close(problem, scratch)
    environment_leave(before)
