# The plan of a call: decided here, from one table, before anything runs. Any plan gives the same
# bits, but for `few_digits`; and the sum of results has an order that rows_per_task fixes.
#
# A plan can be recorded and, for tests and benchmarks, forced: recording() and forcing() at the
# end. Uses problem.pxd, layout.pxi, share.pxi.

cpdef enum Threshold:
    # ACROSS
    ACROSS_ROWS = 4            # fewest rows that go across,
    ACROSS_CLASSES = 224       # and most classes of rows without neighbours,
    PAIR_CLASSES = 56          # and where it takes little more than to read and write two arrays;
    #                            in float64 half of either.
    FEWEST_NEIGHBOURS = 4      # Rows that are neighbours, if fewer at a time, or if fewer than fill
    #                            a vector and to be converted, are taken one by one.
    SHORT_RUN = 6              # If fewer than these, and they are not picked, they go across
    SHORT_RUN_CLASSES = 48     # up to so many classes. Without permutations, those of more than
    #                            ACROSS_CLASSES are picked if not fewer, others if fewer.
    TOP_ACROSS = 32            # Most classes that are selected, and
    CLASSES_ACROSS = 16777216  # longest row where they are: float32 numbers its classes.
    BATCH = 4                  # Groups worked on together: of packed rows,
    BATCH_CLASSES = 256        # with so many classes in all at most;
    MOST_BATCH = 16            # of neighbouring rows, if so many are,
    PANEL_BYTES = 2097152      # with as many bytes of a chunk at most where it is copied, for the
    #                            lower caches; where it is read in place,
    IN_PLACE_BYTES = 524288    # for the second one, but in any case
    WIDE_BATCH = 8             # so many, for long runs of memory;
    FEWEST_TASKS = 8           # and so that this many tasks are left, or one for each thread.
    WHOLE_RUN = 4              # Vectors of neighbouring rows at least that end in a group of their
    #                            own, fewer than LANES, rather than in one with rows elsewhere.
    # ALONG
    WORK_AT_ONCE = 8192        # Numbers of rows worked on together, in the first-level cache.
    KEPT_CLASSES = 131072      # Longest row whose exponentials the second-level cache keeps,
    KEPT_BYTES = 20971520      # and largest output that is worth it: they come back from a cache.
    # Memory
    LARGE_BYTES = 16777216     # Arrays from this size on are larger than the caches; outputs are
    #                            written past them.
    LONG_RUN = 256             # Rows that are neighbours are written past the caches where so many
    #                            are, and each class of theirs begins a cache line.
    SHARD_STREAMED = 1024      # Fewest classes of a shard whose output is, too, if all shards are
    #                            that large together.
    FETCHED_BYTES = 4194304    # Smaller ones are in the caches already: fetching ahead would take
    #                            lines from other threads.
    ROWS_AHEAD = 64            # Rows whose one element is on its way from memory.
    # Tasks
    ROWS_PER_TASK = 2048       # Most rows of a task: their results are kept until its end.
    LABELS_PER_TASK = 1024     # The same of losses that are one element each,
    LABEL_WORK = 16             # which counts as so many: it lies in a cache line of its own.
    # Digits
    SCALE_BITS = 40            # Few will do where what multiplies gradients is 2**±this: it can be
    #                            put together with 1 / sum then.


# By the numbers of Operation and Pass.
OPERATIONS = (
    "softmax", "log_softmax", "logsumexp", "cross_entropy", "dense_cross_entropy", "scores",
    "softmax_backward", "log_softmax_backward", "probability_loss", "label_loss", "binary_loss",
)
PASSES = ("along", "across")


cdef inline bint has_row_state(Operation operation) noexcept nogil:
    return operation <= SCORES


cdef inline bint can_go_across(Operation operation) noexcept nogil:
    return has_row_state(operation) or is_pair(operation)


cdef inline Py_ssize_t chunk_classes(Operation operation) noexcept nogil:
    """How many classes a chunk of a row has."""
    if operation == LABEL_LOSS:
        return PY_SSIZE_T_MAX
    return CHUNK


cdef inline Py_ssize_t batch_bytes(const Problem *problem, Role role) noexcept nogil:
    return problem.layout.rows * problem.layout.classes * problem.arrays[<int>role].size


# ---- what a problem allows -----------------------------------------------------------------------


cdef inline bint reads_in_place(
    const Problem *problem, int lanes, int real_kind
) noexcept nogil:
    """Whether the passes can read INPUT where it is."""
    cdef const Array *array = &problem.arrays[<int>INPUT]
    if array.swapped or has(problem, MASK) or problem.layout.class_axes > 1 or is_weighted(problem):
        return False
    if problem.options.softcap != 0:
        return False
    if array.kind != real_kind:
        # Half types are converted as they are read, along rows.
        return (
            is_half_kind(array.kind) and real_kind == KIND_FLOAT32
            and problem.plan.passes == ALONG and has_row_state(problem.operation)
            and not notes_maximum(problem.operation) and has_neighbour_classes(problem, INPUT))
    return has_neighbour_classes(problem, INPUT) or (
        problem.plan.passes == ACROSS and has_neighbour_rows(problem, INPUT)
        and not notes_maximum(problem.operation) and problem.shard.exported == NULL
        and (problem.layout.inner % lanes == 0 or problem.layout.inner >= WHOLE_RUN * lanes))


cdef inline Py_ssize_t classes_across(Py_ssize_t most, int lanes) noexcept nogil:
    """A number of classes of the table, for vectors of float32, in `lanes` lanes."""
    return most * lanes // 16


cdef inline bint can_pick(const Problem *problem, int lanes) noexcept nogil:
    """Whether the rows of INPUT can be picked out of what lies beside them."""
    cdef const Array *array = &problem.arrays[<int>INPUT]
    return (
        problem.layout.class_axes == 1 and not array.swapped and not has(problem, MASK)
        and 2 * array.size <= array.class_stride < lanes * array.size
        and array.class_stride % array.size == 0 and array.size > 1)


cdef inline bint picks(const Problem *problem, const Kernels *kernels) noexcept nogil:
    """Whether that pays: where registers do it; else of few neighbours if they are short, of many

    if they are long, as short ones stay in the first-level cache from one to the next.
    """
    cdef bint short_rows = problem.layout.classes <= classes_across(ACROSS_CLASSES, kernels.lanes)
    return can_pick(problem, kernels.lanes) and (
        kernels.permutes or short_rows == (problem.layout.inner < SHORT_RUN))


cdef inline Py_ssize_t rows_of_block(const Problem *problem) noexcept nogil:
    """How many rows lie in the same memory."""
    if problem.plan.pick and has_neighbour_rows(problem, INPUT):
        return problem.layout.inner
    return 1


cdef inline bint can_stream(const Problem *problem) noexcept nogil:
    """Whether what is written has runs of memory that can be written past the caches."""
    return (
        can_go_across(problem.operation) and has(problem, OUTPUT)
        and has_runs(problem, OUTPUT)
        and (not has(problem, HESSIAN) or has_runs(problem, HESSIAN)))


cdef inline bint has_runs(const Problem *problem, Role role) noexcept nogil:
    cdef const Array *output = &problem.arrays[<int>role]
    return (
        not output.swapped and output.data != problem.arrays[<int>INPUT].data
        and is_aligned(&problem.layout, output)
        and (has_neighbour_classes(problem, role) or has_neighbour_rows(problem, role)))


cdef inline bint can_keep(const Problem *problem) noexcept nogil:
    """Whether there are exponentials to keep."""
    return (
        problem.plan.passes == ALONG and has_row_state(problem.operation)
        and has(problem, OUTPUT) and not emits_logarithms(problem.operation)
        and not problem.shard.given)


cdef inline bint can_keep_in_output(const Problem *problem, int real_kind) noexcept nogil:
    """Whether they fit there, and it holds nothing that is read once more."""
    cdef const Array *output = &problem.arrays[<int>OUTPUT]
    cdef int role
    if not (
        can_keep(problem) and output.kind == real_kind and not output.swapped
        and has_neighbour_classes(problem, OUTPUT) and not has(problem, MASK)
        and problem.options.softcap == 0
        # The gradient of a single row may take the place of the weights.
        and <const char *>problem.options.class_weight != output.data
    ):
        return False
    for role in range(ROLES):
        if role != <int>OUTPUT and problem.arrays[role].data != NULL and overlap(
            &problem.layout, &problem.arrays[role], output
        ):
            return False
    return True


cdef inline bint selects_along(const Problem *problem) noexcept nogil:
    """Whether the classes that are selected are too many, or too far apart, to go across."""
    return problem.scores.top_k > TOP_ACROSS or (
        problem.scores.top_k > 0 and problem.layout.classes > CLASSES_ACROSS)


cdef inline bint can_leave_rest_along(const Problem *problem) noexcept nogil:
    return problem.plan.passes == ACROSS and has_neighbour_classes(problem, INPUT)


# ---- what pays -----------------------------------------------------------------------------------


cdef inline Pass passes_for(const Problem *problem, int lanes) noexcept nogil:
    """Which way the lanes of a vector lie."""
    cdef const Layout *layout = &problem.layout
    cdef const Array *input = &problem.arrays[<int>INPUT]
    cdef const Array *output = &problem.arrays[<int>OUTPUT]
    cdef bint neighbours = has_neighbour_classes(problem, INPUT)
    cdef Py_ssize_t most = classes_across(ACROSS_CLASSES, lanes)
    if (
        problem.plan.by_chunks or problem.shard.imported != NULL
        or not can_go_across(problem.operation) or selects_along(problem)
    ):
        return ALONG
    if not neighbours or input.row_stride == 0 or (output.data != NULL and not (
        has_neighbour_classes(problem, OUTPUT)
        and output.row_stride == layout.classes * output.size
    )):
        # Not packed: numbers are taken one by one, unless rows are neighbours.
        if not neighbours and has_neighbour_rows(problem, INPUT):
            most = SHORT_RUN_CLASSES
            if layout.inner >= lanes:
                most = PY_SSIZE_T_MAX
            elif layout.inner >= SHORT_RUN or problem.plan.pick:
                most = CHUNK
        if layout.rows >= ACROSS_ROWS and layout.classes <= most:
            return ACROSS
        return ALONG
    if is_pair(problem.operation):
        most = classes_across(PAIR_CLASSES, lanes)
    if layout.classes <= most and layout.rows >= (
        ACROSS_ROWS if layout.classes <= lanes else lanes
    ):
        return ACROSS
    return ALONG


cdef inline Py_ssize_t batch_for(const Problem *problem, int lanes) noexcept nogil:
    """How many groups go across together."""
    cdef Py_ssize_t columns = min(<Py_ssize_t>CHUNK, problem.layout.classes)
    cdef Py_ssize_t bytes_ = columns * 64 * tile_sections(problem)    # a vector's each
    cdef Py_ssize_t most = BATCH, tasks = FEWEST_TASKS
    if problem.plan.passes == ALONG:
        return 1
    if (
        has_neighbour_classes(problem, INPUT) or not has_neighbour_rows(problem, INPUT)
        or problem.plan.pick
    ):
        if coefficients_by_row(problem):
            columns *= tile_sections(problem)
        return max(1, min(<Py_ssize_t>BATCH, BATCH_CLASSES // columns))
    if problem.layout.inner >= lanes:
        most = MOST_BATCH
    if problem.plan.gather:
        most = min(most, PANEL_BYTES // bytes_)
    else:
        # Whole runs of neighbours, or parts that are not small, however many classes.
        most = min(most, max(<Py_ssize_t>WIDE_BATCH, IN_PLACE_BYTES // (columns * 64)))
        most = max(<Py_ssize_t>BATCH, min(most, (problem.layout.inner - 1) // lanes + 1))
    if problem.plan.chunks > 1:
        # Results are not summed by task then.
        tasks = problem.plan.threads
    return max(1, min(most, problem.layout.rows // (lanes * tasks)))


cdef inline Py_ssize_t rows_per_task_for(const Problem *problem, int lanes) noexcept nogil:
    """How many rows make a task: whatever the threads where results are summed by task."""
    cdef const Layout *layout = &problem.layout
    cdef Py_ssize_t rows = task_work(layout.rows * layout.classes, lanes) // layout.classes
    cdef Py_ssize_t least = lanes
    if problem.operation == LABEL_LOSS:
        return LABELS_PER_TASK
    if not can_go_across(problem.operation):
        return max(1, rows)
    if problem.plan.passes == ACROSS:
        least *= problem.plan.batch
    elif problem.plan.chunks > 1:
        least = rows_of_block(problem)
    return max(least, min(<Py_ssize_t>ROWS_PER_TASK, rows) // least * least)


cdef inline Py_ssize_t ahead_for(const Problem *problem, int lanes) noexcept nogil:
    """How far ahead to fetch, in bytes."""
    cdef const Array *input = &problem.arrays[<int>INPUT]
    if batch_bytes(problem, INPUT) < FETCHED_BYTES:
        return 0
    if problem.operation == LABEL_LOSS:
        return ROWS_AHEAD * input.row_stride
    if not (
        has_row_state(problem.operation) or problem.plan.passes == ACROSS
    ):
        return 0
    if not has_neighbour_classes(problem, INPUT):
        if problem.plan.passes == ALONG or problem.plan.chunks > 1:
            return 0
        if has_neighbour_rows(problem, INPUT):
            return problem.plan.batch * lanes * input.size * (
                problem.layout.classes if problem.plan.pick else 1)
    if problem.shard.imported != NULL and problem.layout.classes <= KEPT_CLASSES:
        # While rows are written, the next ones.
        return problem.plan.rows_at_once * input.row_stride
    if problem.plan.chunks > 1:
        return CHUNK * input.size
    return 2 * problem.plan.rows_at_once * problem.plan.batch * input.row_stride


cdef inline Py_ssize_t written_bytes(const Problem *problem) noexcept nogil:
    """How large the output is; if there are other shards, with theirs, which come next."""
    if problem.layout.classes < SHARD_STREAMED or problem.shard.imported == NULL:
        return batch_bytes(problem, OUTPUT)
    return problem.layout.rows * problem.shard.classes * problem.arrays[<int>OUTPUT].size


cdef inline bint few_digits_for(const Problem *problem, int result_kind) noexcept nogil:
    """Whether results are stored with so few digits that plain sums have enough."""
    return (
        is_half_kind(result_kind) and not is_dense(problem.operation)
        and -SCALE_BITS <= ilogb(
            problem.options.divisor * problem.options.temperature) <= SCALE_BITS
        and problem.operation != PROBABILITY_LOSS
        and problem.options.class_weight == NULL and not problem.shard.weighs_label
        and problem.options.z_loss == 0
        and not has(problem, SAMPLE_WEIGHT))


cdef inline bint has_long_runs(const Problem *problem) noexcept nogil:
    """Whether writing past the caches pays where the rows of the output are neighbours."""
    return (
        problem.layout.inner >= LONG_RUN and problem.layout.class_axes == 1
        and problem.arrays[<int>OUTPUT].class_stride % 64 == 0)


cdef inline bint by_chunks_for(const Problem *problem) noexcept nogil:
    """Whether a task is a chunk of a row."""
    if problem.operation == BINARY_LOSS:
        return problem.plan.chunks > 1    # whatever the threads: its sums are by task
    return parts_pay(problem.layout.rows, problem.plan.chunks, problem.plan.threads)


cdef inline Py_ssize_t tasks_of(const Problem *problem) noexcept nogil:
    """How many tasks a planned problem has: rows at a time, or chunk by chunk."""
    if problem.plan.by_chunks:
        return problem.layout.rows * problem.plan.chunks
    return task_count(problem.layout.rows, problem.plan.rows_per_task)


cdef int plan_tasks(Problem *problem, const Kernels *kernels) except -1:
    """First decide how rows are passed through, and shared out: each step follows from the last."""
    cdef Plan *plan = &problem.plan
    cdef int lanes = kernels.lanes, real_kind = kernels.real_kind
    settle(plan)
    plan.by_chunks = by_chunks_for(problem)
    plan.pick = picks(problem, kernels)
    settle(plan)
    plan.passes = passes_for(problem, lanes)
    settle(plan)
    plan.gather = not reads_in_place(problem, lanes, real_kind)
    settle(plan)
    plan.batch = batch_for(problem, lanes)
    plan.runs = problem.layout.inner >= (
        FEWEST_NEIGHBOURS if problem.arrays[<int>INPUT].kind == real_kind else lanes)
    settle(plan)
    plan.rows_per_task = rows_per_task_for(problem, lanes)
    settle(plan)
    plan.threads = <int>min(<Py_ssize_t>plan.threads, tasks_of(problem))
    return 0


cdef void plan_rest(Problem *problem, int lanes, int real_kind, int result_kind) noexcept:
    """Then what follows from that."""
    cdef Plan *plan = &problem.plan
    cdef bint is_long = plan.by_chunks or problem.layout.classes > KEPT_CLASSES
    plan.rows_at_once = lanes
    if plan.passes == ALONG:
        plan.rows_at_once = max(1, min(
            <Py_ssize_t>lanes, WORK_AT_ONCE // problem.layout.classes))
        if not plan.by_chunks and (
            rows_of_block(problem) * problem.layout.classes * (64 // lanes) <= PANEL_BYTES
        ):
            # Chunk by chunk: it is in the lower caches then.
            plan.rows_at_once = max(plan.rows_at_once, rows_of_block(problem))
    plan.rest_along = (
        can_leave_rest_along(problem) and problem.layout.classes > lanes
        and problem.layout.rows % lanes != 0)
    plan.few_digits = few_digits_for(problem, result_kind)
    plan.stream = (
        can_stream(problem) and written_bytes(problem) >= LARGE_BYTES
        and (has_neighbour_classes(problem, OUTPUT) or has_long_runs(problem)))
    plan.keep = can_keep(problem) and not is_long
    plan.keep_in_output = False
    if (is_long or not plan.stream) and can_keep_in_output(problem, real_kind) and (
        batch_bytes(problem, OUTPUT) <= KEPT_BYTES
    ):
        # They are read back: the output is not written past the caches.
        plan.keep = True
        plan.keep_in_output = True
        plan.stream = False
    plan.ahead = ahead_for(problem, lanes)


cdef int make_plan(
    Problem *problem, const Kernels *kernels, int threads, int result_kind
) except -1:
    """Plan a problem that has its layout and options, and results that are stored as that kind."""
    cdef Py_ssize_t columns = chunk_classes(problem.operation)
    problem.plan.threads = threads
    problem.plan.chunks = (problem.layout.classes - 1) // columns + 1
    plan_tasks(problem, kernels)
    plan_rest(problem, kernels.lanes, kernels.real_kind, result_kind)
    settle(&problem.plan)
    if forced is not None:
        plan_check(problem, kernels)
    if recorded is not None:
        recorded.append(plan_recorded(problem, kernels))
    return 0


# ---- recorded and forced -------------------------------------------------------------------------

cdef list recorded = None
cdef dict forced = None
# What a plan follows from is not up to anybody.
_DERIVED = ("chunks",)


cdef dict plan_recorded(const Problem *problem, const Kernels *kernels):
    cdef const Layout *layout = &problem.layout
    plan = <dict>problem.plan
    plan["passes"] = PASSES[problem.plan.passes]
    cdef int axis
    return {
        "operation": OPERATIONS[problem.operation],
        "compute": "float32" if kernels.real_kind == KIND_FLOAT32 else "float64",
        "rows": layout.rows,
        "classes": layout.classes,
        "inner": layout.inner,
        "row_axes": layout.row_axes,
        "class_axes": layout.class_axes,
        "lengths": tuple([
            layout.lengths[axis] for axis in range(layout.row_axes + layout.class_axes)]),
        "tasks": tasks_of(problem),
        **plan,
    }


cdef inline int settle(Plan *plan) except -1:
    """Let what is forced take the place of what was decided."""
    if forced is not None:
        fields = <dict>plan[0]
        fields.update(forced)
        plan[0] = fields
    return 0


cdef int plan_check(const Problem *problem, const Kernels *kernels) except -1:
    """Raise ValueError if a plan cannot be carried out."""
    cdef const Plan *plan = &problem.plan
    cdef int kind = kernels.real_kind
    impossible = [
        name
        for name, holds in (
            ("passes", plan.passes == ACROSS and (
                plan.by_chunks or not can_go_across(problem.operation)
                or selects_along(problem) or problem.shard.imported != NULL)),
            ("by_chunks", plan.by_chunks and plan.chunks == 1),
            ("rows_at_once", plan.rows_at_once > kernels.lanes),
            ("batch", plan.batch > (MOST_BATCH if plan.passes == ACROSS else 1)),
            ("rest_along", plan.rest_along and not can_leave_rest_along(problem)),
            ("pick", plan.pick and not can_pick(problem, kernels.lanes)),
            ("gather", not plan.gather and not reads_in_place(problem, kernels.lanes, kind)),
            ("stream", plan.stream and not can_stream(problem)),
            ("keep", plan.keep and not (
                can_keep(problem) and (plan.keep_in_output or not plan.by_chunks))),
            ("keep_in_output", plan.keep_in_output and (
                not plan.keep or plan.stream or not can_keep_in_output(problem, kind))),
        )
        if holds
    ]
    if impossible:
        raise ValueError(
            f"a plan with {', '.join(f'{name}={forced.get(name)}' for name in impossible)} is not "
            f"possible for {OPERATIONS[problem.operation]} of this layout")
    return 0


@contextmanager
def recording():
    """Yield a list to which each call in the body adds its plans. Not for several threads."""
    global recorded
    before = recorded
    plans = []
    recorded = plans
    try:
        yield plans
    finally:
        recorded = before


@contextmanager
def forcing(**fields):
    """Replace fields of all plans made in the body. Not for several threads.

    A field that does not exist, or can be derived only, is a ValueError; so is, in the call itself,
    a plan that its arrays do not allow: then nothing is written.
    """
    global forced
    cdef Plan plan
    memset(&plan, 0, sizeof(plan))
    known = <dict>plan
    for name, value in fields.items():
        if name not in known or name in _DERIVED:
            names = ", ".join(sorted(known.keys() - _DERIVED))
            raise ValueError(f"a plan has no field {name!r} to force, but {names}")
        if name == "passes":
            if value not in PASSES:
                raise ValueError(f"passes must be one of {', '.join(PASSES)}, not {value!r}")
            fields[name] = PASSES.index(value)
        elif type(value) is not type(known[name]) or value < (name in _COUNTS):
            raise ValueError(f"{name} cannot be {value!r}")
    before = forced
    forced = {**(before or {}), **fields}
    try:
        yield
    finally:
        forced = before


_COUNTS = ("threads", "rows_per_task", "rows_at_once", "batch")
